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
        f"{config.model.width}), trained on {curves.tokens_B[0]:,.0f} to "
        f"{curves.tokens_B[-1]:,.0f} tokens of which a share p2 is synthetic; the same shape, "
        f"trained on {generator:,} tokens of `{data.source}`, wrote it, another generator for "
        f"each of {len(curves.seeds)} seeds. Losses are in nats per token of held-out text, "
        "± half of the 95 % interval over seeds, which includes the generators; differences are "
        f"paired by seed. The largest run reads the real text {_epochs(grid, curves.real_tokens)} "
        f"and, at p2 = 1, the synthetic text {_epochs(grid, curves.synthetic_tokens)}."
    )
    sentences = [
        floor_sentence("one exponent for all shares", grid.shared, grid),
        floor_sentence("an exponent for each share", grid.free, grid),
        plateau_sentence(grid),
        rise_sentence(grid),
        theory_sentence(grid),
        quality_sentence(grid),
    ]
    return [scale, "\n".join([*(f"- {sentence}" for sentence in sentences), *others])]


def floor_sentence(name: str, fits: Bootstrap, grid: Grid) -> str:
    """Whether the fitted floor grows with the share, and from where on it is told from share 0's.

    Args:
      name: of the fits.
      fits: of all shares.
    """
    [slope] = estimates(fits.floor_slope(grid.shares_P))
    rises = estimates(fits.floor_rises())
    at = shown_from(grid.shares_P[1:], rises[1:])
    ends = [f"{p:g}" for p, end in zip(grid.shares_P, at_end(fits.law), strict=True) if end]
    end = (
        f" At p2 = {', '.join(ends)} the fit is at an end of its range (see the table): these "
        "sizes do not say where that floor is."
        if ends
        else ""
    )
    where = (
        "it is above that of p2 = 0 at no share from which on it stays so"
        if at is None
        else f"it is above that of p2 = 0 from p2 = {at:g} on"
    )
    missed, chance = fits.law.residual.max(), grid.curves.chance
    wrong = missed > 2 * chance
    shown = "not shown" if direction(slope) <= 0 else "by the fit alone" if wrong else "shown"
    return (
        f"The floor grows with p2, by fits with {name}: {shown} ({slope.text(3)} nats from p2 = 0 "
        f"to 1, slope of all floors); {where}; at p2 = 1 the difference is {rises[-1].text(3)}. "
        f"The law misses the mean losses by up to {missed:.2g} nats, whose chance error is "
        f"{chance:.2g}{', so that it does not hold in these sizes' if wrong else ''}.{end}"
    )


def plateau_sentence(grid: Grid) -> str:
    """Whether the curves flatten, and whether the one of synthetic text alone is flat."""
    tokens_B, gains, lost = grid.curves.tokens_B, grid.last_gains, grid.lost_gains
    real, synthetic = gains[0], gains[-1]
    flatter = [
        f"{share:g}"
        for share, estimate in zip(grid.shares_P[1:], lost[1:], strict=True)
        if direction(estimate) > 0
    ]
    plateau = direction(real) > 0 and direction(synthetic) <= 0 and direction(lost[-1]) > 0
    return (
        f"A plateau in these sizes is {'shown' if plateau else 'not shown'} for p2 = 1: from "
        f"{tokens_B[-2]:,.0f} to {tokens_B[-1]:,.0f} tokens its loss on real text still falls by "
        f"{synthetic.text(4)}, against {real.text(4)} at p2 = 0, {lost[-1].text(4)} less. A "
        f"flatter curve than at p2 = 0 is shown for {_shares(flatter)}."
    )


def rise_sentence(grid: Grid) -> str:
    """The cost at the largest size in nats, and from which share on it shows."""
    rises = [mean_and_error(x_R) for x_R in grid.rises_PR]
    at = shown_from(grid.shares_P[1:], rises[1:])
    where = "at no share" if at is None else f"from p2 = {at:g} on"
    some = "; ".join(
        f"{e.text(3)} at p2 = {p:g}" for p, e in zip(grid.shares_P[1:], rises[1:], strict=True)
    )
    return (
        f"At {grid.curves.tokens_B[-1]:,.0f} tokens synthetic rows in place of real ones raise the "
        f"loss on real text, shown {where}: {some}."
    )


