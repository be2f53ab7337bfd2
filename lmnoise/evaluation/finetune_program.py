"""One compiled program for members that start from the same parameters: rows, steps, results."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmnoise.data import stream
from lmnoise.data.corruption import Corruption
from lmnoise.data.stream import Windows
from lmnoise.data.tasks import Rows
from lmnoise.errors import Stopped
from lmnoise.models.transformer import LanguageModel
from lmnoise.training import lora
from lmnoise.training import mesh as meshes
from lmnoise.training.loop import Cost, LoopConfig, fit
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays
from lmnoise.training.processes import StopSignals
from lmnoise.training.spikes import SpikeConfig
from lmnoise.training.step import TrainState

# Steps from which a population is saved at every quarter: fewer are sooner done again than saved.
_LONG = 400
# FLOPs of a dispatch up to which it may be several steps: more would keep a signal waiting.
_SHORT = 1e11

type Member = dict[str, Any]


def _whole(steps: float, dispatch: int) -> int:
    """Steps rounded up to whole dispatches."""
    return math.ceil(steps / dispatch) * dispatch


class Batches:
    """The rows of step k: those of the task, and with windows those of pre-training text to replay.

    A seed has its own order of rows, each epoch permuted anew.
    """

    def __init__(
        self, rows: Rows, windows: Windows | None, seeds: Sequence[int], batch_size: int, mesh: Mesh
    ):
        part, parts = meshes.part_of_batch(mesh, batch_size)
        self._rows, self.batch_size = rows, batch_size
        self._own = range(part * batch_size // parts, (part + 1) * batch_size // parts)
        count = len(rows.tokens)
        self._orders = [stream.keyed_order(0, count, f"{seed}/task") for seed in seeds]
        self._replayed = windows and stream.batches(
            windows,
            seeds=seeds,
            batch_size=batch_size,
            process_index=part,
            process_count=parts,
        )

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens` (R, b, S+1), `weights` (R, b, S), with windows also `noise` (R, b, S+1)."""
        begin = index * self.batch_size
        chosen_RB = np.array([[order[begin + row] for row in self._own] for order in self._orders])
        batch = {"tokens": self._rows.tokens[chosen_RB], "weights": self._rows.weights[chosen_RB]}
        if self._replayed is not None:
            batch["noise"] = self._replayed[index]["tokens"]
        return batch


def as_given(batch: dict[str, Any], member: Member) -> dict[str, Any]:
    """The rows of the task with their weights."""
    del member
    return {"tokens": batch["tokens"], "weights": batch["weights"], "groups": {}}


class Replay:
    """Takes a share `rate` of the rows from pre-training text, as noise of the kind "stream".

    The targets of such a row weigh alike, and together as much as those of the task's mean row:
    else a row of text would outweigh a hundred rows of which only a label is scored.
    """

    def __init__(self, vocab_size: int, rows: Rows):
        self._mixture = Corruption(vocab_size, ("stream",))
        self._weight = float(rows.weights.mean())

    def __call__(self, batch: dict[str, Any], member: Member) -> dict[str, Any]:
        mixed = self._mixture({k: batch[k] for k in ("tokens", "noise", "index")}, member)
        task_B1 = mixed["groups"]["clean"]
        weights_BS = jnp.where(task_B1, batch["weights"], self._weight)
        groups = {"task": task_B1, "replay": ~task_B1}
        return {"tokens": mixed["tokens"], "weights": weights_BS, "groups": groups}


def trained_shapes(model: LanguageModel, rank: int) -> Any:
    """Shapes of what trains: the parameters, or low-rank updates of them."""
    base = jax.eval_shape(model.init, jax.random.key(0))
    if not rank:
        return base
    return jax.eval_shape(lambda key: lora.init(key, base, rank), jax.random.key(0))


class Program:
    """Populations of one size over any parameters, of which each trains all or low-rank updates.

    Args:
      model: whose parameters they are.
      rank: of the updates, the largest of all members'; 0 trains all parameters.
      optimizer: schedule and AdamW.
      transform: see `Population`.
      members: of the first population; the others have the same names.
      batches: the rows of each step.
      length: targets a row.
      mesh: devices.
      group: members at once, see `Population`.
    """

    def __init__(
        self,
        model: LanguageModel,
        rank: int,
        *,
        optimizer: OptimizerConfig,
        transform: Callable[..., Any],
        members: Sequence[Member],
        batches: Batches,
        length: int,
        mesh: Mesh,
        group: int,
    ):
        def loss_of_updates(base, updates, batch, key):
            return model.loss(lora.merge(base, updates), batch, key)

        self._rank, self._batches, self.steps = rank, batches, optimizer.steps
        tokens = batches.batch_size * length * len(members)
        self._cost = Cost(tokens, tokens * model.flops_per_token(length))
        base = trained_shapes(model, 0)
        self._population = Population(
            init=(lambda key: lora.init(key, base, rank)) if rank else model.init,
            loss=loss_of_updates if rank else model.loss,
            transform=transform,
            optimizer=optimizer,
            members=member_arrays(members),
            mesh=mesh,
            group=group,
            shared=base if rank else None,
        )
        self._one = jax.jit(
            lambda params, base, m: self._merged(jax.tree.map(lambda a: a[m], params), base)
        )

    @property
    def count(self) -> int:
        """Members of a population."""
        return self._population.count

    def _merged(self, params: Any, base: Any) -> Any:
        return lora.merge(base, params) if self._rank else params

    def train(
        self,
        members: Sequence[Member],
        base: Any,
        *,
        workdir: Path,
        record: dict[str, Any],
        title: str,
        stop: StopSignals,
    ) -> TrainState:
        """Trains up to `count` members from the parameters `base`, or goes on in `workdir`.

        Too few are filled up with one that trains for a single step, as a population of another
        size would be another program. The states are saved where a signal stops the training and,
        of a population of `_LONG` steps or more, at every quarter; never at the end.

        Raises:
          Stopped: a signal came before the last step; what was reached is saved.
          UserError: `workdir` belongs to another record, or the disk is full.
        """
        idle = [members[-1] | {"steps": 1}] * (self.count - len(members))
        population = self._population.using(
            member_arrays([*members, *idle]), base if self._rank else None
        )
        # Members end by themselves, so that whole dispatches let all populations run one program.
        dispatch = 10 if 10 * self._cost.flops < _SHORT else 1
        steps = _whole(max(member["steps"] for member in members), dispatch)
        states = fit(
            population,
            self._batches,
            LoopConfig(
                steps=steps,
                log_every=0,
                checkpoint_every=_whole(steps / 4, dispatch) if steps >= _LONG else 0,
                keep=1,
                steps_per_dispatch=dispatch,
                save_end=False,
                spikes=SpikeConfig(rewind=False),
            ),
            workdir=workdir,
            evaluate=lambda params: [],
            cost=self._cost,
            config_record=record,
            title=title,
            start=None if self._rank else base,
            stop=stop,
        )
        if states is None:
            raise Stopped
        return states

    def measure(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
        """Compiles `measure(params, base, batch)`: `function` of each member's whole parameters."""
        of_all = self._population.map(
            lambda params, operands: function(self._merged(params, operands[0]), operands[1])
        )
        return lambda params, base, batch: of_all(params, (base if self._rank else None, batch))

    def one(self, params: Any, base: Any, member: int) -> Any:
        """The whole parameters of one member."""
        return self._one(params, base if self._rank else None, np.int32(member))
