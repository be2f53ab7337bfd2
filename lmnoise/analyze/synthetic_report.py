"""Report of the drift check: which share of synthetic text costs less than so many per cent."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.laws import at_end, estimates
from lmnoise.analyze.mixtures import Curves, quality
from lmnoise.evaluation.powerlaw import Bootstrap, bootstrap
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    style,
    write_csv,
)
from lmnoise.theory.noise import largest_rise


class Costs(NamedTuple):
    """What each share above 0 costs at the largest size, per cent of a loss on real text.

    Attributes:
      shares: above 0, ascending.
      in_place: over the loss of as many tokens of real text alone.
      added: over the loss of the real part alone; nothing for what the sizes do not reach, such as
        share 1.
    """

    shares: tuple[float, ...]
    in_place: list[Estimate]
    added: dict[float, Estimate]


def costs_of(curves: Curves) -> Costs:
    """Costs at the largest size, paired over the seeds."""
    end_PR, part_PR = curves.real_PRB[..., -1], curves.real_part_PRB[..., -1]
    in_place_PR = 100 * (end_PR / end_PR[:1] - 1)
    added_PR = 100 * (end_PR / part_PR - 1)
    shares = curves.shares[1:]
    known = [p for p in range(1, len(curves.shares)) if not np.isnan(part_PR[p]).any()]
    return Costs(
        shares,
        [mean_and_error(values_R) for values_R in in_place_PR[1:]],
        {curves.shares[p]: mean_and_error(added_PR[p]) for p in known},
    )


def largest_below(found: dict[float, Estimate], limit: float) -> float | None:
    """The largest share whose whole interval, and that of every smaller one, is below the limit."""
    best = None
    for share, estimate in sorted(found.items()):
        if not estimate.interval[1] < limit:
            break
        best = share
    return best


def blocks(
    curves: Curves, config: ConfigDict, cost: float, folder: Path
) -> list[str | Table | Figure]:
    """The report; tables also go into `folder` as CSV, beside `costs.png`.

    Args:
      curves: of the mixtures.
      config: of the analysis.
      cost: per cent of the loss that synthetic text may cost.
    """
    costs, section = costs_of(curves), config.fits
    options = dict(draws=section.draws, seed=section.seed)
    free = bootstrap(curves.tokens_B, curves.real_PRB, **options)
    shared = bootstrap(curves.tokens_B, curves.real_PRB, shared_exponent=True, **options)
    _draw(curves, costs, free, cost, folder / "costs.png")
    tables = {
        "cost": _cost_table(curves, costs, config.data.length),
        "fits": _fit_table(curves, free, shared),
        "curves": _curve_table(curves),
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    sentences = [
        _quality_sentence(curves),
        _in_place_sentence(curves, costs, cost),
        _added_sentence(curves, costs, cost),
        _floor_sentence(curves, free, shared),
    ]
    return [
        _scale(curves, config),
        "\n".join(f"- {sentence}" for sentence in sentences),
        _caveats(curves, config),
        Figure(
            folder / "costs.png",
            "Left: loss on held-out real text against all tokens of training, by share of "
            "synthetic rows (lines: fitted power laws, each with its own exponent). Right: the "
            "cost at the largest size; the dashed line is the limit. Bars: 95 % intervals over "
            "seeds.",
        ),
        tables["cost"],
        "## Fits",
        "L = a n^-b + floor. Over this range of sizes a lower floor with a smaller exponent fits "
        "almost as well, so a floor is an extrapolation and far less certain than the losses. One "
        "exponent for all shares makes floors comparable but is an assumption: a curve that falls "
        "more slowly then counts as one with a higher floor. Intervals: "
        "bootstrap over seeds, which does not see whether the law holds. `curves.csv` has every "
        "loss.",
        tables["fits"],
    ]


def _scale(curves: Curves, config: ConfigDict) -> str:
    model, data = config.model, config.data
    return (
        f"Models of {curves.parameters:,} parameters ({model.layers} layers, width {model.width}) "
        f"were trained on {curves.tokens_B[0]:,.0f} to {curves.tokens_B[-1]:,.0f} tokens, of which "
        f"a share is of `{config.noise.source}` and the rest of `{data.source}` (tokenizer "
        f"{data.tokenizer}, rows of {data.length} tokens), with {len(curves.seeds)} seeds. Losses "
        f"are in nats per token of {data.evaluate_windows or 'all'} windows of held-out real text; "
        "± is half of a 95 % interval over seeds, differences are paired by seed. What other "
        "held-out text would give is not part of the intervals."
    )


def _quality_sentence(curves: Curves) -> str:
    return (
        "Quality of the synthetic text, c²: a model of "
        f"{curves.tokens_B[-1]:,.0f} tokens of it alone has a loss on real text that is "
        f"{quality(curves).text(3)} nats above that of as much real text. 0 would be text as "
        "good as real."
    )


def _in_place_sentence(curves: Curves, costs: Costs, cost: float) -> str:
    found = dict(zip(costs.shares, costs.in_place, strict=True))
    return (
        f"In place of real text, at {curves.tokens_B[-1]:,.0f} tokens in all: "
        f"{_answer(found, cost)}. {_extra(found, cost)}"
    )


def _added_sentence(curves: Curves, costs: Costs, cost: float) -> str:
    if not costs.added:
        return "Added to real text: the sizes are too few to say."
    helping = [f"{s:g}" for s, e in sorted(costs.added.items()) if e.interval[1] < 0]
    harming = [f"{s:g}" for s, e in sorted(costs.added.items()) if e.interval[0] > 0]
    return (
        f"Added to real text, up to {curves.tokens_B[-1]:,.0f} tokens in all and against as "
        f"much real text without it: {_answer(costs.added, cost)}. It is shown to help at "
        f"{_shares(helping)} and to harm at {_shares(harming)}."
    )


def _answer(found: dict[float, Estimate], cost: float) -> str:
    share = largest_below(found, cost)
    if share is None:
        least = min(found)
        return (
            f"not even the smallest share, {least:g}, is shown to cost less than {cost:g} % (there "
            f"{found[least].text(2)} %)"
        )
    which = "every share up to" if share > min(found) else "the share"
    return (
        f"{which} {share:g} is shown to cost less than {cost:g} % (there {found[share].text(2)} %)"
    )


def _extra(found: dict[float, Estimate], cost: float) -> str:
    """Which shares are too dear, and which are open."""
    dear = [f"{s:g}" for s, e in sorted(found.items()) if e.interval[0] > cost]
    safe = largest_below(found, cost) or 0.0
    unknown = [f"{s:g}" for s in sorted(found) if s > safe and f"{s:g}" not in dear]
    more = " (more of --config.members.seed narrow the intervals)" if unknown else ""
    return f"Shown to cost more: {_shares(dear)}. Not decided: {_shares(unknown)}{more}."


def _floor_sentence(curves: Curves, free: Bootstrap, shared: Bootstrap) -> str:
    rise = estimates(shared.floor_rises())[-1]
    shown = "" if rise.interval[0] > 0 or rise.interval[1] < 0 else ", not told from 0"
    missed, chance = free.law.residual.max(), curves.chance
    by = f"{missed:.3f} nats (root mean square of the worst share; their chance error {chance:.3f})"
    if missed > 2 * chance:
        holds = (
            "The law does not hold in these sizes, and the floor says little: with an exponent for "
            f"each share it misses losses by {by}."
        )
    elif len(curves.tokens_B) == 3:
        holds = "Three sizes cannot tell whether the law holds."
    else:
        holds = f"With an exponent for each share the law misses losses by {by}."
    return (
        "Extrapolated beyond these sizes, by fits with one exponent for all shares: the floor of "
        f"synthetic text alone is {rise.text(3)} nats above that of real text{shown}. {holds} The "
        "answers above do not use the fits."
    )


def _caveats(curves: Curves, config: ConfigDict) -> str:
    """What the answer does not cover, and text that was read again."""
    epochs = {
        "real": curves.tokens_B[-1] / curves.real_tokens,
        "synthetic": curves.tokens_B[-1] / curves.synthetic_tokens,
    }
    again = " and ".join(
        f"{n:.1f} times the {which} corpus" for which, n in epochs.items() if n > 1
    )
    repeated = (
        f" The largest size is {again}: text is read again there, which alone can raise the loss, "
        "so a larger corpus may cost less."
        if again
        else " No text is read twice."
    )
    return (
        "These are small models on little text. Larger ones learn more from real text and so have "
        "more to lose; they may also tell the two kinds of text apart, and then lose less. Try a "
        "larger --size before you rely on an answer. Synthetic text that repeats held-out real "
        f"text looks better than it is.{repeated}"
    )


def _cost_table(curves: Curves, costs: Costs, length: int) -> Table:
    rises_PR = curves.rise_PRB[..., -1]
    rows = [
        (share, mean_and_error(curves.real_PRB[p, :, -1]),
         mean_and_error(curves.synthetic_PRB[p, :, -1]),
         mean_and_error(rises_PR[p]) if p else "", costs.in_place[p - 1] if p else "",
         costs.added.get(share, ""), float(largest_rise(share, length)) if share < 1 else "")
        for p, share in enumerate(curves.shares)
    ]  # fmt: skip
    return Table(
        ("share", "loss on real text", "on synthetic text", "cost, nats", "cost, %",
         "cost if added, %", "most of an unrestricted model, nats"),
        rows,
        f"At {curves.tokens_B[-1]:,.0f} tokens. Cost: over real text alone of as many tokens. If "
        "added: over the real part alone, read between the measured sizes by a monotone cubic; "
        "that may be 0.001 nats too low and is not part of the intervals. The last column is "
        "-log(1 - share) / S for rows of S tokens: what a model pays that can learn both kinds of "
        "text and tell them apart; more is the price of being small.",
    )  # fmt: skip


def _fit_table(curves: Curves, free: Bootstrap, shared: Bootstrap) -> Table:
    columns = [
        estimates(free.interval(lambda law, _: law.exponent)),
        estimates(free.floors()),
        estimates(shared.floors()),
        ["", *estimates(shared.floor_rises())[1:]],
        free.law.residual.tolist(),
        at_end(free.law),
    ]
    return Table(
        ("share", "exponent", "its floor", "floor, shared exponent", "its rise over share 0",
         "missed, nats", "at the end of its range"),
        list(zip(curves.shares, *columns, strict=True)),
        "The exponent and its floor: of a fit to each share. The shared exponent is "
        f"{shared.law.exponent[0]:.3g}. Floors in nats per token. An exponent at the end of its "
        "range, or a floor of 0, was not found by the free fit, and its interval says nothing. "
        "Missed: root mean square of what the free fit leaves.",
    )  # fmt: skip


def _curve_table(curves: Curves) -> Table:
    rows = [
        (share, int(tokens), seed, float(curves.real_PRB[p, r, b]),
         float(curves.synthetic_PRB[p, r, b]))
        for p, share in enumerate(curves.shares)
        for b, tokens in enumerate(curves.tokens_B)
        for r, seed in enumerate(curves.seeds)
    ]  # fmt: skip
    return Table(("share", "tokens", "seed", "loss on real text", "loss on synthetic text"), rows)


def _draw(curves: Curves, costs: Costs, free: Bootstrap, cost: float, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(10, 4.2))
        left, right = fig.subplots(1, 2)
        _draw_curves(left, curves, free)
        _draw_costs(right, costs, cost)
        savefig(fig, path)


def _draw_curves(ax: Axes, curves: Curves, free: Bootstrap) -> None:
    line_N = np.geomspace(curves.tokens_B[0], curves.tokens_B[-1], 100)
    for p, share in enumerate(curves.shares):
        colour = COLOURS[p % len(COLOURS)]
        points = [mean_and_error(values_R) for values_R in curves.real_PRB[p].T]
        # Apart, so that bars of shares that cost the same can be told.
        apart = 1.02 ** (p - (len(curves.shares) - 1) / 2)
        ax.errorbar(
            curves.tokens_B * apart, [e.mean for e in points], [e.half_width for e in points],
            fmt="o", markersize=4, capsize=2, color=colour, label=f"{share:g}",
        )  # fmt: skip
        ax.plot(line_N, free.law(line_N)[p], color=colour, lw=1)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("tokens of training, real and synthetic")
    ax.set_ylabel("loss on held-out real text, nats per token")
    ax.legend(title="synthetic share", fontsize=8)


def _draw_costs(ax: Axes, costs: Costs, cost: float) -> None:
    at = {share: i for i, share in enumerate(costs.shares)}
    both = [
        ("in place of real text", dict(zip(costs.shares, costs.in_place, strict=True)), -0.1),
        ("added to real text", costs.added, 0.1),
    ]
    for (label, found, shift), colour in zip(both, COLOURS, strict=False):
        ax.errorbar(
            [at[share] + shift for share in found], [e.mean for e in found.values()],
            [e.half_width for e in found.values()],
            fmt="o", markersize=5, capsize=3, color=colour, label=label,
        )  # fmt: skip
    ax.axhline(0, color="grey", lw=0.8, zorder=0)
    ax.axhline(cost, color="grey", lw=1, ls="--", zorder=0)
    ax.set_xticks(range(len(costs.shares)), [f"{share:g}" for share in costs.shares])
    ax.set_xlabel("share of synthetic rows")
    ax.set_ylabel("cost, % of the loss on real text")
    # Bars may be anywhere inside.
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _shares(names: Sequence[str]) -> str:
    return f"share {', '.join(names)}" if names else "no share"
