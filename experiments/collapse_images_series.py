"""Test errors of one kind of model along one axis, for shares of synthetic labels.

Letters: P shares, R seeds, B sizes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from collapse_images_points import name_of
from collapse_images_theory import Law
from ml_collections import ConfigDict
from numpy.typing import ArrayLike, NDArray

from lmnoise.evaluation import powerlaw
from lmnoise.report import Estimate, mean_and_error, paired_difference

type Array = NDArray[np.float64]

# Why there is no theory: features that are trained are not a projection that was drawn.
MODELS = {"features": "random features", "networks": "trained networks"}
AXES = {"samples": "images n", "widths": "width m"}


# Images at which the theory does not fall any more.
_FAR = 1e8
# Sizes are filled up to multiples of this many, for which the theory is compiled once.
_AT_ONCE = 160


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Errors of P shares, of which the first is 0; the seeds are paired over shares and sizes.

    Attributes:
      model: one of `MODELS`; axis: one of `AXES`; kind: of synthetic labels.
      size_B: n or m, rising.
      other: m or n, which does not change.
      error_PRB: squared error summed over classes on real labels.
      accuracy_PRB: of the largest output.
      training_PRB: loss on the own labels at the end of training; None for exact solutions.
      penalty: of ridge.
      law: what the theorem needs; None for trained networks.
      quality: c^2, as the study measured it or set it.
    """

    model: str
    images: str
    kind: str
    axis: str
    size_B: tuple[int, ...]
    other: int
    shares: tuple[float, ...]
    error_PRB: Array
    accuracy_PRB: Array
    training_PRB: Array | None
    penalty: float
    law: Law | None
    quality: float

    def theory(self, size_B: ArrayLike, *, cross: bool = True) -> Array:
        """The theorem's errors (P, B) at any sizes; `self.law` must be there."""
        size_B, share_P1 = np.asarray(size_B), np.asarray(self.shares)[:, None]
        size_1B = np.pad(size_B, (0, -len(size_B) % _AT_ONCE), "edge")[None]
        n, m = (size_1B, self.other) if self.axis == "samples" else (self.other, size_1B)
        return self.law.error(n, share_P1, m, self.penalty, cross=cross)[:, : len(size_B)]

    @functools.cached_property
    def theory_PB(self) -> Array:
        """The theorem's errors at the measured sizes."""
        return self._theory_and_end[:, :-1]

    @functools.cached_property
    def plain_PB(self) -> Array:
        """The same without the cross term."""
        return self.theory(self.size_B, cross=False)

    @functools.cached_property
    def floor_P(self) -> Array:
        """What the theorem's errors over samples end at, less that of real labels alone."""
        end_P = self._theory_and_end[:, -1]
        return end_P - end_P[0]

    @functools.cached_property
    def _theory_and_end(self) -> Array:
        return self.theory([*self.size_B, _FAR])

    @property
    def floor_quality(self) -> float:
        """c^2 that a floor can show: for random features, the part that they can express."""
        return self.quality if self.law is None else self.law.quality

    def error(self, p: int, b: int) -> Estimate:
        return mean_and_error(self.error_PRB[p, :, b])

    def accuracy(self, p: int, b: int) -> Estimate:
        return mean_and_error(self.accuracy_PRB[p, :, b])

    def rise(self, p: int, b: int) -> Estimate:
        """Error over that with real labels alone on the same images, paired over seeds."""
        return paired_difference(self.error_PRB[p, :, b], self.error_PRB[0, :, b])

    @functools.cached_property
    def free(self) -> powerlaw.Bootstrap:
        """Shifted power laws of the error against n, each share with its own exponent."""
        return powerlaw.bootstrap(self.size_B, self.error_PRB)

    @functools.cached_property
    def shared(self) -> powerlaw.Bootstrap:
        """The same with one exponent for all shares."""
        return powerlaw.bootstrap(self.size_B, self.error_PRB, shared_exponent=True)


def series(
    config: ConfigDict,
    images: str,
    model: str,
    axis: str,
    kind: str,
    found: Mapping[int, Any],
    law: Law,
    quality: float,
) -> Series:
    """From what `feature_points` or `network_points` returned."""
    own = config[model][axis]
    sizes = tuple(own.counts if axis == "samples" else own.widths)
    values_PRBV = np.array(
        [
            [
                [result[str(size)][name_of(kind, share)] for size in sizes]
                for result in found.values()
            ]
            for share in own.shares
        ]
    )
    return Series(
        model=model,
        images=images,
        kind=kind,
        axis=axis,
        size_B=sizes,
        other=own.width if axis == "samples" else own.n,
        shares=tuple(own.shares),
        error_PRB=values_PRBV[..., 0],
        accuracy_PRB=values_PRBV[..., 1],
        training_PRB=None if model == "features" else values_PRBV[..., 2],
        penalty=own.get("penalty", 0.0),
        law=law if model == "features" else None,
        quality=quality,
    )
