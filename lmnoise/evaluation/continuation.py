"""Greedy continuations of prompts: what a model says before and after a change."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise.models.transformer import LanguageModel


def greedy(
    model: LanguageModel, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The most probable next token, `new_tokens` times, for each prompt; the new tokens alone.

    Each step is a full forward of all tokens so far, padded on the right to one length: short
    texts only, until a key/value cache is here. An end-of-text token does not stop it.

    Raises:
      ValueError: no prompt, an empty one, or more positions than the model's context.
    """
    tokens_BT, length_B = _padded(prompts, new_tokens, model.config.context)
    found_BT = np.asarray(_greedy(model, new_tokens, params, tokens_BT, length_B))
    return _new(found_BT, length_B, new_tokens)


def greedy_variants(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    change: Callable[[Any, Any, Any], Any],
    members: Any,
    extra: Any = None,
) -> list[list[list[int]]]:
    """`greedy` for `change(params, member, extra)` of every member, one after the other.

    Args:
      model, params, prompts, new_tokens: see `greedy`.
      change: as of `lmnoise.evaluation.variants.evaluator`.
      members: arrays (M, ...).
      extra: arrays that all members share.
    """
    tokens_BT, length_B = _padded(prompts, new_tokens, model.config.context)
    found_MBT = _greedy_variants(
        model, new_tokens, change, params, members, extra, tokens_BT, length_B
    )
    return [_new(found_BT, length_B, new_tokens) for found_BT in np.asarray(found_MBT)]


def _padded(prompts, new_tokens, context):
    """Tokens (B, T) int32 with room for the new ones, and the prompts' lengths (B,)."""
    length_B = np.array([len(prompt) for prompt in prompts], np.int32)
    if not length_B.size or not length_B.min():
        raise ValueError(f"every prompt needs a token, the lengths are {length_B.tolist()}")
    total = int(length_B.max()) + new_tokens
    if total > context:
        raise ValueError(f"{total} positions exceed the context of {context}")
    tokens_BT = np.zeros((len(prompts), total), np.int32)
    for row_T, prompt in zip(tokens_BT, prompts, strict=True):
        row_T[: len(prompt)] = prompt
    return tokens_BT, length_B


def _new(found_BT, length_B, new_tokens):
    return [row[n : n + new_tokens].tolist() for row, n in zip(found_BT, length_B, strict=True)]


def _extend(model, new_tokens, params, tokens_BT, length_B):
    row_B = jnp.arange(len(length_B))

    def step(i, tokens_BT):
        # Attention is causal: the padding behind the last token cannot reach its logits.
        logits_BV = model.logits(params, tokens_BT)[row_B, length_B + i - 1]
        return tokens_BT.at[row_B, length_B + i].set(jnp.argmax(logits_BV, -1).astype(jnp.int32))

    return jax.lax.fori_loop(0, new_tokens, step, jnp.asarray(tokens_BT))


_greedy = jax.jit(_extend, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _greedy_variants(model, new_tokens, change, params, members, extra, tokens_BT, length_B):
    def one(member):
        return _extend(model, new_tokens, change(params, member, extra), tokens_BT, length_B)

    return jax.lax.map(one, members)
