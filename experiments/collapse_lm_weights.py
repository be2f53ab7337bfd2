"""Weighted mixing: does another weight on synthetic rows beat the real part alone?

A weight w on the loss of synthetic rows gives them the fraction a = p2 w / (p1 + p2 w) of the
objective; w = 0 is the real part alone, in as many steps. Letters: W weights, P shares of synthetic
rows, R seeds, B training sizes.
"""

import dataclasses
from pathlib import Path

import numpy as np
from collapse_lm_figures import short
from collapse_lm_runs import FIRST, Array, Study, source, student_config
from collapse_lm_verdict import told
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.mixtures import train_weighted
from lmnoise.errors import UserError
from lmnoise.evaluation.inflection import slopes
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    style,
    write_csv,
)
from lmnoise.theory.collapse import best_fraction, weighted_mixing

# Of rows of one kind: what the main grid trains.
_PLAIN = 1.0


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Losses on held-out real text, nats per token; the first weight is 0.

    Attributes:
      shares: of synthetic rows, P.
      weights: of their loss, W, rising.
      tokens_B: of training, real and synthetic, rising.
      losses_WPRB: of every weight, share, seed and size.
    """

    shares: tuple[float, ...]
    weights: tuple[float, ...]
    tokens_B: Array
    losses_WPRB: Array

    @property
    def above_WPRB(self) -> Array:
        """By how much the loss is above that of the real part alone, paired."""
        return self.losses_WPRB - self.losses_WPRB[0]


def fraction(weight: float, share: float) -> float:
    """What synthetic rows are of the objective: a = p2 w / (p1 + p2 w)."""
    return share * weight / (1 - share + share * weight)


def check(config: ConfigDict) -> None:
    """Refuses weights that could not be compared."""
    own, members = config.weights, config.members
    if own.weights[0] != 0 or list(own.weights) != sorted(set(own.weights)):
        raise UserError(
            f"config.weights.weights must begin with 0, the real part alone, and rise, not "
            f"{own.weights}"
        )
    for name, known in (("shares", "rate"), ("duration", "duration")):
        if missing := sorted(set(own[name]) - set(members[known])):
            raise UserError(
                f"config.weights.{name} has {missing[0]}, which is not in config.members.{known}: "
                "the weight 1 is that of the main grid"
            )
    if not all(0 < share < 1 for share in own.shares) or len(own.duration) < 2:
        raise UserError(
            "config.weights needs shares strictly between 0 and 1 and at least two durations, not "
            f"{own.shares} and {own.duration}"
        )


def run(config: ConfigDict, workdir: Path, study: Study) -> Weighted:
    """Trains every weight but 1, or goes on; those of weight 1 are in the main grid.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    own = config.weights
    longest = max(own.duration)
    others = tuple(weight for weight in own.weights if weight != _PLAIN)
    trained = student_config(
        config,
        members=dict(
            rate=(0.0, *own.shares),
            noise_weight=others,
            duration=tuple(duration / longest for duration in own.duration),
        ),
        train=dict(steps=round(longest * config.train.steps)),
        noise=dict(source=source(workdir, FIRST)),
    )
    curves = train_weighted(trained, workdir / "weights", "weights x shares x sizes")
    losses = {weight: curves[weight].real_PRB[1:] for weight in others}
    shares = [study.curves.shares.index(share) for share in own.shares]
    sizes = [list(config.members.duration).index(duration) for duration in own.duration]
    losses[_PLAIN] = study.curves.real_PRB[shares][..., sizes]
    return Weighted(
        shares=tuple(own.shares),
        weights=tuple(own.weights),
        tokens_B=study.curves.tokens_B[sizes],
        losses_WPRB=np.stack([losses[weight] for weight in own.weights]),
    )


def seen(result: Weighted, config: ConfigDict) -> list[str]:
    """Whether a weight beats the real part alone at the largest size, in a sentence."""
    parts = []
    for p, share in enumerate(result.shares):
        last = [mean_and_error(above_RB[:, -1]) for above_RB in result.above_WPRB[1:, p]]
        found = ", ".join(
            f"w = {weight:g} {e.text(3)} ({told(e, 'worse', 'better')})"
            for weight, e in zip(result.weights[1:], last, strict=True)
        )
        parts.append(f"at p2 = {share:g} {found}")
    return [
        f"- Weights w of synthetic rows ({result.tokens_B[-1]:,.0f} tokens): loss on real text "
        f"less that of the real part alone (w = 0, in as many steps), {'; '.join(parts)}."
    ]


def _trends(result: Weighted) -> str:
    """How the difference to the real part alone moves with the tokens, a line a share."""
    lines = []
    for p, share in enumerate(result.shares):
        found = [
            mean_and_error(slopes(result.tokens_B, above_RB))
            for above_RB in result.above_WPRB[1:, p]
        ]
        moves = "; ".join(
            f"w = {weight:g} {slope.text(3)} ({told(slope, 'rises', 'falls')})"
            for weight, slope in zip(result.weights[1:], found, strict=True)
        )
        lines.append(
            f"- At p2 = {share:g} each doubling of the tokens moves the difference by {moves}."
        )
    return "\n".join(lines)


def expected(config: ConfigDict, result: Weighted) -> Array:
    """Regression's error less that of the real part alone, in units of s^2, (W, P, B)."""
    found = []
    for weight in result.weights:
        a_P1 = np.array([[fraction(weight, share)] for share in result.shares])
        found.append(_error(config, result, a_P1) - _error(config, result, 0 * a_P1))
    return np.stack(found)


