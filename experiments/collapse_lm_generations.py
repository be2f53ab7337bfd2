"""Generations of models that learn from each other's text: replace, accumulate, or subsample.

Generation 0 is trained on real text alone. Letters: T generations and the first, R seeds.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_lm_lineages import write_texts
from collapse_lm_runs import FIRST, Array, Round, Study, source, student_config, train_round
from collapse_lm_verdict import told
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.errors import UserError
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
from lmnoise.theory.collapse import generation_factor

REPLACE, ACCUMULATE, SUBSAMPLE = "replace", "accumulate", "accumulate-subsample"
SCHEMES = {
    REPLACE: "text of the generation before alone, as many tokens",
    ACCUMULATE: "real text and that of all generations, as many tokens of each",
    SUBSAMPLE: "the same in equal shares, as many tokens in all as generation 0",
}


@dataclasses.dataclass(frozen=True)
class Generations:
    """Losses on held-out real text, nats per token.

    Attributes:
      tokens: of training of generation 0.
      losses_TR: of each scheme, of every generation from 0.
    """

    tokens: int
    losses_TR: dict[str, Array]

    def rise_TR(self, scheme: str) -> Array:
        """By how much each generation is above generation 0 of its lineage."""
        return self.losses_TR[scheme] - self.losses_TR[scheme][0]

    def rises(self, scheme: str) -> list[Estimate]:
        """The means of `rise_TR` over lineages."""
        return [mean_and_error(rise_R) for rise_R in self.rise_TR(scheme)]


def synthetic_share(scheme: str, generation: int) -> float:
    """The share of synthetic rows that a generation is trained on."""
    return 1.0 if scheme == REPLACE else generation / (generation + 1)


def budgets(scheme: str, generation: int) -> int:
    """Tokens of a generation's training over those of generation 0."""
    return generation + 1 if scheme == ACCUMULATE else 1


def check(config: ConfigDict) -> None:
    """Refuses generations of which no rise could be told."""
    if config.generations.count < 2 or config.generations.steps < 1:
        raise UserError(
            "config.generations needs a count of at least 2 and at least 1 step, not "
            f"{config.generations.count} and {config.generations.steps}"
        )


def run(config: ConfigDict, workdir: Path, study: Study) -> Generations:
    """Trains generation 0 and those of every scheme, or goes on.

    Raises:
      Stopped: a signal came; what was reached is saved.
    """
    # At share 0 nothing of the synthetic corpus is read, but the program is that of the others.
    first = train_round(
        _config(config, source(workdir, FIRST), REPLACE, 0, share=0.0),
        workdir / "generations" / "0",
        "generation 0",
    )
    write_texts(config, workdir, first.models, _text(REPLACE, 1), config.generations.steps)
    losses = {scheme: _scheme(config, workdir, scheme, first) for scheme in SCHEMES}
    tokens = config.generations.steps * config.train.batch_size * config.data.length
    return Generations(tokens, losses)


def _scheme(config: ConfigDict, workdir: Path, scheme: str, first: Round) -> Array:
    """The losses (T, R) of a scheme."""
    count, losses, latest = config.generations.count, [first.losses_R], first
    for generation in range(1, count + 1):
        if generation > 1:
            name = _text(scheme, generation)
            write_texts(config, workdir, latest.models, name, config.generations.steps)
        read = _corpora(config, workdir, scheme, generation)
        share = synthetic_share(scheme, generation)
        latest = train_round(
            _config(config, read, scheme, generation, share),
            workdir / "generations" / scheme / str(generation),
            f"{scheme}, generation {generation}",
        )
        losses.append(latest.losses_R)
    return np.stack(losses)


def _text(scheme: str, generation: int) -> str:
    """The name of the text that a generation is the first to read, which all share of the first."""
    return f"generations-{'0' if generation == 1 else f'{scheme}-{generation - 1}'}"


def _corpora(config: ConfigDict, workdir: Path, scheme: str, generation: int) -> str:
    """What a generation reads besides real text, as a value of `config.noise.source`."""
    if scheme == REPLACE:
        return source(workdir, _text(scheme, generation))
    name = f"generations-{scheme}-until-{generation - 1}"
    for seed in config.members.seed:
        texts = [_text(scheme, number) for number in range(1, generation + 1)]
        union(
            [workdir / "synthetic" / text / str(seed) for text in texts],
            workdir / "synthetic" / name / str(seed),
        )
    return source(workdir, name)


def union(folders: Sequence[Path], folder: Path) -> None:
    """Makes `folder` a corpus of all documents of some others, by links to their files.

    A folder of its own for each union: that which was prepared must not change. To files, since
    links to folders are not followed.
    """
    for number, other in enumerate(folders):
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted(other.glob("*.jsonl")):
            link = place / file.name
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(file, place))


def _config(
    config: ConfigDict, read: str, scheme: str, generation: int, share: float
) -> ConfigDict:
    """The config of a round.

    With `accumulate` the models of all generations end before the run does, so that one program
    trains them; a step after a model's end costs next to nothing.
    """
    own = config.generations
    longest = own.count + 2 if scheme == ACCUMULATE else 1
    duration = budgets(scheme, generation) / longest
    return student_config(
        config,
        members=dict(rate=(share,), duration=(duration,), noise_weight=(1.0,)),
        train=dict(steps=longest * own.steps),
        noise=dict(source=read),
    )


