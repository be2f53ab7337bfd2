"""Trains models on mixtures of two corpora, real and synthetic, of several shares and sizes.

Letters: P shares of synthetic rows, R seeds, B sizes in tokens of training, real and synthetic
together. A size is trained to its own end of the schedule, so all of them together are one
population, and what its members share (their seeds) cancels from the differences.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from lmnoise.assemble import Members, noise_sources_of, steps_of
from lmnoise.data.packing import open_packed, prepare
from lmnoise.errors import Stopped, UserError
from lmnoise.report import Estimate, mean_and_error
from lmnoise.train import train
from lmnoise.training.metrics import read_rows

type Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Final losses of the models of a population, one for every share, seed and size.

    Attributes:
      shares: of synthetic rows, ascending, the first 0.
      tokens_B: of training, real and synthetic together, ascending, float64.
      seeds: of the models; a seed's models share the order of the text.
      real_PRB: loss on held-out real text, nats per token, float64.
      synthetic_PRB: loss on the held-out part of the synthetic text of the seed.
      parameters: of a model.
      real_tokens: that the real corpus has to train on.
      synthetic_tokens: that the smallest synthetic corpus has to train on.
    """

    shares: tuple[float, ...]
    tokens_B: Array
    seeds: tuple[int, ...]
    real_PRB: Array
    synthetic_PRB: Array
    parameters: int
    real_tokens: int
    synthetic_tokens: int

    @property
    def rise_PRB(self) -> Array:
        """Rise of the loss on real text over real text alone, of as many tokens in all."""
        return self.real_PRB - self.real_PRB[:1]

    @property
    def real_part_PRB(self) -> Array:
        """Loss of real text alone of (1 - share) as many tokens: what the real part gives alone.

        Read between the measured sizes of the same seed by a monotone cubic in log tokens
        (Fritsch and Carlson), which at the sizes themselves is what was measured; nan below the
        smallest size. Between two-fold sizes of power laws with exponents of 0.15 to 0.5 it reads
        up to 0.001 nats too little.
        """
        found_PRB = np.full(self.real_PRB.shape, np.nan)
        found_PRB[0] = self.real_PRB[0]
        if len(self.tokens_B) == 1:
            return found_PRB
        logs_B = np.log(self.tokens_B)
        curve = PchipInterpolator(logs_B, self.real_PRB[0], axis=-1, extrapolate=False)
        for p, share in enumerate(self.shares):
            if 0 < share < 1:
                at_B = logs_B + np.log1p(-share)
                # A hair below the smallest size is that size: logarithms are rounded.
                found_PRB[p] = curve(np.where(np.isclose(at_B, logs_B[0]), logs_B[0], at_B))
        return found_PRB

    @property
    def added_PRB(self) -> Array:
        """Rise of the loss on real text through synthetic text that is added to the real part.

        Below 0 it helps; nan where `real_part_PRB` is.
        """
        return self.real_PRB - self.real_part_PRB

    @property
    def chance(self) -> float:
        """Root mean square of the standard errors, over seeds, of the losses on real text."""
        variance_PB = self.real_PRB.var(axis=1, ddof=1) / len(self.seeds)
        return float(np.sqrt(variance_PB.mean()))


def train_mixtures(config: ConfigDict, workdir: Path, title: str) -> Curves:
    """Trains the mixtures of a config in `workdir`, or goes on, and reads their final losses.

    Args:
      config: of lmnoise.train, with kind ("stream",) and budget "total". `members.rate` holds the
        shares, 0 among them, `members.duration` the sizes as shares of `train.steps`, and
        `noise.source` the synthetic corpus, of each seed its own where it contains {seed}. The
        corpora are prepared. What is evaluated is their held-out text, whatever
        `data.evaluate` says.
      workdir: of the run.
      title: of the progress bar.

    Raises:
      Stopped: a signal came; the run is saved.
      UserError: a config that does not fit, or a corpus that cannot be prepared.
    """
    weights = config.members.noise_weight
    if len(weights) != 1:
        raise UserError(f"config.members.noise_weight must hold one weight here, not {weights}")
    return train_weighted(config, workdir, title)[weights[0]]