def _error(config: ConfigDict, result: Weighted, a_P1: Array) -> Array:
    return np.asarray(
        weighted_mixing(
            a_P1,
            _ratios(config, result)[None],
            synthetic_share=np.array(result.shares)[:, None],
            quality=config.weights.theory_quality,
            noise_real=1.0,
            noise_synthetic=1.0,
        )
    )


def _ratios(config: ConfigDict, result: Weighted) -> Array:
    """D/n of the sizes: the config's at the smallest, and down with the tokens."""
    return config.weights.theory_ratio * result.tokens_B[0] / result.tokens_B


def blocks(result: Weighted, config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; its table also goes into `folder` as CSV."""
    table = _table(result)
    write_csv(folder / "weights.csv", table)
    _draw(result, config, folder / "weights.png")
    own = config.weights
    return [
        "## Weights on real and synthetic rows",
        "The loss of a synthetic row counts w times that of a real one in the objective, so that "
        "synthetic rows are the fraction a = p2 w / (p1 + p2 w) of it. With w = 0 the real part is "
        "alone: the same real rows in the same steps, and the rest of each batch counts nothing. "
        "The generators have read real text that the real part lacks, which may help too. "
        f"{_theory(result, config)}",
        _trends(result),
        Figure(
            folder / "weights.png",
            "Above: loss on real text less that of the real part alone, measured; bars are 95 % "
            "intervals over seeds, paired, and lines are shifted a little apart. Below: the same "
            "difference of errors in regression, in units of the labels' noise variance s^2, with "
            f"c^2 = {own.theory_quality:g} s^2 and {own.theory_ratio:g} dimensions a sample at the "
            "smallest size: a prediction of the direction alone.",
        ),
        table,
    ]


def _theory(result: Weighted, config: ConfigDict) -> str:
    """What regression predicts over this range of sizes."""
    own, found = config.weights, []
    for share in result.shares:
        best = [
            best_fraction(
                float(ratio),
                synthetic_share=share,
                quality=own.theory_quality,
                noise_real=1.0,
                noise_synthetic=1.0,
            )
            for ratio in (_ratios(config, result)[0], _ratios(config, result)[-1])
        ]
        found.append(f"from {best[0]:.2g} to {best[1]:.2g} at p2 = {share:g}")
    return (
        "In regression (the expansion of `lmnoise.theory.collapse.weighted_mixing`) the best "
        "fraction falls to 0 as the data grow, with the constants drawn here "
        f"{' and '.join(found)}: a weight helps where real rows are few, and with enough of them "
        "no weight beats the real part alone."
    )


def _table(result: Weighted) -> Table:
    rows = []
    for p, share in enumerate(result.shares):
        for b, tokens in enumerate(result.tokens_B):
            for w, weight in enumerate(result.weights):
                above = mean_and_error(result.above_WPRB[w, p, :, b])
                rows.append(
                    (
                        f"{share:g}",
                        int(tokens),
                        f"{weight:g}",
                        fraction(weight, share),
                        mean_and_error(result.losses_WPRB[w, p, :, b]),
                        above if w else "",
                        told(above, "worse", "better") if w else "the real part alone",
                    )
                )
    header = ("share p2", "tokens", "weight w", "fraction a", "loss on real text",
              "above the real part alone", "verdict")  # fmt: skip
    caption = (
        "Loss on held-out real text, nats per token, with 95 % intervals over seeds; differences "
        "are paired. The tokens count real and synthetic rows."
    )
    return Table(header, rows, caption)


def _draw(result: Weighted, config: ConfigDict, path: Path) -> None:
    expected_WPB = expected(config, result)
    with style():
        fig = MatplotlibFigure(figsize=(9, 6.6))
        axes = fig.subplots(2, len(result.shares), sharex=True, sharey="row", squeeze=False)
        for p, share in enumerate(result.shares):
            _measured(axes[0, p], result, p)
            _predicted(axes[1, p], result, expected_WPB[:, p])
            axes[0, p].set_title(f"share of synthetic rows p2 = {share:g}")
            axes[1, p].set_xlabel("tokens of training, real and synthetic")
        axes[0, 0].set_ylabel("measured: loss less that of\nthe real part alone (nats per token)")
        axes[1, 0].set_ylabel("regression: error less that of\nthe real part alone (units of s²)")
        axes[0, 0].legend(title="weight of synthetic rows", fontsize=8)
        savefig(fig, path)


def _measured(ax: Axes, result: Weighted, p: int) -> None:
    for w, weight in enumerate(result.weights[1:], 1):
        found: list[Estimate] = [mean_and_error(x_R) for x_R in result.above_WPRB[w, p].T]
        ax.errorbar(
            result.tokens_B * 2 ** (0.05 * (w - 2)),
            [e.mean for e in found],
            [e.half_width for e in found],
            color=COLOURS[w - 1],
            marker="o",
            markersize=4,
            capsize=2,
            label=f"w = {weight:g}",
        )
    ax.axhline(0, color="0.45", linewidth=1)


def _predicted(ax: Axes, result: Weighted, expected_WB: Array) -> None:
    for w in range(1, len(result.weights)):
        ax.plot(result.tokens_B, expected_WB[w], "--", marker=".", color=COLOURS[w - 1])
    ax.axhline(0, color="0.45", linewidth=1)
    ax.set_xscale("log")
    ax.set_xticks(result.tokens_B, [short(tokens) for tokens in result.tokens_B])
    ax.minorticks_off()
