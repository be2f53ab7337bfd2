"""Tables and figures of size, stages and mixing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from memorization_forgetting import Curve, changes
from ml_collections import ConfigDict

from lmnoise.analyze.defaults import label
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    paired_difference,
    savefig,
    style,
    write_csv,
)

type Block = str | Table | Figure


def sizes(found: dict[str, Curve], section: ConfigDict, folder: Path) -> list[Block]:
    """The chapter of the small and the large narrow set."""
    own = label(section.corpus)
    names = tuple(next(iter(found.values())).after)
    rows = [
        (f"{name}, {section[name]} windows",
         round(section.steps * section.batch_size / section[name], 1),
         mean_and_error(curve.losses[own][:, -1]),
         *(mean_and_error(curve.after[key]) for key in names))
        for name, curve in found.items()
    ]  # fmt: skip
    table = Table(
        ("set", "epochs", "held-out loss at the end, nats", *names),
        rows,
        f"Both for {section.steps} updates of {section.batch_size} windows. Verbatim: half a "
        f"window is given and the next {section.new_tokens} tokens come back, greedily, for "
        f"{section.probes} windows that were trained on, and for unseen ones. 95 % intervals over "
        f"{len(section.seeds)} seeds.",
    )
    write_csv(folder / "sizes.csv", table)
    return ["## A small narrow set and a large one", table]


def stages(found: dict[str, Curve], section: ConfigDict, folder: Path) -> list[Block]:
    """The chapter of two stages against one mixture."""
    first, second = label(section.first), label(section.second)
    rows = []
    for name, curve in found.items():
        for source in curve.losses:
            start, half, end = (mean_and_error(curve.losses[source][:, i]) for i in _thirds(curve))
            rows.append((name, source, start, half, end))
    table = Table(
        ("plan", "held-out text", "before", "after half of the updates", "at the end"),
        rows,
        f"Loss in nats per token with 95 % intervals over {len(section.seeds)} seeds. Staged: "
        f"{section.rows} windows of {first}, then as many of {second}, each with a warm-up and a "
        "cosine; mixed: the same windows in one order under one cosine.",
    )
    write_csv(folder / "stages.csv", table)
    bars = {
        f"{first}, from the end of stage 1": {
            "staged": forgotten(found, section),
        },
        f"{first}, staged - mixed": {"staged - mixed": between(found, first)},
        f"{second}, staged - mixed": {"staged - mixed": between(found, second)},
    }
    _bars(bars, "change of held-out loss, nats per token", folder / "stages.png")
    return [
        "## Two stages against one mixture",
        Figure(
            folder / "stages.png",
            "What the second stage undoes of the first, and two stages against one mixture of the "
            "same windows; bars: 95 % intervals over seeds.",
        ),
        table,
    ]


def _thirds(curve: Curve) -> tuple[int, int, int]:
    return 0, int(np.abs(curve.steps_H - curve.steps_H[-1] / 2).argmin()), -1


def forgotten(found: dict[str, Curve], section: ConfigDict) -> Estimate:
    """How much the loss on the first stage's text rises in the second stage."""
    losses_RH = found["staged"].losses[label(section.first)]
    return paired_difference(losses_RH[:, -1], losses_RH[:, _thirds(found["staged"])[1]])


def between(found: dict[str, Curve], source: str) -> Estimate:
    """The loss at the end of two stages minus that of the mixture."""
    return paired_difference(
        found["staged"].losses[source][:, -1], found["mixed"].losses[source][:, -1]
    )


def mixing(found: dict[str, Curve], section: ConfigDict, folder: Path) -> list[Block]:
    """The chapter of many epochs over little text."""
    own, original = label(section.corpus), label(section.original)
    rows = [
        (name, int(curve.steps_H[-1]), mean_and_error(changes(curve, original)),
         mean_and_error(changes(curve, own)), mean_and_error(curve.after["loss on its rows"]))
        for name, curve in found.items()
    ]  # fmt: skip
    table = Table(
        ("plan", "updates", f"rise on {original}", f"rise on {own}, held out",
         "loss on the rows themselves"),
        rows,
        f"{section.rows} windows of {own}, {section.epochs} epochs, alone and among so many times "
        f"as many windows of {original}, on which the model was pre-trained; and as many windows "
        f"of {own} as those are seen, each once. Nats per token, 95 % "
        f"intervals over {len(section.seeds)} seeds.",
    )  # fmt: skip
    write_csv(folder / "mixing.csv", table)
    bars = {
        name: {
            original: mean_and_error(changes(curve, original)),
            f"{own}, held out": mean_and_error(changes(curve, own)),
        }
        for name, curve in found.items()
    }
    _bars(bars, "rise of held-out loss, nats per token", folder / "mixing.png")
    return [
        "## Many epochs over little text",
        Figure(
            folder / "mixing.png",
            "Rise of the held-out loss by the fine-tuning; bars: 95 % intervals over seeds.",
        ),
        table,
    ]


def _bars(groups: dict[str, dict[str, Estimate]], what: str, path: Path) -> None:
    names: Sequence[Any] = list(dict.fromkeys(n for group in groups.values() for n in group))
    with style():
        fig = MatplotlibFigure(figsize=(7.5, 0.9 + 0.5 * sum(map(len, groups.values()))))
        ax = fig.subplots()
        at, ticks, seen = 0.0, [], set()
        for group in groups.values():
            begin = at
            for name, value in group.items():
                colour = COLOURS[names.index(name)]
                ax.barh(at, value.mean, 0.8, color=colour, xerr=np.nan_to_num(value.half_width),
                        error_kw={"capsize": 3}, label=None if name in seen else name)  # fmt: skip
                seen.add(name)
                at += 1
            ticks.append((begin + at - 1) / 2)
            at += 0.6
        ax.set_yticks(ticks, list(groups))
        ax.invert_yaxis()
        ax.axvline(0, color="k", lw=0.8)
        ax.set_xlabel(what)
        ax.legend()
        savefig(fig, path)
