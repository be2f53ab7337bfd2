"""Rounds of training in which every seed is a lineage: its models learn from each other's text.

A lineage keeps its seed, and with it its first parameters and the order of its real rows, so that
differences between rounds are paired. A round is one run, one model a seed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from collapse_lm_runs import Array, corpus, most_tokens
from ml_collections import ConfigDict

from lmnoise.assemble import noise_sources_of
from lmnoise.checkpoints import Checkpoint, open_checkpoint
from lmnoise.data.packing import prepare
from lmnoise.errors import Stopped
from lmnoise.report import Estimate
from lmnoise.train import train
from lmnoise.training.metrics import read_rows


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round of R lineages left: `losses_R` on held-out real text, nats per token."""

    losses_R: Array
    models: dict[int, Checkpoint]


def train_round(config: ConfigDict, folder: Path, title: str) -> Round:
    """Trains one model a seed on real rows and those of its corpus, or goes on.

    Args:
      config: of lmnoise.train, with kind ("stream",) and seeds alone as its members; their corpora
        are prepared.
      folder: of the run.
      title: of the progress bar.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    data, seeds = config.data, config.members.seed
    for name in dict.fromkeys((data.source, *noise_sources_of(config, list(seeds)))):
        prepare(name, data_dir=data.data_dir, tokenizer=data.tokenizer)
    run, states = train(config, folder, title)
    if states is None:
        raise Stopped
    if [member["seed"] for member in run.members] != list(seeds):
        raise ValueError(f"config.members must differ in the seed alone, not {run.members}")
    key = f"eval/{data.source.strip('/')}/loss"
    rows = read_rows(folder)
    losses = {r["member"]: r[key] for r in rows if r["step"] == config.train.steps and key in r}
    models = {
        seed: open_checkpoint(f"{folder}#{member}", data.data_dir)
        for member, seed in enumerate(seeds)
    }
    return Round(np.array([losses[member] for member in range(len(seeds))]), models)


def write_texts(
    config: ConfigDict,
    workdir: Path,
    models: Mapping[int, Checkpoint],
    name: str,
    steps: int,
    **recipe: float,
) -> list[Path]:
    """Every lineage's model writes what a run of `steps` reads; the folders, one a seed.

    Args: the others are as of `collapse_lm_runs.corpus`.
    """
    own = config.copy_and_resolve_references()
    own.train.steps = steps
    return [
        corpus(config, workdir, model, name, seed, most_tokens(own), **recipe)
        for seed, model in models.items()
    ]


def verdict(difference: Estimate, above: str, below: str, neither: str = "not shown") -> str:
    """What the 95 % interval of a difference says."""
    low, high = difference.interval
    if low > 0:
        return above
    return below if high < 0 else neither
