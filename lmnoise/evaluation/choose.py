"""Which checkpoint of a series to fine-tune, with the evidence."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from lmnoise.evaluation.outcomes import Outcome, averaged, tuned
from lmnoise.evaluation.scores import Mean


@dataclasses.dataclass(frozen=True)
class Rival:
    """A checkpoint of the series beside the one that was chosen.

    Attributes:
      name: of the checkpoint.
      loss: test loss after fine-tuning at its own tuned settings, mean over seeds, nats a token.
      difference: of that loss to the chosen checkpoint's, mean over seeds of paired differences.
      standard_error: of the difference; n: what it is over, seeds or, of a single seed, documents.
      interval: 95 %, of Student's t.
    """

    name: str
    loss: float
    difference: float
    standard_error: float
    n: int
    interval: tuple[float, float]

    @property
    def shown(self) -> bool:
        """Whether the difference shows: the interval leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclasses.dataclass(frozen=True)
class Choice:
    """The checkpoint to fine-tune.

    Attributes:
      name: of the chosen one, whose mean validation loss after fine-tuning is lowest.
      loss: its test loss after fine-tuning, nats a token.
      rivals: the others, in the order of the series.
    """

    name: str
    loss: float
    rivals: tuple[Rival, ...]

    @property
    def equals(self) -> tuple[str, ...]:
        """Checkpoints whose difference to the chosen one is not shown."""
        return tuple(rival.name for rival in self.rivals if not rival.shown)

    def sentence(self) -> str:
        """The recommendation in plain words, with its evidence."""
        text = f"Fine-tune {self.name}: test loss {self.loss:.4f} nats per token after tuning"
        if not self.rivals:
            return f"{text}; there is no other to compare it with."
        others = [
            f"{r.difference:+.4f} [{r.interval[0]:+.4f}, {r.interval[1]:+.4f}] for {r.name}"
            for r in self.rivals
        ]
        text += f"; the others' less its own, 95 % intervals: {', '.join(others)}."
        if better := [r.name for r in self.rivals if r.interval[1] < 0]:
            names = ", ".join(better)
            text += f" It was chosen on validation rows; on the test rows {names} is better."
        if self.equals:
            text += f" No difference is shown to {', '.join(self.equals)}: any of them will do."
        return text


def choose_checkpoint(series: Mapping[str, Sequence[Outcome]]) -> Choice:
    """Recommends a checkpoint of a series for a task.

    For every checkpoint and seed the setting is tuned on validation rows; the checkpoint is chosen
    on them too; what is reported are test rows, paired by seed, or by document for a single seed.

    Args:
      series: {name: outcomes}, all of the same settings on the same task, in their order.

    Raises:
      ValueError: the checkpoints were not fine-tuned alike, or in some all settings diverged.
    """
    if not series:
        raise ValueError("series is empty")
    settings = [[outcome.setting for outcome in outcomes] for outcomes in series.values()]
    if any(own != settings[0] for own in settings):
        raise ValueError(f"series has checkpoints of different settings: {list(series)}")
    seeds = dict.fromkeys(setting.seed for setting in settings[0])
    best: dict[str, list[Outcome]] = {}
    for name, outcomes in series.items():
        try:
            best[name] = [tuned([o for o in outcomes if o.setting.seed == s]) for s in seeds]
        except ValueError as error:
            raise ValueError(f"series[{name!r}]: {error}") from error
    chosen = min(best, key=lambda name: _losses(best[name], "validation").mean())
    rivals = (_rival(name, own, best[chosen]) for name, own in best.items() if name != chosen)
    return Choice(chosen, float(_losses(best[chosen], "test").mean()), tuple(rivals))


def _losses(outcomes: Sequence[Outcome], text: str) -> np.ndarray:
    return np.array([outcome.after[text].loss.mean for outcome in outcomes])


def _rival(name: str, own: Sequence[Outcome], chosen: Sequence[Outcome]) -> Rival:
    if len(own) == 1:
        found = own[0].after["test"].change(chosen[0].after["test"])
    else:
        differences = _losses(own, "test") - _losses(chosen, "test")
        error = differences.std(ddof=1) / math.sqrt(len(own))
        found = Mean(float(differences.mean()), float(error), len(own))
    half = math.nan if found.n < 2 else float(stdtrit(found.n - 1, 0.975)) * found.standard_error
    return Rival(
        name,
        float(_losses(own, "test").mean()),
        *found,
        (found.mean - half, found.mean + half),
    )
