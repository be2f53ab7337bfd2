"""Monte Carlo of the set-up of arXiv 2410.04840: everything is drawn, fitted and measured."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lmnoise import keys
from lmnoise.models.regression import RandomProjection
from lmnoise.theory.arguments import checked, in_float64, not_negative, positive, scalar
from lmnoise.theory.collapse.rotation import check_matrix

# Numbers that repetitions running at once may hold on an accelerator.
AT_ONCE = 2**27


class Parts(NamedTuple):
    """Squared errors on the real law, as in `Errors`. The parts sum to the total on average."""

    bias: jax.Array
    variance: jax.Array
    collapse: jax.Array
    total: jax.Array


class Simulated(NamedTuple):
    """Means over the repetitions, and the standard errors of these means."""

    mean: Parts
    standard_error: Parts


class Draw(NamedTuple):
    """The data of one repetition, and the truth that they come from.

    Attributes:
      x_ND: inputs, the real ones first.
      noise_N: label noise.
      synthetic_N: 0 for real samples and 1 for synthetic ones.
      truth_D, shift_D: w1 and w2 - w1.
    """

    x_ND: jax.Array
    noise_N: jax.Array
    synthetic_N: jax.Array
    truth_D: jax.Array
    shift_D: jax.Array

    @property
    def labels_N3(self) -> jax.Array:
        """The three terms of a label: from the truth, from the shift, from noise."""
        shifted_N = self.synthetic_N * (self.x_ND @ self.shift_D)
        return jnp.stack([self.x_ND @ self.truth_D, shifted_N, self.noise_N], -1)


@in_float64
def simulate(
    key: jax.Array,
    covariance: ArrayLike,
    prior: ArrayLike,
    shift: ArrayLike,
    *,
    n_real: int,
    n_synthetic: int,
    noise_real: float,
    noise_synthetic: float,
    penalty: float,
    repetitions: int,
    width: int | None = None,
    weight_real: float = 1.0,
    weight_synthetic: float = 1.0,
) -> Simulated:
    """Draws data and truths, fits the labels exactly, and measures the error on the real law.

    Repetitions run on the device, several at once except on CPU; repetition r depends on
    (key, r) alone.

    Args:
      key: typed PRNG key.
      covariance, prior, shift: Sigma, Gamma, Delta, each a matrix (D, D) or a diagonal (D,).
      n_real, n_synthetic, noise_real, noise_synthetic, penalty, weight_real, weight_synthetic:
        as in `ridge`, numbers.
      repetitions: at least 2.
      width: of random projections, drawn anew in every repetition; None for plain ridge.

    Returns:
      float64 numbers.

    Raises:
      ValueError: as in `ridge`; or penalty 0 where the samples do not determine the fit: with a
        singular covariance, or with more random features and samples than dimensions.
    """
    check_counts(n_real=n_real, n_synthetic=n_synthetic, repetitions=repetitions)
    if width is not None:
        check_counts(width=width)
    roots = square_roots(covariance=covariance, prior=prior, shift=shift)
    numbers = {
        "noise_real": not_negative("noise_real", noise_real),
        "noise_synthetic": not_negative("noise_synthetic", noise_synthetic),
        "penalty": not_negative("penalty", penalty),
        "weight_real": positive("weight_real", weight_real),
        "weight_synthetic": positive("weight_synthetic", weight_synthetic),
    }
    numbers = {name: scalar(name, value) for name, value in numbers.items()}
    if float(penalty) == 0 and not _full_rank(roots[0]):
        raise ValueError("penalty must be above 0 where the covariance is singular, got 0.0")
    size = roots[0].shape[0]
    if float(penalty) == 0 and width is not None and min(n_real + n_synthetic, width) > size:
        raise ValueError(
            f"penalty must be above 0 where width and samples exceed the dimension {size}, got 0.0"
        )
    parts = _repeat(key, roots, numbers, n_real, n_synthetic, width, repetitions)
    mean = Parts(*(values_R.mean() for values_R in parts))
    error = Parts(*(values_R.std(ddof=1) / math.sqrt(repetitions) for values_R in parts))
    return Simulated(mean, error)


def square_roots(**matrices: ArrayLike) -> tuple[jax.Array, ...]:
    """A with A A^T the matrix, as a diagonal (D,) where the matrix was given as one.

    Call it with 64-bit types enabled. Raises ValueError as `diagonals` does.
    """
    arrays = {
        name: checked(name, value, lambda x: x == x, "an array of numbers")
        for name, value in matrices.items()
    }
    size = next(iter(arrays.values())).shape[:1]
    return tuple(_square_root(name, array, size) for name, array in arrays.items())


def _square_root(name: str, array: jax.Array, size: tuple[int, ...]) -> jax.Array:
    if array.ndim == 1:
        if array.shape != size:
            raise ValueError(f"{name} must have the covariance's size {size}, got {array.shape}")
        return jnp.sqrt(not_negative(name, array))
    check_matrix(name, array, (*size, *size))
    values_D, vectors_DD = jnp.linalg.eigh(array)
    return vectors_DD * jnp.sqrt(jnp.maximum(values_D, 0.0))[None]


def draw(
    key: jax.Array,
    roots: tuple[jax.Array, jax.Array, jax.Array],
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    n_real: int,
    n_synthetic: int,
) -> Draw:
    """Draws one repetition; `roots` are `square_roots` of Sigma, Gamma and Delta."""
    size, n = roots[0].shape[0], n_real + n_synthetic
    normal = lambda name, *shape: jax.random.normal(keys.fold(key, name), shape, roots[0].dtype)  # noqa: E731
    synthetic_N = jnp.arange(n) >= n_real
    deviation_N = jnp.where(synthetic_N, noise_synthetic, noise_real)
    return Draw(
        x_ND=_colour(normal("inputs", n, size), roots[0]),
        noise_N=normal("noise", n) * deviation_N,
        synthetic_N=synthetic_N.astype(roots[0].dtype),
        truth_D=_colour(normal("truth", size), roots[1]),
        shift_D=_colour(normal("shift", size), roots[2]),
    )


def fit(
    x_ND: jax.Array, labels_NK: jax.Array, weights_N: jax.Array, penalty: ArrayLike
) -> jax.Array:
    """Weighted ridge of K labels at once, (D, K); at penalty 0 the interpolator of least norm."""
    n, size = x_ND.shape
    scale_N1 = jnp.sqrt(weights_N)[:, None]
    x_ND, labels_NK = scale_N1 * x_ND, scale_N1 * labels_NK
    if n <= size:
        gram_NN = x_ND @ x_ND.T + n * penalty * jnp.eye(n)
        return x_ND.T @ jax.scipy.linalg.solve(gram_NN, labels_NK, assume_a="pos")
    gram_DD = x_ND.T @ x_ND + n * penalty * jnp.eye(size)
    return jax.scipy.linalg.solve(gram_DD, x_ND.T @ labels_NK, assume_a="pos")


def _repeat(key, roots, numbers, n_real, n_synthetic, width, repetitions) -> Parts:
    """The parts of every repetition, each (R,)."""
    rows = keys.row_keys(key, jnp.arange(repetitions))
    counts = n_real, n_synthetic, width
    if jax.default_backend() == "cpu":
        # One by one and dispatched from here: its large products then use all cores, which they
        # do not inside a loop of XLA's, and least of all under `vmap`.
        each = [_once(row, roots, numbers, *counts) for row in rows]
        return jax.tree.map(lambda *values: jnp.stack(values), *each)
    n, size, m = n_real + n_synthetic, roots[0].shape[0], width or 0
    held = (n + m) * size + n * m + min(n, m or size) ** 2
    return _several(rows, roots, numbers, *counts, max(1, AT_ONCE // held))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _several(rows, roots, numbers, n_real, n_synthetic, width, at_once) -> Parts:
    def once(row) -> Parts:
        return _once(row, roots, numbers, n_real, n_synthetic, width)

    return jax.lax.map(once, rows, batch_size=at_once)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _once(key, roots, numbers, n_real, n_synthetic, width) -> Parts:
    """Draws, fits and measures once."""
    data = draw(key, roots, numbers["noise_real"], numbers["noise_synthetic"], n_real, n_synthetic)
    # Or XLA draws the inputs again for each of their uses.
    data = jax.lax.optimization_barrier(data)
    heavy_N = data.synthetic_N * numbers["weight_synthetic"]
    weights_N = heavy_N + (1 - data.synthetic_N) * numbers["weight_real"]
    if width is None:
        fitted_D3 = fit(data.x_ND, data.labels_N3, weights_N, numbers["penalty"])
    else:
        projection_MD = RandomProjection(roots[0].shape[0], width).init(key)["projection"]
        features_NM = data.x_ND @ projection_MD.T
        heads_M3 = fit(features_NM, data.labels_N3, weights_N, numbers["penalty"])
        fitted_D3 = projection_MD.T @ heads_M3
    bias_D, moved_D, noise_D = fitted_D3[:, 0] - data.truth_D, fitted_D3[:, 1], fitted_D3[:, 2]
    return Parts(
        bias=real_error(bias_D, roots[0]),
        variance=real_error(noise_D, roots[0]),
        collapse=real_error(moved_D, roots[0]),
        total=real_error(bias_D + noise_D + moved_D, roots[0]),
    )


def real_error(difference_D: jax.Array, root: jax.Array) -> jax.Array:
    """`|A^T difference|^2`: expected squared error on the real law of weights so far from w1."""
    spread_D = difference_D * root if root.ndim == 1 else difference_D @ root
    return (spread_D * spread_D).sum()


def _colour(white: jax.Array, root: jax.Array) -> jax.Array:
    if root.ndim == 1:
        return white * jnp.expand_dims(root, range(white.ndim - 1))
    return white @ root.T


def _full_rank(root: jax.Array) -> bool:
    values = jnp.abs(root) if root.ndim == 1 else jnp.linalg.svd(root, compute_uv=False)
    return bool(values.min() > 1e-8 * values.max())


def check_counts(**counts: int) -> None:
    """Raises ValueError for a count that is no integer, is negative, or (the others) is below 1.

    n_real and n_synthetic may be 0, but not both; repetitions must be at least 2.
    """
    least = {"n_real": 0, "n_synthetic": 0, "repetitions": 2}
    if "n_real" in counts:
        counts = counts | {"n_real + n_synthetic": counts["n_real"] + counts["n_synthetic"]}
    for name, value in counts.items():
        limit = least.get(name, 1)
        if not isinstance(value, int | np.integer) or value < limit:
            raise ValueError(f"{name} must be an integer of at least {limit}, got {value}")
