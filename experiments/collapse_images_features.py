"""Random-feature models: a fixed first layer, ReLU, and ridge regression solved exactly.

Letters: n training images, T test images, K features, O classes, Y columns of labels.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from lmnoise import keys
from lmnoise.models.regression import TwoLayerRelu

type Matrix = NDArray[np.float64]


def first_layer(model: TwoLayerRelu, seed: int) -> jax.Array:
    """The weights (K, P) that are not trained; of one seed, the same for all training sets."""
    return model.init(keys.fold(jax.random.key(seed), "random features"))["hidden"]


def features(hidden_KP: jax.Array, x_NP: NDArray[np.float32]) -> NDArray[np.float32]:
    """`relu(W x) / sqrt(K)` (N, K)."""
    return np.asarray(_features(hidden_KP, jnp.asarray(x_NP)))


@jax.jit
def _features(hidden_KP: jax.Array, x_NP: jax.Array) -> jax.Array:
    width, inputs = hidden_KP.shape
    return TwoLayerRelu(inputs, width, 1).features({"hidden": hidden_KP}, x_NP)


def nested_fits(z_NK: NDArray, labels: Mapping[int, NDArray], penalty: float) -> dict[int, Matrix]:
    """Ridge regression `min (1/n) ||Z v - y||^2 + penalty ||v||^2` on the first n rows, for each n.

    In float64.

    All labels of one n share its Gram matrix, and that of the next n begins with it.

    Args:
      labels: columns (n, Y) for each n, rising.
      penalty: above 0.

    Returns:
      Weights (K, Y) for each n.
    """
    width, done = z_NK.shape[1], 0
    gram_KK, found = np.zeros((width, width)), {}
    for n, y_NY in labels.items():
        new_NK = z_NK[done:n].astype(np.float64)
        gram_KK += new_NK.T @ new_NK
        done = n
        matrix_KK = gram_KK / n + penalty * np.eye(width)
        moments_KY = z_NK[:n].T.astype(np.float64) @ y_NY / n
        found[n] = scipy.linalg.solve(matrix_KK, moments_KY, assume_a="pos")
    return found


def ridge(z_NK: NDArray, y_NY: NDArray, penalty: float) -> Matrix:
    """`nested_fits` of one n, by the smaller of two systems of equations."""
    n, width = z_NK.shape
    if width <= n:
        return nested_fits(z_NK, {n: y_NY}, penalty)[n]
    z_NK = z_NK.astype(np.float64)
    matrix_NN = z_NK @ z_NK.T + n * penalty * np.eye(n)
    return z_NK.T @ scipy.linalg.solve(matrix_NN, y_NY, assume_a="pos")


def scores(
    z_TK: NDArray, weights_KY: Matrix, y_TO: NDArray, columns: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Squared error summed over classes, and accuracy, on test images for each named part of Y."""
    # In the precision of the features: rounding does not add up as it does in a solution.
    predicted_TCO = (z_TK @ weights_KY.astype(z_TK.dtype)).reshape(len(z_TK), len(columns), -1)
    error_C = np.square(predicted_TCO - y_TO[:, None]).sum(2).mean(0, dtype=np.float64)
    right_C = (predicted_TCO.argmax(2) == y_TO.argmax(1)[:, None]).mean(0)
    return {
        name: (float(e), float(r)) for name, e, r in zip(columns, error_C, right_C, strict=True)
    }
