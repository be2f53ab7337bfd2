"""Text that a model writes: greedy, or sampled with temperature and top-p, over a KV cache."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise import keys
from lmnoise.models import decoding
from lmnoise.models.transformer import LanguageModel


def generate(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: int | None = None,
) -> list[list[int]]:
    """`new_tokens` tokens after each prompt; the new tokens alone.

    Args:
      model, params: the model.
      prompts: token ids; of any lengths, all in one program.
      new_tokens: of each row.
      key: row i draws from `fold(key, "generate")`, i and the positions alone, whatever the other
        prompts are; without a key each token is the most probable one.
      temperature, top_p, stop: see `extend`.

    Raises:
      ValueError: no prompt, an empty one, more positions than the model's context, or a
        temperature or top_p outside its range.
    """
    tokens_BS, length_B = _padded(prompts, new_tokens, model.config.context)
    key_B = None
    if key is not None:
        key_B = keys.row_keys(keys.fold(key, "generate"), np.arange(len(prompts)))
    found_BN = extend(
        model,
        params,
        tokens_BS,
        length_B,
        new_tokens,
        key_B,
        temperature=temperature,
        top_p=top_p,
        stop=stop,
    )
    return np.asarray(found_BN).tolist()


def generate_variants(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    change: Callable[[Any, Any, Any], Any],
    members: Any,
    extra: Any = None,
) -> list[list[list[int]]]:
    """Greedy `generate` for `change(params, member, extra)` of every member, one after the other.

    Args:
      model, params, prompts, new_tokens: see `generate`.
      change: as of `lmnoise.evaluation.variants.evaluator`.
      members: arrays (M, ...).
      extra: arrays that all members share.
    """
    tokens_BS, length_B = _padded(prompts, new_tokens, model.config.context)
    found_MBN = _extend_variants(
        model, new_tokens, change, params, members, extra, tokens_BS, length_B
    )
    return np.asarray(found_MBN).tolist()


def extend(
    model: LanguageModel,
    params: Any,
    tokens_BS: jax.Array,
    length_B: jax.Array,
    new_tokens: int,
    key_B: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: int | None = None,
) -> jax.Array:
    """The core of `generate` over arrays, (B, new_tokens) int32; one compilation a shape.

    Rows and parameters may lie on a mesh; inside another jitted function it is part of that.

    Args:
      model, params: the model.
      tokens_BS: int32, the prompts padded on the right.
      length_B: int32, real tokens of each prompt, 1 to S.
      new_tokens: of each row; S + new_tokens - 1 is at most the model's context, for the last
        token is not read.
      key_B: a key a row (`lmnoise.keys.row_keys` of the rows' numbers), into which the position of
        each new token is folded; without it each token is the most probable one.
      temperature: tokens are drawn from softmax(logits / temperature), temperature > 0,
      top_p: restricted to the fewest tokens, the most probable ones and those that tie with the
        last of them, whose probability is together at least this, 0 < top_p <= 1.
      stop: after this token a row is filled with it; once all are, nothing more is computed.

    Raises:
      ValueError: a temperature or top_p outside its range, or too many positions.
    """
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature must be positive and top_p in (0, 1], not {temperature} and {top_p}"
        )
    stop = -1 if stop is None else stop
    nucleus = None if top_p == 1 else top_p
    return _extend(
        model, new_tokens, params, tokens_BS, length_B, key_B, temperature, nucleus, stop
    )


def sample(
    key_B: jax.Array, logits_BV: jax.Array, temperature: float, top_p: float | None
) -> jax.Array:
    """Draws one token a row, (B,) int32; see `extend`. `top_p` None is the whole vocabulary.

    First a block of the vocabulary is drawn and then a token of it, each with a uniform number of
    its own: two numbers a row where the largest of noised logits would take one a token. Uniform
    numbers and cumulative sums in float32 are steps of 1e-7, below which the rare tokens of a
    large vocabulary would be lost in one sum over all; in two sums the draws are within 3e-5 of
    the softmax in total variation at 262,144 tokens.
    """
    probability_BV = jax.nn.softmax(logits_BV / temperature, -1)
    if top_p is not None:
        probability_BV = jnp.where(_nucleus(probability_BV, top_p), probability_BV, 0.0)
    batch, size = probability_BV.shape
    length = math.isqrt(size - 1) + 1
    padded_BV = jnp.pad(probability_BV, ((0, 0), (0, -size % length)))
    probability_BKL = padded_BV.reshape(batch, -1, length)
    uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, 2))(key_B)
    block_B = _draw(uniform_B2[:, 0], probability_BKL.sum(-1))
    of_block = jnp.take_along_axis(probability_BKL, block_B[:, None, None], axis=1)[:, 0]
    return block_B * length + _draw(uniform_B2[:, 1], of_block)


def _draw(uniform_B, mass_BN):
    """The index of each row in proportion to its masses, (B,) int32; never one without mass.

    Of nan it is 0, as `_largest` is: a token of the vocabulary whatever the logits are.
    """
    # A cumulative sum that is computed in parallel may fall, or rise where there is no mass.
    reached_BN = jnp.where(mass_BN <= 0, 0.0, jnp.cumsum(mass_BN, -1))
    below_BN = reached_BN <= (uniform_B * reached_BN.max(-1))[:, None]
    return _first(~below_BN)


def _largest(x_BN):
    """`jnp.argmax` over the last axis, which on CPU takes nine times as long; of nan it is 0."""
    return _first(~(x_BN < x_BN.max(-1, keepdims=True)))


def _first(chosen_BN):
    """The first index of each row that is chosen, (B,) int32."""
    size = chosen_BN.shape[-1]
    return jnp.where(chosen_BN, jnp.arange(size, dtype=jnp.int32)[None], size - 1).min(-1)


def _nucleus(probability_BV, top_p):
    """Whether a token is among the fewest that have `top_p` together.

    The probability of the least of them is found bit by bit: floats of one sign are ordered as
    their bits are, and 31 sums are far faster than a sort of the vocabulary.
    """
    bits_BV = jax.lax.bitcast_convert_type(probability_BV, jnp.int32)

    def refine(i, least_B):
        higher_B = least_B + jnp.left_shift(1, 30 - i)
        mass_B = jnp.where(bits_BV >= higher_B[:, None], probability_BV, 0.0).sum(-1)
        return jnp.where(mass_B >= top_p, higher_B, least_B)

    least_B = jax.lax.fori_loop(0, 31, refine, jnp.zeros(len(bits_BV), jnp.int32))
    # Compared as floats, so that nan, whose sign bit may be set, is not left out.
    return ~(probability_BV < jax.lax.bitcast_convert_type(least_B, jnp.float32)[:, None])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _extend(model, new_tokens, params, tokens_BS, length_B, key_B, temperature, top_p, stop):
    batch, length = tokens_BS.shape
    logits_BV, cache = decoding.prefill(model, params, tokens_BS, length_B, length + new_tokens - 1)

    def choose(logits_BV, position_B):
        if key_B is None:
            return _largest(logits_BV)
        here_B = jax.vmap(jax.random.fold_in)(key_B, position_B)
        return sample(here_B, logits_BV, temperature, top_p)

    def unfinished(state):
        i, _, ended_B, _, _ = state
        return (i < new_tokens) & ~ended_B.all()

    def step(state):
        i, found_BN, ended_B, token_B, cache = state
        logits_BV, cache = decoding.decode(model, params, token_B, cache)
        token_B = jnp.where(ended_B, stop, choose(logits_BV, cache.position_B))
        found_BN = jax.lax.dynamic_update_slice_in_dim(found_BN, token_B[:, None], i, axis=1)
        return i + 1, found_BN, ended_B | (token_B == stop), token_B, cache

    token_B = choose(logits_BV, cache.position_B)
    found_BN = jnp.full((batch, new_tokens), stop, jnp.int32).at[:, 0].set(token_B)
    state = 1, found_BN, token_B == stop, token_B, cache
    return jax.lax.while_loop(unfinished, step, state)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _extend_variants(model, new_tokens, change, params, members, extra, tokens_BS, length_B):
    def one(member):
        changed = change(params, member, extra)
        return extend(model, changed, tokens_BS, length_B, new_tokens)

    return jax.lax.map(one, members)


def _padded(prompts, new_tokens, context):
    """The prompts padded on the right, (B, S) int32, and their lengths (B,)."""
    length_B = np.array([len(prompt) for prompt in prompts], np.int32)
    if not length_B.size or not length_B.min():
        raise ValueError(f"every prompt needs a token, the lengths are {length_B.tolist()}")
    total = int(length_B.max()) + new_tokens - 1  # the last token is not read
    if total > context:
        raise ValueError(f"{total} positions exceed the context of {context}")
    tokens_BS = np.zeros((len(prompts), length_B.max()), np.int32)
    for row_S, prompt in zip(tokens_BS, prompts, strict=True):
        row_S[: len(prompt)] = prompt
    return tokens_BS, length_B
