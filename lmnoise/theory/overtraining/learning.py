"""Modes of the network over time, and its loss with and without noise on the weights."""

from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from lmnoise.theory.arguments import broadcast, in_float64, not_negative


@in_float64
def modes(singular_values: ArrayLike, time: ArrayLike, start: ArrayLike) -> jax.Array:
    """Strength of every mode at a time of gradient flow, (..., d).

    `s_i(t) = sigma_i e^{2 sigma_i t} / (e^{2 sigma_i t} - 1 + sigma_i / s0_i)`, the solution of
    `ds/dt = 2 s (sigma - s)` (arXiv 2503.19206); `s0 / (1 + 2 s0 t)` for a singular value of 0.

    Args:
      singular_values: sigma (..., d).
      time: t (...); a step of gradient descent with learning rate r advances it by r.
      start: s0, a number or (..., d), one for every mode. A mode that starts at 0 stays there.
    """
    time = not_negative("time", time)[..., None]
    return at_time(*on_modes(singular_values, time=time, start=not_negative("start", start)))


@in_float64
def loss(singular_values: ArrayLike, modes: ArrayLike) -> jax.Array:
    """`1/2 sum_i (sigma_i - s_i)^2` (...), the loss of the network as it is."""
    sigma, s = on_modes(singular_values, modes=per_mode("modes", modes))
    return jnp.square(sigma - s).sum(-1) / 2


@in_float64
def sensitivity(modes: ArrayLike, scale: ArrayLike) -> jax.Array:
    """By how much noise raises the expected loss: `g^2 d sum_i s_i + 1/2 g^4 d^3` (...).

    It does not depend on the target, and grows with time as modes are learned.

    Args:
      modes: s (..., d).
      scale: g (...).
    """
    s, scale = per_mode("modes", modes), not_negative("scale", scale)
    total, scale = broadcast(modes=s.sum(-1), scale=scale).values()
    d = s.shape[-1]
    return scale**2 * d * total + scale**4 * d**3 / 2


@in_float64
def perturbed_loss(singular_values: ArrayLike, modes: ArrayLike, scale: ArrayLike) -> jax.Array:
    """Expected loss after noise (...): `loss(...) + sensitivity(...)`.

    `E 1/2 ||A - (W1 + E1)(W2 + E2)||_F^2` over E1 and E2 with i.i.d. entries of mean 0 and
    standard deviation g = `scale` (...), for any balanced W1 and W2 with these modes.
    """
    parts = broadcast(loss=loss(singular_values, modes), scale=sensitivity(modes, scale))
    return parts["loss"] + parts["scale"]


@in_float64
def soft_threshold(singular_values: ArrayLike, scale: ArrayLike) -> jax.Array:
    """The modes of the lowest perturbed loss: `max(0, sigma_i - g^2 d)`, (..., d).

    No factors, balanced or not, have a lower expected loss after noise of this scale than
    `perturbed_loss(singular_values, soft_threshold(singular_values, scale), scale)`: noise acts
    as the penalty `1/2 g^2 d (||W1||^2 + ||W2||^2)`, least `g^2 d` times the nuclear norm of the
    product. Training with weight decay `g^2 d` on both factors therefore converges to these modes.
    """
    scale = not_negative("scale", scale)[..., None]
    sigma, scale = on_modes(singular_values, scale=scale)
    return jnp.maximum(0.0, sigma - jnp.square(scale) * sigma.shape[-1])


@jax.jit
def at_time(sigma: jax.Array, time: jax.Array, start: jax.Array) -> jax.Array:
    """`modes` of arrays of one shape."""
    return start / _denominator(sigma, time, start)


def residuals(sigma: jax.Array, time: jax.Array, start: jax.Array) -> jax.Array:
    """`sigma - s(t)` without cancellation: `(sigma - s0) e^{-2 sigma t}` over the same number."""
    remaining = jnp.exp(-2 * sigma * time)
    return (sigma - start) * remaining / _denominator(sigma, time, start)


def _denominator(sigma: jax.Array, time: jax.Array, start: jax.Array) -> jax.Array:
    """`e^{-x} + s0 (1 - e^{-x}) / sigma` with `x = 2 sigma t`: nothing that could overflow."""
    x = 2 * sigma * time
    small = x < 1e-3
    series = 2 * time * (1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5))))
    ratio = -jnp.expm1(-jnp.where(small, 1.0, x)) / jnp.where(small, 1.0, sigma)
    value = jnp.exp(-x) + start * jnp.where(small, series, ratio)
    # Only of a mode that starts at 0 (and stays there) both terms can underflow.
    return jnp.where(value > 0, value, 1.0)


def per_mode(name: str, value: Any) -> jax.Array:
    """`value` as a float64 array (..., d); ValueError for entries or a shape that cannot be."""
    value = not_negative(name, value)
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} needs a last axis over the modes, got the shape {value.shape}")
    return value


def on_modes(singular_values: Any, **others: jax.Array) -> tuple[jax.Array, ...]:
    """Singular values and other arrays in their common shape, whose last axis runs over the modes.

    Others may have 1 in place of d, `modes` may not.
    """
    sigma = per_mode("singular_values", singular_values)
    operands = broadcast(singular_values=sigma, **others)
    d = sigma.shape[-1]
    same = others["modes"].shape[-1] == d if "modes" in others else True
    if operands["singular_values"].shape[-1] != d or not same:
        text = ", ".join(f"{name} {array.shape}" for name, array in others.items())
        raise ValueError(f"singular_values {sigma.shape} have another last axis than {text}")
    return tuple(operands.values())
