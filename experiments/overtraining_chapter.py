"""What every figure of the over-training study has: measured points, trained points, a table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from overtraining_training import Network, Setting, key_of, spectrum, target

from lmnoise import points
from lmnoise.report import Estimate, Table
from lmnoise.theory import overtraining

BARS = "bars: 95 % intervals (Student's t times the standard error over draws)"


@dataclass(frozen=True)
class Point:
    """A trained network after noise on its weights.

    Attributes:
      of: the network's setting with `scale` and `draws`.
      theory: the perturbed loss that the line shows.
      own: the expected perturbed loss at the weights that training has reached.
      unperturbed: the network's loss without noise.
      measured: its loss over draws of the noise.
    """

    of: Setting
    theory: float
    own: float
    unperturbed: float
    measured: Estimate

    @property
    def z(self) -> float:
        """Distance of the measurement from the line in standard errors."""
        return (self.measured.mean - self.theory) / self.measured.standard_error

    @property
    def z_own(self) -> float:
        """Distance of the measurement from `own` in standard errors."""
        return (self.measured.mean - self.own) / self.measured.standard_error

    def shifted(self, by: float) -> Estimate:
        """The measurement less a constant."""
        return self.measured._replace(mean=self.measured.mean - by)


@dataclass(frozen=True)
class Deviation:
    """How far trained networks are from the gradient flow that the lines show.

    Attributes:
      what: which numbers, and in units of what.
      rate: step size.
      values: relative deviations of all points.
    """

    what: str
    rate: float
    values: Sequence[float]


class Claim(NamedTuple):
    """Something that the paper says, and whether the numbers of this run show it."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Chapter:
    """One figure with its table.

    Attributes:
      name: of the files.
      points: whose agreement with the theory is counted.
      deviations: of what has no randomness.
      table: every number of the figure's points.
      notes: Markdown and tables under the figure.
      claims: what the paper says of it, judged by its numbers.
    """

    name: str
    title: str
    drawing: Figure
    caption: str
    table: Table
    points: Sequence[Point] = ()
    deviations: Sequence[Deviation] = ()
    notes: Sequence[Any] = ()
    claims: Sequence[Claim] = ()


def perturbed(
    workdir: Path,
    cases: Sequence[tuple[Network, float]],
    draws: int,
    theory: Callable[[Network, float], float],
    title: str,
) -> list[Point]:
    """Adds noise of a scale to a network many times and measures its loss, for every case."""
    named = [network.of | dict(scale=scale, draws=draws) for network, scale in cases]
    settings = [{k: v for k, v in of.items() if k != "times"} for of in named]
    networks = {json.dumps(of): network for of, (network, _) in zip(settings, cases, strict=True)}
    results = points.compute(
        workdir, settings, lambda of: _perturb(of, networks[json.dumps(of)]), title
    )
    return [
        Point(
            of=of,
            theory=theory(network, scale),
            own=expected_loss(network, scale),
            unperturbed=network.loss(spectrum(of)),
            measured=Estimate(*found["loss"], draws),
        )
        for of, (network, scale), found in zip(settings, cases, results, strict=True)
    ]


def expected_loss(network: Network, scale: float) -> float:
    """Perturbed loss of any two factors: noise adds a penalty on both and a constant."""
    d = len(network.left)
    norms = np.square(network.left).sum() + np.square(network.right).sum()
    added = scale**2 * d * norms / 2 + scale**4 * d**3 / 2
    return network.loss(spectrum(network.of)) + float(added)


def _perturb(of: Setting, network: Network) -> dict[str, Any]:
    found = overtraining.simulate_perturbed(
        key_of(of),
        network.left,
        network.right,
        target(of, spectrum(of)),
        of["scale"],
        of["draws"],
    )
    return {"loss": [float(found.mean), float(found.standard_error)]}


def bars(axis: Axes, x: Sequence[float], estimates: Sequence[Estimate], **style) -> None:
    """Means with 95 % intervals."""
    axis.errorbar(
        x,
        [e.mean for e in estimates],
        yerr=[e.half_width for e in estimates],
        **dict(linestyle="none", marker="o", markersize=4, capsize=2.5, elinewidth=1.2) | style,
    )


def agreement(chapters: Sequence[Chapter]) -> Table:
    """How far from the lines, and from their own closed form, the perturbed networks lie."""
    rows = []
    for chapter in chapters:
        for what, z in (
            ("the line", np.array([point.z for point in chapter.points])),
            ("the expectation at its own weights", np.array([p.z_own for p in chapter.points])),
        ):
            if not len(z):
                continue
            worst = chapter.points[int(np.abs(z).argmax())]
            rows.append(
                [
                    chapter.name,
                    what,
                    len(z),
                    _share(np.abs(z) <= 2),
                    _share(np.abs(z) <= 4),
                    f"{np.abs(z).max():.2f}",
                    f"t = {worst.of['time']:.3g}, g = {worst.of['scale']:g}",
                    f"{z.mean():+.2f}",
                ]
            )
    header = (
        "figure",
        "perturbed loss against",
        "points",
        "within 2 SE",
        "within 4 SE",
        "largest distance (SE)",
        "where",
        "mean signed distance (SE)",
    )
    return Table(
        header,
        rows,
        "Distance of the mean over draws of the noise in standard errors (SE) of that mean. Where "
        "the closed form is exact and the means are normal, 95.4 % lie within 2 SE and all but 1 "
        "in 16,000 within 4. The expectation at the network's own weights is exact; the distance "
        "from the line adds what training with a finite step, or for a finite time, leaves. Draws "
        "of different points are independent; the two rows of a figure are of the same draws.",
    )


def deviations(chapters: Sequence[Chapter]) -> Table:
    """The largest deviation of training, which has no randomness, from the flow."""
    rows = [
        [
            chapter.name,
            d.what,
            len(d.values),
            f"2^{np.log2(d.rate):g}",
            f"{np.abs(d.values).max():.2e}",
        ]
        for chapter in chapters
        for d in chapter.deviations
    ]
    header = ("figure", "deviation of what", "points", "step size", "largest")
    return Table(
        header,
        rows,
        "Training on the whole population has no randomness: these points have no intervals, and "
        "differ from the gradient flow of the lines by the step size alone.",
    )


def _share(inside: np.ndarray) -> str:
    return f"{inside.sum()} ({inside.mean():.0%})"
