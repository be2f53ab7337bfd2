"""Error against the weight that synthetic samples are given: does weighting cure collapse?"""

from pathlib import Path

import numpy as np
from collapse_chapter import BARS, Chapter, bars, log_scale, table
from collapse_points import Setting, setting, simulated_groups, split, theory
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lmnoise.report import COLOURS, Table, style
from lmnoise.theory import collapse

BOUNDS = (2e-3, 0.998)


def chapter(config: ConfigDict, workdir: Path) -> tuple[Chapter, Table]:
    """A panel for every share of synthetic samples; and the best weights."""
    own = config.weights
    points = simulated_groups(
        workdir,
        {
            (share, quality): [_base(config, share, quality) | dict(weight=a) for a in own.weights]
            for share in own.shares
            for quality in own.qualities
        },
        "errors against weight",
    )
    best = {key: _best(_base(config, *key)) for key in points}
    every = [point for several in points.values() for point in several]
    found = Chapter(
        name="weights",
        title="Weighting the synthetic part",
        drawing=_drawing(config, points, best),
        caption=(
            f"Test error against the weight of the synthetic part, n = {own.n}, "
            f"d = {own.dimension}, label noise {own.noise:g}, penalty {own.penalty:g}; real "
            "samples weigh (1-a)/p1, synthetic ones a/p2. Lines: Theorem 1 with weights. Stars: "
            f"the best weight. Circles: simulated, {config.repetitions} repetitions; {BARS}."
        ),
        points=every,
        table=table(every),
    )
    return found, _best_table(config, best)


def _base(config: ConfigDict, share: float, quality: float) -> Setting:
    own = config.weights
    n_real, n_synthetic = split(own.n, share)
    return setting(
        dimension=own.dimension,
        quality=quality,
        noise=own.noise,
        penalty=own.penalty,
        n_real=n_real,
        n_synthetic=n_synthetic,
        repetitions=config.repetitions,
        seed=config.seed,
    )


def _best(base: Setting) -> collapse.Optimum:
    return collapse.optimal(lambda weight: theory(base, weight=weight).total, {"weight": BOUNDS})


def _drawing(config: ConfigDict, points: dict, best: dict) -> Figure:
    own = config.weights
    with style():
        drawing = Figure(figsize=(9.6, 4.2))
        axes = drawing.subplots(1, len(own.shares), sharey=True, squeeze=False)[0]
        for axis, share in zip(axes, own.shares, strict=True):
            for colour, quality in zip(COLOURS, own.qualities, strict=False):
                _curve(axis, config, share, quality, colour)
                chosen = points[share, quality]
                bars(axis, own.weights, chosen, color=colour)
                optimum = best[share, quality]
                mark = dict(color=colour, markersize=13, markeredgecolor="black", zorder=6)
                axis.plot([optimum.values["weight"]], [optimum.total], "*", **mark)
            real = _real_only(_base(config, share, 0.0))
            axis.axhline(real, color="black", linestyle="--", linewidth=1, label="real part alone")
            axis.axvline(
                share, color="0.6", linestyle=":", linewidth=1, label="$a = p_2$: unweighted"
            )
            log_scale(axis, "y")
            axis.set_xlabel("weight a on the synthetic part")
            axis.set_title(f"$p_2$ = {share:g}")
        axes[0].plot(
            [], [], "*", color="white", markersize=11, markeredgecolor="black", label="best"
        )
        axes[0].set_ylabel("test error (in units of the null model's)")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return drawing


def _curve(axis: Axes, config: ConfigDict, share: float, quality: float, colour: str) -> None:
    grid = np.linspace(BOUNDS[0], 0.97, 300)
    line = theory(_base(config, share, quality), weight=grid).total
    axis.plot(grid, line, color=colour, label=f"$c^2$ = {quality:g}")


def _real_only(base: Setting) -> float:
    return float(theory(base | dict(n_synthetic=0)).total)


def _best_table(config: ConfigDict, best: dict) -> Table:
    rows = []
    for (share, quality), optimum in best.items():
        base = _base(config, share, quality)
        first_order = collapse.best_fraction(
            base["dimension"] / config.weights.n,
            synthetic_share=share,
            quality=quality,
            noise_real=base["noise"],
            noise_synthetic=base["noise"],
        )
        alone, equal = _real_only(base), float(theory(base).total)
        rows.append(
            [
                f"{share:g}",
                f"{quality:g}",
                f"{optimum.values['weight']:.3f}",
                f"{first_order:.3f}",
                f"{optimum.total:.4f}",
                f"{equal:.4f}",
                f"{alone:.4f}",
                f"{optimum.total / alone - 1:+.1%}",
            ]
        )
    header = (
        "share p2",
        "c²",
        "best weight",
        "its first order in d/n",
        "error there",
        "unweighted",
        "real part alone",
        "best over real alone",
    )
    return Table(header, rows, "By Theorem 1 with weights.")
