"""Error against the number of samples for shares of synthetic data: scaling laws that collapse."""

from pathlib import Path

import numpy as np
from collapse_chapter import BARS, Chapter, bars, table, trained_bars
from collapse_points import Point, Setting, setting, simulated_groups, split, theory
from collapse_training import trained
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_collections import ConfigDict

from lmnoise.report import COLOURS, Estimate, style
from lmnoise.theory import collapse

LAWS = ("isotropic", "power")
TITLES = {"isotropic": "Isotropic inputs", "power": "Power-law spectrum"}


def chapter(config: ConfigDict, workdir: Path) -> Chapter:
    """Two panels: isotropic inputs and a power-law spectrum."""
    points = simulated_groups(
        workdir,
        {
            (law, share): _settings(config, _base(config, law), share)
            for law in LAWS
            for share in config.scaling.shares
        },
        "errors against samples",
    )
    base = _base(config, "isotropic") | dict(repetitions=config.fit.repetitions)
    counts = [split(n, config.fit.share) for n in config.fit.counts]
    settings = [base | dict(n_real=a, n_synthetic=b) for a, b in counts]
    fits = trained(
        workdir, settings, config.fit.steps, config.fit.adam_rate, "training at some of them"
    )
    exact = [point for several in points.values() for point in several]
    return Chapter(
        name="samples",
        title="Error against the number of samples",
        drawing=_drawing(config, points, fits),
        caption=_caption(config),
        points=exact,
        fits=fits,
        table=table([*exact, *fits]),
        notes=_notes(config, points),
    )


def _base(config: ConfigDict, law: str) -> Setting:
    own = config.scaling
    common = dict(quality=own.quality, noise=own.noise, repetitions=config.repetitions)
    common |= dict(seed=config.seed)
    if law == "isotropic":
        return setting(dimension=own.dimension, penalty=own.penalty, **common)
    return setting(
        dimension=own.power.dimension,
        decay=own.power.decay,
        prior_decay=own.power.prior_decay,
        penalty=own.power.penalty,
        **common,
    )


def _settings(config: ConfigDict, base: Setting, share: float) -> list[Setting]:
    """One setting for each count that a whole number of synthetic samples gives this share of."""
    settings = []
    for n in config.scaling.counts:
        n_real, n_synthetic = split(n, share)
        if abs(n_synthetic - n * share) < 0.02 * n * share or share == 0:
            settings.append(base | dict(n_real=n_real, n_synthetic=n_synthetic))
    return settings


def _drawing(config: ConfigDict, points: dict, fits: list[Point]) -> Figure:
    with style():
        drawing = Figure(figsize=(9.6, 5.0))
        axes = drawing.subplots(1, 2, sharey=True)
        for axis, law in zip(axes, LAWS, strict=True):
            _panel(axis, config, law, points)
        colour = COLOURS[list(config.scaling.shares).index(config.fit.share)]
        trained_bars(axes[0], [_count(p) for p in fits], fits, colour)
        own = config.scaling
        axes[0].set_title(f"isotropic, d = {own.dimension}, penalty {own.penalty:g}")
        axes[1].set_title(
            f"eigenvalues $j^{{-{own.power.decay:g}}}$, d = {own.power.dimension}, "
            f"penalty {own.power.penalty:g}"
        )
        axes[0].set_ylabel("test error (in units of the null model's)")
        drawing.legend(handles=_handles(config), loc="outside lower center", ncols=7, fontsize=8.5)
    return drawing


def _panel(axis: Axes, config: ConfigDict, law: str, points: dict) -> None:
    base = _base(config, law)
    grid = np.geomspace(min(config.scaling.counts), config.scaling.longest, 400)
    for colour, share in zip(COLOURS, config.scaling.shares, strict=False):
        several = points[law, share]
        line = np.asarray(theory(base, n_real=(1 - share) * grid, n_synthetic=share * grid).total)
        axis.plot(grid, line, color=colour, linewidth=1.3)
        bars(axis, [_count(p) for p in several], several, color=colour)
        if share:
            floor = float(collapse.floor(share, config.scaling.quality))
            axis.plot(grid[[0, -1]], [floor] * 2, "--", color=colour, linewidth=0.8, alpha=0.8)
    axis.axvline(base["dimension"], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("samples n, real and synthetic")


def _count(point: Point) -> int:
    return point.setting["n_real"] + point.setting["n_synthetic"]


def _handles(config: ConfigDict) -> list[Line2D]:
    shares = [
        Line2D([], [], color=colour, label=f"$p_2$ = {share:g}")
        for colour, share in zip(COLOURS, config.scaling.shares, strict=False)
    ]
    mark = dict(color="0.3", linestyle="none", markersize=5)
    return [
        *shares,
        Line2D([], [], color="0.3", linewidth=1.3, label="theory"),
        Line2D([], [], color="0.3", linewidth=0.8, linestyle="--", label="floor $p_2^2 c^2$"),
        Line2D([], [], color="0.6", linewidth=0.8, linestyle=":", label="n = d"),
        Line2D([], [], marker="o", label="simulated, exact fit", **mark),
        Line2D([], [], marker="v", markerfacecolor="white", label="SGD", **mark),
        Line2D([], [], marker="s", markerfacecolor="white", label="Adam", **mark),
    ]


def _caption(config: ConfigDict) -> str:
    own = config.scaling
    return (
        "Test error of ridge regression against the number of samples for shares p2 of synthetic "
        f"samples, c² = {own.quality:g}, label noise of standard deviation {own.noise:g}. Lines: "
        f"Theorem 1. Circles: simulated, {config.repetitions} repetitions; {BARS}. Open markers: "
        f"trained by the project's step for {config.fit.steps} steps, "
        f"{config.fit.repetitions} repetitions, a little apart."
    )


def _notes(config: ConfigDict, points: dict) -> list[str]:
    last = max(config.scaling.counts)
    lines = []
    for law in LAWS:
        parts = []
        for share in config.scaling.shares:
            at_end = [p for p in points[law, share] if _count(p) == last]
            if at_end and share:
                floor = float(collapse.floor(share, config.scaling.quality))
                parts.append(f"{share:g}: {_short(at_end[0].total)} (floor {floor:.2g})")
        lines.append(f"{TITLES[law]}, n = {last:,}, error by share: {'; '.join(parts)}.")
    return lines


def _short(estimate: Estimate) -> str:
    return f"{estimate.mean:.3g} ± {estimate.half_width:.1g}"
