"""Trains a population of language models from a config file.

    python -m lmnoise.train --config=configs/lm.py:laptop --workdir=runs/lm

The same command resumes a run that was stopped or killed. `--config.a.b=value` changes a key.
"""

import csv
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.data.corruption import TEXTLESS, Corruption, extra_rows_for
from lmnoise.data.packing import Packed, open_packed
from lmnoise.data.stream import Windows, batches, evaluation_batches
from lmnoise.errors import UserError
from lmnoise.evaluation.language import Source, evaluator
from lmnoise.models import attention
from lmnoise.models.transformer import FAMILIES, LanguageModel, TransformerConfig
from lmnoise.training import checkpoint, mesh, processes
from lmnoise.training.loop import Cost, LoopConfig, fit
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays
from lmnoise.training.spikes import SpikeConfig
from lmnoise.training.step import TrainState

type Members = list[dict[str, Any]]

# The least value of the keys that count something.
_LEAST = {
    "data.length": 1,
    "data.evaluate_windows": 0,
    "model.layers": 1,
    "model.width": 1,
    "model.heads": 1,
    "model.kv_heads": 0,
    "model.mlp_width": 0,
    "model.vocab_size": 0,
    "model.logits_chunk": 1,
    "noise.gaussian_std": 0,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.log_every": 0,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 0,
    "train.keep": 1,
    "train.keep_every": 0,
    "train.steps_per_dispatch": 1,
    "train.members_at_once": 0,
    "spikes.threshold": 0,
    "spikes.window": 1,
    "spikes.skip": 1,
    "spikes.max_rollbacks": 0,
}

# Keys that may change between a run and its resumption: they move no number beyond rounding.
_FREE_KEYS = ("data.data_dir", "mesh", "train.members_at_once", "train.keep", "train.keep_every")


def members_of(config: ConfigDict) -> Members:
    """The members of the population: the product of the tuples of `config.members`.

    At rate 0 the kind of noise means nothing, so only the first is kept.
    """
    axes = config.members.to_dict()
    for name, values in axes.items():
        if not isinstance(values, tuple) or not values:
            raise UserError(f"config.members.{name} must be a tuple of values, not {values!r}")
    members = [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]
    for member in members:
        for name, kind in (("kind", str), *((n, (int, float)) for n in axes if n != "kind")):
            if not isinstance(member[name], kind) or isinstance(member[name], bool):
                raise UserError(f"config.members.{name} cannot be {member[name]!r}")
        if not 0 <= member["rate"] < 1:
            raise UserError(f"config.members.rate must lie in [0, 1), not {member['rate']}")
        if member["learning_rate"] <= 0 or member["weight_decay"] < 0:
            raise UserError(
                "config.members.learning_rate must be above 0 and weight_decay at least 0, not "
                f"{member['learning_rate']} and {member['weight_decay']}"
            )
        if not isinstance(member["seed"], int) or not 0 <= member["seed"] < 2**31:
            raise UserError(
                f"config.members.seed must be an integer in [0, 2**31), not {member['seed']}"
            )
    return [m for m in members if m["rate"] > 0 or m["kind"] == axes["kind"][0]]


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

    def fit(self, workdir: Path, title: str = "train") -> TrainState | None:
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
    for key, least in _LEAST.items():
        section, name = key.split(".")
        if config[section][name] < least:
            raise UserError(f"config.{key} is {config[section][name]}: it must be at least {least}")
    members = members_of(config)
    data = _open(config, config.data.source, "train")
    model = LanguageModel(model_config(config, data.vocab_size))
    devices = mesh.make_mesh(**config.mesh)
    train = config.train
    mesh.check_divisible(devices, members=len(members), batch_size=train.batch_size)
    if train.batch_size % train.accumulate:
        raise UserError(
            f"config.train.accumulate {train.accumulate} does not divide "
            f"config.train.batch_size {train.batch_size}: change one of them"
        )
    seeds = sorted({m["seed"] for m in members})
    corruption = _corruption(config, members, data.vocab_size, devices.shape["data"])
    population = Population(
        init=model.init,
        loss=model.loss,
        transform=corruption,
        optimizer=_optimizer(config),
        members=member_arrays(
            [
                m | {"stream": seeds.index(m["seed"]), "kind": corruption.kinds.index(m["kind"])}
                for m in members
            ]
        ),
        mesh=devices,
        accumulate=train.accumulate,
        group=train.members_at_once,
    )
    rows = train.batch_size + corruption.extra_rows
    tokens = rows * config.data.length * len(members)
    intervals = {f.name: train[f.name] for f in dataclasses.fields(LoopConfig) if f.name in train}
    return Run(
        model=model,
        members=members,
        population=population,
        data=data,
        loop=LoopConfig(**intervals, spikes=SpikeConfig(**config.spikes)),
        cost=Cost(tokens, tokens * model.flops_per_token(config.data.length)),
        batches=_batches(config, data, seeds, devices, "stream" in corruption.kinds),
        evaluate=evaluator(
            population,
            model.loss,
            _sources(config, data) + _noise_sources(config, members, corruption),
        ),
        config_record=_identity(config) | {"data_sha256": _data_sha256(config)},
    )


