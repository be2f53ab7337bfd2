"""Fine-tuning over a grid of settings: what a task gains, and what pre-training text loses.

All settings of a grid train as populations of a few programs, compiled once and used for every
start, so that a series of checkpoints or several starts cost no further compilation. Settings of
one seed see the same rows in the same order, and the start is scored on the same text as what
comes of it: all differences are paired.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmnoise import tree
from lmnoise.data.stream import Windows
from lmnoise.data.tasks import Task
from lmnoise.errors import Stopped
from lmnoise.evaluation.finetune_program import (
    Batches,
    Program,
    Replay,
    as_given,
    trained_shapes,
)
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.outcomes import Outcome, Setting
from lmnoise.evaluation.scores import Examination
from lmnoise.models.transformer import LanguageModel
from lmnoise.training import lora
from lmnoise.training import mesh as meshes
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.processes import StopSignals


class PreTraining(NamedTuple):
    """Text that the start was trained on: windows to replay, and held-out text for forgetting."""

    windows: Windows
    heldout: Source


class FineTuner:
    """Fine-tunes starts of one shape over a grid of settings.

    Args:
      model: whose parameters start.
      task: what to learn.
      settings: the grid; equal ones are an error.
      mesh: devices.
      batch_size: rows a step; more than a task has are taken from several epochs.
      pretraining: needed for `replay` and for forgetting.
      masks: those that `Setting.frozen` names, bool arrays like the parameters.
      schedule, warmup_fraction: see `OptimizerConfig`; "cyclical" has a cycle an epoch.
      state_bytes: members whose states would take more train one group after the other.
      members_at_once: of a group, on one device; 0 is 1 on CPU and elsewhere all.

    Raises:
      ValueError: a setting makes no sense; it names the field and its value.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        settings: Sequence[Setting],
        *,
        mesh: Mesh,
        batch_size: int,
        pretraining: PreTraining | None = None,
        masks: Mapping[str, Any] | None = None,
        schedule: str = "cosine",
        warmup_fraction: float = 0.1,
        state_bytes: float = 8e9,
        members_at_once: int = 0,
    ):
        self.model, self.task, self.settings, self.mesh = model, task, list(settings), mesh
        self._masks = masks or {}
        _check(self.settings, self._masks, task, pretraining)
        used = {setting.frozen for setting in settings} - {""}
        self._digests = {name: _digest_of_mask(self._masks[name]) for name in used}
        self._seeds = sorted({setting.seed for setting in settings})
        self._an_epoch = len(task.train.tokens) / batch_size
        self._length = task.train.tokens.shape[1] - 1
        self._group, self._state_bytes = members_at_once, state_bytes
        self._optimizer = functools.partial(
            OptimizerConfig,
            schedule=schedule,
            warmup_fraction=warmup_fraction,
            cycle_steps=max(1, round(self._an_epoch)) if schedule == "cyclical" else 0,
        )
        self._record = {
            "task": task.name,
            "batch_size": batch_size,
            "schedule": [schedule, warmup_fraction],
        }
        replays = any(setting.replay for setting in settings)
        windows = pretraining.windows if replays else None
        self._batches = Batches(task.train, windows, self._seeds, batch_size, mesh)
        self._transform = Replay(model.config.vocab_size, task.train) if replays else as_given
        heldout = pretraining and pretraining.heldout
        self._examination = Examination(model, task, heldout, batch_size, mesh)
        kinds = dict.fromkeys(map(_kind, self.settings))
        self._programs = {
            kind: self._program([s for s in self.settings if _kind(s) == kind]) for kind in kinds
        }

    def _steps(self, setting: Setting) -> int:
        return max(1, round(setting.epochs * self._an_epoch / (1 - setting.replay)))

    def _program(self, settings: Sequence[Setting]) -> tuple[Program, dict[bool, Any]]:
        """The program of the settings of one kind, and how its members are measured."""
        rank = max(setting.rank for setting in settings)
        shapes = trained_shapes(self.model, rank)
        entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        # Parameters, two moments, perhaps the start, perhaps a mask.
        each = (16 if settings[0].decay_to_start else 12) + ("frozen" in self._member(settings[0]))
        most = max(1, int(self._state_bytes / (each * entries)))
        # As few populations as may be, of one size, which the mesh divides.
        devices = self.mesh.shape["member"]
        count = math.ceil(len(settings) / math.ceil(len(settings) / most))
        count = math.ceil(count / devices) * devices
        program = Program(
            self.model,
            rank,
            optimizer=self._optimizer(
                steps=max(map(self._steps, settings)),
                decay_to="start" if settings[0].decay_to_start else "zero",
            ),
            transform=self._transform,
            members=[self._member(settings[0])] * count,
            batches=self._batches,
            length=self._length,
            mesh=self.mesh,
            group=self._group,
        )
        functions = self._examination.functions
        return program, {labels: program.measure(f) for labels, f in functions.items()}

    def _member(self, setting: Setting) -> dict[str, Any]:
        """The traced hyper-parameters of a setting."""
        member = {
            "seed": setting.seed,
            "stream": self._seeds.index(setting.seed),
            "learning_rate": setting.learning_rate,
            "weight_decay": setting.decay_to_start or setting.weight_decay,
            "steps": self._steps(setting),
        }
        if self._transform is not as_given:
            member |= {"rate": setting.replay, "kind": 0}
        if setting.sam_radius:
            member["sam_radius"] = setting.sam_radius
        if setting.frozen:
            member["frozen"] = self._masks[setting.frozen]
        ranks = {s.rank for s in self.settings if s.rank}
        if setting.rank and len(ranks) > 1:
            shapes = trained_shapes(self.model, max(ranks))
            member["frozen"] = lora.beyond_rank(shapes, setting.rank)
        return member

    def _known(self, settings: Sequence[Setting]) -> list[dict[str, Any]]:
        """Settings as JSON, with a SHA-256 of the mask that `frozen` names."""
        return [dataclasses.asdict(s) | {"mask": self._digests.get(s.frozen)} for s in settings]

    def _digest(self, record: dict[str, Any], settings: Sequence[Setting]) -> str:
        whole = json.dumps([record, self._known(settings)], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def run(
        self,
        params: Any,
        *,
        workdir: Path,
        record: dict[str, Any],
        title: str = "fine-tuning",
        after: Callable[[Setting, Any], Any] | None = None,
    ) -> list[Outcome]:
        """Fine-tunes from `params` under every setting; a call that was stopped goes on.

        Args:
          params: float32 arrays without an axis of members, on the host or a device.
          workdir: for the outcomes, a file a setting that is not trained again, and below `states`
            for what is under way.
          record: what the outcomes depend on besides the settings and masks (the start, the
            text), JSON.
          title: of the progress bar.
          after: `after(setting, params)` measures the final parameters of one setting (low-rank
            updates merged, on the devices) and returns JSON, kept as `Outcome.notes`.

        Returns:
          The outcomes in the order of the settings. A setting that diverged is an outcome too.

        Raises:
          Stopped: a signal came. Outcomes are stored when a population ends, its states when a
            signal stops it; a kill loses at most a population's last quarter, or a short
            population's steps.
          UserError: the disk is full.
        """
        base = jax.device_put(params, meshes.parameter_shardings(self.mesh, params))
        # What a setting gives depends, if barely, on the whole steps that its own are rounded to.
        records = {
            k: self._record | record | {"of_steps": p.steps} for k, (p, _) in self._programs.items()
        }
        files = {
            s: Path(workdir) / f"{self._digest(records[_kind(s)], [s])}.json" for s in self.settings
        }
        before = self._examination.single(base)
        states_of = Path(workdir) / "states"
        for kind, (program, measures) in self._programs.items():
            missing = [s for s in self.settings if _kind(s) == kind and not files[s].exists()]
            # Those that end together train together.
            missing.sort(key=self._steps)
            for first in range(0, len(missing), program.count):
                chunk = missing[first : first + program.count]
                done = sum(file.exists() for file in files.values())
                place = states_of / self._digest(records[kind], chunk)
                # Until the outcomes are stored, a signal waits for them.
                with StopSignals() as stop:
                    states = program.train(
                        [self._member(setting) for setting in chunk],
                        base,
                        workdir=place,
                        record=records[kind] | {"settings": self._known(chunk)},
                        title=f"{title}, {done} of {len(files)} done",
                        stop=stop,
                    )
                    found = self._examination.members(measures, states.params, base)
                    for m, setting in enumerate(chunk):
                        notes = after and after(setting, program.one(states.params, base, m))
                        _write(files[setting], Outcome(setting, before, found[m], notes).to_json())
                    _remove(place)
                    if stop.reached():
                        raise Stopped
                del states
        # Populations of another grid, stopped, will not go on.
        _remove(states_of)
        return [Outcome.from_json(json.loads(file.read_text())) for file in files.values()]


def _kind(setting: Setting) -> tuple[bool, ...]:
    """Settings of one kind share a program, so that none pays for what others do."""
    return (
        setting.rank > 0,
        setting.decay_to_start > 0,
        bool(setting.frozen),
        setting.sam_radius > 0,
    )


def _check(
    settings: Sequence[Setting],
    masks: Mapping[str, Any],
    task: Task,
    pretraining: PreTraining | None,
) -> None:
    if not settings or len(set(settings)) < len(settings):
        raise ValueError(f"settings must be different ones, at least one, not {settings}")
    for setting in settings:
        if setting.frozen and setting.frozen not in masks:
            raise ValueError(f"frozen must be one of {list(masks)}, not {setting.frozen!r}")
        if setting.replay and pretraining is None:
            raise ValueError(f"replay {setting.replay} needs pretraining")
    length = task.train.tokens.shape[1]
    if pretraining is not None and pretraining.windows.length != length - 1:
        raise ValueError(
            f"pretraining.windows.length must be {length - 1} as in the task, not "
            f"{pretraining.windows.length}"
        )


def _digest_of_mask(mask: Any) -> str:
    digest = hashlib.sha256()
    for name, leaf in tree.named_leaves(mask):
        digest.update(name.encode() + np.packbits(np.asarray(leaf)).tobytes())
    return digest.hexdigest()


def _remove(folder: Path) -> None:
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, value: Any) -> None:
    """The whole file or none, by the first process."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
