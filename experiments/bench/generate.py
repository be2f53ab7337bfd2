"""Benchmark: generation over a KV cache, greedy and sampled, beside transformers.

    python experiments/bench/generate.py --out=runs/bench-generate --peer_python=/path/to/python

The peer, left out unless named, is an interpreter with PyTorch and transformers, whose `generate`
reads the same Hugging Face folder: random weights of a shape, or --checkpoint. Both continue the
same prompts by the same number of tokens in float32; their greedy tokens must agree, near-ties
aside. Every contender is a process that is started and warmed up once; then all are asked in turn.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import turns
from absl import flags
from bench_report import Result, crowding, quiet, span, turns_table
from contenders import Contender

from lmnoise import cli, tree
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.models.pretrained import read_folder, read_json, write_folder
from lmnoise.models.transformer import LanguageModel, TransformerConfig, gpt2, llama
from lmnoise.report import Table, provenance, write_csv, write_report

SEED = 0
METHODS = ("greedy", "sampling")
SIDES = {
    "lmnoise": "lmnoise",
    "dynamic": "transformers",
    "static": "transformers, static cache",
    "compiled": "transformers, static cache, torch.compile",
}
PEERS = tuple(SIDES)[1:]
# Logits of two tokens that differ by less are a near-tie, which rounding decides.
NEAR = 1e-3


@dataclasses.dataclass(frozen=True)
class Work:
    """A model, prompts of one length, and the continuations that a turn makes."""

    config: TransformerConfig
    batch: int
    prompt: int
    new_tokens: int
    repeats: int = 1

    @property
    def text(self) -> str:
        c = self.config
        return (
            f"L{c.layers} D{c.width} H{c.heads} V{c.vocab_size}, batch {self.batch}, prompts of "
            f"{self.prompt} and {self.new_tokens} new tokens, {self.repeats} times a turn"
        )


_MEDIUM = gpt2(vocab_size=4096, context=128, layers=6, width=384, heads=6)
_SMOLLM2 = llama(
    **dict(vocab_size=49_152, context=256, layers=30, width=576, heads=9, kv_heads=3),
    **dict(mlp_width=1536, tied=True),
)
WORK = {
    "tiny": Work(gpt2(vocab_size=64, context=16, layers=1, width=16, heads=2), 4, 5, 8),
    "small": Work(
        gpt2(vocab_size=512, context=128, layers=4, width=128, heads=4), 64, 16, 112, repeats=2
    ),
    "medium": Work(_MEDIUM, 16, 32, 96),
    "single": Work(_MEDIUM, 1, 32, 96, repeats=3),
    "smollm2": Work(_SMOLLM2, 1, 32, 32),
}

type Measured = Mapping[str, tuple[Work, Sequence[Result]]]


class Agreement(NamedTuple):
    """Rows whose greedy tokens differ from ours: how many of how many, and by what at most."""

    rows: int
    differ: int
    gap: float


@dataclasses.dataclass(frozen=True)
class Side(Contender):
    """A side with one method. `threads` are PyTorch's."""

    method: str = ""
    threads: int = 0

    @property
    def name(self) -> str:
        return SIDES[self.kind] + (f", threads: {self.threads}" if self.threads else "")


def contenders(
    methods: Sequence[str], repeats: int, caches: Sequence[str], threads: Sequence[int]
) -> list[Side]:
    """In the order of their turns: all sides with a method, then with the next one.

    Args:
      methods: some of `METHODS`.
      repeats: batches a turn.
      caches: some of `PEERS`.
      threads: of PyTorch, a contender each; none without a peer.
    """
    sides = [("lmnoise", 0)] + [(cache, count) for cache in caches for count in threads]
    return [
        Side(kind, "f32", 1, 1, repeats, method=method, threads=count)
        for method in methods
        for kind, count in sides
    ]


def random_weights(config: TransformerConfig) -> Any:
    """Parameters under which a token depends on all before it, not on the last one alone."""
    generator = np.random.default_rng(SEED)

    def draw(name, spec):
        fan_in = config.width if name in ("tokens", "positions") else spec.shape[0]
        noise = generator.standard_normal(spec.shape, np.float32) if spec.std else 0.0
        return np.full(spec.shape, spec.constant, np.float32) + np.float32(fan_in**-0.5) * noise

    unrolled = dataclasses.replace(config, layers_as="unrolled")
    return tree.map_named(draw, LanguageModel(unrolled).specs)


def entry(
    side: Side, work: Work, model: Path, folder: Path, peer_python: str | None
) -> turns.Entry:
    """How the process of a side starts; `folder` holds the prompts, and takes its cache."""
    specification = {
        "kind": side.kind,
        "method": side.method,
        "threads": side.threads,
        "model": str(model),
        "prompts": str(folder / "prompts"),
        "batch": work.batch,
        "new_tokens": work.new_tokens,
        "dispatch": side.dispatch,
    }
    if side.kind == "lmnoise":
        return turns.Entry(side, "generate_worker.py", specification)
    cache = folder / f"{side.kind}-{side.method}-{side.threads}"
    script = "generate_transformers_worker.py"
    return turns.Entry(
        side, script, specification, peer_python, cache if side.kind == "compiled" else None
    )


