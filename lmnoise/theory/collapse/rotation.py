"""Dense matrices as the diagonals that the theorems depend on."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lmnoise.theory.arguments import checked, in_float64

# Share of the largest eigenvalue below which one is taken for 0.
NEGLIGIBLE = 1e-12


@in_float64
def diagonals(
    covariance: ArrayLike, prior: ArrayLike, shift: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues of Sigma, and the diagonals of Gamma and Delta in its eigenbasis.

    Args:
      covariance, prior, shift: symmetric positive semi-definite, (D, D). They need not commute.

    Returns:
      Three float64 vectors (D,), ascending in the eigenvalue: the arguments of `ridge`. Eigenvalues
      below 1e-12 of the largest are taken as 0.

    Raises:
      ValueError: a matrix that is not square, symmetric, positive semi-definite or finite, or of
        another size.
    """
    matrices = {
        name: checked(name, value, lambda x: x == x, "a matrix of numbers")
        for name, value in (("covariance", covariance), ("prior", prior), ("shift", shift))
    }
    size = jnp.shape(matrices["covariance"])
    for name, matrix in matrices.items():
        check_matrix(name, matrix, size)
    values_D, vectors_DD = jnp.linalg.eigh(matrices["covariance"])
    # What rounding makes of an eigenvalue 0 must not count as a direction that can be fitted.
    values_D = jnp.where(values_D > NEGLIGIBLE * jnp.abs(values_D).max(), values_D, 0.0)
    rotated = (((matrices[name] @ vectors_DD) * vectors_DD).sum(0) for name in ("prior", "shift"))
    # Rounding may put a diagonal that is 0 a little below.
    return values_D, *(jnp.maximum(vector_D, 0.0) for vector_D in rotated)


def check_matrix(name: str, matrix: jax.Array, size: tuple[int, ...]) -> None:
    if len(size) != 2 or size[0] != size[1] or jnp.shape(matrix) != size:
        raise ValueError(f"{name} must be square like the covariance {size}, got {matrix.shape}")
    if isinstance(matrix, jax.core.Tracer):
        return
    scale = float(jnp.abs(matrix).max())
    if float(jnp.abs(matrix - matrix.T).max()) > 1e-8 * scale:
        raise ValueError(f"{name} must be symmetric")
    lowest = float(jnp.linalg.eigvalsh(matrix)[0])
    if lowest < -1e-8 * scale:
        raise ValueError(f"{name} must have no negative eigenvalue, got {lowest}")
