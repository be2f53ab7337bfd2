"""Report of the main grid of the collapse study: what was seen, then its figures and tables."""

from collections.abc import Sequence
from pathlib import Path

import collapse_lm_figures as figures
import numpy as np
from collapse_lm_verdict import Grid, direction, shown_from
from ml_collections import ConfigDict

from lmnoise.analyze.laws import at_end, estimates
from lmnoise.analyze.mixtures import quality
from lmnoise.evaluation.powerlaw import Bootstrap
from lmnoise.report import Estimate, Figure, Table, mean_and_error, write_csv

BARS = "Bars: 95 % intervals over seeds."


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
        rise_sentence(grid),
        fitting_sentence(grid),
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
    law = grid.free.law
    if law.residual.max() > 2 * grid.curves.chance:
        shown = "not shown, because the law does not hold in these sizes"
    else:
        shown = _growth(grid, grid.free, "shown")
    return (
        "Beyond these sizes, by fits L = a n^-b + floor with an exponent b for each share: that "
        f"the floor grows with p2 is {shown}: {_floor_numbers(grid, grid.free)}."
    )


def shared_floor_sentence(grid: Grid) -> str:
    """The same if all shares have one exponent, and whether the losses contradict that."""
    chance = grid.one_exponent_chance
    test = f"F test, p = {chance:.2g}"
    if chance < 0.05:
        shown, holds = f"not shown, because the losses contradict that ({test})", ""
    else:
        shown = _growth(grid, grid.shared, "shown if that is true")
        holds = f" The losses do not contradict it ({test}), which does not prove it."
    if np.isnan(chance):
        holds = " Three sizes cannot tell whether it is true."
    return (
        "The same if one exponent for all shares is assumed, so that floors stand for all that "
        f"differs between them: {shown}: {_floor_numbers(grid, grid.shared)}.{holds}"
    )


def _growth(grid: Grid, fits: Bootstrap, shown: str) -> str:
    """`shown` if the slope of the floors is above 0 and no fit is at an end of its range."""
    [slope] = estimates(fits.floor_slope(grid.shares_P))
    ends = [f"{p:g}" for p, end in zip(grid.shares_P, at_end(fits.law), strict=True) if end]
    if ends:
        return f"not shown, because the fit is at an end of its range at {_shares(ends)}"
    return shown if direction(slope) > 0 else "not shown"


def _floor_numbers(grid: Grid, fits: Bootstrap) -> str:
    [slope] = estimates(fits.floor_slope(grid.shares_P))
    rise = estimates(fits.floor_rises())[-1]
    return (
        f"a slope of {slope.text(3)} from p2 = 0 to 1, and at p2 = 1 a floor {rise.text(3)} above "
        "that of p2 = 0"
    )


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


def fitting_sentence(grid: Grid) -> str:
    """Which predictions of that rise no share between 0 and 1 contradicts."""
    fits = {
        "regression's p2² c²": not any(map(direction, _mixed(grid, grid.beyond_squares))),
        "the real part alone (as if the synthetic rows did nothing)": not any(
            map(direction, grid.beyond_real_part)
        ),
        "the real part alone and the bound of an unrestricted model": all(
            direction(e) <= 0 for e in grid.beyond_bounds
        ),
    }
    lines = [
        f"{words} {', '.join(names)}"
        for words, holds in (("not contradicted:", True), ("contradicted at some share:", False))
        if (names := [name for name, fit in fits.items() if fit == holds])
    ]
    return f"Predictions of that rise between p2 = 0 and 1: {'; '.join(lines)}."


def quality_sentence(grid: Grid) -> str:
    """The measured quality of the generators."""
    return (
        "Quality c² of the generators, their loss on real text less that of the largest models of "
        f"real text alone: {mean_and_error(grid.quality_R).text(3)}. The largest models of their "
        f"text alone are {quality(grid.curves).text(3)} above real text alone."
    )


def theory_list(grid: Grid) -> str:
    """At which shares each prediction agrees with the rise at the largest size."""
    mixed = [f"{share:g}" for share in grid.shares_P[grid.mixed_P]]
    bound = [s for s, e in zip(mixed, grid.beyond_bounds, strict=True) if direction(e) > 0]
    lines = (
        f"Regression, p2² c²: {_agreement(mixed, _mixed(grid, grid.beyond_squares))}. At p2 = 1 it "
        f"says c², and the rise less c² is {grid.beyond_squares[-1].text(3)}.",
        "The real part alone, as if the synthetic rows did nothing: "
        f"{_agreement(mixed, grid.beyond_real_part)}.",
        "The bound -log(1 - p2) / S: the rise over the real part alone is shown to exceed it at "
        f"{_shares(bound)}.",
    )
    return "\n".join(f"- {line}" for line in lines)


