"""Figures of the main grid of the collapse study, with 95 % intervals over seeds."""

from pathlib import Path

import numpy as np
from collapse_lm_runs import Array
from collapse_lm_verdict import Grid
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmnoise.analyze.laws import at_end, estimates
from lmnoise.evaluation.powerlaw import Bootstrap
from lmnoise.report import COLOURS, Estimate, mean_and_error, savefig, style

SHARE = "share of synthetic rows $p_2$"


def scaling(grid: Grid, path: Path) -> None:
    """Loss on held-out real and synthetic text against tokens, real with the fitted curves."""
    with style():
        fig = Figure(figsize=(10, 4.4))
        real, synthetic = fig.subplots(1, 2)
        _curves(real, grid, grid.curves.real_PRB)
        tokens_N = np.geomspace(grid.free.tokens_B[0], grid.free.tokens_B[-1], 100)
        for p, losses_N in enumerate(grid.free.law(tokens_N)):
            real.plot(tokens_N, losses_N, color=COLOURS[p % len(COLOURS)], linewidth=1)
        _curves(synthetic, grid, grid.curves.synthetic_PRB, linestyle="-")
        real.set_ylabel("loss on held-out real text (nats per token)")
        synthetic.set_ylabel("loss on held-out synthetic text (nats per token)")
        real.legend(title=SHARE, fontsize=8, ncols=2)
        savefig(fig, path)


def rises(grid: Grid, path: Path) -> None:
    """At the largest size, the rise over share 0 beside what theory predicts, against the share."""
    shares_P = grid.shares_P[1:]
    with style():
        fig = Figure(figsize=(7, 4.6))
        ax = fig.subplots()
        _bars(ax, shares_P, [mean_and_error(x_R) for x_R in grid.rises_PR[1:]], "measured",
              color=COLOURS[0], marker="o", linestyle="-")  # fmt: skip
        ax.plot(shares_P, grid.real_part_PR.mean(1)[1:], color=COLOURS[1], marker="s",
                linestyle="--", label="the real part alone")  # fmt: skip
        ax.plot(shares_P, grid.squares_P[1:], color=COLOURS[2], marker="^", linestyle=":",
                label="regression: $p_2^2 c^2$")  # fmt: skip
        mixed_P = grid.mixed_P[1:]
        ax.plot(shares_P[mixed_P], grid.bounds_P[1:][mixed_P], color=COLOURS[3], marker="v",
                linestyle="-.", label=r"unrestricted, at most: $-\log(1-p_2)/S$")  # fmt: skip
        _share_axis(ax, shares_P)
        ax.set_yscale("symlog", linthresh=1e-2)
        ax.set_ylabel("rise of the loss on real text over $p_2 = 0$\n(nats per token)")
        ax.legend(fontsize=8)
        savefig(fig, path)


def floors(grid: Grid, path: Path) -> None:
    """Fitted floors over that of share 0, both fits, beside p2^2 c^2, against the share."""
    shares_P = grid.shares_P[1:]
    with style():
        fig = Figure(figsize=(10, 4.2))
        axes = fig.subplots(1, 2, sharey=True)
        axes[0].set_ylabel("fitted floor over that of $p_2 = 0$\n(nats per token)")
        for ax, (name, fits) in zip(
            axes,
            {"each its own exponent": grid.free, "one exponent": grid.shared}.items(),
            strict=True,
        ):
            _floors(ax, shares_P, fits)
            ax.plot(shares_P, grid.squares_P[1:], color=COLOURS[2], linestyle=":", marker="^",
                    label="regression: $p_2^2 c^2$")  # fmt: skip
            _share_axis(ax, shares_P)
            ax.set_title(name)
            ax.legend(fontsize=8)
        savefig(fig, path)


def gains(grid: Grid, path: Path) -> None:
    """What each step to the next size gains, against the tokens after it."""
    with style():
        fig = Figure(figsize=(7, 4.4))
        ax = fig.subplots()
        _curves(ax, grid, grid.gains_PRB, tokens_B=grid.free.tokens_B[1:], linestyle="-")
        ax.axhline(0, color="0.45", linewidth=1)
        ax.set_ylabel("gain over the size before,\nloss on real text (nats per token)")
        ax.legend(title=SHARE, fontsize=8, ncols=2)
        savefig(fig, path)


def _curves(
    ax: Axes,
    grid: Grid,
    values_PRB: Array,
    tokens_B: Array | None = None,
    linestyle: str = "none",
) -> None:
    """One colour a share; the shares stand a little apart, so that all bars are seen."""
    tokens_B = grid.free.tokens_B if tokens_B is None else tokens_B
    count = len(values_PRB)
    for p, values_RB in enumerate(values_PRB):
        found = [mean_and_error(values_R) for values_R in values_RB.T]
        at_B = tokens_B * 2 ** (0.05 * (p - (count - 1) / 2))
        _bars(ax, at_B, found, f"{grid.shares_P[p]:g}", color=COLOURS[p % len(COLOURS)],
              marker="o", linestyle=linestyle)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(tokens_B, [short(tokens) for tokens in tokens_B])
    ax.minorticks_off()
    ax.set_xlabel("tokens of training, real and synthetic")


def short(tokens: float) -> str:
    """131072 as 131k, 2097152 as 2.1M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= unit:
            return f"{tokens / unit:.3g}{letter}"
    return f"{tokens:g}"


def _floors(ax: Axes, shares_P: Array, fits: Bootstrap) -> None:
    found = estimates(fits.floor_rises())[1:]
    end_P = np.array([bool(end) for end in at_end(fits.law)])[1:]
    for chosen_P, label, colour, marker in (
        (~end_P, "fitted", COLOURS[0], "o"),
        (end_P, "at an end of the fit's range", "0.6", "x"),
    ):
        if chosen_P.any():
            own = [e for e, chosen in zip(found, chosen_P, strict=True) if chosen]
            _bars(ax, shares_P[chosen_P], own, label, color=colour, marker=marker, linestyle="none")
    ax.axhline(0, color="0.45", linewidth=1)


def _bars(ax: Axes, x_N: Array, found: list[Estimate], label: str, **how: str) -> None:
    ax.errorbar(
        x_N,
        [e.mean for e in found],
        [e.half_width for e in found],
        markersize=4,
        capsize=2,
        label=label,
        **how,
    )


def _share_axis(ax: Axes, shares_P: Array) -> None:
    ax.set_xscale("log")
    ax.set_xticks(shares_P, [f"{share:g}" for share in shares_P])
    ax.minorticks_off()
    ax.set_xlabel(SHARE)
