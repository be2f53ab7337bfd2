"""Benchmark: training speed of one run and of a population, beside nanoGPT on PyTorch.

    python experiments/bench/train.py --shapes=small,large --out=runs/bench-train \\
        --peer_python=/path/to/python --peer_model=/path/to/nanoGPT/model.py

The peer is left out unless both flags name it: an interpreter with PyTorch and a copy of
nanoGPT's model.py. Every contender is a process that is started and warmed up once; then all are
asked in turn, round after round, so that a machine that drifts drifts for all of them. The
processes share the device; where only one may hold it (TPU), name one of `--contenders` a call.
"""

import dataclasses
import tempfile
from pathlib import Path

import bench_report
import numpy as np
import turns
from absl import flags
from bench_report import Contender, Result, Shape

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.report import provenance

SHAPES = {
    "tiny": Shape(layers=1, width=16, heads=2, length=16, batch=4, dispatch=2, steps=4),
    "small": Shape(layers=4, width=128, heads=4, length=64, batch=12, dispatch=10, steps=100),
    "large": Shape(layers=6, width=384, heads=6, length=256, batch=16, dispatch=2, steps=4),
}
SEED = 0
LEARNING_RATE = 1e-3
BATCHES = 64  # different ones in the data, which is read round and round
OPERANDS = {"f32": "float32", "bf16": "bfloat16"}


def contenders(shape: Shape, members: int, with_peer: bool) -> dict[str, Contender]:
    """All contenders by their names on the command line, in the order of their turns."""
    found = {}
    for suffix in OPERANDS:
        found[f"product-{suffix}"] = Contender("product", suffix, 0, 10, 100)
    for suffix in OPERANDS:
        found[f"run-{suffix}"] = Contender("lmnoise", suffix, 1, shape.dispatch, shape.steps)
    # A population's round is as long as a few of one run's, not as `members` of them.
    dispatches = max(1, 2 * shape.steps // (members * shape.dispatch))
    steps = dispatches * shape.dispatch
    for suffix in OPERANDS:
        found[f"population-{suffix}"] = Contender("lmnoise", suffix, members, shape.dispatch, steps)
    for suffix in OPERANDS if with_peer else ():
        found[f"nanogpt-{suffix}"] = Contender("nanogpt", suffix, 1, 1, shape.steps)
    return found


def entry(
    contender: Contender, shape: Shape, tokens: Path, values: flags.FlagValues
) -> turns.Entry:
    """How the process of a contender starts."""
    peer = contender.kind == "nanogpt"
    specification = {
        "kind": contender.kind,
        "shape": dataclasses.asdict(shape),
        "dtype": OPERANDS[contender.operands],
        "members": contender.members,
        "dispatch": contender.dispatch,
        "learning_rate": LEARNING_RATE,
        "tokens": str(tokens),
        "model": values.peer_model,
        "compile": values.peer_compile,
    }
    script = "nanogpt_worker.py" if peer else "lmnoise_worker.py"
    return turns.Entry(contender, script, specification, values.peer_python if peer else None)


def measure(
    shape: Shape, chosen: dict[str, Contender], folder: Path, values: flags.FlagValues, title: str
) -> tuple[list[Result], list[str]]:
    """Rounds of all chosen contenders at one shape: results, and a sentence for each left out."""
    rows = np.random.default_rng(SEED).integers(
        0, shape.vocab_size, (BATCHES, shape.batch, shape.length + 1), np.int32
    )
    tokens = folder / "tokens"
    rows.tofile(tokens)
    entries = [entry(contender, shape, tokens, values) for contender in chosen.values()]
    return turns.measure(entries, values.rounds, title)


def check(values: flags.FlagValues) -> None:
    """Raises a UserError for flags that do not fit each other or the machine."""
    names = contenders(SHAPES["tiny"], values.members, with_peer=True)
    for flag, given, known in (
        ("shapes", values.shapes, SHAPES),
        ("contenders", values.contenders, names),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"--{flag}: {name!r} is not one of {', '.join(known)}")
    if not values.shapes:
        raise UserError(f"--shapes is empty: name some of {', '.join(SHAPES)}")
    if bool(values.peer_python) != bool(values.peer_model):
        raise UserError("--peer_python and --peer_model go together: name both or neither")
    if values.peer_python:
        turns.check_peer_python(values.peer_python)
        if not Path(values.peer_model).is_file():
            raise UserError(
                f"--peer_model: there is no file {values.peer_model}: name nanoGPT's model.py"
            )
    elif any(name.startswith("nanogpt") for name in values.contenders):
        raise UserError("--contenders names nanogpt, which needs --peer_python and --peer_model")


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["small", "large"], f"some of {', '.join(SHAPES)}")
    flags.DEFINE_list("contenders", [], "some of them, such as run-f32,population-f32; all if none")
    flags.DEFINE_integer("rounds", 5, "turns of each contender", lower_bound=1)
    flags.DEFINE_integer("members", 8, "members of the population", lower_bound=1)
    flags.DEFINE_string("peer_python", None, "a Python interpreter that has PyTorch")
    flags.DEFINE_string("peer_model", None, "model.py of a copy of karpathy/nanoGPT")
    flags.DEFINE_bool("peer_compile", False, "torch.compile the peer, which needs a C++ compiler")
    flags.DEFINE_string("out", "runs/bench-train", "folder of the report")


def main() -> None:
    define_flags()
    values = configs.parse()
    check(values)
    measured, left_out = {}, []
    for name in values.shapes:
        shape = SHAPES[name]
        every = contenders(shape, values.members, with_peer=bool(values.peer_python))
        chosen = {n: c for n, c in every.items() if n in (values.contenders or every)}
        with tempfile.TemporaryDirectory() as folder:
            results, missing = measure(shape, chosen, Path(folder), values, name)
        measured[name] = (shape, results)
        left_out = missing
    # Only now, because it takes hold of the devices.
    config = {
        "rounds": values.rounds,
        "members": values.members,
        "learning_rate": LEARNING_RATE,
        "peer_compile": values.peer_compile,
        "environment": turns.ENVIRONMENT,
        "shapes": {name: dataclasses.asdict(SHAPES[name]) for name in values.shapes},
    }
    origin = provenance(config, [SEED])
    print(bench_report.write(Path(values.out), measured, left_out, origin, config))


if __name__ == "__main__":
    cli.run(main)
