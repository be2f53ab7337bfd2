"""What the multilingual study measured, and the curves in it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmnoise.evaluation.crosslingual import jackknife_error
from lmnoise.evaluation.scores import Mean, Spread, over_seeds
from lmnoise.report import Estimate, mean_and_error


class Result(NamedTuple):
    """What was measured.

    Attributes:
      before: the probes of the checkpoint as it is.
      runs: {language: {kind: a run a seed}}.
      prompts: {language: texts}.
      people: {language: code-switched shares of what people wrote after each prompt}.
      trained: {language: aligned paragraphs that stand in its training text}.
      paragraphs: that are aligned.
      sizes: {language: bytes of each scored text}, English first.
    """

    before: dict[str, Any]
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    prompts: dict[str, list[str]]
    people: dict[str, list[dict[str, float | None]]]
    trained: dict[str, int]
    paragraphs: int
    sizes: dict[str, list[int]]


def bits(result: Result, run: dict[str, Any], language: str) -> np.ndarray:
    """Bits per byte of a language's scored texts along a run."""
    total = math.log(2) * sum(result.sizes[language])
    return np.array([sum(row["nats"][language]) / total for row in run["rows"]])


def steps(run: dict[str, Any]) -> np.ndarray:
    return np.array([row["step"] for row in run["rows"]])


def shares(written: Sequence[dict[str, float | None]], of: str) -> np.ndarray:
    """Code-switched shares of texts, of their "tokens" or "letters"; NaN where there is none."""
    return np.array([math.nan if text[of] is None else text[of] for text in written])


def switched(runs: Sequence[dict[str, Any]], of: str, at: int, since: int | None = None) -> Spread:
    """The share at a row of the runs, or its change since another, over prompts and seeds.

    A share is the mean over texts. Texts without a letter are left out.
    """
    found_SP = _switched(runs, of, at)
    if since is not None:
        found_SP = found_SP - _switched(runs, of, since)
    kept_SP = found_SP[:, np.isfinite(found_SP).any(0)]
    by_prompt = np.nanmean(kept_SP, 0)
    rows = mean_and_error(by_prompt) if by_prompt.size else Estimate(math.nan, math.nan, 1)
    by_seed = [float(np.nanmean(s)) for s in kept_SP if np.isfinite(s).any()]
    return over_seeds(Mean(*rows), by_seed or [math.nan])


def _switched(runs: Sequence[dict[str, Any]], of: str, at: int) -> np.ndarray:
    return np.array([shares(run["rows"][at]["switched"], of) for run in runs])


def similarity_change(
    before: dict[str, Any], runs: Sequence[dict[str, Any]], other: str, measure: str
) -> Spread:
    """The change of the mean over layers, over paragraphs and seeds; layers with NaN left out."""
    changes = [_similarities(r["probes"], other, measure) for r in runs]
    changes = np.array(changes) - _similarities(before, other, measure)[None]
    kept = changes[:, np.isfinite(changes).all((0, 2))].mean(1)
    return _paragraphs(kept)


def similarity_after(runs: Sequence[dict[str, Any]], other: str, measure: str) -> list[Spread]:
    """The similarity of each layer at the end, over paragraphs and seeds."""
    found = np.array([_similarities(r["probes"], other, measure) for r in runs])
    return [_paragraphs(of_layer) for of_layer in found.swapaxes(0, 1)]


def _similarities(probes: dict[str, Any], other: str, measure: str) -> np.ndarray:
    """By layer: the value, and those without each block of paragraphs, (L + 1, 1 + B)."""
    rows = probes["similarity"][other]
    return np.array([[row[measure]["value"], *row[measure]["without"]] for row in rows])


def _paragraphs(found: np.ndarray) -> Spread:
    """The spread of a statistic by seed: of all paragraphs, and without each block of them."""
    without = found[:, 1:].mean(0)
    rows = Mean(float(found[:, 0].mean()), jackknife_error(without), len(without))
    return over_seeds(rows, found[:, 0].tolist())


def text(spread: Spread, digits: int) -> str:
    """The mean with the 95 % interval."""
    half = spread.half_width()
    if math.isnan(half):
        return f"{spread.mean:.{digits}f}"
    return f"{spread.mean:.{digits}f} ± {half:.{digits}f}"


def shown(estimate: Estimate | Spread) -> str:
    """Whether a difference is told from none by its 95 % interval."""
    half = estimate.half_width() if isinstance(estimate, Spread) else estimate.half_width
    if math.isnan(half):
        return "no interval"
    return "shown" if abs(estimate.mean) > half else "not shown"
