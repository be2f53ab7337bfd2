"""What the multilingual study measured, and the curves in it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lmnoise.evaluation.scripts import code_switched


class Result(NamedTuple):
    """What was measured.

    Attributes:
      before: the probes of the checkpoint as it is.
      runs: {language: {kind: a run a seed}}.
      prompts, people: {language: texts}, the prompts and what people wrote after them.
      sizes: {language: bytes of each scored text}, English first.
    """

    before: dict[str, Any]
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    prompts: dict[str, list[str]]
    people: dict[str, list[str]]
    sizes: dict[str, list[int]]


def bits(result: Result, run: dict[str, Any], language: str) -> np.ndarray:
    """Bits per byte of a language's scored texts along a run."""
    total = math.log(2) * sum(result.sizes[language])
    return np.array([sum(row["nats"][language]) / total for row in run["rows"]])


def steps(run: dict[str, Any]) -> np.ndarray:
    return np.array([row["step"] for row in run["rows"]])


def switched(run: dict[str, Any], language: str) -> np.ndarray:
    """The code-switched share along a run, the mean of its continuations."""
    return np.array([share(row["written"], language) for row in run["rows"]])


def share(texts: Sequence[str], language: str) -> float:
    """The mean code-switched share of texts; those without a letter have none and are left out."""
    found = [code_switched(text, language) for text in texts]
    return float(np.nanmean(found)) if np.isfinite(found).any() else math.nan
