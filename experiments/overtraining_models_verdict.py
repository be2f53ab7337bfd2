"""What of over-training shows at this scale, in sentences and tables made from the numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import overtraining_models_cures as cures
from ml_collections import ConfigDict
from overtraining_models_cures import turned
from overtraining_models_curves import Curve, compare
from overtraining_models_noise import heldout
from overtraining_models_training import SERIES, Trained, epochs, frequencies_loss, packed
from overtraining_models_tuning import Tuned

from lmnoise.evaluation.inflection import Inflection
from lmnoise.report import Table


class Levels(NamedTuple):
    """Losses that need no context, nats per token.

    Attributes:
      frequencies: of the tokens; a model that is no better has learned, or kept, no more.
      uniform: of all tokens alike.
    """

    frequencies: float
    uniform: float


def blocks(
    trained: Sequence[Trained], noise: Sequence[Curve], tuned: Sequence[Tuned], config: ConfigDict
) -> list[str | Table]:
    """The first chapter: scale, sentences, and a table of all modifications for each series."""
    vocabulary = packed(config, "train").vocab_size
    levels = Levels(frequencies_loss(config, heldout(config)[1]), math.log(vocabulary))
    found: list[str | Table] = [
        "## What shows, and what does not",
        _scale(trained, noise, config, levels),
    ]
    for series, title in SERIES.items():
        curves = [c for c in noise if c.series == series]
        lines = sentences("Gaussian noise", curves, levels)
        compared: list[Table] = []
        for task in tuned:
            own = [c for c in task.curves if c.series == series]
            fixed = [c for c in own if not c.tuned and c.cure == "plain"]
            lines += sentences(f"Fine-tuning on `{task.task}` at a fixed rate", fixed, levels)
            lines += tuned_sentences(own, levels, config.tune.rates)
            lines += cures.sentences(own, levels.frequencies)
            compared += cures.tables(task.task, own)
            curves += [c for c in own if c.tuned or c.cure == "plain"]
        found += [f"### {title[0].upper()}{title[1:]}", "\n".join(lines), _table(curves, levels)]
        if any(c.task_RB is not None for c in curves):
            found.append(_task_table(curves))
        found += compared
    return found


def _scale(
    trained: Sequence[Trained], noise: Sequence[Curve], config: ConfigDict, levels: Levels
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
        f"frequencies of the tokens alone would have {levels.frequencies:.3f} on the same text, "
        f"and a uniform guess {levels.uniform:.3f}. Intervals are 95 % over seeds of pre-training "
        "(Student's t), not adjusted for their number; of an inflection point they are percentiles "
        "of a bootstrap over those seeds, which with few seeds is coarse."
    )


def sentences(title: str, curves: Sequence[Curve], levels: Levels) -> list[str]:
    """Progressive sensitivity, catastrophic over-training and which inflection comes first.

    Args:
      title: of the modification.
      curves: its strengths, weakest first.
      levels: see `Levels`.
    """
    known = [c for c in curves if c.slope is not None]
    diverged = [f"{c.name} at {', '.join(c.diverged)} tokens" for c in curves if c.diverged]
    left_out = f" Diverged, and left out: {'; '.join(diverged)}." if diverged else ""
    if not known:
        return [f"- **{title}**: too few budgets without divergence.{left_out}"]
    grows = [c for c in known if c.slope.interval[0] > 0]
    turns = [c for c in known if c.turn.shown]
    text = (
        f"- **{title}**: progressive sensitivity (the rise of the loss grows with the tokens) is "
        f"{_of(grows, known)}.{_ways(grows)}{_all_forgotten(known, levels)} Catastrophic "
        f"over-training (the loss after it turns up) is {_of(turns, known)}.{left_out}"
    )
    early = [
        c for c in turns if c.before_RB.mean(0)[c.tokens_B == c.turn.least] >= levels.frequencies
    ]
    if early:
        text += (
            f" For {_names(early)} the turn is where the model as pre-trained knows no more than "
            "the frequencies of tokens: from there on training brings less than is lost again."
        )
    return [text, *_earlier(known)]


def _names(curves: Sequence[Curve]) -> str:
    return ", ".join(c.name for c in curves)


def _of(some: Sequence[Curve], every: Sequence[Curve]) -> str:
    if not some:
        return f"not shown for any of {len(every)} strengths"
    return f"shown for {len(some)} of {len(every)} ({_names(some)})"


WAYS = {
    "more lost": "the loss after it is itself higher in the end, so that more is lost than was "
    "gained",
    "better start": "the loss after it shows no trend, so that the rise reflects the better start "
    "alone",
    "falls less": "the loss after it still falls, by less than that before it",
}


def way(curve: Curve) -> str:
    """How a sensitivity that grows comes about, a key of `WAYS`; "" where it does not grow."""
    if not curve.slope.interval[0] > 0:
        return ""
    low, high = curve.after_slope.interval
    if low > 0 or curve.turn.shown:
        return "more lost"
    return "falls less" if high < 0 else "better start"


def _ways(grows: Sequence[Curve]) -> str:
    text = ""
    for name, words in WAYS.items():
        if own := [c for c in grows if way(c) == name]:
            text += f" For {_names(own)} {words}."
    return text


def _all_forgotten(curves: Sequence[Curve], levels: Levels) -> str:
    """Which curves end no better than the frequencies of tokens, at their largest budget."""

    def above(level: float) -> list[Curve]:
        return [c for c in curves if c.forgotten(level)[c.fine][-1]]

    text = ""
    if lost := above(levels.frequencies):
        text += (
            " At the largest budget all is forgotten (the loss after it is at least that of the "
            f"frequencies of tokens) for {_names(lost)}"
        )
        worse = above(levels.uniform)
        text += f", and it is worse than a uniform guess for {_names(worse)}." if worse else "."
    return text


def _earlier(curves: Sequence[Curve]) -> list[str]:
    """Whether the strongest modification with an inflection is least at fewer tokens than the
    weakest."""
    weak, strong = curves[0], next((c for c in reversed(curves) if c.turn.shown), curves[-1])
    if weak is strong:
        return []
    found = compare(weak, strong)
    claim = "that the loss is least at fewer tokens for the stronger modification"
    if found.reason:
        return [f"  - Not compared is {claim} ({strong.name} against {weak.name}): {found.reason}."]
    low, high = found.interval
    return [
        f"  - {claim.capitalize()} is {'shown' if found.shown else 'not shown'}: at "
        f"{found.late.turn.least:,.0f} tokens for {weak.name} and at "
        f"{found.early.turn.least:,.0f} for {strong.name}, {found.doublings:.2g} doublings earlier "
        f"(bootstrap {low:.2g} to {high:.2g})."
    ]


def tuned_sentences(curves: Sequence[Curve], levels: Levels, rates: Sequence[float]) -> list[str]:
    """What the rate that was tuned on validation rows does, and how often it ends the grid."""
    best = [c for c in curves if c.tuned]
    [plain] = [c for c in best if c.cure == "plain"]
    if plain.turn is None:
        return ["  - Tuned rate: too few budgets without divergence."]
    grows = {"more lost": ", and ", "": ""}.get(way(plain), ", but ") + WAYS.get(way(plain), "")
    return [
        "  - With the rate tuned on validation rows: forgetting grows with the tokens: "
        f"{'shown' if grows else 'not shown'} ({plain.slope.text()} nats a doubling)"
        f"{grows}; the "
        f"loss on pre-training text turns up: {turned(plain, plain.turn)}; the task's own test "
        f"loss turns up: {turned(plain, plain.task_turn)}.{_all_forgotten([plain], levels)}",
        f"  - The tuned rate is the highest of the grid ({rates[-1]:g}) and the lowest "
        f"({rates[0]:g}) for {'; '.join(_edges(c, rates) for c in best)}.",
    ]


def _edges(curve: Curve, rates: Sequence[float]) -> str:
    known = curve.rate_RB[np.isfinite(curve.rate_RB)]
    return (
        f"{(known == rates[-1]).sum()} and {(known == rates[0]).sum()} of {known.size} checkpoints "
        f"({curve.name})"
    )


def _table(curves: Sequence[Curve], levels: Levels) -> Table:
    rows = []
    for c in curves:
        if c.slope is None:
            rows.append((c.kind, c.name, *["diverged"] * 8))
            continue
        lost, of = c.forgotten(levels.frequencies).sum(), c.learned(levels.frequencies).sum()
        grows = f"shown, {found}" if (found := way(c)) else "not shown"
        rows.append(
            (c.kind, c.name, c.slope.text(), grows, c.after_slope.text(), f"{lost} of {of}",
             *_turn_cells(c, c.turn))
        )  # fmt: skip
    header = ("modification", "strength", "sensitivity a doubling", "progressive",
              "loss after a doubling", "all forgotten", "least loss at (tokens)", "bootstrap",
              "rise to the largest budget", "catastrophic")  # fmt: skip
    return Table(
        header,
        rows,
        "Loss on held-out pre-training text, nats per token. Sensitivity: slope of (loss after - "
        "loss before) against log2 of the tokens. All forgotten: at how many of the budgets whose "
        "models know more than the frequencies of tokens the loss after is at least that of the "
        "frequencies. Rise: from the budget of the least loss, which for each seed the other seeds "
        "choose, to the largest budget that did not diverge; catastrophic over-training is shown "
        "where its interval lies above 0; it is 0 where the largest budget is least.",
    )


def _task_table(curves: Sequence[Curve]) -> Table:
    rows = [
        (c.kind, c.name,
         c.estimates(c.task_RB)[-1].text(3) if c.fine[-1] else "diverged",
         "" if np.isnan(c.accuracy_RB).any() else c.estimates(c.accuracy_RB)[-1].text(3),
         *_turn_cells(c, c.task_turn))
        for c in curves
        if c.task_turn is not None
    ]  # fmt: skip
    header = ("task", "rate", "test loss, largest budget", "accuracy there",
              "least test loss at (tokens)", "bootstrap", "rise to the largest budget",
              "turns up")  # fmt: skip
    return Table(header, rows, "Test loss on the task itself, nats per scored token.")


def _turn_cells(curve: Curve, turn: Inflection) -> tuple[str, ...]:
    low, high = turn.interval
    half = (turn.rise_interval[1] - turn.rise_interval[0]) / 2
    return (
        f"{turn.least:,.0f}",
        f"{low:,.0f} to {high:,.0f}" if np.isfinite(low) else "needs three seeds",
        f"{turn.rise:.4f} ± {half:.4f}",
        turned(curve, turn),
    )
