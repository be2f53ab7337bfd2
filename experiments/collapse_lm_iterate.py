"""Iterative mixing: is the synthetic part, written anew by each round's model, worth more?

In every round the same beginnings of real text are continued by the model of the round before, and
a model is trained from scratch on real rows and these. The model that writes for the first round is
the generator, which has read real text of its own, or that of the real part alone, which knows no
other. Letters: T rounds, R seeds.
"""

import dataclasses
from pathlib import Path

import numpy as np
from collapse_lm_lineages import write_texts
from collapse_lm_runs import FIRST, Array, Study, source, student_config, train_round
from collapse_lm_verdict import told
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.checkpoints import Checkpoint
from lmnoise.errors import UserError
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    paired_difference,
    savefig,
    style,
    write_csv,
)
from lmnoise.theory.collapse import fresh_rounds, same_data_rounds

GENERATOR, ALONE = "the generator", "the real part alone"
_PLACES = {GENERATOR: "from-generator", ALONE: "from-real-part"}


@dataclasses.dataclass(frozen=True)
class Iterated:
    """Losses on held-out real text, nats per token.

    Attributes:
      share: of synthetic rows.
      tokens: that a model is trained on, real and synthetic.
      generator_R: of the generators.
      alone_R: of the real part alone, in as many steps.
      losses_TR: of every round, by who writes for the first one.
    """

    share: float
    tokens: int
    generator_R: Array
    alone_R: Array
    losses_TR: dict[str, Array]

    def above_alone(self, start: str) -> list[Estimate]:
        """By how much each round is above the real part alone, paired."""
        return [paired_difference(losses_R, self.alone_R) for losses_R in self.losses_TR[start]]

    def above_first(self, start: str) -> list[Estimate]:
        """By how much each round is above the first one, paired; 0 for that."""
        losses_TR = self.losses_TR[start]
        return [paired_difference(losses_R, losses_TR[0]) for losses_R in losses_TR]


def check(config: ConfigDict) -> None:
    """Refuses rounds that could not be compared."""
    own = config.iterate
    if own.rounds < 2 or not 0 < own.share < 1:
        raise UserError(
            "config.iterate needs at least 2 rounds and a share strictly between 0 and 1, not "
            f"{own.rounds} and {own.share}"
        )
    if not 0 < own.prompt_tokens < own.length:
        raise UserError(
            f"config.iterate.prompt_tokens is {own.prompt_tokens}: it must lie between 1 and "
            f"config.iterate.length - 1, {own.length - 1}"
        )


def run(config: ConfigDict, workdir: Path, study: Study) -> Iterated:
    """Trains the real part alone and every round, or goes on.

    Raises:
      Stopped: a signal came; what was reached is saved.
    """
    # At weight 0 nothing of the synthetic corpus counts.
    alone = train_round(
        _config(config, source(workdir, FIRST), 0.0), workdir / "iterate" / "alone", ALONE
    )
    starts = {GENERATOR: study.generators, ALONE: alone.models}
    return Iterated(
        share=config.iterate.share,
        tokens=config.iterate.steps * config.train.batch_size * config.data.length,
        generator_R=study.generator_losses_R,
        alone_R=alone.losses_R,
        losses_TR={
            start: _rounds(config, workdir, models, _PLACES[start])
            for start, models in starts.items()
        },
    )


def _rounds(config: ConfigDict, workdir: Path, models: dict[int, Checkpoint], place: str) -> Array:
    """The losses (T, R) of the rounds for whose first one `models` write."""
    own, losses = config.iterate, []
    for number in range(1, own.rounds + 1):
        name = f"iterate-{place}-{number}"
        # The same seed in every round, so that the beginnings stay.
        write_texts(
            config, workdir, models, name, own.steps,
            prompt_tokens=own.prompt_tokens, length=own.length,
        )  # fmt: skip
        trained = train_round(
            _config(config, source(workdir, name), 1.0),
            workdir / "iterate" / place / str(number),
            f"relabelled {place}, round {number}",
        )
        models = trained.models
        losses.append(trained.losses_R)
    return np.stack(losses)


def _config(config: ConfigDict, read: str, weight: float) -> ConfigDict:
    members = dict(rate=(config.iterate.share,), duration=(1.0,), noise_weight=(weight,))
    return student_config(
        config,
        members=members,
        train=dict(steps=config.iterate.steps),
        noise=dict(source=read),
    )


def seen(result: Iterated, config: ConfigDict) -> list[str]:
    """Whether relabelling beats the real part alone, and one round, in a sentence."""
    parts = []
    for start, losses_TR in result.losses_TR.items():
        above = result.above_alone(start)
        first, last, gained = above[0], above[-1], result.above_first(start)[-1]
        parts.append(
            f"begun by {start}, {first.text(3)} after one round ({told(first, 'worse', 'better')}) "
            f"and {last.text(3)} after {len(losses_TR)} ({told(last, 'worse', 'better')}), by "
            f"{gained.text(3)} other than after one ({told(gained, 'worse', 'better')})"
        )
    return [
        f"- Relabelling (p2 = {result.share:g}, {result.tokens:,} tokens): loss on real text less "
        f"that of the real part alone, {'; '.join(parts)}."
    ]


