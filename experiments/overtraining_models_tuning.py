"""Fine-tuning of every checkpoint of the over-training study, over rates and cures."""

import dataclasses
import hashlib
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from overtraining_models_curves import Curve, by_seed_and_budget
from overtraining_models_noise import heldout
from overtraining_models_training import SERIES, Trained, digest_of, packed

from lmnoise import points
from lmnoise.data.stream import Windows
from lmnoise.data.tasks import Task, open_task
from lmnoise.errors import UserError
from lmnoise.evaluation.choose import Choice, choose_checkpoint
from lmnoise.evaluation.finetune import FineTuner, PreTraining
from lmnoise.evaluation.outcomes import Outcome, Setting, tuned
from lmnoise.evaluation.scores import Scores
from lmnoise.models.transformer import LanguageModel

# What each cure is called; its name is the field of `Setting` and the key of `config.tune.cures`.
CURES = {
    "decay_to_start": "decay to the start",
    "sam_radius": "SAM",
    "replay": "replay",
}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What fine-tuning on one task did to all models.

    Attributes:
      task: its name.
      largest_class: share of the test rows that are of the largest class; nan for text.
      curves: every rate and the tuned one, without and with cures, for both series.
      choice: of a budget; None where some model diverged under all settings.
    """

    task: str
    largest_class: float
    curves: Sequence[Curve]
    choice: Choice | None


def check(config: ConfigDict) -> None:
    """Refuses grids that could not be drawn."""
    section = config.tune
    if not section.tasks or len(set(section.tasks)) < len(section.tasks):
        raise UserError(f"config.tune.tasks must hold tasks, each once, not {section.tasks}")
    rising = all(a < b for a, b in itertools.pairwise(section.rates))
    if len(section.rates) < 2 or not rising:
        raise UserError(f"config.tune.rates must hold at least 2 rates that rise: {section.rates}")
    for name, strengths in section.cures.items():
        if name not in CURES or not all(strength > 0 for strength in strengths):
            raise UserError(
                f"config.tune.cures.{name} must be one of {', '.join(CURES)} with strengths above "
                f"0, not {strengths}"
            )


def settings(config: ConfigDict) -> list[Setting]:
    """Every rate without a cure, and with every strength of every cure."""
    section = config.tune
    cures: list[dict[str, float]] = [{}]
    for name, strengths in section.cures.items():
        cures += [{name: strength} for strength in strengths]
    return [
        Setting(learning_rate=rate, epochs=section.epochs, seed=section.seed, **cure)
        for cure in cures
        for rate in section.rates
    ]


def cure_of(setting: Setting) -> str:
    """The name of a setting's cure in `CURES`, or "plain"."""
    return next((name for name in CURES if getattr(setting, name)), "plain")


def open_tasks(config: ConfigDict) -> list[Task]:
    """All tasks, downloaded and tokenised if need be.

    Raises:
      UserError: an unknown task, or one that the tokenizer or the window does not fit.
    """
    section, data = config.tune, config.data
    return [
        open_task(
            name,
            tokenizer=data.tokenizer,
            data_dir=data.data_dir,
            length=data.length,
            train_rows=section.train_rows,
            heldout_rows=section.heldout_rows,
        )
        for name in section.tasks
    ]


def measure(
    task: Task,
    trained: Sequence[Trained],
    model: LanguageModel,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
) -> Tuned:
    """Fine-tunes all models on a task; what was compiled for the first serves every other.

    Raises:
      Stopped: a signal came; what was reached is saved.
    """
    name = task.name
    replayed, (heldout_text, source) = packed(config, "train"), heldout(config)
    identity = {
        "what": "tune",
        "task": name,
        "section": {k: v for k, v in config.tune.to_dict().items() if k != "tasks"},
        "perturb_windows": config.perturb.windows,
        "text": _digest(task),
        "pretraining": [digest_of(replayed), digest_of(heldout_text)],
        "length": config.data.length,
    }
    pretraining = PreTraining(Windows(replayed, config.data.length), source)
    tuner: list[FineTuner] = []
    of_print = {t.checkpoint.fingerprint: t.checkpoint for t in trained}

    def work(setting):
        if not tuner:
            tuner.append(_tuner(task, model, config, mesh, pretraining))
        folder = workdir / "tuning"
        found = tuner[0].run(
            of_print[setting["checkpoint"]].params, workdir=folder, record=setting, title=name
        )
        shutil.rmtree(folder, ignore_errors=True)
        return {"outcomes": [_pooled(outcome).to_json() for outcome in found]}

    of_all = [identity | {"checkpoint": t.checkpoint.fingerprint} for t in trained]
    results = points.compute(workdir, of_all, work, f"fine-tuning on {name}")
    outcomes = [[Outcome.from_json(o) for o in result["outcomes"]] for result in results]
    curves = [
        curve for series in SERIES for curve in _curves(name, series, trained, outcomes, config)
    ]
    return Tuned(name, _largest_class(task), curves, _choice(trained, outcomes))


