"""Depth and width: what synthetic text alone costs models of other sizes, against real text."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_lm_runs import FIRST, Array, Study, source, student_config
from collapse_lm_verdict import told
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.mixtures import Curves, train_mixtures
from lmnoise.assemble import model_config
from lmnoise.errors import UserError
from lmnoise.evaluation.inflection import slopes
from lmnoise.report import (
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    style,
    write_csv,
)

SHARES = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Size:
    """One model, trained on real and on synthetic text alone; R seeds, B training sizes.

    Attributes:
      layers, width: of the model.
      parameters: how many it has.
      tokens_B: of training, rising.
      real_RB: held-out real loss after training on real text, nats per token.
      excess_RB: by how much it is higher after synthetic text, paired by seed.
    """

    layers: int
    width: int
    parameters: int
    tokens_B: Array
    real_RB: Array
    excess_RB: Array

    @property
    def name(self) -> str:
        return f"{self.layers} layers, width {self.width}"


def check(config: ConfigDict) -> None:
    """Refuses sizes that could not be compared."""
    section, members = config.sizes, config.members
    if missing := sorted(set(section.duration) - set(members.duration)):
        raise UserError(
            f"config.sizes.duration has {missing[0]}, which is not in config.members.duration: "
            "the model of the main grid is one of those compared"
        )
    if (config.model.layers, config.model.width) in section.models:
        raise UserError(
            "config.sizes.models has the model of config.model, which is compared without that: "
            "leave it out"
        )
    for layers, width in section.models:
        try:
            model_config(student_config(config, model=dict(layers=layers, width=width)), tokens=1)
        except UserError as error:
            raise UserError(f"config.sizes.models, {(layers, width)}: {error}") from error


def run(config: ConfigDict, workdir: Path, study: Study) -> list[Size]:
    """Trains the other models, or goes on; they and the main grid's, by parameters.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    durations = np.asarray(config.members.duration)
    chosen_B = np.isin(durations, config.sizes.duration)
    sizes = [_size(config.model.layers, config.model.width, study.curves, chosen_B)]
    for layers, width in config.sizes.models:
        changes = dict(
            model=dict(layers=layers, width=width),
            members=dict(rate=SHARES, duration=config.sizes.duration),
            noise=dict(source=source(workdir, FIRST)),
        )
        folder = workdir / "sizes" / f"layers-{layers}-width-{width}"
        title = f"{layers} layers, width {width}"
        curves = train_mixtures(student_config(config, **changes), folder, title)
        sizes.append(_size(layers, width, curves, np.ones(len(curves.tokens_B), bool)))
    return sorted(sizes, key=lambda size: size.parameters)


def _size(layers: int, width: int, curves: Curves, chosen_B: np.ndarray) -> Size:
    shares = list(curves.shares)
    real_RB, synthetic_RB = (curves.real_PRB[shares.index(share)][:, chosen_B] for share in SHARES)
    return Size(
        layers=layers,
        width=width,
        parameters=curves.parameters,
        tokens_B=np.asarray(curves.tokens_B)[chosen_B],
        real_RB=real_RB,
        excess_RB=synthetic_RB - real_RB,
    )


def series(sizes: Sequence[Size], config: ConfigDict) -> dict[str, list[Size]]:
    """The models by what alone differs between them."""
    model = config.model
    return {
        "width": [size for size in sizes if size.layers == model.layers],
        "depth": sorted((s for s in sizes if s.width == model.width), key=lambda s: s.layers),
    }


def growth(sizes: Sequence[Size], what: str, values_MRB: Sequence[Array]) -> list[Estimate]:
    """By how much values of M sizes rise by doubling of the width or depth, by training size."""
    axis = np.array([size.width if what == "width" else size.layers for size in sizes], float)
    values_BMR = np.moveaxis(np.stack(values_MRB), 2, 0)
    return [mean_and_error(slopes(axis, values_MR.T)) for values_MR in values_BMR]


def seen(sizes: Sequence[Size], config: ConfigDict) -> list[str]:
    """Whether larger models amplify the cost, by width and by depth."""
    parts = []
    for what, own in series(sizes, config).items():
        if len(own) < 2:
            continue
        values = [size.width if what == "width" else size.layers for size in own]
        found = ", ".join(
            f"{rise.text(3)} after {tokens:,.0f} tokens ({told(rise, 'grows', 'shrinks')})"
            for tokens, rise in zip(
                own[0].tokens_B, growth(own, what, [s.excess_RB for s in own]), strict=True
            )
        )
        itself = growth(own, what, [s.real_RB + s.excess_RB for s in own])[-1]
        parts.append(
            f"of the {what} ({values[0]} to {values[-1]}) by {found}, where the loss itself of "
            f"synthetic text alone changes by {itself.text(3)}"
        )
    return [
        "- Larger models: what synthetic text alone costs over real text alone changes with each "
        f"doubling {'; '.join(parts)}."
    ] * bool(parts)


def blocks(sizes: Sequence[Size], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; its table also goes into `folder` as CSV."""
    rows = [
        (size.name, size.parameters, int(tokens), mean_and_error(real_R), mean_and_error(excess_R))
        for size in sizes
        for tokens, real_R, excess_R in zip(
            size.tokens_B, size.real_RB.T, size.excess_RB.T, strict=True
        )
    ]
    header = ("model", "parameters", "tokens", "real loss, share 0", "excess, share 1")
    table = Table(
        header,
        rows,
        "Loss on held-out real text, nats per token, and by how much it is higher for a model that "
        "is trained on synthetic text alone; 95 % intervals over seeds, paired.",
    )
    write_csv(folder / "sizes.csv", table)
    _draw(sizes, config, folder / "sizes.png")
    return [
        "## Depth and width",
        "Models of other depths and widths read the same rows of real text alone (share 0) and of "
        "the same generators' text alone (share 1). The generators and the learning rate stay as "
        "they are, so that a larger model also has more to lose on real text.",
        Figure(
            folder / "sizes.png",
            "Excess loss on real text of synthetic text alone over real text alone, by width and "
            "by depth. Bars: 95 % intervals over seeds, paired; lines are shifted a little apart.",
        ),
        table,
    ]


def _draw(sizes: Sequence[Size], config: ConfigDict, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(9, 3.9))
        axes = fig.subplots(1, 2, sharey=True)
        for ax, (what, own) in zip(axes, series(sizes, config).items(), strict=True):
            _panel(ax, what, own)
        axes[0].set_ylabel("excess loss of share 1 over share 0\n(nats per token)")
        axes[0].legend(title="trained on")
        savefig(fig, path)


def _panel(ax: Axes, what: str, sizes: Sequence[Size]) -> None:
    values = np.array([size.width if what == "width" else size.layers for size in sizes])
    for number, tokens in enumerate(sizes[0].tokens_B):
        found = [mean_and_error(size.excess_RB[:, number]) for size in sizes]
        ax.errorbar(
            values * 2 ** (0.04 * number),
            [e.mean for e in found],
            [e.half_width for e in found],
            marker="o",
            capsize=2,
            label=f"{tokens:,.0f} tokens",
        )
    ax.axhline(0, color="0.45", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, map(str, values))
    ax.minorticks_off()
    ax.set_xlabel("width" if what == "width" else "layers")
