"""What an analysis found for one checkpoint or several: the header of a report, and its x axis."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from lmnoise.analyze.subject import Subject
from lmnoise.report import Table


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint of the series.

    Attributes:
      name: of the checkpoint.
      parameters: how many it has.
      tokens: it was trained on; None if that is not known.
      note: about its weights, such as that they were quantised.
      result: what the analysis measured, of a type of its own.
    """

    name: str
    parameters: int
    tokens: float | None
    note: str
    result: Any


def entry(subject: Subject, result: Any) -> Entry:
    """What the series keeps of a subject: no parameters."""
    checkpoint = subject.checkpoint
    return Entry(
        checkpoint.name, subject.model.parameter_count, checkpoint.tokens, checkpoint.note, result
    )


def told_apart(series: Sequence[Entry]) -> list[Entry]:
    """The series with a number behind the names that occur again, as of two folders `final`."""
    found = []
    for e in series:
        before = [other.name for other in series[: len(found)]].count(e.name)
        found.append(dataclasses.replace(e, name=f"{e.name}-{before + 1}") if before else e)
    return found


def header(series: Sequence[Entry]) -> Table:
    """The checkpoints that a report is about."""
    rows = [
        (
            e.name,
            f"{e.parameters:,}",
            "unknown" if e.tokens is None else f"{e.tokens:,.0f}",
            e.note or "as stored",
        )
        for e in series
    ]
    return Table(("checkpoint", "parameters", "training tokens", "weights"), rows)


def along(series: Sequence[Entry], ax: Axes) -> list[float]:
    """Where the checkpoints stand on the x axis: at their tokens, or in order if one has none."""
    tokens = [e.tokens for e in series]
    if None in tokens or len(set(tokens)) < len(tokens):
        ax.set_xticks(range(len(series)), [e.name for e in series], rotation=20, ha="right")
        return list(range(len(series)))
    ax.set_xlabel("training tokens")
    if min(tokens) > 0:
        ax.set_xscale("log")
    return tokens


def percent(share: float) -> str:
    """A share as a percentage with as many digits as it needs."""
    return f"{100 * share:g}%"


def file_name(name: str) -> str:
    """The name of a checkpoint as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