def measure(
    name: str, work: Work, sides: Sequence[Side], values: flags.FlagValues
) -> tuple[list[Result], list[str], Agreement]:
    """Rounds of all contenders on one shape: results, and a sentence for each left out."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = Path(values.checkpoint or folder)
        if not values.checkpoint:
            write_folder(folder, work.config, random_weights(work.config))
        shape = work.batch, work.prompt
        generator = np.random.default_rng(SEED)
        prompts_BS = generator.integers(0, work.config.vocab_size, shape, np.int32)
        prompts_BS.tofile(folder / "prompts")
        entries = [entry(side, work, model, folder, values.peer_python) for side in sides]
        results, left_out = turns.measure(entries, values.rounds, name)
        return results, left_out, check_agreement(name, results, prompts_BS, model)


def check_agreement(
    name: str, results: Sequence[Result], prompts_BS: np.ndarray, model: Path
) -> Agreement:
    """Holds the peers' greedy tokens against ours, after all turns since it needs the device.

    Raises:
      UserError: the sides differ in their parameters, or in a token that is no near-tie.
    """
    counts = {result.worker.facts["parameters"] for result in results}
    if len(counts) > 1:
        raise UserError(
            f"at {name} the models have {' and '.join(map(str, sorted(counts)))} parameters, so "
            "they cannot be compared: give another --checkpoint"
        )
    ours, *peers = [
        np.array(result.worker.facts["tokens"])
        for result in results
        if result.contender.method == "greedy"
    ] or [np.zeros((0, 0))]
    gaps = [_gap(ours, theirs, prompts_BS, model) for theirs in peers]
    parted = np.concatenate([np.zeros(0), *gaps])
    largest = float(parted.max(initial=0.0))
    if not largest < NEAR:
        raise UserError(
            f"at {name} greedy tokens differ where their logits do by {largest:.2g}, so the sides "
            "do not compute the same model: give another --checkpoint"
        )
    return Agreement(len(ours) * len(peers), len(parted), largest)


def _gap(ours_BN, theirs_BN, prompts_BS, folder):
    """By how much the logits of the first tokens that differ do, one number a row that differs."""
    (rows,) = np.nonzero((ours_BN != theirs_BN).any(1))
    if not len(rows):
        return np.zeros(0)
    config, params = read_folder(folder)
    first = (ours_BN != theirs_BN)[rows].argmax(1)
    tokens_BT = np.concatenate([prompts_BS, ours_BN], 1)[rows].astype(np.int32)
    at = prompts_BS.shape[1] + first - 1
    logits_BV = np.asarray(jax.jit(LanguageModel(config).logits_at)(params, tokens_BT, at))
    one, other = (
        logits_BV[np.arange(len(rows)), tokens_BN[rows, first]]
        for tokens_BN in (ours_BN, theirs_BN)
    )
    return np.abs(one - other)


def speed_table(name: str, work: Work, results: Sequence[Result]) -> Table:
    """One row a contender and method: medians over the rounds, ratios of the same round."""
    rows, tokens = [], work.repeats * work.batch * work.new_tokens
    for result in results:
        side = result.contender
        ours = next(r for r in results if r.contender.method == side.method)
        rows.append(
            [
                side.name,
                side.method,
                span(tokens / result.seconds, ",.0f"),
                span(result.seconds / ours.seconds, ".1f"),
                f"{1e6 * np.median(result.of('cpu')) / tokens:.1f}",
                f"{np.median(result.of('cpu') / ours.of('cpu')):.1f}",
                f"{result.memory / 2**20:,.0f}",
                f"{result.worker.compile:.1f}",
                f"{result.worker.first_step:.1f}",
            ]
        )
    header = ["contender", "method", "tokens/s", "times the seconds of lmnoise", "core-us a token"]
    header += ["times the core-s of lmnoise", "peak memory, MiB", "compile, s"]
    header.append("start and first batch, s")
    caption = f"`{name}`: {work.text}; warm processes, medians over the rounds (min to max)."
    return Table(header, rows, caption)


def verdict(measured: Measured) -> list[str]:
    """A sentence with each shape's factor to the fastest setting of the peer; none without one."""
    found = []
    for name, (_, results) in measured.items():
        for method in dict.fromkeys(r.contender.method for r in results):
            ours, *peers = [r for r in results if r.contender.method == method]
            if peers:
                factors = {p.contender.name: np.median(p.seconds / ours.seconds) for p in peers}
                fastest = min(factors, key=factors.get)
                found.append(f"{name}, {method}: {factors[fastest]:.1f} ({fastest})")
    if not found:
        return []
    return [
        "Seconds of the peer's fastest setting, as multiples of lmnoise's for the same work "
        f"(below 1 the peer is faster): {'; '.join(found)}."
    ]


