"""Study: strong model collapse in theory, simulation and training (arXiv 2410.04840).

    python experiments/collapse_theory.py --config=configs/collapse_theory.py:demo \
        --workdir=runs/collapse-demo

Simulates every point of the figures, trains some of them, and writes a report with the theory
beside them. The same command goes on after a stop or a kill; what is there is not done again.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import collapse_rounds
import collapse_scaling
import collapse_weights
import collapse_width
from absl import flags
from collapse_chapter import Chapter, agreement
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.report import Figure, Table, provenance, savefig, write_csv, write_report

SECTIONS = ("seed", "repetitions", "scaling", "widths", "weights", "rounds", "fit")


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
    """Refuses what would fail after minutes of work."""
    for key, least in (("repetitions", 2), ("fit.repetitions", 2), ("fit.steps", 1), ("seed", 0)):
        value = config
        for name in key.split("."):
            value = value[name]
        if value < least:
            raise UserError(f"config.{key} is {value}: it must be at least {least}")
    for section, key in (("scaling", "shares"), ("weights", "shares"), ("rounds", "shares")):
        low, high = 0 if section == "scaling" else 1e-9, 1
        if wrong := [share for share in config[section][key] if not low <= share < high]:
            raise UserError(f"config.{section}.{key}: {wrong[0]} is not a share below 1")
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
    return (
        "Regression on n1 real and n2 synthetic samples whose labels come from a shifted truth; "
        "the error is the expected squared error on real data without label noise, and that of "
        f"predicting 0 is 1. {total} simulated errors, {config.repetitions} repetitions each, "
        f"beside the closed forms: {outside} lie more than 4 standard errors from the theory, the "
        f"farthest {largest:.1f}. Where and why is in the table and under the figures."
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
            point.excess,
            f"{point.excess.mean / (point.total.mean - point.excess.mean):+.2%}",
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


def main() -> int:
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the simulated points", required=True)
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/report")
    values = configs.parse(sections=SECTIONS)
    workdir = Path(values.workdir)
    command = f"python experiments/collapse_theory.py {shlex.join(sys.argv[1:])}"
    report = run(values.config, workdir, Path(values.report or workdir / "report"), command)
    print(f"report: {report} and {report.with_suffix('.html')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
