"""The figures of the multilingual study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import multilingual_result as result_of
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict
from multilingual_probes import ARCS, MEASURES, array, curve
from multilingual_runs import DIRECT, EXTENDED

from lmnoise.evaluation.scores import Spread
from lmnoise.report import COLOURS, mean_and_error, savefig, style

_COLOUR = {DIRECT: COLOURS[0], EXTENDED: COLOURS[1]}
_MEASURE = {"cka": "CKA", "rsa": "RSA", "retrieval": "retrieval"}


def _line(ax: Any, x: np.ndarray, curves: Sequence[np.ndarray], **options: Any) -> None:
    """A mean over seeds with its 95 % interval."""
    found = [mean_and_error(values) for values in np.array(curves).T]
    half = np.nan_to_num([estimate.half_width for estimate in found])
    ax.errorbar(x, [e.mean for e in found], half, marker="o", markersize=3, capsize=2, **options)


def _bars(ax: Any, x: Any, spreads: Sequence[Spread], **options: Any) -> None:
    """Means with their 95 % intervals over seeds and over paragraphs or prompts."""
    half = np.nan_to_num([spread.half_width() for spread in spreads])
    means = [spread.mean for spread in spreads]
    ax.errorbar(x, means, half, marker="o", markersize=3, capsize=2, **options)


def bits(result: Any, config: ConfigDict, path: Path) -> None:
    """Bits per byte of each language, against tokens and bytes, and of English."""
    each = config.multilingual.training.batch_size * config.data.length
    with style():
        fig = MatplotlibFigure(figsize=(11, 3.4 * len(result.runs)))
        axes = fig.subplots(len(result.runs), 3, squeeze=False)
        english = next(iter(result.sizes))
        for row, (language, kinds) in zip(axes, result.runs.items(), strict=True):
            for kind, runs in kinds.items():
                tokens = result_of.steps(runs[0]) * each
                options = {"color": _COLOUR[kind], "label": kind}
                own, other = (
                    [result_of.bits(result, run, name) for run in runs]
                    for name in (language, english)
                )
                _line(row[0], tokens / 1e3, own, **options)
                _line(row[1], tokens * runs[0]["bytes_per_token"] / 1e3, own, **options)
                _line(row[2], tokens / 1e3, other, **options)
            for ax, name in zip(row, (language, language, "English"), strict=True):
                ax.set_title(f"{name}, trained on {language}")
            row[0].set_ylabel("bits per byte")
            row[0].set_xlabel("thousand tokens seen")
            row[1].set_xlabel("thousand bytes of text seen")
            row[2].set_xlabel("thousand tokens seen")
            row[0].legend(title="vocabulary")
        savefig(fig, path)


def similarity(result: Any, path: Path) -> None:
    """A row a language that was trained on, a column a measure."""
    with style():
        fig = MatplotlibFigure(figsize=(11, 3.4 * len(result.runs)))
        axes = fig.subplots(len(result.runs), len(MEASURES), squeeze=False)
        for row, (language, kinds) in zip(axes, result.runs.items(), strict=True):
            for ax, measure in zip(row, MEASURES, strict=True):
                for colour, other in zip(COLOURS, result.before["similarity"], strict=False):
                    _similar(ax, result.before, kinds[DIRECT], other, measure, colour)
                ax.set_title(f"{_MEASURE[measure]}, trained on {language}")
                ax.set_xlabel("layer (0: embedding)")
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel("similarity to English")
            row[0].legend(fontsize=8)
        savefig(fig, path)


def _similar(
    ax: Any, before: Any, runs: Sequence[Any], other: str, measure: str, colour: str
) -> None:
    value, error, high = (
        curve(before, other, measure, what) for what in ("value", "standard_error", "null_high")
    )
    layers, half = np.arange(len(value)), 1.96 * error
    ax.fill_between(layers, value - half, value + half, color=colour, alpha=0.2, lw=0)
    ax.plot(layers, value, color=colour, label=f"{other}, before")
    ax.plot(layers, high, color=colour, linestyle=":", lw=0.9)
    after = result_of.similarity_after(runs, other, measure)
    _bars(ax, layers, after, color=colour, linestyle="--", lw=0.9, label=f"{other}, after")


def heads(result: Any, path: Path) -> None:
    """A column a pattern; the first row before, then the change by each language."""
    names, languages = list(result.before["heads"]), list(result.runs)
    with style():
        layers = array(result.before, names[0]).shape[0]
        height = min(4.5, 1.6 + 0.11 * layers)
        fig = MatplotlibFigure(figsize=(2.1 * len(names) + 0.6, height * (len(languages) + 1)))
        axes = fig.subplots(1 + len(languages), len(names), squeeze=False)
        for column, name in enumerate(names):
            before = 100 * array(result.before, name)
            changes = [
                np.mean([100 * array(r["probes"], name) - before for r in kinds[DIRECT]], 0)
                for kinds in result.runs.values()
            ]
            limit = max(float(np.abs(change).max()) for change in changes) or 1e-9
            about = float(np.abs(before).max())
            for row, values in enumerate((before, *changes)):
                ax = axes[row, column]
                signed = row > 0 or name in ARCS
                top = limit if row else about
                image = ax.imshow(
                    values,
                    aspect="auto",
                    origin="lower",
                    cmap="RdBu_r" if signed else "viridis",
                    vmin=-top if signed else 0.0,
                    vmax=top,
                )
                fig.colorbar(image, ax=ax, shrink=0.8)
                ax.grid(visible=False)
                for axis in (ax.xaxis, ax.yaxis):
                    axis.set_major_locator(MaxNLocator(integer=True))
                excess = ", excess" if name in ARCS else ""
                ax.set_title(f"{name}{excess}" if not row else "", fontsize=9)
        axes[0, 0].set_ylabel("before: layer")
        for ax, language in zip(axes[1:, 0], languages, strict=True):
            ax.set_ylabel(f"change, {language}: layer")
        for ax in axes[-1]:
            ax.set_xlabel("head")
        savefig(fig, path)


def switched(result: Any, path: Path) -> None:
    """A row a share, a column a language."""
    with style():
        fig = MatplotlibFigure(figsize=(4.6 * len(result.runs), 6.4))
        axes = fig.subplots(2, len(result.runs), squeeze=False, sharey=True)
        for row, of in zip(axes, ("tokens", "letters"), strict=True):
            for ax, (language, kinds) in zip(row, result.runs.items(), strict=True):
                for kind, runs in kinds.items():
                    steps = result_of.steps(runs[0])
                    found = [result_of.switched(runs, of, n) for n in range(len(steps))]
                    _bars(ax, steps, found, color=_COLOUR[kind], label=kind)
                people = np.nanmean(result_of.shares(result.people[language], of))
                ax.axhline(people, color="#000000", linestyle=":", lw=0.9, label="people")
                ax.set_title(f"trained on {language}")
                ax.set_xlabel("steps")
                ax.legend(title="vocabulary", fontsize=8)
            row[0].set_ylabel(f"code-switched share of {of}")
        savefig(fig, path)
