"""What shows and what does not, in sentences made from the numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from memorization_canaries import Found as Canaries
from memorization_canaries import by_repeats
from memorization_forgetting import Curve, changes
from memorization_forgetting_report import between, forgotten
from memorization_sights import Arm, causes, estimate, searches, stairs
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
    mixing: dict[int, Curve]


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
            *(_stairs(arm, arms) for arm in arms),
            *_learned(arms),
            *_rate(arms, section),
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


def _stairs(arm: Arm, arms: Sequence[Arm]) -> str:
    jumps = stairs(arm, arms)
    down = [j for j in jumps if j.size < 0 and j.p_value < LEVEL / len(jumps)]
    said = "; ".join(f"{j.size:+.3f} ± {j.standard_error:.3f}, p = {j.p_value:.2g}" for j in jumps)
    shown = "shown" if len(down) == len(jumps) else "shown at some" if down else "not shown"
    where = ", ".join(f"{away:+.2f} (p = {p.p_value:.3f})" for away, p in searches(arm, arms, 0))
    return (
        f"{arm.name}: steps down at the boundaries of epochs are {shown} (jump and standard error "
        f"in nats: {said}). Not told where the boundary is, the largest jump within half an epoch "
        f"is found so many epochs from it: {where}."
    )


def _learned(arms: Sequence[Arm]) -> list[str]:
    values = {arm.name: estimate(arm.gains()[:, 0]) for arm in arms}
    said = ", ".join(f"{value.text(3)} ({name})" for name, value in values.items())
    above = sum(_above(value) for value in values.values())
    return [
        f"Learning from one sight is shown under {above} of {len(values)} plans: at its second "
        f"sight the loss of an example had fallen by so much more than that of held-out text, in "
        f"nats: {said}."
    ]


def _above(value: Estimate) -> bool:
    return bool(value.interval[0] > 0)


def _rate(arms: Sequence[Arm], section: ConfigDict) -> list[str]:
    sentences = []
    for of, found in causes(arms, section.draw):
        shown = "shown" if found.p_value < LEVEL else "not shown"
        sentences.append(
            f"Gain of the first sight against the {of.cause}, {of.name}: correlation "
            f"{found.correlation:+.2f} (shuffled {found.null[0]:+.2f} to {found.null[1]:+.2f}, "
            f"p = {found.p_value:.3f}): {shown}."
        )
    return sentences


def _confident(arms: Sequence[Arm]) -> str:
    said, shown = [], []
    for arm in arms:
        after = int(np.abs(arm.heldout_steps_H - arm.training.steps / arm.epochs).argmin())
        changes_of = {
            metric: paired_difference(curve[:, -1], curve[:, after])
            for metric, curve in arm.heldout.items()
        }
        parts = [f"{metric.replace('_', ' ')} {e.text(4)}" for metric, e in changes_of.items()]
        said.append(f"{arm.name}: {', '.join(parts)}")
        worse = _above(changes_of["loss"]) and _above(changes_of["calibration_error"])
        if worse and not changes_of["accuracy"].interval[1] < 0:
            shown.append(arm.name)
    single = " (one seed has no interval, so nothing can)" if len(arms[0].losses_RT) == 1 else ""
    return (
        "Over-confidence, a held-out loss and calibration error that rise while the accuracy does "
        f"not fall, from the end of the first epoch to the end of the last, shows under "
        f"{len(shown)} of {len(arms)} plans{single}. The changes: {'; '.join(said)}."
    )


def _canaries(found: Canaries, section: ConfigDict) -> str:
    exposure = by_repeats(found, found.exposure_RN)
    verbatim = by_repeats(found, found.verbatim_RN)
    said = ", ".join(
        f"{repeats}: {exposure[repeats].mean:.1f} bits, {verbatim[repeats].mean:.0%}"
        for repeats in exposure
    )
    largest = np.log2(section.symbols**section.secret)
    return (
        f"Canaries by number of repetitions, exposure (at most {largest:.1f}) and share given away "
        f"verbatim: {said}."
    )


def _sizes(found: dict[str, Curve], section: ConfigDict) -> str:
    own = label(section.corpus)
    ends = {name: curve.losses[own][:, -1] for name, curve in found.items()}
    gap = paired_difference(ends["small"], ends["large"])
    rates = [mean_and_error(found[name].after["verbatim"]).mean for name in ("small", "large")]
    return (
        f"A set of {section.small} windows in place of {section.large}, for as many updates: the "
        f"held-out loss is {gap.text(3)} nats higher, and {rates[0]:.0%} against {rates[1]:.0%} of "
        "its rows come back verbatim."
    )


def _stages(found: dict[str, Curve], section: ConfigDict) -> str:
    first, second = label(section.first), label(section.second)
    return (
        f"The second stage ({second}) raises the loss on the first ({first}) by "
        f"{forgotten(found, section).text(3)} nats; against one mixture of the same windows, two "
        f"stages end {between(found, first).text(3)} on {first} and "
        f"{between(found, second).text(3)} on {second}."
    )


def _mixing(found: dict[int, Curve], section: ConfigDict) -> list[str]:
    original = label(section.original)
    rises = {times: changes(curve, original) for times, curve in found.items()}
    said = ", ".join(f"{mean_and_error(r).text(3)} (x{times})" for times, r in rises.items())
    sentence = (
        f"{section.epochs} epochs over {section.rows} windows change the loss on the original text "
        f"({original}) by, with so many times as much of it mixed in: {said} nats."
    )
    alone = rises.get(0)
    others = {times: rise for times, rise in rises.items() if times}
    if alone is None or not others:
        return [sentence]
    saved = [_above(paired_difference(alone, rise)) for rise in others.values()]
    shown = "is shown" if all(saved) else "is not shown"
    return [f"{sentence} That mixing prevents it {shown}."]
