"""Error against the width of random projections: does a larger model help against collapse?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_chapter import BARS, Chapter, bars, log_scale, table, trained_bars
from collapse_points import PARTS, Point, Setting, setting, simulated_groups, theory
from collapse_training import trained
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lmnoise.report import COLOURS, style

LABELS = {
    "bias": "bias B",
    "variance": "variance V",
    "collapse": r"collapse $\zeta$",
    "total": "error",
}

# Widths within this factor of the number of samples are near the interpolation threshold.
NEAR = 1.2


def chapters(config: ConfigDict, workdir: Path) -> list[Chapter]:
    """The mixture against the real part alone, and the error against the width with its parts."""
    own = config.widths
    groups = {quality: _settings(config, quality) for quality in own.qualities}
    groups["real"] = _settings(config, 0.0, mixed=False)
    mixed = simulated_groups(workdir, groups, "errors against width")
    real = mixed.pop("real")
    largest = max(own.qualities)
    settings = [
        _base(config, largest) | dict(width=width, repetitions=config.fit.repetitions)
        for width in config.fit.widths
    ]
    fits = trained(
        workdir, settings, config.fit.steps, config.fit.adam_rate, "training at some of them"
    )
    exact = [point for points in mixed.values() for point in points]
    what = (
        f"{own.n_real} real and {own.n_synthetic} synthetic samples, d = {own.dimension}, label "
        f"noise {own.noise:g}, penalty {own.penalty:g}"
    )
    simulation = f"simulated, {config.repetitions} repetitions; {BARS}"
    pareto = Chapter(
        name="mixture-against-real",
        title="Synthetic data beside real data",
        drawing=_pareto(config, mixed, real),
        caption=(
            "Test error of random projections trained on the mixture against that on its real "
            f"part alone, coloured by width over n ({what}). Lines: Theorem 2. Points: "
            f"{simulation}, on both axes. Above the diagonal the synthetic samples do harm."
        ),
        points=real,
        table=table([*real, *exact]),
        notes=_pareto_notes(mixed, real),
    )
    descent = Chapter(
        name="width",
        title="Width: double descent and the parts of the error",
        drawing=_descent(config, mixed, fits),
        caption=(
            f"Left: test error against the width m ({what}). Right: bias, variance and collapse "
            f"at c² = {largest:g}. Lines: Theorem 2. Circles: {simulation}. Open markers: "
            f"trained by the project's step for {config.fit.steps} steps, "
            f"{config.fit.repetitions} repetitions, a little apart."
        ),
        points=exact,
        parts=PARTS,
        fits=fits,
        table=table([*exact, *fits]),
        notes=_descent_notes(config),
    )
    return [pareto, descent]


def _base(config: ConfigDict, quality: float) -> Setting:
    own = config.widths
    return setting(
        dimension=own.dimension,
        quality=quality,
        noise=own.noise,
        penalty=own.penalty,
        n_real=own.n_real,
        n_synthetic=own.n_synthetic,
        width=1,
        repetitions=config.repetitions,
        seed=config.seed,
    )


def _settings(config: ConfigDict, quality: float, mixed: bool = True) -> list[Setting]:
    base = _base(config, quality) | ({} if mixed else dict(n_synthetic=0))
    return [base | dict(width=width) for width in config.widths.widths]


def _grid(config: ConfigDict) -> np.ndarray:
    return np.geomspace(min(config.widths.widths), max(config.widths.widths), 300)


def _pareto(config: ConfigDict, mixed: dict, real: list[Point]) -> Figure:
    n = config.widths.n_real + config.widths.n_synthetic
    grid, norm = _grid(config), LogNorm(_grid(config)[0] / n, _grid(config)[-1] / n)
    alone = np.asarray(theory(_base(config, 0.0) | dict(n_synthetic=0), width=grid).total)
    with style():
        rows = -(-len(mixed) // 2)
        drawing = Figure(figsize=(8.6, 3.8 * rows))
        axes = drawing.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for axis, (quality, points) in zip(axes.flat, mixed.items(), strict=False):
            both = np.asarray(theory(_base(config, quality), width=grid).total)
            path = np.stack([alone, both], axis=-1)
            line = LineCollection(
                np.stack([path[:-1], path[1:]], axis=1), norm=norm, cmap="viridis", linewidth=2
            )
            line.set_array(grid[:-1] / n)
            axis.add_collection(line)
            _crosses(axis, real, points, lambda m: line.cmap(norm(m / n)))  # noqa: B023
            axis.set_title(f"$c^2$ = {quality:g}")
        ends = _limits(alone, [p.total.mean for points in (real, *mixed.values()) for p in points])
        for axis in axes.flat[: len(mixed)]:
            axis.plot(ends, ends, ":", color="0.4", linewidth=1, zorder=0)
            axis.set(xlim=ends, ylim=ends, aspect="equal")
            log_scale(axis, "xy")
            axis.set_xlabel("error, real part alone")
            axis.set_ylabel("error, mixture")
            axis.label_outer()
        scale = drawing.colorbar(line, ax=axes, label="width / n", shrink=0.7)
        log_scale(scale.ax, "y")
    return drawing


def _limits(*values) -> tuple[float, float]:
    flat = np.concatenate([np.ravel(v) for v in values])
    return float(flat.min()) / 1.2, float(flat.max()) * 1.2


def _crosses(axis: Axes, real: list[Point], mixed: list[Point], colour) -> None:
    for x, y in zip(real, mixed, strict=True):
        bars(
            axis,
            [x.total.mean],
            [y],
            xerr=[x.total.half_width],
            color=colour(y.setting["width"]),
            ecolor="0.25",
            markersize=3,
            markeredgecolor="0.25",
            markeredgewidth=0.6,
            zorder=3,
        )


def _descent(config: ConfigDict, mixed: dict, fits: Sequence[Point]) -> Figure:
    own, grid = config.widths, _grid(config)
    n, largest = own.n_real + own.n_synthetic, max(own.qualities)
    with style():
        drawing = Figure(figsize=(9.6, 4.4))
        axes = drawing.subplots(1, 2)
        for colour, (quality, points) in zip(COLOURS, mixed.items(), strict=False):
            line = theory(_base(config, quality), width=grid).total
            axes[0].plot(grid, line, color=colour, label=f"$c^2$ = {quality:g}")
            bars(axes[0], _widths(points), points, color=colour)
        colour = COLOURS[list(mixed).index(largest)]
        trained_bars(axes[0], _widths(fits), fits, colour)
        for method, marker in (("SGD", "v"), ("Adam", "s")):
            axes[0].plot(
                [], [], marker, color=colour, markerfacecolor="white", label=f"{method}, same law"
            )
        parts = theory(_base(config, largest), width=grid)
        for colour, part in zip(("black", *COLOURS), ("total", *PARTS[:3]), strict=False):
            axes[1].plot(grid, getattr(parts, part), color=colour, label=LABELS[part])
            bars(axes[1], _widths(mixed[largest]), mixed[largest], part, color=colour)
        for axis in axes:
            axis.axvline(n, color="0.6", linewidth=0.8, linestyle=":", label="m = n", zorder=0)
            log_scale(axis, "x")
            axis.set_xlabel("width m")
            axis.legend(fontsize=8.5)
        log_scale(axes[0], "y")
        axes[0].set_ylabel("test error (in units of the null model's)")
        axes[1].set_ylabel(f"part of the error at $c^2$ = {largest:g}")
    return drawing


def _widths(points: Sequence[Point]) -> list[int]:
    return [point.setting["width"] for point in points]


def _pareto_notes(mixed: dict[float, list[Point]], real: list[Point]) -> list[str]:
    """For each quality the widths at which the measured mixture is better than its real part."""
    lines = []
    for quality, points in mixed.items():
        pairs = list(zip(real, points, strict=True))
        helped = [y.setting["width"] for x, y in pairs if y.total.interval[1] < x.total.interval[0]]
        harmed = [y.setting["width"] for x, y in pairs if y.total.interval[0] > x.total.interval[1]]
        lines.append(
            f"c² = {quality:g}: intervals apart, the mixture better at widths "
            f"{_list(helped)}, worse at {_list(harmed)}."
        )
    return lines


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def _descent_notes(config: ConfigDict) -> list[str]:
    """Where the collapse part is largest, and whether that is near the threshold m = n."""
    grid, own = _grid(config), config.widths
    n = own.n_real + own.n_synthetic
    found, near = [], []
    for quality in own.qualities:
        part = np.asarray(theory(_base(config, quality), width=grid).collapse)
        if part.max() > 0:
            near.append(n / NEAR <= grid[part.argmax()] <= n * NEAR)
            found.append(
                f"{part.max():.3f} at m = {grid[part.argmax()]:.0f} and {part[-1]:.3f} at "
                f"m = {grid[-1]:.0f} (c² = {quality:g})"
            )
    if not found:
        return []
    where = "is largest" if all(near) else "is NOT always largest"
    return [
        f"By Theorem 2 the collapse part {where} near the threshold m = n = {n} (within a factor "
        f"of {NEAR:g}, among the widths drawn): {'; '.join(found)}."
    ]
