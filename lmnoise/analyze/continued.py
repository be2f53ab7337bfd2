"""Pre-training that goes on from a checkpoint: for the change rule, and to see what recovers."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmnoise.analyze.subject import Subject
from lmnoise.data.stream import Windows, batches
from lmnoise.errors import Stopped
from lmnoise.training import checkpoint
from lmnoise.training.loop import Cost, LoopConfig, fit
from lmnoise.training.mesh import check_divisible
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays
from lmnoise.training.step import TrainState


def _plain(batch: dict[str, Any], member: dict[str, Any]) -> dict[str, Any]:
    """Every token counts, and no group is told apart."""
    del member
    return {"tokens": batch["tokens"], "weights": jnp.ones((1, 1)), "groups": {}}


@dataclasses.dataclass(frozen=True)
class Continued:
    """Runs that begin with the same parameters and see the same batches.

    Attributes:
      subject: whose model is trained, on its mesh.
      training: `steps`, `batch_size`, `learning_rate`, `weight_decay`, `seed`, and
        `checkpoint_every` steps, by default a quarter of them.
      frozen: one pytree of bool arrays a member, or None where no entry is frozen.
    """

    subject: Subject
    training: ConfigDict
    frozen: Sequence[Any] = (None,)

    def members(self) -> dict[str, Any]:
        """Hyper-parameters of the members, which differ in what is frozen alone."""
        training = self.training
        own = {
            "seed": training.seed,
            "stream": 0,
            "learning_rate": training.learning_rate,
            "weight_decay": training.weight_decay,
        }
        return member_arrays([own | mask for mask in self._masks()])

    def population(self) -> Population:
        """The compiled step; `Population.using` takes the members of other rates or seeds."""
        training, subject = self.training, self.subject
        check_divisible(subject.mesh, members=len(self.frozen), batch_size=training.batch_size)
        return Population(
            init=subject.model.init,
            loss=subject.model.loss,
            transform=_plain,
            optimizer=OptimizerConfig(
                steps=training.steps, schedule=training.schedule, warmup_fraction=0.1
            ),
            members=self.members(),
            mesh=subject.mesh,
        )

    def _masks(self) -> list[dict[str, Any]]:
        """What each member has besides: nothing at all if nothing is frozen in any."""
        if all(mask is None for mask in self.frozen):
            return [{} for _ in self.frozen]
        free = jax.tree.map(lambda a: np.zeros(a.shape, bool), self.subject.checkpoint.params)
        return [{"frozen": free if mask is None else mask} for mask in self.frozen]

    def run(
        self,
        population: Population,
        source: str,
        start: Any,
        workdir: Path,
        record: dict[str, Any],
        title: str,
        evaluate: Callable[[Any], list[dict[str, Any]]] = lambda params: [],
    ) -> TrainState:
        """Trains from `start`, or goes on from the checkpoint in `workdir`; the final states.

        Args:
          population: what `population()` built; it serves any corpus.
          source: the corpus, whose train split is read.
          start: parameters without the axis of the members.
          workdir: of checkpoints and metrics.
          record: all that the run depends on, JSON; another record in `workdir` is an error.
          title: of the progress bar.
          evaluate: parameters of the population to rows for the metrics.

        Raises:
          Stopped: a signal came; the run is saved.
          UserError: `workdir` belongs to another record, or the corpus is too short.
        """
        training, subject = self.training, self.subject
        checkpoint.claim(workdir, record)
        packed = subject.packed(source, "train")
        stream = batches(
            Windows(packed, subject.data.length),
            seeds=[training.seed],
            batch_size=training.batch_size,
        )
        tokens = training.batch_size * subject.data.length * population.count
        cost = Cost(tokens, tokens * subject.model.flops_per_token(subject.data.length))
        every = training.evaluate_every
        states = fit(
            population,
            lambda k: {"tokens": stream[k]["tokens"]},
            LoopConfig(
                steps=training.steps,
                log_every=every,
                evaluate_every=every,
                checkpoint_every=training.get("checkpoint_every", max(1, training.steps // 4)),
                keep=1,
                steps_per_dispatch=1,
            ),
            workdir=workdir,
            evaluate=evaluate,
            cost=cost,
            config_record=record,
            title=title,
            start=start,
        )
        if states is None:
            raise Stopped
        return states
