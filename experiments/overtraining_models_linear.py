"""The two-layer linear network beside the over-training study: its curves and turning points."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.errors import UserError
from lmnoise.report import COLOURS, Figure, Table, savefig, style, write_csv
from lmnoise.theory import overtraining

POINTS = 200


def check(config: ConfigDict) -> None:
    """Refuses a spectrum or scales that cannot be drawn."""
    section = config.linear
    smallest = section.largest * section.dimension**-section.decay
    if not 0 < section.start < smallest:
        raise UserError(
            f"config.linear.start {section.start} must lie between 0 and the smallest singular "
            f"value, {smallest:.3g}"
        )
    if not section.scales or not all(scale > 0 for scale in section.scales):
        raise UserError(f"config.linear.scales must hold scales above 0, not {section.scales}")


def blocks(config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter: computed, with nothing fitted to the measurements."""
    section = config.linear
    sigma_D = section.largest * np.arange(1.0, section.dimension + 1) ** -section.decay
    times_T = np.geomspace(0.4, 60.0, POINTS)
    modes_TD = overtraining.modes(sigma_D, times_T, section.start)
    turns = {
        g: float(overtraining.turning_point(sigma_D, section.start, g)) for g in section.scales
    }
    lines = {g: np.asarray(overtraining.perturbed_loss(sigma_D, modes_TD, g)) for g in turns}
    rises = {g: np.asarray(overtraining.sensitivity(modes_TD, g)) for g in turns}
    plain_T = np.asarray(overtraining.loss(sigma_D, modes_TD))
    _draw(times_T, plain_T, lines, rises, turns, folder / "linear.png")
    rows = [(g, turns[g], lines[g].min(), lines[g][-1]) for g in turns]
    table = Table(
        ("scale g", "turning point (time)", "lowest loss after noise", "loss at the last time"),
        rows,
        "The two-layer linear network, in closed form.",
    )
    write_csv(folder / "linear.csv", table)
    return [
        "## Beside it: the two-layer linear network",
        f"W1 W2 x with factors {section.dimension} x {section.dimension} learns a matrix with "
        f"singular values {section.largest:g} i^-{section.decay:g} from the strength "
        f"{section.start:g} in every mode, by gradient flow; then noise of standard deviation g "
        "comes on all weights. It is a qualitative companion: its spectrum and its scales are "
        "chosen, time is not tokens, and nothing is fitted to the measurements. What it says is "
        "which shape to expect: sensitivity grows as long as modes are learned, and the loss after "
        "noise turns up when modes below 2 g² d begin to be learned, earlier for larger g. "
        "`experiments/overtraining_theory.py` checks these curves by training.",
        Figure(
            folder / "linear.png",
            "Two-layer linear network in closed form: loss after noise with its turning points "
            "(dotted), and the rise through noise.",
        ),
        table,
    ]


def _draw(times_T: Any, plain_T: Any, lines: dict, rises: dict, turns: dict, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(10, 3.9))
        left, right = fig.subplots(1, 2)
        left.plot(times_T, plain_T, "--", color="0.45")
        for colour, scale in zip(COLOURS, turns, strict=False):
            left.plot(times_T, lines[scale], color=colour)
            right.plot(times_T, rises[scale], color=colour, label=f"g = {scale:g}")
            if times_T[0] <= turns[scale] <= times_T[-1]:
                left.axvline(turns[scale], color=colour, linestyle=":", lw=1.2)
        left.set_ylabel("expected loss after noise")
        right.set_ylabel("rise through noise")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_xlabel("time of gradient flow")
        right.set_yscale("log")
        # There no line runs.
        right.plot([], [], "--", color="0.45", label="without noise")
        right.legend(fontsize=8, loc="lower right")
        savefig(fig, path)
