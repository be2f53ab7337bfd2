"""Tables and figures about linguistic regions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.series import Entry, along, file_name, percent
from lmnoise.analyze.subject import over_seeds
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

NAMES = {
    "taylor": {
        "core": "core (top)",
        "opposite": "bottom",
        "random": "random",
        "largest": "largest weights",
    },
    "change": {
        "core": "core (least changed)",
        "opposite": "most changed",
        "random": "random",
        "largest": "largest weights",
    },
}


def section(
    name: str, found: dict[str, Any], config: ConfigDict, folder: Path
) -> list[str | Table | Figure]:
    """Everything about one checkpoint; see `lmnoise.analyze.regions.measure` for `found`."""
    rule = config.rule
    stem = f"{file_name(name)}-{rule}"
    sources = list(found["loss"])
    table = removal_table(found, rule)
    write_csv(folder / f"removed-{stem}.csv", table)
    blocks = [f"## {name}, {rule} rule", "### What removing a region costs", table]
    path = folder / f"removed-{stem}.png"
    _draw_removed(found, config, path)
    blocks.append(
        Figure(
            path,
            f"{name}: rise of the loss when a region is removed; bars: 95 % intervals, "
            "over seeds or documents as in the table.",
        )
    )
    monolingual = [row for row in found["rises"] if row["region"] == "monolingual"]
    path = folder / f"languages-{stem}.png"
    _draw_languages(found["overlap"], monolingual, sources, path)
    blocks += [
        "### Languages against each other",
        Figure(path, "Left: Jaccard overlap of the languages' own regions. Right: rise of the loss "
               "of each language (column) when the region of one language alone (row) is zeroed."),
        f"Regions of {percent(config.monolingual_share)} of each tensor; two random ones overlap "
        f"by {found['overlap']['expected']:.3f}. A region of one language alone is its own without "
        "those of all the others, so it has fewer entries; its size differs between languages.",
    ]  # fmt: skip
    if monolingual:
        blocks.append(monolingual_table(monolingual, sources))
    path = folder / f"concentration-{stem}.png"
    _draw_concentration(found["concentration"], path)
    blocks += [
        f"### Where the core of {percent(config.monolingual_share)} lies",
        Figure(path, "Gini coefficient of the core's entries over the rows (input dimensions) and "
               "columns (output dimensions) of each kernel, and the core's entries by dimension "
               "of the residual stream. Dashed: as many random entries."),
        _dimensions(found["concentration"]),
    ]  # fmt: skip
    if found["said"]:
        blocks += [
            "### What it says when a region is set to zero",
            Table(("removed", "prompt", "continuation"), found["said"]),
        ]
    blocks.append(f"Masks of the core, for freezing: `{found['masks']}`.")
    return blocks


def estimate(rows: Sequence[Row], source: str) -> Estimate:
    """Over all seeds of the region and of its new values."""
    return over_seeds([rise for row in rows for rise in row["rises"][source]])


def grouped(found: dict[str, Any]) -> dict[tuple[str, str, float], list[Row]]:
    """Rows of all seeds by (operation, region, share), without those of one language."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in found["rises"]:
        if row["region"] != "monolingual":
            groups.setdefault((row["operation"], row["region"], row["share"]), []).append(row)
    return groups


def removal_table(found: dict[str, Any], rule: str) -> Table:
    """A row a region, share and operation."""
    sources = list(found["loss"])
    rows = [
        [NAMES[rule][region], f"{percent(share)}", operation, *(estimate(of, s) for s in sources)]
        for (operation, region, share), of in grouped(found).items()
    ]
    return Table(
        ("region", "share of each tensor", "operation", *sources),
        rows,
        "Rise of the loss in nats per token, paired on the same tokens; the loss before is "
        + ", ".join(f"{source} {loss:.3f}" for source, loss in found["loss"].items())
        + ". Intervals of 95 %: over seeds where the region or its new values are drawn, else over "
        "documents.",
    )


def monolingual_table(rows: Sequence[Row], sources: Sequence[str]) -> Table:
    """For each language's own region: what zeroing it costs that language, and the others."""
    table = []
    for row in rows:
        rise = {source: row["rises"][source][0].mean for source in sources}
        own = rise.pop(row["language"])
        worst = max(rise, key=rise.get)
        others = float(np.mean(list(rise.values())))
        table.append((row["language"], own, others, worst, rise[worst]))
    return Table(
        ("region of", "rise of its language", "mean of the others", "most hurt other", "its rise"),
        table,
        "Zeroing the region of one language alone, nats per token.",
    )


