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

    @functools.cached_property
    def slope(self) -> Estimate | None:
        """Rise of the sensitivity by doubling of the tokens, over seeds."""
        if self.fine.sum() < 3:
            return None
        rises_RB = (self.after_RB - self.before_RB)[:, self.fine]
        return mean_and_error(slopes(self.tokens_B[self.fine], rises_RB))

    def leasts(self) -> Array:
        """log2 of the budget of the least loss in every draw of the seeds, alike for all curves."""
        return np.log2(bootstrap_least(self.tokens_B[self.fine], self.after_RB[:, self.fine]))

    def estimates(self, values_RB: Array) -> list[Estimate]:
        """Means over seeds, by budget."""
        return [mean_and_error(values_R) for values_R in values_RB.T]

    def _turn(self, losses_RB: Array) -> Inflection | None:
        if self.fine.sum() < 3:
            return None
        return inflection(self.tokens_B[self.fine], losses_RB[:, self.fine])


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
