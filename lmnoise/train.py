"""Trains a population of language models from a config file.

    python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/lm

The same command resumes a run that was stopped or killed. `--config.a.b=value` changes a key.
`--dry_run` prints what the run will take, on the devices here or on those of `--dry_run_devices`
and `--dry_run_chip`, and needs neither data nor a work directory.
"""

import csv
import dataclasses
import functools
import io
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.assemble import (
    Members,
    dry_run,
    loop_config,
    members_of,
    noise_sources_of,
    seeds_of,
    without_data,
)
from lmnoise.data.corruption import TEXTLESS, Corruption
from lmnoise.data.packing import Packed, open_packed
from lmnoise.data.stream import Windows, batches, evaluation_batches
from lmnoise.errors import UserError
from lmnoise.evaluation.language import Source, evaluator
from lmnoise.models.transformer import LanguageModel
from lmnoise.training import checkpoint, mesh, processes
from lmnoise.training.hardware import named_chip, this_chip
from lmnoise.training.loop import Cost, LoopConfig, fit
from lmnoise.training.population import Population
from lmnoise.training.step import TrainState

# Keys that may change between a run and its resumption: they move no number beyond rounding.
_FREE_KEYS = ("data.data_dir", "mesh", "train.members_at_once", "train.keep", "train.keep_every")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a config stands for, ready to train."""

    model: LanguageModel
    members: Members
    population: Population
    data: Packed
    loop: LoopConfig
    cost: Cost
    batches: Any
    evaluate: Any
    config_record: dict[str, Any]

    def fit(self, workdir: epath.Path, title: str = "train") -> TrainState | None:
        """Trains in `workdir`, see `lmnoise.training.loop.fit`."""
        return fit(
            self.population,
            self.batches,
            self.loop,
            workdir=workdir,
            evaluate=self.evaluate,
            cost=self.cost,
            config_record=self.config_record,
            title=title,
        )


def build(config: ConfigDict) -> Run:
    """Builds the run of a config; data must have been prepared.

    Raises:
      UserError: a value that does not fit the others, or data that is missing; it names the key.
    """
    configs.check_least(config)
    members = members_of(config)
    data = _open(config, config.data.source, "train")
    make = functools.partial(mesh.make_mesh, **config.mesh)
    model, corruption, population, cost = without_data(config, members, data.vocab_size, make)
    return Run(
        model=model,
        members=members,
        population=population,
        data=data,
        loop=loop_config(config),
        cost=cost,
        batches=_batches(config, data, members, population.mesh),
        evaluate=evaluator(
            population,
            model.loss,
            _sources(config, data) + _noise_sources(config, members, corruption),
        ),
        config_record=_identity(config) | {"data_sha256": _data_sha256(config)},
    )


def _open(config: ConfigDict, name: str, split: str) -> Packed:
    return open_packed(name, split, data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)


def _batches(config: ConfigDict, data: Packed, members: Members, devices: Mesh):
    """This process's rows of batch k: `tokens`, and `noise` for the kind "stream"."""
    seeds = seeds_of(members)
    with_noise = any(m["kind"] == "stream" for m in members)
    part, parts = mesh.part_of_batch(devices, config.train.batch_size)

    def stream_of(packed, seeds):
        return batches(
            Windows(packed, config.data.length),
            seeds=seeds,
            batch_size=config.train.batch_size,
            process_index=part,
            process_count=parts,
        )

    clean, noise = stream_of(data, seeds), []
    if with_noise:
        of_seed = dict(zip(seeds, noise_sources_of(config, seeds), strict=True))
        # Seeds that share a corpus share its memory map.
        opened = {name: _open(config, name, "train") for name in of_seed.values()}
        noise = [stream_of(opened[name], [seed]) for seed, name in of_seed.items()]

    def batch(index: int) -> dict[str, np.ndarray]:
        rows = {"tokens": clean[index]["tokens"]}
        if noise:
            rows["noise"] = np.concatenate([stream[index]["tokens"] for stream in noise])
        return rows

    return batch


