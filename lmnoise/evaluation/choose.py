"""Which checkpoint of a series to fine-tune, with the evidence."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lmnoise.evaluation.outcomes import Outcome, averaged, tuned
from lmnoise.evaluation.scores import Spread, over_seeds


@dataclasses.dataclass(frozen=True)
class Rival:
    """A checkpoint of the series beside the one that was chosen.

    Attributes:
      name: of the checkpoint.
      loss: test loss after fine-tuning at its own tuned settings, mean over seeds, nats a token.
      spread: of that loss less the chosen checkpoint's, paired by row and by seed.
      level: of the interval, such that all of the series hold together in 95 of 100 series.
    """

    name: str
    loss: float
    spread: Spread
    level: float

    @property
    def difference(self) -> float:
        """Mean over rows and seeds, nats a token."""
        return self.spread.mean

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference; see `Spread.half_width`."""
        half = self.spread.half_width(self.level)
        return self.difference - half, self.difference + half

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

    def covers(self) -> str:
        """What the intervals are, in words; of a series of two or more."""
        rows, seeds = self.rivals[0].spread
        if rows.n > 1 and seeds.n > 1:
            of = f"chance in {rows.n} test rows and {seeds.n} seeds"
        elif rows.n > 1:
            of = f"chance in {rows.n} test rows, but not that of the one seed"
        else:
            of = f"chance in {seeds.n} seeds, but not that of the test rows"
        together = f" together (Bonferroni, {_pairs(len(self.rivals) + 1)} pairs)"
        return f"95 % intervals{together if len(self.rivals) > 1 else ''} that cover {of}"

    def sentence(self) -> str:
        """The recommendation in plain words, with its evidence."""
        text = f"Fine-tune {self.name}: test loss {self.loss:.4f} nats per token after tuning"
        if not self.rivals:
            return f"{text}; there is no other to compare it with."
        text += f"; the others' less its own, {self.covers()}: "
        others = [
            f"{r.difference:+.4f} [{r.interval[0]:+.4f}, {r.interval[1]:+.4f}] for {r.name}"
            for r in self.rivals
        ]
        text += f"{', '.join(others)}."
        if better := [r.name for r in self.rivals if r.interval[1] < 0]:
            names = ", ".join(better)
            text += f" It was chosen on validation rows; on the test rows {names} is better."
        if self.equals:
            text += f" No difference is shown to {', '.join(self.equals)}: any of them will do."
        return text


def choose_checkpoint(series: Mapping[str, Sequence[Outcome]]) -> Choice:
    """Recommends a checkpoint of a series for a task.

    For every checkpoint and seed the setting is tuned on validation rows; the checkpoint is chosen
    on them too; what is reported are test rows, paired by row (of text by document) and by seed.

    Intervals cover both the rows, which all seeds share, and the seeds, see `Spread.half_width`.
    They are corrected by Bonferroni for all pairs of the series: validation and test scores share
    what chance a seed had, so that the chosen checkpoint is a lucky one among all, and a correction
    for its rivals alone would claim too much. Checkpoints are taken as given: whether another
    pre-training would rank them alike takes several of it.

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
    level = 1 - 0.05 / max(1, _pairs(len(best)))
    rivals = [
        Rival(name, float(_losses(own, "test").mean()), _difference(own, best[chosen]), level)
        for name, own in best.items()
        if name != chosen
    ]
    return Choice(chosen, float(_losses(best[chosen], "test").mean()), tuple(rivals))


def _pairs(checkpoints: int) -> int:
    return checkpoints * (checkpoints - 1) // 2


def _losses(outcomes: Sequence[Outcome], text: str) -> np.ndarray:
    return np.array([outcome.after[text].loss.mean for outcome in outcomes])


def _difference(own: Sequence[Outcome], chosen: Sequence[Outcome]) -> Spread:
    rows = averaged(own).after["test"].change(averaged(chosen).after["test"])
    return over_seeds(rows, _losses(own, "test") - _losses(chosen, "test"))
