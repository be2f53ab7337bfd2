"""Degrees of freedom of a spectrum, and what weights and leverage leave of a sample."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Groups(NamedTuple):
    """Number of samples and weight of a sample, of the real and of the synthetic part."""

    n_real: jax.Array
    n_synthetic: jax.Array
    weight_real: jax.Array
    weight_synthetic: jax.Array

    @property
    def n(self) -> jax.Array:
        return self.n_real + self.n_synthetic


class Degrees(NamedTuple):
    """Degrees of freedom of a spectrum at `t`.

    Attributes:
      first, second: `df_k = tr S^k (S + t)^-k`.
      lost: `df1 - df2`, summed without cancellation.
      slope: `-d df1 / dt`.
      complement: `tr 1[S > 0] (S + t)^-1`, so that `rank - df1 = t * complement`.
      rank: number of positive eigenvalues.
    """

    first: jax.Array
    second: jax.Array
    lost: jax.Array
    slope: jax.Array
    complement: jax.Array
    rank: jax.Array


def degrees(eigenvalues_D: jax.Array, ridge_N: jax.Array) -> Degrees:
    """Degrees of freedom at N ridges, each (N,)."""
    sums = sum_over(lambda s: degree_terms(s, ridge_N), ridge_N.size, eigenvalues_D)
    return Degrees(*sums, rank(eigenvalues_D))


def degree_terms(eigenvalue: jax.Array, ridge_N: jax.Array) -> tuple[jax.Array, ...]:
    """What one eigenvalue adds to the fields of `Degrees`, but for the rank."""
    inverse = resolvent(eigenvalue, ridge_N)
    kept = eigenvalue * inverse
    return kept, kept * kept, kept * ridge_N * inverse, kept * inverse, inverse


def rank(eigenvalues_D: jax.Array) -> jax.Array:
    """Number of positive eigenvalues, as a float."""
    return (eigenvalues_D > 0).sum().astype(eigenvalues_D.dtype)


def resolvent(eigenvalue: jax.Array, ridge: jax.Array) -> jax.Array:
    """`1 / (eigenvalue + ridge)`, and 0 where the eigenvalue is 0.

    No test error depends on those directions, and at ridge 0 they would be infinite.
    """
    safe = jnp.where(eigenvalue > 0, eigenvalue, 1.0)
    return jnp.where(eigenvalue > 0, 1.0 / (safe + ridge), 0.0)


def sum_over(
    terms: Callable[..., tuple[jax.Array, ...]],
    count: int,
    *spectra_D: jax.Array,
    looped: bool | None = None,
) -> tuple[jax.Array, ...]:
    """Sums over D of `terms(scalar of each spectrum)`, a tuple of arrays (N,).

    Args:
      count: N.
      looped: a loop over D of vectors of N, instead of one reduction of (D, N), which on CPU
        computes every term once per sum. None picks the loop for many settings on CPU, where it
        is 20 times faster.
    """
    if looped is None:
        looped = count >= 64 and jax.default_backend() == "cpu"
    if not looped:
        return tuple(values_DN.sum(0) for values_DN in jax.vmap(terms)(*spectra_D))

    def add(sums, scalars):
        return tuple(map(jnp.add, sums, terms(*scalars))), None

    shapes = jax.eval_shape(lambda: terms(*(spectrum_D[0] for spectrum_D in spectra_D)))
    zeros = tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
    return jax.lax.scan(add, zeros, spectra_D, unroll=4)[0]


def excess(count: jax.Array, df: Degrees, ridge: jax.Array) -> jax.Array:
    """`count - df1`, by whichever of two sums does not cancel."""
    below = count - df.first
    above = (count - df.rank) + ridge * df.complement
    return jnp.where(2 * df.first < df.rank, below, above)


def left_weight(df1: jax.Array, unexplained: jax.Array, groups: Groups) -> jax.Array:
    """Mean over samples of weight times (1 - leverage): `1 - df1/n` where all weights are 1.

    It is the H that solves `H = sum_g p_g w_g H / (H + w_g y)` with y = df1/n, the larger root of
    a quadratic equation.

    Args:
      unexplained: `n - df1`, see `excess`.
    """
    n, real, synthetic = groups.n, groups.weight_real, groups.weight_synthetic
    product = real * synthetic * (df1 / n) * (unexplained / n)
    mean = (groups.n_real * real + groups.n_synthetic * synthetic) / n
    half = 0.5 * (mean - (df1 / n) * (real + synthetic))
    root = jnp.sqrt(jnp.maximum(half * half + product, 0.0))
    # The larger root, in the form that does not subtract nearly equal numbers.
    divisor = jnp.where(half < 0, root - half, 1.0)
    return jnp.where(half < 0, product / divisor, half + root)
