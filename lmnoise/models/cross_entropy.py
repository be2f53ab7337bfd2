"""Cross-entropy that never holds the logits of a whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cross_entropy(
    unembed: Callable[[jax.Array], jax.Array],
    x_ND: jax.Array,
    targets_N: jax.Array,
    chunk: int,
) -> jax.Array:
    """Cross-entropy of every token, (N,) float32, nats per token.

    The logits of about `chunk` tokens exist at a time; their gradient recomputes them.

    Args:
      unembed: features (n, D) to logits (n, V); it may close over parameters.
      x_ND: features.
      targets_N: int32 token ids.
      chunk: tokens a chunk; the number of chunks is the smallest divisor of N that keeps to it.
    """

    def of_chunk(operands):
        x_nD, targets_n = operands
        logits_nV = unembed(x_nD)
        target_n1 = jnp.take_along_axis(logits_nV, targets_n[:, None], axis=1)
        return jax.nn.logsumexp(logits_nV, axis=1) - target_n1[:, 0]

    tokens = x_ND.shape[0]
    chunks = next(c for c in range(-(-tokens // chunk), tokens + 1) if tokens % c == 0)
    if chunks == 1:
        return of_chunk((x_ND, targets_N))
    # Chunks interleave the tokens, so that an axis N sharded over devices stays sharded within
    # each chunk.
    split = lambda a: a.reshape(tokens // chunks, chunks, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
    losses = jax.lax.map(jax.checkpoint(of_chunk), (split(x_ND), split(targets_N)))
    return losses.swapaxes(0, 1).reshape(tokens)
