"""Fine-tuning on a second task: gain, forgetting, and decay towards the pre-trained weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from overtraining_chapter import Chapter, Claim, Deviation
from overtraining_pretraining import STAR, flow, grid, log_time, times
from overtraining_training import Array, Network, Setting, spectrum, target, train

from lmnoise import points
from lmnoise.report import COLOURS, Table, style
from lmnoise.theory import overtraining

QUANTITIES = ("first-task loss", "forgetting", "gain")


@dataclass(frozen=True)
class Tuned:
    """Networks after fine-tuning; every array is (R, L): start or decay, and length.

    Attributes:
      theory, trained: by quantity, from the closed form and measured on whole matrices.
    """

    theory: dict[str, Array]
    trained: dict[str, Array]

    def deviations(self, rate: float) -> list[Deviation]:
        """The differences over the largest number of the quantity."""
        return [
            Deviation(
                f"{name}, over its largest",
                rate,
                ((self.trained[name] - line) / np.abs(line).max()).ravel(),
            )
            for name, line in self.theory.items()
        ]


def chapters(config: ConfigDict, workdir: Path, trained: list[Network]) -> list[Chapter]:
    """Fine-tuning after every length of pre-training, and decay towards the start after the last.

    Decay towards the start pulls to the pre-trained weights.
    """
    own = config.second
    lengths = _tune(config, workdir, trained, [0.0] * len(trained), own.lengths)
    last = [trained[-1]] * len(own.decays)
    frontier = _tune(config, workdir, last, own.decays, own.frontier_lengths)
    what = (
        f"Singular values beyond the first {own.shared} are {own.factor:g} times as large in the "
        "second task; the singular vectors are shared."
    )
    step = f"step 2^{np.log2(own.rate):g}"
    first = Chapter(
        name="second-task",
        title="Fine-tuning after longer and longer pre-training",
        drawing=_draw_lengths(config, trained, lengths),
        caption=(
            f"Fine-tuning on a second task for several lengths, against pre-training time. {what} "
            "Left: loss on the first task after fine-tuning, stars: its lowest; middle: "
            "forgetting, the rise of that loss; right: gain, the fall of the loss on the second "
            f"task. Lines: closed form. Circles: trained by the project's step ({step}); training "
            "has no randomness, so there are no intervals."
        ),
        table=_table(
            "pre-training time", times(trained), "fine-tuning length", own.lengths, lengths
        ),
        deviations=lengths.deviations(own.rate),
        notes=[_forgetting(config, trained[-1].of), _turns(config, trained[-1].of)],
        claims=_length_claims(config, trained[-1].of, lengths),
    )
    second = Chapter(
        name="frontier",
        title="Decay towards the pre-trained weights",
        drawing=_draw_frontier(config, trained[-1].of, frontier),
        caption=(
            "Forgetting against gain while fine-tuning goes on, for several strengths of weight "
            f"decay towards the pre-trained weights (pre-training time "
            f"{trained[-1].of['time']:.3g}). {what} Lines: closed form; dashed: its limit of long "
            f"fine-tuning over all strengths. Circles: trained by the project's step ({step}); no "
            "randomness, no intervals."
        ),
        table=_table("decay", own.decays, "fine-tuning length", own.frontier_lengths, frontier),
        deviations=frontier.deviations(own.rate),
        notes=[_decays(config, trained[-1].of)],
        claims=_decay_claims(config, trained[-1].of, frontier),
    )
    return [first, second]


def second_spectrum(config: ConfigDict, of: Setting) -> Array:
    """Singular values of the second task (D,)."""
    sigma_D = spectrum(of)
    rises_D = np.arange(len(sigma_D)) >= config.second.shared
    return np.where(rises_D, config.second.factor * sigma_D, sigma_D)


def _tune(
    config: ConfigDict,
    workdir: Path,
    starts: Sequence[Network],
    decays: Sequence[float],
    lengths: Sequence[float],
) -> Tuned:
    of = starts[0].of
    second_D = second_spectrum(config, of)
    setting = {k: v for k, v in of.items() if k not in ("time", "times")}
    setting |= dict(
        starts=[network.of["time"] for network in starts],
        second=second_D.tolist(),
        tuning_rate=config.second.rate,
        lengths=list(lengths),
        decays=list(decays),
    )
    [found] = points.compute(
        workdir, [setting], lambda s: _fine_tune(s, starts), "fine-tuning on a second task"
    )
    modes_R1D = flow(of, times(starts))[:, None]
    theory = overtraining.fine_tuning(
        spectrum(of), second_D, modes_R1D, np.asarray(lengths), np.asarray(decays)[:, None]
    )
    return Tuned(
        theory=_by_quantity(overtraining.loss(spectrum(of), theory.modes), theory),
        trained={name: np.array(found[name]) for name in QUANTITIES},
    )


def _by_quantity(after: Array, tuned: overtraining.FineTuning) -> dict[str, Array]:
    return dict(zip(QUANTITIES, (after, tuned.forgetting, tuned.gain), strict=True))


def _fine_tune(of: Setting, starts: Sequence[Network]) -> dict[str, Any]:
    """Losses of whole matrices, before and after training with the project's step."""
    second_DD = target(of, np.array(of["second"]))
    left_RLDD, right_RLDD = train(
        second_DD,
        np.stack([network.left for network in starts]),
        np.stack([network.right for network in starts]),
        rate=of["tuning_rate"],
        times=of["lengths"],
        weight_decay_R=of["decays"],
        decay_to="start",
    )
    before_RDD = np.stack([network.left @ network.right for network in starts])
    after_RLDD = left_RLDD @ right_RLDD

    def loss(goal_DD, product):
        return np.square(goal_DD - product).sum((-2, -1)) / 2

    first_DD = target(of, spectrum(of))
    after_RL = loss(first_DD, after_RLDD)
    numbers = (
        after_RL,
        after_RL - loss(first_DD, before_RDD)[:, None],
        loss(second_DD, before_RDD)[:, None] - loss(second_DD, after_RLDD),
    )
    return {name: values.tolist() for name, values in zip(QUANTITIES, numbers, strict=True)}


