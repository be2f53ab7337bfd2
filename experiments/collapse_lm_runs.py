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
    found = generators(config, workdir)
    for seed, checkpoint in found.items():
        corpus(config, workdir, checkpoint, FIRST, seed, most_tokens(config))
    own = student_config(config, noise=dict(source=source(workdir, FIRST)))
    curves = train_mixtures(own, workdir / "grid", "shares x sizes")
    return Study(found, _generator_losses(config, workdir), curves)


def generators(config: ConfigDict, workdir: Path) -> dict[int, Checkpoint]:
    """One generator for each seed of the students, trained on real text as one population.

    Args:
      config: of the study; `generator` has the keys of `train` and `members` that differ from
        those of the students.
      workdir: of the study.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    own = _generator_config(config)
    prepare(own.data.source, data_dir=own.data.data_dir, tokenizer=own.data.tokenizer)
    folder = workdir / "generators"
    _, states = train(own, folder, "generators")
    if states is None:
        raise Stopped
    return {
        seed: open_checkpoint(f"{folder}#{member}", own.data.data_dir)
        for member, seed in enumerate(config.members.seed)
    }


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


def _generator_losses(config: ConfigDict, workdir: Path) -> Array:
    """The loss (R,) of each generator on held-out real text at its end."""
    key = f"eval/{config.data.source.strip('/')}/loss"
    rows = read_rows(workdir / "generators")
    last = {r["member"]: r[key] for r in rows if r["step"] == config.generator.steps and key in r}
    return np.array([last[member] for member in range(len(config.members.seed))])
