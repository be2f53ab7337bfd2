"""A contender: a GPT as in karpathy/nanoGPT, from a copy of its model.py that the user has.

Started by train.py with the peer's interpreter; needs the standard library and PyTorch only.
"""

import contextlib
import importlib.util
import os
import platform
import sys
from pathlib import Path

from protocol import Missing, Refused, fingerprint, resident_peak, serve

try:
    import torch
except ImportError:
    torch = None


class NanoGPT:
    """The model file's own GPT and AdamW, in nanoGPT's training loop."""

    def __init__(self, spec):
        if torch is None:
            raise Missing(f"its interpreter (Python {platform.python_version()}) lacks torch")
        shape = spec["shape"]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores)
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # As nanoGPT's train.py does; XLA multiplies float32 in the same way on these devices.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        source = Path(spec["source"])
        model = _model(source, shape).to(self.device)
        betas = (0.9, 0.95)
        self.optimizer = model.configure_optimizers(0.1, spec["learning_rate"], betas, self.device)
        self.parameters = list(model.parameters())
        self.compiled = spec["kind"] == "nanogpt-compile"
        self.model = torch.compile(model) if self.compiled else model
        self.bf16 = spec["dtype"] == "bfloat16"
        raw = torch.frombuffer(bytearray(Path(spec["tokens"]).read_bytes()), dtype=torch.int32)
        self.tokens_PBT = raw.view(-1, shape["batch"], shape["length"] + 1)
        self.step = 0
        self.facts = {
            "parameters": sum(p.numel() for p in self.parameters),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "versions": {
                "peer python": platform.python_version(),
                "peer torch": torch.__version__,
                "nanoGPT model.py": fingerprint(source),
            },
        }

    def advance(self, steps):
        try:
            return self._steps(steps)
        except torch.cuda.OutOfMemoryError as error:
            raise Missing("it does not fit in the device's memory") from error
        except torch._dynamo.exc.TorchDynamoException as error:
            if self.step or not self.compiled:
                raise
            # Most often there is no C++ compiler, which the first paragraph says.
            reason = " ".join(str(error).split("\n\n")[0].split())[:200]
            raise Missing(f"torch.compile fails here ({reason})") from error

    def _steps(self, steps):
        for _ in range(steps):
            loss = self._step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def _step(self):
        x_BS, y_BS = self._batch()
        with self._precision():
            _, loss = self.model(x_BS, y_BS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss

    def _precision(self):
        if self.bf16:
            return torch.amp.autocast(self.device, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _batch(self):
        tokens_BT = self.tokens_PBT[self.step % len(self.tokens_PBT)].long()
        x_BS, y_BS = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
        if self.device == "cuda":
            return [a.pin_memory().to(self.device, non_blocking=True) for a in (x_BS, y_BS)]
        return x_BS, y_BS

    def memory(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resident_peak()


def _model(path, shape):
    """The model of the file, at our shape."""
    spec = importlib.util.spec_from_file_location("peer_model", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["peer_model"] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "GPT") or not hasattr(module, "GPTConfig"):
        raise Refused(f"{path} defines no GPT and GPTConfig: name the model.py of nanoGPT")
    config = module.GPTConfig(
        block_size=shape["length"],
        vocab_size=shape["vocab_size"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_embd=shape["width"],
        dropout=0.0,
        bias=False,
    )
    return module.GPT(config)


if __name__ == "__main__":
    serve(NanoGPT)
