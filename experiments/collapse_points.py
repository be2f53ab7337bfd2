"""Settings of the collapse study: their law, their theory and their simulation.

A setting is a flat dict that JSON can write, with all that its numbers depend on. Its randomness
is folded from its seed and from everything else in it, so that settings are independent.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lmnoise import keys, points
from lmnoise.report import Estimate
from lmnoise.theory import collapse

type Setting = dict[str, Any]
type Vectors = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

PARTS = ("bias", "variance", "collapse", "total")
BASE: Setting = dict(
    dimension=0,
    decay=0.0,  # eigenvalue j of Sigma is j^-decay
    prior_decay=0.0,  # the diagonal of Gamma falls like j^-prior_decay
    quality=0.0,  # c^2 = tr Sigma Delta, with Delta in proportion to Gamma and tr Sigma Gamma = 1
    noise=0.0,  # standard deviation of the label noise of both parts
    penalty=0.0,
    width=0,  # of random projections; 0 is plain ridge
    n_real=0,
    n_synthetic=0,
    weight=None,  # share of the total weight on the synthetic part; None: every sample counts 1
)


def setting(**changes: Any) -> Setting:
    """A setting with everything named; `repetitions` and `seed` are among the changes."""
    return BASE | changes


def split(n: float, share: float) -> tuple[int, int]:
    """Whole numbers of real and synthetic samples for `n` of them and a share of synthetic ones."""
    synthetic = round(n * share)
    return round(n) - synthetic, synthetic


def law(of: Setting) -> Vectors:
    """Diagonals of Sigma, Gamma and Delta."""
    rank_D = np.arange(1, of["dimension"] + 1, dtype=np.float64)
    eigenvalues_D = rank_D ** -of["decay"]
    prior_D = rank_D ** -of["prior_decay"]
    prior_D /= (eigenvalues_D * prior_D).sum()
    return eigenvalues_D, prior_D, of["quality"] * prior_D


def theory(of: Setting, **arrays: Any) -> collapse.Errors:
    """Theorem 1 or 2 for a setting; `arrays` take the place of some of its numbers."""
    s = of | arrays
    weight_real, weight_synthetic = weights(s)
    numbers = dict(
        n_real=s["n_real"],
        n_synthetic=s["n_synthetic"],
        noise_real=s["noise"],
        noise_synthetic=s["noise"],
        penalty=s["penalty"],
        weight_real=weight_real,
        weight_synthetic=weight_synthetic,
    )
    if of["width"]:
        return collapse.random_projection(*law(of), width=s["width"], **numbers)
    return collapse.ridge(*law(of), **numbers)


def weights(of: Setting) -> tuple[Any, Any]:
    """Weight of a real and of a synthetic sample; their mean over all samples is 1."""
    if of["weight"] is None:
        return 1.0, 1.0
    share = of["n_synthetic"] / (of["n_real"] + of["n_synthetic"])
    return collapse.mixing_weights(of["weight"], share)


def key_of(of: Setting) -> jax.Array:
    """The setting's own randomness; every number in it has a part in it."""
    return keys.fold(jax.random.key(of["seed"]), json.dumps(of, sort_keys=True))


@dataclass(frozen=True)
class Point:
    """A setting, its theory at its whole numbers of samples, and what was measured.

    Attributes:
      theory: the error and its parts.
      measured: the same, means over repetitions; of a trained model the total alone.
      method: "exact" for the exact minimiser, else the optimiser that trained the model.
      excess: of a trained model, the paired difference to the exact minimiser on the same data.
    """

    setting: Setting
    theory: dict[str, float]
    measured: dict[str, Estimate]
    method: str = "exact"
    excess: Estimate | None = None

    @property
    def total(self) -> Estimate:
        return self.measured["total"]

    def z(self, part: str = "total") -> float:
        """Distance of measurement and theory in standard errors; 0 where both are 0."""
        gap = self.measured[part].mean - self.theory[part]
        return gap / self.measured[part].standard_error if gap else 0.0


def predicted(of: Setting) -> dict[str, float]:
    """The theory of one setting as plain numbers."""
    errors = theory(of)
    return {part: float(getattr(errors, part)) for part in PARTS}


def simulated(workdir: Path, settings: Sequence[Setting], title: str) -> list[Point]:
    """Simulates every setting by drawing, exact fits and measurement, or reads it back."""
    results = points.compute(workdir, settings, _simulate, title)
    return [
        Point(
            setting=s,
            theory=predicted(s),
            measured={part: Estimate(*pair, s["repetitions"]) for part, pair in result.items()},
        )
        for s, result in zip(settings, results, strict=True)
    ]


def simulated_groups[K](
    workdir: Path, groups: Mapping[K, Sequence[Setting]], title: str
) -> dict[K, list[Point]]:
    """`simulated` for several lists of settings, under one progress bar."""
    found = iter(simulated(workdir, [s for several in groups.values() for s in several], title))
    return {key: list(itertools.islice(found, len(groups[key]))) for key in groups}


def _simulate(of: Setting) -> dict[str, Any]:
    weight_real, weight_synthetic = weights(of)
    found = collapse.simulate(
        key_of(of),
        *law(of),
        n_real=of["n_real"],
        n_synthetic=of["n_synthetic"],
        noise_real=of["noise"],
        noise_synthetic=of["noise"],
        penalty=of["penalty"],
        width=of["width"] or None,
        weight_real=float(weight_real),
        weight_synthetic=float(weight_synthetic),
        repetitions=of["repetitions"],
    )
    return {
        part: [float(getattr(found.mean, part)), float(getattr(found.standard_error, part))]
        for part in PARTS
    }
