"""What the study of images has shown, in numbers and in sentences."""

import itertools
from collections.abc import Sequence

import numpy as np
from collapse_images_series import MODELS, Series

from lmnoise.evaluation.powerlaw import Interval
from lmnoise.report import Estimate, Table, paired_difference

KIND = {"network": "labels of a weaker network", "flips": "flipped labels"}


def heading(own: Series) -> str:
    return f"{own.images}, {MODELS[own.model]}, {KIND[own.kind]}"


def plateaus(several: Sequence[Series]) -> list[str]:
    """Whether a share of synthetic labels leaves a floor, for each series over samples."""
    return [_plateau(own) for own in several]


def _plateau(own: Series) -> str:
    last, n = len(own.size_B) - 1, own.size_B[-1]
    rises = {share: own.rise(p, last) for p, share in enumerate(own.shares) if share}
    risen = [share for share, rise in rises.items() if rise.interval[0] > 0]
    free, shared = (
        [share for p, share in enumerate(own.shares) if share and rises.low[p] > 0]
        for rises in (own.free.floor_rises(), own.shared.floor_rises())
    )
    slope = own.shared.floor_slope(np.square(own.shares))
    expected = f" (c² = {own.quality:.3f})"
    if own.law is not None:
        square_P = np.square(own.shares) - np.square(own.shares).mean()
        line = own.floor_P @ square_P / (square_P @ square_P)
        expected = f" (theory: {line:.3f}; p2² c² alone: {own.floor_quality:.3f})"
    largest = len(own.shares) - 1
    at_end = rises[own.shares[largest]].text(3)
    text = (
        f"- {heading(own)}: at n = {n:,} the error is above that of real labels alone for shares "
        f"{_list(risen)}{_not(own, risen)}; the fitted floor is higher for {_list(free)}"
        f"{_not(own, free)} where each share has its exponent, and for {_list(shared)}"
        f"{_not(own, shared)} where all have one. Against p2² the floors of one exponent rise by "
        f"{_interval(slope)}{expected}. At a share of {own.shares[largest]:g} the rise is "
        f"{at_end}, {_kept(own, largest):.0%} of what it was at n = {own.size_B[-2]:,}"
    )
    if own.law is not None:
        text += f"; by theory it ends at {own.floor_P[largest]:.3f}"
    return text + "."


def _kept(own: Series, p: int) -> float:
    """The rise at the largest size over that at the size before."""
    return own.rise(p, len(own.size_B) - 1).mean / own.rise(p, len(own.size_B) - 2).mean


def _not(own: Series, found: Sequence[float]) -> str:
    missing = [share for share in own.shares if share and share not in found]
    return f" (not shown for {_list(missing)})" if missing else ""


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


def _interval(found: Interval) -> str:
    return f"{float(found.value):.3f} ± {float(found.half_width):.3f}"


def small_shares(several: Sequence[Series]) -> str:
    """By how much the cross term lifts the floor of the smallest share, over random features."""
    parts, above = [], []
    for own in several:
        square = own.shares[1] ** 2 * own.floor_quality
        above.append(own.rise(1, -1).interval[0] > square)
        parts.append(
            f"{own.images}, {KIND[own.kind]}: {own.rise(1, -1).text(5)} measured at n = "
            f"{own.size_B[-1]:,}, {own.floor_P[1]:.5f} by theory at n = ∞, {square:.5f} by p2² c²"
        )
    return (
        f"At the smallest share, {several[0].shares[1]:g}, the rise is shown to be above p2² c² in "
        f"{sum(above)} of {len(above)}: {'; '.join(parts)}. A model that falls short of the real "
        "law, by its penalty or width, pays for a shift in the same direction at once: the cross "
        "term is linear in p2, where the theorem's floor is quadratic."
    )


def floors(own: Series) -> Table:
    """The fits of one series over samples."""
    free, shared = own.free, own.shared
    edge = free.law.at_edge
    last, rows = len(own.size_B) - 1, []
    falls = (own.error_PRB[:, :, last] / own.error_PRB[:, :, last - 1]).mean(1) - 1
    for p, share in enumerate(own.shares):
        theory = ("", "")
        if own.law is not None:
            rise = own.theory_PB[p, last] - own.theory_PB[0, last]
            theory = f"{rise:.4f}", f"{own.floor_P[p]:.4f}"
        rows.append(
            [
                f"{share:g}",
                own.error(p, last).text(),
                own.rise(p, last).text(),
                *theory,
                f"{share**2 * own.floor_quality:.4f}",
                f"{falls[p]:+.1%}",
                f"{own.accuracy(p, last).mean:.1%}",
                f"{free.law.exponent[p]:.2f}{' (end of its range)' if edge[p] else ''}",
                _entry(free.floors(), p),
                _entry(shared.floor_rises(), p) if share else "",
            ]
        )
    n = own.size_B[-1]
    header = (
        "share p2", f"error at n = {n:,}", "rise over p2 = 0", "rise by theory", "at n = ∞",
        "p2² c²",
        "last doubling of n changes the error by", "accuracy", "exponent", "floor",
        "floor's rise, one exponent for all",
    )  # fmt: skip
    caption = (
        f"{heading(own)[0].upper()}{heading(own)[1:]}, width {own.other:,}. Mean ± half width of "
        f"the 95 % interval over {own.error_PRB.shape[1]} seeds, rises paired. Exponent and floor "
        "of `a n^-b + floor`, each curve alone, and the rise of the floor where all curves have "
        f"one exponent, {shared.law.exponent[0]:.2f}."
    )
    return Table(header, rows, caption)


