"""The figure of one arm of the noise study: loss, paired rise, other text."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from noise_arm import LABELS, Arm

from lmnoise.report import COLOURS, mean_and_error, style
from lmnoise.theory import noise as theory


def figure(arm: Arm) -> Figure:
    """Two or three panels against the share of noise rows; error bars are 95 % intervals."""
    others = arm.others
    with style():
        drawing = Figure(figsize=(4.2 * (2 + bool(others)), 3.8))
        axes = drawing.subplots(1, 2 + bool(others))
        _draw_losses(axes[0], arm, arm.own)
        _draw_rises(axes[1], arm, arm.own)
        if others:
            _draw_others(axes[2], arm, others)
        for axis in axes:
            _share_axis(axis, arm.rates)
    return drawing


def _share_axis(axis, rates: Sequence[float]) -> None:
    # Square root spreads the small shares without hiding zero; signed, for the left margin.
    root = lambda x: np.sign(x) * np.sqrt(np.abs(x))  # noqa: E731
    square = lambda x: np.sign(x) * np.square(x)  # noqa: E731
    axis.set_xscale("function", functions=(root, square))
    ticks = [0.0, *rates]
    axis.set_xticks(ticks, [f"{100 * r:g}" for r in ticks])
    axis.set_xlim(-0.0008, max(rates) * 1.25)
    axis.set_xlabel("share of noise rows (%)")


def _series(arm: Arm, values, *, skip_control: bool = False):
    """Per kind: label, colour, shares moved a little apart, estimates."""
    kinds = [k for k in arm.kinds if not (skip_control and k == "dropped")]
    for i, kind in enumerate(kinds):
        shares = np.square(np.sqrt(arm.rates) + 0.006 * (i - (len(kinds) - 1) / 2))
        yield kind, COLOURS[arm.kinds.index(kind)], shares, [values(kind, r) for r in arm.rates]


def _bars(axis, shares, estimates, **style_):
    axis.errorbar(
        shares,
        [e.mean for e in estimates],
        yerr=[e.half_width for e in estimates],
        capsize=3,
        marker="o",
        markersize=4,
        **style_,
    )


def _draw_losses(axis, arm: Arm, source: str) -> None:
    clean = mean_and_error(arm.values(source, "", 0.0))
    grid = np.linspace(0, max(arm.rates), 200)
    axis.fill_between(
        grid,
        clean.mean,
        clean.mean + theory.largest_rise(grid),
        color="0.88",
        label="up to $-\\log(1-a)$ (Prop. 1)",
    )
    _bars(axis, [0], [clean], color="black", label="no noise", linestyle="none")
    for kind, colour, shares, estimates in _series(
        arm, lambda k, r: mean_and_error(arm.values(source, k, r))
    ):
        _bars(axis, shares, estimates, color=colour, label=LABELS[kind])
    axis.set_ylabel("clean loss (nats per token)")
    axis.set_title(f"Loss on held-out {source}")
    axis.legend(fontsize=8)


def _draw_rises(axis, arm: Arm, source: str) -> None:
    axis.axhline(0, color="black", linewidth=0.8)
    for kind, colour, shares, estimates in _series(arm, lambda k, r: arm.rise(source, k, r)):
        _bars(axis, shares, estimates, color=colour, label=LABELS[kind])
    grid = np.linspace(0, max(arm.rates), 200)
    length = arm.config.data.length
    for tokens, line, label in (
        (1, "--", "optimum by token: $-\\log(1-a)$"),
        (length, ":", f"optimum by row: $-\\log(1-a)/{length}$"),
    ):
        axis.plot(grid, theory.largest_rise(grid, tokens), line, color="0.4", label=label)
    axis.set_ylabel("rise over the clean twin (nats per token)")
    axis.set_title(f"Paired rise on {source}")
    axis.legend(fontsize=8)


def _draw_others(axis, arm: Arm, others: Sequence[str]) -> None:
    axis.axhline(0, color="black", linewidth=0.8)
    for source, line in zip(others, itertools.cycle(("-", "--", ":", "-."))):
        series = _series(arm, lambda k, r, s=source: arm.rise(s, k, r), skip_control=True)
        for kind, colour, shares, estimates in series:
            label = f"{source}, {LABELS[kind]}"
            _bars(axis, shares, estimates, color=colour, linestyle=line, label=label)
    axis.set_ylabel("rise over the clean twin (nats per token)")
    axis.set_title("Other held-out text")
    axis.legend(fontsize=8, handlelength=4)
