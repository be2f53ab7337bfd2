"""Benchmark: a sweep over strengths and seeds of weight noise, beside a loop in PyTorch.

    python -m lmnoise.convert smollm2 runs/smollm2
    python experiments/bench/perturb.py --checkpoint=runs/smollm2 --out=runs/bench-perturb \\
        --peer_python=/path/to/python

The peer, left out without --peer_python, is an interpreter with PyTorch and transformers. Both
read the same Hugging Face folder and score the same tokens in float32 and batches of one shape
after Gaussian noise on every tensor, in units of its root mean square; without noise their losses
must agree. Each is a process that is started and warmed up once; then they are asked in turn.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import turns
from absl import flags
from bench_report import Result, crowding, quiet, span
from contenders import NAMES, Contender

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.models.pretrained import read_folder
from lmnoise.report import Table, provenance, write_csv, write_report

SEED = 0
TOLERANCE = 1e-3  # nats per token between two implementations of the same float32 model


def measure(values: flags.FlagValues, strengths: list[float]) -> tuple[list[Result], list[str]]:
    """Rounds of both sides: results, and a sentence for a peer that is left out."""
    shape = (values.windows, values.batch, values.length + 1)
    model, _ = read_folder(Path(values.checkpoint))
    tokens_KBT = np.random.default_rng(SEED).integers(0, model.vocab_size, shape, np.int32)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokens_KBT.tofile(tokens)
        entries = []
        for kind, script, python in (
            ("sweep", "lmnoise_worker.py", None),
            ("transformers", "transformers_worker.py", values.peer_python),
        ):
            if kind == "sweep" or python:
                specification = {
                    "kind": kind,
                    "model": values.checkpoint,
                    "shape": shape,
                    "strengths": strengths,
                    "tokens": str(tokens),
                    "dispatch": 1,
                }
                contender = Contender(kind, "f32", 1, 1, len(strengths) * values.seeds)
                entries.append(turns.Entry(contender, script, specification, python))
        return turns.measure(entries, values.rounds, "sweep")


def check_agreement(results: Sequence[Result]) -> float:
    """The largest difference of the losses without noise, in nats per token.

    Raises:
      UserError: the two sides did not evaluate the same model.
    """
    facts = [result.worker.facts for result in results]
    gap = float(np.ptp([f["unperturbed"] for f in facts]))
    if not gap < TOLERANCE or len({f["parameters"] for f in facts}) > 1:
        losses = " and ".join(f"{f['unperturbed']:.4f}" for f in facts)
        raise UserError(
            f"the losses without noise are {losses} nats per token, so the two sides do not "
            "compute the same model: give another --checkpoint"
        )
    return gap


def speed_table(results: Sequence[Result], tokens: int) -> Table:
    """Medians over the rounds, and ratios to the peer's speed in the same round."""
    base = next((r for r in results if r.contender.kind == "transformers"), None)
    rows = []
    for result in results:
        count, worker = result.contender.steps, result.worker
        seconds = np.median(result.seconds) / count
        ratios = ["", ""]
        if base is not None:
            ratios = [span(base.of(name) / result.of(name)) for name in ("seconds", "cpu")]
        rows.append(
            [
                result.contender.name,
                f"{1 / seconds:.3f}",
                f"{tokens / seconds:,.0f}",
                f"{np.median(result.of('cpu')) / count:.2f}",
                f"{result.memory / 2**20:,.0f}",
                f"{worker.compile:.1f}",
                f"{worker.first_step:.1f}",
                *ratios,
            ]
        )
    header = ["contender", "evaluations/s", "tokens/s", "core-s an evaluation"]
    header += ["peak memory, MiB", "compile, s", "to the first evaluation, s"]
    header += [f"{what}, times {NAMES['transformers']}" for what in ("speed", "speed a core-s")]
    return Table(
        header, rows, "Medians over the rounds; ratios are of the same round (min to max)."
    )


def rounds_table(results: Sequence[Result]) -> Table:
    """One row a turn, for other statistics than these."""
    header = ["contender", "round", "evaluations", "seconds", "CPU seconds"]
    header += ["CPU seconds of others", "last loss"]
    rows = [
        [
            result.contender.name,
            number,
            result.contender.steps,
            *(turn[name] for name in ("seconds", "cpu", "others", "loss")),
        ]
        for result in results
        for number, turn in enumerate(result.turns)
    ]
    return Table(header, rows)


def notes(results: Sequence[Result], gap: float, cores: int, config: dict[str, Any]) -> str:
    """What was compared, in Markdown."""
    devices = ", ".join(sorted({result.worker.facts["device"] for result in results}))
    agreement = "" if len(results) < 2 else f"Without noise their losses differ by {gap:.1e} nats."
    return f"""## What the columns mean

Device: {devices}. An evaluation draws noise for all {results[0].worker.facts["parameters"]:,}
parameters, adds it, and scores {config["windows"]} batches of {config["batch"]} x
{config["length"]} random tokens in float32. A turn is {results[0].contender.steps} evaluations:
strengths {", ".join(map(str, config["strengths"]))} times the root mean square of each tensor, and
{config["seeds"]} seeds. {agreement} {quiet(crowding(results, cores))}

- lmnoise: one member at a time on a CPU, elsewhere as many as fit in the free memory.
- PyTorch and transformers: scaled_dot_product_attention, inference mode, all cores, a kept copy
  of the weights; OMP_WAIT_POLICY={turns.ENVIRONMENT["OMP_WAIT_POLICY"]} for its threads.
- Peak memory: the device's, or on a CPU the resident high-water mark of the process, loading and
  compilation included. Compile: the first two evaluations less two warm ones. To the first
  evaluation: from the start of the process, loading included."""


def define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "a Hugging Face folder", required=True)
    flags.DEFINE_string("peer_python", None, "a Python interpreter with PyTorch and transformers")
    flags.DEFINE_list("strengths", ["0.01", "0.1"], "of the noise, in units of the weights' RMS")
    flags.DEFINE_integer("seeds", 2, "seeds at each strength", lower_bound=1)
    flags.DEFINE_integer("windows", 4, "batches an evaluation", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "rows a batch", lower_bound=1)
    flags.DEFINE_integer("length", 512, "tokens a row", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "turns of each contender", lower_bound=1)
    flags.DEFINE_string("out", "runs/bench-perturb", "folder of the report")


def main() -> None:
    define_flags()
    values = configs.parse()
    try:
        strengths = [float(strength) for strength in values.strengths]
    except ValueError:
        raise UserError(f"--strengths must be numbers, not {','.join(values.strengths)}") from None
    if not strengths:
        raise UserError("--strengths is empty: name some, such as 0.01,0.1")
    if values.peer_python:
        turns.check_peer_python(values.peer_python)
    results, left_out = measure(values, strengths)
    gap = check_agreement(results)
    names = ("seeds", "windows", "batch", "length", "rounds")
    config = {name: values[name].value for name in names} | {
        "strengths": strengths,
        "environment": turns.ENVIRONMENT,
    }
    origin = provenance(config, [SEED])
    for result in results:
        origin["versions"] |= result.worker.facts["versions"]
    table = speed_table(results, values.windows * values.batch * values.length)
    folder = Path(values.out)
    write_csv(folder / "speed.csv", table)
    write_csv(folder / "rounds.csv", rounds_table(results))
    blocks = [table, notes(results, gap, origin["machine"]["cores"], config), *left_out]
    write_report(folder, "Speed of a perturbation sweep", blocks, origin, config)
    print(f"{table.markdown()}\n\nreport: {folder / 'report.md'}")


if __name__ == "__main__":
    cli.run(main)
