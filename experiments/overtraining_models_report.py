"""Report of the over-training study: the verdict, then figures, tables and recommendations."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import overtraining_models_figures as figures
import overtraining_models_linear as linear
import overtraining_models_verdict as verdict
from ml_collections import ConfigDict
from overtraining_models_curves import Curve
from overtraining_models_training import Trained
from overtraining_models_tuning import Tuned

from lmnoise.report import Figure, Table, provenance, write_csv, write_report


def write(
    folder: Path,
    trained: Sequence[Trained],
    noise: Sequence[Curve],
    tuned: Sequence[Tuned],
    config: ConfigDict,
    command: str,
) -> Path:
    """Writes the report with its figures and tables; the path of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Any] = verdict.blocks(trained, noise, tuned, config)
    blocks += _noise(noise, config, folder)
    for number, task in enumerate(tuned):
        blocks += _task(task, config, folder, f"task-{number + 1}")
    blocks += linear.blocks(config, folder)
    blocks += [
        "## Which budget to fine-tune",
        "Each budget at its own tuned setting, cures included, by test loss on the task alone; "
        "paired over seeds of pre-training.",
        *(_choice(task) for task in tuned),
    ]
    write_csv(folder / "curves.csv", _all([*noise, *(c for task in tuned for c in task.curves)]))
    blocks.append(
        f"## Run it\n\n```bash\n{command}\n```\n\n`curves.csv` has every number of the figures, "
        "and `linear.csv` those of the linear network."
    )
    title = "Over-training: when longer pre-training makes a model harder to change"
    write_report(folder, title, blocks, provenance(config, config.members.seed), config)
    return folder / "report.md"


def _noise(curves: Sequence[Curve], config: ConfigDict, folder: Path) -> list[str | Figure]:
    section = config.perturb
    unit = {
        "init_std": "each tensor's own standard deviation at initialisation (norms stay as they "
        "are)",
        "weight_rms": "the root mean square of each tensor",
        "absolute": "1",
    }[section.unit]
    figures.sensitivity(curves, folder / "sensitivity.png")
    figures.noise(curves, folder / "noise.png")
    return [
        "## Gaussian noise on the weights",
        f"Noise of standard deviation γ in units of {unit}; the same {len(section.seeds)} draws "
        "for every checkpoint, averaged before anything else.",
        Figure(
            folder / "sensitivity.png",
            f"Progressive sensitivity: rise of the loss through noise. {figures.BARS}",
        ),
        Figure(folder / "noise.png", f"Loss after noise. {figures.STARS}"),
    ]


def _task(task: Tuned, config: ConfigDict, folder: Path, name: str) -> list[str | Figure]:
    section = config.tune
    figures.rates(task.curves, folder / f"{name}-rates.png")
    figures.cures(task.curves, folder / f"{name}-cures.png")
    cures = "; ".join(
        f"{cure} in {', '.join(f'{s:g}' for s in strengths)}"
        for cure, strengths in section.cures.items()
        if strengths
    )
    classes = ""
    if not math.isnan(task.largest_class):
        classes = (
            f" Of the test rows {task.largest_class:.1%} are of the largest class, which is the "
            "accuracy of a model that has learned no more than that."
        )
    return [
        f"## Fine-tuning on `{task.task}`",
        f"{section.train_rows} rows of {config.data.length} tokens, {section.epochs:g} epochs, "
        f"batches of {section.batch_size}, AdamW with a cosine schedule to a tenth; the same rows "
        "in the same order for every checkpoint. The tuned rate is the one of the lowest loss on "
        f"validation rows, chosen for each checkpoint. Cures: {cures}; each is tuned over its "
        f"strengths and all rates.{classes}",
        Figure(
            folder / f"{name}-rates.png",
            f"Fixed rates and the tuned rate on {task.task}. {figures.STARS}",
        ),
        Figure(
            folder / f"{name}-cures.png",
            f"Tuned rate without and with cures on {task.task}. {figures.STARS}",
        ),
    ]


def _choice(task: Tuned) -> str:
    if task.choice is None:
        return f"`{task.task}`: for some checkpoint all settings diverged, so none is recommended."
    return f"`{task.task}`: {task.choice.sentence()}"


def _all(curves: Sequence[Curve]) -> Table:
    """Every number that is drawn, and the slopes."""
    rows = []
    for c in curves:
        nothing = [""] * len(c.tokens_B)
        columns = zip(
            c.tokens_B,
            c.estimates(c.before_RB),
            c.estimates(c.after_RB),
            c.estimates(c.after_RB - c.before_RB),
            nothing if c.task_RB is None else c.estimates(c.task_RB),
            nothing if c.accuracy_RB is None else c.estimates(c.accuracy_RB),
            strict=True,
        )
        rows += [(c.series, c.kind, c.name, *column) for column in columns]
    header = ("series", "modification", "strength", "tokens", "loss before", "loss after",
              "sensitivity", "task test loss", "task accuracy")  # fmt: skip
    return Table(header, rows)