def floor_list(grid: Grid) -> str:
    """From where on the floors are above share 0's, how they agree with theory, and the misses."""
    lines = []
    for name, fits in (("an exponent for each share", grid.free), ("one exponent", grid.shared)):
        found = estimates(fits.floor_rises())
        at = shown_from(grid.shares_P[1:], found[1:])
        where = "no share from which on it stays so" if at is None else f"p2 = {at:g} and all above"
        against = {
            "p2² c²": _agreement(
                [f"{share:g}" for share in grid.shares_P[1:]],
                [_less(e, x) for e, x in zip(found, grid.squares_P, strict=True)][1:],
            ),
            "the bound -log(1 - p2) / S": _agreement(
                [f"{share:g}" for share in grid.shares_P[grid.mixed_P]],
                _mixed(grid, [_less(e, x) for e, x in zip(found, grid.bounds_P, strict=True)]),
            ),
        }
        said = "; ".join(f"against {what}, {words}" for what, words in against.items())
        lines.append(
            f"- With {name} the floor is shown above that of p2 = 0 at {where}; {said}. The fits "
            f"miss the mean losses by {np.sqrt((fits.law.residual**2).mean()):.2g} nats (root mean "
            f"square; worst share {fits.law.residual.max():.2g}); the losses' chance error is "
            f"{grid.curves.chance:.2g}."
        )
    flatter = [
        f"{share:g}"
        for share, estimate in zip(grid.shares_P[1:], grid.lost_gains[1:], strict=True)
        if direction(estimate) > 0
    ]
    lines.append(
        f"- The last doubling gains less than at p2 = 0, without any fit: shown for "
        f"{_shares(flatter)}."
    )
    lines.append(
        "- c² over the fitted floor of real text, instead of over the largest models: "
        f"{grid.quality_over_floor.text(3)}."
    )
    return "\n".join(lines)


def _less(estimate: Estimate, prediction: float) -> Estimate:
    return estimate._replace(mean=estimate.mean - float(prediction))


