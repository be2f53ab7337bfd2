"""How much the loss rises when the weights are disturbed, by kind and strength."""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise import tree
from lmnoise.analyze.series import Entry, along, file_name
from lmnoise.analyze.subject import Subject, over_seeds, rises
from lmnoise.errors import UserError
from lmnoise.evaluation.perturb import KINDS, Perturbation, sensitivity
from lmnoise.report import Estimate, Figure, Table, savefig, style, write_csv

TITLE = "Sensitivity to perturbed weights"
# Kinds whose outcome does not depend on the seed.
CERTAIN = ("scale", "quantise")
AXIS = {
    "gaussian": "standard deviation of the noise, in its unit",
    "zero": "share of the weights set to zero",
    "reinitialise": "share of the weights drawn anew",
    "scale": "factor on the weights",
    "quantise": "bits a weight",
}

# {kind: {strength: {source: rise in nats per token}}}, and the texts of `Subject.continuations`.
type Result = dict[str, Any]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The corpora that are scored."""
    return config.perturb.sources


def perturbation(config: ConfigDict, kind: str) -> Perturbation:
    """The config's perturbation of a kind: only leaves that the pattern matches whole."""
    section = config.perturb
    return Perturbation(kind, section.unit, ((section.pattern, True), (".*", False)))


def measure(subject: Subject, config: ConfigDict) -> Result:
    """Rises of the loss over the unperturbed model for every kind, strength and source."""
    section = config.perturb
    names = [name for name, _ in tree.named_leaves(subject.params)]
    if not any(re.fullmatch(section.pattern, name) for name in names):
        raise UserError(
            f"config.perturb.pattern {section.pattern!r} matches no tensor of {subject.name}; one "
            f"of them is {names[-1]}"
        )
    baseline = subject.baseline()
    found: dict[str, dict[float, dict[str, Estimate]]] = {}
    for kind, strengths in _sweeps(config):
        change = sensitivity(perturbation(config, kind), subject.model.specs)
        seeds = section.seeds[:1] if kind in CERTAIN else section.seeds
        evaluate = functools.cache(lambda change=change: subject.evaluator(change))

        def work(setting, evaluate=evaluate, seeds=seeds):
            return evaluate()(_members([setting["strength"]] * len(seeds), seeds))

        settings = [
            {"what": "perturb", "kind": kind, "unit": section.unit, "pattern": section.pattern,
             "strength": strength, "seeds": list(seeds)}
            for strength in strengths
        ]  # fmt: skip
        results = subject.compute(settings, work, kind)
        found[kind] = {
            strength: {
                source: over_seeds(of_seeds)
                for source, of_seeds in rises(subject.sums(result), baseline).items()
            }
            for strength, result in zip(strengths, results, strict=True)
        }
    return {"rises": found, "said": _continuations(subject, config)}


def _sweeps(config: ConfigDict) -> Iterator[tuple[str, tuple[float, ...]]]:
    given = config.perturb.strengths
    for kind in KINDS:
        if given.get(kind):
            yield kind, given[kind]


