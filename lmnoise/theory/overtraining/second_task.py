"""Fine-tuning on a second task, with and without decay towards the pre-trained weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from lmnoise.theory.arguments import in_float64, not_negative
from lmnoise.theory.overtraining.learning import at_time, loss, on_modes


class FineTuning(NamedTuple):
    """What fine-tuning on a second task did.

    Attributes:
      modes: (..., d) afterwards.
      gain: (...) by how much the loss on the second task fell.
      forgetting: (...) by how much the loss on the first task rose.
    """

    modes: jax.Array
    gain: jax.Array
    forgetting: jax.Array


@in_float64
def fine_tuning(
    first: ArrayLike,
    second: ArrayLike,
    modes: ArrayLike,
    time: ArrayLike,
    decay: ArrayLike = 0.0,
) -> FineTuning:
    """Fine-tunes a network on a second task with the singular vectors of the first.

    Args:
      first, second: singular values (..., d) of `A = U diag(first) V^T` and of
        `A' = U diag(second) V^T`.
      modes: (..., d) at the end of pre-training, as from `modes(first, times, start)`.
      time: (...) of fine-tuning.
      decay: (...), see `fine_tuned`.
    """
    after = fine_tuned(second, modes, time, decay)
    return FineTuning(
        modes=after,
        gain=loss(second, modes) - loss(second, after),
        forgetting=loss(first, after) - loss(first, modes),
    )


@in_float64
def fine_tuned(
    singular_values: ArrayLike, start: ArrayLike, time: ArrayLike, decay: ArrayLike = 0.0
) -> jax.Array:
    """`modes` with weight decay of strength eta towards the factors at time 0, (..., d).

    Gradient flow on `1/2 ||A - W1 W2||^2 + eta/2 (||W1 - W1(0)||^2 + ||W2 - W2(0)||^2)`. The
    factors stay balanced, and `a_i = sqrt(s_i)` obeys `da/dt = (sigma - a^2) a - eta (a - a(0))`,
    which is solved exactly: time as a function of `a` in closed form, inverted by Newton's
    method. Relative accuracy 1e-9 or better for a decay above 1e-9 of the largest strength; at
    decay 0 it is `modes`. The derivative with respect to `decay` holds above 0 only.

    Args:
      singular_values: sigma (..., d) of the task.
      start: s(0), a number or (..., d).
      time: (...).
      decay: eta (...).
    """
    time, decay = not_negative("time", time), not_negative("decay", decay)
    sigma, start, time, decay = on_modes(
        singular_values,
        start=not_negative("start", start),
        time=time[..., None],
        decay=decay[..., None],
    )
    pulled = (decay > 0) & (start > 0)
    # Where the closed form holds, the other one gets numbers that it can digest.
    safe = (jnp.where(pulled, value, 1.0) for value in (sigma, start, decay))
    return jnp.where(pulled, _pulled(time, *safe), at_time(sigma, time, start))


@in_float64
def fine_tuned_limit(
    singular_values: ArrayLike, start: ArrayLike, decay: ArrayLike = 0.0
) -> jax.Array:
    """Limit of `fine_tuned` for a long time, (..., d): squared root of a cubic equation.

    `a` is the positive solution of `(sigma - a^2) a = eta (a - sqrt(s(0)))`; without decay the
    limit is sigma. A mode that starts at 0 stays there.
    """
    decay = not_negative("decay", decay)[..., None]
    start = not_negative("start", start)
    sigma, start, decay = on_modes(singular_values, start=start, decay=decay)
    pulled = (decay > 0) & (start > 0)
    safe_sigma, safe_start, safe_decay = (
        jnp.where(pulled, value, 1.0) for value in (sigma, start, decay)
    )
    root = _stationary(safe_sigma - safe_decay, safe_decay * jnp.sqrt(safe_start))
    limit = jnp.square(root)
    return jnp.where(pulled, limit, jnp.where(start > 0, sigma, 0.0))


def _stationary(rate: jax.Array, pull: jax.Array) -> jax.Array:
    """The positive root of `a^3 - rate a - pull` for `pull > 0`, by Newton's method from above."""
    fixed_rate, fixed_pull = jax.lax.stop_gradient((rate, pull))

    def newton(_, a):
        return a - (a**3 - fixed_rate * a - fixed_pull) / (3 * a * a - fixed_rate)

    above = jnp.sqrt(jnp.maximum(fixed_rate, 0.0)) + jnp.cbrt(fixed_pull)
    a = jax.lax.stop_gradient(jax.lax.fori_loop(0, 60, newton, above))
    return a - (a**3 - rate * a - pull) / (3 * a * a - rate)


@jax.jit
def _pulled(time: jax.Array, sigma: jax.Array, start: jax.Array, decay: jax.Array) -> jax.Array:
    """Modes at a time of fine-tuning, for decay and start above 0.

    With b the stationary point the equation is `da/dt = -(a - b) Q(a)`, `Q(a) = a^2 + a b + c/b`,
    `c = decay a(0)`. With `a = b + (a(0) - b) e^{-y}` it becomes `dy/dt = Q`, whose integral is

        Q(b) t = y + 1/2 log(Q(a) / Q(a(0))) + 3/2 b I,    I = integral of da / Q(a).

    Its right side increases and is concave or convex in y, so that Newton's method from
    `y = Q(a(0)) t` converges from one side.
    """
    a0 = jnp.sqrt(start)
    b = _stationary(sigma - decay, decay * a0)
    last = decay * a0 / b
    q0, q_end = a0 * (a0 + b) + last, 2 * b * b + last

    def state(y):
        """`a`, and how far it is from `a(0)`, both without cancellation."""
        moved = (b - a0) * -jnp.expm1(-y)
        return jnp.where(a0 > b, b + (a0 - b) * jnp.exp(-y), a0 + moved), moved

    def gap(y):
        """Right side minus left side, and the slope of the right side."""
        a, moved = state(y)
        q = a * (a + b) + last
        relative = moved * (a + a0 + b) / q0
        halved = relative < -0.5
        near = jnp.log1p(jnp.where(halved, 0.0, relative))
        logarithm = jnp.where(halved, jnp.log(q / q0), near)
        integral = _inverse_quadratic(a0 + b / 2, moved, b * b / 4 - last, logarithm)
        return y + logarithm / 2 + 1.5 * b * integral - q_end * time, q_end / q

    def newton(_, y):
        value, slope = gap(y)
        return jnp.maximum(y - value / slope, 0.0)

    y = jax.lax.stop_gradient(jax.lax.fori_loop(0, 100, newton, q0 * time))
    value, slope = gap(y)
    return jnp.square(state(y - value / slope)[0])


def _inverse_quadratic(
    p: jax.Array, step: jax.Array, w: jax.Array, logarithm: jax.Array
) -> jax.Array:
    """Integral of `1 / (x^2 - w)` from p > 0 to p + step > 0, between which it is positive.

    Args:
      logarithm: of `((p + step)^2 - w) / (p^2 - w)`.
    """
    ratio = step / (p * (p + step) - w)
    z = w * ratio * ratio
    series = 1 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z / 11))))
    # Beyond the series an arc tangent for w < 0 and two logarithms for w > 0, which have not lost
    # digits by then, as atanh would near 1.
    above, below = z > 0.01, z < -0.01
    root = jnp.sqrt(jnp.where(below, -z, 1.0))
    side = jnp.sqrt(jnp.where(above, w, 1.0))
    logarithms = (logarithm - 2 * jnp.log1p(step / (p + side))) / (2 * side)
    value = ratio * jnp.where(below, jnp.arctan(root) / root, series)
    return jnp.where(above, logarithms, value)
