"""From a config to what of a run needs no data: members, model, population, cost and its plan."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from lmnoise import config as configs
from lmnoise.data.corruption import Corruption, extra_rows_for
from lmnoise.data.tokenizer import vocab_size_of
from lmnoise.errors import UserError
from lmnoise.models import memory
from lmnoise.models.transformer import FAMILIES, LanguageModel, TransformerConfig
from lmnoise.training import mesh, plan
from lmnoise.training.hardware import Chip
from lmnoise.training.loop import Cost, LoopConfig
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays
from lmnoise.training.spikes import SpikeConfig
from lmnoise.training.step import init_state

type Members = list[dict[str, Any]]


def members_of(config: ConfigDict) -> Members:
    """The members of the population: the product of the tuples of `config.members`.

    At rate 0 the kind and the weight of noise mean nothing, so only the first are kept.
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
        _check_rate(member, config)
        if member["learning_rate"] <= 0 or member["weight_decay"] < 0:
            raise UserError(
                "config.members.learning_rate must be above 0 and weight_decay at least 0, not "
                f"{member['learning_rate']} and {member['weight_decay']}"
            )
        if not isinstance(member["seed"], int) or not 0 <= member["seed"] < 2**31:
            raise UserError(
                f"config.members.seed must be an integer in [0, 2**31), not {member['seed']}"
            )
        if not 0 < steps_of(member, config) <= config.train.steps:
            raise UserError(
                "config.members.duration must be shares of config.train.steps, above 0 and at "
                f"most 1, that make at least one step; {member['duration']} of "
                f"{config.train.steps} does not"
            )
    first = {name: axes[name][0] for name in ("kind", "noise_weight")}
    return [m for m in members if m["rate"] > 0 or m | first == m]


def _check_rate(member: dict[str, Any], config: ConfigDict) -> None:
    """Noise leaves clean rows, unless a second corpus takes the place of all."""
    alone = member["kind"] == "stream" and config.noise.budget == "total"
    if not (0 <= member["rate"] < 1 or (member["rate"] == 1 and alone)):
        raise UserError(
            "config.members.rate must lie in [0, 1), or be 1 for the kind 'stream' with "
            f"config.noise.budget=total, not {member['rate']}"
        )
    if not 0 <= member["noise_weight"] < math.inf:
        raise UserError(
            f"config.members.noise_weight must be at least 0, not {member['noise_weight']}"
        )


def steps_of(member: dict[str, Any], config: ConfigDict) -> int:
    """How many of the run's steps a member trains."""
    return round(member["duration"] * config.train.steps)


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
        return FAMILIES[family](vocab_size=vocab_size, context=config.data.length, **fields)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error


def _corruption(
    config: ConfigDict, members: Members, vocab_size: int, devices: Mesh | AbstractMesh
) -> Corruption:
    kinds = _kinds(members)
    if "stream" in kinds and not config.noise.source:
        raise UserError("noise of kind 'stream' needs config.noise.source, a prepared corpus")
    try:
        return Corruption(
            vocab_size=vocab_size,
            kinds=kinds,
            budget=config.noise.budget,
            extra_rows=_extra_rows(config, members, devices),
            gaussian_std=config.noise.gaussian_std or None,
        )
    except ValueError as error:
        raise UserError(f"config.noise and config.members.kind: {error}") from error


def _kinds(members: Members) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m["kind"] for m in members))


def _extra_rows(config: ConfigDict, members: Members, devices: Mesh | AbstractMesh) -> int:
    """Rows of a step besides those of the batch."""
    if config.noise.budget != "clean":
        return 0
    parts = devices.shape["data"] * devices.shape["fsdp"] * config.train.accumulate
    return extra_rows_for(max(m["rate"] for m in members), config.train.batch_size, parts)


def _arrays(config: ConfigDict, members: Members) -> dict[str, Any]:
    """Hyper-parameters (M,), with the numbers of a member's stream and kind of noise.

    The members' `steps` only if one ends early: they cost the step a branch; the weights of noise
    only if one is not 1.
    """
    seeds, kinds = seeds_of(members), _kinds(members)
    arrays = member_arrays(
        [
            m
            | {"stream": seeds.index(m["seed"]), "kind": kinds.index(m["kind"])}
            | {"steps": steps_of(m, config)}
            for m in members
        ]
    )
    del arrays["duration"]
    if (arrays["steps"] == config.train.steps).all():
        del arrays["steps"]
    if (arrays["noise_weight"] == 1).all():
        del arrays["noise_weight"]
    return arrays


def without_data(
    config: ConfigDict,
    members: Members,
    vocab_size: int,
    make_mesh: Callable[..., Mesh | AbstractMesh],
    abstract: bool = False,
) -> tuple[LanguageModel, Corruption, Population, Cost]:
    """What of a run can be built from the size of the vocabulary alone.

    Args:
      make_mesh: a mesh for its argument `needs`.
      abstract: no array is made, so the mesh's devices need not exist.
    """
    train, optimizer = config.train, _optimizer(config)
    model = LanguageModel(model_config(config, vocab_size))
    devices = make_mesh(needs=_needs(config, model, members))
    mesh.check_divisible(
        devices,
        members=len(members),
        batch_size=train.batch_size,
        accumulate=train.accumulate,
    )
    corruption, arrays = _corruption(config, members, vocab_size, devices), _arrays(config, members)
    population = Population(
        init=model.init,
        loss=model.loss,
        transform=corruption,
        optimizer=optimizer,
        members=jax.eval_shape(lambda: arrays) if abstract else arrays,
        mesh=devices,
        accumulate=train.accumulate,
        group=train.members_at_once,
    )
    # Of the whole run, a step: members that end early take less.
    running = sum(steps_of(m, config) for m in members) / train.steps
    tokens = round((train.batch_size + corruption.extra_rows) * config.data.length * running)
    cost = Cost(tokens, tokens * model.flops_per_token(config.data.length))
    return model, corruption, population, cost