def _members(strengths: Sequence[float], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    return {"strength": np.asarray(strengths, np.float32), "seed": np.asarray(seeds, np.int32)}


def _continuations(subject: Subject, config: ConfigDict) -> list[list[str]]:
    """Rows (kind, strength, prompt, continuation): the model as it is, then Gaussian noise."""
    strengths = dict(_sweeps(config)).get("gaussian", ())
    if not config.continuation.prompts or not strengths:
        return []
    strengths = [0.0, *strengths]
    change = sensitivity(perturbation(config, "gaussian"), subject.model.specs)
    setting = {"what": "said", "kind": "gaussian", "unit": config.perturb.unit,
               "pattern": config.perturb.pattern, "strengths": strengths,
               "continuation": config.continuation.to_dict()}  # fmt: skip

    def work(_):
        members = _members(strengths, [config.perturb.seeds[0]] * len(strengths))
        return {"said": subject.continuations(config.continuation, change, members)}

    [result] = subject.compute([setting], work, "continuations")
    return [
        [f"{strength:g}", prompt, text]
        for strength, texts in zip(strengths, result["said"], strict=True)
        for prompt, text in zip(config.continuation.prompts, texts, strict=True)
    ]


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; tables also go into `folder` as CSV."""
    section = config.perturb
    seeds = len(section.seeds)
    sources = list(next(iter(next(iter(series[0].result["rises"].values())).values())))
    table = Table(
        ("checkpoint", "kind", "strength", *sources),
        [
            (e.name, kind, strength, *(of_source[source] for source in sources))
            for e in series
            for kind, of_kind in e.result["rises"].items()
            for strength, of_source in of_kind.items()
        ],
        "Rise of the loss over the unperturbed model, nats per token, paired on the same tokens. "
        "Intervals of 95 %: "
        + (f"over {seeds} seeds of the noise where it has some, else " if seeds > 1 else "")
        + "over documents.",
    )
    write_csv(folder / "perturb.csv", table)
    units = {
        "weight_rms": "the root mean square of the tensor",
        "init_std": "the standard deviation at initialisation",
        "absolute": "1",
    }
    found = [
        f"Perturbed tensors: those whose name matches `{section.pattern}`. Gaussian noise in units "
        f"of {units[section.unit]}; one seed keeps its direction at every strength.",
        table,
    ]
    for e in series:
        path = folder / f"perturb-{file_name(e.name)}.png"
        _draw(e.result["rises"], path)
        found.append(
            Figure(path, f"{e.name}: rise of the loss by kind and strength; bars: 95 % intervals.")
        )
    if len(series) > 1:
        _draw_series(series, sources[0], folder / "perturb-series.png")
        found.append(
            Figure(
                folder / "perturb-series.png",
                f"Sensitivity along the series on {sources[0]}; bars: 95 % intervals.",
            )
        )
    for e in series:
        if e.result["said"]:
            found += [
                f"### What {e.name} says\n\nGreedy continuations under Gaussian noise of the "
                f"first seed; strength 0 is the model as it is.",
                Table(("strength", "prompt", "continuation"), e.result["said"]),
            ]
    return found


def _draw(of_kinds: dict[str, dict[float, dict[str, Estimate]]], path: Path) -> None:
    with style():
        fig = MatplotlibFigure(
            figsize=(4.2 * min(3, len(of_kinds)), 3.6 * math.ceil(len(of_kinds) / 3))
        )
        axes = fig.subplots(math.ceil(len(of_kinds) / 3), min(3, len(of_kinds)), squeeze=False)
        for ax in axes.flat[len(of_kinds) :]:
            ax.set_visible(False)
        for ax, (kind, of_kind) in zip(axes.flat, of_kinds.items(), strict=False):
            _panel(ax, kind, of_kind)
        axes[0, 0].legend()
        savefig(fig, path)


def _panel(ax: Axes, kind: str, of_kind: dict[float, dict[str, Estimate]]) -> None:
    strengths = sorted(of_kind)
    for source in of_kind[strengths[0]]:
        estimates = [of_kind[s][source] for s in strengths]
        _bars(ax, strengths, estimates, source)
    positive = [s for s in strengths if s > 0]
    if kind in ("gaussian", "zero", "reinitialise") and len(positive) > 1:
        ax.set_xscale("symlog", linthresh=positive[0])
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_title(kind)
    ax.set_xlabel(AXIS[kind])
    ax.set_ylabel("rise of the loss, nats per token")


def _bars(ax: Axes, x: Sequence[float], estimates: Sequence[Estimate], label: str) -> None:
    ax.errorbar(
        x,
        [e.mean for e in estimates],
        [e.half_width for e in estimates],
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )


def _draw_series(series: Sequence[Entry], source: str, path: Path) -> None:
    kinds = list(series[0].result["rises"])
    with style():
        fig = MatplotlibFigure(figsize=(4.6 * len(kinds), 3.8))
        for ax, kind in zip(fig.subplots(1, len(kinds), squeeze=False).flat, kinds, strict=True):
            x = along(series, ax)
            for strength in series[0].result["rises"][kind]:
                estimates = [e.result["rises"][kind][strength][source] for e in series]
                _bars(ax, x, estimates, f"{strength:g}")
            ax.set_yscale("symlog", linthresh=0.01)
            ax.set_title(kind)
            ax.set_ylabel(f"rise of the loss on {source}, nats per token")
            ax.legend(title="strength")
        savefig(fig, path)
