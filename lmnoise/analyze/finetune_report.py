"""Tables and figures about fine-tuning."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.defaults import label
from lmnoise.analyze.series import Entry, along, file_name
from lmnoise.evaluation.choose import choose_checkpoint
from lmnoise.evaluation.outcomes import Outcome, Setting, averaged, frontier, tuned
from lmnoise.evaluation.scores import Mean, Spread, over_seeds
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    savefig,
    style,
    write_csv,
)

type Methods = dict[str, list[Outcome]]
type Value = Callable[[Outcome], Mean]


def _gain(outcome: Outcome) -> Mean:
    return _negative(outcome.change("test"))


def _forgetting(outcome: Outcome) -> Mean:
    return outcome.change("pretraining")


def _negative(mean: Mean) -> Mean:
    return mean._replace(mean=-mean.mean)


# Name, value and whether it is for tasks of labels alone.
COLUMNS: tuple[tuple[str, Value, bool], ...] = (
    ("test loss before", lambda o: o.before["test"].loss, False),
    ("test loss after", lambda o: o.after["test"].loss, False),
    ("gain", _gain, False),
    ("accuracy before", lambda o: o.before["test"].accuracy, True),
    ("accuracy gain", lambda o: o.accuracy_change("test"), True),
    ("forgetting", _forgetting, False),
)


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """A section a task: tuned settings, the grid, the frontier, and what runs along a series."""
    section = config.finetune
    found: list[str | Table | Figure] = [
        "Gain: by how much the loss on the task's test rows falls. Forgetting: by how much that on "
        f"held-out text of {section.pretraining} rises. Both in nats per scored token, before and "
        "after on the same text. Intervals of 95 % cover chance in the rows (of text: documents) "
        "that are scored"
        + (
            f" and in the {len(section.seeds)} seeds of the order of the rows. The squared half "
            "widths of both are added, as all seeds are scored on the same rows."
            if len(section.seeds) > 1
            else ", but not in the order of the rows: there is one seed."
        )
        + " Rates are tuned on validation rows, for each seed on its own; intervals are not "
        "corrected for the number of settings."
        + (
            " With replay there are as many more steps as it takes for the rows of the task to be "
            "read as often as without, on average."
            if any(any(axes.get("replay", ())) for axes in section.methods.values())
            else ""
        )
    ]
    for spec in series[0].result:
        own = [(e, e.result[spec]) for e in series]
        task = task_name(spec)
        stem = file_name(task)
        found += [f"## {task}", *_tables(own, folder, stem)]
        path = folder / f"frontier-{stem}.png"
        _draw_frontier(own, path)
        found.append(
            Figure(
                path,
                f"{task}: forgetting against gain, a point a setting with its peak learning rate "
                "beside it; rings: tuned on validation rows; dashed: settings of which no other "
                "gains more and forgets less. Bars: 95 % intervals.",
            )
        )
        if len(series) > 1:
            found += _along_series(own, folder, stem, task)
    return found


def task_name(spec: str) -> str:
    """How a report calls a task: of a path the last name alone."""
    kind, _, name = spec.partition(":")
    return f"{kind}:{label(name) if name.startswith(('/', '.', '~')) else name}"


def _labels(methods: Methods) -> bool:
    return next(iter(methods.values()))[0].after["test"].right is not None


def _by_setting(outcomes: Sequence[Outcome]) -> dict[Setting, list[Outcome]]:
    """{setting but for the seed: the outcomes of all seeds}."""
    found: dict[Setting, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(dataclasses.replace(outcome.setting, seed=0), []).append(outcome)
    return found


class _Estimate(Estimate):
    """A cell whose interval is that of a `Spread`."""

    def __new__(cls, spread: Spread, level: float = 0.95):
        self = super().__new__(cls, spread.mean, spread.standard_error, spread.n)
        self._half = spread.half_width(level)
        return self

    @property
    def half_width(self) -> float:
        return self._half


def _estimate(outcomes: Sequence[Outcome], value: Value, seeds: int) -> Estimate:
    """Over rows and seeds; without an interval where all seeds but one diverged."""
    by_seed = [value(outcome).mean for outcome in outcomes]
    if seeds > 1 == len(by_seed):
        return Estimate(by_seed[0], math.nan, 1)
    return _Estimate(over_seeds(value(averaged(outcomes)), by_seed))


def _tuned(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome a seed; none if in some seed all diverged."""
    seeds = dict.fromkeys(outcome.setting.seed for outcome in outcomes)
    try:
        return [tuned([o for o in outcomes if o.setting.seed == seed]) for seed in seeds]
    except ValueError:
        return []


