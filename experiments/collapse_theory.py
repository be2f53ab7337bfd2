"""Study: strong model collapse in theory, simulation and training (arXiv 2410.04840).

    python experiments/collapse_theory.py --config=configs/collapse_theory.py:demo \
        --workdir=runs/collapse-demo

Simulates every point of the figures, trains some of them, and writes a report with the theory
beside them. The same command goes on after a stop or a kill; what is there is not done again.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import collapse_rounds
import collapse_scaling
import collapse_weights
import collapse_width
import numpy as np
import study
from collapse_chapter import Chapter, agreement
from collapse_points import split
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.report import COLOURS, Figure, Table, provenance, savefig, write_csv, write_report

SECTIONS = ("seed", "repetitions", "scaling", "widths", "weights", "rounds", "fit")

_SIZE, _LEVEL, _INSIDE = (1, 1e9), (0, 1e9), (1e-9, 1)
# What each number may be: at least the first, below the second.
RANGES = {
    "seed": (0, 2**31),
    "repetitions": (2, 1e9),
    "scaling.shares": (0, 1),
    "scaling.counts": (2, 1e9),
    "scaling.longest": (2, 1e12),
    "scaling.dimension": _SIZE,
    "scaling.power.dimension": _SIZE,
    "scaling.power.penalty": (1e-9, 1e9),
    "widths.dimension": _SIZE,
    "widths.widths": _SIZE,
    "widths.qualities": _LEVEL,
    "widths.n_real": _SIZE,
    "widths.n_synthetic": _LEVEL,
    "weights.dimension": _SIZE,
    "weights.weights": _INSIDE,
    "weights.qualities": _LEVEL,
    "weights.shares": (0, 1),
    "rounds.shares": (0, 1),
    "rounds.dimension": _SIZE,
    "rounds.start": _LEVEL,
    "rounds.noise": _LEVEL,
    "rounds.rounds": _SIZE,
    "rounds.relabelled_rounds": _SIZE,
    "rounds.real_shares": _INSIDE,
    "fit.counts": (2, 1e9),
    "fit.widths": _SIZE,
    "fit.steps": _SIZE,
    "fit.adam_rate": (1e-9, 1e9),
    "fit.repetitions": (2, 1e9),
    **{f"{name}.penalty": (1e-9, 1e9) for name in ("scaling", "widths", "weights")},
    **{f"{name}.noise": _LEVEL for name in ("scaling", "widths", "weights")},
    "scaling.quality": _LEVEL,
}
# Axes with a colour for each value.
COLOURED = ("scaling.shares", "widths.qualities", "weights.qualities", "rounds.shares")


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Computes what is missing under `workdir`, writes the report into `folder`, returns its path.

    Raises:
      UserError: a number of the config that the study cannot use.
    """
    _check(config)
    scaling = collapse_scaling.chapter(config, workdir)
    widths = collapse_width.chapters(config, workdir)
    weights, best = collapse_weights.chapter(config, workdir)
    rounds = collapse_rounds.chapter(config, workdir)
    chapters = [scaling, *widths, weights, rounds]
    blocks: list[Any] = [_summary(config, chapters), agreement(chapters), _training(chapters)]
    for chapter in chapters:
        savefig(chapter.drawing, folder / f"{chapter.name}.png")
        write_csv(folder / f"{chapter.name}.csv", chapter.table)
        blocks += [f"## {chapter.title}", Figure(folder / f"{chapter.name}.png", chapter.caption)]
        blocks += [best] if chapter is weights else []
        blocks += chapter.notes
    blocks.append(
        f"## Run it\n\n```bash\n{command}\n```\n\nEvery number of a figure is in the CSV file of "
        "its name beside this report, with its setting."
    )
    origin = provenance(config, [config.seed])
    write_report(folder, "Strong model collapse: theory and simulation", blocks, origin, config)
    return folder / "report.md"


def _check(config: ConfigDict) -> None:
    """Refuses what would fail, or could not be drawn, after minutes of work."""
    for key, (least, below) in RANGES.items():
        value = functools.reduce(lambda tree, name: tree[name], key.split("."), config)
        values = value if isinstance(value, tuple) else (value,)
        if not values or (len(values) > len(COLOURS) and key in COLOURED):
            raise UserError(f"config.{key} has {len(values)} values: give 1 to {len(COLOURS)}")
        if wrong := [v for v in values if not least <= v < below]:
            raise UserError(f"config.{key}: {wrong[0]} must be at least {least:g}, below {below:g}")
    for own in (config.weights, config.rounds):
        if wrong := [share for share in own.shares if 0 in split(own.n, share)]:
            name = "weights" if own is config.weights else "rounds"
            raise UserError(f"config.{name}.shares: {wrong[0]} of {own.n} samples leaves none")
    if config.fit.share not in config.scaling.shares:
        raise UserError(
            f"config.fit.share {config.fit.share} must be one of config.scaling.shares, "
            f"{config.scaling.shares}: its points are drawn on that line"
        )
    if config.rounds.n <= config.rounds.dimension:
        raise UserError(
            f"config.rounds.n {config.rounds.n} must be above config.rounds.dimension "
            f"{config.rounds.dimension}: the fits have no penalty"
        )


def _summary(config: ConfigDict, chapters: Sequence[Chapter]) -> str:
    largest = max(abs(point.z()) for chapter in chapters for point in chapter.points)
    total = sum(len(chapter.points) for chapter in chapters)
    outside = sum(abs(point.z()) > 4 for chapter in chapters for point in chapter.points)
    error = np.median(
        [p.total.standard_error / p.theory["total"] for c in chapters for p in c.points]
    )
    return (
        "Regression on n1 real and n2 synthetic samples whose labels come from a shifted truth; "
        "the error is the expected squared error on real data without label noise, and that of "
        f"predicting 0 is 1. {total} simulated errors beside the closed forms: at "
        f"{config.repetitions} repetitions {outside} lie more than 4 standard errors from the "
        f"theory, the farthest {largest:.1f}. A standard error is {error:.1%} of the theory in the "
        "median, and differences below a few of them are not seen at this number of repetitions. "
        "Where and why is in the table and under the figures."
    )


def _training(chapters: Sequence[Chapter]) -> Table:
    """What the optimiser alone changes, on the same data as the exact fits."""
    rows = [
        [
            point.method,
            f"{s['n_real']} + {s['n_synthetic']}",
            f"{s['dimension']}",
            f"{s['width'] or 'none'}",
            point.theory["total"],
            point.total,
            f"{point.excess.mean:+.1e} ± {point.excess.half_width:.0e}",
            f"{point.excess.mean / (point.total.mean - point.excess.mean):+.3%}",
        ]
        for chapter in chapters
        for point in chapter.fits
        for s in [point.setting]
    ]
    header = (
        "trained with",
        "samples, real + synthetic",
        "d",
        "width",
        "theory",
        "error after training",
        "excess over the exact fit",
        "relative",
    )
    return Table(
        header,
        rows,
        "The same models trained by the project's own step, full batch, on data that are also "
        "solved exactly; mean ± half width of the 95 % interval over repetitions. A negative "
        "excess is early stopping: directions of small curvature have not been fitted yet.",
    )


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "collapse_theory", run, SECTIONS))