def _needs(config: ConfigDict, model: LanguageModel, members: Members) -> mesh.Needs:
    """What a mesh is chosen by; the memory only if it is asked for, as it takes a second."""
    train, optimizer, arrays = config.train, _optimizer(config), _arrays(config, members)
    if train.batch_size % train.accumulate:
        raise UserError(
            f"config.train.accumulate {train.accumulate} does not divide "
            f"config.train.batch_size {train.batch_size}: change one of them"
        )
    running = memory.running_bytes(model, config.data.length)

    @functools.cache
    def states():
        of_member = functools.partial(init_state, model.init, optimizer)
        return jax.eval_shape(jax.vmap(of_member), arrays)

    def bytes_on(sizes):
        devices = mesh.abstract_mesh(sizes)
        return plan.device_bytes(
            devices,
            states=states(),
            members=jax.eval_shape(lambda: arrays),
            batches=batch_shapes(config, members),
            running=running,
            rows=train.batch_size + _extra_rows(config, members, devices),
            accumulate=train.accumulate,
            members_at_once=train.members_at_once,
        )

    return mesh.Needs(
        members=len(members),
        rows=train.batch_size // train.accumulate,
        heads=math.gcd(model.config.kv_heads, model.config.mlp_width),
        bytes=bytes_on,
    )


def dry_run(config: ConfigDict, *, devices: int, chip: Chip | None, mfu: float) -> plan.Plan:
    """What the run of a config will take on so many chips; nothing is compiled, no data is read.

    Raises:
      UserError: as `build`, or a tokenizer that cannot be found.
    """
    configs.check_least(config)
    members = members_of(config)
    config = _as_on(chip, config)
    vocab_size = vocab_size_of(config.data.tokenizer, config.data.data_dir)
    needs = _needs(config, LanguageModel(model_config(config, vocab_size)), members)
    sizes = mesh.choose_sizes(
        config.mesh,
        needs,
        devices=devices,
        usable_bytes=chip and chip.usable_bytes,
        hosts=devices // chip.host if chip and devices % chip.host == 0 else 1,
    )
    _, _, population, cost = without_data(
        config, members, vocab_size, lambda needs: mesh.abstract_mesh(sizes), abstract=True
    )
    params = population.abstract().params
    return plan.Plan(
        sizes=sizes,
        parameters=sum(math.prod(p.shape[1:]) for p in jax.tree.leaves(params)),
        members=len(members),
        cost=cost,
        steps=config.train.steps,
        bytes=needs.bytes(sizes),
        chip=chip,
        mfu=mfu,
    )


def _as_on(chip: Chip | None, config: ConfigDict) -> ConfigDict:
    """The config with what "auto" stands for on a chip, as far as this machine can trace it.

    Fused kernels for attention keep for the gradient what `row_blocks` keeps: no scores. Where no
    chip is known members run one by one, as on CPU.
    """
    config = config.copy_and_resolve_references()
    if chip is None:
        config.train.members_at_once = config.train.members_at_once or 1
        return config
    if "tpu" in chip.name:
        fused = config.data.length % 128 == 0
    else:
        fused = config.model.dtype == "bfloat16"
    if config.model.attention in ("auto", "splash", "cudnn"):
        config.model.attention = "row_blocks" if fused else "plain"
    if config.model.layers_as == "auto":
        config.model.layers_as = "scan"
    return config


def batch_shapes(config: ConfigDict, members: Members) -> dict[str, jax.ShapeDtypeStruct]:
    """The batches of one dispatch, K whole ones, as shapes."""
    steps = loop_config(config).dispatch
    shape = (steps, len(seeds_of(members)), config.train.batch_size, config.data.length + 1)
    names = ["tokens", *(["noise"] if any(m["kind"] == "stream" for m in members) else [])]
    rows = {name: jax.ShapeDtypeStruct(shape, np.int32) for name in names}
    return rows | {"index": jax.ShapeDtypeStruct((steps,), np.int32)}


def loop_config(config: ConfigDict) -> LoopConfig:
    intervals = {
        f.name: config.train[f.name]
        for f in dataclasses.fields(LoopConfig)
        if f.name in config.train
    }
    return LoopConfig(**intervals, spikes=SpikeConfig(**config.spikes))


def _optimizer(config: ConfigDict) -> OptimizerConfig:
    try:
        return OptimizerConfig(steps=config.train.steps, **config.optimizer)
    except ValueError as error:
        raise UserError(f"config.optimizer: {error}") from error


def seeds_of(members: Members) -> list[int]:
    """The streams of batches, one a seed."""
    return sorted({m["seed"] for m in members})


def noise_sources_of(config: ConfigDict, seeds: list[int]) -> list[str]:
    """The corpus of kind "stream" of each seed."""
    return [config.noise.source.replace("{seed}", str(seed)) for seed in seeds]
