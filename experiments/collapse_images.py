"""Study: strong model collapse on images, with theory beside (arXiv 2410.04840).

    python experiments/collapse_images.py --config=configs/collapse_images.py:laptop \
        --workdir=runs/collapse-images

Random features, solved exactly, and trained two-layer networks on images of which a share has
synthetic labels. Results are stored point by point: the same command goes on after a stop or a
kill.
"""

import functools
from pathlib import Path
from typing import Any

import collapse_images_report
import numpy as np
import study
from collapse_images_data import KINDS, pictures
from collapse_images_points import (
    feature_points,
    law_point,
    make,
    network_points,
    teacher_point,
)
from collapse_images_series import AXES, MODELS, Series, series
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.report import COLOURS, provenance, write_report

SECTIONS = ("images", "seeds", "teacher", "reference", "theory", "features", "networks")


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Computes what is missing under `workdir`, writes the report into `folder`, returns its path.

    Raises:
      UserError: a number of the config that the study cannot use, or images that cannot be had.
    """
    _check(config)
    found, teachers = [], {}
    for name in config.images:
        own, teachers[name] = _measure(config, name, workdir)
        found += own
    blocks = [
        *collapse_images_report.blocks(config, found, teachers, folder),
        f"## Run it\n\n```bash\n{command}\n```\n\nEvery number of a figure is in the CSV file of "
        "its name beside this report.",
    ]
    origin = provenance(config, config.seeds)
    title = "Synthetic labels and image models: does the error stop falling?"
    write_report(folder, title, blocks, origin, config)
    return folder / "report.md"


def _measure(config: ConfigDict, name: str, workdir: Path) -> tuple[list[Series], dict[str, Any]]:
    """All series of one set of images, and its weaker networks."""
    weak = teacher_point(config, name, workdir)
    made = make(config, name, weak)
    laws = law_point(made, workdir)
    quality = {"network": float(np.mean(weak["quality"])), "flips": config.quality}
    points = {"features": feature_points, "networks": network_points}
    found = []
    for axis in AXES:
        for model in MODELS:
            results = points[model](made, workdir, axis)
            found += [
                series(config, name, model, axis, kind, results, laws[kind], quality[kind])
                for kind in KINDS
            ]
    return found, weak


def _check(config: ConfigDict) -> None:
    """Refuses what would fail, or could not be drawn, after minutes of work."""
    for key, seeds in (("seeds", config.seeds), ("networks.seeds", config.networks.seeds)):
        if len(set(seeds)) < 2:
            raise UserError(f"config.{key} has no two seeds: intervals need them")
    if missing := set(config.networks.seeds) - set(config.seeds):
        raise UserError(f"config.networks.seeds: {missing.pop()} is not in config.seeds")
    for model, axis in ((m, a) for m in MODELS for a in AXES):
        own, key = config[model][axis], f"config.{model}.{axis}"
        sizes = own.counts if axis == "samples" else own.widths
        if list(sizes) != sorted(set(sizes)) or len(sizes) < (3 if axis == "samples" else 2):
            raise UserError(f"{key}: {sizes} must rise, and be 2 widths or 3 counts at least")
        shares = list(own.shares)
        if shares != sorted(set(shares)) or shares[0] != 0 or not 0.1 <= shares[-1] <= 1:
            raise UserError(f"{key}.shares: {shares} must rise from 0 to between 0.1 and 1")
        if model == "features" and own.penalty <= 0:
            raise UserError(f"{key}.penalty: {own.penalty} must be above 0")
    different = {share for m in MODELS for a in AXES for share in config[m][a].shares}
    if len(different) > len(COLOURS):
        raise UserError(
            f"config.features and config.networks have {len(different)} different shares: give "
            f"{len(COLOURS)} at most"
        )
    for name in config.images:
        own = pictures(name, config.data_dir, config.pool)
        if not 0 <= config.quality <= 1 - 1 / own.classes:
            raise UserError(
                f"config.quality: {config.quality} must be 0 to {1 - 1 / own.classes:g}, what "
                f"labels drawn at random have"
            )
        if len(own.train_N) - config.teacher.examples < max(
            *config.features.samples.counts, *config.networks.samples.counts
        ):
            raise UserError(
                f"{name} has {len(own.train_N)} training images: lower the largest counts or "
                "config.teacher.examples"
            )


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "collapse_images", run, SECTIONS))
