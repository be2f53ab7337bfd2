"""Head of the report of the collapse study: the scale, and sentences of what the grid shows."""

from collections.abc import Sequence

import numpy as np
from collapse_lm_verdict import Grid, direction, shown_from, told
from ml_collections import ConfigDict

from lmnoise.analyze.laws import at_end, estimates
from lmnoise.analyze.mixtures import quality
from lmnoise.evaluation.powerlaw import Bootstrap
from lmnoise.report import Estimate, mean_and_error


def head(grid: Grid, config: ConfigDict, others: Sequence[str]) -> list[str]:
    """At which scale, and what was seen; `others` are the list items of the other chapters."""
    curves, data = grid.curves, config.data
    generator = config.generator.steps * config.train.batch_size * data.length
    scale = (
        f"Models of {curves.parameters:,} parameters ({config.model.layers} layers, width "
        f"{config.model.width}) are trained on {curves.tokens_B[0]:,.0f} to "
        f"{curves.tokens_B[-1]:,.0f} tokens; a share p2 of the rows is synthetic. The same shape, "
        f"trained on {generator:,} tokens of `{data.source}`, wrote them: another generator for "
        f"each of {len(curves.seeds)} seeds. Numbers are nats per token of held-out text, ± half "
        "of the 95 % interval over seeds (and so over generators); differences are paired by seed. "
        "Shown is what such an interval excludes 0 for. Intervals are not widened for being many: "
        "where there is nothing, one in twenty still excludes 0. The largest run reads the real "
        f"text {_epochs(grid, curves.real_tokens)} and, at p2 = 1, the synthetic text "
        f"{_epochs(grid, curves.synthetic_tokens)}."
    )
    sentences = [
        plateau_sentence(grid),
        floor_sentence(grid),
        shared_floor_sentence(grid),
        reached_sentence(grid),
        rise_sentence(grid),
        theory_sentence(grid),
        added_sentence(grid, int(np.flatnonzero(grid.mixed_P)[-1])),
        quality_sentence(grid),
    ]
    return [scale, "\n".join([*(f"- {sentence}" for sentence in sentences), *others])]


def plateau_sentence(grid: Grid) -> str:
    """Whether the curve of synthetic text alone is flat where that of real text is not."""
    tokens_B, gains = grid.curves.tokens_B, grid.last_gains
    plateau = direction(gains[0]) > 0 and direction(grid.spare_gain) > 0
    return (
        f"A plateau in these sizes is {'shown' if plateau else 'not shown'}: from "
        f"{tokens_B[-2]:,.0f} to {tokens_B[-1]:,.0f} tokens synthetic text alone still gains "
        f"{gains[-1].text(3)}, real text alone {gains[0].text(3)} (a plateau would gain less than "
        "a tenth of that)."
    )


def floor_sentence(grid: Grid) -> str:
    """Whether the floor grows with the share, by fits that assume nothing of the exponents."""
    return (
        "Beyond these sizes, by fits L = a n^-b + floor with an exponent b for each share: that "
        f"the floor grows with p2 is {_growth(grid, grid.free, _trouble(grid, grid.free))}."
    )


def shared_floor_sentence(grid: Grid) -> str:
    """The same if all shares have one exponent."""
    moves = grid.exponent_slope
    if direction(moves):
        trouble = f"the free exponents move with p2, by {moves.text(2)} from 0 to 1"
    else:
        trouble = _trouble(grid, grid.shared)
    return (
        "The same if one exponent for all shares is assumed, so that floors stand for all that "
        f"differs between them: {_growth(grid, grid.shared, trouble)}."
    )


def reached_sentence(grid: Grid) -> str:
    """Whether the floor of synthetic text alone is above what real text has without a fit."""
    beyond = grid.beyond_reached
    return (
        "That synthetic text alone would never reach what real text alone has at "
        f"{grid.curves.tokens_B[-1]:,.0f} tokens is {_shown(beyond, _trouble(grid, grid.free, -1))}"
        f" by the fit of its own curve, whose floor is {beyond.text(3)} above that."
    )


def _growth(grid: Grid, fits: Bootstrap, trouble: str) -> str:
    [slope] = estimates(fits.floor_slope(grid.shares_P))
    rise = estimates(fits.floor_rises())[-1]
    return (
        f"{_shown(slope, trouble)}. The slope of the floors is {slope.text(3)} from p2 = 0 to 1; "
        f"that at p2 = 1 lies {rise.text(3)} above that at p2 = 0"
    )


