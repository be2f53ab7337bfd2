"""What the study of images has shown, in tables and sentences; `collapse_images_opening` begins."""

from collections.abc import Sequence

import numpy as np
from collapse_images_data import KINDS
from collapse_images_series import MODELS, Series

from lmnoise.evaluation.powerlaw import Bootstrap, Interval
from lmnoise.report import Estimate, Table, mean_and_error, paired_difference


def heading(own: Series) -> str:
    return f"{own.images}, {MODELS[own.model]}, {KINDS[own.kind]}"


def risen(own: Series) -> list[float]:
    """Shares whose error at the largest size is shown to be above that of real labels alone."""
    return [s for p, s in enumerate(own.shares) if s and own.rise(p, -1).interval[0] > 0]


def higher(own: Series, fits: Bootstrap) -> list[float]:
    """Shares whose fitted floor is shown to be above that of real labels alone."""
    low_P = fits.floor_rises().low
    return [share for p, share in enumerate(own.shares) if share and low_P[p] > 0]


def last_step(own: Series, p: int) -> Estimate:
    """Relative change of the error from the largest size but one to the largest."""
    return mean_and_error(own.error_PRB[p, :, -1] / own.error_PRB[p, :, -2] - 1)


def percent(found: Estimate) -> str:
    return f"{found.mean:+.1%} ± {found.half_width:.1%}"


def plateaus(several: Sequence[Series]) -> Table:
    """Whether a share of synthetic labels leaves a floor, for each series over samples."""
    rows = []
    for own in several:
        slope = own.shared.floor_slope(np.square(own.shares))
        theory = ("", "")
        if own.law is not None:
            square_P = np.square(own.shares) - np.square(own.shares).mean()
            line = own.floor_P @ square_P / (square_P @ square_P)
            theory = f"{line:.3f}", f"{own.floor_P[-1]:.3f}"
        rows.append(
            [
                heading(own),
                _list(risen(own)),
                _list(higher(own, own.free)),
                _list(higher(own, own.shared)),
                own.rise(-1, -1).text(3),
                theory[1],
                f"{own.floor_quality:.3f}",
                f"{slope.value:.3f} ± {slope.half_width:.3f}",
                theory[0],
            ]
        )
    shares = [share for share in several[0].shares if share]
    count = len(shares) * len(several)
    header = (
        "series", "error above at the largest n", "floor above, own exponents",
        "floor above, one exponent", f"rise at p2 = {several[0].shares[-1]:g}, largest n",
        "theory, n = ∞", "c²", "slope of floors (one exponent) against p2²", "theory's slope",
    )  # fmt: skip
    caption = (
        f"Of the shares {_list(shares)}, those where the 95 % interval of the difference from real "
        f"labels alone lies above 0. Each column of shares makes {count} such comparisons, of "
        f"which {0.025 * count:.1f} would come out by chance if there were no differences; a share "
        "that is missing is not shown to differ, not shown to be equal. Floors by own exponents "
        "are the cautious ones: one exponent for curves of different ones makes floors, and "
        "slopes, of that difference. c² is the part that features can express, for random features."
    )
    return Table(header, rows, caption)


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


