"""Tables and figures about single parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.series import Entry, along, file_name
from lmnoise.evaluation.parameters import ranked
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    style,
    write_csv,
)

type Row = dict[str, Any]

_SHOWN = 8  # rows of a table of many
ROLES = ("matched", "random")


def section(
    name: str, found: dict[str, Any], config: ConfigDict, folder: Path
) -> list[str | Table | Figure]:
    """Everything about one checkpoint; see `lmnoise.analyze.parameters.measure` for `found`."""
    stem = file_name(name)
    blocks = [f"## {name}", "### Massive activations", _massive(found["massive"])]
    path = folder / f"activations-{stem}.png"
    _draw_activations(found, path)
    blocks.append(
        Figure(path, "Largest magnitude of a dimension of the residual stream after each layer.")
    )
    screened = Table(
        ("norm weight", "value", "rise at x 10, nats per token"),
        [(r["scalar"], r["value"], r["difference"]) for r in ranked(found["screened"])[:_SHOWN]],
        f"The {_SHOWN} of {len(found['screened'])} norm weights at these dimensions that cost most "
        "when multiplied by 10, mean over the texts.",
    )
    supers = Table(
        ("entry", "value", "input over median", "output over median", "share of the spike"),
        [
            (r["scalar"], r["value"], r["input_ratio"], r["output_ratio"], r["share"])
            for r in found["super"]
        ],
        "Candidates for super weights: the entry of a down projection where its input channel and "
        "its output channel spike, in the order found, each with those before it set to zero. The "
        "share is |value| x input / output: 1 where this entry alone makes the spike.",
    )
    trials = _trials(found["trials"])
    write_csv(folder / f"trials-{stem}.csv", trials)
    blocks += ["### Candidates", screened, supers, "### Confirmed against controls", trials]
    for leaf, rows in found["scans"].items():
        path = folder / f"scan-{stem}-{file_name(leaf)}.png"
        _draw_scan(leaf, rows, [r["dimension"] for r in found["massive"]], config, path)
        table = _scan_table(rows)
        write_csv(path.with_suffix(".csv"), table)
        worst = ", ".join(f"{r['index'][0]} ({r['difference']:+.3f})" for r in ranked(rows)[:5])
        blocks += [
            f"### Every weight of {leaf}",
            Figure(path, f"Rise of the loss when one weight is multiplied by "
                   f"{config.scan_factor:g}; bars: one standard error over documents."),
            f"Largest: {worst} nats per token. Median of the other effects' size: "
            f"{np.median([abs(r['difference']) for r in rows]):.2g}.",
        ]  # fmt: skip
    if found["said"]:
        blocks += ["### What it says", Table(("change", "prompt", "continuation"), found["said"])]
    return blocks


def _massive(rows: Sequence[Row]) -> Table:
    return Table(
        ("dimension", "largest over median", "largest", "at layer", "position", "layers with half"),
        [
            (r["dimension"], r["ratio"], r["largest"], r["layer"], r["position"],
             f"{r['first_layer']} to {r['last_layer']}")
            for r in rows
        ],
        "Dimensions of the residual stream with the largest magnitude, over the median of their "
        "layer (arXiv 2402.17762 calls 1,000 massive). Position 0 is the first token of a window.",
    )  # fmt: skip


def _trials(rows: Sequence[Row]) -> Table:
    """A row a candidate and operation: its effect, and those of its controls."""
    table = []
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == candidate]
        for operation in dict.fromkeys(_kind(row) for row in own):
            chosen = [row for row in own if _kind(row) == operation]
            effects = {
                role: _by_scalar([row for row in chosen if row["role"] == role])
                for role in ("candidate", *ROLES)
            }
            [effect] = effects["candidate"]
            table.append((candidate, operation, effect, *(_mean(effects[role]) for role in ROLES)))
    return Table(
        ("parameter", "operation", "rise, nats per token", *(f"{role} controls" for role in ROLES)),
        table,
        "Rise of the loss, mean over the texts, when one number is changed; controls are other "
        "entries of the same tensor, of about the same magnitude or any, mean and 95 % interval "
        "over controls. `drawn anew` is the mean over the draws.",
    )


def _kind(row: Row) -> str:
    return "drawn anew" if row["operation"].startswith("randomise") else row["operation"]


def _by_scalar(rows: Sequence[Row]) -> list[float]:
    """The mean effect of each scalar, over draws."""
    scalars = dict.fromkeys(row["scalar"] for row in rows)
    return [
        float(np.mean([row["difference"] for row in rows if row["scalar"] == scalar]))
        for scalar in scalars
    ]


def _mean(values: Sequence[float]) -> Estimate | str:
    return mean_and_error(values) if values else "-"


def _draw_activations(found: dict[str, Any], path: Path) -> None:
    largest_LD, median_L = np.asarray(found["largest"]), np.asarray(found["median"])
    layers = np.arange(len(median_L))
    dimensions = [row["dimension"] for row in found["massive"]]
    with style():
        fig = MatplotlibFigure()
        ax = fig.subplots()
        for d in dimensions:
            ax.plot(layers, largest_LD[:, d], marker="o", markersize=3, label=f"dimension {d}")
        rest_LD = np.delete(largest_LD, dimensions, axis=1)
        ax.plot(layers, rest_LD.max(1), color="grey", label="largest of all others")
        ax.plot(layers, median_L, color="black", linestyle="--", label="median of all entries")
        ax.set_yscale("log")
        ax.set_xlabel("layer")
        ax.set_ylabel("magnitude in the residual stream")
        ax.legend()
        savefig(fig, path)


def _scan_table(rows: Sequence[Row]) -> Table:
    [source] = [key.removesuffix("/standard_error") for key in rows[0] if "standard_error" in key]
    return Table(
        ("dimension", "value", "rise, nats per token", "standard error"),
        [
            (r["index"][0], r["value"], r[f"{source}/difference"], r[f"{source}/standard_error"])
            for r in rows
        ],
    )


def _draw_scan(
    leaf: str, rows: Sequence[Row], massive: Sequence[int], config: ConfigDict, path: Path
) -> None:
    table = np.asarray(_scan_table(rows).rows, float)
    dimension, rise, error = table[:, 0], table[:, 2], table[:, 3]
    with style():
        fig = MatplotlibFigure(figsize=(8, 3.6))
        ax = fig.subplots()
        bars = dict(linestyle="none", marker="o", markersize=3, elinewidth=0.6)
        ax.errorbar(dimension, rise, error, color=COLOURS[0], label="one weight", **bars)
        marked = np.isin(dimension, massive)
        ax.errorbar(
            dimension[marked], rise[marked], error[marked], color=COLOURS[1],
            label="at a massive dimension", **bars,
        )  # fmt: skip
        ax.set_yscale("symlog", linthresh=max(1e-4, float(np.median(np.abs(rise)))))
        ax.set_xlabel(f"dimension of {leaf}")
        ax.set_ylabel(f"rise at x {config.scan_factor:g}, nats per token")
        ax.legend()
        savefig(fig, path)


def along_series(series: Sequence[Entry], folder: Path) -> list[str | Table | Figure]:
    """How massive activations and single parameters grow along a series; nothing for one model."""
    if len(series) < 2:
        return []
    path = folder / "series.png"
    worst = {
        role: [
            ranked([row for row in e.result["trials"] if row["role"] == role])[0]["difference"]
            for e in series
        ]
        for role in ("candidate", *ROLES)
    }
    with style():
        fig = MatplotlibFigure(figsize=(9, 3.8))
        left, right = fig.subplots(1, 2)
        ratios = [max(row["ratio"] for row in e.result["massive"]) for e in series]
        left.plot(along(series, left), ratios, marker="o")
        left.set_yscale("log")
        left.set_ylabel("largest activation over its layer's median")
        for role, rises in worst.items():
            right.plot(along(series, right), rises, marker="o", label=role)
        right.set_yscale("symlog", linthresh=0.01)
        right.set_ylabel("worst rise by one parameter, nats per token")
        right.legend()
        savefig(fig, path)
    caption = "Left: massive activations. Right: the worst change of one number among candidates "
    return ["## Along the series", Figure(path, caption + "and among their controls.")]
