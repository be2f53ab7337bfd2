"""A contender: `generate` of a transformers model over a KV cache.

Started by generate.py with the peer's interpreter; needs the standard library, PyTorch and
transformers only.
"""

import platform
from pathlib import Path

from protocol import Missing, resident_peak, serve

try:
    import torch
    import transformers
except ImportError:
    torch = None


class Generation:
    """A step is one batch of continuations."""

    def __init__(self, spec):
        if torch is None:
            raise Missing(
                f"its interpreter (Python {platform.python_version()}) lacks torch or transformers"
            )
        torch.set_num_threads(spec["threads"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # XLA multiplies float32 in the same way on these devices.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        model = transformers.AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model = model.eval().to(self.device)
        if spec["kind"] == "compiled":
            self.model.forward = torch.compile(self.model.forward)
        raw = torch.frombuffer(bytearray(Path(spec["prompts"]).read_bytes()), dtype=torch.int32)
        self.prompts_BS = raw.view(spec["batch"], -1).long().to(self.device)
        # The whole vocabulary, and nothing that ends a row.
        choice = {"do_sample": False}
        if spec["method"] == "sampling":
            choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        if spec["kind"] != "dynamic":
            choice["cache_implementation"] = "static"
        self.choice = choice | {"max_new_tokens": spec["new_tokens"], "eos_token_id": None}

    @property
    def facts(self):
        """With the tokens of the last batch, which are asked for once there is one."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "versions": {
                "peer python": platform.python_version(),
                "peer torch": torch.__version__,
                "peer transformers": transformers.__version__,
            },
            "tokens": self.tokens_BN.tolist(),
        }

    @torch.inference_mode() if torch else lambda function: function
    def advance(self, steps):
        for _ in range(steps):
            tokens_BT = self.model.generate(
                self.prompts_BS,
                attention_mask=torch.ones_like(self.prompts_BS),
                pad_token_id=0,
                **self.choice,
            )
            self.tokens_BN = tokens_BT[:, self.prompts_BS.shape[1] :]
            mean = float(self.tokens_BN.double().mean())
        return mean

    def memory(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resident_peak()


if __name__ == "__main__":
    serve(Generation)
