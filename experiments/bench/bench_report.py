"""The benchmark's numbers: rates a round, ratios of the same round, tables and CSV files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Worker

from lmnoise.errors import UserError
from lmnoise.report import Table, write_csv, write_report

NAMES = {
    "product": "matrix product (XLA)",
    "nanogpt": "nanoGPT (PyTorch)",
    "sweep": "lmnoise",
    "transformers": "PyTorch and transformers",
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT-2 without biases, its batch, and how it is run: `steps` a turn of one run."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    dispatch: int
    steps: int
    vocab_size: int = 65

    @property
    def text(self) -> str:
        return (
            f"L{self.layers} D{self.width} H{self.heads} S{self.length} B{self.batch} "
            f"V{self.vocab_size}"
        )


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured: `steps` a turn, `dispatch` of them in one call of the device."""

    kind: str
    operands: str
    members: int
    dispatch: int
    steps: int

    @property
    def name(self) -> str:
        runs = "one run" if self.members == 1 else f"{self.members} members"
        return NAMES.get(self.kind, f"lmnoise, {runs}")


@dataclasses.dataclass
class Result:
    """A contender, its process, and what `Worker.run` returned for each of its turns."""

    contender: Contender
    worker: Worker
    turns: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> np.ndarray:
        """Of each turn, (rounds,)."""
        return self.of("seconds")

    def of(self, name: str) -> np.ndarray:
        """One of the measurements of each turn, (rounds,)."""
        return np.array([turn[name] for turn in self.turns])

    def tokens(self, shape: Shape) -> int:
        """Tokens a turn, of all members."""
        contender = self.contender
        return contender.steps * contender.members * shape.batch * shape.length

    def flops(self, shape: Shape) -> float:
        """Model FLOPs a turn, of all members."""
        facts = self.worker.facts
        if "flops_per_step" in facts:
            return self.contender.steps * facts["flops_per_step"]
        return self.tokens(shape) * facts["flops_per_token"]


type Measured = Mapping[str, tuple[Shape, Sequence[Result]]]


def _is(kind: str, operands: str):
    return lambda r: (r.contender.kind, r.contender.operands) == (kind, operands)


def speed_table(shape: Shape, results: Sequence[Result], title: str) -> Table:
    """Medians over the rounds, and ratios to nanoGPT in f32 of the same round."""
    base = next(filter(_is("nanogpt", "f32"), results), None)
    peak = next(
        (r.worker.facts["peak_flops"] for r in results if "peak_flops" in r.worker.facts), 0
    )
    rows = []
    for result in results:
        contender = result.contender
        rate = result.flops(shape) / np.median(result.seconds)
        cells, share = [contender.name, contender.operands], ""
        if contender.kind == "product":
            cells += [""] * 5
        else:
            product = next(filter(_is("product", contender.operands), results), None)
            share = "" if product is None else _share(rate, product, shape)
            aggregate = result.tokens(shape) / np.median(result.seconds)
            for name in ("seconds", "cpu"):
                cells.append(f"{1e3 * np.median(result.of(name)) / contender.steps:.1f}")
            cells += [f"{aggregate:,.0f}", f"{aggregate / contender.members:,.0f}"]
            cells.insert(2, contender.dispatch)
        cells += [f"{rate / 1e12:.4g}", f"{rate / peak:.1%}" if peak else "unknown", share]
        rows.append([*cells, _ratio(result, base, shape)])
    header = [
        "contender",
        "operands",
        "steps a dispatch",
        "ms a step",
        "core-ms a step",
        "tokens/s",
        "tokens/s a member",
        "TFLOP/s",
        "MFU",
        "of matrix product",
        "times nanoGPT f32 (min to max)",
    ]
    return Table(header, rows, f"Speed at `{title}`: {shape.text}; medians of the rounds.")


def _share(rate: float, product: Result, shape: Shape) -> str:
    return f"{rate / (product.flops(shape) / np.median(product.seconds)):.0%}"


def _ratio(result: Result, base: Result | None, shape: Shape) -> str:
    if base is None or result.contender.kind == "product":
        return ""
    ratios = result.tokens(shape) / result.seconds / (base.tokens(shape) / base.seconds)
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def cost_table(shape: Shape, results: Sequence[Result], title: str) -> Table:
    """Peak memory, compilation and the way to the first step, once a contender."""
    rows = [
        [
            result.contender.name,
            result.contender.operands,
            f"{result.worker.memory / 2**20:,.0f}",
            f"{result.worker.compile:.1f}",
            f"{result.worker.first_step:.1f}",
        ]
        for result in results
        if result.contender.kind != "product"
    ]
    header = ["contender", "operands", "peak memory, MiB", "compile, s", "to the first step, s"]
    return Table(header, rows, f"Costs at `{title}`: {shape.text}; measured once.")


