"""The setting with the least error: the best penalty, width, real share or weight."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from lmnoise.theory.arguments import checked, in_float64

POINTS = 2**12  # of the grid, all settings together


class Optimum(NamedTuple):
    """The best values found, the error there, and which of them stopped at a bound."""

    values: dict[str, float]
    total: float
    at_bound: tuple[str, ...]


@in_float64
def optimal(total: Callable[..., jax.Array], bounds: Mapping[str, tuple[float, float]]) -> Optimum:
    """Minimises a closed form over a box, by its gradient from the best point of a grid.

    The grid keeps it from a side valley (the error has two in the width, on both sides of the
    interpolation threshold); the gradient, through the fixed point, gives the place to about
    1e-8. Numbers of samples or features are treated as continuous.

        optimal(
            lambda penalty: ridge(eigenvalues, prior, shift, penalty=penalty, ...).total,
            {"penalty": (1e-6, 1e2)},
        )

    Args:
      total: takes the named values as arrays of one shape, returns an array of that shape that
        can be differentiated.
      bounds: lowest and highest of each value. Where the lowest is above 0 the search is in the
        logarithm.

    Raises:
      ValueError: bounds that are not finite or not ascending, or an error that is nowhere finite.
    """
    if not bounds:
        raise ValueError("bounds must name at least one value")
    scales = {name: _Scale(name, ends) for name, ends in bounds.items()}

    def at(unit_K):
        return {name: s.value(unit_K[i]) for i, (name, s) in enumerate(scales.items())}

    points = max(2, int(POINTS ** (1 / len(scales))))
    axis = np.linspace(0.0, 1.0, points)
    grid_KP = np.stack([a.ravel() for a in np.meshgrid(*[axis] * len(scales), indexing="ij")])
    errors_P = np.asarray(total(**at(jnp.asarray(grid_KP))))
    if not np.isfinite(errors_P).any():
        raise ValueError(f"the error is not finite anywhere within the bounds {dict(bounds)}")
    start_K = grid_KP[:, np.nanargmin(errors_P)]
    scale = abs(np.nanmin(errors_P)) or 1.0
    best_K = _descend(lambda unit_K: total(**at(unit_K)) / scale, start_K, 1.0 / (points - 1))
    values = {name: float(value) for name, value in at(best_K).items()}
    ends = tuple(n for n, u in zip(scales, best_K, strict=True) if min(u, 1 - u) < 1e-9)
    return Optimum(values, float(total(**at(jnp.asarray(best_K)))), ends)


class _Scale:
    """A bounded value as a function of a number in [0, 1]."""

    def __init__(self, name: str, ends: tuple[float, float]):
        ends = checked(f"bounds of {name}", ends, lambda x: x == x, "numbers")
        if ends.shape != (2,) or not ends[0] < ends[1]:
            raise ValueError(f"bounds of {name} must be two that ascend, got {ends}")
        self.low, self.high = map(float, ends)

    def value(self, unit):
        if self.low > 0:
            return self.low * (self.high / self.low) ** unit
        return self.low + (self.high - self.low) * unit


def _descend(objective, start_K: np.ndarray, cell: float) -> np.ndarray:
    """L-BFGS-B in the cells around the start."""
    slope = jax.jit(jax.value_and_grad(objective))
    box = [(max(0.0, u - cell), min(1.0, u + cell)) for u in start_K]

    def evaluate(unit_K):
        value, gradient_K = slope(jnp.asarray(unit_K))
        return float(value), np.asarray(gradient_K)

    options = {"ftol": 1e-15, "gtol": 1e-10}
    found = minimize(evaluate, start_K, jac=True, bounds=box, method="L-BFGS-B", options=options)
    return found.x if found.fun <= evaluate(start_K)[0] else start_K