def train_weighted(config: ConfigDict, workdir: Path, title: str) -> dict[float, Curves]:
    """`train_mixtures` for every weight of `config.members.noise_weight`, as one population.

    At share 0 the weight means nothing: all of the curves have the same models there.
    """
    config = _checked(config)
    synthetic = dict(
        zip(
            config.members.seed,
            noise_sources_of(config, list(config.members.seed)),
            strict=True,
        )
    )
    names = tuple(dict.fromkeys((config.data.source, *synthetic.values())))
    data = dict(data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)
    for name in names:
        prepare(name, **data)
    config.data.evaluate = names
    run, states = train(config, epath.Path(workdir), title)
    if states is None:
        raise Stopped
    rows = {row["member"]: row for row in read_rows(workdir) if _is_final(row, config)}

    def loss_of(name: str, chosen: NDArray[np.int64]) -> Array:
        key = f"eval/{name.strip('/')}/loss"
        return np.array([rows[member][key] for member in chosen.ravel()]).reshape(chosen.shape)

    sizes = {name: len(open_packed(name, "train", **data).tokens) for name in names}
    found = {}
    for weight in config.members.noise_weight:
        chosen_PRB = _numbers(run.members, config, weight)
        found[weight] = Curves(
            shares=config.members.rate,
            tokens_B=_tokens(config),
            seeds=config.members.seed,
            real_PRB=loss_of(config.data.source, chosen_PRB),
            synthetic_PRB=np.stack(
                [loss_of(n, chosen_PRB[:, r]) for r, n in enumerate(synthetic.values())], 1
            ),
            parameters=run.model.parameter_count,
            real_tokens=sizes[config.data.source],
            synthetic_tokens=min(sizes[name] for name in synthetic.values()),
        )
    return found


def quality(curves: Curves) -> Estimate:
    """c^2: excess loss on real text of synthetic text alone over real text alone, nats per token.

    At the largest size, paired over the seeds, with Student's interval. In regression it is the
    expected squared error of the synthetic labels (arXiv 2410.04840); here it is the loss that
    corresponds, of models of this size trained on this much text.

    Raises:
      ValueError: no model was trained on synthetic text alone.
    """
    if curves.shares[-1] != 1:
        raise ValueError(f"curves.shares must end with 1, not {curves.shares}")
    return mean_and_error(curves.rise_PRB[-1, :, -1])


def _checked(config: ConfigDict) -> ConfigDict:
    """A copy of the config, with its axes in order."""
    config = config.copy_and_resolve_references()
    members = config.members
    for name in ("rate", "duration", "seed"):
        members[name] = tuple(sorted(set(members[name])))
    if members.kind != ("stream",) or config.noise.budget != "total":
        raise UserError(
            "mixtures need config.members.kind=('stream',) and config.noise.budget=total, not "
            f"{members.kind} and {config.noise.budget!r}"
        )
    if members.rate[0] != 0:
        raise UserError(
            f"config.members.rate must hold 0, real text alone, not only {members.rate}"
        )
    if len(members.seed) < 2:
        raise UserError(
            f"config.members.seed must hold at least 2 seeds, not {members.seed}: intervals are "
            "over seeds"
        )
    for name in ("learning_rate", "weight_decay"):
        if len(members[name]) > 1:
            raise UserError(f"config.members.{name} must hold one value, not {members[name]}")
    if (np.diff(_tokens(config)) == 0).any():
        raise UserError(
            f"two of config.members.duration, {members.duration}, are the same number of steps of "
            f"config.train.steps={config.train.steps}: take them further apart, or more steps"
        )
    return config


def _numbers(members: Members, config: ConfigDict, weight: float) -> NDArray[np.int64]:
    """The numbers (P, R, B) of the members of a weight; at share 0 those of the only one."""
    axes = config.members
    known = {
        (m["rate"], m["seed"], m["duration"]): i
        for i, m in enumerate(members)
        if m["rate"] == 0 or m["noise_weight"] == weight
    }
    return np.array(
        [[[known[p, r, b] for b in axes.duration] for r in axes.seed] for p in axes.rate]
    )


def _tokens(config: ConfigDict) -> Array:
    row = config.train.batch_size * config.data.length
    steps = [steps_of({"duration": duration}, config) for duration in config.members.duration]
    return row * np.array(steps, np.float64)


def _is_final(row: dict[str, Any], config: ConfigDict) -> bool:
    return row["step"] == config.train.steps and any(key.startswith("eval/") for key in row)
