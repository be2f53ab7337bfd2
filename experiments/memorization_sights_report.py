"""Tables and figures of the loss at every sight."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from memorization_sights import (
    METRICS,
    WAIT,
    Arm,
    adjusted,
    causes,
    estimate,
    pairs,
    searches,
    stairs,
)
from ml_collections import ConfigDict
from scipy.special import stdtrit

from lmnoise.report import COLOURS, Figure, Table, mean_and_error, savefig, style, write_csv

type Block = str | Table | Figure


def blocks(
    arms: Sequence[Arm], section: ConfigDict, label: str, title: str, folder: Path
) -> list[Block]:
    """The chapter of one model, its files in `folder`."""
    over = "seeds" if len(section.seeds) > 1 else "examples, as there is one seed"
    tables = {
        "stairs": _stairs(arms, section.draw),
        "gain": _gain(arms, section.draw),
        "confidence": _confidence(arms),
    }
    figures = {"stairs": _draw_stairs, "gain": _draw_gain, "confidence": _draw_confidence}
    for name, table in tables.items():
        write_csv(folder / f"{name}-{label}.csv", table)
        figures[name](arms, folder / f"{name}-{label}.png")
    return [
        f"## Loss at every sight: {title}",
        f"{section.examples} windows of `{section.corpus}` are seen {section.epochs} times, "
        f"{section.batch_size} a step (AdamW, peak rate {section.learning_rate:g}, "
        f"{len(section.seeds)} seed(s), which differ in their examples and order). The loss of an "
        "example at a sight is the one before the update that it takes part in.",
        Figure(
            folder / f"stairs-{label}.png",
            "Above: loss minus the loss of the same example before training, means of batches "
            "without what goes with the covariates of the test below, and the same of held-out "
            "text; bands: 95 % intervals over seeds; dotted: epochs. "
            "Below: the learning rate.",
        ),
        tables["stairs"],
        Figure(
            folder / f"gain-{label}.png",
            "Gain of a batch from its first sight (its loss then minus that at the second sight, "
            "minus the same on held-out text) against the learning rate at the first sight; each "
            "point a batch, mean over seeds; band: slopes within the 95 % of shuffled rates.",
        ),
        f"Mean gains with 95 % intervals over {over}:",
        tables["gain"],
        Figure(
            folder / f"confidence-{label}.png",
            "Held-out text along the training; bands: 95 % intervals over seeds; dotted: epochs.",
        ),
        tables["confidence"],
    ]


def _stairs(arms: Sequence[Arm], draw: int) -> Table:
    rows = []
    for arm in arms:
        found = zip(stairs(arm, arms), searches(arm, arms, draw), strict=True)
        for epoch, (step, (away, place)) in enumerate(found, 1):
            rows.append(
                (arm.name, f"{epoch} to {epoch + 1}", step.size, step.standard_error,
                 step.p_value, away, place.p_value)
            )  # fmt: skip
    header = ("schedule and order", "boundary of epochs", "jump, nats", "standard error",
              "p, no jump", "largest jump, epochs from it", "p, no jump anywhere")  # fmt: skip
    return Table(
        header,
        rows,
        "Jump of the loss at the boundary against a smooth curve through half an epoch on each "
        "side (F test of a step beside a parabola, on means over seeds of single examples, whose "
        "loss before training and fall in another order are covariates), and where in that window "
        "a jump fits best (permutation null of the largest F).",
    )


def _gain(arms: Sequence[Arm], draw: int) -> Table:
    rows = [
        (p.name, p.cause, estimate(p.gains), f"{found.correlation:+.3f}",
         f"{found.null[0]:+.2f} to {found.null[1]:+.2f}", found.p_value)
        for p, found in causes(arms, draw)
    ]  # fmt: skip
    header = ("schedule and order", "against", "mean gain of the first sight, nats",
              "correlation", "shuffled null, 95 %", "p")  # fmt: skip
    return Table(
        header,
        rows,
        "Gain of the first sight beyond held-out text, and its correlation by batch with the "
        "learning rate at the first sight (by example with the updates since, where the order "
        "changes). The constant rate is held against the rates of schedule A at the same places: "
        "what correlates there comes from the place, not from the rate.",
    )


def _confidence(arms: Sequence[Arm]) -> Table:
    rows = []
    for arm in arms:
        updates = arm.training.steps // arm.epochs
        for epoch in range(arm.epochs + 1):
            at = int(np.abs(arm.heldout_steps_H - epoch * updates).argmin())
            values = [mean_and_error(arm.heldout[m][:, at]) for m in METRICS]
            rows.append((arm.name, epoch, *values))
    header = ("schedule and order", "after epoch", "held-out loss, nats", "accuracy",
              "mean confidence", "expected calibration error")  # fmt: skip
    return Table(
        header,
        rows,
        "Next-token predictions on held-out text; the calibration error has 15 bins of equal "
        "width. 95 % intervals over seeds.",
    )


def _band(values_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of the 95 % interval over seeds; 0 for a single one."""
    count = len(values_RT)
    mean_T = values_RT.mean(0)
    if count == 1:
        return mean_T, np.zeros_like(mean_T)
    return mean_T, stdtrit(count - 1, 0.975) * values_RT.std(0, ddof=1) / np.sqrt(count)


def _line(ax, at, values_RT, **style_of) -> None:
    mean_T, half_T = _band(values_RT)
    [line] = ax.plot(at, mean_T, **style_of)
    ax.fill_between(at, mean_T - half_T, mean_T + half_T, color=line.get_color(), alpha=0.2, lw=0)


def _epochs(ax, arm: Arm) -> None:
    for place in arm.boundaries:
        ax.axvline(place / arm.training.batch_size, color="k", linestyle=":", lw=0.8)


def _short(name: str) -> str:
    """The name of an arm without the description of its schedule."""
    return re.sub(r": [^,]*", "", name).replace(" order", "")


def _draw_stairs(arms: Sequence[Arm], path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(3.1 * len(arms), 4.6))
        axes = fig.subplots(
            2, len(arms), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
        )
        for (ax, below), arm in zip(axes.T, arms, strict=True):
            left_RT = adjusted(arm, arms)
            batches_RK = left_RT.reshape(len(left_RT), arm.training.steps, -1).mean(2)
            at_K = np.arange(arm.training.steps)
            _line(ax, at_K, batches_RK, color=COLOURS[0], lw=1.2, label="examples")
            heldout_RH = arm.heldout["loss"] - arm.heldout["loss"][:, :1]
            _line(ax, arm.heldout_steps_H, heldout_RH, color=COLOURS[1], label="held out")
            _epochs(ax, arm)
            ax.set_title(_short(arm.name), fontsize=10)
            below.plot(at_K, arm.rate_K, color="k", lw=1.2)
            _epochs(below, arm)
            below.set_xlabel("updates")
            below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes[0, 0].set_ylabel("loss minus that before,\nnats per token")
        axes[1, 0].set_ylabel("rate")
        axes[0, 0].legend()
        savefig(fig, path)


def _draw_gain(arms: Sequence[Arm], path: Path) -> None:
    shown = [p for p in pairs(arms) if p.cause != WAIT]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with style():
        fig = MatplotlibFigure(figsize=(3.4 * columns, 2.8 * rows))
        axes = fig.subplots(rows, columns, squeeze=False).reshape(-1)
        for ax, p in zip(axes, shown, strict=False):
            rate_K, gain_K = p.causes[0], p.gains.mean(0)
            ax.plot(rate_K, gain_K, "o", markersize=3, alpha=0.7)
            _null_band(ax, rate_K, gain_K)
            ax.axhline(0, color="k", lw=0.8)
            ax.set_title(_short(p.name), fontsize=9)
            ax.set_xlabel(p.cause)
            ax.set_ylabel("gain, nats per token")
            ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        savefig(fig, path)


def _null_band(ax, rate_K: np.ndarray, gain_K: np.ndarray) -> None:
    """The fitted line, and the lines of shuffled rates through the same mean."""
    rng = np.random.default_rng(0)
    centred_K = rate_K - rate_K.mean()
    slope = centred_K @ gain_K / np.square(centred_K).sum()
    null_D = np.array([rng.permutation(centred_K) @ gain_K for _ in range(999)])
    low, high = np.quantile(null_D / np.square(centred_K).sum(), [0.025, 0.975])
    at = np.linspace(rate_K.min(), rate_K.max(), 20)
    centred = at - rate_K.mean()
    ax.plot(at, gain_K.mean() + slope * centred, color=COLOURS[1])
    edges = np.stack([low * centred, high * centred])
    ax.fill_between(at, gain_K.mean() + edges.min(0), gain_K.mean() + edges.max(0),
                    color="k", alpha=0.15, lw=0)  # fmt: skip


def _draw_confidence(arms: Sequence[Arm], path: Path) -> None:
    names = {"loss": "held-out loss, nats", "accuracy": "accuracy",
             "calibration_error": "expected calibration error"}  # fmt: skip
    with style():
        fig = MatplotlibFigure(figsize=(10, 3.4))
        axes = fig.subplots(1, len(names))
        for ax, (metric, label) in zip(axes, names.items(), strict=True):
            for colour, arm in zip(COLOURS, arms, strict=False):
                _line(ax, arm.heldout_steps_H, arm.heldout[metric], color=colour, marker="o",
                      markersize=3, lw=1.2, label=_short(arm.name))  # fmt: skip
            _epochs(ax, arms[0])
            ax.set_xlabel("updates")
            ax.set_ylabel(label)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center",
                   ncols=len(arms), fontsize=9)  # fmt: skip
        savefig(fig, path)