def _optimizer(config: ConfigDict) -> OptimizerConfig:
    try:
        return OptimizerConfig(steps=config.train.steps, **config.optimizer)
    except ValueError as error:
        raise UserError(f"config.optimizer: {error}") from error


def _open(config: ConfigDict, name: str, split: str) -> Packed:
    return open_packed(name, split, data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)


def model_config(config: ConfigDict, tokens: int) -> TransformerConfig:
    """The model of a config whose tokenizer has ids below `tokens`.

    Raises:
      UserError: values that do not fit each other; it names the key.
    """
    fields = config.model.to_dict()
    family = fields.pop("family")
    if family not in FAMILIES:
        raise UserError(f"config.model.family must be one of {sorted(FAMILIES)}, not {family!r}")
    if family == "llama":
        fields.pop("bias")
    fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    vocab_size = fields.pop("vocab_size") or tokens
    if vocab_size < tokens:
        raise UserError(
            f"config.model.vocab_size is {vocab_size} but the tokenizer {config.data.tokenizer} "
            f"has ids up to {tokens - 1}: set it to 0 or at least {tokens}"
        )
    if config.model.dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"config.model.dtype must be float32 or bfloat16, not {config.model.dtype!r}"
        )
    try:
        model = FAMILIES[family](vocab_size=vocab_size, context=config.data.length, **fields)
        attention.choose(model.attention, dtype=model.dtype, length=model.context)
        return model
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error


def _corruption(config: ConfigDict, members: Members, vocab_size: int, shards: int) -> Corruption:
    kinds = tuple(dict.fromkeys(m["kind"] for m in members))
    if "stream" in kinds and not config.noise.source:
        raise UserError("noise of kind 'stream' needs config.noise.source, a prepared corpus")
    extra = 0
    if config.noise.budget == "clean":
        rate = max(m["rate"] for m in members)
        extra = extra_rows_for(rate, config.train.batch_size, shards * config.train.accumulate)
    try:
        return Corruption(
            vocab_size=vocab_size,
            kinds=kinds,
            budget=config.noise.budget,
            extra_rows=extra,
            gaussian_std=config.noise.gaussian_std or None,
        )
    except ValueError as error:
        raise UserError(f"config.noise and config.members.kind: {error}") from error


def _batches(config: ConfigDict, data: Packed, seeds: list[int], devices: Mesh, with_noise: bool):
    """This process's rows of batch k: `tokens`, and `noise` for the kind "stream"."""
    part, parts = mesh.part_of_batch(devices, config.train.batch_size)

    def stream_of(packed, seeds):
        return batches(
            Windows(packed, config.data.length),
            seeds=seeds,
            batch_size=config.train.batch_size,
            process_index=part,
            process_count=parts,
        )

    clean = stream_of(data, seeds)
    noise = stream_of(_open(config, config.noise.source, "train"), seeds) if with_noise else None

    def batch(index: int) -> dict[str, np.ndarray]:
        rows = {"tokens": clean[index]["tokens"]}
        return rows if noise is None else rows | {"noise": noise[index]["tokens"]}

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
    names = dict.fromkeys(n for n in (config.data.source, config.noise.source) if n)
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


def train(config: ConfigDict, workdir: Path, title: str = "train") -> tuple[Run, TrainState | None]:
    """Claims the work directory for the config, builds the run and trains it.

    Returns:
      The run, and its final states, or None if a signal stopped it.
    """
    run = build(config)
    checkpoint.claim(workdir, run.config_record)
    _write_members(workdir, run.members)
    return run, run.fit(workdir, title)


def _write_members(workdir: Path, members: Members) -> None:
    """`members.csv`: which hyper-parameters the number `member` of the metrics stands for."""
    if jax.process_index() == 0:
        with open(workdir / "members.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["member", *members[0]])
            writer.writerows([i, *member.values()] for i, member in enumerate(members))


def main() -> int:
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    values = configs.parse(sections=configs.default_config())
    workdir = Path(values.workdir)
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
