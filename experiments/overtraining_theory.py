"""Study: over-training of a two-layer linear network, theory and training (arXiv 2503.19206).

    python experiments/overtraining_theory.py --config=configs/overtraining_theory.py:demo \\
        --workdir=runs/overtraining-demo

Trains the networks, perturbs or fine-tunes them, and writes a report with the theory beside them.
The same command goes on after a stop or a kill; what is there is not done again.
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import overtraining_cure
import overtraining_pretraining
import overtraining_second_task
import study
from ml_collections import ConfigDict
from overtraining_chapter import Chapter, agreement, deviations

from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.report import Figure, provenance, savefig, write_csv, write_report

SECTIONS = ("seed", "draws", "task", "pretraining", "cure", "second")
NOT_REPRODUCED = """Not reproduced: any number of the paper, which are of language models; its
noise, whose size follows the initialisation of each tensor (here it is equal in all weights); runs
that are each annealed to their own budget (here checkpoints of one run with a constant step); its
own linear setting of fine-tuning. The turning points, the soft threshold and the decay in closed
form are derived here. How much the perturbed loss rises depends on the modes below 2 g² d, which
are better never learned (the others are learned a little too far, past sigma - g² d); that
fine-tuning harms the first task needs a second task that differs in what is learned late. Both are
chosen here.
"""


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Computes what is missing under `workdir`, writes the report into `folder`, returns its path.

    Raises:
      UserError: a number of the config that the study cannot use.
    """
    _check(config)
    trained = overtraining_pretraining.networks(config, workdir)
    finest = trained[min(trained)]
    chapters = [
        overtraining_pretraining.modes_chapter(config, trained),
        overtraining_pretraining.loss_chapter(config, workdir, finest),
        overtraining_cure.chapter(config, workdir),
        *overtraining_second_task.chapters(config, workdir, finest),
    ]
    blocks: list[Any] = [_summary(config, chapters), agreement(chapters), deviations(chapters)]
    for chapter in chapters:
        savefig(chapter.drawing, folder / f"{chapter.name}.png")
        write_csv(folder / f"{chapter.name}.csv", chapter.table)
        blocks += [f"## {chapter.title}", Figure(folder / f"{chapter.name}.png", chapter.caption)]
        blocks += chapter.notes
    blocks.append(_paper(chapters))
    blocks.append(
        f"## Run it\n\n```bash\n{command}\n```\n\nEvery number of a figure's points is in the CSV "
        "file of its name beside this report."
    )
    origin = provenance(config, [config.seed])
    write_report(folder, "Over-training: theory and training", blocks, origin, config)
    return folder / "report.md"


def _check(config: ConfigDict) -> None:
    """Refuses what would fail after minutes of work."""
    own = config.pretraining
    for name, value, least in (
        ("draws", config.draws, 2),
        ("seed", config.seed, 0),
        ("task.dimension", config.task.dimension, 1),
        ("pretraining.checkpoints", own.checkpoints, 2),
        ("second.shared", config.second.shared, 0),
    ):
        if value < least:
            raise UserError(f"config.{name} is {value}: it must be at least {least}")
    for name, scales in (("pretraining", own.scales), ("cure", config.cure.scales)):
        if not all(scale > 0 for scale in scales) or len(set(scales)) < len(scales):
            raise UserError(f"config.{name}.scales {scales} must be above 0, each once")
    if not 0 < own.first < own.last:
        raise UserError(
            f"config.pretraining.first {own.first} must lie between 0 and config.pretraining.last "
            f"{own.last}"
        )
    smallest = config.task.largest * config.task.dimension**-config.task.decay
    if not 0 < config.task.start < smallest:
        raise UserError(
            f"config.task.start {config.task.start} must lie between 0 and the smallest singular "
            f"value, {smallest:.3g}: every mode is to be learned"
        )
    _check_second(config)
    _check_steps(config)
    _check_times(config)


