"""Pre-training: modes, the perturbed loss and the sensitivity against time."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from ml_collections import ConfigDict
from overtraining_chapter import BARS, Chapter, Claim, Deviation, Point, bars, perturbed
from overtraining_training import Network, Setting, pretrained, spectrum, task

from lmnoise.report import COLOURS, Table, style
from lmnoise.theory import overtraining

# Modes that are drawn, where the task has them.
DRAWN = (1, 2, 4, 8, 16, 32)
STAR = dict(markeredgecolor="black", markeredgewidth=0.8, zorder=6, linestyle="none")
TIME = "pre-training time t (steps times step size)"


def networks(config: ConfigDict, workdir: Path) -> dict[float, list[Network]]:
    """The pre-trained networks at all checkpoints, for every step size; the smallest comes last."""
    own = config.pretraining
    rates = sorted({own.rate, *own.coarser}, reverse=True)
    steps = np.geomspace(own.first, own.last, own.checkpoints) / rates[0]
    times = (np.unique(np.rint(steps)) * rates[0]).tolist()
    settings = [
        task(**config.task, seed=config.seed) | dict(rate=rate, weight_decay=0.0, times=times)
        for rate in rates
    ]
    return dict(zip(rates, pretrained(workdir, settings, "pre-training"), strict=True))


def times(trained: Sequence[Network]) -> np.ndarray:
    """When the networks were taken."""
    return np.array([network.of["time"] for network in trained])


def flow(of: Setting, time: np.ndarray | float) -> np.ndarray:
    """Modes of the gradient flow at these times, (..., D)."""
    return overtraining.modes(spectrum(of), time, of["start"])


def grid(config: ConfigDict) -> np.ndarray:
    """Times of the lines."""
    return np.geomspace(config.pretraining.first, config.pretraining.last, 400)


def log_time(axis: Axes) -> None:
    """A logarithmic axis of times with plain numbers."""
    axis.set_xscale("log")
    axis.set_xlabel(TIME)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


# ---- modes --------------------------------------------------------------------------------------


def modes_chapter(config: ConfigDict, trained: dict[float, list[Network]]) -> Chapter:
    """The modes of the finest training on the lines, and the deviation for every step size."""
    finest = min(trained)
    deviation = {rate: _deviation(nets) for rate, nets in trained.items()}
    largest = [np.abs(values).max() for values in deviation.values()]
    rows = [
        [f"2^{np.log2(rate):g}", f"{value:.2e}", f"{before / value:.3f}" if before else ""]
        for rate, value, before in zip(trained, largest, [0.0, *largest], strict=False)
    ]
    return Chapter(
        name="modes",
        title="Modes in pre-training",
        drawing=_draw_modes(config, trained, deviation),
        caption=(
            "Left: strength of mode i over its singular value against pre-training time; lines: "
            f"closed form of the gradient flow; circles: trained with step 2^{np.log2(finest):g}. "
            "Right: the largest deviation of any mode from the flow, over its singular value, for "
            "several step sizes. Training has no randomness, so there are no intervals."
        ),
        table=_modes_table(trained, deviation),
        deviations=[
            Deviation("strength, over the singular value", rate, values.ravel())
            for rate, values in deviation.items()
        ],
        notes=[
            Table(
                ("step size", "largest deviation", "step before over this one"),
                rows,
                "Training is the Euler method for the flow, of first order: a step that is half "
                "as long should leave half the deviation.",
            )
        ],
    )


def _deviation(trained: Sequence[Network]) -> np.ndarray:
    """Strength less that of the flow over the singular value, (T, D)."""
    of = trained[0].of
    strengths = np.stack([network.strengths for network in trained])
    return (strengths - flow(of, times(trained))) / spectrum(of)


def _drawn(of: Setting) -> list[int]:
    return [i for i in DRAWN if i <= of["dimension"]]


def _draw_modes(config: ConfigDict, trained: dict, deviation: dict) -> Figure:
    finest, line = trained[min(trained)], grid(config)
    of = finest[0].of
    sigma_D = spectrum(of)
    with style():
        drawing = Figure(figsize=(10.4, 4.2))
        axes = drawing.subplots(1, 2)
        for colour, i in zip(COLOURS, _drawn(of), strict=False):
            label = rf"$\sigma_{{{i}}}$ = {sigma_D[i - 1]:.3g}"
            axes[0].plot(line, flow(of, line)[:, i - 1] / sigma_D[i - 1], color=colour, label=label)
            reached = [network.strengths[i - 1] / sigma_D[i - 1] for network in finest]
            axes[0].plot(times(finest), reached, "o", color=colour, markersize=4)
        axes[0].set_ylabel(r"strength $s_i(t)\,/\,\sigma_i$")
        axes[0].set_ylim(-0.03, 1.32)
        axes[0].legend(fontsize=8.5, ncols=3, loc="upper center")
        for colour, (rate, values) in zip(COLOURS, deviation.items(), strict=False):
            largest = np.abs(values).max(1)
            label = f"step $2^{{{np.log2(rate):g}}}$"
            axes[1].plot(times(finest), largest, "o-", color=colour, markersize=4, label=label)
        axes[1].set_yscale("log")
        axes[1].set_ylabel(r"largest deviation $|s_i - s_i(t)|\,/\,\sigma_i$")
        axes[1].legend(fontsize=8.5)
        for axis in axes:
            log_time(axis)
    return drawing


def _modes_table(trained: dict, deviation: dict) -> Table:
    rows = [
        [rate, network.of["time"], i, sigma, expected, network.strengths[i - 1], np.abs(off).max()]
        for rate, nets in trained.items()
        for network, off in zip(nets, deviation[rate], strict=True)
        for i in _drawn(network.of)
        for sigma in [spectrum(network.of)[i - 1]]
        for expected in [flow(network.of, network.of["time"])[i - 1]]
    ]
    header = (
        "step size",
        "time",
        "mode",
        "singular value",
        "strength of the flow",
        "trained strength",
        "largest deviation of all modes over its singular value",
    )
    return Table(header, rows)


# ---- the perturbed loss -------------------------------------------------------------------------


def loss_chapter(config: ConfigDict, workdir: Path, trained: list[Network]) -> Chapter:
    """The U-shaped perturbed loss and the sensitivity for every scale of the noise."""
    own = config.pretraining
    found = perturbed(
        workdir,
        [(network, scale) for scale in own.scales for network in trained],
        config.draws,
        lambda n, scale: float(
            overtraining.perturbed_loss(spectrum(n.of), flow(n.of, n.of["time"]), scale)
        ),
        "noise, pre-training",
    )
    by_scale = {g: [p for p in found if p.of["scale"] == g] for g in own.scales}
    plain = [network.loss(spectrum(network.of)) for network in trained]
    expected = overtraining.loss(spectrum(trained[0].of), flow(trained[0].of, times(trained)))
    return Chapter(
        name="pre-training",
        title="Noise after longer and longer pre-training",
        drawing=_draw_losses(config, trained, by_scale),
        caption=(
            "Loss after Gaussian noise of standard deviation g on every weight, against "
            "pre-training time. Left: the loss; middle: the same over its lowest value in theory; "
            "right: its excess over the loss without noise (sensitivity). Lines: closed forms; "
            "stars: turning points. Circles: networks trained by the project's step "
            f"(2^{np.log2(own.rate):g}), then perturbed {config.draws} times; {BARS}."
        ),
        table=_loss_table(found),
        points=found,
        deviations=[
            Deviation(
                "loss without noise, over that at the start",
                own.rate,
                (np.array(plain) - expected) / (np.square(spectrum(trained[0].of)).sum() / 2),
            )
        ],
        notes=[_turning_table(by_scale), *_monotone(plain, by_scale)],
        claims=_claims(plain, by_scale),
    )


def _draw_losses(config: ConfigDict, trained: list[Network], by_scale: dict) -> Figure:
    of, line, at = trained[0].of, grid(config), times(trained)
    sigma_D, modes_TD = spectrum(of), flow(of, line)
    with style():
        drawing = Figure(figsize=(13.6, 4.6))
        axes = drawing.subplots(1, 3)
        axes[0].plot(line, overtraining.loss(sigma_D, modes_TD), color="black", label="no noise")
        plain = [network.loss(sigma_D) for network in trained]
        axes[0].plot(at, plain, "o", color="black", markersize=4)
        for colour, (scale, found) in zip(COLOURS, by_scale.items(), strict=False):
            loss_T = overtraining.perturbed_loss(sigma_D, modes_TD, scale)
            turn, lowest = turning(of, scale)
            measured = [point.measured for point in found]
            _curve(axes[0], line, loss_T, at, measured, colour, f"g = {scale:g}")
            relative = [e._replace(mean=e.mean / lowest) for e in measured]
            relative = [e._replace(standard_error=e.standard_error / lowest) for e in relative]
            _curve(axes[1], line, loss_T / lowest, at, relative, colour, f"g = {scale:g}")
            for axis, height in ((axes[0], lowest), (axes[1], 1.0)):
                axis.plot([turn], [height], "*", color=colour, markersize=13, **STAR)
            rise_T = overtraining.sensitivity(modes_TD, scale)
            rises = [point.shifted(point.unperturbed) for point in found]
            _curve(axes[2], line, rise_T, at, rises, colour, f"g = {scale:g}")
        axes[0].plot([], [], "*", color="white", markersize=11, label="turning point", **STAR)
        for axis, label in zip(
            axes,
            ("loss after noise", "loss after noise / its lowest", "sensitivity: rise by noise"),
            strict=True,
        ):
            log_time(axis)
            axis.set_ylabel(label)
            axis.set_xlim(line[0] * 0.9, line[-1] * 1.1)
        lowest = min(turning(of, scale)[1] for scale in by_scale)
        axes[0].set_yscale("log")
        axes[0].set_ylim(lowest / 20, None)  # without noise the loss falls out of the frame
        axes[2].set_yscale("log")
        axes[1].set_ylim(0.93, 1.5)
        axes[0].legend(fontsize=8.5, loc="lower left")
    return drawing


def _curve(axis, line, values, at, estimates, colour, label) -> None:
    axis.plot(line, values, color=colour, label=label)
    bars(axis, at, estimates, color=colour)


def turning(of: Setting, scale: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The turning points of the perturbed loss, and the loss there."""
    turn = overtraining.turning_point(spectrum(of), of["start"], scale)
    return turn, overtraining.perturbed_loss(spectrum(of), flow(of, turn), scale)


