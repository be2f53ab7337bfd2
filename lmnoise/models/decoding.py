"""One token after another: what the blocks keep of the tokens that were read.

The blocks are the decoder's own; only the mixing of positions is told to look at what was kept.
Letters as in `transformer`, and T positions that a cache has room for.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmnoise import axes
from lmnoise.models import attention
from lmnoise.models.products import product
from lmnoise.models.transformer import LanguageModel


class Cache(NamedTuple):
    """Keys and values of the tokens read so far.

    All rows write to the same place at once, whatever their lengths, so that a write moves one
    slice in memory and the padding between a row's beginning and what follows is left out by
    `seen`.

    k_LBGTK, v_LBGTK: rotated keys and values, in the dtype of the products; of unrolled layers
      tuples of L arrays, which are written in place where a stack would be copied.
    seen_BT: bool, the places that hold tokens.
    position_B: int32, the position that the next token of each row has in its text.
    end: int32, the place of the next token.
    """

    k_LBGTK: jax.Array | tuple[jax.Array, ...]
    v_LBGTK: jax.Array | tuple[jax.Array, ...]
    seen_BT: jax.Array
    position_B: jax.Array
    end: jax.Array


def prefill(
    model: LanguageModel, params: Any, tokens_BS: jax.Array, length_B: jax.Array, total: int
) -> tuple[jax.Array, Cache]:
    """Reads the beginnings of rows.

    Args:
      model: the decoder.
      params: its parameters.
      tokens_BS: int32, padded on the right.
      length_B: int32, real tokens of each row, 1 to S.
      total: positions that the cache has room for: S and one for every `decode`.

    Returns:
      Logits (B, V) float32 after the last real token, and the cache.

    Raises:
      ValueError: no room for the tokens, or more than the context.
    """
    config, (batch, length) = model.config, tokens_BS.shape
    if not length <= total <= config.context:
        raise ValueError(
            f"total must be between {length} and the context of {config.context}, not {total}"
        )
    variant = attention.choose(config.attention, dtype=config.dtype, length=length)

    def apply(block, x_ND, local):
        kept = []

        def attend(q_BSHK, k_BSGK, v_BSGK):
            kept.extend(x.swapaxes(1, 2) for x in (k_BSGK, v_BSGK))
            return attention.VARIANTS[variant](q_BSHK, k_BSGK, v_BSGK)

        return block(x_ND, length, local, _unobserved, attend=attend), tuple(kept)

    module = model.bind(params)
    x_ND, kept = module.through(module.embed(tokens_BS), apply)
    # Attention is causal: the padding on the right has reached no real token.
    x_BD = x_ND.reshape(batch, length, -1)[jnp.arange(batch), length_B - 1]
    room = [(0, total - length), (0, 0)]
    k_LBGTK, v_LBGTK = jax.tree.map(
        lambda x: _placed(jnp.pad(x, [(0, 0)] * (x.ndim - 2) + room)), _by_kind(model, kept)
    )
    seen_BT = jnp.arange(total)[None] < length_B[:, None]
    cache = Cache(k_LBGTK, v_LBGTK, seen_BT, length_B.astype(jnp.int32), jnp.int32(length))
    return _logits(module, x_BD), cache


def decode(
    model: LanguageModel, params: Any, token_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Reads one more token of each row: logits (B, V) float32 after it, and the new cache.

    There must be room left: a full cache loses its last position.
    """
    position_B1 = cache.position_B[:, None]

    def apply(block, x_BD, local, past_k_BGTK, past_v_BGTK):
        kept = []

        def attend(q_B1HK, k_B1GK, v_B1GK):
            past = past_k_BGTK, past_v_BGTK, cache.seen_BT
            mixed_B1HK = attention.one_more(q_B1HK, k_B1GK, v_B1GK, *past)
            # The past is read before it is written to, or else the compiler copies all of it.
            mixed_B1HK, *new = jax.lax.optimization_barrier((mixed_B1HK, k_B1GK, v_B1GK))
            kept.extend(x.swapaxes(1, 2) for x in new)
            return mixed_B1HK

        return block(x_BD, 1, local, _unobserved, position_B1, attend), tuple(kept)

    module = model.bind(params)
    x_BD = module.embed(token_B[:, None], position_B1)
    x_BD, kept = module.through(x_BD, apply, cache.k_LBGTK, cache.v_LBGTK)

    def write(past, new):
        return _placed(jax.lax.dynamic_update_slice_in_dim(past, new, cache.end, past.ndim - 2))

    past = cache.k_LBGTK, cache.v_LBGTK
    k_LBGTK, v_LBGTK = jax.tree.map(write, past, _by_kind(model, kept))
    seen_BT = cache.seen_BT | (jnp.arange(cache.seen_BT.shape[1]) == cache.end)[None]
    cache = Cache(k_LBGTK, v_LBGTK, seen_BT, cache.position_B + 1, cache.end + 1)
    return _logits(module, x_BD), cache


def _by_kind(model, kept):
    """Keys and values apart, each of all layers."""
    return kept if model.config.scanned else tuple(zip(*kept, strict=True))


def _logits(module, x_BD):
    x_BD, dtype = module.final_norm(x_BD), module.config.dtype
    if module.config.tied and len(x_BD) == 1:
        # On CPU a single row meets the columns of the table eight times slower than its rows.
        return product(module.tokens[...], x_BD.T, dtype).T
    return product(x_BD, module.unembedding, dtype)


def _unobserved(name, value):
    del name, value


def _placed(x_BGTK):
    """Rows and groups over the mesh, whether there is an axis of layers before them or none."""
    return axes.keep(x_BGTK, *[()] * (x_BGTK.ndim - 4), axes.ROWS, "model")
