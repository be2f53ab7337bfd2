"""Memory that a decoder's step takes on top of its parameters, from shapes alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from lmnoise.models.transformer import LanguageModel


def saved_bytes(function: Callable[[Any, Any], jax.Array], params: Any, batch: Any) -> int:
    """Bytes that the gradient of `function(params, batch)` keeps from the forward pass.

    Args:
      function: gives losses, whose gradient is taken by `params`.
      params, batch: arrays or their shapes; `params` themselves are not counted.
    """

    def residuals(params, batch):
        return jax.tree.leaves(jax.vjp(lambda params: function(params, batch), params)[1])

    jaxpr = jax.make_jaxpr(residuals)(params, batch).jaxpr
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)} - set(jaxpr.invars)
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in kept)


def running_bytes(
    model: LanguageModel, length: int, rows: int, fsdp: int = 1, parts: int = 1
) -> dict[str, float]:
    """An estimate of what a device holds of one member between forward and backward pass.

    Args:
      length: of a row.
      rows: of one device.
      fsdp, parts: devices over which parameters are split, and heads, MLP and vocabulary.

    Returns:
      Bytes of "activations", as JAX saves them for the gradient (the compiler may recompute
      some; with remat those of one layer more), "weight copies" in the dtype of the products, and
      "logits", a chunk and its gradient.
    """
    own = LanguageModel(_share(model, parts))
    again = 0.0
    if own.config.remat != "none":
        whole = LanguageModel(dataclasses.replace(model.config, remat="none"))
        kept = running_bytes(whole, length, rows, fsdp, parts)["activations"]
        again = kept / own.config.layers
    params = jax.eval_shape(own.init, jax.random.key(0))
    chunk, vocab_size = own.config.logits_chunk, own.config.vocab_size

    def saved(times):
        # With rows and chunk both doubled, what stays is copies of parameters.
        config = dataclasses.replace(own.config, logits_chunk=times * chunk)
        loss = lambda params, tokens: LanguageModel(config).loss(params, {"tokens": tokens}, None)  # noqa: E731
        return saved_bytes(
            loss, params, jax.ShapeDtypeStruct((times * rows, length + 1), jnp.int32)
        )

    once, twice = saved(1), saved(2)
    return {
        "activations": twice - once + again,
        "weight copies": (2 * once - twice) / fsdp,
        "logits": 2 * 4 * min(rows * length, chunk) * vocab_size,
    }


def _share(model: LanguageModel, parts: int) -> Any:
    """The decoder that one of `parts` devices computes, where they divide it."""
    c = model.config
    heads = parts if c.kv_heads % parts == 0 else 1
    mlp, vocab = (parts if size % parts == 0 else 1 for size in (c.mlp_width, c.vocab_size))
    return dataclasses.replace(
        c,
        heads=c.heads // heads,
        kv_heads=c.kv_heads // heads,
        heads_width=c.heads * c.head_width // heads,
        mlp_width=c.mlp_width // mlp,
        vocab_size=c.vocab_size // vocab,
    )
