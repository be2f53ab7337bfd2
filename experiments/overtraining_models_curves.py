"""Loss after a modification against the tokens of pre-training: the study's one kind of result."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from overtraining_models_training import Trained

from lmnoise.evaluation.inflection import Inflection, bootstrap_least, inflection, slopes
from lmnoise.report import Estimate, mean_and_error

type Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One modification of every model of a series; R seeds of pre-training, B budgets.

    Attributes:
      series: one of `SERIES`.
      kind: "noise" or the task.
      name: of the modification, for legends.
      strength: gamma or learning rate; nan where it was tuned.
      tokens_B: of pre-training, rising.
      before_RB, after_RB: loss on held-out pre-training text, nats per token.
      task_RB: loss on the task's test rows; None for noise.
      cure: what fine-tuning had besides: "plain" for nothing, "" for noise.
      accuracy_RB: on the task's test rows, for labels.
      rate_RB: learning rates; None for noise.
    """

    series: str
    kind: str
    name: str
    strength: float
    tokens_B: Array
    before_RB: Array
    after_RB: Array
    task_RB: Array | None = None
    cure: str = ""
    accuracy_RB: Array | None = None
    rate_RB: Array | None = None

    @property
    def tuned(self) -> bool:
        """Whether the rate was chosen on validation rows, for each model on its own."""
        return math.isnan(self.strength)

    @property
    def fine(self) -> NDArray[np.bool_]:
        """Budgets (B,) at which no seed diverged."""
        task_RB = self.after_RB if self.task_RB is None else self.task_RB
        return np.isfinite(self.after_RB + task_RB).all(0)

    @functools.cached_property
    def turn(self) -> Inflection | None:
        """Where the loss on pre-training text is least; None with fewer than 3 budgets."""
        return self._turn(self.after_RB)

    @functools.cached_property
    def task_turn(self) -> Inflection | None:
        """Where the loss on the task is least."""
        return None if self.task_RB is None else self._turn(self.task_RB)

    @property
    def diverged(self) -> list[str]:
        """Tokens of the budgets at which some seed diverged."""
        return [f"{tokens:,.0f}" for tokens in self.tokens_B[~self.fine]]

    @functools.cached_property
    def slope(self) -> Estimate | None:
        """Rise of the sensitivity by doubling of the tokens, over seeds."""
        return self._slope(self.after_RB - self.before_RB)

    @functools.cached_property
    def after_slope(self) -> Estimate | None:
        """Rise of the loss afterwards by doubling of the tokens, over seeds."""
        return self._slope(self.after_RB)

    def learned(self, level: float) -> NDArray[np.bool_]:
        """Budgets (B,) whose models, as pre-trained, have a mean loss below a level."""
        return self.fine & (self.before_RB.mean(0) < level)

    def forgotten(self, level: float) -> NDArray[np.bool_]:
        """Of the budgets that have `learned`, those (B,) whose mean loss afterwards is not."""
        return self.learned(level) & (self.after_RB.mean(0) >= level)

    def at(self, budgets_B: NDArray[np.bool_]) -> "Curve":
        """The curve at some of its budgets."""
        arrays = {"tokens_B": self.tokens_B[budgets_B]} | {
            name: array[:, budgets_B]
            for name in ("before_RB", "after_RB", "task_RB", "accuracy_RB", "rate_RB")
            if (array := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **arrays)

    def estimates(self, values_RB: Array) -> list[Estimate]:
        """Means over seeds, by budget."""
        return [mean_and_error(values_R) for values_R in values_RB.T]

    def _turn(self, losses_RB: Array) -> Inflection | None:
        if self.fine.sum() < 3:
            return None
        return inflection(self.tokens_B[self.fine], losses_RB[:, self.fine])

    def _slope(self, values_RB: Array) -> Estimate | None:
        if self.fine.sum() < 3:
            return None
        return mean_and_error(slopes(self.tokens_B[self.fine], values_RB[:, self.fine]))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Whether one curve is least at more tokens than another of the same seeds.

    Attributes:
      late, early: both at the budgets at which neither diverged.
      doublings: of tokens, from the least loss of `early` to that of `late`.
      interval: of `doublings`, 95 % of the bootstrap over seeds, which both curves share.
      reason: why nothing can be said; "" where something can.
    """

    late: Curve
    early: Curve
    doublings: float
    interval: tuple[float, float]
    reason: str

    @property
    def shown(self) -> bool:
        return not self.reason and self.interval[0] > 0


def compare(late: Curve, early: Curve) -> Comparison:
    """Compares where two curves are least, on the budgets that they have in common.

    Without an inflection of `early` in range there is nothing that could come later.
    """
    common_B = late.fine & early.fine
    late, early = late.at(common_B), early.at(common_B)
    nothing = (math.nan, math.nan)
    if common_B.sum() < 3:
        return Comparison(late, early, math.nan, nothing, "too few budgets without divergence")
    doublings = float(np.log2(late.turn.least / early.turn.least))
    if len(late.after_RB) < 3:
        return Comparison(late, early, doublings, nothing, "it needs three seeds")
    if not early.turn.shown:
        reason = f"no inflection is shown for {early.name}"
        return Comparison(late, early, doublings, nothing, reason)
    apart = _leasts(late) - _leasts(early)
    # Ranks that exist, as in `inflection`.
    low, high = np.quantile(apart, (0.025, 0.975), method="nearest")
    return Comparison(late, early, doublings, (float(low), float(high)), "")


def _leasts(curve: Curve) -> Array:
    """log2 of the budget of the least loss in every draw of the seeds, alike for all curves."""
    return np.log2(bootstrap_least(curve.tokens_B, curve.after_RB))


def by_seed_and_budget(
    trained: Sequence[Trained], series: str, values: Sequence[Sequence[float]]
) -> tuple[Array, list[Array]]:
    """The tokens (B,) of a series, and each of the values' columns as an array (R, B).

    Args:
      trained: all models, in order of series, seed and tokens.
      series: which to take.
      values: a row of numbers a model.
    """
    own = [i for i, t in enumerate(trained) if t.series == series]
    tokens_B = np.unique([trained[i].tokens for i in own])
    columns = np.asarray([values[i] for i in own], np.float64).T
    return tokens_B, [column.reshape(-1, len(tokens_B)) for column in columns]