def _check_second(config: ConfigDict) -> None:
    """A second task that differs from the first, and strengths of decay."""
    own = config.second
    if own.shared >= config.task.dimension:
        raise UserError(
            f"config.second.shared {own.shared} must be below config.task.dimension "
            f"{config.task.dimension}: the second task is to differ"
        )
    if not own.factor > 0 or own.factor == 1:
        raise UserError(
            f"config.second.factor {own.factor} must be above 0 and not 1: the second task is to "
            "differ"
        )
    distinct = len(set(own.decays)) == len(own.decays) > 0
    if not distinct or not all(0 <= decay < math.inf for decay in own.decays):
        raise UserError(f"config.second.decays {own.decays} must be 0 or above, each once")


def _check_steps(config: ConfigDict) -> None:
    """Step sizes at which training converges."""
    own, second, largest = config.pretraining, config.second, config.task.largest
    cured = max(config.cure.scales, default=0) ** 2 * config.task.dimension
    tuned = largest * max(1.0, second.factor)
    # Curvature is up to twice the largest singular value, plus the weight decay; a step diverges
    # from two over that.
    for name, rate, curvature in (
        ("pretraining.rate", own.rate, 2 * largest),
        *(("pretraining.coarser", rate, 2 * largest) for rate in own.coarser),
        ("cure.rate", config.cure.rate, 2 * largest + cured),
        ("second.rate", second.rate, 2 * tuned + max(second.decays)),
    ):
        if not 0 < rate < 2 / curvature:
            raise UserError(
                f"config.{name} {rate} must lie between 0 and {2 / curvature:.3g}, beyond which "
                "training may diverge"
            )


def _check_times(config: ConfigDict) -> None:
    """Step sizes that divide each other and the times."""
    own = config.pretraining
    if not own.coarser or any(rate <= own.rate or rate % own.rate for rate in own.coarser):
        raise UserError(
            f"config.pretraining.coarser {own.coarser} must be multiples of "
            f"config.pretraining.rate {own.rate}: all step sizes are compared at the same times"
        )
    for name, times, rate in (
        ("cure.last", (config.cure.last,), config.cure.rate),
        ("second.lengths", config.second.lengths, config.second.rate),
        ("second.frontier_lengths", config.second.frontier_lengths, config.second.rate),
    ):
        rising = all(early < late for early, late in pairwise((0.0, *times)))
        if not rising or any(time % rate for time in times):
            raise UserError(f"config.{name} must rise from above 0 in multiples of the step {rate}")


def _summary(config: ConfigDict, chapters: Sequence[Chapter]) -> str:
    own = config.task
    found = [point for chapter in chapters for point in chapter.points]
    inside = sum(abs(point.z) <= 4 for point in found)
    return (
        f"A two-layer linear network W1 W2 x with factors {own.dimension} x {own.dimension} learns "
        f"a matrix with singular values {own.largest:g} i^-{own.decay:g}, from the strength "
        f"{own.start:g} in every mode, by the project's own train step on the whole population. "
        "Then its weights get Gaussian noise, or it is fine-tuned on a second task. "
        f"{len(found)} perturbed networks, {config.draws} draws each, are compared with the closed "
        f"forms: {inside} lie within 4 standard errors of the lines. What has no randomness is "
        "compared by its largest deviation."
    )


def _paper(chapters: Sequence[Chapter]) -> str:
    """The paper's claims, sorted by whether the numbers of this run show them."""
    claims = [claim for chapter in chapters for claim in chapter.claims]
    lines = ["## What this shows of the paper, and what not"]
    for title, holds in (
        ("Reproduced, in the model in which it can be computed:", True),
        ("NOT seen with these settings:", False),
    ):
        if texts := [f"- {claim.text}" for claim in claims if claim.holds is holds]:
            lines.append(f"{title}\n\n{';\n'.join(texts)}.")
    return "\n\n".join([*lines, NOT_REPRODUCED])


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "overtraining_theory", run, SECTIONS))
