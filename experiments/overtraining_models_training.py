"""Pre-training of the over-training study: budgets that are each annealed, and one long run."""

import dataclasses
import itertools

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lmnoise import config as configs
from lmnoise.assemble import members_of, steps_of
from lmnoise.checkpoints import Checkpoint, open_checkpoint
from lmnoise.data.packing import Packed, open_packed
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation.language import Source
from lmnoise.train import train

SERIES = {
    "budgets": "each budget annealed to zero",
    "one run": "checkpoints of one run (confounded by the learning rate)",
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A pre-trained model of one series; `checkpoint.tokens` are those that it has seen."""

    series: str
    seed: int
    checkpoint: Checkpoint

    @property
    def tokens(self) -> float:
        return self.checkpoint.tokens


def training_config(config: ConfigDict) -> ConfigDict:
    """The part of the study's config that `lmnoise.train` knows: the budgets."""
    own = configs.default_config()
    own.update({name: config[name].to_dict() for name in own})
    return own


def one_run_config(config: ConfigDict) -> ConfigDict:
    """The config of the single run whose checkpoints are a series of their own."""
    own, section = training_config(config), config.one_run
    every = round(section.first * own.train.steps)
    own.members.duration = (1.0,)
    own.optimizer.schedule = section.schedule
    own.train.update(dict(checkpoint_every=every, keep_every=every))
    return own


def check(config: ConfigDict) -> None:
    """Refuses budgets and seeds that the study could not compare."""
    members, steps = config.members, config.train.steps
    durations = members.duration
    if len(durations) < 3 or any(a >= b for a, b in itertools.pairwise(durations)):
        raise UserError(
            f"config.members.duration must hold at least 3 shares that rise, not {durations}"
        )
    if durations[-1] != 1:
        raise UserError(f"config.members.duration must end with 1.0, not {durations[-1]}")
    if len(set(members.seed)) < 2 or len(set(members.seed)) < len(members.seed):
        raise UserError(
            f"config.members.seed must hold at least 2 seeds, each once, not {members.seed}: "
            "intervals are over seeds"
        )
    for name in ("kind", "rate", "learning_rate", "weight_decay"):
        if len(members[name]) > 1 or (name == "rate" and members.rate[0]):
            raise UserError(
                f"config.members.{name} is {members[name]}: this study compares budgets and seeds "
                "alone, without noise in the text"
            )
    every = config.one_run.first * steps
    if not 0 < config.one_run.first <= 1 or every != round(every) or steps % round(every):
        raise UserError(
            f"config.one_run.first {config.one_run.first} must be one over a whole number and a "
            f"whole number of the {steps} steps of config.train.steps"
        )
    if config.one_run.first not in durations:
        raise UserError(
            f"config.one_run.first {config.one_run.first} must be one of config.members.duration, "
            f"{durations}: both series are drawn over the same budgets"
        )


def pre_train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains both series, or goes on with them.

    Raises:
      Stopped: a signal came; the run is saved.
    """
    for name, own in _runs(config).items():
        _, states = train(own, workdir / name, f"pre-training, {name.replace('_', ' ')}")
        if states is None:
            raise Stopped


def open_all(config: ConfigDict, workdir: epath.Path) -> list[Trained]:
    """The models that were trained, by series, seed and tokens; all are held in memory."""
    data_dir, found = config.data.data_dir, []
    budgets, one_run = _runs(config).values()
    for index, member in enumerate(members_of(budgets)):
        checkpoint = open_checkpoint(f"{workdir / 'budgets'}#{index}", data_dir)
        found.append(Trained("budgets", member["seed"], checkpoint))
    for index, member in enumerate(members_of(one_run)):
        for step in one_run_steps(config):
            place = workdir / "one_run" / "checkpoints" / str(step)
            checkpoint = open_checkpoint(f"{place}#{index}", data_dir)
            found.append(Trained("one run", member["seed"], checkpoint))
    order = list(SERIES)
    return sorted(found, key=lambda t: (order.index(t.series), t.seed, t.tokens))


def _runs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The run of each series, by its folder."""
    return {"budgets": training_config(config), "one_run": one_run_config(config)}


def one_run_steps(config: ConfigDict) -> list[int]:
    """Steps of the one run that have the tokens of a budget."""
    shares = [share for share in config.members.duration if share >= config.one_run.first]
    steps = [steps_of({"duration": share}, config) for share in shares]
    every = round(config.one_run.first * config.train.steps)
    return [step for step in steps if step % every == 0]


def epochs(config: ConfigDict) -> float:
    """How often the largest budget reads the corpus."""
    tokens = config.train.steps * config.train.batch_size * config.data.length
    return tokens / len(packed(config, "train").tokens)


def frequencies_loss(config: ConfigDict, heldout: Source) -> float:
    """Loss on held-out text of the frequencies of tokens alone, nats per token.

    What a model has learned before it uses the context at all. The frequencies are those of the
    first ten million tokens that are trained on, each counted once more.
    """
    text = packed(config, "train")
    counts_V = np.bincount(text.tokens[:10_000_000], minlength=text.vocab_size) + 1.0
    logs_V = np.log(counts_V / counts_V.sum())
    weights_N = np.concatenate([batch["weights"].ravel() for batch in heldout.batches])
    targets_N = np.concatenate([batch["tokens"][:, 1:].ravel() for batch in heldout.batches])
    return float(-np.average(logs_V[targets_N], weights=weights_N))


def packed(config: ConfigDict, split: str) -> Packed:
    """One split of the corpus of pre-training."""
    data = config.data
    return open_packed(data.source, split, data_dir=data.data_dir, tokenizer=data.tokenizer)


def digest_of(text: Packed) -> str:
    """SHA-256 of the tokens, for results that depend on them."""
    return text.meta["splits"][text.split]["sha256"]
