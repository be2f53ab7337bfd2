"""Causal attention, one function a backend; all compute the same thing.

Letters: B rows, S positions, H query heads, G key/value heads (H a multiple of G), K head width.
"""

import functools

import jax
import jax.numpy as jnp

from lmnoise import axes

# Queries a block of `row_blocks`; 32 to 128 are within 5 % of one another on two cores.
BLOCK = 64


def plain(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention` in XLA: the twin the other variants are compared with."""
    return jax.nn.dot_product_attention(
        q_BSHK, k_BSGK, v_BSGK, is_causal=True, implementation="xla"
    )


def row_blocks(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """Attention in static blocks of queries, each against the keys up to its own end.

    It skips the half of the score matrix that the causal mask throws away, and divides by the
    softmax denominator after the second product, where there is less to divide. For CPUs.
    """
    batch, length, heads, width = q_BSHK.shape
    groups = k_BSGK.shape[2]
    q_BGRSK = q_BSHK.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    blocks = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        scores = jnp.einsum(
            "bgrqk,bgsk->bgrqs",
            q_BGRSK[..., start:end, :],
            k_BGSK[..., :end, :],
            preferred_element_type=jnp.float32,
        ) * (width**-0.5)
        visible = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        scores = jnp.where(visible[None, None, None], scores, -1e30)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum(
            "bgrqs,bgsk->bgrqk",
            weights.astype(v_BGSK.dtype),
            v_BGSK[..., :end, :],
            preferred_element_type=jnp.float32,
        )
        blocks.append((mixed / weights.sum(-1, keepdims=True)).astype(q_BSHK.dtype))
    out_BGRSK = jnp.concatenate(blocks, axis=3)
    return out_BGRSK.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def cudnn(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """cuDNN's fused attention; NVIDIA GPUs, bfloat16 or float16 only."""
    return jax.nn.dot_product_attention(
        q_BSHK, k_BSGK, v_BSGK, is_causal=True, implementation="cudnn"
    )


def splash(
    q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Splash attention (Pallas, TPU), on each device of a mesh its own rows and heads.

    `interpret` runs it elsewhere for tests.
    The kernel wants a sequence length that is a multiple of 128.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    def on_shard(q_BSHK, k_BSGK, v_BSGK):
        _, length, heads, width = q_BSHK.shape
        mask = splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.CausalMask((length, length)) for _ in range(heads)]
        )
        kernel = splash_attention_kernel.make_splash_mha(
            mask, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        repeat = heads // k_BSGK.shape[2]
        q_BHSK = (q_BSHK * width**-0.5).transpose(0, 2, 1, 3)
        k_BHSK = jnp.repeat(k_BSGK, repeat, axis=2).transpose(0, 2, 1, 3)
        v_BHSK = jnp.repeat(v_BSGK, repeat, axis=2).transpose(0, 2, 1, 3)
        return jax.vmap(kernel)(q_BHSK, k_BHSK, v_BHSK).transpose(0, 2, 1, 3)

    return axes.by_shard(on_shard, q_BSHK, k_BSGK, v_BSGK, least_heads=k_BSGK.shape[2])


VARIANTS = {
    "plain": plain,
    "row_blocks": row_blocks,
    "cudnn": cudnn,
    "splash": splash,
    "splash_interpreted": functools.partial(splash, interpret=True),
}


_ONLY_ON = {"cudnn": "gpu", "splash": "tpu"}


def choose(name: str, *, dtype: jnp.dtype, length: int) -> str:
    """The variant for `name`, with "auto" resolved for the default backend.

    Raises:
      ValueError: an unknown name, or a variant that the backend lacks.
    """
    backend = jax.default_backend()
    if name == "auto":
        if backend == "tpu" and length % 128 == 0:
            return "splash"
        if backend == "gpu" and jnp.dtype(dtype) == jnp.bfloat16:
            return "cudnn"
        return "row_blocks" if backend == "cpu" else "plain"
    if name not in VARIANTS:
        raise ValueError(f"attention must be 'auto' or one of {sorted(VARIANTS)}, not {name!r}")
    if _ONLY_ON.get(name, backend) != backend:
        raise ValueError(f"attention {name!r} runs on {_ONLY_ON[name]} and this is {backend}")
    return name
