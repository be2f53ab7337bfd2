"""What all chapters of the collapse study share: the generators, their corpora, the main grid.

Each seed of the students has a generator of its own, trained on the same corpus with another seed,
and a synthetic corpus of its own, so that intervals over seeds include the generator.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from lmnoise import config as configs
from lmnoise.analyze.mixtures import Curves, train_mixtures
from lmnoise.assemble import noise_sources_of
from lmnoise.checkpoints import Checkpoint, open_checkpoint
from lmnoise.data.packing import prepare
from lmnoise.errors import Stopped, UserError
from lmnoise.synthesize import Recipe, synthesize
from lmnoise.train import train
from lmnoise.training.metrics import read_rows

type Array = NDArray[np.float64]

FIRST = "first"  # the corpora of the first generators
# Between the seed of a student and that of its generator.
_APART = 1_000_000
# More text than the largest run reads: a tenth of the documents, more or less, is held out.
_SURPLUS = 1.15


@dataclasses.dataclass(frozen=True)
class Round:
    """A model a seed: by seed, and its loss (R,) on held-out real text, nats per token."""

    losses_R: Array
    models: dict[int, Checkpoint]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the chapters start from; R seeds.

    Attributes:
      generators: the first generator of each seed of the students.
      generator_losses_R: of each generator on held-out real text, nats per token.
      curves: the main grid, shares x seeds x sizes, of the first generators' corpora.
    """

    generators: dict[int, Checkpoint]
    generator_losses_R: Array
    curves: Curves


def check(config: ConfigDict) -> None:
    """Refuses a grid that the study could not compare."""
    members = config.members
    for name, least in (("seed", 2), ("rate", 3), ("duration", 3)):
        values = members[name]
        if len(values) < least or any(a >= b for a, b in itertools.pairwise(values)):
            raise UserError(
                f"config.members.{name} must hold at least {least} values that rise, not {values}"
            )
    if members.rate[0] != 0 or members.rate[-1] != 1 or members.duration[-1] != 1:
        raise UserError(
            "config.members.rate must begin with 0 and end with 1, and config.members.duration "
            f"end with 1, not {members.rate} and {members.duration}"
        )
    if members.seed[-1] >= _APART:
        raise UserError(
            f"config.members.seed must lie below {_APART}, where those of the generators begin, "
            f"not {members.seed}"
        )


def seeds(config: ConfigDict) -> list[int]:
    """All seeds of the main grid: of the students and of their generators."""
    return [*config.members.seed, *_generator_seeds(config)]


def measure(config: ConfigDict, workdir: Path) -> Study:
    """Trains the generators, synthesises their corpora and trains the main grid, or goes on.

    Raises:
      Stopped: a signal came; what was reached is saved.
    """
    trained = train_round(_generator_config(config), workdir / "generators", "generators")
    generators = dict(zip(config.members.seed, trained.models.values(), strict=True))
    for seed, checkpoint in generators.items():
        corpus(config, workdir, checkpoint, FIRST, seed, most_tokens(config))
    own = student_config(config, noise=dict(source=source(workdir, FIRST)))
    curves = train_mixtures(own, workdir / "grid", "shares x sizes")
    return Study(generators, trained.losses_R, curves)


def train_round(config: ConfigDict, folder: Path, title: str) -> Round:
    """Trains one model a seed on real rows, and on those of its corpus if it has one, or goes on.

    Args:
      config: of lmnoise.train, with seeds alone as its members; its corpora are prepared.
      folder: of the run.
      title: of the progress bar.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    data, seeds = config.data, config.members.seed
    for name in filter(None, (data.source, *noise_sources_of(config, list(seeds)))):
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


def corpus(
    config: ConfigDict,
    workdir: Path,
    checkpoint: Checkpoint,
    name: str,
    seed: int,
    tokens: int,
    **recipe: float,
) -> Path:
    """Synthesises a corpus of `checkpoint`, or goes on, into the folder of this name and seed.

    Args:
      config: of the study; `recipe` has the fields of `lmnoise.synthesize.Recipe`.
      workdir: of the study.
      name: of the chapter's corpora, one a seed; see `source`.
      seed: of the students that read it.
      tokens: that it has at least.
      recipe: fields that differ from `config.recipe`.

    Raises:
      Stopped: a signal came; what was written stays.
    """
    folder = workdir / "synthetic" / name / str(seed)
    own = Recipe(**config.recipe.to_dict() | dict(tokens=tokens, seed=seed) | recipe)
    data = config.data
    synthesize(
        checkpoint, own, folder, data_dir=data.data_dir, prompts=data.source,
        title=f"synthetic text, {name}, seed {seed}",
    )  # fmt: skip
    return folder


def source(workdir: Path, name: str) -> str:
    """The corpora of a name as a value of `config.noise.source`: each seed reads its own."""
    return f"{workdir / 'synthetic' / name}/{{seed}}/"


def student_config(config: ConfigDict, **changes: dict) -> ConfigDict:
    """The part of the study's config that `lmnoise.train` knows, with changes by section."""
    own = configs.default_config()
    own.update({name: config[name].to_dict() for name in own})
    own.update(changes)
    return own


def most_tokens(config: ConfigDict) -> int:
    """Tokens of a synthetic corpus of which the largest run reads nothing twice."""
    train = config.train
    return round(_SURPLUS * train.steps * train.batch_size * config.data.length)


def _generator_config(config: ConfigDict) -> ConfigDict:
    section = config.generator
    members = dict(
        seed=_generator_seeds(config),
        kind=("uniform",),
        rate=(0.0,),
        duration=(1.0,),
        learning_rate=(section.learning_rate,),
    )
    return student_config(
        config,
        members=members,
        train=dict(steps=section.steps),
        data=dict(evaluate=(config.data.source,)),
    )


def _generator_seeds(config: ConfigDict) -> tuple[int, ...]:
    return tuple(_APART + seed for seed in config.members.seed)