def _sources(config: ConfigDict, train: Packed) -> list[Source]:
    """The held-out text of every corpus of `config.data.evaluate`."""
    sources = []
    for name in config.data.evaluate:
        packed = _open(config, name, config.data.evaluate_split)
        if packed.tokenizer_fingerprint != train.tokenizer_fingerprint:
            raise UserError(
                f"{name} and {train.name} were prepared with different tokenizers: prepare {name} "
                f"again with --tokenizer={config.data.tokenizer}"
            )
        limit = config.data.evaluate_windows or None
        read = evaluation_batches(packed, config.data.length, config.train.batch_size, limit)
        tokens_D = np.diff(packed.ends, prepend=0)
        sources.append(Source(name.strip("/"), list(read), packed.bytes / tokens_D))
    return sources


def _noise_sources(config: ConfigDict, members: Members, corruption: Corruption) -> list[Source]:
    """Held-out noise of the kinds in use, named `noise-<kind>`; each row is a document."""
    kinds = dict.fromkeys(m["kind"] for m in members if m["rate"] > 0)
    rows, length = config.train.batch_size, config.data.length
    document_BT = np.repeat(np.arange(rows, dtype=np.int32)[:, None], length + 1, axis=1)
    weights_BS = np.ones((rows, length), np.float32)
    return [
        Source(
            f"noise-{kind}",
            [
                {
                    "tokens": np.asarray(corruption.held_out(kind, rows, length)),
                    "document": document_BT,
                    "weights": weights_BS,
                }
            ],
            np.ones(rows),
        )
        for kind in kinds
        if kind in TEXTLESS
    ]


def _data_sha256(config: ConfigDict) -> dict[str, str]:
    """What ties a run to the very tokens that it read, besides the names in its config."""
    noise = noise_sources_of(config, list(config.members.seed))
    names = dict.fromkeys(n for n in (config.data.source, *noise) if n)
    return {name: _open(config, name, "train").meta["splits"]["train"]["sha256"] for name in names}


def _identity(config: ConfigDict) -> dict[str, Any]:
    """The config without the keys that a resumed run may change."""
    identity = config.to_dict()
    for key in _FREE_KEYS:
        *parents, last = key.split(".")
        branch = identity
        for parent in parents:
            branch = branch[parent]
        del branch[last]
    return identity


def train(
    config: ConfigDict, workdir: epath.Path, title: str = "train"
) -> tuple[Run, TrainState | None]:
    """Claims the work directory for the config, builds the run and trains it.

    Returns:
      The run, and its final states, or None if a signal stopped it.
    """
    run = build(config)
    checkpoint.claim(workdir, run.config_record)
    _write_members(workdir, run.members)
    return run, run.fit(workdir, title)


def _write_members(workdir: epath.Path, members: Members) -> None:
    """`members.csv`: which hyper-parameters the number `member` of the metrics stands for."""
    if jax.process_index() == 0:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["member", *members[0]])
        writer.writerows([i, *member.values()] for i, member in enumerate(members))
        (workdir / "members.csv").write_text(text.getvalue(), encoding="utf-8")


def main() -> int:
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_bool("dry_run", False, "only print what the run will take")
    flags.DEFINE_integer("dry_run_devices", 0, "devices to plan for; 0 for those of here", 0)
    flags.DEFINE_string(
        "dry_run_chip", "", "their kind, such as 'tpu v5p'; by default that of here"
    )
    flags.DEFINE_float("mfu", 0.4, "expected share of the chips' peak, for --dry_run", 0.01, 1)
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"],
        lambda given: given["workdir"] or given["dry_run"],
        "name the folder of the run with --workdir",
    )
    values = configs.parse(sections=configs.default_config())
    if values.dry_run:
        chip = named_chip(values.dry_run_chip) if values.dry_run_chip else this_chip()
        devices = values.dry_run_devices or jax.device_count()
        print(dry_run(values.config, devices=devices, chip=chip, mfu=values.mfu).text())
        return 0
    workdir = storage.place(values.workdir)
    storage.place(values.config.data.data_dir)
    with processes.joined():
        run, states = train(values.config, workdir)
    if jax.process_index() > 0:
        return 0
    if states is None:
        print(f"stopped and saved in {workdir}; the same command resumes the run")
    else:
        print(f"trained {len(run.members)} members; metrics and checkpoints are in {workdir}")
    return 0


if __name__ == "__main__":
    cli.run(main)
