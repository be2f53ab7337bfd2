"""Full-batch training of linear models by the project's own step, many repetitions at once."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import init_state, make_train_step


class Model(Protocol):
    """One of `lmnoise.models.regression`."""

    def init(self, key: jax.Array) -> Any: ...

    def loss(self, params: Any, batch: dict[str, Any], key: jax.Array) -> jax.Array: ...


def start(model: Model, seed_R: jax.Array) -> Any:
    """The parameters that `train` starts from with these seeds, with a leading axis R."""
    optimizer = OptimizerConfig(steps=1)
    return jax.vmap(lambda seed: init_state(model.init, optimizer, {"seed": seed}).params)(seed_R)


def train(
    model: Model,
    optimizer: OptimizerConfig,
    data: dict[str, jax.Array],
    *,
    seed_R: jax.Array,
    learning_rate_R: jax.Array,
) -> tuple[Any, jax.Array]:
    """Trains R models, each on all of its own data at every one of `optimizer.steps` steps.

    Args:
      model: the same for all.
      optimizer: weight decay is 0; penalties are part of the model's loss.
      data: `x` (R, N, D), `y` (R, N) or (R, N, O), and `weights` (R, N) of the examples.
      seed_R: int32; what the parameters start from depends on it.
      learning_rate_R: peaks of the schedule.

    Returns:
      The parameters after the last step, with a leading axis R, and the mean loss of the data at
      every step before its update, (R, T).
    """
    step = make_train_step(model.loss, lambda batch, _: batch | {"groups": {}}, optimizer)

    @jax.jit
    @jax.vmap
    def fit(batch, member):
        def body(state, _):
            state, metrics = step(state, batch, member)
            return state, metrics["loss"][0] / metrics["loss"][1]

        state = init_state(model.init, optimizer, member)
        state, losses = jax.lax.scan(body, state, length=optimizer.steps)
        return state.params, losses

    member = {
        "seed": seed_R,
        "learning_rate": learning_rate_R,
        "weight_decay": jnp.zeros_like(learning_rate_R),
    }
    return fit(data, member)
