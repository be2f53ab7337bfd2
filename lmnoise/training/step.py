"""One optimisation step, generic over the loss; and many of them, for many members, at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmnoise import keys
from lmnoise.training import sharpness
from lmnoise.training.optimizer import OptimizerConfig, make_optimizer, schedule

type Batch = dict[str, Any]
type Member = dict[str, Any]
type Loss = Callable[[Any, Batch, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """Everything that a step changes: `step` () int32, float32 parameters, optimizer state."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(
    init: Callable[[jax.Array], Any], optimizer: OptimizerConfig, member: Member
) -> TrainState:
    """A fresh state; the parameters depend on the member's seed alone."""
    return start_state(init(keys.fold(jax.random.key(member["seed"]), "parameters")), optimizer)


def start_state(params: Any, optimizer: OptimizerConfig) -> TrainState:
    """The state at step 0 of training that starts from these parameters."""
    transformation = make_optimizer(optimizer, params, 0.0, 0.0)
    return TrainState(jnp.zeros((), jnp.int32), params, transformation.init(params))


def make_train_step(
    loss: Loss,
    transform: Callable[[Batch, Member], Batch],
    optimizer: OptimizerConfig,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch, Member], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `train_step(state, batch, member) -> (state, metrics)`.

    The objective is the mean of the loss over the batch's weights, whatever the number of
    micro-batches.

    Args:
      loss: `loss(params, batch, key) -> loss_BS`, per example or per token.
      transform: `transform(batch, member) -> batch` with `weights` and `groups` (named masks),
        both broadcastable to the loss, and a leading axis B on every leaf.
      optimizer: its `learning_rate` and `weight_decay` come from the member. If the member has
        `frozen`, bool arrays like the parameters, see `make_optimizer`; if it has `sam_radius`,
        see `sharpness`; if it has `steps`, the schedule is shrunk to them, and from then on the
        state stays as it is, bit for bit, and no metric counts anything.
      accumulate: micro-batches a step; it divides B.

    Returns:
      The step. Each metric is a float32 pair (sum, count), so that means over steps stay
      weighted: `loss`, one per group (`loss/<group>`), `grad_norm`, `learning_rate`.
    """

    at = _mean_gradient(loss, accumulate)

    def train_step(state, batch, member):
        key = keys.fold(jax.random.key(member["seed"]), "step", state.step)
        batch = transform(batch, member)
        grads, sums = at(state.params, batch, key)
        frozen, steps = member.get("frozen"), member.get("steps")
        if "sam_radius" in member:
            still = sharpness.still(optimizer, state.params, frozen)
            grads = sharpness.minimised(
                lambda params: at(params, batch, key)[0],
                state.params, grads, member["sam_radius"], still,
            )  # fmt: skip
        transformation = make_optimizer(
            optimizer,
            state.params,
            member["learning_rate"],
            member["weight_decay"],
            frozen,
            steps,
        )
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = member["learning_rate"] * schedule(optimizer)(state.step, steps)
        one = jnp.ones((), jnp.float32)
        metrics = sums | {
            "grad_norm": jnp.stack([optax.tree.norm(grads), one]),
            "learning_rate": jnp.stack([rate, one]),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return functools.partial(_until_its_end, train_step)


def _until_its_end(train_step, state, batch, member):
    """The step of a member that has not had all of its `steps`; else its state and no metrics."""
    if "steps" not in member:
        return train_step(state, batch, member)
    _, shapes = jax.eval_shape(train_step, state, batch, member)
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.cond(
        state.step < member["steps"],
        train_step,
        lambda state, batch, member: (state, nothing),
        state, batch, member,
    )  # fmt: skip


def _mean_gradient(loss: Loss, accumulate: int) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Builds `at(params, batch, key)`: gradient of the batch's mean loss, and sums for metrics."""

    def weighted_sums(params, batch, key):
        losses = loss(params, batch, key)
        weights = jnp.broadcast_to(batch["weights"], losses.shape)
        sums = {"loss": _pair(losses, weights)}
        for name, mask in batch["groups"].items():
            sums[f"loss/{name}"] = _pair(losses, weights * mask)
        return sums["loss"][0], sums

    gradient = jax.grad(weighted_sums, has_aux=True)

    def at(params, batch, key):
        if accumulate == 1:
            grads, sums = gradient(params, batch, key)
        else:
            grads, sums = _accumulated(gradient, params, batch, key, accumulate)
        # Of a batch without any weight (every row dropped) the gradient is zero, not 0 / 0.
        count = sums["loss"][1]
        return jax.tree.map(lambda g: g / jnp.where(count > 0, count, 1.0), grads), sums

    return at


def _pair(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.stack([(values * weights).sum(), weights.sum()])


def _accumulated(gradient, params, batch, key, accumulate):
    """Sums of gradients and metrics over micro-batches, one after the other."""

    def split(leaf):
        # Micro-batches interleave the rows, so that rows sharded over devices stay so.
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    def add(carry, operands):
        part, index = operands
        return jax.tree.map(jnp.add, carry, gradient(params, part, keys.fold(key, index))), None

    parts = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(accumulate)))[0]
