"""What every figure of the collapse study has: points with intervals, a table, an agreement."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from collapse_points import PARTS, Point
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lmnoise.report import Table

BARS = "bars: 95 % intervals (Student's t times the standard error over repetitions)"
MARKERS = {"exact": "o", "SGD": "v", "Adam": "s"}
SETTING = (
    "dimension",
    "decay",
    "prior_decay",
    "quality",
    "noise",
    "penalty",
    "width",
    "n_real",
    "n_synthetic",
    "weight",
)


@dataclass(frozen=True)
class Chapter:
    """One figure with its table.

    Attributes:
      name: of the files.
      points: whose agreement with the theory is counted; `parts` says of what.
      table: every number of the figure.
      fits: the same models after training.
      notes: Markdown under the figure, paragraphs.
    """

    name: str
    title: str
    drawing: Figure
    caption: str
    points: Sequence[Point]
    table: Table
    parts: Sequence[str] = ("total",)
    fits: Sequence[Point] = ()
    notes: Sequence[str] = ()


def bars(axis: Axes, x: Sequence[float], points: Sequence[Point], part="total", **style) -> None:
    """Means of the points with 95 % intervals."""
    estimates = [point.measured[part] for point in points]
    axis.errorbar(
        x,
        [e.mean for e in estimates],
        yerr=[e.half_width for e in estimates],
        **dict(linestyle="none", marker="o", markersize=4, capsize=2.5, elinewidth=1.2) | style,
    )


def log_scale(axis: Axes, directions: str) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5 times the powers of ten."""
    for name in directions:
        getattr(axis, f"set_{name}scale")("log")
        side = getattr(axis, f"{name}axis")
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def trained_bars(axis: Axes, x: Sequence[float], points: Sequence[Point], colour: str) -> None:
    """Trained models: open markers, a little apart, so that exact fits are seen under them."""
    for method, shift in (("SGD", 0.94), ("Adam", 1.06)):
        chosen = [(a * shift, p) for a, p in zip(x, points, strict=True) if p.method == method]
        if chosen:
            bars(
                axis,
                *zip(*chosen, strict=True),
                color=colour,
                marker=MARKERS[method],
                markersize=6,
                markerfacecolor="white",
                zorder=5,
            )


def table(points: Sequence[Point]) -> Table:
    """Setting, theory and measurement of every point."""
    header = (
        *SETTING,
        "method",
        *(f"theory {part}" for part in PARTS),
        *(f"measured {part}" for part in PARTS),
        "z",
        "excess over the exact fit",
    )
    rows = [
        [
            *(_cell(point.setting[name]) for name in SETTING),
            point.method,
            *(point.theory[part] for part in PARTS),
            *(point.measured.get(part, "") for part in PARTS),
            point.z(),
            point.excess or "",
        ]
        for point in points
    ]
    return Table(header, rows)


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def agreement(chapters: Sequence[Chapter]) -> Table:
    """How far from the theory the simulated points of every figure lie, in standard errors."""
    rows = []
    for chapter in chapters:
        for part in chapter.parts:
            z = np.array([point.z(part) for point in chapter.points])
            worst = chapter.points[int(np.abs(z).argmax())]
            rows.append(
                [
                    chapter.name,
                    "error" if part == "total" else part,
                    len(z),
                    _share(np.abs(z) <= 2),
                    _share(np.abs(z) <= 4),
                    f"{np.abs(z).max():.2f}",
                    _where(worst),
                    f"{worst.measured[part].mean / worst.theory[part] - 1:+.2%}",
                    f"{z.mean():+.2f} ± {_mean_error(chapter.points):.2f}",
                ]
            )
    header = (
        "figure",
        "of what",
        "points",
        "within 2 SE",
        "within 4 SE",
        "largest distance (SE)",
        "where",
        "difference there",
        "mean signed distance (SE)",
    )
    return Table(
        header,
        rows,
        "Distance of the simulated mean from the theory in standard errors (SE) of that mean. If "
        "the theory were exact and the means normal, 95.4 % would lie within 2 SE and all but 1 in "
        "16,000 within 4, at this number of repetitions: more of them see smaller differences. The "
        "mean signed distance would be 0 with the standard error after ±: 1/sqrt(points) where "
        "points are independent, and more where several come from one simulation (rounds of one "
        "process), which are then taken as fully correlated. Rows of one figure (the error and its "
        "parts) come from the same fits and are not independent of each other. A part that is 0 in "
        "theory and simulation has distance 0. The theory is a limit of many samples and "
        "dimensions, so differences of the order 1/dimension are expected, and near the "
        "interpolation threshold the error has heavy tails.",
    )


def _mean_error(points: Sequence[Point]) -> float:
    """Standard error of the mean distance, if points of one simulation have the same distance."""
    simulations = Counter(
        json.dumps({k: v for k, v in p.setting.items() if k != "round"}) for p in points
    )
    return float(np.sqrt(np.square(list(simulations.values())).sum()) / len(points))


def _share(inside: np.ndarray) -> str:
    return f"{inside.sum()} ({inside.mean():.0%})"


def _where(point: Point) -> str:
    s = point.setting
    text = f"{s['n_real']} + {s['n_synthetic']} samples, d = {s['dimension']}"
    text += f", m = {s['width']}" if s["width"] else ""
    text += f", weight {s['weight']:.2g}" if s["weight"] is not None else ""
    text += f", {s['process']}, round {s['round']}" if "round" in s else ""
    return f"{text}, c² = {s['quality']:g}"
