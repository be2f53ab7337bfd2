"""What the main grid of the collapse study says: rises, gains, floors, and what theory predicts."""

import dataclasses
import functools

import numpy as np
from collapse_lm_runs import Array, Study
from ml_collections import ConfigDict
from numpy.typing import NDArray

from lmnoise.analyze.laws import estimates
from lmnoise.analyze.mixtures import Curves
from lmnoise.evaluation.powerlaw import Bootstrap, bootstrap
from lmnoise.report import Estimate, mean_and_error, paired_difference
from lmnoise.theory.noise import largest_rise


@dataclasses.dataclass(frozen=True)
class Grid:
    """The main grid with its fits; P shares, the first 0 and the last 1, R seeds, B sizes.

    Attributes:
      curves: losses of the students.
      generator_losses_R: of the generators on held-out real text, nats per token.
      length: tokens of a row.
      free, shared: fits of the real losses, each curve with an exponent of its own, and all with
        one.
    """

    curves: Curves
    generator_losses_R: Array
    length: int
    free: Bootstrap
    shared: Bootstrap

    @property
    def shares_P(self) -> Array:
        return np.asarray(self.curves.shares, np.float64)

    @property
    def mixed_P(self) -> NDArray[np.bool_]:
        """Shares strictly between 0 and 1."""
        return (self.shares_P > 0) & (self.shares_P < 1)

    @property
    def rises_PR(self) -> Array:
        """At the largest size, the loss on real text less that at share 0, paired by seed."""
        return self.curves.rise_PRB[:, :, -1]

    @property
    def quality_R(self) -> Array:
        """c^2: by how much a generator's real loss is above that of the largest real-only model."""
        return self.generator_losses_R - self.curves.real_PRB[0, :, -1]

    @property
    def quality_over_floor(self) -> Estimate:
        """c^2 over the fitted floor of real text, of free exponents, instead.

        The generators and the students have different seeds, so that their errors are independent.
        """
        generator, floor = mean_and_error(self.generator_losses_R), estimates(self.free.floors())[0]
        error = np.hypot(generator.standard_error, floor.standard_error)
        return Estimate(generator.mean - floor.mean, float(error), generator.n)

    @functools.cached_property
    def gains_PRB(self) -> Array:
        """By how much each step to the next size lowers the loss on real text."""
        return -np.diff(self.curves.real_PRB, axis=-1)

    @property
    def last_gains(self) -> list[Estimate]:
        """Of the step to the largest size, by share."""
        return [mean_and_error(gains_R) for gains_R in self.gains_PRB[:, :, -1]]

    @property
    def lost_gains(self) -> list[Estimate]:
        """By how much smaller the last gain is than at share 0, paired, by share."""
        return [
            paired_difference(self.gains_PRB[0, :, -1], g_R) for g_R in self.gains_PRB[:, :, -1]
        ]

    @property
    def spare_gain(self) -> Estimate:
        """A tenth of the last gain of real text less that of synthetic text alone, paired.

        Above 0 the curve of synthetic text alone is flat beside that of real text.
        """
        gains_PR = self.gains_PRB[:, :, -1]
        return paired_difference(gains_PR[0] / 10, gains_PR[-1])

    @property
    def squares_P(self) -> Array:
        """The prediction p2^2 c^2 of regression for the rise."""
        return self.shares_P**2 * self.quality_R.mean()

    @property
    def bounds_P(self) -> Array:
        """The most that an unrestricted model pays for not knowing which kind a row is."""
        bounds_P = np.full(self.shares_P.shape, np.inf)
        below_P = self.shares_P < 1
        bounds_P[below_P] = largest_rise(self.shares_P[below_P], self.length)
        return bounds_P

    @property
    def real_part_PR(self) -> Array:
        """The rise of a model that reads the real rows alone; nan for 1 and below the sizes."""
        return self.rises_PR - self.curves.added_PRB[:, :, -1]

    @property
    def beyond_squares(self) -> list[Estimate]:
        """Measured rise less p2^2 c^2, paired by seed, by share."""
        predicted_PR = self.shares_P[:, None] ** 2 * self.quality_R
        return [mean_and_error(x_R) for x_R in self.rises_PR - predicted_PR]

    @property
    def beyond_real_part(self) -> list[Estimate]:
        """Measured rise less that of the real part alone, paired by seed, by mixed share.

        nan where the real part is smaller than the smallest size.
        """
        return [mean_and_error(x_R) for x_R in self.curves.added_PRB[self.mixed_P, :, -1]]

    @property
    def beyond_bounds(self) -> list[Estimate]:
        """`beyond_real_part` less the bound: what the bound is about has as many real rows."""
        bounds_P = self.bounds_P[self.mixed_P]
        return [
            e._replace(mean=e.mean - bound)
            for e, bound in zip(self.beyond_real_part, bounds_P, strict=True)
        ]

    @property
    def exponent_slope(self) -> Estimate:
        """Slope of the free fits' exponents against the share; 0 if there is one exponent."""
        x_P = self.shares_P - self.shares_P.mean()
        [slope] = estimates(self.free.interval(lambda law, _: law.exponent @ x_P / (x_P @ x_P)))
        return slope

    @property
    def beyond_reached(self) -> Estimate:
        """The fitted floor of share 1 less the loss of share 0 at the largest size, paired.

        Above 0 the floor grows with the share, whatever the floor of share 0.
        """
        return estimates(self.free.interval(lambda law, y: law.floor - y[..., 0, -1:]))[-1]


def analyse(study: Study, config: ConfigDict) -> Grid:
    """Fits the main grid."""
    curves, section = study.curves, config.fits

    def fitted(shared_exponent: bool) -> Bootstrap:
        return bootstrap(
            curves.tokens_B,
            curves.real_PRB,
            shared_exponent=shared_exponent,
            draws=section.draws,
            seed=section.seed,
        )

    return Grid(curves, study.generator_losses_R, config.data.length, fitted(False), fitted(True))


def direction(estimate: Estimate) -> int:
    """1 or -1 where the interval lies above or below 0, else 0."""
    low, high = estimate.interval
    return int(low > 0) - int(high < 0)


def told(estimate: Estimate, above: str, below: str, neither: str = "not shown") -> str:
    """What the 95 % interval of a difference says."""
    return {1: above, -1: below, 0: neither}[direction(estimate)]


def shown_from(shares_P: Array, found: list[Estimate]) -> float | None:
    """The least share from which on every interval lies above 0; None without one.

    Tests in an order that is fixed beforehand, up to the first that fails, need no correction for
    their number.
    """
    at = None
    for share, estimate in zip(shares_P[::-1], found[::-1], strict=True):
        if direction(estimate) <= 0:
            break
        at = float(share)
    return at
