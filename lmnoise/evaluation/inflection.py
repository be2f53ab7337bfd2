"""Inflection point of over-training: the token budget after which more pre-training hurts.

Catastrophic over-training (arXiv 2503.19206) is a loss after modification that falls with the
pre-training tokens and then rises. Its inflection point is the budget of the least mean loss. The
lowest of several noisy means looks lower than it is, so how much the loss rises from there is
measured on seeds that had no part in choosing the budget.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Inflection:
    """Where a curve of losses over budgets is lowest, and whether it rises afterwards.

    Attributes:
      least: the budget of the least mean loss, shown or not.
      interval: of `least`, 95 % of the bootstrap over seeds; nan below three seeds, of which
        it would cover too little.
      rise: nats, the loss at the largest budget less that at the least, mean over seeds; for each
        seed the least budget is that of the other seeds. nan for a single seed.
      rise_interval: of `rise`, 95 % (Student's t over seeds). The seeds share most of each
        other's choice of the budget, so that on flat curves of 4 to 8 seeds it lies above zero
        in about 4 to 6 % of cases instead of 2.5.
      first: whether `least` is the smallest budget: the inflection is then there or before it.
    """

    least: float
    interval: tuple[float, float]
    rise: float
    rise_interval: tuple[float, float]
    first: bool

    @property
    def shown(self) -> bool:
        """Whether the loss rises after its least: if not, there is no inflection in range."""
        return self.rise_interval[0] > 0


def inflection(
    tokens_B: ArrayLike, losses_RB: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> Inflection:
    """The inflection point of losses after a modification, over seeds and token budgets.

    Args:
      tokens_B: budgets, rising.
      losses_RB: nats per token, of every seed and budget.
      draws: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: budgets that do not rise, losses of another shape or not finite.
    """
    tokens_B, losses_RB = _checked(tokens_B, losses_RB)
    at = int(losses_RB.mean(0).argmin())
    nothing = (math.nan, math.nan)
    if len(losses_RB) == 1:
        return Inflection(float(tokens_B[at]), nothing, math.nan, nothing, at == 0)
    rise, half_width = _mean_and_half_width(_rises(losses_RB))
    leasts = bootstrap_least(tokens_B, losses_RB, draws=draws, seed=seed)
    low, high = nothing
    if len(losses_RB) > 2:
        # Ranks that exist: between two budgets there is none.
        low, high = np.quantile(leasts, (0.025, 0.975), method="nearest")
    return Inflection(
        least=float(tokens_B[at]),
        interval=(float(low), float(high)),
        rise=rise,
        rise_interval=(rise - half_width, rise + half_width),
        first=at == 0,
    )


def bootstrap_least(
    tokens_B: ArrayLike, losses_RB: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """The budget of the least mean loss in every draw of seeds with replacement, (draws,).

    Two curves of the same seeds are drawn alike under one `seed`, so their budgets are paired.

    Raises:
      ValueError: as `inflection`.
    """
    tokens_B, losses_RB = _checked(tokens_B, losses_RB)
    count = len(losses_RB)
    chosen_DR = np.random.default_rng(seed).integers(count, size=(draws, count))
    return tokens_B[losses_RB[chosen_DR].mean(1).argmin(1)]


def slopes(tokens_B: ArrayLike, values_RB: ArrayLike) -> np.ndarray:
    """Least-squares slope of every seed's values against log2 of the tokens, (R,).

    Raises:
      ValueError: as `inflection`, or a single budget.
    """
    tokens_B, values_RB = _checked(tokens_B, values_RB)
    if len(tokens_B) < 2:
        raise ValueError("a slope needs two budgets, not 1")
    x_B = np.log2(tokens_B) - np.log2(tokens_B).mean()
    return values_RB @ x_B / np.square(x_B).sum()


def _rises(losses_RB: np.ndarray) -> np.ndarray:
    """Every seed's loss at the end less that at the budget where the other seeds are lowest."""
    others_RB = losses_RB.sum(0) - losses_RB
    least_R = others_RB.argmin(1)
    return losses_RB[:, -1] - losses_RB[np.arange(len(losses_RB)), least_R]


def _mean_and_half_width(values_R: np.ndarray) -> tuple[float, float]:
    count = len(values_R)
    error = values_R.std(ddof=1) / math.sqrt(count)
    return float(values_R.mean()), float(stdtrit(count - 1, 0.975) * error)


def _checked(tokens_B: ArrayLike, losses_RB: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    tokens_B, losses_RB = np.asarray(tokens_B, np.float64), np.asarray(losses_RB, np.float64)
    if tokens_B.ndim != 1 or not tokens_B.size or (np.diff(tokens_B, prepend=0) <= 0).any():
        raise ValueError(f"tokens_B must rise from above 0, not {tokens_B}")
    if losses_RB.ndim != 2 or not len(losses_RB) or losses_RB.shape[1] != len(tokens_B):
        raise ValueError(
            f"losses_RB must have a row a seed and {len(tokens_B)} columns, not {losses_RB.shape}"
        )
    if not np.isfinite(losses_RB).all():
        raise ValueError("losses_RB has entries that are not finite: leave those budgets out")
    return tokens_B, losses_RB