def blocks(grid: Grid, config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapters of the main grid; tables also go into `folder` as CSV."""
    write_csv(folder / "curves.csv", _curves(grid))
    found: list[str | Table | Figure] = [
        "## Loss against tokens",
        f"Held-out windows: {config.data.evaluate_windows} of each text, the same for all models; "
        "synthetic text is that of the seed's own generator. `curves.csv` has every number.",
    ]
    draw = {
        "scaling": "Loss on held-out real text (left, lines: fitted L = a n^-b + floor, each share "
        "its own exponent) and on held-out synthetic text (right, lines join the points). "
        f"{BARS} Points are shifted a little apart.",
        "gains": "What each doubling of the tokens gains on real text. A curve on its floor gains "
        f"nothing. {BARS}",
    }
    found += [_figure(name, grid, folder, caption) for name, caption in draw.items()]
    found += _floor_chapter(grid, folder)
    found += _rise_chapter(grid, folder)
    return found


def _floor_chapter(grid: Grid, folder: Path) -> list[str | Table | Figure]:
    table, own = _fits(grid), _quality(grid)
    write_csv(folder / "fits.csv", table)
    write_csv(folder / "quality.csv", own)
    return [
        "## Floors",
        "A floor is an extrapolation: over a short range of sizes a lower floor with a smaller "
        "exponent fits almost as well. One exponent for all shares is an assumption that makes "
        "the floors comparable; both fits are given. Intervals: bootstrap over seeds, the same "
        "draws for all shares; where a fit is at an end of its range they are too narrow.",
        floor_list(grid),
        table,
        _figure(
            "floors",
            grid,
            folder,
            "Fitted floors over that of p2 = 0. Bars: 95 % intervals of the bootstrap over seeds. "
            "The bound of an unrestricted model is next to 0 on this scale.",
        ),
        own,
    ]


def _rise_chapter(grid: Grid, folder: Path) -> list[str | Table | Figure]:
    table = _rises(grid)
    write_csv(folder / "rises.csv", table)
    return [
        "## The cost at the largest size, and what theory says",
        "Regression puts a floor of p2² c² under the error (arXiv 2410.04840), with c² the "
        "excess of the generator. A language model is trained with cross-entropy: one that is "
        "unrestricted and can tell synthetic rows from real ones pays at most -log(1 - p2) / S a "
        f"token for rows of S = {grid.length} tokens, because it can learn the mixture itself. "
        "That is about models with enough data. In these sizes synthetic rows also displace real "
        "ones: a model that makes nothing of them ends where the real part alone does, the curve "
        "of p2 = 0 at (1 - p2) n tokens, read between the sizes by a monotone cubic (which may "
        "read 0.001 nats too little); the bound comes on top of that.",
        theory_list(grid),
        _figure("rises", grid, folder, f"The rise at the largest size by share. {BARS}"),
        table,
    ]


def _figure(name: str, grid: Grid, folder: Path, caption: str) -> Figure:
    path = folder / f"{name}.png"
    getattr(figures, name)(grid, path)
    return Figure(path, caption)


def _curves(grid: Grid) -> Table:
    curves = grid.curves
    rows = [
        (share, int(tokens), mean_and_error(curves.real_PRB[p, :, b]),
         mean_and_error(curves.synthetic_PRB[p, :, b]), grid.free.law(tokens)[p],
         grid.shared.law(tokens)[p])
        for p, share in enumerate(grid.shares_P)
        for b, tokens in enumerate(curves.tokens_B)
    ]  # fmt: skip
    header = ("share", "tokens", "real loss", "synthetic loss", "fitted", "fitted, one exponent")
    return Table(header, rows)


def _fits(grid: Grid) -> Table:
    rows = []
    for name, fits in (("own", grid.free), ("one for all", grid.shared)):
        law = fits.law
        columns = (grid.shares_P, law.exponent, at_end(law), law.residual,
                   estimates(fits.floors()), estimates(fits.floor_rises()))  # fmt: skip
        rows += [(name, *row) for row in zip(*columns, strict=True)]
    header = (
        "exponent",
        "share",
        "b",
        "at an end",
        "residual",
        "floor",
        "over the floor of share 0",
    )
    return Table(
        header,
        rows,
        "Fits L = a n^-b + floor to the means over seeds; residual: root mean square, nats. At an "
        "end: the exponent is at an end of its range, or the floor is 0, the least there is; where "
        "all draws of the bootstrap are, the interval has no width and means nothing.",
    )


def _quality(grid: Grid) -> Table:
    floor = grid.free.law.floor[0]
    rows = [
        (int(seed), loss, excess, loss - floor, own)
        for seed, loss, excess, own in zip(
            grid.curves.seeds, grid.generator_losses_R, grid.quality_R, grid.rises_PR[-1],
            strict=True,
        )
    ]  # fmt: skip
    header = ("seed", "generator's real loss", "over the largest real-only model",
              "over the fitted real floor", "excess of the largest model on its text")  # fmt: skip
    return Table(header, rows, "Quality c² of each generator, nats per token.")


def _rises(grid: Grid) -> Table:
    beyond_bounds, beyond_real = iter(grid.beyond_bounds), iter(grid.beyond_real_part)
    rows = []
    for p, share in enumerate(grid.shares_P):
        if share == 0:
            continue
        mixed = bool(grid.mixed_P[p])
        rows.append(
            (share, mean_and_error(grid.rises_PR[p]), grid.squares_P[p], grid.beyond_squares[p],
             _text(mean_and_error(grid.real_part_PR[p])) if mixed else "no real part",
             _text(next(beyond_real)) if mixed else "no real part",
             f"{grid.bounds_P[p]:.4g}" if mixed else "none",
             _text(next(beyond_bounds)) if mixed else "none")
        )  # fmt: skip
    header = ("share", "rise", "p2² c²", "rise less that", "the real part alone",
              "rise less that", "-log(1 - p2) / S", "rise less both")  # fmt: skip
    return Table(
        header,
        rows,
        f"At {grid.curves.tokens_B[-1]:,.0f} tokens, nats per token on real text, paired by seed. "
        "c² is the generators' excess over the largest real-only model.",
    )


def _mixed(grid: Grid, found: Sequence[Estimate]) -> list[Estimate]:
    return [e for e, mixed in zip(found, grid.mixed_P, strict=True) if mixed]


def _agreement(shares: Sequence[str], beyond: Sequence[Estimate]) -> str:
    """At which shares what was found less a prediction is not told from 0, above or below it."""
    known = [(s, direction(e)) for s, e in zip(shares, beyond, strict=True) if np.isfinite(e.mean)]
    ways = {
        0: "not told from it at",
        1: "above it at",
        -1: "below it at",
    }
    parts = [
        f"{words} {_shares([s for s, way in known if way == sign])}"
        for sign, words in ways.items()
        if any(way == sign for _, way in known)
    ]
    return ", ".join(parts) or "not known at any"


def _shares(shares: Sequence[str]) -> str:
    return f"p2 = {', '.join(shares)}" if shares else "no share"


def _text(estimate: Estimate) -> str:
    return estimate.text() if np.isfinite(estimate.mean) else "below the sizes"


def _epochs(grid: Grid, tokens: int) -> str:
    return f"{grid.curves.tokens_B[-1] / tokens:.2f} times"