def _table(
    row: str, rows: Sequence[float], column: str, columns: Sequence[float], found: Tuned
) -> Table:
    header = (row, column, *(f"{kind} {n}" for n in QUANTITIES for kind in ("theory", "trained")))
    return Table(
        header,
        [
            [x, y, *(kind[n][r, c] for n in QUANTITIES for kind in (found.theory, found.trained))]
            for r, x in enumerate(rows)
            for c, y in enumerate(columns)
        ],
    )


def _draw_lengths(config: ConfigDict, trained: list[Network], found: Tuned) -> Figure:
    of, line = trained[0].of, grid(config)
    modes_TD = flow(of, line)
    with style():
        drawing = Figure(figsize=(13.6, 4.6))
        axes = drawing.subplots(1, 3)
        before = overtraining.loss(spectrum(of), modes_TD)
        axes[0].plot(line, before, "--", color="black", label="before fine-tuning")
        for n, (colour, length) in enumerate(zip(COLOURS, config.second.lengths, strict=False)):
            curves = _curves(config, of, line, length, 0.0)
            for axis, name in zip(axes, QUANTITIES, strict=True):
                axis.plot(line, curves[name], color=colour, label=f"length {length:g}")
                at = found.trained[name][:, n]
                axis.plot(times(trained), at, "o", color=colour, markersize=4)
            best = curves[QUANTITIES[0]].argmin()
            axes[0].plot(
                [line[best]],
                [curves[QUANTITIES[0]][best]],
                "*",
                color=colour,
                markersize=13,
                **STAR,
            )
        labels = ("loss on the first task after fine-tuning", "forgetting", "gain")
        for axis, label in zip(axes, labels, strict=True):
            log_time(axis)
            axis.set_ylabel(label)
        axes[0].set_yscale("log")
        axes[0].set_ylim(0.3, None)
        axes[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes[1].set_yscale("symlog", linthresh=1.0)
        axes[2].set_yscale("log")
        axes[0].legend(fontsize=8.5, loc="lower left")
    return drawing


def _curves(config: ConfigDict, of: Setting, line: Array, length: float, decay: float) -> dict:
    tuned = overtraining.fine_tuning(
        spectrum(of), second_spectrum(config, of), flow(of, line), length, decay
    )
    return _by_quantity(overtraining.loss(spectrum(of), tuned.modes), tuned)


def _lowest(config: ConfigDict, of: Setting, length: float, decay: float) -> tuple[float, float]:
    """The turning point of the first-task loss after fine-tuning, and its rise to endless time.

    The turning point is the pre-training time of the lowest loss, the rise is relative to it.
    """
    line = np.geomspace(config.pretraining.first, 4 * config.pretraining.last, 2000)
    loss_T = _curves(config, of, line, length, decay)[QUANTITIES[0]]
    tuned = overtraining.fine_tuning(
        spectrum(of), second_spectrum(config, of), spectrum(of), length, decay
    )
    end = float(overtraining.loss(spectrum(of), tuned.modes))
    return float(line[loss_T.argmin()]), end / float(loss_T.min()) - 1


def _turns(config: ConfigDict, of: Setting) -> Table:
    """When more pre-training begins to raise the first-task loss, without and with decay."""
    own = config.second
    found = {
        length: [_lowest(config, of, length, decay) for decay in own.decays]
        for length in own.lengths
    }
    return Table(
        ("fine-tuning length", *(f"decay {decay:g}" for decay in own.decays)),
        [
            [f"{length:g}", *(f"{turn:.2f} ({rise:+.1%})" for turn, rise in several)]
            for length, several in found.items()
        ],
        "Pre-training time of the lowest loss on the first task, measured after fine-tuning, and "
        "in brackets how far that loss rises from there to the end of time (closed form, times to "
        f"0.3 %, looked for up to {4 * config.pretraining.last:g}).",
    )


def _forgetting(config: ConfigDict, of: Setting) -> str:
    """From when on more pre-training raises forgetting, and where forgetting is negative."""
    line, found = grid(config), []
    for length in config.second.lengths:
        values_T = _curves(config, of, line, length, 0.0)["forgetting"]
        down = np.flatnonzero(np.diff(values_T) < -1e-9 * np.abs(values_T).max())
        start = line[down[-1] + 1] if len(down) else line[0]
        when = "does not rise at the end" if start == line[-1] else f"rises from t = {start:.2f} on"
        negative = line[values_T < 0]
        sign = f"negative at times up to {negative[-1]:.2f}" if len(negative) else "never negative"
        found.append(f"length {length:g}: {when}, {sign}")
    return (
        f"Forgetting against pre-training time, by the closed form up to t = {line[-1]:g}: "
        f"{'; '.join(found)}. Where it is negative, fine-tuning also lowers the loss on the "
        "first task."
    )


def _length_claims(config: ConfigDict, of: Setting, found: Tuned) -> list[Claim]:
    """What the paper says of fine-tuning, by the trained networks."""
    claims = []
    for n, length in enumerate(config.second.lengths):
        loss_R = found.trained[QUANTITIES[0]][:, n]
        rise = loss_R[-1] / loss_R.min() - 1
        claims.append(
            Claim(
                f"fine-tuning of length {length:g}: with longer pre-training the trained "
                "first-task loss falls, then rises again to the last checkpoint "
                f"(by {rise:.1%}; no randomness)",
                bool(loss_R.argmin() > 0 and rise > 0),
            )
        )
    turns = [_lowest(config, of, length, 0.0)[0] for length in config.second.lengths]
    if len(turns) > 1:
        earlier = all(late > early for late, early in pairwise(turns))
        claims.append(Claim("longer fine-tuning, earlier turning point (closed form)", earlier))
    return claims


def _decay_claims(config: ConfigDict, of: Setting, frontier: Tuned) -> list[Claim]:
    """What decay towards the pre-trained weights does, weakest first."""
    own = config.second
    order = np.argsort(own.decays)
    if len(order) < 2:
        return []
    delays = all(
        _lowest(config, of, length, own.decays[after])[0]
        > _lowest(config, of, length, own.decays[before])[0]
        for length in own.lengths
        for before, after in pairwise(order)
    )
    gain_R = frontier.trained["gain"][order, -1]
    return [
        Claim(
            "stronger decay towards the pre-trained weights, later turning point, at every length "
            "of fine-tuning (closed form)",
            delays,
        ),
        Claim(
            "stronger decay, less gain on the second task (trained, at the longest fine-tuning)",
            bool((np.diff(gain_R) < 0).all()),
        ),
    ]


def _draw_frontier(config: ConfigDict, of: Setting, found: Tuned) -> Figure:
    own = config.second
    line = np.geomspace(min(own.frontier_lengths) / 5, 100 * max(own.frontier_lengths), 400)
    modes_D = flow(of, of["time"])
    sigma_D, second_D = spectrum(of), second_spectrum(config, of)
    with style():
        drawing = Figure(figsize=(6.8, 4.8))
        axis = drawing.subplots()
        for n, (colour, decay) in enumerate(zip(COLOURS, own.decays, strict=False)):
            tuned = overtraining.fine_tuning(sigma_D, second_D, modes_D, line, decay)
            label = f"decay {decay:g}" if decay else "no decay"
            axis.plot(tuned.gain, tuned.forgetting, color=colour, label=label)
            measured = found.trained["gain"][n], found.trained["forgetting"][n]
            axis.plot(*measured, "o", color=colour, markersize=4.5)
        gain, forgetting = _limits(config, of, np.geomspace(1e-3, 1e3, 200))
        axis.plot(gain, forgetting, "--", color="0.35", label="limit of long fine-tuning", zorder=1)
        axis.set_xlabel("gain: fall of the loss on the second task")
        axis.set_ylabel("forgetting: rise of the loss on the first task")
        axis.legend(fontsize=8.5)
    return drawing


def _limits(config: ConfigDict, of: Setting, decay_E: Array) -> tuple[Array, Array]:
    """Gain and forgetting (E,) of fine-tuning without end with these decays."""
    sigma_D, second_D = spectrum(of), second_spectrum(config, of)
    modes_D = flow(of, of["time"])
    after_ED = overtraining.fine_tuned_limit(second_D, modes_D, decay_E)
    gain = overtraining.loss(second_D, modes_D) - overtraining.loss(second_D, after_ED)
    return gain, overtraining.loss(sigma_D, after_ED) - overtraining.loss(sigma_D, modes_D)


def _decays(config: ConfigDict, of: Setting) -> Table:
    """Forgetting of long fine-tuning with decay beside early stopping at the same gain."""
    line = np.geomspace(1e-4, 1e3, 4000)
    modes_D = flow(of, of["time"])
    free = overtraining.fine_tuning(spectrum(of), second_spectrum(config, of), modes_D, line)
    decays = [decay for decay in config.second.decays if decay]
    rows = []
    for decay, gain, forgetting in zip(decays, *_limits(config, of, np.array(decays)), strict=True):
        stopped = float(np.interp(gain, free.gain, free.forgetting))
        rows.append(
            [
                f"{decay:g}",
                f"{gain:.3f} ({gain / free.gain[-1]:.0%})",
                f"{forgetting:.3f} ({forgetting / free.forgetting[-1]:.0%})",
                f"{stopped:.3f}",
                f"{forgetting / stopped - 1:+.1%}",
            ]
        )
    header = (
        "decay",
        "gain (of all)",
        "forgetting (of all)",
        "forgetting of early stopping at that gain",
        "decay over early stopping",
    )
    return Table(
        header,
        rows,
        "Closed forms, in the limit of long fine-tuning with decay; 'of all' is long fine-tuning "
        "without decay.",
    )
