"""What fine-tuning gains and what it forgets, by method and learning rate, along a series.

The outcomes of single settings stay in `<workdir>/outcomes`: a grid that grows by a rate trains
that rate alone. After changing the code remove that folder with `points.jsonl`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lmnoise.analyze import finetune_report
from lmnoise.analyze.importance import digest_of
from lmnoise.analyze.series import Entry
from lmnoise.analyze.subject import Subject
from lmnoise.data.stream import Windows
from lmnoise.data.tasks import Task, open_task
from lmnoise.evaluation.finetune import FineTuner, PreTraining
from lmnoise.evaluation.outcomes import Outcome, Setting, grid
from lmnoise.report import Figure, Table
from lmnoise.training import mesh as meshes

TITLE = "Fine-tuning: gain and forgetting"

# {task: {method: outcomes}}
type Result = dict[str, dict[str, list[Outcome]]]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The corpora that are scored."""
    return (config.finetune.pretraining,)


def methods(section: ConfigDict) -> dict[str, list[Setting]]:
    """{method: the settings of its grid, for every seed}."""
    return {name: grid(**axes, seed=section.seeds) for name, axes in section.methods.items()}


def measure(subject: Subject, config: ConfigDict) -> Result:
    """Fine-tunes the checkpoint on every task by every method, at every setting of its grid."""
    section, data = config.finetune, config.data
    by_method = methods(section)
    devices = subject.mesh.shape["member"]
    meshes.check_divisible(subject.mesh, members=devices, batch_size=section.batch_size)
    windows = Windows(subject.packed(section.pretraining, "train"), data.length)
    [heldout] = subject.sources
    tasks = _tasks(subject, config)
    settings = [
        {
            "what": "finetune",
            "task": task.name,
            "rows": _digest(task),
            "pretraining": windows.packed.meta["splits"]["train"]["sha256"],
            "batch_size": section.batch_size,
            "schedule": [section.schedule, section.warmup_fraction],
        }
        for task in tasks
    ]
    by_name = {task.name: task for task in tasks}
    grids = list(dict.fromkeys(s for own in by_method.values() for s in own))

    def tuner_of(setting: dict[str, Any]) -> FineTuner:
        # Rows and text are the same for checkpoints of one tokenizer.
        key = (subject.model.config, json.dumps(setting | {"text": subject.identity["text"]}))
        if key not in subject.programs:
            subject.programs[key] = FineTuner(
                subject.model,
                by_name[setting["task"]],
                grids,
                mesh=subject.mesh,
                batch_size=section.batch_size,
                pretraining=PreTraining(windows, heldout),
                schedule=section.schedule,
                warmup_fraction=section.warmup_fraction,
                state_bytes=1e9 * section.state_gigabytes,
                members_at_once=section.members_at_once,
            )
        return subject.programs[key]

    def work(point: dict[str, Any]) -> dict[str, Any]:
        # An outcome is stored by its own setting, whatever the others of the grid are.
        setting = {key: value for key, value in point.items() if key != "grid"}
        record = subject.identity | setting
        folder = subject.workdir / "outcomes" / digest_of(record)
        title = f"{subject.name}: {setting['task']}"
        found = tuner_of(setting).run(subject.params, workdir=folder, record=record, title=title)
        return {"outcomes": [outcome.to_json() for outcome in found]}

    whole = [vars(setting) for setting in grids]
    results = subject.compute([s | {"grid": whole} for s in settings], work, "fine-tuning")
    found = {}
    for task, result in zip(tasks, results, strict=True):
        outcomes = map(Outcome.from_json, result["outcomes"])
        by_setting = {outcome.setting: outcome for outcome in outcomes}
        found[task.name] = {
            name: [by_setting[setting] for setting in own] for name, own in by_method.items()
        }
    return found


def _tasks(subject: Subject, config: ConfigDict) -> list[Task]:
    section, data = config.finetune, config.data
    return [
        open_task(
            spec,
            tokenizer=subject.checkpoint.tokenizer,
            data_dir=data.data_dir,
            length=data.length,
            bos_id=subject.checkpoint.bos_id,
            train_rows=section.train_rows,
            heldout_rows=section.heldout_rows,
        )
        for spec in section.tasks
    ]


def _digest(task: Task) -> str:
    """A SHA-256 of all rows and of the classes' tokens."""
    digest = hashlib.sha256()
    digest.update(task.class_tokens.tobytes())
    for rows in (task.train, task.validation, task.test):
        for array in (rows.tokens, rows.weights, rows.label):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report, a section a task; tables also go into `folder` as CSV."""
    return finetune_report.blocks(series, config, folder)
