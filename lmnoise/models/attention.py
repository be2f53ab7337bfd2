"""Causal attention, one function a backend; all compute the same thing.

Letters: B rows, S positions, H query heads, G key/value heads, R = H / G, K head width; in blocks
Q queries of one head, P = R*Q queries of a group.
"""

import functools

import jax
import jax.numpy as jnp

from lmnoise import axes
from lmnoise.models.products import matmul

# Queries a block of `row_blocks`; 32 to 128 are within 5 % of one another on two cores.
BLOCK = 64


def plain(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention` in XLA: the twin the other variants are compared with."""
    return jax.nn.dot_product_attention(
        q_BSHK, k_BSGK, v_BSGK, is_causal=True, implementation="xla"
    )


def weights(q_BSHK: jax.Array, k_BSGK: jax.Array) -> jax.Array:
    """What each query gives to each key, (B, H, S, S) float32, held whole: for small inputs.

    Rows sum to one over the keys up to the query itself.
    """
    length, width = q_BSHK.shape[1], q_BSHK.shape[-1]
    k_BSHK = jnp.repeat(k_BSGK, q_BSHK.shape[2] // k_BSGK.shape[2], axis=2)
    scores_BHQS = jnp.einsum("bqhk,bshk->bhqs", q_BSHK, k_BSHK) * width**-0.5
    visible_QS = jnp.tril(jnp.ones((length, length), bool))
    return jax.nn.softmax(jnp.where(visible_QS[None, None], scores_BHQS, -jnp.inf), axis=-1)


@jax.custom_vjp
def row_blocks(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """Attention in static blocks, which skips the half that the causal mask throws away.

    Forward, each block of queries meets the keys up to its own end, and the division by the
    softmax's denominator comes after the second product, where there is less to divide. Backward,
    each block of keys meets the queries from its own start on; the weights are computed again, as
    in arXiv 2205.14135, and transposed from the outset, so that none of the products needs to
    transpose them. For CPUs.
    """
    return _row_blocks_forward(q_BSHK, k_BSGK, v_BSGK)[0]


def _row_blocks_forward(q_BSHK, k_BSGK, v_BSGK):
    (batch, length, _, width), groups = q_BSHK.shape, k_BSGK.shape[2]
    q_BGRSK = _by_group(q_BSHK, groups)
    k_BGKS, v_BGSK = k_BSGK.transpose(0, 2, 3, 1), v_BSGK.transpose(0, 2, 1, 3)
    mixed, logsumexp = [], []
    for start, end in _blocks(length):
        q_BGPK = q_BGRSK[..., start:end, :].reshape(batch, groups, -1, width)
        scores = matmul(q_BGPK, k_BGKS[..., :end]) * width**-0.5
        scores_BGRQS = scores.reshape(*q_BGRSK.shape[:3], end - start, end)
        visible = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        scores_BGRQS = jnp.where(visible[None, None, None], scores_BGRQS, -1e30)
        highest = scores_BGRQS.max(-1, keepdims=True)
        weights = jnp.exp(scores_BGRQS - highest)
        total = weights.sum(-1, keepdims=True)
        weights_BGPS = weights.astype(v_BGSK.dtype).reshape(batch, groups, -1, end)
        out = matmul(weights_BGPS, v_BGSK[..., :end, :]).reshape(*total.shape[:-1], width)
        mixed.append((out / total).astype(q_BSHK.dtype))
        logsumexp.append((highest + jnp.log(total))[..., 0])
    mixed_BSHK = jnp.concatenate(mixed, 3).transpose(0, 3, 1, 2, 4).reshape(q_BSHK.shape)
    return mixed_BSHK, (q_BSHK, k_BSGK, v_BSGK, mixed_BSHK, jnp.concatenate(logsumexp, 3))


def _row_blocks_backward(saved, do_BSHK):
    q_BSHK, k_BSGK, v_BSGK, mixed_BSHK, logsumexp_BGRS = saved
    (batch, length, _, width), groups = q_BSHK.shape, k_BSGK.shape[2]
    repeat, dtype, scale = q_BSHK.shape[2] // groups, q_BSHK.dtype, width**-0.5
    q_BGRSK, do_BGRSK = _by_group(q_BSHK, groups), _by_group(do_BSHK, groups)
    q_BGRKS, do_BGRKS = q_BGRSK.swapaxes(3, 4), do_BGRSK.swapaxes(3, 4)
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    k_BGKS = k_BSGK.transpose(0, 2, 3, 1)
    # What the softmax's denominator takes from every score of a query.
    common_BGRS = _by_group(do_BSHK.astype(jnp.float32) * mixed_BSHK, groups).sum(-1)
    dq_BGRKS = jnp.zeros(q_BGRKS.shape, jnp.float32)
    dk, dv = [], []
    for start, end in _blocks(length):
        q_BGPK = q_BGRSK[..., start:, :].reshape(batch, groups, -1, width)
        do_BGPK = do_BGRSK[..., start:, :].reshape(batch, groups, -1, width)
        logsumexp_BG1P = _side_by_side(logsumexp_BGRS[..., None, start:])
        common_BG1P = _side_by_side(common_BGRS[..., None, start:])
        visible = jnp.arange(start, end)[:, None] <= jnp.arange(start, length)[None]
        visible = jnp.tile(visible, (1, repeat))[None, None]
        scores = matmul(k_BGSK[..., start:end, :], _side_by_side(q_BGRKS[..., start:])) * scale
        weights = jnp.where(visible, jnp.exp(scores - logsumexp_BG1P), 0.0)
        dv.append(matmul(weights.astype(dtype), do_BGPK))
        d_weights = matmul(v_BGSK[..., start:end, :], _side_by_side(do_BGRKS[..., start:]))
        d_scores = (weights * (d_weights - common_BG1P) * scale).astype(dtype)
        dk.append(matmul(d_scores, q_BGPK))
        dq_BGKP = matmul(k_BGKS[..., start:end], d_scores)
        dq = dq_BGKP.reshape(batch, groups, width, repeat, -1).swapaxes(2, 3)
        dq_BGRKS = dq_BGRKS.at[..., start:].add(dq)
    dq_BSHK = dq_BGRKS.transpose(0, 4, 1, 2, 3).reshape(q_BSHK.shape)
    dk_BSGK, dv_BSGK = (jnp.concatenate(d, 2).transpose(0, 2, 1, 3) for d in (dk, dv))
    return dq_BSHK.astype(dtype), dk_BSGK.astype(dtype), dv_BSGK.astype(dtype)


row_blocks.defvjp(_row_blocks_forward, _row_blocks_backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _by_group(x_BSHK: jax.Array, groups: int) -> jax.Array:
    """(B, G, R, S, K), R query heads to a group."""
    batch, length, _, width = x_BSHK.shape
    return x_BSHK.reshape(batch, length, groups, -1, width).transpose(0, 2, 3, 1, 4)


def _side_by_side(x_BGRKQ: jax.Array) -> jax.Array:
    """(B, G, K, P): the queries of all heads of a group, P = R*Q."""
    batch, groups, _, width, _ = x_BGRKQ.shape
    return x_BGRKQ.swapaxes(2, 3).reshape(batch, groups, width, -1)


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


def one_more(
    q_B1HK: jax.Array,
    k_B1GK: jax.Array,
    v_B1GK: jax.Array,
    past_k_BGTK: jax.Array,
    past_v_BGTK: jax.Array,
    seen_BT: jax.Array,
) -> jax.Array:
    """One new position a row attends to itself and to those of the past that `seen` marks.

    As `plain`: scores, softmax and sums in float32. The new position is kept apart, so that the
    past is only read.
    """
    (batch, _, heads, width), groups = q_B1HK.shape, k_B1GK.shape[2]
    q_BGRK = q_B1HK.reshape(batch, groups, heads // groups, width)
    k_BGK, v_BGK = k_B1GK[:, 0], v_B1GK[:, 0]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    past_BGRT = einsum("bgrk,bgtk->bgrt", q_BGRK, past_k_BGTK)
    past_BGRT = jnp.where(seen_BT[:, None, None], past_BGRT * width**-0.5, -1e30)
    own_BGR = einsum("bgrk,bgk->bgr", q_BGRK, k_BGK) * width**-0.5
    highest_BGR = jnp.maximum(past_BGRT.max(-1), own_BGR)
    past_BGRT = jnp.exp(past_BGRT - highest_BGR[..., None])
    own_BGR = jnp.exp(own_BGR - highest_BGR)
    total_BGR = past_BGRT.sum(-1) + own_BGR
    mixed_BGRK = einsum("bgrt,bgtk->bgrk", past_BGRT.astype(past_v_BGTK.dtype), past_v_BGTK)
    mixed_BGRK += own_BGR[..., None] * v_BGK[:, :, None].astype(jnp.float32)
    return (mixed_BGRK / total_BGR[..., None]).reshape(q_B1HK.shape)


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
