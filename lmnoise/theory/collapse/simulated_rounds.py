"""Monte Carlo of training again and again on what the last model wrote, see `rounds`."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmnoise import keys
from lmnoise.theory.arguments import in_float64, not_negative, positive, scalar
from lmnoise.theory.collapse.monte_carlo import check_counts, fit


class Rounds(NamedTuple):
    """Mean error after rounds 1 to T over the repetitions (T,), and its standard errors (T,)."""

    mean: jax.Array
    standard_error: jax.Array


@in_float64
def simulate_rounds(
    key: jax.Array,
    *,
    size: int,
    n_real: int,
    n_synthetic: int,
    noise_real: float,
    noise_synthetic: float,
    start: float,
    rounds: int,
    same_data: bool,
    repetitions: int,
    weight_real: float = 1.0,
    weight_synthetic: float = 1.0,
) -> Rounds:
    """Iterative mixing: each round fits real samples and samples that the last model labels.

    Inputs are N(0, I), the fit is ridgeless. Synthetic inputs and label noise are new in every
    round, and so is the real part unless `same_data`.

    Args:
      start: expected error of the model that labels the first round.
      The others are as in `fresh_rounds`, as numbers.

    Raises:
      ValueError: an argument out of its range, or not more samples than dimensions.
    """
    check_counts(
        size=size,
        n_real=n_real,
        n_synthetic=n_synthetic,
        repetitions=repetitions,
        rounds=rounds,
    )
    if n_real + n_synthetic <= size:
        raise ValueError(
            f"n_real + n_synthetic must be above size = {size}, got {n_real + n_synthetic}"
        )
    numbers = {
        "noise_real": not_negative("noise_real", noise_real),
        "noise_synthetic": not_negative("noise_synthetic", noise_synthetic),
        "start": not_negative("start", start),
        "weight_real": positive("weight_real", weight_real),
        "weight_synthetic": positive("weight_synthetic", weight_synthetic),
    }
    numbers = {name: scalar(name, value) for name, value in numbers.items()}
    counts = size, n_real, n_synthetic, rounds, same_data, repetitions
    return _summary(_mix_rounds(key, numbers, *counts))


@functools.partial(jax.jit, static_argnums=range(2, 8))
def _mix_rounds(key, numbers, size, n_real, n_synthetic, rounds, same_data, repetitions):
    """Errors (R, T)."""
    weights_N = jnp.concatenate(
        [
            jnp.full(n_real, numbers["weight_real"]),
            jnp.full(n_synthetic, numbers["weight_synthetic"]),
        ]
    )

    def once(key):
        truth_D = _normal(key, "truth", size)
        first_D = truth_D + _normal(key, "start", size) * jnp.sqrt(numbers["start"] / size)

        def advance(labeller_D, count):
            now = keys.fold(key, "round", count)
            real = key if same_data else now
            real_ND, synthetic_ND = (
                _normal(real, "real", n_real, size),
                _normal(now, "synthetic", n_synthetic, size),
            )
            real_N = real_ND @ truth_D + numbers["noise_real"] * _normal(real, "noise", n_real)
            noise_N = _normal(now, "synthetic noise", n_synthetic)
            synthetic_N = synthetic_ND @ labeller_D + numbers["noise_synthetic"] * noise_N
            x_ND = jnp.concatenate([real_ND, synthetic_ND])
            y_N1 = jnp.concatenate([real_N, synthetic_N])[:, None]
            fitted_D = fit(x_ND, y_N1, weights_N, 0.0)[:, 0]
            return fitted_D, ((fitted_D - truth_D) ** 2).sum()

        return jax.lax.scan(advance, first_D, jnp.arange(rounds))[1]

    return jax.lax.map(once, keys.row_keys(key, jnp.arange(repetitions)))


@in_float64
def simulate_generations(
    key: jax.Array,
    *,
    size: int,
    n: int,
    noise: float,
    generations: int,
    accumulate: bool,
    repetitions: int,
) -> Rounds:
    """Each generation's model labels n new inputs for the next; see `generation_factor`.

    The first is trained on real labels. With `accumulate` a generation is trained on the data of
    all before it as well, else on its own only.

    Raises:
      ValueError: an argument out of its range, or not more samples than dimensions.
    """
    check_counts(size=size, n=n, generations=generations, repetitions=repetitions)
    if n <= size:
        raise ValueError(f"n must be above size = {size}, got {n}")
    noise = scalar("noise", not_negative("noise", noise))
    counts = size, n, generations, accumulate, repetitions
    return _summary(_generations(key, noise, *counts))


@functools.partial(jax.jit, static_argnums=range(2, 7))
def _generations(key, noise, size, n, generations, accumulate, repetitions):
    """Errors (R, T)."""

    def once(key):
        truth_D = _normal(key, "truth", size)

        def advance(carry, count):
            gram_DD, moment_D, labeller_D = carry
            now = keys.fold(key, "generation", count)
            x_ND = _normal(now, "inputs", n, size)
            y_N = x_ND @ labeller_D + noise * _normal(now, "noise", n)
            gram_DD = x_ND.T @ x_ND + (gram_DD if accumulate else 0.0)
            moment_D = x_ND.T @ y_N + (moment_D if accumulate else 0.0)
            fitted_D = jax.scipy.linalg.solve(gram_DD, moment_D, assume_a="pos")
            return (gram_DD, moment_D, fitted_D), ((fitted_D - truth_D) ** 2).sum()

        start = jnp.zeros((size, size)), jnp.zeros(size), truth_D
        return jax.lax.scan(advance, start, jnp.arange(generations))[1]

    return jax.lax.map(once, keys.row_keys(key, jnp.arange(repetitions)))


def _normal(key: jax.Array, purpose: str, *shape: int) -> jax.Array:
    return jax.random.normal(keys.fold(key, purpose), shape)


def _summary(errors_RT: jax.Array) -> Rounds:
    spread_T = errors_RT.std(0, ddof=1)
    return Rounds(errors_RT.mean(0), spread_T / math.sqrt(errors_RT.shape[0]))
