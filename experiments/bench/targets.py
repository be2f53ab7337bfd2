"""The project's targets of speed, and which of them a benchmark's results meet."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bench_report import BUSY, Measured, Result, crowding, find, span
from contenders import SHAPES, Shape

from lmnoise.report import Table


class Target(NamedTuple):
    """The fastest of `ours` at least `least` times as fast as the fastest of `theirs`.

    Without `theirs`, `least` is tokens/s.
    """

    text: str
    on_cpu: bool
    shapes: tuple[str, ...]
    operands: str
    ours: str
    theirs: tuple[str, ...]
    least: float


MEMBERS = 8  # of the target for populations
NANOGPT = ("nanogpt", "nanogpt-compile")
TARGETS = (
    Target("ahead of PyTorch in f32", True, ("small", "large"), "f32", "run", NANOGPT, 1.0),
    Target(
        "within 1.5 times of PyTorch in bf16",
        True,
        ("small", "large"),
        "bf16",
        "run",
        NANOGPT,
        1 / 1.5,
    ),
    Target("45 % of 989 TFLOP/s: 519,000 tokens/s", False, ("gpt2",), "bf16", "run", (), 519e3),
    Target(
        "ahead of nanoGPT with torch.compile",
        False,
        ("gpt2",),
        "bf16",
        "run",
        ("nanogpt-compile",),
        1.0,
    ),
    Target("twice nanodo", False, ("gpt2",), "bf16", "run", ("nanodo",), 2.0),
    Target(
        "8 members at least 4 times as fast as 8 runs in a row",
        False,
        ("population10m",),
        "bf16",
        "population",
        ("run",),
        4.0,
    ),
)


def targets_table(measured: Measured, cores: int) -> Table:
    """What each target asks, what was measured, and whether it was met.

    A target holds for its own batch and members, and on a machine that does nothing else.
    """
    rows = []
    results = [result for _, found in measured.values() for result in found]
    busy = crowding(results, cores) >= BUSY
    for target in TARGETS:
        for name in target.shapes:
            shape, results = measured.get(name, (None, ()))
            machine = "CPU" if target.on_cpu else "H100-class GPU"
            row = [target.text, machine, name, target.operands]
            rows.append([*row, *_verdict(target, name, shape, results, busy)])
    header = ["target", "on", "shape", "operands", "measured", "verdict"]
    caption = (
        "Targets: the median over the rounds decides. Ratios are of the same round, to the fastest "
        "contender that the target names (of nanoGPT without and with torch.compile)."
    )
    return Table(header, rows, caption)


def _verdict(
    target: Target, name: str, shape: Shape | None, results: Sequence[Result], busy: bool
) -> tuple[str, str]:
    ours = find(results, target.ours, operands=target.operands)
    peers = [find(results, kind, operands=target.operands) for kind in target.theirs]
    peers = [peer for peer in peers if peer is not None]
    if ours is None or (target.theirs and not peers):
        return "", "not measured"
    if target.theirs:
        best = max(peers, key=lambda peer: np.median(peer.rates(shape)))
        values = ours.rates(shape) / best.rates(shape)
        text = f"{span(values)} times {best.contender.name}"
    else:
        values = ours.rates(shape)
        text = f"{span(values, ',.0f')} tokens/s"
    device = ours.worker.facts["device"].lower()
    if target.on_cpu != (device == "cpu") or not (
        target.on_cpu or "h100" in device or "h200" in device
    ):
        return text, f"not measured on its machine, but on {device}"
    if shape.batch != SHAPES[name].batch:
        return text, f"not measured with its {SHAPES[name].batch} rows"
    if ours.contender.members not in (1, MEMBERS):
        return text, f"not measured with {MEMBERS} members"
    if busy:
        return text, "not measured on a quiet machine"
    return text, "met" if np.median(values) >= target.least else "not met"
