"""Loss by source on held-out text, with standard errors over documents."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lmnoise.training.mesh import put_whole
from lmnoise.training.population import Population


@dataclasses.dataclass(frozen=True)
class Source:
    """Held-out text of one source.

    Attributes:
      name: how the metrics call it.
      batches: of one shape: `tokens` (B, S+1) int32, `document` (B, S+1) int32 (the document of
        each token) and `weights` (B, S) float32, 1 for a target to score.
      bytes_per_token: (documents,) UTF-8 bytes of each document over its number of tokens.
    """

    name: str
    batches: Sequence[dict[str, np.ndarray]]
    bytes_per_token: np.ndarray


def document_sums(
    token_losses: Callable[[dict[str, jax.Array]], np.ndarray],
    batches: Iterable[dict[str, np.ndarray]],
    documents: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of losses (M, documents), in nats, and of scored tokens (documents,), float64.

    A target token counts for the document that it belongs to itself.

    Args:
      token_losses: a batch to losses (M, B, S).
      batches: see `Source`.
      documents: number of documents of the source.
    """
    losses, counts = 0.0, np.zeros(documents)
    for batch in batches:
        weights_N = batch["weights"].reshape(-1).astype(np.float64)
        document_N = batch["document"][:, 1:].reshape(-1)
        nats_MN = np.asarray(token_losses(batch), np.float64).reshape(-1, weights_N.size)
        counts += np.bincount(document_N, weights_N, documents)
        losses = losses + np.stack(
            [np.bincount(document_N, nats_N * weights_N, documents) for nats_N in nats_MN]
        )
    return losses, counts


def summarise(
    losses_MD: np.ndarray, counts_D: np.ndarray, bytes_per_token_D: np.ndarray
) -> dict[str, np.ndarray]:
    """Token-weighted means over documents, each (M,).

    Returns:
      `loss` in nats per token; `standard_error` of it, over documents (a ratio estimator, so
      that long documents weigh as they do in the mean; nan for a single document);
      `bits_per_byte`, which compares across tokenizers; `perplexity`; `tokens`.
    """
    seen = counts_D > 0
    losses_MD, counts_D = losses_MD[:, seen], counts_D[seen]
    tokens, documents = counts_D.sum(), len(counts_D)
    loss_M = losses_MD.sum(1) / tokens
    residual_MD = losses_MD - loss_M[:, None] * counts_D
    if documents > 1:
        spread_M = np.sqrt(np.square(residual_MD).sum(1) * documents / (documents - 1)) / tokens
    else:
        spread_M = np.full_like(loss_M, np.nan)
    text_bytes = (counts_D * bytes_per_token_D[seen]).sum()
    return {
        "loss": loss_M,
        "standard_error": spread_M,
        "bits_per_byte": losses_MD.sum(1) / np.log(2) / text_bytes,
        "perplexity": np.exp(loss_M),
        "tokens": np.full_like(loss_M, tokens),
    }


def evaluator(
    population: Population,
    loss: Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array],
    sources: Sequence[Source],
) -> Callable[[Any], list[dict[str, Any]]]:
    """Builds `evaluate(params) -> rows`, a row a member with `eval/<source>/<metric>`.

    Args:
      population: its members' parameters will be evaluated; one program serves all sources
        whose batches have one shape.
      loss: `loss(params, batch, key) -> loss_BS`.
      sources: held-out text.
    """
    token_losses = population.map(
        lambda params, tokens_BT: loss(params, {"tokens": tokens_BT}, jax.random.key(0))
    )

    def evaluate(params: Any) -> list[dict[str, Any]]:
        rows = [{"member": m} for m in range(population.count)]
        for source in sources:

            def losses_of(batch):
                tokens_BT = put_whole(population.mesh, batch["tokens"], batch_axis=0)
                return jax.device_get(token_losses(params, tokens_BT))

            sums = document_sums(losses_of, source.batches, len(source.bytes_per_token))
            for name, values_M in summarise(*sums, source.bytes_per_token).items():
                for member, value in enumerate(values_M):
                    rows[member][f"eval/{source.name}/{name}"] = float(value)
        return rows

    return evaluate