def _turning_table(by_scale: dict[float, list[Point]]) -> Table:
    rows = []
    for scale, found in by_scale.items():
        of = found[0].of
        sigma_D, threshold = spectrum(of), scale**2 * of["dimension"]
        turn, lowest = turning(of, scale)
        end = float(overtraining.perturbed_loss(sigma_D, sigma_D, scale))
        best, rise, error = _rise(found)
        rows.append(
            [
                f"{scale:g}",
                f"{(sigma_D < 2 * threshold).sum()} of {len(sigma_D)}",
                f"{turn:.2f}",
                f"{lowest:.2f}",
                f"{end:.2f}",
                f"{end / lowest - 1:+.1%}",
                f"{best.of['time']:.2f}",
                f"{rise / best.measured.mean:+.1%} ± {1.96 * error / best.measured.mean:.1%}",
            ]
        )
    header = (
        "g",
        "modes below 2 g² d",
        "turning point",
        "loss there",
        "loss at the end of time",
        "rise",
        "lowest measured at",
        "measured rise to the last checkpoint",
    )
    return Table(
        header,
        rows,
        "By the closed forms; modes below 2 g² d are better never learned. The last two columns "
        "are measured on trained networks at the "
        "checkpoints, ± 1.96 standard errors (the lowest of several noisy values is a little too "
        "low).",
    )


