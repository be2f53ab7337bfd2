"""Figures of the study of images, and their tables."""

from collections.abc import Mapping, Sequence

import numpy as np
from collapse_chapter import log_scale
from collapse_images_data import KINDS
from collapse_images_series import AXES, MODELS, Series
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from lmnoise.report import Table, style

# Rises, which may be below 0, are drawn on a linear scale between minus this and this.
_LINEAR = 1e-3


def drawing(pair: Sequence[Series], longest: int, colours: Mapping[float, str]) -> Figure:
    """Errors, and below them what they exceed those on real labels by; a column a kind.

    Args:
      pair: one series a kind, alike in all else.
      longest: n up to which the theory is drawn.
      colours: of all shares.
    """
    with style():
        figure = Figure(figsize=(9.6, 7.6))
        axes = figure.subplots(2, len(pair), sharex=True, sharey="row", squeeze=False)
        for column, own in zip(axes.T, pair, strict=True):
            grid = _grid(own, longest)
            theory_PG = None if own.law is None else own.theory(grid)
            own_colours = [colours[share] for share in own.shares]
            _errors(column[0], own, grid, theory_PG, own_colours)
            _rises(column[1], own, grid, theory_PG, own_colours)
            column[0].set_title(f"{KINDS[own.kind]}, $c^2$ = {own.quality:.2g}")
            for axis in column:
                _threshold(axis, own)
                axis.set_xscale("log")
            log_scale(column[0], "y")
            column[0].yaxis.set_minor_locator(NullLocator())
            column[0].yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
            column[1].set_yscale("symlog", linthresh=_LINEAR)
            column[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
            axis.set_xlabel(f"{AXES[own.axis]}{', real and synthetic' * (own.axis == 'samples')}")
        axes[0, 0].set_ylabel("squared test error, real labels")
        axes[1, 0].set_ylabel("rise over real labels alone")
        figure.legend(
            handles=_handles(pair[0], own_colours),
            loc="outside lower center",
            ncols=7 if own.axis == "widths" else 6,
            fontsize=8.5,
        )
    return figure


def _grid(own: Series, longest: int) -> np.ndarray:
    last = longest if own.axis == "samples" and own.law is not None else own.size_B[-1]
    return np.geomspace(own.size_B[0], last, 160)


def _errors(
    axis: Axes,
    own: Series,
    grid: np.ndarray,
    theory_PG: np.ndarray | None,
    colours: Sequence[str],
) -> None:
    for p, colour in enumerate(colours):
        if own.law is not None:
            axis.plot(grid, theory_PG[p], color=colour, linewidth=1.2)
        _bars(axis, own, [own.error(p, b) for b in range(len(own.size_B))], colour)


def _rises(
    axis: Axes,
    own: Series,
    grid: np.ndarray,
    theory_PG: np.ndarray | None,
    colours: Sequence[str],
) -> None:
    for p, (share, colour) in enumerate(zip(own.shares, colours, strict=True)):
        if not share:
            continue
        if own.law is not None:
            axis.plot(grid, theory_PG[p] - theory_PG[0], color=colour, linewidth=1.2)
        if own.axis == "samples":
            floor = [share**2 * own.floor_quality] * 2
            axis.plot(grid[[0, -1]], floor, "--", color=colour, linewidth=0.8)
        _bars(axis, own, [own.rise(p, b) for b in range(len(own.size_B))], colour)


def _bars(axis: Axes, own: Series, estimates, colour: str) -> None:
    axis.errorbar(
        own.size_B,
        [e.mean for e in estimates],
        yerr=[e.half_width for e in estimates],
        color=colour,
        linestyle=":" if own.law is None else "none",
        linewidth=0.8,
        marker="o",
        markersize=3.5,
        capsize=2,
        elinewidth=1,
    )


def _threshold(axis: Axes, own: Series) -> None:
    if own.model == "features":
        axis.axvline(own.other, color="0.6", linewidth=0.8, linestyle="-.", zorder=0)


def _handles(own: Series, colours: Sequence[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, label=f"$p_2$ = {share:g}")
        for share, colour in zip(own.shares, colours, strict=True)
    ]
    grey = dict(color="0.3")
    handles.append(Line2D([], [], marker="o", linestyle="none", label="measured", **grey))
    if own.law is not None:
        handles.append(Line2D([], [], linewidth=1.2, label="Theorem 2 and cross term", **grey))
        handles.append(Line2D([], [], color="0.6", linestyle="-.", linewidth=0.8, label="m = n"))
    if own.axis == "samples":
        handles.append(Line2D([], [], linestyle="--", linewidth=0.8, label="$p_2^2 c^2$", **grey))
    return handles


def caption(own: Series) -> str:
    """What the figure of a pair of series shows."""
    fixed = f"m = {own.other:,}" if own.axis == "samples" else f"n = {own.other:,}"
    text = (
        f"{MODELS[own.model].capitalize()} on {own.images}, {fixed}: squared error on real test "
        f"labels, summed over classes, against {'n' if own.axis == 'samples' else 'm'} for shares "
        "p2 of synthetic labels (above), and what it exceeds the error on real labels alone by, "
        f"paired over seeds (below; linear up to {_LINEAR:g}). Bars: 95 % intervals, "
        f"{own.error_PRB.shape[1]} seeds."
    )
    if own.law is None:
        text += " Dotted lines only join the points."
    else:
        text += (
            f" Lines: Theorem 2 with the measured spectrum and its cross term, penalty "
            f"{own.penalty:g}; no part of them is fitted to these errors."
        )
    if own.axis == "samples":
        what = "the part that random features can express" if own.law else "c² of the title"
        text += f" Dashed: p2² c², with {what}."
    return text


def table(pair: Sequence[Series]) -> Table:
    """Every number of a figure."""
    header = (
        "synthetic labels", "n", "width", "share", "error", "rise", "accuracy", "theory",
        "theory without cross term",
    )  # fmt: skip
    rows = []
    for own in pair:
        for p, share in enumerate(own.shares):
            lines = [("", "")] * len(own.size_B)
            if own.law is not None:
                both = own.theory_PB[p].tolist(), own.plain_PB[p].tolist()
                lines = list(zip(*both, strict=True))
            for b, size in enumerate(own.size_B):
                place = (size, own.other) if own.axis == "samples" else (own.other, size)
                measured = own.error(p, b), own.rise(p, b), own.accuracy(p, b)
                rows.append([own.kind, *place, share, *measured, *lines[b]])
    return Table(header, rows)
