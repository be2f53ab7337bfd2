"""The cure: weight decay in pre-training that fits the noise to come."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from overtraining_chapter import BARS, Chapter, Point, bars, perturbed
from overtraining_pretraining import turning
from overtraining_training import Network, Setting, pretrained, spectrum, task

from lmnoise.report import COLOURS, Table, style
from lmnoise.theory import overtraining

PLAIN, DECAYED = "without weight decay", "weight decay g² d"
LINES = {"end": COLOURS[1], "stopped": COLOURS[4], "cured": COLOURS[2]}


def chapter(config: ConfigDict, workdir: Path) -> Chapter:
    """The perturbed loss after long training against the scale, with and without weight decay."""
    own = config.cure
    base = task(**config.task, seed=config.seed) | dict(rate=own.rate, times=[own.last])
    decays = [scale**2 * base["dimension"] for scale in own.scales]
    settings = [base | dict(weight_decay=decay) for decay in [0.0, *decays]]
    (plain,), *decayed = pretrained(workdir, settings, "training with weight decay")
    cases = [(plain, scale) for scale in own.scales]
    cases += [(net, scale) for (net,), scale in zip(decayed, own.scales, strict=True)]
    found = perturbed(workdir, cases, config.draws, _expected, "noise, weight decay")
    return Chapter(
        name="cure",
        title="Weight decay that fits the noise",
        drawing=_draw(config, base, found),
        caption=(
            "Loss after noise of standard deviation g on every weight (left), and its excess over "
            f"the lowest possible one (right). Lines: theory. Circles and squares: trained until "
            f"t = {own.last:g} (step 2^{np.log2(own.rate):g}) without and with weight decay, then "
            f"perturbed {config.draws} times; {BARS}."
        ),
        table=_table(found),
        points=found,
        notes=[_harm_table(base, found)],
    )


def _expected(network: Network, scale: float) -> float:
    """The limit of long training: all modes, or those that weight decay leaves."""
    sigma_D = spectrum(network.of)
    modes_D = sigma_D
    if network.of["weight_decay"]:
        modes_D = overtraining.soft_threshold(sigma_D, scale)
    return float(overtraining.perturbed_loss(sigma_D, modes_D, scale))


def _lines(of: Setting, scale_G: np.ndarray) -> dict[str, np.ndarray]:
    """The perturbed loss (G,) after endless training, at the turning point, and the lowest."""
    sigma_D = spectrum(of)
    cured_GD = overtraining.soft_threshold(sigma_D, scale_G)
    return {
        "end": overtraining.perturbed_loss(sigma_D, sigma_D, scale_G),
        "stopped": turning(of, scale_G)[1],
        "cured": overtraining.perturbed_loss(sigma_D, cured_GD, scale_G),
    }


def _draw(config: ConfigDict, of: Setting, found: Sequence[Point]) -> Figure:
    scales = config.cure.scales
    grid = np.geomspace(min(scales) * 0.9, max(scales) * 1.1, 150)
    lines, lowest = _lines(of, grid), _lines(of, np.array(scales))["cured"]
    labels = {
        "end": "no decay, long training",
        "stopped": "no decay, stopped at the turning point",
        "cured": "lowest possible: soft threshold",
    }
    with style():
        drawing = Figure(figsize=(10.4, 4.4))
        axes = drawing.subplots(1, 2)
        for name, label in labels.items():
            axes[0].plot(grid, lines[name], color=LINES[name], label=label)
            axes[1].plot(grid, lines[name] - lines["cured"], color=LINES[name])
        for decayed, label, colour, marker in (
            (False, f"trained {PLAIN}", LINES["end"], "o"),
            (True, f"trained with {DECAYED}", LINES["cured"], "s"),
        ):
            chosen = [p for p in found if (p.of["weight_decay"] > 0) is decayed]
            mark = dict(color=colour, marker=marker, markersize=5)
            bars(axes[0], scales, [p.measured for p in chosen], **mark, label=label)
            excess = [p.shifted(low) for p, low in zip(chosen, lowest, strict=True)]
            bars(axes[1], scales, excess, **mark)
        axes[0].set_yscale("log")
        axes[0].set_ylabel("loss after noise")
        axes[0].legend(fontsize=8.5)
        axes[1].set_ylabel("loss after noise above the lowest possible")
        axes[1].set_yscale("symlog", linthresh=1.0)
        for axis in axes:
            axis.set_xlabel("standard deviation g of the noise")
    return drawing


def _table(found: Sequence[Point]) -> Table:
    header = (
        "g",
        "weight decay",
        "loss without noise",
        "theory",
        "expected at the network's own weights",
        "measured",
        "z",
        "z at its own weights",
    )
    rows = [
        [
            p.of["scale"],
            p.of["weight_decay"],
            p.unperturbed,
            p.theory,
            p.own,
            p.measured,
            p.z,
            p.z_own,
        ]
        for p in found
    ]
    return Table(header, rows)


def _harm_table(of: Setting, found: Sequence[Point]) -> Table:
    """What weight decay costs without noise and saves with it."""
    sigma_D = spectrum(of)
    plain, decayed = (
        {p.of["scale"]: p for p in found if (p.of["weight_decay"] > 0) is chosen}
        for chosen in (False, True)
    )
    rows = []
    for scale, point in decayed.items():
        lines = _lines(of, np.array([scale]))
        saved = 1 - point.measured.mean / plain[scale].measured.mean
        rows.append(
            [
                f"{scale:g}",
                f"{point.of['weight_decay']:.3g}",
                f"{(sigma_D > point.of['weight_decay']).sum()} of {len(sigma_D)}",
                f"{point.unperturbed:.3f}",
                plain[scale].measured,
                point.measured,
                f"{saved:.1%}",
                f"{lines['stopped'][0] / lines['cured'][0] - 1:+.1%}",
            ]
        )
    header = (
        "g",
        "weight decay",
        "modes kept",
        "its loss without noise",
        "loss after noise, no decay",
        "loss after noise, with decay",
        "saved",
        "stopped at the turning point over the lowest (theory)",
    )
    return Table(header, rows, "Measured, mean ± half width of the 95 % interval over draws.")