def theory_sentence(grid: Grid) -> str:
    """Which predictions the measured rises at the largest size agree with."""
    mixed = [f"{share:g}" for share in grid.shares_P[grid.mixed_P]]
    bound = [s for s, e in zip(mixed, grid.beyond_bounds, strict=True) if direction(e) > 0]
    lines = (
        f"Which predictions fit that rise at the shares between 0 and 1. {_fitting(grid)}",
        f"Regression, p2² c²: {_agreement(mixed, _mixed(grid, grid.beyond_squares))}. At p2 = 1 it "
        f"says c², and the rise less c² is {grid.beyond_squares[-1].text(3)}.",
        "The real part alone, as if the synthetic rows did nothing: "
        f"{_agreement(mixed, grid.beyond_real_part)}.",
        "The most that an unrestricted model pays for not knowing which kind a row is, "
        f"-log(1 - p2) / S with S = {grid.length}: exceeded at {_shares(bound)}.",
    )
    return "\n  - ".join(lines)


def quality_sentence(grid: Grid) -> str:
    """The measured quality of the generators."""
    return (
        "Quality c² of the generators, their excess loss on real text: "
        f"{mean_and_error(grid.quality_R).text(3)} over the model of the largest size on real text "
        f"alone, {grid.quality_over_floor.text(3)} over the fitted floor of real text. The "
        f"largest models that read their text alone have an excess of "
        f"{quality(grid.curves).text(3)} over real text alone."
    )


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
        "draws for all shares.",
        table,
        _figure(
            "floors",
            grid,
            folder,
            "Fitted floors over that of p2 = 0. Bars: 95 % intervals of the bootstrap over seeds.",
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
        "token for rows of S tokens, because it can learn the mixture itself. And synthetic rows "
        "displace real ones: a model that makes nothing of them ends where the real part alone "
        "does, the curve of p2 = 0 at (1 - p2) n tokens, read between the sizes by a monotone "
        "cubic.",
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
        real_part = next(beyond_real) if mixed else None
        rows.append(
            (share, mean_and_error(grid.rises_PR[p]), grid.squares_P[p], grid.beyond_squares[p],
             f"{grid.bounds_P[p]:.4g}" if mixed else "none",
             next(beyond_bounds).text() if mixed else "none",
             _text(mean_and_error(grid.real_part_PR[p])) if mixed else "no real part",
             _text(real_part) if mixed else "no real part")
        )  # fmt: skip
    header = ("share", "rise", "p2² c²", "rise less that", "-log(1 - p2) / S", "rise less that",
              "the real part alone", "rise less that")  # fmt: skip
    return Table(
        header,
        rows,
        f"At {grid.curves.tokens_B[-1]:,.0f} tokens, nats per token on real text, paired by seed. "
        "c² is the generators' excess over the largest real-only model.",
    )


def _mixed(grid: Grid, found: Sequence[Estimate]) -> list[Estimate]:
    return [e for e, mixed in zip(found, grid.mixed_P, strict=True) if mixed]


def _agreement(shares: Sequence[str], beyond: Sequence[Estimate]) -> str:
    """At which shares the rise less a prediction has an interval with 0, above it or below it."""
    known = [(s, direction(e)) for s, e in zip(shares, beyond, strict=True) if np.isfinite(e.mean)]
    ways = {
        0: "the rise is not told from it at",
        1: "the rise is above it at",
        -1: "the rise is below it at",
    }
    parts = [
        f"{words} {_shares([s for s, way in known if way == sign])}"
        for sign, words in ways.items()
        if any(way == sign for _, way in known)
    ]
    return ", ".join(parts) or "not known at any"


def _fitting(grid: Grid) -> str:
    """Which predictions no share between 0 and 1 contradicts."""
    fits = {
        "p2² c²": not any(map(direction, _mixed(grid, grid.beyond_squares))),
        "the real part alone": not any(map(direction, grid.beyond_real_part)),
        "the bound": all(direction(e) <= 0 for e in grid.beyond_bounds),
    }
    names = [name for name, holds in fits.items() if holds]
    return f"Contradicted at no share: {', '.join(names) or 'none of these'}."


def _shares(shares: Sequence[str]) -> str:
    return f"p2 = {', '.join(shares)}" if shares else "no share"


def _text(estimate: Estimate) -> str:
    return estimate.text() if np.isfinite(estimate.mean) else "below the sizes"


def _epochs(grid: Grid, tokens: int) -> str:
    return f"{grid.curves.tokens_B[-1] / tokens:.2f} times"
