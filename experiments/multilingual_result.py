"""What the multilingual study measured, and the curves in it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """What was measured.

    Attributes:
      before: the probes of the checkpoint as it is.
      runs: {language: {kind: a run a seed}}.
      prompts: {language: texts}.
      people: {language: code-switched share of what people wrote after each prompt}.
      sizes: {language: bytes of each scored text}, English first.
    """

    before: dict[str, Any]
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    prompts: dict[str, list[str]]
    people: dict[str, list[float | None]]
    sizes: dict[str, list[int]]


def bits(result: Result, run: dict[str, Any], language: str) -> np.ndarray:
    """Bits per byte of a language's scored texts along a run."""
    total = math.log(2) * sum(result.sizes[language])
    return np.array([sum(row["nats"][language]) / total for row in run["rows"]])


def steps(run: dict[str, Any]) -> np.ndarray:
    return np.array([row["step"] for row in run["rows"]])


def switched(run: dict[str, Any]) -> np.ndarray:
    """The code-switched share of tokens along a run, the mean of its continuations."""
    return np.array([mean(row["switched"]) for row in run["rows"]])


def mean(shares: Sequence[float | None]) -> float:
    """The mean of those that there are, NaN for none."""
    found = [share for share in shares if share is not None]
    return float(np.mean(found)) if found else math.nan
