"""Shards of text that several processes write, round by round, until there is enough.

Which shards there are in the end does not depend on the number of processes, nor on stops.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from lmnoise.data import generated
from lmnoise.errors import Stopped
from lmnoise.training.processes import StopSignals

type Counts = dict[str, int]


def fill(
    folder: Path,
    make: Callable[[int], tuple[list[dict[str, Any]], Counts]],
    names: Sequence[str],
    wanted: int,
    *,
    check: Callable[[list[Counts]], None],
    stop: StopSignals,
    title: str,
) -> list[Counts]:
    """Writes what is missing of the first shards that have `wanted` tokens together.

    In each round every process makes one of the missing shards, and they wait for each other.
    The last round may write shards that are not needed; they are not counted.

    Args:
      folder: see `lmnoise.data.generated`; all processes see it.
      make: the lines of the shard of a number, the same in any process, and its counts.
      names: of the counts, `tokens` among them.
      wanted: number of tokens.
      check: is given the counts of the first shards after each round, and raises where more of
        them will not help.
      stop: entered by the caller.
      title: of the progress bar.

    Returns:
      The counts of those shards.

    Raises:
      Stopped: a signal came; a second call goes on.
    """
    known = _known(folder, names)
    own, count = jax.process_index(), jax.process_count()
    with tqdm(total=wanted, desc=title, unit="tok", unit_scale=True, disable=own > 0) as bar:
        bar.initial = bar.n = min(wanted, _tokens(known.values()))
        while _tokens(first := _first(known, wanted)) < wanted:
            check(first)
            if stop.reached():
                raise Stopped
            missing = (number for number in itertools.count() if number not in known)
            numbers = list(itertools.islice(missing, count))
            lines, counts = make(numbers[own])
            generated.write_shard(folder, numbers[own], lines, counts)
            vector = np.array([counts[name] for name in names], np.int32)
            found = np.reshape(multihost_utils.process_allgather(vector), (count, -1)).tolist()
            for number, values in zip(numbers, found, strict=True):
                known[number] = dict(zip(names, values, strict=True))
            bar.update(min(wanted, _tokens(known.values())) - bar.n)
    return first


def _first(known: dict[int, Counts], wanted: int) -> list[Counts]:
    """The counts of the shards from the first on, to where they have enough or one is missing."""
    first, tokens = [], 0
    while tokens < wanted and len(first) in known:
        first.append(known[len(first)])
        tokens += first[-1]["tokens"]
    return first


def _tokens(counts) -> int:
    return sum(shard["tokens"] for shard in counts)


def _known(folder: Path, names: Sequence[str]) -> dict[int, Counts]:
    """The counts of the shards that are there, as process 0 sees them."""
    if jax.process_count() == 1:
        return generated.known(folder)
    known = generated.known(folder) if jax.process_index() == 0 else {}
    rows = [[number, *(counts[name] for name in names)] for number, counts in known.items()]
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(rows))))
    table = np.zeros((size, 1 + len(names)), np.int32)
    if rows:
        table[:] = rows
    table = np.asarray(multihost_utils.broadcast_one_to_all(table)).tolist() if size else []
    return {number: dict(zip(names, values, strict=True)) for number, *values in table}