def _rise(found: Sequence[Point]) -> tuple[Point, float, float]:
    """The point of the lowest measured loss; its rise to the last one, with standard error."""
    best = min(found, key=lambda point: point.measured.mean)
    error = np.hypot(found[-1].measured.standard_error, best.measured.standard_error)
    return best, found[-1].measured.mean - best.measured.mean, float(error)


def _claims(plain: Sequence[float], by_scale: dict[float, list[Point]]) -> list[Claim]:
    """What the paper says of pre-training, by the trained networks."""
    grows = all(
        after.own - after.unperturbed > before.own - before.unperturbed
        for found in by_scale.values()
        for before, after in pairwise(found)
    )
    claims = [
        Claim(
            "progressive sensitivity: at every scale, noise costs more from each checkpoint to the "
            "next (expected rise of the loss at the trained weights)",
            grows,
        ),
        Claim("the loss without noise falls from each checkpoint to the next", _falls(plain)),
    ]
    for scale, found in by_scale.items():
        best, rise, error = _rise(found)
        claims.append(
            Claim(
                f"over-training at g = {scale:g}: the measured loss after noise falls, then rises "
                "again by more than 1.96 standard errors",
                best is not found[0] and rise > 1.96 * error,
            )
        )
    if len(by_scale) > 1:
        claims.append(Claim("more noise, earlier turning point (closed form)", _earlier(by_scale)))
    return claims


def _falls(plain: Sequence[float]) -> bool:
    return all(after < before for before, after in pairwise(plain))


def _earlier(by_scale: dict[float, list[Point]]) -> bool:
    """Whether more noise always brings the turning point forward."""
    turns = [turning(found[0].of, scale)[0] for scale, found in sorted(by_scale.items())]
    return all(late > early for late, early in pairwise(turns))


def _monotone(plain: Sequence[float], by_scale: dict[float, list[Point]]) -> list[str]:
    falls, earlier = _falls(plain), _earlier(by_scale)
    return [
        f"Without noise the trained loss {'falls' if falls else 'does NOT fall'} from every "
        f"checkpoint to the next. With more noise the loss "
        f"{'always turns earlier' if earlier else 'does NOT always turn earlier'}."
    ]


def _loss_table(found: Sequence[Point]) -> Table:
    header = (
        "time",
        "g",
        "loss without noise",
        "theory",
        "expected at the network's own weights",
        "measured",
        "z",
        "z at its own weights",
        "theory of the sensitivity",
        "measured sensitivity",
    )
    rows = [
        [
            p.of["time"],
            p.of["scale"],
            p.unperturbed,
            p.theory,
            p.own,
            p.measured,
            p.z,
            p.z_own,
            float(overtraining.sensitivity(flow(p.of, p.of["time"]), p.of["scale"])),
            p.shifted(p.unperturbed),
        ]
        for p in found
    ]
    return Table(header, rows)
