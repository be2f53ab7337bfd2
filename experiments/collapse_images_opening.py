"""The first screen of the report of the study of images: what was seen, in a few sentences."""

from collections.abc import Callable, Sequence

import numpy as np
from collapse_images_data import KINDS
from collapse_images_series import MODELS, Series
from collapse_images_verdict import higher, last_step, rise_distances, widened


def opening(found: Sequence[Series]) -> list[str]:
    """Sentences on series over samples, on those over widths, and on the theory."""
    samples = [own for own in found if own.axis == "samples"]
    across = [own for own in found if own.axis == "widths"]
    stopped = [own for own in samples if own.shares[-1] in higher(own, own.free)]
    largest = samples[0].shares[-1]
    lead = (
        f"Does the error on real labels stop falling? At a share of synthetic labels of {largest:g}"
        f" a floor above that of real labels alone is shown in {len(stopped)} of {len(samples)} "
        "cases (images x model x kind of labels), each curve fitted with its own exponent:"
    )
    groups = [
        [own for own in samples if (own.model, own.kind) == (model, kind)]
        for model in MODELS
        for kind in KINDS
    ]
    last = "\n".join([*map(_group, groups), _widths(across), _theory(found)])
    return [lead, last]


def _group(several: Sequence[Series]) -> str:
    """One kind of model on one kind of labels, over all images."""
    first = several[0]
    onsets = [_onset(own.shares, higher(own, own.free)) for own in several]
    shown = [share for share in onsets if share is not None]
    text = f"- {MODELS[first.model].capitalize()}, {KINDS[first.kind]}: "
    if shown:
        text += f"a floor in {len(shown)} of {len(several)}, from a share of {_span(shown)} on"
    else:
        text += "no floor is shown"
    falls, own_falls = ([last_step(own, p).mean for own in several] for p in (-1, 0))
    rises, before = ([own.rise(-1, b).mean for own in several] for b in (-1, -2))
    kept = [now / then for now, then in zip(rises, before, strict=True)]
    text += (
        f"; at a share of {first.shares[-1]:g} the last step to n = {first.size_B[-1]:,} changes "
        f"the error by {_span(falls, '+.1%')} (real labels alone: {_span(own_falls, '+.1%')}), and "
        f"the error is {_span(rises, '.3f')} above that of real labels, {_span(kept, '.0%')} of "
        "what this was a step before"
    )
    if first.training_PRB is not None:
        ends = ([own.training_PRB[p, :, -1].mean() for own in several] for p in (-1, 0))
        text += ". The loss on the own labels ends there at {} ({})".format(
            *(_span(losses, ".2f") for losses in ends)
        )
    return text + "."


def _onset(shares: Sequence[float], shown: Sequence[float]) -> float | None:
    """The share from which on a difference is shown for all larger ones too."""
    onset = None
    for share in reversed(shares):
        if share not in shown:
            break
        onset = share
    return onset


def _widths(across: Sequence[Series]) -> str:
    def count(some: Sequence[Series], test: Callable[[Series], bool]) -> str:
        return f"{sum(map(test, some))} of {len(some)}"

    def text(some: Sequence[Series]) -> str:
        ends = (_span([own.rise(-1, b).mean for own in some], ".3f") for b in (0, -1))
        return "{} at the narrowest model and {} at the widest, ".format(*ends) + (
            f"shown to be more in {count(some, lambda own: widened(own).interval[0] > 0)} and "
            f"less in {count(some, lambda own: widened(own).interval[1] < 0)}"
        )

    weak, flips = ([own for own in across if own.kind == kind] for kind in KINDS)
    peaks = [own.size_B[int((own.error_PRB[-1] - own.error_PRB[0]).mean(0).argmax())] / own.other
             for own in flips if own.law is not None]  # fmt: skip
    few = " and ".join(f"{n:,}" for n in sorted({own.other for own in across}))
    return (
        f"- Width, at n = {few}: with flipped labels alone the rise is {text(flips)}; random "
        f"features have most of it at m = {_span(peaks, '.2g')} n. With a weaker network's labels "
        f"alone it is {text(weak)}; at the widest they are shown to beat real labels in "
        f"{count(weak, lambda own: own.rise(-1, -1).interval[1] < 0)}."
    )


def _theory(found: Sequence[Series]) -> str:
    exact = [own for own in found if own.law is not None]
    samples = [own for own in exact if own.axis == "samples"]
    across = [own for own in exact if own.axis == "widths"]
    with_, without = (
        [rise_distances(of(own), own)[-1] for own in samples]
        for of in (lambda own: own.theory_PB, lambda own: own.plain_PB)
    )
    error_n, error_m = (
        max(np.abs(own.theory_PB / own.error_PRB.mean(1) - 1).max() for own in several)
        for several in (samples, across)
    )
    above = sum(own.rise(1, -1).interval[0] > own.shares[1] ** 2 * own.floor_quality
                for own in samples)  # fmt: skip
    return (
        f"- Theory, which exists for random features alone: over n its errors are within "
        f"{error_n:.1%} of all measured ones, and at the largest n and share its rise is off by "
        f"{_span(with_, '+.0%')} with the correlation of shift and real labels, by "
        f"{_span(without, '+.0%')} as the theorem is printed; over widths its errors are off by up "
        f"to {error_m:.1%}. A share of {samples[0].shares[1]:g} costs more than p2² c² in {above} "
        f"of {len(samples)}."
    )


def _span(values: Sequence[float], form: str = "g") -> str:
    """Least to largest, once if they read alike."""
    ends = [format(end, form) for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))
