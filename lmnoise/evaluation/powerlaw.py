"""Shifted power laws `L(n) = amplitude n^-exponent + floor`, with intervals over seeds.

n is a size, such as the tokens of training; the floor is what more of it does not remove. Of such
a curve, measured over a short range of sizes, the loss inside the range is known well and its
three parts are not: a lower floor with a smaller exponent fits almost as well, so that a floor can
move by far more than the measured losses. One exponent for several curves makes their floors
comparable, but it is an assumption, and a floor then stands for all that differs: of two curves
with one floor and exponents of 0.3 and 0.25, over 16-fold sizes, such a fit puts the floors 0.26
nats apart and misses the losses by 0.004 (tests/evaluation/test_powerlaw.py). So report both fits,
with the exponents. Neither knows whether the law holds beyond the sizes: `PowerLaw.floor` is an
extrapolation, and the intervals are those of chance over seeds if the law is true.

Letters: P curves (shares of synthetic data), R seeds, B sizes, D draws of the bootstrap. Losses
may be in any unit; amplitudes and floors are in the same.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

type Array = NDArray[np.float64]

# Exponents are searched for between these. At the ends the fit has found none: the curve is close
# to a straight line in log n, or to one that has reached its floor.
LEAST_EXPONENT, LARGEST_EXPONENT = 0.01, 3.0
_GRID = np.geomspace(LEAST_EXPONENT, LARGEST_EXPONENT, 160)
_GOLDEN = (np.sqrt(5.0) - 1) / 2
_REFINEMENTS = 30


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Fitted curves: all attributes have one shape, (P,) or (D, P).

    Attributes:
      amplitude: at least 0, in the unit of the losses if n were 1.
      exponent: between LEAST_EXPONENT and LARGEST_EXPONENT.
      floor: at least 0.
      residual: root mean square of what the curve misses at the sizes.
    """

    amplitude: Array
    exponent: Array
    floor: Array
    residual: Array

    def __call__(self, tokens: ArrayLike) -> Array:
        """The losses at these sizes, of the attributes' shape followed by that of `tokens`."""
        tokens = np.asarray(tokens, np.float64)
        amplitude, exponent, floor = (
            x.reshape(x.shape + (1,) * tokens.ndim)
            for x in (self.amplitude, self.exponent, self.floor)
        )
        return amplitude * tokens**-exponent + floor

    def tokens(self, losses: ArrayLike) -> Array:
        """The sizes that reach these losses, inf where the floor is not below the loss.

        Args:
          losses: of the attributes' shape, or what broadcasts with it.
        """
        above = np.asarray(losses, np.float64) - self.floor
        reached = above > 0
        ratio = self.amplitude / np.where(reached, above, 1.0)
        return np.where(reached, ratio ** (1 / self.exponent), np.inf)

    @property
    def at_edge(self) -> NDArray[np.bool_]:
        """Where the exponent is at an end of its range, so that neither it nor the floor is fit."""
        low, high = 1.01 * LEAST_EXPONENT, 0.99 * LARGEST_EXPONENT
        return (self.exponent < low) | (self.exponent > high)


