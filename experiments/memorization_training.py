"""Fine-tuning in a given order of examples: the loss of each at every sight, held-out text on
the way, and what is asked of the parameters at the end."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise import keys
from lmnoise.analyze.importance import digest_of
from lmnoise.analyze.subject import Subject
from lmnoise.data.stream import Windows
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation import calibration
from lmnoise.training import checkpoint
from lmnoise.training.loop import Cost, LoopConfig, fit
from lmnoise.training.mesh import put_whole
from lmnoise.training.metrics import read_rows
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays
from lmnoise.training.spikes import SpikeConfig

type Result = dict[str, Any]

DIGITS = 5  # of a loss in the stored results


@dataclasses.dataclass(frozen=True)
class Training:
    """One program: what all orders and all seeds of a population share.

    Attributes:
      steps, batch_size: of one run.
      learning_rate: the peak, of AdamW without weight decay.
      schedule, cycle_steps: as of `OptimizerConfig`.
      evaluate_every: steps between two looks at the held-out text.
      checkpoint_every: steps between two checkpoints; 0 for a stop or the end alone.
      sights: whether the loss of every row is kept at every step.
    """

    steps: int
    batch_size: int
    learning_rate: float
    schedule: str
    cycle_steps: int = 0
    evaluate_every: int = 0
    checkpoint_every: int = 0
    sights: bool = False

    @property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            steps=self.steps,
            schedule=self.schedule,
            cycle_steps=self.cycle_steps,
            warmup_fraction=0.1,
        )


@dataclasses.dataclass(frozen=True)
class Rows:
    """What R seeds are trained on.

    Attributes:
      tokens_RNT: the examples of each seed.
      order_RKB: which of them each step takes.
      controls_RCT: windows that no step takes, whose loss is measured on the way.
    """

    tokens_RNT: np.ndarray
    order_RKB: np.ndarray
    controls_RCT: np.ndarray | None = None

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`, tokens (R, B, T)."""
        order_RB1 = self.order_RKB[:, index, :, None]
        return {"tokens": np.take_along_axis(self.tokens_RNT, order_RB1, axis=1)}


def _by_row(batch: dict[str, Any], member: dict[str, Any]) -> dict[str, Any]:
    """Every token counts, and each row is a group of its own."""
    del member
    rows_BB = np.eye(batch["tokens"].shape[0], dtype=np.float32)
    groups = {f"row{i}": rows_BB[i][:, None] for i in range(len(rows_BB))}
    return {"tokens": batch["tokens"], "weights": jnp.ones((1, 1)), "groups": groups}


def _together(batch: dict[str, Any], member: dict[str, Any]) -> dict[str, Any]:
    """Every token counts."""
    return _by_row(batch, member) | {"groups": {}}


