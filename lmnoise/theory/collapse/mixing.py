"""Corollaries of the theorems: closed forms for simple spectra, and the weighting of two parts.

All functions compute in float64, take numbers or arrays that broadcast, and raise ValueError that
names an argument out of its range (outside `jax.jit`).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lmnoise.theory.arguments import (
    broadcast,
    checked,
    in_float64,
    not_negative,
    positive,
    scalar,
    share,
)
from lmnoise.theory.collapse.fixed_point import quadratic
from lmnoise.theory.collapse.formulas import Errors
from lmnoise.theory.collapse.monte_carlo import check_counts
from lmnoise.theory.collapse.optimum import optimal


@in_float64
def isotropic(
    ratio: ArrayLike,
    *,
    synthetic_share: ArrayLike,
    quality: ArrayLike,
    signal: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    penalty: ArrayLike = 0.0,
) -> Errors:
    """`ridge` for Sigma = I, where the fixed point is a quadratic equation.

    Without penalty and for ratio < 1 the total is

        s^2 r/(1-r) + p2^2 c^2 + p1 p2 c^2 r/(1-r),   s^2 = p1 noise_real^2 + p2 noise_synthetic^2

    (arXiv 2410.04840, Corollary 1).

    Args:
      ratio: r = D/n, above 0; infinite error at 1 without penalty.
      synthetic_share: p2, in [0, 1].
      quality: c^2 = tr Sigma Delta; 0 is perfect synthetic data.
      signal: tr Sigma Gamma.
      noise_real, noise_synthetic: standard deviations.
      penalty: lambda >= 0.
    """
    values = broadcast(
        ratio=positive("ratio", ratio),
        p2=share("synthetic_share", synthetic_share),
        quality=not_negative("quality", quality),
        signal=not_negative("signal", signal),
        noise_real=not_negative("noise_real", noise_real),
        noise_synthetic=not_negative("noise_synthetic", noise_synthetic),
        penalty=not_negative("penalty", penalty),
    )
    r, p2, quality, signal, noise_real, noise_synthetic, penalty = values.values()
    # kappa (1 - r / (1 + kappa)) = penalty
    kappa = quadratic(r - 1, penalty, jnp.ones_like(r))
    kept = 1 / (1 + kappa)
    gap = 1 - r * kept**2
    u = jnp.where(gap > 0, r * kept**2 / jnp.where(gap > 0, gap, 1.0), jnp.inf)
    missed = jnp.where(kappa > 0, (kappa * kept) ** 2 * jnp.where(kappa > 0, u, 0.0), 0.0)
    variance_1 = (1 - p2) * noise_real**2 + p2 * noise_synthetic**2

    def noisy(amount):
        return jnp.where(amount > 0, amount * jnp.where(amount > 0, u, 1.0), 0.0)

    bias = signal * ((kappa * kept) ** 2 + missed)
    variance = noisy(variance_1)
    collapse = p2**2 * quality * (kept**2 + missed) + noisy((1 - p2) * p2 * quality)
    return Errors(bias, variance, collapse, bias + variance + collapse, kappa)


@in_float64
def floor(synthetic_share: ArrayLike, quality: ArrayLike) -> jax.Array:
    """`p2^2 c^2`: the error that stays however many samples there are (Corollary 1)."""
    p2, quality = broadcast(
        synthetic_share=share("synthetic_share", synthetic_share),
        quality=not_negative("quality", quality),
    ).values()
    return p2**2 * quality


@in_float64
def powerlaw(size: int, exponent: float) -> jax.Array:
    """Eigenvalues proportional to `i^-exponent`, i = 1..size, with mean 1 as the identity has."""
    check_counts(size=size)
    exponent = scalar("exponent", not_negative("exponent", exponent))
    values_D = jnp.arange(1, size + 1, dtype=jnp.float64) ** -exponent
    return values_D / values_D.mean()


@in_float64
def mixing_weights(fraction: ArrayLike, synthetic_share: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Weights of a real and of a synthetic sample that make synthetic data count as `fraction`.

    `(1 - a)/p1` and `a/p2`: their mean over the samples is 1, and a = p2 gives weights of 1.

    Args:
      fraction: a, strictly between 0 and 1.
      synthetic_share: p2, strictly between 0 and 1.
    """
    a, p2 = broadcast(
        fraction=_inside("fraction", fraction),
        synthetic_share=_inside("synthetic_share", synthetic_share),
    ).values()
    return (1 - a) / (1 - p2), a / p2


@in_float64
def weighted_mixing(
    fraction: ArrayLike,
    ratio: ArrayLike,
    *,
    synthetic_share: ArrayLike,
    quality: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
) -> jax.Array:
    """Error with `mixing_weights`, ridgeless, to first order in the ratio D/n.

        a^2 c^2 + r [ (1-a)^2 s1^2/p1 + a^2 s2^2/p2 + a^2 (1-a)^2 c^2/(p1 p2)
                      + 2 a^2 (1-a) c^2 ((1-a)/p1 - a/p2) ]

    In place of the printed Corollary 2 of arXiv 2410.04840, which simulation contradicts. The last
    term is there because heavier samples are fitted more closely and so count for less than their
    weight. `ridge` with these weights has the error to all orders. Derived here.
    """
    a, r, p2, c2, noise_real, noise_synthetic = broadcast(
        fraction=share("fraction", fraction),
        ratio=positive("ratio", ratio),
        synthetic_share=_inside("synthetic_share", synthetic_share),
        quality=not_negative("quality", quality),
        noise_real=not_negative("noise_real", noise_real),
        noise_synthetic=not_negative("noise_synthetic", noise_synthetic),
    ).values()
    p1 = 1 - p2
    real, synthetic = (noise_real * (1 - a)) ** 2 / p1, (noise_synthetic * a) ** 2 / p2
    mismatch = c2 * (a * (1 - a)) ** 2 / (p1 * p2)
    leverage = 2 * c2 * a**2 * (1 - a) * ((1 - a) / p1 - a / p2)
    return a**2 * c2 + r * (real + synthetic + mismatch + leverage)


def best_fraction(
    ratio: float,
    *,
    synthetic_share: float,
    quality: float,
    noise_real: float,
    noise_synthetic: float,
) -> float:
    """The fraction that minimises `weighted_mixing`, for numbers.

    It falls to 0 with the ratio: with enough data synthetic data is best left out, so weighting
    delays the collapse and does not cure it.
    """

    def total(fraction):
        return weighted_mixing(
            fraction,
            ratio,
            synthetic_share=synthetic_share,
            quality=quality,
            noise_real=noise_real,
            noise_synthetic=noise_synthetic,
        )

    return optimal(total, {"fraction": (0.0, 1.0)}).values["fraction"]


def _inside(name: str, value: ArrayLike) -> jax.Array:
    return checked(name, value, lambda x: (x > 0) & (x < 1), "strictly between 0 and 1")
