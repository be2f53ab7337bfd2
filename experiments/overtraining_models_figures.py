"""Figures of the over-training study: losses against tokens, with 95 % intervals over seeds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from overtraining_models_curves import Curve
from overtraining_models_training import SERIES

from lmnoise.evaluation.inflection import Inflection
from lmnoise.report import COLOURS, savefig, style

# Titles that fit over a panel.
TITLES = {"budgets": "each budget annealed", "one run": "one run (confounded)"}
BARS = "Bars: 95 % intervals over seeds of pre-training; lines are shifted a little apart."
STARS = (
    f"{BARS} Star: the budget of the least mean loss where an inflection is shown, with its "
    "bootstrap interval."
)

type Pick = Callable[[Curve], NDArray[np.float64]]
type Turn = Callable[[Curve], Inflection | None]


def sensitivity(curves: Sequence[Curve], path: Path) -> None:
    """Rise of the loss through noise against tokens, a panel a series, a line a strength."""
    with style():
        fig, axes = _panels(1)
        for ax, series in zip(axes[0], SERIES, strict=True):
            _panel(ax, _of(curves, series), lambda c: c.after_RB - c.before_RB)
            ax.set_yscale("symlog", linthresh=1e-3)
            # Where a bar crosses zero its lower end says no more than that.
            ax.set_ylim(bottom=-1e-3)
            ax.set_title(f"noise, {TITLES[series]}")
        axes[0, 0].set_ylabel("rise of the loss, nats per token")
        axes[0, 0].legend(title="strength", fontsize=8)
        savefig(fig, path)


def noise(curves: Sequence[Curve], path: Path) -> None:
    """Loss after noise against tokens, with the loss without noise."""
    with style():
        fig, axes = _panels(1)
        for ax, series in zip(axes[0], SERIES, strict=True):
            own = _of(curves, series)
            _base(ax, own[0])
            _panel(ax, own, lambda c: c.after_RB, lambda c: c.turn)
            ax.set_title(f"noise, {TITLES[series]}")
        axes[0, 0].set_ylabel("loss on pre-training text after noise\n(nats per token)")
        axes[0, 0].legend(fontsize=8)
        savefig(fig, path)


def rates(curves: Sequence[Curve], path: Path) -> None:
    """Losses after fine-tuning without a cure, at each fixed rate and at the tuned one."""
    plain = [c for c in curves if c.cure == "plain"]
    with style():
        fig, axes = _panels(2)
        for column, series in enumerate(SERIES):
            _both_losses(axes[:, column], _of(plain, series))
            axes[0, column].set_title(TITLES[series])
        _label(axes)
        savefig(fig, path)


def cures(curves: Sequence[Curve], path: Path) -> None:
    """Losses after fine-tuning at the tuned rate, without and with each cure."""
    best = [c for c in curves if c.tuned]
    with style():
        fig, axes = _panels(2)
        for column, series in enumerate(SERIES):
            _both_losses(axes[:, column], _of(best, series))
            axes[0, column].set_title(TITLES[series])
        _label(axes)
        savefig(fig, path)


def _both_losses(axes: Sequence[Axes], curves: Sequence[Curve]) -> None:
    above, below = axes
    _base(above, curves[0])
    _panel(above, curves, lambda c: c.after_RB, lambda c: c.turn)
    _panel(below, curves, lambda c: c.task_RB, lambda c: c.task_turn)


def _label(axes: NDArray) -> None:
    axes[0, 0].set_ylabel("loss on pre-training text\nafter fine-tuning (nats per token)")
    axes[1, 0].set_ylabel("test loss on the task\n(nats per scored token)")
    axes[0, 0].legend(fontsize=8)


def _panels(rows: int) -> tuple[Figure, NDArray]:
    """Columns are the series, on the same y axis."""
    fig = Figure(figsize=(10, 3.9 * rows))
    return fig, fig.subplots(rows, len(SERIES), sharey="row", squeeze=False)


def _of(curves: Sequence[Curve], series: str) -> list[Curve]:
    return [c for c in curves if c.series == series]


def _base(ax: Axes, curve: Curve) -> None:
    found = curve.estimates(curve.before_RB)
    ax.errorbar(
        curve.tokens_B,
        [e.mean for e in found],
        [e.half_width for e in found],
        color="0.45",
        linestyle="--",
        capsize=2,
        label="as pre-trained",
    )


def _panel(ax: Axes, curves: Sequence[Curve], pick: Pick, turn: Turn | None = None) -> None:
    """One line a curve; budgets at which a seed diverged are left out."""
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        # A little apart, so that the bars of all lines are seen.
        shift = 2 ** (0.05 * (i - (len(curves) - 1) / 2))
        found = curve.estimates(pick(curve)[:, curve.fine])
        ax.errorbar(
            curve.tokens_B[curve.fine] * shift,
            [e.mean for e in found],
            [e.half_width for e in found],
            color=colour,
            marker="o",
            markersize=3.5,
            capsize=2,
            label=curve.name,
        )
        at = turn(curve) if turn else None
        if at is not None and at.shown:
            _star(ax, at, curve, pick, colour, shift)
    ax.set_xscale("log")
    ax.set_xlabel("pre-training tokens")


def _star(ax: Axes, at: Inflection, curve: Curve, pick: Pick, colour: str, shift: float) -> None:
    height = pick(curve)[:, np.flatnonzero(curve.tokens_B == at.least)[0]].mean()
    below, above = at.least - at.interval[0], at.interval[1] - at.least
    ax.errorbar(
        [at.least * shift],
        [height],
        xerr=[[below * shift], [above * shift]],
        color=colour,
        marker="*",
        markersize=13,
        markeredgecolor="black",
        linestyle="none",
        elinewidth=3,
        alpha=0.8,
        zorder=5,
    )