def small_shares(several: Sequence[Series]) -> str:
    """By how much the cross term lifts the floor of the smallest share, over random features."""
    parts, above = [], []
    for own in several:
        square = own.shares[1] ** 2 * own.floor_quality
        above.append(own.rise(1, -1).interval[0] > square)
        parts.append(
            f"{own.images}, {KINDS[own.kind]}: {own.rise(1, -1).text(5)} measured at n = "
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
                percent(last_step(own, p)),
                f"{own.accuracy(p, last).mean:.1%}",
                f"{free.law.exponent[p]:.2f}{' (end of its range)' if edge[p] else ''}",
                _entry(free.floors(), p) if free.law.floor[p] else "0, its bound",
                _entry(shared.floor_rises(), p) if share else "",
            ]
        )
    n = own.size_B[-1]
    header = (
        "share p2", f"error at n = {n:,}", "rise over p2 = 0", "rise by theory", "at n = ∞",
        "p2² c²",
        f"change from n = {own.size_B[-2]:,}", "accuracy", "exponent", "floor",
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
    return f"{KINDS[own.kind]}: the mean loss on the own labels at the end goes from {ends}"


def _entry(found: Interval, p: int) -> str:
    return f"{found.value[p]:.4f} ± {found.half_width[p]:.4f}"


def distances(several: Sequence[Series]) -> Table:
    """How far the theory is from what was measured, for each series of random features."""
    rows = []
    for own in several:
        measured_PB = own.error_PRB.mean(1)
        errors = own.theory_PB / measured_PB - 1
        p, b = np.unravel_index(np.abs(errors).argmax(), errors.shape)
        rises = [rise_distances(of, own) for of in (own.theory_PB, own.plain_PB)]
        rows.append(
            [
                f"{own.images}, {KINDS[own.kind]}, against {'n' if own.axis == 'samples' else 'm'}",
                f"{np.median(np.abs(errors)):.1%}",
                f"{errors[p, b]:+.1%} at p2 = {own.shares[p]:g}, {own.size_B[b]:,}",
                f"{np.median(np.abs(rises[0])):.1%}",
                f"{np.median(np.abs(rises[1])):.1%}",
                own.rise(-1, -1).text(3),
                *(f"{of[-1, -1] - of[0, -1]:.3f}" for of in (own.theory_PB, own.plain_PB)),
            ]
        )
    header = (
        "series", "error, median distance", "farthest", "rise, median distance",
        "the same without the cross term", "rise at the last point", "by theory",
        "without the cross term",
    )  # fmt: skip
    caption = (
        "Distances are theory over measurement less 1. Rises are those of all shares above 0 at "
        "all sizes, of which the smallest are uncertain; the last point is the largest share at "
        "the largest n or m. The theorem is a limit of many samples and of Gaussian features."
    )
    return Table(header, rows, caption)


def rise_distances(theory_PB: np.ndarray, own: Series) -> np.ndarray:
    """Relative distances of a theory's rises, (P - 1) B of them, the last share and size last."""
    measured_PB = own.error_PRB.mean(1)
    ratio = (theory_PB[1:] - theory_PB[:1]) / (measured_PB[1:] - measured_PB[:1])
    return ratio.ravel() - 1


def widths(several: Sequence[Series]) -> Table:
    """Whether larger models have more of the collapse, for each series over widths."""
    rows = []
    for own in several:
        means_B = [own.rise(-1, b).mean for b in range(len(own.size_B))]
        peak, law = "", own.law is not None
        if law:
            middle = min(range(len(own.size_B)), key=lambda b: abs(own.size_B[b] - own.other))
            peak = f"{own.rise(-1, middle).text(3)} (m = {own.size_B[middle]:,})"
        rows.append(
            [
                heading(own),
                f"{own.other:,}",
                f"{own.rise(-1, 0).text(3)} (m = {own.size_B[0]:,})",
                peak,
                f"{own.rise(-1, -1).text(3)} (m = {own.size_B[-1]:,})",
                widened(own).text(3),
                f"{own.size_B[int(np.argmax(means_B))]:,}",
                f"{own.size_B[int((own.theory_PB[-1] - own.theory_PB[0]).argmax())]:,}"
                if law
                else "",
            ]
        )
    header = (
        "series", "n", "rise, narrowest", "rise, m nearest n", "rise, widest",
        "widest less narrowest", "largest at m", "largest at m by theory",
    )  # fmt: skip
    caption = (
        f"Rise of the error over real labels alone at a share of {several[0].shares[-1]:g}; below "
        "0 the synthetic labels make better models than real ones do at this n. Differences are "
        "paired over seeds."
    )
    return Table(header, rows, caption)


def widened(own: Series) -> Estimate:
    """The rise of the widest model at the largest share less that of the narrowest."""
    rise_RB = own.error_PRB[-1] - own.error_PRB[0]
    return paired_difference(rise_RB[:, -1], rise_RB[:, 0])
