"""Chapters of the main grid in the report of the collapse study: figures, tables, details."""

from pathlib import Path

import collapse_lm_figures as figures
import numpy as np
from collapse_lm_head import added_sentence, agreement, exceeded, mixed, named
from collapse_lm_verdict import Grid, direction, shown_from
from ml_collections import ConfigDict

from lmnoise.analyze.laws import at_end, estimates
from lmnoise.report import Estimate, Figure, Table, mean_and_error, write_csv

BARS = "Bars: 95 % intervals over seeds."


def floor_list(grid: Grid) -> str:
    """From where on the floors are above share 0's, how they agree with theory, and the misses."""
    lines = []
    for name, fits in (("an exponent for each share", grid.free), ("one exponent", grid.shared)):
        found = estimates(fits.floor_rises())
        at = shown_from(grid.shares_P[1:], found[1:])
        where = "no share from which on it stays so" if at is None else f"p2 = {at:g} and all above"
        squares, bounds = (
            [e._replace(mean=e.mean - x) for e, x in zip(found, prediction_P.tolist(), strict=True)]
            for prediction_P in (grid.squares_P, grid.bounds_P)
        )
        names = [f"{share:g}" for share in grid.shares_P]
        bound = exceeded(
            [n for n, m in zip(names, grid.mixed_P, strict=True) if m], mixed(grid, bounds)
        )
        missed = np.sqrt((fits.law.residual**2).mean())
        lines.append(
            f"- With {name}, if the law holds, the floor is above that of p2 = 0 at {where}; for "
            f"it p2² c² is {agreement(names[1:], squares[1:])}, and the bound of an unrestricted "
            f"model, -log(1 - p2) / S, is exceeded at {bound}. The fits miss the mean losses by "
            f"{missed:.2g} nats (root mean square; worst share {fits.law.residual.max():.2g}); the "
            f"losses' chance error is {grid.curves.chance:.2g}."
        )
    flatter = [
        f"{share:g}"
        for share, estimate in zip(grid.shares_P[1:], grid.lost_gains[1:], strict=True)
        if direction(estimate) > 0
    ]
    lines.append(
        f"- The last doubling gains less than at p2 = 0, without any fit: shown for "
        f"{named(flatter)}."
    )
    lines.append(
        "- c² over the fitted floor of real text, instead of over the largest models: "
        f"{grid.quality_over_floor.text(3)}."
    )
    return "\n".join(lines)


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
        "draws for all shares. A resampled fit cannot leave its range, so that at an end of it "
        "they are too narrow.",
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
        "\n".join(f"- {added_sentence(grid, int(p))}" for p in np.flatnonzero(grid.mixed_P)),
        f"At p2 = 1 regression says c², and the rise less c² is {grid.beyond_squares[-1].text(3)}.",
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


def _text(estimate: Estimate) -> str:
    return estimate.text() if np.isfinite(estimate.mean) else "below the sizes"
