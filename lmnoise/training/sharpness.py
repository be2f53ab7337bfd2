"""Sharpness-aware minimisation (arXiv 2010.01412): the gradient where the loss is about worst."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmnoise import tree
from lmnoise.training.optimizer import OptimizerConfig


def still(config: OptimizerConfig, params: Any, frozen: Any = None) -> Any:
    """What training does not move, bools that broadcast to the parameters.

    Args:
      config: whose `learning_rate_table` freezes whole leaves.
      params: parameters, for their names.
      frozen: bool arrays like `params`, or None.
    """
    whole = tree.map_named(
        lambda name, _: jnp.array(tree.lookup(config.learning_rate_table, name) is None), params
    )
    return whole if frozen is None else jax.tree.map(jnp.logical_or, whole, frozen)


def minimised(
    gradient: Callable[[Any], Any], params: Any, grads: Any, radius: jax.Array, still: Any
) -> Any:
    """The gradient at `params + radius * grads / ||grads||_2`; at radius 0 `grads` itself.

    The sharpness is that of the loss over what is trained: entries that stand still take no part
    in the ascent, nor in its norm.

    Args:
      gradient: of the loss, a function of the parameters alone.
      params: where training is.
      grads: the gradient there.
      radius: (), at least 0; at 0 nothing is computed, unless members run under `vmap`.
      still: see the function of that name.
    """

    def ascended(grads):
        moving = jax.tree.map(lambda s, g: jnp.where(s, 0.0, g), still, grads)
        norm = optax.tree.norm(moving)
        size = radius / jnp.where(norm > 0, norm, 1.0)
        return gradient(jax.tree.map(lambda p, g: p + size * g, params, moving))

    return jax.lax.cond(radius > 0, ascended, lambda grads: grads, grads)
