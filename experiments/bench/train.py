"""Benchmark: training speed of one run and of a population, beside nanoGPT and nanodo.

    python experiments/bench/train.py --out=runs/bench-train \\
        --peer_python=/path/to/python --peer_model=/path/to/nanoGPT/model.py \\
        --nanodo=/path/to/nanodo

Peers are left out unless named: an interpreter with PyTorch and a copy of karpathy/nanoGPT's
model.py, and a copy of google-deepmind/nanodo, which runs in our own interpreter. Every contender
is a process that is started and warmed up once; then all are asked in turn, round after round, so
that a machine that drifts drifts for all of them. `--alone` has one process at a time, for a
device that only one may hold (TPU) or that they fill.

Levers are measured as variants of a single run, each beside the library's own choices:

    --variants="layers_as=scan;attention=plain,model.remat=full;optimizer.clip_norm=2.0;dispatch=5"
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_report
import numpy as np
import turns
from absl import flags
from bench_report import Result
from contenders import (
    DEFAULT_SHAPES,
    KINDS,
    OPERANDS,
    PEERS,
    SHAPES,
    Contender,
    Shape,
    contenders,
    parse_variants,
)
from targets import targets_table

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.report import provenance

SEED = 0
LEARNING_RATE = 1e-3
BATCHES = 64  # different ones in the data, which is read round and round
SCRIPTS = {
    "nanogpt": "nanogpt_worker.py",
    "nanogpt-compile": "nanogpt_worker.py",
    "nanodo": "nanodo_worker.py",
}


def entry(
    contender: Contender, shape: Shape, folder: Path, values: flags.FlagValues
) -> turns.Entry:
    """How the process of a contender starts; `folder` holds the tokens, and takes its cache."""
    kind = contender.kind
    variants = parse_variants(values.variants)
    changes = variants[contender.variant] if contender.variant else {}
    specification = {
        "kind": kind,
        "shape": dataclasses.asdict(shape),
        "dtype": OPERANDS[contender.operands],
        "members": contender.members,
        "dispatch": contender.dispatch,
        "learning_rate": LEARNING_RATE,
        "tokens": str(folder / "tokens"),
        "source": values.nanodo if kind == "nanodo" else values.peer_model,
        "model": changes.get("model", {}),
        "optimizer": changes.get("optimizer", {}),
    }
    cache = None
    # Neither a product nor uncompiled PyTorch has anything to keep.
    if kind not in ("product", "nanogpt"):
        cache = folder / "-".join([kind, contender.operands, contender.variant.replace("/", "_")])
    python = values.peer_python if kind.startswith("nanogpt") else None
    return turns.Entry(contender, SCRIPTS.get(kind, turns.OURS), specification, python, cache)


def measure(
    name: str, shape: Shape, chosen: Sequence[Contender], values: flags.FlagValues
) -> tuple[list[Result], list[str]]:
    """Rounds of all chosen contenders at one shape: results, and a sentence for each left out."""
    rows = np.random.default_rng(SEED).integers(
        0, shape.vocab_size, (BATCHES, shape.batch, shape.length + 1), np.int32
    )
    with tempfile.TemporaryDirectory() as folder:
        rows.tofile(Path(folder) / "tokens")
        return turns.measure(
            [entry(contender, shape, Path(folder), values) for contender in chosen],
            values.rounds,
            name,
            turn_seconds=values.turn_seconds,
            alone=_alone(shape, values),
        )


def _alone(shape: Shape, values: flags.FlagValues) -> bool:
    return values.alone or shape.accelerator


def check(values: flags.FlagValues) -> None:
    """Raises a UserError for flags that do not fit each other."""
    names = [f"{kind}-{operands}" for kind in KINDS for operands in OPERANDS]
    for flag, given, known in (
        ("shapes", values.shapes, SHAPES),
        ("contenders", values.contenders, names),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"--{flag}: {name!r} is not one of {', '.join(known)}")
    turns.check_peer(values.peer_python, values.peer_model)
    if not values.peer_python and any(name.startswith("nanogpt") for name in values.contenders):
        raise UserError("--contenders names nanogpt, which needs --peer_python and --peer_model")
    if values.nanodo:
        if not (Path(values.nanodo) / "nanodo" / "model.py").is_file():
            raise UserError(
                f"--nanodo: {values.nanodo} holds no nanodo/model.py: name a copy of "
                "google-deepmind/nanodo"
            )
    elif any(name.startswith("nanodo") for name in values.contenders):
        raise UserError("--contenders names nanodo, which needs --nanodo")


def choose_shapes(values: flags.FlagValues, on_cpu: bool) -> dict[str, Shape]:
    """The shapes by their names, with the batch that the user asks for.

    Raises:
      UserError: one is for an accelerator, and there is none.
    """
    chosen = {name: SHAPES[name] for name in values.shapes or DEFAULT_SHAPES[on_cpu]}
    for name, shape in chosen.items():
        if shape.accelerator and on_cpu and not values.batch:
            raise UserError(
                f"--shapes: a step of {name} takes minutes on a CPU, which is all that JAX finds "
                "here: leave it out, or name a smaller batch with --batch=1"
            )
        if values.batch:
            chosen[name] = dataclasses.replace(shape, batch=values.batch)
    return chosen


def absent(values: flags.FlagValues) -> dict[str, str]:
    """Kinds whose source or interpreter was not named, and how to name it."""
    missing = {} if values.nanodo else {"nanodo": "--nanodo"}
    if not values.peer_python:
        missing |= dict.fromkeys(PEERS[:2], "--peer_python and --peer_model")
    return missing


def define_flags() -> None:
    flags.DEFINE_list(
        "shapes", [], f"some of {', '.join(SHAPES)}; if none, those that suit the device"
    )
    flags.DEFINE_list("contenders", [], "some of them, such as run-f32,nanodo-bf16; all if none")
    flags.DEFINE_string("variants", "", "of our single run: name=value,name=value;name=value")
    flags.DEFINE_integer("rounds", 5, "turns of each contender", lower_bound=1)
    flags.DEFINE_float("turn_seconds", 1.5, "of a turn, or one dispatch", lower_bound=0.0)
    flags.DEFINE_integer("members", 8, "members of the population", lower_bound=1)
    flags.DEFINE_integer("batch", 0, "rows a batch; 0 for those of the shape", lower_bound=0)
    flags.DEFINE_bool("alone", False, "one process at a time, started anew for each of its turns")
    flags.DEFINE_string("peer_python", None, "a Python interpreter that has PyTorch")
    flags.DEFINE_string("peer_model", None, "model.py of a copy of karpathy/nanoGPT")
    flags.DEFINE_string("nanodo", None, "a copy of google-deepmind/nanodo")
    flags.DEFINE_string("out", "runs/bench-train", "folder of the report")


def settings(values: flags.FlagValues, shapes: dict[str, Shape]) -> dict[str, Any]:
    """What was measured, for the report."""
    names = ("rounds", "turn_seconds", "members", "variants")
    return {name: values[name].value for name in names} | {
        "alone": [name for name, shape in shapes.items() if _alone(shape, values)],
        "learning_rate": LEARNING_RATE,
        "environment": turns.ENVIRONMENT,
        "shapes": {name: dataclasses.asdict(shape) for name, shape in shapes.items()},
    }


def main() -> None:
    define_flags()
    values = configs.parse()
    check(values)
    variants = parse_variants(values.variants)
    on_cpu = turns.backend() == "cpu"
    shapes, without = choose_shapes(values, on_cpu), absent(values)
    plans = {
        name: contenders(
            shape,
            members=values.members,
            on_cpu=on_cpu,
            named=values.contenders,
            without=without,
            variants=variants,
        )
        for name, shape in shapes.items()
    }
    measured, left_out = {}, []
    for name, shape in shapes.items():
        results, missing = measure(name, shape, plans[name], values)
        measured[name] = (shape, results)
        left_out += [f"At {name}: {sentence}" for sentence in missing]
    bench_report.check_same_model(measured)
    if not values.contenders:
        left_out += [
            f"{kind} was not measured: name {flag}."
            for kind, flag in without.items()
            if any(kind in shape.kinds for shape in shapes.values())
        ]
    # Only now, because it takes hold of the devices.
    config = settings(values, shapes)
    origin = provenance(config, [SEED])
    extra = [targets_table(measured, origin["machine"]["cores"]), *left_out]
    print(bench_report.write(Path(values.out), measured, extra, origin, config))


if __name__ == "__main__":
    cli.run(main)