def _besides(setting: Setting) -> str:
    """What of a setting is not as by default, but for rate and seed."""
    changed = [
        f"{field.name.replace('_', ' ')} {getattr(setting, field.name):g}"
        for field in dataclasses.fields(setting)
        if field.name not in ("learning_rate", "seed", "frozen")
        and getattr(setting, field.name) != field.default
    ]
    return ", ".join(changed)


def _tables(own: Sequence[tuple[Entry, Methods]], folder: Path, stem: str) -> list[str | Table]:
    columns = [c for c in COLUMNS if _labels(own[0][1]) or not c[2]]
    rows, best = [], []
    for e, methods in own:
        for method, outcomes in methods.items():
            for setting, of_seeds in _by_setting(outcomes).items():
                sound = [o for o in of_seeds if not o.diverged]
                rows.append(
                    (e.name, method, setting.learning_rate, _besides(setting),
                     f"{len(of_seeds) - len(sound)} of {len(of_seeds)}",
                     *(_estimate(sound, v, len(of_seeds)) if sound else "" for _, v, _ in columns))
                )  # fmt: skip
            if chosen := _tuned(outcomes):
                rates = sorted({o.setting.learning_rate for o in chosen})
                besides = " or ".join(dict.fromkeys(_besides(o.setting) for o in chosen))
                best.append(
                    (e.name, method, " or ".join(f"{rate:g}" for rate in rates), besides,
                     *(_estimate(chosen, value, len(chosen)) for _, value, _ in columns))
                )  # fmt: skip
    names = [name for name, _, _ in columns]
    grid = Table(
        ("checkpoint", "method", "learning rate", "besides", "diverged", *names),
        rows,
        "Every setting of the grid; runs that diverged are left out of the "
        "numbers; n = 1: a single seed did not, so that there is no interval.",
    )
    found = Table(
        ("checkpoint", "method", "tuned rate", "besides", *names),
        best,
        "At the setting with the lowest validation loss of each method.",
    )
    write_csv(folder / f"grid-{stem}.csv", grid)
    write_csv(folder / f"tuned-{stem}.csv", found)
    return [found, grid]


def _draw_frontier(own: Sequence[tuple[Entry, Methods]], path: Path) -> None:
    wide = min(3, len(own))
    high = math.ceil(len(own) / wide)
    with style():
        fig = MatplotlibFigure(figsize=(4.6 * wide, 3.8 * high))
        axes = fig.subplots(high, wide, squeeze=False)
        for ax in axes.flat[len(own) :]:
            ax.set_visible(False)
        for ax, (e, methods) in zip(axes.flat, own, strict=False):
            _panel(ax, methods)
            ax.set_title(e.name)
        # A panel of which everything diverged has nothing to name.
        for ax in [ax for ax in axes.flat if ax.get_legend_handles_labels()[0]][:1]:
            ax.legend()
        savefig(fig, path)