def _largest_class(task: Task) -> float:
    if task.kind == "text":
        return math.nan
    return float(np.bincount(task.test.label).max() / len(task.test.label))


def _digest(task: Task) -> str:
    """SHA-256 over the rows of a task."""
    digest = hashlib.sha256()
    for rows in (task.train, task.validation, task.test):
        digest.update(np.ascontiguousarray(rows.tokens).data)
        digest.update(np.ascontiguousarray(rows.weights).data)
    return digest.hexdigest()


def _tuner(
    task: Task, model: LanguageModel, config: ConfigDict, mesh: Mesh, pretraining: PreTraining
) -> FineTuner:
    return FineTuner(
        model,
        task,
        settings(config),
        mesh=mesh,
        batch_size=config.tune.batch_size,
        pretraining=pretraining,
    )


def _pooled(outcome: Outcome) -> Outcome:
    """The outcome with all documents as one: intervals are over seeds of pre-training."""

    def pool(scores: Scores) -> Scores:
        total = float(np.sum(scores.counts))
        right = None if scores.right is None else [float(np.sum(scores.right))]
        return Scores([float(np.sum(scores.losses))], [total], right)

    return dataclasses.replace(
        outcome,
        before={text: pool(scores) for text, scores in outcome.before.items()},
        after={text: pool(scores) for text, scores in outcome.after.items()},
    )


def _curves(
    task: str,
    series: str,
    trained: Sequence[Trained],
    outcomes: Sequence[Sequence[Outcome]],
    config: ConfigDict,
) -> list[Curve]:
    """Every fixed rate without a cure, the tuned rate without and with each cure, then every
    fixed rate with every strength of the cures."""

    def curve(name: str, strength: float, cure: str, pick: Any) -> Curve:
        values = [_numbers(pick(of_model)) for of_model in outcomes]
        tokens_B, columns = by_seed_and_budget(trained, series, values)
        before_RB, after_RB, task_RB, accuracy_RB, rate_RB = columns
        return Curve(
            series, task, name, strength, tokens_B, before_RB, after_RB, task_RB, cure,
            accuracy_RB, rate_RB,
        )  # fmt: skip

    fixed = [
        curve(_named(s), s.learning_rate, cure_of(s), lambda of, i=i: of[i])
        for i, s in enumerate(settings(config))
    ]
    best = [
        curve(
            f"tuned, {CURES[cure]}" if cure in CURES else "tuned rate",
            math.nan,
            cure,
            lambda of, cure=cure: tuned_with(of, cure),
        )
        for cure in ("plain", *(name for name, strengths in config.tune.cures.items() if strengths))
    ]
    count = len(config.tune.rates)
    return fixed[:count] + best + fixed[count:]


def _named(setting: Setting) -> str:
    name, cure = f"rate {setting.learning_rate:g}", cure_of(setting)
    return name if cure == "plain" else f"{name}, {CURES[cure]} {getattr(setting, cure):g}"


def tuned_with(outcomes: Sequence[Outcome], cure: str) -> Outcome | None:
    """The outcome of one cure that is best on validation rows; None if all diverged."""
    own = [o for o in outcomes if cure_of(o.setting) == cure and not o.diverged]
    return tuned(own) if own else None


def _numbers(outcome: Outcome | None) -> list[float]:
    """Losses on pre-training text before and after, loss and accuracy on the task's test, rate."""
    if outcome is None:
        return [math.nan] * 5
    before, after = outcome.before["pretraining"], outcome.after
    return [
        before.loss.mean,
        after["pretraining"].loss.mean,
        after["test"].loss.mean,
        after["test"].accuracy.mean,
        outcome.setting.learning_rate,
    ]


def _choice(trained: Sequence[Trained], outcomes: Sequence[Sequence[Outcome]]) -> Choice | None:
    """Which budget to fine-tune, of all settings; None where some model only diverged.

    Budgets are paired by the seed of pre-training, which takes the place of the setting's own.
    """
    series: dict[str, list[Outcome]] = {}
    for t, of_model in zip(trained, outcomes, strict=True):
        if t.series != "budgets":
            continue
        if all(outcome.diverged for outcome in of_model):
            return None
        series.setdefault(f"{t.tokens:,.0f} tokens", []).extend(
            dataclasses.replace(o, setting=dataclasses.replace(o.setting, seed=t.seed))
            for o in of_model
        )
    return choose_checkpoint(series)
