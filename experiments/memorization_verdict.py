"""What shows and what does not, in sentences made from the numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from memorization_canaries import Found as Canaries
from memorization_canaries import by_repeats
from memorization_forgetting import ALONE, FRESH, Curve, changes
from memorization_forgetting_report import between, forgotten
from memorization_sights import Arm
from memorization_stairs import boundaries, causes, inside, last_quarter
from ml_collections import ConfigDict

from lmnoise.analyze.defaults import label
from lmnoise.report import Estimate, mean_and_error, paired_difference

LEVEL = 0.05


class Found(NamedTuple):
    """All that was measured; `arms` by the name of the config's section."""

    arms: dict[str, list[Arm]]
    canaries: Canaries
    sizes: dict[str, Curve]
    stages: dict[str, Curve]
    mixing: dict[str, Curve]


def blocks(found: Found, config: ConfigDict, titles: dict[str, str]) -> list[str]:
    """The first chapter of the report."""
    lines = []
    for name in reversed(found.arms):
        arms, section = found.arms[name], config[name]
        lines.append(
            f"{titles[name]}, {section.examples} windows of {config.data.length} tokens of "
            f"`{section.corpus}`, {section.epochs} epochs, {len(section.seeds)} seed(s):"
        )
        sentences = [
            *(_stairs(arm, arms, section.draw) for arm in arms),
            *(_flat(arm, arms, section.draw) for arm in arms),
            *(_rise(arm, arms) for arm in arms if arm.schedule == "cyclical"),
            _learned(arms),
            *_rate(arms),
            _confident(arms),
        ]
        lines.append("\n".join(f"- {sentence}" for sentence in sentences))
    lines.append(f"{titles['own']}, {len(config.own.seeds)} seeds, all that follows:")
    sentences = [
        _canaries(found.canaries, config.canaries),
        _sizes(found.sizes, config.sizes),
        _stages(found.stages, config.stages),
        *_mixing(found.mixing, config.mixing),
    ]
    lines.append("\n".join(f"- {sentence}" for sentence in sentences))
    return ["## What shows, and what does not", *lines]


def _stairs(arm: Arm, arms: Sequence[Arm], draw: int) -> str:
    found = boundaries(arm, arms, draw)
    if any(boundary.step is None for boundary in found):
        down = [b for b in found if b.over_seeds.interval[1] < 0]
        said = "; ".join(b.over_seeds.text(3) for b in found)
        return (
            f"{arm.name}: steps down at the boundaries of epochs are {_some(down, found)} (jumps "
            f"over seeds, in nats: {said}; examples repeat within a window, so that there is no "
            "test over them)."
        )
    down = [b for b in found if b.step.size < 0 and b.step.p_value < LEVEL / len(found)]
    said = "; ".join(
        f"{b.step.size:+.3f} ± {b.step.standard_error:.3f}, p = {b.step.p_value:.2g}" for b in found
    )
    where = ", ".join(f"{b.away:+.2f} (p = {b.search.p_value:.3f})" for b in found)
    return (
        f"{arm.name}: steps down at the boundaries of epochs are {_some(down, found)} (jump and "
        f"standard error in nats: {said}). Not told where the boundary is, the largest jump within "
        f"half an epoch is found so many epochs from it: {where}."
    )


def _some(those: Sequence[object], of: Sequence[object]) -> str:
    return "shown" if len(those) == len(of) else "shown at some" if those else "not shown"


def _flat(arm: Arm, arms: Sequence[Arm], draw: int) -> str:
    """Flat is what goes, for sure, less than half as far as the jump at its beginning."""
    jumps = [abs(b.over_seeds.mean) for b in boundaries(arm, arms, draw)]
    after = inside(arm, arms)[1:]
    flat = [
        step
        for step, jump in zip(after, jumps, strict=True)
        if abs(step.size) + 2 * step.standard_error < jump / 2
    ]
    said = "; ".join(f"{step.size:+.3f} ± {step.standard_error:.3f}" for step in after)
    return (
        f"{arm.name}: flatness inside the epochs after the first (less than half of the jump at "
        f"the beginning, by two standard errors) is {_some(flat, after)} (change and standard "
        f"error in nats: {said})."
    )


def _rise(arm: Arm, arms: Sequence[Arm]) -> str:
    step = last_quarter(arm, arms)
    shown = "shown" if step.size > 0 and step.p_value < LEVEL else "not shown"
    return (
        f"{arm.name}: that the loss rises at the end of epoch 2 is {shown} (last quarter: "
        f"{step.size:+.3f} ± {step.standard_error:.3f} nats, p = {step.p_value:.2g})."
    )


def _learned(arms: Sequence[Arm]) -> str:
    values = {arm.name: arm.gain() for arm in arms}
    said = ", ".join(f"{value.text(3)} ({name})" for name, value in values.items())
    above = sum(_above(value) for value in values.values())
    unseen = ", ".join(arm.unseen().text(3) for arm in arms)
    return (
        f"Learning from one sight is shown under {above} of {len(values)} plans: at its second "
        f"sight the loss of an example had fallen by so much more than that of controls from the "
        f"same documents, in nats: {said}. Before any sight, which must be zero but for chance: "
        f"{unseen}."
    )


def _above(value: Estimate) -> bool:
    return bool(value.interval[0] > 0)


def _rate(arms: Sequence[Arm]) -> list[str]:
    found = [cause for cause in causes(arms) if cause.tested is not None]
    claims = [cause for cause in found if cause.claim]
    sentences = []
    for cause in claims:
        tested, level = cause.tested, LEVEL / len(claims)
        shown = tested.correlation > 0 and tested.p_value < level
        least = 1 / cause.gains.shape[1]
        few = f" (so few batches leave p at {least:.3f} or above)" if least >= level else ""
        sentences.append(
            f"That an example gains more where the {cause.of} was higher, {cause.name}, is "
            f"{'shown' if shown else 'not shown'}: correlation {tested.correlation:+.2f} (shifted "
            f"{tested.null[0]:+.2f} to {tested.null[1]:+.2f}, p = {tested.p_value:.3f}){few}."
        )
    said = "; ".join(
        f"{c.name}, {c.of}: {c.tested.correlation:+.2f} (p = {c.tested.p_value:.3f})"
        for c in found
        if not c.claim
    )
    return [
        *sentences,
        f"Gains against rates by themselves, no claims and not corrected for their number: {said}.",
    ]


def _confident(arms: Sequence[Arm]) -> str:
    said, shown = [], []
    for arm in arms:
        after = int(np.abs(arm.steps_H - arm.training.steps / arm.epochs).argmin())
        changes_of = {
            metric: paired_difference(curve[:, -1], curve[:, after])
            for metric, curve in arm.heldout.items()
        }
        over = paired_difference(
            arm.heldout["confidence"][:, -1] - arm.heldout["accuracy"][:, -1],
            arm.heldout["confidence"][:, after] - arm.heldout["accuracy"][:, after],
        )
        changes_of["confidence minus accuracy"] = over
        parts = [f"{metric.replace('_', ' ')} {e.text(4)}" for metric, e in changes_of.items()]
        said.append(f"{arm.name}: {', '.join(parts)}")
        worse = all(_above(changes_of[metric]) for metric in ("loss", "calibration_error"))
        if worse and _above(over) and not changes_of["accuracy"].interval[1] < 0:
            shown.append(arm.name)
    single = " (one seed has no interval, so nothing can)" if len(arms[0].losses_RT) == 1 else ""
    return (
        "Over-confidence, a held-out loss, calibration error and confidence minus accuracy that "
        "rise while the accuracy does not fall, from the end of the first epoch to the end of the "
        f"last, shows under {len(shown)} of {len(arms)} plans{single}. The changes: "
        f"{'; '.join(said)}."
    )


def _canaries(found: Canaries, section: ConfigDict) -> str:
    said = ", ".join(
        f"{repeats}: {exposure.mean:.1f} bits, {away.mean:.0%} ({away.low:.0%} to {away.high:.0%})"
        for repeats, (exposure, away) in by_repeats(found, section).items()
    )
    largest = np.log2(section.symbols**section.secret)
    return (
        f"Canaries by number of repetitions, exposure (at most {largest:.1f}) and share given away "
        f"verbatim (95 % interval over canaries): {said}."
    )


def _sizes(found: dict[str, Curve], section: ConfigDict) -> str:
    own = label(section.corpus)
    ends = {name: curve.losses[own][:, -1] for name, curve in found.items()}
    gap = paired_difference(ends["small"], ends["large"])
    more = paired_difference(found["small"].after["verbatim"], found["large"].after["verbatim"])
    rates = [mean_and_error(found[name].after["verbatim"]).mean for name in ("small", "large")]
    return (
        f"A set of {section.small} windows in place of {section.large}, for as many updates: a "
        f"higher held-out loss is {_shown(gap)} ({_text(gap)} nats), more rows that come back "
        f"verbatim are {_shown(more)} ({rates[0]:.0%} against {rates[1]:.0%})."
    )


def _shown(value: Estimate) -> str:
    """Whether a rise is."""
    if _above(value):
        return "shown"
    return "not shown, the contrary is" if value.interval[1] < 0 else "not shown"


def _text(value: Estimate) -> str:
    """With its sign."""
    return f"{'+' if value.mean >= 0 else ''}{value.text(3)}"


def _stages(found: dict[str, Curve], section: ConfigDict) -> str:
    first, second = label(section.first), label(section.second)
    rise = forgotten(found, section)
    return (
        f"That the second stage ({second}) undoes what the first taught ({first}) is "
        f"{_shown(rise)}: the loss on the first changes by {_text(rise)} nats. Against one mixture "
        f"of the same windows, two stages end {_text(between(found, first))} on {first} and "
        f"{_text(between(found, second))} on {second}."
    )


def _mixing(found: dict[str, Curve], section: ConfigDict) -> list[str]:
    original = label(section.original)
    rises = {name: changes(curve, original) for name, curve in found.items()}
    said = ", ".join(f"{_text(mean_and_error(r))} ({name})" for name, r in rises.items())
    alone, fresh = rises[ALONE], rises[FRESH]
    sentences = [
        f"{section.epochs} epochs over {section.rows} windows change the loss on the original text "
        f"({original}) by, in nats: {said}.",
        f"That they destroy is {_shown(mean_and_error(alone))}; that they do more than as many "
        f"windows once, which the other domain does by itself, is "
        f"{_shown(paired_difference(alone, fresh))} "
        f"({_text(paired_difference(alone, fresh))} nats).",
    ]
    for name, rise in rises.items():
        if name not in (ALONE, FRESH):
            sentences.append(f"Trained {name}: {_cure(alone, rise)}.")
    return sentences


def _cure(alone: np.ndarray, mixed: np.ndarray) -> str:
    if not _above(mean_and_error(alone)):
        return "there is no damage that mixing could reduce"
    if not _above(paired_difference(alone, mixed)):
        return "that it reduces the damage is not shown"
    if _above(mean_and_error(mixed)):
        return "it reduces the damage and does not prevent it"
    return "it reduces the damage, and what is left is compatible with none"
