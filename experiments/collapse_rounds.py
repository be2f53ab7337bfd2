"""Training in rounds on what the last model labelled: mixing, accumulating, the golden ratio."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from collapse_chapter import BARS, Chapter, bars
from collapse_points import Point, Setting, key_of, split
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lmnoise import points
from lmnoise.report import COLOURS, Estimate, Table, style
from lmnoise.theory import collapse

GOLDEN = (np.sqrt(5) - 1) / 2
FRESH, SAME = "fresh real data", "same real data"
REPLACE, ACCUMULATE = "replace", "accumulate"
RELABEL = "weighted relabelling"
# Rounds after which the closed forms have reached their limit.
MANY = 10_000
# Up to which the terms that a first order leaves out do not show.
SMALL = 0.05


def chapter(config: ConfigDict, workdir: Path) -> Chapter:
    """Three panels: iterative mixing, replace against accumulate, the best real share."""
    own = config.rounds
    mixing = {
        (share, process): _mixing_setting(config, share, process)
        for share in own.shares
        for process in (FRESH, SAME)
    }
    generations = {name: _generation_setting(config, name) for name in (REPLACE, ACCUMULATE)}
    relabelled = {real: _relabelling_setting(config, real) for real in own.real_shares}
    found = _run(workdir, [*mixing.values(), *generations.values(), *relabelled.values()])
    mixing, generations, relabelled = (
        dict(zip(group, found, strict=False)) for group in (mixing, generations, relabelled)
    )
    relabelled = [several[-1] for several in relabelled.values()]
    every = [p for several in (*mixing.values(), *generations.values()) for p in several]
    every += relabelled
    return Chapter(
        name="rounds",
        title="Training in rounds",
        drawing=_drawing(config, mixing, generations, relabelled),
        caption=(
            f"Ridgeless regression in rounds, d = {own.dimension}, n = {own.n} a round, label "
            f"noise {own.noise:g}. Left: iterative mixing, the synthetic part labelled by the "
            "last round's model. Middle: training on one's own labels alone. Right: error after "
            f"{own.relabelled_rounds} rounds against the weight of fresh real data, in units of "
            f"that of the real data of one round. Points: simulated, {config.repetitions} "
            f"repetitions; {BARS}."
        ),
        points=every,
        table=_table(every),
        notes=[
            "With fresh real data the lines are Theorem 1 applied round by round; for accumulated "
            "data and for the golden ratio they are of first order in "
            f"d/n = {own.dimension / own.n:g}, so that differences of that order are expected. "
            "The rounds of one process come from the same repetitions and are not independent.",
            _same_data_note(config, [mixing[share, SAME][-1] for share in own.shares]),
        ],
    )


def _same_data_note(config: ConfigDict, last: Sequence[Point]) -> str:
    """What the line of the same real data leaves out, and what the last round can see of it."""
    own = config.rounds
    spread = own.rounds**2 * own.dimension / own.n
    ratio = own.dimension / min(p.setting["n_real"] for p in last)
    found = "; ".join(
        f"{p.total.mean / p.theory['total'] - 1:+.1%} ± "
        f"{p.total.standard_error / p.theory['total']:.1%} at p2 = {share:g}"
        for share, p in zip(own.shares, last, strict=True)
    )
    verdict = "both are small"
    if max(spread, ratio) > SMALL:
        verdict = "not both are small, and the line is expected to run low in late rounds"
    return (
        "With the same real data the line is of first order and needs t² d/n and d/n1 to be small. "
        f"At round {own.rounds} t² d/n is {spread:.2g}, and d/n1 is up to {ratio:.2g}: "
        f"{verdict}. Simulated over theory at that round (± one standard error "
        f"at {config.repetitions} repetitions): {found}. Within 4 standard errors is a statement "
        "at this number of repetitions: a bias smaller than that is not seen."
    )


def _setting(config: ConfigDict, **changes: Any) -> Setting:
    own = config.rounds
    common = dict(dimension=own.dimension, noise=own.noise, width=0, weight=None, quality=0.0)
    return common | dict(repetitions=config.repetitions, seed=config.seed) | changes


def _mixing_setting(config: ConfigDict, share: float, process: str) -> Setting:
    n_real, n_synthetic = split(config.rounds.n, share)
    return _setting(
        config,
        process=process,
        n_real=n_real,
        n_synthetic=n_synthetic,
        quality=config.rounds.start,
        rounds=config.rounds.rounds,
    )


def _generation_setting(config: ConfigDict, process: str) -> Setting:
    own = config.rounds
    return _setting(config, process=process, n_real=0, n_synthetic=own.n, rounds=own.rounds)


def _relabelling_setting(config: ConfigDict, real_share: float) -> Setting:
    own = config.rounds
    return _setting(
        config,
        process=RELABEL,
        n_real=own.n,
        n_synthetic=own.n,
        weight=1 - real_share,
        rounds=own.relabelled_rounds,
    )


def _run(workdir: Path, settings: Sequence[Setting]) -> Iterator[list[Point]]:
    """For every process a point for each of its rounds."""
    results = points.compute(workdir, settings, _simulate, "errors in rounds")
    for of, result in zip(settings, results, strict=True):
        predicted = _theory(of, np.arange(1, of["rounds"] + 1))
        yield [
            Point(
                setting=of | dict(round=t + 1),
                theory={"total": float(predicted[t])},
                measured={"total": Estimate(mean, error, of["repetitions"])},
            )
            for t, (mean, error) in enumerate(zip(*result.values(), strict=True))
        ]


def _simulate(of: Setting) -> dict[str, list[float]]:
    common = dict(size=of["dimension"], repetitions=of["repetitions"])
    if of["process"] in (REPLACE, ACCUMULATE):
        found = collapse.simulate_generations(
            key_of(of),
            n=of["n_synthetic"],
            noise=of["noise"],
            generations=of["rounds"],
            accumulate=of["process"] == ACCUMULATE,
            **common,
        )
    else:
        found = collapse.simulate_rounds(
            key_of(of),
            rounds=of["rounds"],
            same_data=of["process"] == SAME,
            **_numbers(of),
            **common,
        )
    return {name: np.asarray(getattr(found, name)).tolist() for name in found._fields}


def _numbers(of: Setting) -> dict[str, float]:
    numbers = {name: of[name] for name in ("n_real", "n_synthetic")}
    numbers |= dict(noise_real=of["noise"], noise_synthetic=of["noise"], start=of["quality"])
    if of["weight"] is not None:
        share = of["n_synthetic"] / (of["n_real"] + of["n_synthetic"])
        real, synthetic = map(np.asarray, collapse.mixing_weights(of["weight"], share))
        numbers |= dict(weight_real=real, weight_synthetic=synthetic)
    return numbers


def _theory(of: Setting, rounds_T: np.ndarray) -> np.ndarray:
    """The closed form of a process at these rounds; arrays in the setting broadcast with them."""
    size = of["dimension"]
    if of["process"] in (REPLACE, ACCUMULATE):
        first = _one_round(size, of["n_synthetic"], of["noise"])
        accumulate = of["process"] == ACCUMULATE
        return first * np.asarray(collapse.generation_factor(rounds_T, accumulate=accumulate))
    form = collapse.same_data_rounds if of["process"] == SAME else collapse.fresh_rounds
    return np.asarray(form(rounds_T, size=size, **_numbers(of)))


def _one_round(size: int, n: int, noise: float) -> float:
    """Error of one fit of n real samples."""
    ratio = size / n
    return noise**2 * ratio / (1 - ratio)


def _drawing(config: ConfigDict, mixing: dict, generations: dict, relabelled: list) -> Figure:
    with style():
        drawing = Figure(figsize=(12.6, 4.2))
        axes = drawing.subplots(1, 3)
        _draw_mixing(axes[0], config, mixing)
        _draw_generations(axes[1], config, generations)
        _draw_golden(axes[2], config, relabelled)
    return drawing


def _draw_mixing(axis: Axes, config: ConfigDict, mixing: dict) -> None:
    looks = {FRESH: ("-", "o"), SAME: ("--", "s")}
    rounds = np.arange(1, config.rounds.rounds + 1)
    for (share, process), several in mixing.items():
        colour = COLOURS[list(config.rounds.shares).index(share)]
        line, marker = looks[process]
        label = f"$p_2$ = {share:g}, {process}"
        axis.plot(rounds, [p.theory["total"] for p in several], line, color=colour)
        bars(axis, rounds, several, color=colour, marker=marker)
        axis.plot([], [], line, color=colour, marker=marker, markersize=4, label=label)
    axis.set(yscale="log", xlabel="round", ylabel="test error", title="Iterative mixing")
    axis.legend(fontsize=8.5)


def _draw_generations(axis: Axes, config: ConfigDict, generations: dict) -> None:
    rounds = np.arange(1, config.rounds.rounds + 1)
    for colour, (process, several) in zip(COLOURS, generations.items(), strict=False):
        axis.plot(rounds, [p.theory["total"] for p in several], color=colour, label=process)
        bars(axis, rounds, several, color=colour)
    first = generations[REPLACE][0].theory["total"]
    axis.axhline(
        first * np.pi**2 / 6,
        color="0.4",
        linestyle=":",
        label=r"$\pi^2/6$ times the first",
    )
    axis.set(xlabel="generation", ylabel="test error", title="Replace or accumulate")
    axis.legend(fontsize=8.5)


def _draw_golden(axis: Axes, config: ConfigDict, relabelled: Sequence[Point]) -> None:
    own = config.rounds
    unit = _one_round(own.dimension, own.n, own.noise)
    grid = np.linspace(0.12, 0.99, 200)
    of = _relabelling_setting(config, 0.5) | dict(weight=1 - grid)
    limits = _theory(of, np.array(MANY)) / unit
    axis.plot(grid, limits, color=COLOURS[0], label="Theorem 1 in rounds")
    axis.plot(
        grid,
        collapse.relabelling_limit(grid),
        "--",
        color=COLOURS[1],
        label="first order in d/n",
    )
    scaled = [_scaled(point, 1 / unit) for point in relabelled]
    bars(axis, own.real_shares, scaled, color=COLOURS[0])
    axis.plot([GOLDEN], [GOLDEN], "*", color=COLOURS[4], markersize=13, markeredgecolor="black")
    axis.annotate(
        "golden ratio, (0.618, 0.618)", (GOLDEN, GOLDEN), (0.4, 1.1), arrowprops={"arrowstyle": "-"}
    )
    axis.axhline(1, color="0.6", linestyle=":", label="real data of one round alone")
    axis.set(
        xlabel="weight of fresh real data",
        ylabel="limit error / error of one round",
        title="The best share of real data",
    )
    axis.legend(fontsize=8.5)


def _scaled(point: Point, factor: float) -> Point:
    total = point.total
    moved = Estimate(factor * total.mean, factor * total.standard_error, total.n)
    return Point(point.setting, point.theory, {"total": moved})


def _table(every: Sequence[Point]) -> Table:
    names = ("process", "round", "dimension", "n_real", "n_synthetic", "noise", "quality")
    rows = [
        [
            *(p.setting[name] for name in names),
            "" if p.setting["weight"] is None else p.setting["weight"],
            p.theory["total"],
            p.total,
            p.z(),
        ]
        for p in every
    ]
    columns = [*names[:-1], "start", "weight", "theory", "measured", "z"]
    return Table(columns, rows)
