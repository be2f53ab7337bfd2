"""A contender: the perturbation sweep as a plain loop over a transformers model.

Started by perturb.py with the peer's interpreter; needs the standard library, PyTorch and
transformers only.
"""

import os
import platform
from pathlib import Path

from protocol import Missing, resident_peak, serve

try:
    import torch
    import transformers
except ImportError:
    torch = None


class Loop:
    """For each seed and strength: noise added leaf by leaf, the loss, the weights put back."""

    def __init__(self, spec):
        if torch is None:
            raise Missing(
                f"its interpreter (Python {platform.python_version()}) lacks torch or transformers"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # XLA multiplies float32 in the same way on these devices.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        model = transformers.AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=torch.float32, attn_implementation="sdpa"
        )
        self.model = model.eval().to(self.device)
        with torch.inference_mode():
            # A tied tensor comes once.
            self.parameters = list(self.model.parameters())
            self.kept = [p.clone() for p in self.parameters]
            self.rms = [float(p.square().mean().sqrt()) for p in self.parameters]
        raw = torch.frombuffer(bytearray(Path(spec["tokens"]).read_bytes()), dtype=torch.int32)
        self.tokens_KBT = raw.view(spec["shape"]).long().to(self.device)
        self.strengths, self.step = spec["strengths"], 0
        self.facts = {
            "parameters": sum(p.numel() for p in self.parameters),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "versions": {
                "peer python": platform.python_version(),
                "peer torch": torch.__version__,
                "peer transformers": transformers.__version__,
            },
            "unperturbed": self._loss(),
        }

    def advance(self, steps):
        for _ in range(steps):
            seed, number = divmod(self.step, len(self.strengths))
            self.step += 1
            loss = self._perturbed(seed, self.strengths[number])
        return loss

    @torch.inference_mode() if torch else lambda function: function
    def _perturbed(self, seed, strength):
        generator = torch.Generator(self.device).manual_seed(seed)
        for parameter, rms in zip(self.parameters, self.rms):  # noqa: B905
            noise = torch.randn(parameter.shape, generator=generator, device=self.device)
            parameter.add_(noise, alpha=strength * rms)
        loss = self._loss()
        for parameter, kept in zip(self.parameters, self.kept):  # noqa: B905
            parameter.copy_(kept)
        return loss

    @torch.inference_mode() if torch else lambda function: function
    def _loss(self):
        """Nats per token over all windows."""
        nats = []
        for tokens_BT in self.tokens_KBT:
            logits_BSV = self.model(tokens_BT[:, :-1], use_cache=False).logits
            losses_N = torch.nn.functional.cross_entropy(
                logits_BSV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
            )
            nats.append(losses_N.double().mean())
        return float(torch.stack(nats).mean())

    def memory(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resident_peak()


if __name__ == "__main__":
    serve(Loop)
