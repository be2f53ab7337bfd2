"""The time at which more pre-training begins to hurt."""

from functools import partial

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from lmnoise.theory.arguments import in_float64, not_negative
from lmnoise.theory.overtraining.learning import at_time, on_modes, residuals

# Times at which a turning point is looked for before it is refined.
_GRID = 4096


@in_float64
def turning_point(singular_values: ArrayLike, start: ArrayLike, scale: ArrayLike) -> jax.Array:
    """The time of pre-training after which noise of this scale hurts more than training helps.

    The time (...) of the lowest perturbed loss over all times, to rounding error; inf where the
    loss is lowest in the limit of long training, as it is without noise. There may be several
    local minima: a mode that is learned alone lowers the loss until it passes `sigma - g^2 d`,
    and raises it in the end if `sigma < 2 g^2 d`. Modes of singular value 0 that start above 0
    lower it for ever, like 1/t. The derivative is that of the local minimum that was found.

    Args:
      singular_values: sigma (..., d).
      start: s0, a number or (..., d).
      scale: g (...).
    """
    scale = not_negative("scale", scale)[..., None]
    start = not_negative("start", start)
    sigma, start, scale = on_modes(singular_values, start=start, scale=scale)
    return _turning_points(sigma, start, jnp.square(scale[..., 0]) * sigma.shape[-1])


@jax.jit
@partial(jnp.vectorize, signature="(d),(d),()->()")
def _turning_points(sigma_D: jax.Array, start_D: jax.Array, threshold: jax.Array) -> jax.Array:
    fixed = jax.lax.stop_gradient((sigma_D, start_D, threshold))
    time = jax.lax.stop_gradient(_search(*fixed))
    found = (time > 0) & (time < jnp.inf)
    at = jnp.where(found, time, 1.0)
    # A last step of Newton's method, which also carries the derivative.
    value, curvature = jax.jvp(
        lambda t: _slope(t, sigma_D, start_D, threshold), (at,), (jnp.ones_like(at),)
    )
    step = value / jnp.where(curvature > 0, curvature, jnp.inf)
    return jnp.where(found, at - step, time)


def _search(sigma_D: jax.Array, start_D: jax.Array, threshold: jax.Array) -> jax.Array:
    """The lowest of all turns that a grid of times shows, halved to rounding; 0 or inf for none."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        falls = _slope(middle, sigma_D, start_D, threshold) < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    grid_T = _grid(sigma_D, start_D, threshold)
    values_T, slopes_T = jax.lax.map(
        lambda t: (
            _excess(t, sigma_D, start_D, threshold),
            _slope(t, sigma_D, start_D, threshold),
        ),
        grid_T,
        batch_size=64,
    )
    before, after = slopes_T[:-1], slopes_T[1:]
    turns = (before < 0) & (after >= 0)
    # The value at the turn by a parabola, so that the lowest of several minima is chosen.
    bend = jnp.where(turns, after - before, 1.0)
    lowest = values_T[:-1] - before**2 * jnp.diff(grid_T) / (2 * bend)
    lowest = jnp.where(turns, lowest, jnp.inf)
    best = lowest.min()
    # Not by argmin: compiled by a caller without 64-bit types it is refused.
    low, high = (jnp.where(lowest == best, t, jnp.inf).min() for t in (grid_T[:-1], grid_T[1:]))
    _, time = jax.lax.fori_loop(0, 60, halve, (low, high))
    first = values_T[0]
    return jnp.where(jnp.minimum(best, first) < 0, jnp.where(best < first, time, 0.0), jnp.inf)


def _excess(t, sigma_D, start_D, threshold) -> jax.Array:
    """Perturbed loss above its limit: with `r = sigma - s` the sum of `r (r/2 - threshold)`."""
    r_D = residuals(sigma_D, t, start_D)
    return jnp.sum(jnp.where(start_D > 0, r_D * (r_D / 2 - threshold), 0.0))


def _slope(t, sigma_D, start_D, threshold) -> jax.Array:
    """Derivative of the perturbed loss with respect to time: `sum 2 s r (threshold - r)`."""
    r_D = residuals(sigma_D, t, start_D)
    return jnp.sum(2 * at_time(sigma_D, t, start_D) * r_D * (threshold - r_D))


def _grid(sigma_D: jax.Array, start_D: jax.Array, threshold: jax.Array) -> jax.Array:
    """0, then equal ratios from before anything moves until every mode is within the threshold."""
    fastest = jnp.max(jnp.maximum(sigma_D, start_D))
    low = 1e-3 / jnp.where(fastest > 0, fastest, 1.0)
    moves_D = (sigma_D > 0) & (start_D > 0)
    sigma_D, start_D = (jnp.where(moves_D, value, 1.0) for value in (sigma_D, start_D))
    within_D = jnp.maximum(0.0, jnp.log(sigma_D / jnp.where(threshold > 0, threshold, jnp.inf)))
    lasts_D = (jnp.abs(jnp.log(start_D / sigma_D)) + within_D + 10) / (2 * sigma_D)
    high = jnp.maximum(jnp.max(jnp.where(moves_D, lasts_D, 0.0)), 10 * low)
    return jnp.concatenate([jnp.zeros(1), jnp.geomspace(low, high, _GRID)])
