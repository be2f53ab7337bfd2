"""Memory that a decoder's step takes on top of its parameters, from shapes alone."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from lmnoise.models.transformer import LanguageModel, TransformerConfig


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


def running_bytes(model: LanguageModel, length: int) -> Callable[..., dict[str, float]]:
    """An estimate of what a device holds of one member between forward and backward pass.

    Args:
      length: of a row.

    Returns:
      A function `(rows, fsdp=1, parts=1)` of the rows of one device and of the devices over which
      parameters are split, and heads, MLP and vocabulary. It gives bytes of "activations", as JAX
      saves them for the gradient (the compiler may recompute some; with remat those of one layer
      more), "weight copies" in the dtype of the products, and "logits": those of a chunk with
      their gradient, and of several chunks also the sum of the unembedding's gradients.
    """

    @functools.cache
    def of_row(parts):
        own = _share(model, parts)
        row, copies = _saved_of_row(own, length)
        if own.remat != "none":
            whole = dataclasses.replace(own, remat="none")
            row += _saved_of_row(whole, length)[0] / own.layers
        return own, row, copies

    def running(rows, fsdp=1, parts=1):
        own, row, copies = of_row(parts)
        tokens, chunk = rows * length, own.logits_chunk
        logits = 2 * 4 * min(tokens, chunk) * own.vocab_size
        if tokens > chunk:
            logits += 4 * own.width * own.vocab_size
        return {"activations": rows * row, "weight copies": copies / fsdp, "logits": logits}

    return running


def _saved_of_row(config: TransformerConfig, length: int) -> tuple[int, int]:
    """Bytes kept for the gradient of a row, and of copies of parameters whatever the rows.

    Logits are not among them: their chunks are made so small that none are kept.
    """
    model = LanguageModel(dataclasses.replace(config, logits_chunk=1))
    params = jax.eval_shape(model.init, jax.random.key(0))

    def saved(rows):
        loss = lambda params, tokens: model.loss(params, {"tokens": tokens}, None)  # noqa: E731
        return saved_bytes(loss, params, jax.ShapeDtypeStruct((rows, length + 1), jnp.int32))

    once, twice = saved(1), saved(2)
    return twice - once, 2 * once - twice


def _share(model: LanguageModel, parts: int) -> TransformerConfig:
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
