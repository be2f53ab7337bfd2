"""The perturbed loss by Monte Carlo, for any two factors."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from lmnoise import keys
from lmnoise.theory.arguments import checked, in_float64, not_negative, scalar


class Simulated(NamedTuple):
    """Mean over draws and its standard error, ()."""

    mean: jax.Array
    standard_error: jax.Array


@in_float64
def simulate_perturbed(
    key: jax.Array,
    left: ArrayLike,
    right: ArrayLike,
    target: ArrayLike,
    scale: ArrayLike,
    draws: int,
) -> Simulated:
    """Mean of `1/2 ||A - (W1 + E1)(W2 + E2)||_F^2` over draws of the noise, in one program.

    Args:
      key: typed PRNG key; draw n depends on it and on n alone.
      left, right, target: W1 (O, K), W2 (K, D), A (O, D), of any shapes that fit.
      scale: standard deviation of the entries of E1 and E2, a number.
      draws: at least 2.
    """
    left, right, target = (
        checked(name, value, lambda x: x == x, "an array of numbers")
        for name, value in (("left", left), ("right", right), ("target", target))
    )
    shapes = left.shape, right.shape, target.shape
    if any(len(s) != 2 for s in shapes) or (left.shape[0], right.shape[1]) != target.shape:
        raise ValueError(f"left, right and target do not fit each other: {shapes}")
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"left and right do not fit each other: {shapes[:2]}")
    scale = scalar("scale", not_negative("scale", scale))
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    return _simulate(key, left, right, target, scale, draws)


@partial(jax.jit, static_argnames="draws")
def _simulate(key, left_OK, right_KD, target_OD, scale, draws) -> Simulated:
    def noisy(own, matrix):
        # In float32, which is fine enough: 64 random bits need `jax_enable_x64` when a caller's
        # `jit` compiles them, not only here.
        noise = jax.random.normal(own, matrix.shape, jnp.float32)
        return matrix + scale * noise.astype(jnp.float64)

    def one(draw):
        own = keys.fold(key, "perturbation", draw)
        first = noisy(keys.fold(own, "left"), left_OK)
        second = noisy(keys.fold(own, "right"), right_KD)
        return jnp.square(target_OD - first @ second).sum() / 2

    losses_N = jax.lax.map(one, jnp.arange(draws), batch_size=256)
    return Simulated(losses_N.mean(), losses_N.std(ddof=1) / jnp.sqrt(float(draws)))
