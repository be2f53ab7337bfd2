"""Theorem 2 of arXiv 2410.04840 with the spectrum that random features have on images.

Random-feature models of width m are random projections of the space of all features: with the
eigenfunctions of the kernel `E relu(w.x) relu(w.x')`, of eigenvalues s_j, as inputs, one random
feature is `sum_j g_j sqrt(s_j) psi_j(x)` with uncorrelated g_j of variance 1, which the theorem
takes for Gaussian. Many random features of the training images stand for the kernel. Its scales:
features are divided by sqrt(m) here and S has variance 1/D there, so the theorem's penalty is
`penalty * m / D`.

Letters: N images, D features that stand for the kernel, O classes.
"""

import dataclasses

import numpy as np
from collapse_images_features import features, first_layer
from numpy.typing import ArrayLike, NDArray

from lmnoise.models.regression import TwoLayerRelu
from lmnoise.theory import collapse

type Vector = NDArray[np.float64]

# Eigenvalues below this share of the largest are rounding.
_SMALLEST = 1e-9


@dataclasses.dataclass(frozen=True)
class Law:
    """What the theorem needs of real and synthetic labels, summed over classes.

    Attributes:
      eigenvalues_D: s, of the features' second moment.
      real_D: squared coefficients of the real labels on the eigenfunctions, `s Gamma`.
      shift_D: those of synthetic less real labels, `s Delta`.
      cross_D: products of the two coefficients.
      residual: variance of the real labels that no combination of features explains.
      synthetic_residual: the same of synthetic labels.
    """

    eigenvalues_D: Vector
    real_D: Vector
    shift_D: Vector
    cross_D: Vector
    residual: float
    synthetic_residual: float

    @property
    def quality(self) -> float:
        """c^2 of the theorem: the squared shift that features can express."""
        return float(self.shift_D.sum())

    def error(
        self,
        n: ArrayLike,
        share: ArrayLike,
        width: ArrayLike,
        penalty: float,
        *,
        cross: bool = True,
    ) -> Vector:
        """Squared error on real labels, their residual included.

        Args:
          n: samples, real and synthetic; it, `share` and `width` broadcast.
          cross: whether shift and real labels may be correlated; the theorem of the paper has
            them independent.
        """
        n, share, width = (np.asarray(a, np.float64) for a in (n, share, width))
        found = collapse.random_projection(
            self.eigenvalues_D,
            self.real_D / self.eigenvalues_D,
            self.shift_D / self.eigenvalues_D,
            cross=self.cross_D / self.eigenvalues_D * cross,
            n_real=(1 - share) * n,
            n_synthetic=share * n,
            noise_real=np.sqrt(self.residual),
            noise_synthetic=np.sqrt(self.synthetic_residual),
            penalty=penalty * width / len(self.eigenvalues_D),
            width=width,
        )
        return np.asarray(found.total) + self.residual


@dataclasses.dataclass(frozen=True)
class Basis:
    """Eigenfunctions of D random features on N images.

    Attributes:
      eigenvalues_D: of the second moment, falling.
      psi_ND: their values, of second moment I.
    """

    eigenvalues_D: Vector
    psi_ND: NDArray[np.float32]

    def coefficients(self, y_NO: NDArray) -> Vector:
        """Of labels on the eigenfunctions (D, O)."""
        return np.asarray(self.psi_ND.T @ y_NO.astype(np.float32), np.float64) / len(y_NO)


def basis(x_NP: NDArray[np.float32], size: int, seed: int) -> Basis:
    """The eigenfunctions of `size` random features."""
    model = TwoLayerRelu(x_NP.shape[1], size, 1)
    z_ND = features(first_layer(model, seed), x_NP)
    moment_DD = sum(part.T @ part for part in map(np.float64, np.array_split(z_ND, 8)))
    values_D, vectors_DD = np.linalg.eigh(moment_DD / len(z_ND))
    kept = np.flatnonzero(values_D > _SMALLEST * values_D[-1])[::-1]
    turn_DD = vectors_DD[:, kept] / np.sqrt(values_D[kept])
    return Basis(values_D[kept], z_ND @ turn_DD.astype(np.float32))


def law_of_flips(own: Basis, real_NO: NDArray, wrong: float) -> Law:
    """Of labels of which a share is wrong, in expectation over the flips.

    Their mean is `(1 - a) y` with `a = q O / (O - 1)`, for centred one-hot labels y, so the shift
    is exactly `-a` times the real labels, and what features leave of y shrinks as well.
    """
    classes = real_NO.shape[1]
    real_DO = own.coefficients(real_NO)
    total = float(np.square(real_NO, dtype=np.float64).sum(1).mean())
    real_D, residual = _explained(real_DO, real_DO, total, len(real_NO))
    shrunk = wrong * classes / (classes - 1)
    drawn = 2 * wrong - wrong * shrunk
    return Law(
        own.eigenvalues_D,
        np.maximum(real_D, 0),
        shrunk**2 * np.maximum(real_D, 0),
        -shrunk * np.maximum(real_D, 0),
        residual,
        (1 - shrunk) ** 2 * residual + drawn,
    )


def law_of_network(own: Basis, real_NO: NDArray, synthetic_NO: NDArray) -> Law:
    """Of labels that are a function of the image."""
    real_DO, moved_NO = own.coefficients(real_NO), synthetic_NO - real_NO
    moved_DO = own.coefficients(moved_NO)
    count = len(real_NO)

    def product(a_NO, b_NO):
        return float((a_NO.astype(np.float64) * b_NO).sum(1).mean())

    real_D, residual = _explained(real_DO, real_DO, product(real_NO, real_NO), count)
    shift_D, _ = _explained(moved_DO, moved_DO, product(moved_NO, moved_NO), count)
    cross_D, _ = _explained(moved_DO, real_DO, product(moved_NO, real_NO), count)
    made_DO = real_DO + moved_DO
    _, left = _explained(made_DO, made_DO, product(synthetic_NO, synthetic_NO), count)
    return Law(
        own.eigenvalues_D, np.maximum(real_D, 0), np.maximum(shift_D, 0), cross_D, residual, left
    )


def _explained(a_DO: Vector, b_DO: Vector, total: float, count: int) -> tuple[Vector, float]:
    """Products of coefficients on each eigenfunction, and what of their total is left.

    Of N images every estimated product has the bias `left / N`, which is taken away; a square may
    then be below 0 by chance.
    """
    products_D = (a_DO * b_DO).sum(1)
    left = (total - products_D.sum()) / (1 - len(products_D) / count)
    return products_D - left / count, left


def mean_law(laws: list[Law]) -> Law:
    """The law whose errors are the mean over several of the same eigenvalues and real labels.

    The error is linear in all that differs.
    """
    first = laws[0]
    fields = ("shift_D", "cross_D", "synthetic_residual")
    means = {name: np.mean([getattr(law, name) for law in laws], 0) for name in fields}
    return dataclasses.replace(first, **means)