def limits(share: float) -> tuple[float, float]:
    """Regression's error after many rounds over that of the real part alone.

    With the same real samples in every round, and with new ones; the noise of real and synthetic
    labels is the same, and samples are many.
    """
    samples, rounds = 1e6, 500
    setting = dict(
        size=1, n_real=(1 - share) * samples, n_synthetic=share * samples, noise_real=1.0,
        noise_synthetic=1.0, start=0.0,
    )  # fmt: skip
    alone = 1 / setting["n_real"]
    same, fresh = same_data_rounds(rounds, **setting), fresh_rounds(rounds, **setting)
    return float(same) / alone, float(fresh) / alone


def blocks(result: Iterated, config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; its table also goes into `folder` as CSV."""
    own, (same, fresh) = config.iterate, limits(result.share)
    table = _table(result)
    write_csv(folder / "iterate.csv", table)
    _draw(result, folder / "iterate.png")
    return [
        "## Relabelling the synthetic part",
        f"In every round the same {own.prompt_tokens} tokens from places in the real text are "
        f"continued to {own.length} by the model of the round before, and a model is trained from "
        f"its own first parameters on {100 * (1 - own.share):g} % real rows, the same in all "
        f"rounds, and {100 * own.share:g} % of these. The beginnings are trained on too: real text "
        "that the real part alone lacks. For the first round the generator writes, which has read "
        "real text of its own and so brings in what the real part lacks; or the model of the real "
        "part alone (weight 0 on the other rows of each batch), which knows nothing else. In "
        f"regression with many samples the error tends to {same:.2f} times that of the real part "
        "alone when the real samples stay the same, whoever began: relabelling ends no better than "
        "the real part alone. With new real samples in every round it tends to "
        f"{fresh:.2f} times that of the real part of one round: it then rests on more real data.",
        Figure(
            folder / "iterate.png",
            "Loss on real text by round, by who writes for the first one (left), and less that of "
            "the real part alone (right). Bars and bands: 95 % intervals over seeds, on the right "
            "paired; thin lines: lineages.",
        ),
        table,
    ]


def _table(result: Iterated) -> Table:
    rows = [
        (GENERATOR, mean_and_error(result.generator_R), "", "", ""),
        (ALONE, mean_and_error(result.alone_R), "", "", ""),
    ]
    for start, losses_TR in result.losses_TR.items():
        for number, losses_R in enumerate(losses_TR, 1):
            above = result.above_alone(start)[number - 1]
            rows.append(
                (
                    f"round {number} from {start}",
                    mean_and_error(losses_R),
                    above,
                    told(above, "worse", "better"),
                    result.above_first(start)[number - 1] if number > 1 else "",
                )
            )
    header = ("model", "loss on real text", "above the real part alone", "verdict",
              "above the first round")  # fmt: skip
    caption = (
        f"Loss on held-out real text, nats per token, after {result.tokens:,} tokens; 95 % "
        "intervals over seeds, differences paired. The generators have seeds, and with them "
        "first parameters and an order of the text, of their own."
    )
    return Table(header, rows, caption)


def _draw(result: Iterated, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(9, 3.9))
        left, right = fig.subplots(1, 2)
        for values_R, name, colour in (
            (result.alone_R, ALONE, "0.45"),
            (result.generator_R, GENERATOR, COLOURS[2]),
        ):
            found = mean_and_error(values_R)
            left.axhline(found.mean, color=colour, linestyle="--", label=name)
            left.axhspan(*found.interval, color=colour, alpha=0.12, linewidth=0)
        right.axhline(0, color="0.45", linewidth=1)
        for i, (start, losses_TR) in enumerate(result.losses_TR.items()):
            number_T = np.arange(1, len(losses_TR) + 1) + 0.04 * i
            losses = [mean_and_error(losses_R) for losses_R in losses_TR]
            _bars(left, number_T, losses, COLOURS[i], f"relabelled, from {start}")
            right.plot(
                number_T, losses_TR - result.alone_R, color=COLOURS[i], alpha=0.35, linewidth=1
            )
            _bars(right, number_T, result.above_alone(start), COLOURS[i], "_")
        left.set_ylabel("loss on real text (nats per token)")
        fig.legend(loc="outside upper center", ncols=4, fontsize=8)
        right.set_ylabel("loss less that of the real part alone\n(nats per token)")
        for ax in (left, right):
            ax.set_xlabel("round")
            ax.set_xticks(np.arange(1, len(losses_TR) + 1))
        savefig(fig, path)


def _bars(ax: Axes, number_T: Array, found: list[Estimate], colour: str, label: str) -> None:
    ax.errorbar(
        number_T,
        [e.mean for e in found],
        [e.half_width for e in found],
        color=colour,
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )
