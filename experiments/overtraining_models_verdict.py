"""What of over-training shows at this scale, in sentences and tables made from the numbers."""

import itertools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from overtraining_models_curves import Curve
from overtraining_models_noise import heldout
from overtraining_models_training import SERIES, Trained, epochs, frequencies_loss
from overtraining_models_tuning import CURES, Tuned

from lmnoise.evaluation.inflection import Inflection
from lmnoise.report import Estimate, Table, paired_difference


def blocks(
    trained: Sequence[Trained], noise: Sequence[Curve], tuned: Sequence[Tuned], config: ConfigDict
) -> list[str | Table]:
    """The first chapter: scale, sentences, and a table of all modifications for each series."""
    plain = frequencies_loss(config, heldout(config)[1])
    found: list[str | Table] = [
        "## What shows, and what does not",
        _scale(trained, noise, config, plain),
    ]
    for series, title in SERIES.items():
        curves = [c for c in noise if c.series == series]
        lines = sentences("Gaussian noise", curves, plain)
        for task in tuned:
            own = [c for c in task.curves if c.series == series]
            fixed = [c for c in own if not c.tuned]
            lines += sentences(f"Fine-tuning on `{task.task}` at a fixed rate", fixed, plain)
            lines.append(_tuned_sentence(task.task, own))
            if series == "budgets":
                lines += _cures(task.task, own)
            curves += own
        found += [f"### {title[0].upper()}{title[1:]}", "\n".join(lines), _table(curves)]
        if any(c.task_RB is not None for c in curves):
            found.append(_task_table(curves))
    return found


def _scale(
    trained: Sequence[Trained], noise: Sequence[Curve], config: ConfigDict, plain: float
) -> str:
    parameters = trained[0].checkpoint.model.parameter_count
    curve = next(c for c in noise if c.series == "budgets")
    first, last = curve.tokens_B[0], curve.tokens_B[-1]
    base = curve.estimates(curve.before_RB)
    falls = all(a.mean > b.mean for a, b in itertools.pairwise(base))
    return (
        f"Models of {parameters:,} parameters, pre-trained on {first:,.0f} to {last:,.0f} tokens "
        f"of `{config.data.source}` ({first / parameters:.3g} to {last / parameters:,.0f} tokens a "
        f"parameter; the largest budget reads the corpus {epochs(config):.2f} times), "
        f"{len(config.members.seed)} seeds, {len(curve.tokens_B)} budgets. As pre-trained the "
        f"held-out loss goes from {base[0].text(3)} to {base[-1].text(3)} nats per token and "
        f"{'falls with every budget' if falls else 'does not fall with every budget'}; the "
        f"frequencies of the tokens alone would have {plain:.3f}. Intervals "
        "are 95 % over seeds of pre-training (Student's t), not adjusted for their number; of an "
        "inflection point they are percentiles of a bootstrap over those seeds, which with few "
        "seeds is coarse."
    )


def sentences(title: str, curves: Sequence[Curve], plain: float) -> list[str]:
    """Progressive sensitivity, catastrophic over-training and which inflection comes first.

    Args:
      title: of the modification.
      curves: its strengths, weakest first.
      plain: loss of the token frequencies alone.
    """
    known = [c for c in curves if c.slope is not None]
    if not known:
        return [f"- **{title}**: too few budgets without divergence."]
    grows = [c for c in known if c.slope.interval[0] > 0]
    turns = [c for c in known if c.turn.shown]
    text = (
        f"- **{title}**: progressive sensitivity (the rise of the loss grows with the tokens) is "
        f"{_of(grows, known)}; catastrophic over-training (the loss after it turns up) is "
        f"{_of(turns, known)}."
    )
    if diverged := [c.name for c in curves if not c.fine.all()]:
        text += f" Some budgets diverged and are left out for {', '.join(diverged)}."
    if early := [c.name for c in turns if c.before_RB.mean(0)[c.tokens_B == c.turn.least] >= plain]:
        text += (
            f" For {', '.join(early)} the turn is where the model as pre-trained knows no more "
            "than the frequencies of tokens: from there on training brings less than is lost again."
        )
    return [text, *_earlier(known)]


def _of(some: Sequence[Curve], every: Sequence[Curve]) -> str:
    if not some:
        return f"not shown for any of {len(every)} strengths"
    names = ", ".join(c.name for c in some)
    return f"shown for {len(some)} of {len(every)} ({names})"


def _earlier(curves: Sequence[Curve]) -> list[str]:
    """Whether the strongest modification is least at fewer tokens than the weakest."""
    weak, strong = curves[0], curves[-1]
    if weak is strong:
        return []
    apart = weak.leasts() - strong.leasts()
    low, high = np.quantile(apart, (0.025, 0.975))
    shown = "shown" if low > 0 else "not shown"
    return [
        f"  - That the loss is least at fewer tokens for the stronger modification is {shown}: at "
        f"{weak.turn.least:,.0f} tokens for {weak.name} and at {strong.turn.least:,.0f} for "
        f"{strong.name}, {np.log2(weak.turn.least / strong.turn.least):.2g} doublings earlier "
        f"(bootstrap {low:.2g} to {high:.2g})."
    ]


def _tuned_sentence(task: str, curves: Sequence[Curve]) -> str:
    [plain] = [c for c in curves if c.tuned and c.cure == "plain"]
    if plain.turn is None:
        return f"  - Tuned rate on `{task}`: too few budgets without divergence."
    slope = plain.slope
    grows = "shown" if slope.interval[0] > 0 else "not shown"
    return (
        f"  - With the rate tuned on validation rows: forgetting grows with the tokens: {grows} "
        f"({slope.text()} nats a doubling); the loss on pre-training text turns up: "
        f"{_turned(plain.turn)}; the task's own test loss turns up: {_turned(plain.task_turn)}."
    )


def _turned(turn: Inflection) -> str:
    if not turn.shown:
        return "not shown, no inflection in range"
    where = "at or before" if turn.first else "from"
    return f"shown, {where} {turn.least:,.0f} tokens"


def _cures(task: str, curves: Sequence[Curve]) -> list[str]:
    """What every cure changes at the largest budget, and whether its inflection comes later."""
    best = [c for c in curves if c.tuned]
    [plain] = [c for c in best if c.cure == "plain"]
    found = []
    for cured in (c for c in best if c.cure in CURES):
        if not (plain.fine[-1] and cured.fine[-1]) or cured.turn is None or plain.turn is None:
            continue
        name = CURES[cured.cure]
        spared = paired_difference(cured.after_RB[:, -1], plain.after_RB[:, -1])
        cost = paired_difference(cured.task_RB[:, -1], plain.task_RB[:, -1])
        found.append(
            f"  - {name[0].upper()}{name[1:]} at its tuned rate, largest budget, against the "
            f"tuned rate without: loss on pre-training text {spared.text()} ({_sign(spared)}), "
            f"test loss on the task {cost.text()} ({_sign(cost)}); its loss on pre-training text "
            f"turns up: {_turned(cured.turn)}."
        )
    return found


def _sign(difference: Estimate) -> str:
    low, high = difference.interval
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "no difference shown"


def _table(curves: Sequence[Curve]) -> Table:
    rows = []
    for c in curves:
        if c.slope is None:
            rows.append((c.kind, c.name, *["diverged"] * 6))
            continue
        rows.append(
            (c.kind, c.name, c.slope.text(), "shown" if c.slope.interval[0] > 0 else "not shown",
             *_turn_cells(c.turn))
        )  # fmt: skip
    header = ("modification", "strength", "sensitivity a doubling", "progressive",
              "least loss at (tokens)", "bootstrap", "rise to the largest budget",
              "catastrophic")  # fmt: skip
    return Table(
        header,
        rows,
        "Loss on held-out pre-training text, nats per token. Sensitivity: slope of (loss after - "
        "loss before) against log2 of the tokens. Rise: from the budget of the least loss, which "
        "for each seed the other seeds choose, to the largest budget; catastrophic over-training "
        "is shown where its interval lies above 0; it is 0 where the largest budget is least.",
    )


def _task_table(curves: Sequence[Curve]) -> Table:
    rows = [
        (c.kind, c.name, c.estimates(c.task_RB)[-1].text(3),
         "" if np.isnan(c.accuracy_RB).any() else c.estimates(c.accuracy_RB)[-1].text(3),
         *_turn_cells(c.task_turn))
        for c in curves
        if c.task_turn is not None
    ]  # fmt: skip
    header = ("task", "rate", "test loss, largest budget", "accuracy there",
              "least test loss at (tokens)", "bootstrap", "rise to the largest budget",
              "turns up")  # fmt: skip
    return Table(header, rows, "Test loss on the task itself, nats per scored token.")


def _turn_cells(turn: Inflection) -> tuple[str, ...]:
    low, high = turn.interval
    half = (turn.rise_interval[1] - turn.rise_interval[0]) / 2
    return (
        f"{turn.least:,.0f}",
        f"{low:,.0f} to {high:,.0f}" if np.isfinite(low) else "needs three seeds",
        f"{turn.rise:.4f} ± {half:.4f}",
        _turned(turn) if turn.shown else "not shown",
    )
