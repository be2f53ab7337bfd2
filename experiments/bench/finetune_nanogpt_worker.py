"""A contender: fine-tuning of one start over learning rates, in a loop around nanoGPT's model.

Started by finetune.py with the peer's interpreter; needs the standard library and PyTorch only.
"""

import math

from nanogpt_worker import NanoGPT, torch
from protocol import serve


class FineTuning(NanoGPT):
    """A step is a whole grid: the start is scored, tuned with each rate and scored again."""

    def __init__(self, spec):
        super().__init__(spec)
        self.rates, self.counts = spec["rates"], spec["batches"]
        self.start = {name: tensor.clone() for name, tensor in self._own().state_dict().items()}

    def _own(self):
        """The model without what torch.compile wraps around it."""
        return getattr(self.model, "_orig_mod", self.model)

    def _steps(self, steps):
        for _ in range(steps):
            self._own().load_state_dict(self.start)
            self._scores()
            found = []
            for rate in self.rates:
                self._own().load_state_dict(self.start)
                self._tune(rate)
                found.append(self._scores()["validation"])
        return sum(found) / len(found)

    def _tune(self, rate):
        own, count = self._own(), self.counts["train"]
        self.optimizer = own.configure_optimizers(0.0, rate, (0.9, 0.95), self.device)
        order = torch.randperm(count).tolist()
        for number, self.step in enumerate(order, 1):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * _cosine(number, count)
            self._step()

    def _scores(self):
        """Nats per token of each held-out text."""
        scores, self.step = {}, self.counts["train"]
        with torch.no_grad(), self._precision():
            for name in ("validation", "test", "pretraining"):
                total = 0.0
                for _ in range(self.counts[name]):
                    _, loss = self.model(*self._batch())
                    total += loss.item()
                    self.step += 1
                scores[name] = total / self.counts[name]
        return scores


def _cosine(number, count):
    """The rate of step `number`, from 1: a tenth of warm-up, then down to a tenth of the peak."""
    warmup = min(max(1, round(0.1 * count)), count - 1)
    if number <= warmup:
        return number / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - warmup) / (count - warmup)))


if __name__ == "__main__":
    serve(FineTuning)