def notes(measured: Measured, agreements: Mapping[str, Agreement], cores: int) -> str:
    """What was compared, in Markdown."""
    every = [result for _, results in measured.values() for result in results]
    devices = ", ".join(sorted({result.worker.facts["device"] for result in every}))
    agreed = "; ".join(
        f"{name}: {a.differ} of {a.rows} rows part from ours"
        + (f", where logits differ by {a.gap:.1e} at most" if a.differ else "")
        for name, a in agreements.items()
        if a.rows
    )
    compared = f"Greedy tokens beside the peer's, row by row: {agreed}." if agreed else ""
    return f"""## What the columns mean

Device: {devices}. All: the same weights and random prompts, float32, new tokens of a fixed number
whatever they are, reading the prompts included; sampling at temperature 1 from the whole
vocabulary, each side with draws of its own. {compared} {quiet(crowding(every, cores))}

- lmnoise: `lmnoise.evaluation.generation.generate`, one run, prompts and tokens as lists.
- transformers: `generate` with scaled_dot_product_attention in inference mode and its growing
  (dynamic) cache, or as the name says; OMP_WAIT_POLICY={turns.ENVIRONMENT["OMP_WAIT_POLICY"]} for
  its threads.
- Core-us: CPU time of the process. Peak memory: the device's, or on a CPU the resident high-water
  mark of the process, loading and compilation included. Compile: the first two batches less two
  warm ones. Start and first batch: from the start of the process, with imports and loading."""


def check(values: flags.FlagValues) -> None:
    """Raises a UserError for flags that do not fit each other."""
    for flag, known in (("shapes", WORK), ("methods", METHODS), ("caches", PEERS)):
        chosen = getattr(values, flag)
        if not chosen or not set(chosen) <= set(known):
            raise UserError(f"--{flag}: name some of {', '.join(known)}, not {','.join(chosen)}")
    if not values.threads or any(not t.isdigit() or t == "0" for t in values.threads):
        raise UserError(f"--threads: name numbers from 1 up, not {','.join(values.threads)}")
    if values.peer_python:
        turns.check_peer_python(values.peer_python)


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["small", "medium", "single"], f"some of {', '.join(WORK)}")
    flags.DEFINE_string("checkpoint", "", "a Hugging Face folder in place of random weights")
    flags.DEFINE_list("methods", list(METHODS), f"some of {', '.join(METHODS)}")
    flags.DEFINE_list("caches", ["dynamic"], f"of the peer, some of {', '.join(PEERS)}")
    flags.DEFINE_list("threads", ["1", "2"], "of PyTorch, a contender each")
    flags.DEFINE_integer("rounds", 5, "turns of each contender", lower_bound=1)
    flags.DEFINE_string("peer_python", None, "a Python interpreter with PyTorch and transformers")
    flags.DEFINE_string("out", "runs/bench-generate", "folder of the report")


def main() -> None:
    define_flags()
    values = configs.parse()
    check(values)
    threads = [int(t) for t in values.threads] if values.peer_python else []
    measured, left_out, agreements = {}, [], {}
    for name in values.shapes:
        work = WORK[name]
        if values.checkpoint:
            work = dataclasses.replace(work, config=read_folder(Path(values.checkpoint))[0])
        sides = contenders(values.methods, work.repeats, values.caches, threads)
        results, missing, agreements[name] = measure(name, work, sides, values)
        measured[name] = (work, results)
        left_out += [f"At {name}: {sentence}" for sentence in missing]
    if not values.peer_python:
        left_out.append("transformers was not measured: name --peer_python.")
    names = ("methods", "caches", "threads", "rounds")
    config = {name: getattr(values, name) for name in names} | {
        "checkpoint": values.checkpoint and read_json(Path(values.checkpoint), "config.json"),
        "environment": turns.ENVIRONMENT,
        "work": {name: dataclasses.asdict(work) for name, (work, _) in measured.items()},
    }
    write(Path(values.out), measured, agreements, left_out, config)


def write(
    folder: Path,
    measured: Measured,
    agreements: Mapping[str, Agreement],
    left_out: list[str],
    config: dict[str, Any],
) -> None:
    """Report, CSV files and provenance; the tables are printed too."""
    origin, tables = provenance(config, [SEED]), []
    for name, (work, results) in measured.items():
        for result in results:
            origin["versions"] |= result.worker.facts["versions"]
        tables.append(speed_table(name, work, results))
        write_csv(folder / f"{name}-speed.csv", tables[-1])
    write_csv(folder / "rounds.csv", turns_table(measured, {"method": "method"}, "mean token"))
    said = [*verdict(measured), *left_out]
    blocks = [*said, *tables, notes(measured, agreements, origin["machine"]["cores"])]
    write_report(folder, "Speed of generation", blocks, origin, config)
    print("\n\n".join([*(table.markdown() for table in tables), *said]))
    print(f"\nreport: {folder / 'report.md'}")


if __name__ == "__main__":
    cli.run(main)