def _draw_removed(found: dict[str, Any], config: ConfigDict, path: Path) -> None:
    sources = list(found["loss"])
    groups = grouped(found)
    with style():
        shape = (len(config.operations), len(config.shares))
        fig = MatplotlibFigure(figsize=(3.6 * shape[1] + 0.6, 3.1 * shape[0] + 0.3))
        axes = fig.subplots(*shape, squeeze=False, sharey=True)
        for row, operation in zip(axes, config.operations, strict=True):
            for ax, share in zip(row, config.shares, strict=True):
                for number, region in enumerate(NAMES[config.rule]):
                    found_here = [estimate(groups[operation, region, share], s) for s in sources]
                    ax.errorbar(
                        np.arange(len(sources)) + 0.15 * (number - 1.5),
                        [e.mean for e in found_here],
                        [e.half_width for e in found_here],
                        linestyle="none",
                        marker="o",
                        markersize=4,
                        capsize=2,
                        label=NAMES[config.rule][region],
                    )
                ax.set_yscale("symlog", linthresh=0.1)
                ax.set_xticks(range(len(sources)), sources)
                ax.set_title(f"{percent(share)}, {operation}")
            row[0].set_ylabel("rise of the loss, nats per token")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        savefig(fig, path)


def _draw_languages(
    overlap: dict[str, Any], monolingual: Sequence[Row], sources: Sequence[str], path: Path
) -> None:
    languages = overlap["languages"]
    with style():
        fig = MatplotlibFigure(figsize=(5.0 + 5.4 * bool(monolingual), 4.4))
        axes = fig.subplots(1, 1 + bool(monolingual), squeeze=False)[0]
        jaccard = np.asarray(overlap["jaccard"])
        off = np.where(np.eye(len(languages), dtype=bool), np.nan, jaccard)
        _heat(axes[0], off, languages, languages, "Jaccard overlap", "{:.2f}".format)
        if monolingual:
            rises = np.array([[row["rises"][s][0].mean for s in sources] for row in monolingual])
            names = [row["language"] for row in monolingual]
            _heat(axes[1], rises, names, sources, "rise of the loss, nats", "{:.2f}".format)
            axes[1].set_ylabel("region of")
        savefig(fig, path)


def _heat(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    text: Callable[[float], str],
) -> None:
    ax.grid(False)
    image = ax.imshow(values, cmap="viridis")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            ax.text(j, i, text(value), ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_title(title)


def _draw_concentration(found: dict[str, Any], path: Path) -> None:
    kernels = found["kernels"]
    kinds = list(dict.fromkeys(kind for _, kind, *_ in kernels))
    with style():
        fig = MatplotlibFigure(figsize=(10, 7))
        axes = fig.subplots(2, 2)
        for ax, (side, at) in zip(axes[0], (("rows", 2), ("columns", 4)), strict=True):
            for colour, kind in zip(COLOURS, kinds, strict=False):
                own = sorted((k for k in kernels if k[1] == kind), key=lambda k: k[0])
                layers = [k[0] for k in own]
                ax.plot(layers, [k[at] for k in own], color=colour, label=kind)
                ax.plot(layers, [k[at + 1] for k in own], color=colour, linestyle="--", lw=0.8)
            ax.set_title(f"over {side} ({'input' if at == 2 else 'output'} dimensions)")
            ax.set_xlabel("layer")
            ax.set_ylabel("Gini coefficient of the core's entries")
            ax.set_ylim(0, None)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
        for ax, side in zip(axes[1], ("read", "write"), strict=True):
            counts = np.asarray(found[side], float)
            ax.vlines(np.arange(len(counts)), 0, counts / counts.mean(), color=COLOURS[0], lw=0.7)
            ax.axhline(1.0, color="black", linestyle="--", lw=0.8)
            ax.set_title(f"kernels that {side} the residual stream")
            ax.set_xlabel("dimension of the residual stream")
            ax.set_ylabel("entries of the core over their mean")
        savefig(fig, path)


def _dimensions(found: dict[str, Any]) -> Table:
    """The dimensions of the residual stream with most entries of the core."""
    rows = []
    for side in ("read", "write"):
        counts = np.asarray(found[side], float)
        top = np.argsort(-counts, kind="stable")[:5]
        rows += [(side, int(d), counts[d] / counts.mean()) for d in top]
    return Table(("kernels that", "dimension", "entries over the mean"), rows)


def along_series(
    series: Sequence[Entry], config: ConfigDict, folder: Path
) -> list[str | Table | Figure]:
    """What removing each region costs along a series of checkpoints; nothing for a single one."""
    if len(series) < 2:
        return []
    operation, share = config.operations[0], config.shares[0]
    path = folder / f"series-{config.rule}.png"
    with style():
        fig = MatplotlibFigure()
        ax = fig.subplots()
        x = along(series, ax)
        for region, name in NAMES[config.rule].items():
            found = [_over_sources(e.result, operation, region, share) for e in series]
            ax.errorbar(
                x,
                [e.mean for e in found],
                [e.standard_error for e in found],
                marker="o",
                capsize=2,
                label=name,
            )
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylabel("rise of the loss, nats per token")
        ax.set_title(f"{percent(share)} of each tensor, {operation}")
        ax.legend()
        savefig(fig, path)
    caption = "Rise of the loss along the series when a region is removed, mean over the texts; "
    return ["## Along the series", Figure(path, caption + "bars: one standard error over texts.")]


def _over_sources(found: dict[str, Any], operation: str, region: str, share: float) -> Estimate:
    rows = grouped(found)[operation, region, share]
    return mean_and_error([estimate(rows, source).mean for source in found["loss"]])