def _shown(estimate: Estimate, trouble: str) -> str:
    if trouble:
        return f"not shown ({trouble})"
    return "shown" if direction(estimate) > 0 else "not shown"


def _trouble(grid: Grid, fits: Bootstrap, first: int = 0) -> str:
    """Why the floors from share number `first` on say little; "" if nothing is wrong."""
    law, chance = fits.law, grid.curves.chance
    own = zip(grid.shares_P[first:], at_end(law)[first:], strict=True)
    if ends := [f"{share:g}" for share, end in own if end]:
        return f"the fit is at an end of its range at {named(ends)}"
    if len(grid.curves.tokens_B) == 3:
        return "three sizes cannot tell whether the law holds"
    missed = law.residual[first:].max()
    if missed > 2 * chance:
        return (
            f"the law does not hold in these sizes: it misses mean losses by up to {missed:.2g}, "
            f"and their chance error is {chance:.2g}"
        )
    return ""


def rise_sentence(grid: Grid) -> str:
    """The cost at the largest size in nats, and from which share on it shows."""
    rises = [mean_and_error(x_R) for x_R in grid.rises_PR]
    at = shown_from(grid.shares_P[1:], rises[1:])
    where = "at no share from which on it stays so" if at is None else f"from p2 = {at:g} on"
    some = "; ".join(
        f"{e.text(3)} at p2 = {p:g}" for p, e in zip(grid.shares_P[1:], rises[1:], strict=True)
    )
    return (
        f"At {grid.curves.tokens_B[-1]:,.0f} tokens synthetic rows in place of real ones raise the "
        f"loss on real text, shown {where}: {some}."
    )


def theory_sentence(grid: Grid) -> str:
    """At which shares each prediction agrees with the rise at the largest size."""
    shares = [f"{share:g}" for share in grid.shares_P[grid.mixed_P]]
    return (
        "Predictions of that rise for 0 < p2 < 1: regression's p2² c² is "
        f"{agreement(shares, mixed(grid, grid.beyond_squares))}; the real part alone, as if the "
        f"synthetic rows did nothing, is {agreement(shares, grid.beyond_real_part)}; that and the "
        "most that an unrestricted model pays for not knowing the kind of a row is exceeded at "
        f"{exceeded(shares, grid.beyond_bounds)}."
    )


def added_sentence(grid: Grid, p: int) -> str:
    """At every size, whether synthetic rows that are added to the real part of a share help."""
    said = "; ".join(
        f"{e.text(3)} at {tokens:,.0f} ({told(e, 'worse', 'better')})"
        for e, tokens in zip(
            map(mean_and_error, grid.curves.added_PRB[p].T), grid.curves.tokens_B, strict=True
        )
        if np.isfinite(e.mean)
    )
    return f"Loss less that of the real part alone at p2 = {grid.shares_P[p]:g}, by tokens: {said}."


def quality_sentence(grid: Grid) -> str:
    """The measured quality of the generators."""
    return (
        "Quality c² of the generators, their loss on real text less that of the largest models of "
        f"real text alone: {mean_and_error(grid.quality_R).text(3)}. The largest models of their "
        f"text alone are {quality(grid.curves).text(3)} above real text alone."
    )


def mixed(grid: Grid, found: Sequence[Estimate]) -> list[Estimate]:
    return [e for e, mixed in zip(found, grid.mixed_P, strict=True) if mixed]


def agreement(shares: Sequence[str], beyond: Sequence[Estimate]) -> str:
    """At which shares what was found agrees with a prediction, given what it is beyond that."""
    known = [(s, direction(e)) for s, e in zip(shares, beyond, strict=True) if np.isfinite(e.mean)]
    ways = {
        0: "not contradicted at",
        1: "too low at",
        -1: "too high at",
    }
    parts = [
        f"{words} {named([s for s, way in known if way == sign])}"
        for sign, words in ways.items()
        if any(way == sign for _, way in known)
    ]
    return ", ".join(parts) or "not known at any"


def exceeded(shares: Sequence[str], beyond: Sequence[Estimate]) -> str:
    """At which shares what was found is above a bound."""
    return named([s for s, e in zip(shares, beyond, strict=True) if direction(e) > 0])


def named(shares: Sequence[str]) -> str:
    return f"p2 = {', '.join(shares)}" if shares else "no share"


def _epochs(grid: Grid, tokens: int) -> str:
    return f"{grid.curves.tokens_B[-1] / tokens:.2f} times"