class Interval(NamedTuple):
    """Numbers with what chance over R seeds leaves open, `value` and `standard_error` of one shape.

    The 95 % interval is Student's t of `n` - 1 degrees of freedom, n = R.
    """

    value: Array
    standard_error: Array
    n: int

    @property
    def half_width(self) -> Array:
        """Half of the 95 % interval."""
        return stdtrit(self.n - 1, 0.975) * self.standard_error

    @property
    def low(self) -> Array:
        return self.value - self.half_width

    @property
    def high(self) -> Array:
        return self.value + self.half_width


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Fits of P curves to the means over seeds, and to the means over seeds drawn anew.

    Attributes:
      tokens_B: the sizes.
      losses_PB: means over the seeds.
      law: fitted to them, (P,).
      losses_DPB: means over the seeds of each draw.
      laws: fitted to those, (D, P).
      seeds: R.
    """

    tokens_B: Array
    losses_PB: Array
    law: PowerLaw
    losses_DPB: Array
    laws: PowerLaw
    seeds: int

    def interval(self, statistic: Callable[[PowerLaw, Array], Array]) -> Interval:
        """Any number that follows from the curves, with its interval.

        The standard error is that of the draws times sqrt(R / (R - 1)): a draw of R of R seeds
        varies less than R new seeds would. For a mean over seeds the interval is exactly
        Student's. For what is far from linear in the losses, such as a floor near 0 or a free fit
        to noisy curves, it is an approximation: of simulated floors, their differences and slopes,
        with 3 and 5 seeds and noise of 0.003 to 0.1 nats, 91 to 99 of 100 intervals cover.

        Args:
          statistic: `statistic(law, losses_PB)` of fits (P,), or of fits (D, P) and losses
            (D, P, B) with a leading axis D in what it returns.
        """
        value, draws = statistic(self.law, self.losses_PB), statistic(self.laws, self.losses_DPB)
        inflation = np.sqrt(self.seeds / (self.seeds - 1))
        return Interval(value, inflation * draws.std(axis=0), self.seeds)

    def floors(self) -> Interval:
        """The floors, (P,)."""
        return self.interval(lambda law, _: law.floor)

    def floor_rises(self) -> Interval:
        """Each floor less that of the first curve, (P,), paired over the seeds."""
        return self.interval(lambda law, _: law.floor - law.floor[..., :1])

    def floor_slope(self, regressor_P: ArrayLike) -> Interval:
        """Slope () of the floors against a regressor, such as the share, by least squares.

        Raises:
          ValueError: the regressor is not of shape (P,) or is the same for all curves.
        """
        x_P = np.asarray(regressor_P, np.float64)
        if x_P.shape != self.law.floor.shape or np.ptp(x_P) == 0:
            raise ValueError(f"regressor_P must be {len(self.law.floor)} numbers, not {x_P}")
        x_P = x_P - x_P.mean()
        return self.interval(lambda law, _: law.floor @ x_P / (x_P @ x_P))


def fit(tokens_B: ArrayLike, losses_PB: ArrayLike, shared_exponent: bool = False) -> PowerLaw:
    """Least squares fits of P curves, amplitude and floor not negative.

    For an exponent the best amplitude and floor are known in closed form (variable projection), so
    one number a curve is searched for, on a grid that is refined by golden sections.

    Args:
      tokens_B: sizes above 0, at least 3 of them different.
      losses_PB: (..., P, B), at least 0.
      shared_exponent: one exponent for the P curves of each leading index.

    Returns:
      Attributes of shape (..., P).

    Raises:
      ValueError: shapes or numbers that do not fit.
    """
    tokens_B, losses_PB = _checked(tokens_B, losses_PB)
    # Sizes around 1 keep the powers of the grid comparable.
    unit = np.exp(np.log(tokens_B).mean())
    sizes_B = tokens_B / unit
    cost_PG = _grid_cost(sizes_B, losses_PB)
    if shared_exponent:
        cost_PG = cost_PG.sum(-2, keepdims=True)

    def cost(exponent_P):
        found = _cost(sizes_B, losses_PB, exponent_P)
        return found.sum(-1, keepdims=True) if shared_exponent else found

    best_P = cost_PG.argmin(-1)
    low_P = np.log(_GRID[np.maximum(best_P - 1, 0)])
    high_P = np.log(_GRID[np.minimum(best_P + 1, len(_GRID) - 1)])
    exponent_P = np.exp(_golden(lambda logs: cost(np.exp(logs)), low_P, high_P))
    exponent_P = np.broadcast_to(exponent_P, losses_PB.shape[:-1]).copy()
    amplitude_P, floor_P = _linear(sizes_B, losses_PB, exponent_P)
    residual_P = np.sqrt(_cost(sizes_B, losses_PB, exponent_P) / tokens_B.size)
    return PowerLaw(amplitude_P * unit**exponent_P, exponent_P, floor_P, residual_P)


def bootstrap(
    tokens_B: ArrayLike,
    losses_PRB: ArrayLike,
    *,
    shared_exponent: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Fits the means over seeds, and again with seeds drawn with replacement.

    A draw takes whole seeds, all sizes and curves of each, so what the curves share in a seed (its
    order of the data, its generator) cancels from their differences.

    Args:
      tokens_B: sizes, see `fit`.
      losses_PRB: of P curves, R >= 2 seeds and B sizes.
      shared_exponent: see `fit`.
      draws: how many; where all R^R equally likely ones are not more, exactly these are taken.
      seed: of the draws.

    Raises:
      ValueError: shapes or numbers that do not fit.
    """
    losses_PRB = np.asarray(losses_PRB, np.float64)
    if losses_PRB.ndim != 3 or losses_PRB.shape[1] < 2:
        raise ValueError(f"losses_PRB must have at least 2 seeds, not shape {losses_PRB.shape}")
    seeds = losses_PRB.shape[1]
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    if seeds**seeds <= draws:
        chosen_DR = np.array(list(itertools.product(range(seeds), repeat=seeds)))
    else:
        chosen_DR = np.random.default_rng(seed).integers(seeds, size=(draws, seeds))
    counts_DR = (chosen_DR[:, :, None] == np.arange(seeds)).sum(1)
    losses_DPB = np.einsum("dr,prb->dpb", counts_DR / seeds, losses_PRB)
    losses_PB = losses_PRB.mean(1)
    return Bootstrap(
        tokens_B=np.asarray(tokens_B, np.float64),
        losses_PB=losses_PB,
        law=fit(tokens_B, losses_PB, shared_exponent),
        losses_DPB=losses_DPB,
        laws=fit(tokens_B, losses_DPB, shared_exponent),
        seeds=seeds,
    )


