"""Cross-entropy that never holds the logits of a whole batch, with a gradient of its own.

Letters: N tokens, D width, V vocabulary; n tokens of one chunk, C chunks.
"""

import functools

import jax
import jax.numpy as jnp

from lmnoise import axes
from lmnoise.models.products import matmul


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(
    x_ND: jax.Array, w_DV: jax.Array, targets_N: jax.Array, chunk: int, dtype: str
) -> jax.Array:
    """Cross-entropy of every token, (N,) float32, nats per token, of the logits `x @ w`.

    At most `chunk` tokens have logits at a time. The gradient computes them again, chunk by chunk,
    and is cast to `dtype` before its two products; softmax and sums stay float32. Where one chunk
    is enough its logits are kept instead.

    Args:
      x_ND: features, float32.
      w_DV: the unembedding, float32.
      targets_N: int32 token ids.
      chunk: tokens a chunk.
      dtype: of the operands of the products, accumulated in float32.
    """
    return _forward(x_ND, w_DV, targets_N, chunk, dtype)[0]


def _forward(x_ND, w_DV, targets_N, chunk, dtype):
    # Gathered once for all chunks, where it is split over devices.
    x_ND, w_DV = x_ND.astype(dtype), axes.keep(w_DV.astype(dtype), (), "model")

    def of_chunk(operands):
        x_nD, targets_n = operands
        logits_nV = matmul(x_nD, w_DV)
        logsumexp_n = jax.nn.logsumexp(logits_nV, axis=1)
        target_n = jnp.take_along_axis(logits_nV, targets_n[:, None], axis=1)[:, 0]
        return logsumexp_n - target_n, logsumexp_n, logits_nV

    if len(targets_N) <= chunk:
        losses_N, logsumexp_N, logits_NV = of_chunk((x_ND, targets_N))
        return losses_N, (x_ND, w_DV, targets_N, logsumexp_N, logits_NV)
    parts = [_split(a, chunk) for a in (x_ND, targets_N)]
    losses_Cn, logsumexp_Cn = jax.lax.map(lambda part: of_chunk(part)[:2], tuple(parts))
    losses_N, logsumexp_N = (_join(a, len(targets_N)) for a in (losses_Cn, logsumexp_Cn))
    return losses_N, (x_ND, w_DV, targets_N, logsumexp_N, None)


def _backward(chunk, dtype, saved, d_losses_N):
    x_ND, w_DV, targets_N, logsumexp_N, logits_NV = saved

    def of_chunk(x_nD, targets_n, logsumexp_n, d_losses_n, logits_nV):
        softmax_nV = jnp.exp(logits_nV - logsumexp_n[:, None])
        is_target_nV = jnp.arange(w_DV.shape[1])[None] == targets_n[:, None]
        d_logits_nV = (softmax_nV - is_target_nV) * d_losses_n[:, None]
        d_logits_nV = d_logits_nV.astype(dtype)
        return matmul(d_logits_nV, w_DV.T), matmul(x_nD.T, d_logits_nV)

    given = (x_ND, targets_N, logsumexp_N, d_losses_N)
    if logits_NV is not None:
        return *of_chunk(*given, logits_NV), None

    def add(dw_DV, part):
        dx_nD, dw = of_chunk(*part, matmul(part[0], w_DV))
        return dw_DV + dw, dx_nD

    parts = tuple(_split(a, chunk) for a in given)
    dw_DV, dx_CnD = jax.lax.scan(add, jnp.zeros(w_DV.shape, jnp.float32), parts)
    return _join(dx_CnD, len(targets_N)), dw_DV, None


cross_entropy.defvjp(_forward, _backward)


def _split(a: jax.Array, chunk: int) -> jax.Array:
    """(N, ...) to (C, n, ...), filled up with zeros.

    Chunks interleave the tokens, so that an axis N sharded over devices stays sharded within each.
    """
    chunks, shards = -(-len(a) // chunk), axes.shards(*axes.ROWS)
    rows = -(-len(a) // (chunks * shards)) * shards
    a = jnp.pad(a, [(0, rows * chunks - len(a)), *[(0, 0)] * (a.ndim - 1)])
    return axes.keep(a.reshape(rows, chunks, *a.shape[1:]).swapaxes(0, 1), (), axes.ROWS)


def _join(a: jax.Array, tokens: int) -> jax.Array:
    """The inverse of `_split`."""
    return a.swapaxes(0, 1).reshape(-1, *a.shape[2:])[:tokens]
