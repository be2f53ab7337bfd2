"""What the noise study measured on one population, and Proposition 1 with its numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lmnoise.report import Estimate, paired_difference
from lmnoise.theory import noise as theory

LABELS = {
    "uniform": "uniform noise",
    "gaussian": "Gaussian noise",
    "shuffled": "shuffled rows",
    "repeated": "repeated spans",
    "dropped": "rows dropped (control)",
    "stream": "rows of the other corpus",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One trained population: `rows[m]` holds the final `eval/...` metrics of `members[m]`."""

    name: str
    config: ConfigDict
    members: Sequence[dict[str, Any]]
    parameters: int
    vocab_size: int
    rows: Sequence[dict[str, Any]]

    @property
    def rates(self) -> list[float]:
        return sorted({m["rate"] for m in self.members if m["rate"] > 0})

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(m["kind"] for m in self.members if m["rate"] > 0))

    @property
    def own(self) -> str:
        """The corpus that was trained on; its held-out text is the clean text of the study."""
        return self.config.data.source

    @property
    def others(self) -> list[str]:
        return [name for name in self.config.data.evaluate if name != self.own]

    @property
    def control(self) -> str:
        """What noise is held against: rows dropped, or the clean twin if none were lost."""
        return "dropped" if "dropped" in self.kinds else "clean"

    @property
    def noise_kinds(self) -> list[str]:
        return [kind for kind in self.kinds if kind != "dropped"]

    def values(self, source: str, kind: str, rate: float, metric: str = "loss") -> np.ndarray:
        """The metric of each seed, in the order of the seeds; at rate 0 the kind is ignored."""
        chosen = {
            m["seed"]: row[f"eval/{source.strip('/')}/{metric}"]
            for m, row in zip(self.members, self.rows, strict=True)
            if m["rate"] == rate and (rate == 0 or m["kind"] == kind)
        }
        return np.array([chosen[seed] for seed in sorted(chosen)])

    def rise(self, source: str, kind: str, rate: float, over: str = "clean") -> Estimate:
        """Paired rise of the loss, nats per token, over the "clean" twin or the "dropped" rows."""
        baseline = (kind, 0.0) if over == "clean" else ("dropped", rate)
        return paired_difference(self.values(source, kind, rate), self.values(source, *baseline))


@dataclasses.dataclass(frozen=True)
class Proposition:
    """Proposition 1 of arXiv 2502.06604 with an arm's own numbers at one rate.

    `p_clean` and `p_noise` are those of the control, which saw the same clean rows and no noise;
    `exchange` is what the noisy models gave up of the first for what they won of the second, nan
    if they gave up nothing.
    """

    p_clean: float
    p_noise: float
    exchange: float

    @classmethod
    def measured(cls, arm: Arm, kind: str, rate: float) -> "Proposition":
        before = ("dropped", rate) if arm.control == "dropped" else (kind, 0.0)

        def probabilities(kind_, rate_):
            sources = (arm.own, f"noise-{kind}")
            return [float(np.exp(-arm.values(s, kind_, rate_).mean())) for s in sources]

        p_clean, p_noise = probabilities(*before)
        exchange = theory.exchange_rate(p_clean, p_noise, *probabilities(kind, rate))
        return cls(p_clean, p_noise, float(exchange))