def _panel(ax: Axes, methods: Methods) -> None:
    for (method, outcomes), colour in zip(methods.items(), _colours(methods), strict=True):
        points = []
        for setting, of_seeds in _by_setting(outcomes).items():
            if not any(o.diverged for o in of_seeds):
                x, y = (_estimate(of_seeds, v, len(of_seeds)) for v in (_gain, _forgetting))
                points.append((setting, x, y))
        if not points:
            continue
        _, xs, ys = zip(*points, strict=True)
        ax.errorbar(
            [x.mean for x in xs], [y.mean for y in ys],
            [y.half_width for y in ys], [x.half_width for x in xs],
            fmt="o", markersize=4, capsize=2, color=colour, label=method, elinewidth=0.8,
        )  # fmt: skip
        for setting, x, y in points:
            ax.annotate(
                f"{setting.learning_rate:g}", (x.mean, y.mean), xytext=(5, 5),
                textcoords="offset points", fontsize=7, color=colour,
            )  # fmt: skip
        if chosen := _tuned(outcomes):
            x, y = (_estimate(chosen, v, len(chosen)) for v in (_gain, _forgetting))
            ax.plot(x.mean, y.mean, "o", markersize=11, fillstyle="none", color=colour)
    edge = frontier(_means(methods))
    ax.plot(
        [_gain(o).mean for o in edge], [_forgetting(o).mean for o in edge],
        "--", linewidth=1, color="grey", zorder=0,
    )  # fmt: skip
    ax.axhline(0, color="grey", linewidth=0.8, zorder=0)
    if any(abs(y) > 0.1 for y in ax.get_ylim()):
        ax.set_yscale("symlog", linthresh=0.01)
    ax.margins(0.15)  # for the rates beside the points
    ax.autoscale_view()
    ax.set_xlabel("gain on the test rows, nats per token")
    ax.set_ylabel("forgetting, nats per token")


def _colours(methods: Methods) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(methods))]


def _means(methods: Methods) -> list[Outcome]:
    """One outcome a setting, each document's loss averaged over the seeds."""
    return [
        averaged(of_seeds)
        for outcomes in methods.values()
        for of_seeds in _by_setting(outcomes).values()
    ]


def _all(methods: Methods) -> list[Outcome]:
    """The outcomes of all methods; a setting that two have is there once."""
    return list({o.setting: o for outcomes in methods.values() for o in outcomes}.values())


def _along_series(
    own: Sequence[tuple[Entry, Methods]], folder: Path, stem: str, task: str
) -> list[str | Table | Figure]:
    """Tuned outcomes along the series, and which checkpoint to take."""
    path = folder / f"series-{stem}.png"
    _draw_series(own, path)
    found: list[str | Table | Figure] = [
        "### Which checkpoint to fine-tune",
        Figure(
            path,
            f"{task}: along the series, before and after fine-tuning at the setting that is tuned "
            "over all methods. Bars: 95 % intervals. Checkpoints of one run differ in learning "
            "rate as well as in tokens.",
        ),
    ]
    try:
        choice = choose_checkpoint({e.name: _all(methods) for e, methods in own})
    except ValueError as error:
        return [*found, f"No checkpoint is recommended: {error}."]
    table = Table(
        ("checkpoint", "test loss", "less that of the chosen one", "shown"),
        [
            (
                r.name,
                r.loss,
                _Estimate(r.spread, r.level),
                "yes" if r.shown else "no",
            )
            for r in choice.rivals
        ],
        f"Against {choice.name}, of which the validation loss is lowest; both tuned, test rows, "
        f"paired; {choice.covers()}. Nats per token; positive: the chosen one is better.",
    )
    write_csv(folder / f"choice-{stem}.csv", table)
    return [*found, choice.sentence(), table]


def _draw_series(own: Sequence[tuple[Entry, Methods]], path: Path) -> None:
    chosen = [_tuned(_all(methods)) for _, methods in own]
    # A checkpoint of which all settings diverged leaves a gap.
    shown = [i for i, outcomes in enumerate(chosen) if outcomes]
    panels = [
        ("test loss, nats per token", COLUMNS[:2]),
        ("forgetting, nats per token", COLUMNS[-1:]),
    ]
    if _labels(own[0][1]):
        panels.insert(
            1,
            (
                "accuracy on the test rows",
                (COLUMNS[3], ("accuracy after", lambda o: o.after["test"].accuracy, True)),
            ),
        )
    with style():
        fig = MatplotlibFigure(figsize=(4.4 * len(panels), 3.6))
        for ax, (words, curves) in zip(fig.subplots(1, len(panels)), panels, strict=True):
            x = along([e for e, _ in own], ax)
            for name, value, _ in curves:
                estimates = [_estimate(chosen[i], value, len(chosen[i])) for i in shown]
                ax.errorbar(
                    [x[i] for i in shown],
                    [e.mean for e in estimates],
                    [e.half_width for e in estimates],
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=name,
                )
            ax.set_ylabel(words)
            ax.legend()
        savefig(fig, path)