def rounds_table(measured: Measured) -> Table:
    """One row a turn, for other statistics than these."""
    rows = [
        [
            name,
            result.contender.name,
            result.contender.operands,
            number,
            result.contender.steps,
            turn["seconds"],
            turn["cpu"],
            turn["others"],
            result.tokens(shape) / turn["seconds"] if result.contender.members else "",
            result.flops(shape) / turn["seconds"] / 1e12,
            turn["loss"] if result.contender.members else "",
        ]
        for name, (shape, results) in measured.items()
        for result in results
        for number, turn in enumerate(result.turns)
    ]
    header = ["shape", "contender", "operands", "round", "steps", "seconds"]
    header += ["CPU seconds", "CPU seconds of others", "tokens/s", "TFLOP/s", "last loss"]
    return Table(header, rows)


def write(
    folder: Path, measured: Measured, left_out: Sequence[str], origin: dict, config: Any
) -> str:
    """Writes report, CSV files and provenance; returns the tables as Markdown.

    Raises:
      UserError: the peer's model has another number of parameters than ours.
    """
    every = [result for _, results in measured.values() for result in results]
    for _, results in measured.values():
        counts = {r.worker.facts["parameters"] for r in results if r.contender.members}
        if len(counts) > 1:
            raise UserError(
                f"the models have {' and '.join(map(str, sorted(counts)))} parameters, so they "
                "cannot be compared: name nanoGPT's own model.py in --peer_model"
            )
    for result in every:
        origin["versions"] |= result.worker.facts["versions"]
    origin["idle_cpu_seconds"] = max(result.worker.idle_cpu for result in every)
    tables = []
    for name, (shape, results) in measured.items():
        speed, cost = speed_table(shape, results, name), cost_table(shape, results, name)
        write_csv(folder / f"{name}-speed.csv", speed)
        write_csv(folder / f"{name}-cost.csv", cost)
        tables += [speed, cost]
    write_csv(folder / "rounds.csv", rounds_table(measured))
    blocks = [*tables, _notes(every, origin, config), *left_out]
    write_report(folder, "Training speed", blocks, origin, config)
    return "\n\n".join([*(table.markdown() for table in tables), f"report: {folder / 'report.md'}"])


def crowding(results: Sequence[Result], cores: int) -> float:
    """The share of the machine's CPU time that other processes took during the turns."""
    others = sum(result.of("others").sum() for result in results)
    return others / (cores * sum(result.seconds.sum() for result in results))


def quiet(share: float) -> str:
    """What the crowding means for the numbers."""
    if np.isnan(share):
        return "How busy other processes kept the machine is unknown on this system."
    text = f"Other processes took {share:.0%} of the machine's CPU time during the turns."
    if share < 0.05:
        return text
    return f"""{text} **So it was not quiet, and no rate or ratio may be quoted**: contenders
suffer unequally, most of all PyTorch on a CPU, whose threads wait for one another at the end of
every operation. Core-ms, the CPU time of a contender's own process, suffers least."""


def _notes(results: Sequence[Result], origin: dict, config: dict) -> str:
    devices = ", ".join(sorted({r.worker.facts["device"] for r in results}))
    policy = config["environment"]["OMP_WAIT_POLICY"]
    compiled = "with" if config["peer_compile"] else "without"
    return f"""## What the columns mean

Device: {devices}, one of them. The contenders were processes of their own, asked in turn for
{config["rounds"]} rounds; a turn ends when the device is done. Between turns none used more than
{origin["idle_cpu_seconds"]:.3f} s of CPU. {quiet(crowding(results, origin["machine"]["cores"]))}

- All: the same random tokens and shapes, AdamW (0.9, 0.95, decay 0.1 of every matrix, learning
  rate {config["learning_rate"]}), gradients clipped at norm 1, no biases, no dropout, tied
  embeddings. bf16 is the type of the operands (autocast in PyTorch); weights stay f32.
- lmnoise: `Population` as in training, with staging of the batches, the drawing of noise (at rate
  0), metrics a step, and several steps a dispatch; GELU by tanh. A population's tokens/s are those
  of all members together, and so is its ratio; ms a step is for a step of all members.
- nanoGPT: its own model.py and `configure_optimizers`, {compiled} torch.compile; exact GELU;
  OMP_WAIT_POLICY={policy} for PyTorch's threads.
- TFLOP/s: 6 a parameter that multiplies and token, and 12 L D S a token for attention, causality
  not deducted (arXiv 2204.02311, appendix B). MFU is of the device's dense bf16 peak, and unknown
  where the vendor's peak is not on record.
- Matrix product: square products by XLA in the same rounds, of operands of that type: a rate
  that was achieved here, not the peak.
- Peak memory: the device's, or on a CPU the resident high-water mark of the process, compilation
  included. Compile: the first dispatch less a warm one. To the first step: from the start of the
  process to the end of its first dispatch."""
