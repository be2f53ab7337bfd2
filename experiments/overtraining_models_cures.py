"""What the cures of the over-training study spare, cost and delay."""

from collections.abc import Sequence

from overtraining_models_curves import Curve, compare
from overtraining_models_tuning import CURES

from lmnoise.evaluation.inflection import Inflection
from lmnoise.report import Estimate, Table, paired_difference


def sentences(curves: Sequence[Curve], frequencies: float) -> list[str]:
    """What every cure at its tuned rate changes, and whether its inflection comes later.

    Args:
      curves: of one task and series.
      frequencies: the loss of the frequencies of tokens, nats per token.
    """
    best = [c for c in curves if c.tuned]
    [plain] = [c for c in best if c.cure == "plain"]
    return [_sentence(cured, plain, frequencies) for cured in best if cured.cure in CURES]


def _sentence(cured: Curve, plain: Curve, frequencies: float) -> str:
    name = CURES[cured.cure]
    text = f"  - {name[0].upper()}{name[1:]} at its tuned rate"
    if cured.diverged:
        text += f" (diverged at {', '.join(cured.diverged)} tokens)"
    later = compare(cured, plain)
    if not len(later.late.tokens_B):
        return f"{text}: no budget without divergence."
    spared, cost = _differences(later.late, later.early)
    lost = [
        words
        for words, curve in (("without it", later.early), ("with it", later.late))
        if curve.forgotten(frequencies)[-1]
    ]
    forgotten = f"; all is forgotten there {' and '.join(lost)}" if lost else ""
    return (
        f"{text}, at {later.late.tokens_B[-1]:,.0f} tokens, against the tuned rate without: loss "
        f"on pre-training text {spared.text()} ({_sign(spared)}), test loss on the task "
        f"{cost.text()} ({_sign(cost)}){forgotten}; its loss on pre-training text turns up: "
        f"{turned(cured, cured.turn)}; that its inflection comes later: {_later(cured, plain)}."
    )


def tables(task: str, curves: Sequence[Curve]) -> list[Table]:
    """The cures at each fixed rate at which the loss turns up without them; [] without one."""
    rows = []
    for plain in (c for c in curves if not c.tuned and c.cure == "plain"):
        if plain.turn is None or not plain.turn.shown:
            continue
        for cured in curves:
            if cured.strength == plain.strength and cured.cure in CURES:
                rows.append(_row(cured, plain))
    header = ("cure", "turns up without it", "with it", "inflection later",
              "loss on pre-training text", "test loss on the task")  # fmt: skip
    caption = (
        f"Cures on `{task}` at the fixed rates at which the loss on pre-training text turns up "
        "without them. Doublings of tokens by which the least loss comes later, with the bootstrap "
        "over seeds. Losses: nats per token, with the cure less without, at the largest budget "
        "that did not diverge, paired over seeds."
    )
    return [Table(header, rows, caption)] if rows else []


def _row(cured: Curve, plain: Curve) -> tuple[str, ...]:
    found = compare(cured, plain)
    cells = [f"{e.text()} ({_sign(e)})" for e in _differences(found.late, found.early)]
    return (
        cured.name,
        turned(plain, plain.turn),
        turned(cured, cured.turn),
        _later(cured, plain),
        *(cells or ("diverged", "diverged")),
    )


def _differences(cured: Curve, plain: Curve) -> list[Estimate]:
    """Of the losses on pre-training text and on the task at the largest budget; [] without one."""
    if not len(cured.tokens_B):
        return []
    return [
        paired_difference(cured.after_RB[:, -1], plain.after_RB[:, -1]),
        paired_difference(cured.task_RB[:, -1], plain.task_RB[:, -1]),
    ]


def _later(cured: Curve, plain: Curve) -> str:
    found = compare(cured, plain)
    if found.reason:
        return f"not compared ({found.reason})"
    low, high = found.interval
    return (
        f"{'shown' if found.shown else 'not shown'}, {found.doublings:.2g} doublings (bootstrap "
        f"{low:.2g} to {high:.2g})"
    )


def turned(curve: Curve, turn: Inflection | None) -> str:
    """Whether a loss turns up, and from where; budgets that diverged are named."""
    if turn is None:
        return "too few budgets without divergence"
    beyond = f" (diverged at {', '.join(curve.diverged)} tokens)" if curve.diverged else ""
    if turn.shown:
        where = "at or before" if turn.first else "from"
        return f"shown, {where} {turn.least:,.0f} tokens{beyond}"
    return f"not shown, no inflection in {'the rest of the ' if beyond else ''}range{beyond}"


def _sign(difference: Estimate) -> str:
    low, high = difference.interval
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "no difference shown"