def predicted(result: Generations, accumulate: bool) -> Array:
    """Regression's rise by generation, (T,), where the first of `replace` rises as measured.

    Generation 0 has the error E of a fit to real labels, and generation t the factor
    `generation_factor(t + 1)` of it (arXiv 2404.01413); of replaced data the first rise is E.
    """
    number_T = np.arange(1, len(result.losses_TR[REPLACE]) + 1)
    factor_T = np.asarray(generation_factor(number_T, accumulate=accumulate))
    return (factor_T - 1) * result.rises(REPLACE)[1].mean


def bend(result: Generations) -> Estimate:
    """Of `replace`, the last rise less what the first one, repeated, would make; 0 if linear."""
    rise_TR = result.rise_TR(REPLACE)
    return mean_and_error(rise_TR[-1] - (len(rise_TR) - 1) * rise_TR[1])


def seen(result: Generations, config: ConfigDict) -> list[str]:
    """How the loss on real text moves over generations, in a sentence."""
    last = len(result.losses_TR[REPLACE]) - 1
    parts = []
    for scheme in SCHEMES:
        rise, budget = result.rises(scheme)[-1], budgets(scheme, last)
        more = f", {budget} times the tokens" if budget > 1 else ""
        parts.append(f"{scheme} {rise.text(3)} ({told(rise, 'worse', 'better')}{more})")
    return [
        f"- Generations ({result.tokens:,} tokens): loss on real text of generation {last} less "
        f"that of generation 0: {'; '.join(parts)}."
    ]


def _details(result: Generations) -> str:
    """The schemes of equal tokens beside each other, and the form of the rise."""
    last = len(result.losses_TR[REPLACE]) - 1
    less = mean_and_error(result.losses_TR[SUBSAMPLE][-1] - result.losses_TR[REPLACE][-1])
    form = bend(result)
    return (
        f"- Generation {last} of {SUBSAMPLE} less that of {REPLACE}, of the same tokens: "
        f"{less.text(3)} ({told(less, 'worse', 'better')}).\n"
        f"- The last rise of {REPLACE} less {last} times its first: {form.text(3)} "
        f"({told(form, 'steeper than', 'flatter than', 'no difference shown from')} regression's "
        "straight line)."
    )


def blocks(result: Generations, config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; its table also goes into `folder` as CSV."""
    table = _table(result)
    write_csv(folder / "generations.csv", table)
    _draw(result, folder / "generations.png")
    schemes = "\n".join(f"- {scheme}: {words}" for scheme, words in SCHEMES.items())
    return [
        "## Generations",
        "Generation 0 is trained on real text alone, each later one from the same first "
        "parameters on\n\n"
        f"{schemes}.\n\n"
        f"A run of {ACCUMULATE} reads as much real text as generation 0 did, but from a longer "
        f"stretch of the lineage's order; {SUBSAMPLE} keeps a part of the rows of generation 0. In "
        "regression (arXiv 2404.01413) the error of generation t is t + 1 times that of generation "
        f"0 with {REPLACE}, and with {ACCUMULATE} the sum of 1/i² up to t + 1 times, never more "
        "than π²/6; it is drawn with the first rise as measured. There nothing is gained by longer "
        f"training, which language models do gain by: {SUBSAMPLE} is the comparison of equal "
        "tokens.",
        _details(result),
        Figure(
            folder / "generations.png",
            "Loss on held-out real text less that of generation 0 of the lineage. Bars: 95 % "
            "intervals over lineages, paired; lines are shifted a little apart. Dashed: "
            f"regression's form, scaled by the first rise of {REPLACE}.",
        ),
        table,
    ]


def _table(result: Generations) -> Table:
    rows = []
    for scheme, losses_TR in result.losses_TR.items():
        for number, losses_R in enumerate(losses_TR):
            rise = result.rises(scheme)[number]
            rows.append(
                (
                    scheme,
                    number,
                    synthetic_share(scheme, number) if number else 0.0,
                    result.tokens * budgets(scheme, number),
                    mean_and_error(losses_R),
                    rise if number else "",
                    told(rise, "worse", "better") if number else "",
                )
            )
    header = ("scheme", "generation", "share of synthetic rows", "tokens", "loss on real text",
              "above generation 0", "verdict")  # fmt: skip
    caption = (
        "Loss on held-out real text, nats per token, with 95 % intervals over lineages; "
        "differences are paired. Generation 0 is the same in all schemes."
    )
    return Table(header, rows, caption)


def _draw(result: Generations, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(7.2, 4.4))
        ax = fig.subplots()
        number_T = np.arange(len(result.losses_TR[REPLACE]))
        for i, scheme in enumerate(SCHEMES):
            found = result.rises(scheme)
            ax.errorbar(
                number_T + 0.04 * (i - 1),
                [e.mean for e in found],
                # Of generation 0 less itself there is no interval.
                [0.0, *(e.half_width for e in found[1:])],
                color=COLOURS[i],
                marker="o",
                markersize=4,
                capsize=2,
                label=scheme,
            )
        for scheme, colour in zip((REPLACE, ACCUMULATE), COLOURS, strict=False):
            rise_T = predicted(result, accumulate=scheme == ACCUMULATE)
            ax.plot(number_T, rise_T, "--", color=colour, alpha=0.7, label=f"{scheme}, regression")
        ax.axhline(0, color="0.45", linewidth=1)
        ax.set_xticks(number_T)
        ax.set_xlabel("generation")
        ax.set_ylabel("loss on real text less that of\ngeneration 0 (nats per token)")
        handles, labels = ax.get_legend_handles_labels()
        order = np.roll(np.arange(len(labels)), len(SCHEMES))  # the measured ones first
        ax.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8)
        savefig(fig, path)