def training(own: Series) -> str:
    """How far networks have been trained; the number of steps is the same for all sizes."""
    ends = ", ".join(
        f"{own.training_PRB[p, :, 0].mean():.4f} to {own.training_PRB[p, :, -1].mean():.3f} for p2 "
        f"= {own.shares[p]:g}"
        for p in (0, -1)
    )
    return (
        f"{KIND[own.kind]}: the mean loss on the own labels at the end of training goes from {ends}"
    )


def _entry(found: Interval, p: int) -> str:
    return f"{found.value[p]:.4f} ± {found.half_width[p]:.4f}"


def distances(several: Sequence[Series]) -> Table:
    """How far the theory is from what was measured, for each series of random features."""
    rows = []
    for own in several:
        measured_PB = own.error_PRB.mean(1)
        errors = own.theory_PB / measured_PB - 1
        p, b = np.unravel_index(np.abs(errors).argmax(), errors.shape)
        rises = [_rises(of, own) for of in (own.theory_PB, own.plain_PB)]
        rows.append(
            [
                f"{own.images}, {KIND[own.kind]}, against {'n' if own.axis == 'samples' else 'm'}",
                f"{np.median(np.abs(errors)):.1%}",
                f"{errors[p, b]:+.1%} at p2 = {own.shares[p]:g}, {own.size_B[b]:,}",
                f"{np.median(np.abs(rises[0])):.1%}",
                f"{np.median(np.abs(rises[1])):.1%}",
                f"{rises[0][-1]:+.1%}",
                f"{rises[1][-1]:+.1%}",
            ]
        )
    header = (
        "series", "error, median distance", "farthest", "rise, median distance",
        "the same without the cross term", "rise at the last point", "without the cross term",
    )  # fmt: skip
    caption = (
        "Theory over measurement less 1. Rises are those of all shares above 0 at all sizes, of "
        "which the smallest are uncertain; the last point is the largest share at the largest n "
        "or m."
    )
    return Table(header, rows, caption)


def _rises(theory_PB: np.ndarray, own: Series) -> np.ndarray:
    """Relative distances of the rises, the last share and size last."""
    measured_PB = own.error_PRB.mean(1)
    ratio = (theory_PB[1:] - theory_PB[:1]) / (measured_PB[1:] - measured_PB[:1])
    return ratio.ravel() - 1


def widths(several: Sequence[Series]) -> list[str]:
    """Whether larger models have more of the collapse, for each series over widths."""
    return [_width(own) for own in several]


def _width(own: Series) -> str:
    top = len(own.shares) - 1
    means = [own.rise(top, b).mean for b in range(len(own.size_B))]
    most = int(np.argmax(means))
    ends = paired_difference(*(_rise_R(own, top, b) for b in (-1, 0)))
    text = (
        f"- {heading(own)}, n = {own.other:,}, share {own.shares[top]:g}: the rise is largest at "
        f"width {own.size_B[most]:,} ({own.rise(top, most).text(3)}); at the widest model "
        f"({own.size_B[-1]:,}) it is {own.rise(top, -1).text(3)}, at the narrowest "
        f"({own.size_B[0]:,}) {own.rise(top, 0).text(3)}: {_sign(ends)}"
    )
    beyond = [b for b, size in enumerate(own.size_B) if size >= own.other]
    if own.model == "features" and len(beyond) > 1:
        after = paired_difference(*(_rise_R(own, top, b) for b in (-1, beyond[0])))
        text += (
            f". Beyond the threshold m = n, from {own.size_B[beyond[0]]:,} to "
            f"{own.size_B[-1]:,}, it changes by {after.text(3)}"
        )
    if own.law is not None:
        rise_B = own.theory_PB[top] - own.theory_PB[0]
        text += f"; by theory it is largest at {own.size_B[int(rise_B.argmax())]:,}"
    return text + "."


def _rise_R(own: Series, p: int, b: int) -> np.ndarray:
    return own.error_PRB[p, :, b] - own.error_PRB[0, :, b]


def _sign(difference: Estimate) -> str:
    low, high = difference.interval
    if low > 0:
        return f"larger by {difference.text(3)}, so the larger model has more of it"
    if high < 0:
        return f"smaller by {-difference.mean:.3f} ± {difference.half_width:.3f}"
    return f"a difference is not shown ({difference.text(3)})"


def opening(samples: Sequence[Series]) -> str:
    """What was seen at the largest size, counted over all series."""
    shares = [share for share in samples[0].shares if share]
    counted = []
    for share in shares:
        risen = free = shared = 0
        for own in samples:
            p = own.shares.index(share)
            risen += own.rise(p, -1).interval[0] > 0
            free += bool(own.free.floor_rises().low[p] > 0)
            shared += bool(own.shared.floor_rises().low[p] > 0)
        counted.append(f"{share:g}: {risen}, {free}, {shared}")
    total = len(samples)
    lines = "; ".join(counted)
    grown = [_grows(own) for own in samples]
    return (
        f"Of {total} series (images x model x kind of labels), the number in which the error at "
        "the largest n is shown to be above that of real labels alone, in which the fitted floor "
        "is shown to be higher where each share has its exponent, and where all shares have one, "
        f"by share p2: {lines}. One exponent for curves of different ones makes floors of their "
        "difference; see the tables for the exponents. Mean errors at the largest n rise "
        f"with every step of the share in {sum(grown)} of {total}."
    )


def _grows(own: Series) -> bool:
    last_P = own.error_PRB[:, :, -1].mean(1)
    return all(a < b for a, b in itertools.pairwise(last_P))