class Bench:
    """A checkpoint to fine-tune, with its compiled programs.

    Args:
      subject: the checkpoint and its held-out text.
    """

    def __init__(self, subject: Subject):
        self.subject = subject
        self._programs: dict[tuple[Training, int], Population] = {}
        self._looks: dict[tuple[str, int], Any] = {}  # by what is looked at, and members
        loss = subject.model.loss
        self._row_losses = jax.jit(
            lambda params, tokens_BT: loss(params, {"tokens": tokens_BT}, None).mean(1)
        )

    def examples(self, name: str, count: int, seed: int, purpose: str) -> np.ndarray:
        """`count` windows of a train split (count, S + 1), drawn without replacement."""
        windows = Windows(self.subject.packed(name, "train"), self.subject.data.length)
        if count > len(windows):
            raise UserError(
                f"{name} has {len(windows)} windows of {windows.length} tokens, and {count} are "
                "asked for: take fewer examples or a larger corpus"
            )
        key = keys.fold(jax.random.key(seed), purpose, name)
        chosen_N = np.asarray(jax.random.permutation(key, len(windows)))[:count]
        return windows.gather(chosen_N)["tokens"]

    def row_losses(self, tokens_NT: np.ndarray) -> np.ndarray:
        """The loss of each row under the checkpoint as it is, (N,)."""
        size = self.subject.data.batch_size
        found = []
        for begin in range(0, len(tokens_NT), size):
            index_B = np.minimum(np.arange(begin, begin + size), len(tokens_NT) - 1)
            tokens_BT = put_whole(self.subject.mesh, tokens_NT[index_B], batch_axis=0)
            found.append(np.asarray(self._row_losses(self.subject.params, tokens_BT)))
        return np.concatenate(found)[: len(tokens_NT)]

    def tune(
        self,
        training: Training,
        rows: Rows,
        setting: dict[str, Any],
        title: str,
        after: Callable[[Population, Any], Result] | None = None,
    ) -> Result:
        """Trains every seed from the checkpoint; what JSON can hold.

        Args:
          training: the program.
          rows: the examples and their order.
          setting: all that this run depends on besides the checkpoint.
          title: of the progress bar.
          after: `after(population, params)` is kept beside the rest.

        Returns:
          `heldout`: rows of `calibration.evaluator` with `step`, from 0 on; with `sights`,
          `losses` (R, K, B); and `after`.

        Raises:
          Stopped: a signal came; the training is saved and goes on with the same command.
        """
        population = self._program(training, len(rows.tokens_RNT))
        evaluate = self._evaluator(population, rows)
        subject = self.subject
        setting = subject.identity | setting | dataclasses.asdict(training)
        workdir = subject.workdir / "fine-tuning" / digest_of(setting)
        checkpoint.claim(workdir, setting)
        heldout = [
            {"step": 0} | row
            for row in evaluate(population.start(subject.checkpoint.params).params)
        ]
        states = fit(
            population,
            rows.batch,
            _intervals(training),
            workdir=workdir,
            evaluate=evaluate,
            cost=self._cost(training, population.count),
            config_record=setting,
            title=title,
            start=subject.checkpoint.params,
        )
        if states is None:
            raise Stopped
        found = read_rows(workdir)
        heldout += [row for row in found if any(key.endswith("/accuracy") for key in row)]
        result = {"heldout": _rounded(heldout)}
        if training.sights:
            result["losses"] = _sights(found, training, population.count)
        if after is not None:
            result["after"] = after(population, states.params)
        shutil.rmtree(workdir)
        return result

    def _program(self, training: Training, members: int) -> Population:
        """The population of a training, compiled once whatever the order and the examples."""
        training = dataclasses.replace(training, evaluate_every=0, checkpoint_every=0)
        if (training, members) not in self._programs:
            subject = self.subject
            own = {"learning_rate": training.learning_rate, "weight_decay": 0.0}
            self._programs[training, members] = Population(
                init=subject.model.init,
                loss=subject.model.loss,
                transform=_by_row if training.sights else _together,
                optimizer=training.optimizer,
                members=member_arrays([{"seed": r, "stream": r} | own for r in range(members)]),
                mesh=subject.mesh,
            )
        return self._programs[training, members]

    def token_losses(self, population: Population) -> Callable[[Any, Any], Any]:
        """`losses(params, tokens_BT)` of all members, (M, B, S); one program for all trainings."""
        loss = self.subject.model.loss
        return self._look(
            "losses",
            population,
            lambda: population.map(lambda own, tokens_BT: loss(own, {"tokens": tokens_BT}, None)),
        )

    def _evaluator(self, population: Population, rows: Rows) -> Callable[[Any], list[Result]]:
        """The rows of `calibration.evaluator`, with controls those of the first source alone."""
        subject, loss = self.subject, self.subject.model.loss
        sources = subject.sources if rows.controls_RCT is None else subject.sources[:1]
        text = self._look(
            f"text {len(sources)}",
            population,
            lambda: calibration.evaluator(population, subject.model, sources),
        )
        if rows.controls_RCT is None:
            return text

        def of_member(own, batch):
            params, tokens_CT = own
            del batch
            return loss(params, {"tokens": tokens_CT}, None).mean(1)

        controls = self._look("controls", population, lambda: population.map(of_member))
        tokens_RCT = put_whole(population.mesh, rows.controls_RCT, batch_axis=None)

        def evaluate(params):
            losses_RC = np.asarray(controls((params, tokens_RCT), None), np.float64)
            return [
                row | {f"control/{i}": float(value) for i, value in enumerate(own)}
                for row, own in zip(text(params), losses_RC, strict=True)
            ]

        return evaluate

    def _look(self, name: str, population: Population, build: Callable[[], Any]) -> Any:
        """What looks at members' parameters depends on how many there are, not on the training."""
        key = name, population.count
        if key not in self._looks:
            self._looks[key] = build()
        return self._looks[key]

    def _cost(self, training: Training, members: int) -> Cost:
        length = self.subject.data.length
        tokens = training.batch_size * length * members
        return Cost(tokens, tokens * self.subject.model.flops_per_token(length))


def _intervals(training: Training) -> LoopConfig:
    every = training.evaluate_every
    return LoopConfig(
        steps=training.steps,
        log_every=1 if training.sights else every,
        evaluate_every=every,
        checkpoint_every=training.checkpoint_every,
        keep=1,
        save_end=False,
        # Another order of the data would be another experiment.
        spikes=SpikeConfig(max_rollbacks=0),
    )


def _sights(found: Sequence[Result], training: Training, members: int) -> list[Any]:
    """The losses (R, K, B) from the rows of the metrics."""
    shape = (members, training.steps, training.batch_size)
    losses_RKB = np.full(shape, np.nan)
    for row in found:
        if "loss/row0" in row:
            own = [row[f"loss/row{i}"] for i in range(training.batch_size)]
            losses_RKB[row["member"], row["step"] - 1] = own
    return np.round(losses_RKB, DIGITS).tolist()


def _rounded(rows: Sequence[Result]) -> list[Result]:
    return [
        {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]


def in_groups(
    bench: Bench,
    seeds: Sequence[int],
    together: bool,
    setting: dict[str, Any],
    work: Callable[[list[int], dict[str, Any]], Result],
    title: str,
) -> list[Result]:
    """`work(seeds, setting)` for all seeds as one population, or for one seed after the other.

    Stored as it is found, so that a study that was stopped goes on.
    """
    groups = [list(seeds)] if together else [[seed] for seed in seeds]
    return bench.subject.compute(
        [setting | {"seeds": group} for group in groups],
        lambda own: work(own["seeds"], own),
        title,
    )


def fixed_order(examples: int, training: Training) -> np.ndarray:
    """The rows of every step (K, B) in the same order in every epoch."""
    return _steps(np.tile(np.arange(examples), _epochs(examples, training)), training)


def shuffled_order(examples: int, training: Training, seed: int) -> np.ndarray:
    """The rows of every step (K, B), each epoch in an order of its own."""
    key = functools.partial(keys.fold, jax.random.key(seed), "reshuffled")
    orders = [
        np.asarray(jax.random.permutation(key(e), examples))
        for e in range(_epochs(examples, training))
    ]
    return _steps(np.concatenate(orders), training)


def _epochs(examples: int, training: Training) -> int:
    return -(-training.steps * training.batch_size // examples)


def _steps(order_T: np.ndarray, training: Training) -> np.ndarray:
    count = training.steps * training.batch_size
    return order_T[:count].reshape(training.steps, training.batch_size)
