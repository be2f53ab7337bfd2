"""Rounds of training in which every seed is a lineage: its models learn from each other's text.

A lineage keeps its seed, and with it its first parameters and the order of its real rows, so that
differences between rounds are paired. A round is one run, one model a seed.
"""

from collections.abc import Mapping
from pathlib import Path

from collapse_lm_runs import corpus, most_tokens
from ml_collections import ConfigDict

from lmnoise.checkpoints import Checkpoint


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
