"""Iterative mixing: is the synthetic part, written anew by each round's model, worth more?

In every round the same beginnings of real text are continued by the model of the round before, the
first time by the generator, and a model is trained from scratch on real rows and these. Letters: T
rounds, R seeds.
"""

import dataclasses
from pathlib import Path

import numpy as np
from collapse_lm_lineages import verdict, write_texts
from collapse_lm_runs import Array, Study, source, student_config, train_round
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

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


@dataclasses.dataclass(frozen=True)
class Iterated:
    """Losses on held-out real text, nats per token.

    Attributes:
      share: of synthetic rows.
      tokens: that a model is trained on, real and synthetic.
      generator_R: of the models that wrote for the first round.
      alone_R: of the real part alone, in as many steps.
      losses_TR: of every round.
    """

    share: float
    tokens: int
    generator_R: Array
    alone_R: Array
    losses_TR: Array

    @property
    def above_alone(self) -> list[Estimate]:
        """By how much each round is above the real part alone, paired."""
        return [paired_difference(losses_R, self.alone_R) for losses_R in self.losses_TR]

    @property
    def above_first(self) -> list[Estimate]:
        """By how much each round is above the first one, paired; 0 for that."""
        return [paired_difference(losses_R, self.losses_TR[0]) for losses_R in self.losses_TR]


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
    own, models, losses = config.iterate, study.generators, []
    for number in range(1, own.rounds + 1):
        name = _name(number)
        # The same seed in every round, so that the beginnings stay.
        write_texts(
            config, workdir, models, name, own.steps,
            prompt_tokens=own.prompt_tokens, length=own.length,
        )  # fmt: skip
        if number == 1:
            alone = train_round(
                _config(config, workdir, name, 0.0), workdir / "iterate" / "alone",
                "the real part alone",
            )  # fmt: skip
        folder = workdir / "iterate" / f"round-{number}"
        trained = train_round(
            _config(config, workdir, name, 1.0), folder, f"relabelled, round {number}"
        )
        models = trained.models
        losses.append(trained.losses_R)
    return Iterated(
        share=own.share,
        tokens=own.steps * config.train.batch_size * config.data.length,
        generator_R=study.generator_losses_R,
        alone_R=alone.losses_R,
        losses_TR=np.stack(losses),
    )


def _name(number: int) -> str:
    return f"iterate-{number}"


def _config(config: ConfigDict, workdir: Path, name: str, weight: float) -> ConfigDict:
    members = dict(rate=(config.iterate.share,), duration=(1.0,), noise_weight=(weight,))
    return student_config(
        config,
        members=members,
        train=dict(steps=config.iterate.steps),
        noise=dict(source=source(workdir, name)),
    )


def seen(result: Iterated, config: ConfigDict) -> list[str]:
    """Whether relabelling beats the real part alone, and one round, in a sentence."""
    first, last, gained = result.above_alone[0], result.above_alone[-1], result.above_first[-1]
    rounds = len(result.losses_TR)
    return [
        f"- Relabelling at share {result.share:g}, {result.tokens:,} tokens: loss on real text "
        f"above that of the real part alone, nats per token, {first.text(3)} after one round "
        f"({verdict(first, 'worse', 'better')}) and {last.text(3)} after {rounds} "
        f"({verdict(last, 'worse', 'better')}); from the first round to the last {gained.text(3)} "
        f"({verdict(gained, 'worse', 'better')})."
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
        f"continued to {own.length} by the model of the round before, which for the first round "
        "is the generator, and a model is trained from its own first parameters on "
        f"{100 * (1 - own.share):g} % real rows, the same in all rounds, and {100 * own.share:g} % "
        "of these. "
        "The beginnings are real text and are trained on too. In regression with as many samples "
        f"the error tends to {same:.2f} times that of the real part alone when the real samples "
        "stay the same, whatever model began: relabelling does not beat the real part alone. "
        f"With new real samples in every round it tends to {fresh:.2f} times that of the real "
        "part of one round, since it then rests on more real data.",
        "\n".join(seen(result, config)),
        Figure(
            folder / "iterate.png",
            "Loss on real text by round (left), and less that of the real part alone (right). "
            "Bars and band: 95 % intervals over seeds, on the right paired; thin lines: lineages.",
        ),
        table,
    ]


def _table(result: Iterated) -> Table:
    rows = [
        ("generator", mean_and_error(result.generator_R), "", "", ""),
        ("real part alone", mean_and_error(result.alone_R), "", "", ""),
    ]
    for number, losses_R in enumerate(result.losses_TR, 1):
        above, gained = result.above_alone[number - 1], result.above_first[number - 1]
        rows.append(
            (
                f"round {number}",
                mean_and_error(losses_R),
                above,
                verdict(above, "worse", "better"),
                gained if number > 1 else "",
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
    number_T = np.arange(1, len(result.losses_TR) + 1)
    alone, ours = mean_and_error(result.alone_R), COLOURS[0]
    with style():
        fig = MatplotlibFigure(figsize=(9, 3.9))
        left, right = fig.subplots(1, 2)
        left.axhline(alone.mean, color="0.45", linestyle="--", label="real part alone")
        left.axhspan(*alone.interval, color="0.45", alpha=0.15, linewidth=0)
        _bars(left, number_T, [mean_and_error(x_R) for x_R in result.losses_TR], "relabelled")
        left.set_ylabel("loss on real text (nats per token)")
        left.legend()
        right.axhline(0, color="0.45", linewidth=1)
        right.plot(number_T, result.losses_TR - result.alone_R, color=ours, alpha=0.35, linewidth=1)
        _bars(right, number_T, result.above_alone, "")
        right.set_ylabel("loss less that of the real part alone\n(nats per token)")
        for ax in (left, right):
            ax.set_xlabel("round")
            ax.set_xticks(number_T)
        savefig(fig, path)


def _bars(ax, number_T, found: list[Estimate], label: str) -> None:
    ax.errorbar(
        number_T,
        [e.mean for e in found],
        [e.half_width for e in found],
        color=COLOURS[0],
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )
