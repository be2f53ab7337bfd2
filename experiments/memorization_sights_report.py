"""Tables and figures of the loss at every sight."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from memorization_sights import METRICS, Arm
from memorization_stairs import WAIT, adjusted, boundaries, causes, inside, last_quarter
from ml_collections import ConfigDict
from scipy.special import stdtrit

from lmnoise.evaluation.memorization import Step
from lmnoise.report import COLOURS, Figure, Table, mean_and_error, savefig, style, write_csv

type Block = str | Table | Figure


def blocks(
    arms: Sequence[Arm], section: ConfigDict, label: str, title: str, folder: Path
) -> list[Block]:
    """The chapter of one model, its files in `folder`."""
    tables = {
        "stairs": _stairs(arms, section.draw),
        "inside": _inside(arms),
        "gain": _gain(arms),
        "causes": _causes(arms),
        "confidence": _confidence(arms),
    }
    figures = {"stairs": _draw_stairs, "gain": _draw_gain, "confidence": _draw_confidence}
    for name, table in tables.items():
        write_csv(folder / f"{name}-{label}.csv", table)
        if name in figures:
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
            "without what goes with the covariates of the test below, and the same of controls "
            "and held-out text; bands: 95 % intervals over seeds; dotted: epochs. "
            "Below: the learning rate.",
        ),
        tables["stairs"],
        tables["inside"],
        tables["gain"],
        Figure(
            folder / f"gain-{label}.png",
            "Gain of a batch from its first sight (its loss then minus that at the second sight, "
            "minus the same of controls) against the learning rate at the first sight; each point "
            "a batch, mean over seeds; line: least squares.",
        ),
        tables["causes"],
        Figure(
            folder / f"confidence-{label}.png",
            "Held-out text along the training; bands: 95 % intervals over seeds; dotted: epochs.",
        ),
        tables["confidence"],
    ]


def _stairs(arms: Sequence[Arm], draw: int) -> Table:
    rows = []
    for arm in arms:
        for epoch, found in enumerate(boundaries(arm, arms, draw), 1):
            tested = ("–",) * 4
            if found.step is not None:
                step, search = found.step, found.search
                tested = (f"{step.standard_error:.4f}", f"{step.p_value:.2g}",
                          f"{found.away:+.2f}", f"{search.p_value:.3f}")  # fmt: skip
            rows.append((arm.name, f"{epoch} to {epoch + 1}", found.over_seeds, *tested))
    header = ("schedule and order", "boundary of epochs", "jump over seeds, nats",
              "standard error over examples", "p, no jump", "largest jump, epochs from it",
              "p, no jump anywhere")  # fmt: skip
    return Table(
        header,
        rows,
        "Jump of the loss at the boundary against a smooth curve through half an epoch on each "
        "side: of every seed by itself with a 95 % interval over seeds; of means over seeds of "
        "single examples, whose loss before training and fall in another order are covariates (F "
        "test of a step beside a parabola); and where in that window a jump fits best (permutation "
        "null of the largest F). With reshuffling half an epoch holds examples twice, so that a "
        "test over examples would not be valid.",
    )


def _inside(arms: Sequence[Arm]) -> Table:
    rows = [
        (arm.name, *(_signed(step) for step in (*inside(arm, arms), last_quarter(arm, arms))))
        for arm in arms
    ]
    epochs = (f"inside epoch {e + 1}" for e in range(arms[0].epochs))
    return Table(
        ("schedule and order", *epochs, "last quarter of epoch 2"),
        rows,
        "How far the loss goes along the line through an epoch, in nats, with the standard error "
        "over examples (means over seeds, the same covariates) and the p-value of none.",
    )


def _signed(step: Step) -> str:
    return f"{step.size:+.3f} ({step.standard_error:.3f}; p = {step.p_value:.2g})"


def _gain(arms: Sequence[Arm]) -> Table:
    rows = [(arm.name, arm.gain(), arm.unseen()) for arm in arms]
    over = "seeds" if len(arms[0].losses_RT) > 2 else "windows (fewer than three seeds)"
    return Table(
        ("schedule and order", "gain of the first sight, nats", "unseen, nats"),
        rows,
        "By how much more than controls the loss of an example falls from its first sight to its "
        "second; and, unseen, from before training to its first sight, in the second half of epoch "
        "1, which is zero but for chance. Controls are windows drawn together with the examples, "
        "the same documents among them, and never trained on. The 95 % intervals are over "
        f"{over}.",
    )


def _causes(arms: Sequence[Arm]) -> Table:
    rows = []
    for cause in causes(arms):
        found, tested = cause.tested, ("–",) * 3
        if found is not None:
            tested = (f"{found.correlation:+.3f}", f"{found.null[0]:+.2f} to {found.null[1]:+.2f}",
                      f"{found.p_value:.3f}")  # fmt: skip
        rows.append((cause.name, cause.of, cause.correlations, *tested))
    header = ("gain under", "against", "correlation by seed and order", "correlation, all",
              "of shifts, 95 %", "p")  # fmt: skip
    return Table(
        header,
        rows,
        "Gain of the first sight by batch against the learning rate at the first sight (by example "
        "against the updates since, where the order changes). The constant rate is held against "
        "the rates of schedule A at the same places. The null shifts the rates in a circle, by the "
        f"same for all seeds, so that p is at least 1 / {arms[0].training.steps // arms[0].epochs} "
        "(one over the batches of an epoch), of both without a line; it assumes that the rest of a "
        "drift along the epoch is as likely to lie under one part of the cycle as under another. "
        "What goes one way, as the rate of B in its first third and the wait do, cannot be told "
        "from a drift: no test.",
    )


def _confidence(arms: Sequence[Arm]) -> Table:
    rows = []
    for arm in arms:
        updates = arm.training.steps // arm.epochs
        for epoch in range(arm.epochs + 1):
            at = int(np.abs(arm.steps_H - epoch * updates).argmin())
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
            _line(ax, arm.steps_H, heldout_RH, color=COLOURS[1], label="held out")
            controls_RH = arm.controls_RHC.mean(2)
            _line(ax, arm.steps_H, controls_RH - controls_RH[:, :1], color=COLOURS[2],
                  label="controls")  # fmt: skip
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
    shown = [cause for cause in causes(arms) if cause.of != WAIT]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with style():
        fig = MatplotlibFigure(figsize=(3.1 * columns, 2.8 * rows))
        axes = fig.subplots(rows, columns, squeeze=False).reshape(-1)
        for ax, cause in zip(axes, shown, strict=False):
            rate_K, gain_K = cause.causes[0], cause.gains.mean(0)
            ax.plot(rate_K, gain_K, "o", markersize=3, alpha=0.7)
            ends = np.array([rate_K.min(), rate_K.max()])
            ax.plot(ends, np.polyval(np.polyfit(rate_K, gain_K, 1), ends), color=COLOURS[1])
            ax.axhline(0, color="k", lw=0.8)
            ax.set_title(_short(cause.name), fontsize=9)
            ax.set_xlabel(cause.of)
            ax.set_ylabel("gain, nats per token")
            ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        savefig(fig, path)


def _draw_confidence(arms: Sequence[Arm], path: Path) -> None:
    names = {"loss": "held-out loss, nats", "accuracy": "accuracy",
             "calibration_error": "expected calibration error"}  # fmt: skip
    with style():
        fig = MatplotlibFigure(figsize=(10, 3.4))
        axes = fig.subplots(1, len(names))
        for ax, (metric, label) in zip(axes, names.items(), strict=True):
            for colour, arm in zip(COLOURS, arms, strict=False):
                _line(ax, arm.steps_H, arm.heldout[metric], color=colour, marker="o",
                      markersize=3, lw=1.2, label=_short(arm.name))  # fmt: skip
            _epochs(ax, arms[0])
            ax.set_xlabel("updates")
            ax.set_ylabel(label)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center",
                   ncols=min(3, len(arms)), fontsize=9)  # fmt: skip
        savefig(fig, path)