def _checked(tokens_B: ArrayLike, losses_PB: ArrayLike) -> tuple[Array, Array]:
    tokens_B, losses_PB = np.asarray(tokens_B, np.float64), np.asarray(losses_PB, np.float64)
    if tokens_B.ndim != 1 or not (np.isfinite(tokens_B) & (tokens_B > 0)).all():
        raise ValueError(f"tokens_B must be a vector of sizes above 0, not {tokens_B}")
    if len(np.unique(tokens_B)) < 3:
        raise ValueError(f"tokens_B must hold at least 3 different sizes, not {tokens_B}")
    if losses_PB.ndim < 2 or losses_PB.shape[-1] != tokens_B.size:
        raise ValueError(f"losses_PB {losses_PB.shape} does not have {tokens_B.size} sizes")
    if not (np.isfinite(losses_PB) & (losses_PB >= 0)).all():
        raise ValueError("losses_PB must be finite and at least 0")
    return tokens_B, losses_PB


def _linear(sizes_B: Array, losses_PB: Array, exponent_P: Array) -> tuple[Array, Array]:
    """The best amplitude and floor, neither negative, for given exponents, each (..., P).

    The problem is convex: where the free minimum has a negative part, the best lies on an edge.
    """
    powers_PB = sizes_B ** -exponent_P[..., None]
    mean_P, level_P = powers_PB.mean(-1), losses_PB.mean(-1)
    centred_PB = powers_PB - mean_P[..., None]
    spread_P = np.square(centred_PB).sum(-1)
    amplitude_P = (centred_PB * losses_PB).sum(-1) / spread_P
    floor_P = level_P - amplitude_P * mean_P
    no_floor_P = (powers_PB * losses_PB).sum(-1) / np.square(powers_PB).sum(-1)
    amplitude_P = np.where(floor_P < 0, no_floor_P, amplitude_P)
    floor_P = np.where(amplitude_P < 0, level_P, floor_P)
    return np.maximum(amplitude_P, 0), np.maximum(floor_P, 0)


def _cost(sizes_B: Array, losses_PB: Array, exponent_P: Array) -> Array:
    """Sum of squares (..., P) that the best amplitudes and floors leave, for given exponents."""
    exponent_P = np.broadcast_to(exponent_P, losses_PB.shape[:-1])
    amplitude_P, floor_P = _linear(sizes_B, losses_PB, exponent_P)
    curve_PB = amplitude_P[..., None] * sizes_B ** -exponent_P[..., None] + floor_P[..., None]
    return np.square(losses_PB - curve_PB).sum(-1)


def _grid_cost(sizes_B: Array, losses_PB: Array) -> Array:
    """`_cost` (..., P, G) for all exponents of the grid, by sums of products."""
    powers_BG = sizes_B[:, None] ** -_GRID
    centred_BG = powers_BG - powers_BG.mean(0)
    level_P1 = losses_PB.mean(-1, keepdims=True)
    total_P1 = np.square(losses_PB).sum(-1, keepdims=True)
    flat_P1 = np.square(losses_PB - level_P1).sum(-1, keepdims=True)
    products_PG = (losses_PB - level_P1) @ centred_BG
    amplitude_PG = products_PG / np.square(centred_BG).sum(0)
    free_PG = flat_P1 - amplitude_PG * products_PG
    no_floor_PG = total_P1 - np.square(losses_PB @ powers_BG) / np.square(powers_BG).sum(0)
    has_floor_PG = level_P1 - amplitude_PG * powers_BG.mean(0) >= 0
    return np.where(amplitude_PG < 0, flat_P1, np.where(has_floor_PG, free_PG, no_floor_PG))


def _golden(cost: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Minimises a function that has one minimum between `low` and `high`, elementwise."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_REFINEMENTS):
        lower = at_left < at_right
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        new = np.where(lower, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_new = cost(new)
        left, right = np.where(lower, new, right), np.where(lower, left, new)
        at_left, at_right = (
            np.where(lower, at_new, at_right),
            np.where(lower, at_left, at_new),
        )
    return (low + high) / 2
