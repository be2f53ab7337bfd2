"""Loss by source on held-out text, with standard errors over documents.

A source is a corpus, a language, or anything else whose loss is asked for on its own. Nats per
token depend on what a token is: they compare between models of one tokenizer on one text, and
neither across tokenizers nor across languages. Bits per byte compare across tokenizers; across
languages only as far as a byte says as much in one as in the other.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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


class Sums(NamedTuple):
    """What `summarise` takes, by document of one source and, for losses, by member.

    losses_MD: nats, float64. counts_D: scored tokens, float64. bytes_per_token_D: see `Source`.
    """

    losses_MD: np.ndarray
    counts_D: np.ndarray
    bytes_per_token_D: np.ndarray


def document_sums(
    losses: Iterable[np.ndarray],
    batches: Iterable[dict[str, np.ndarray]],
    documents: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of losses (M, documents), in nats, and of scored tokens (documents,), float64.

    A target token counts for the document that it belongs to itself.

    Args:
      losses: of each batch, (M, B, S) in nats.
      batches: see `Source`.
      documents: number of documents of the source.
    """
    sums, counts = 0.0, np.zeros(documents)
    for losses_MBS, batch in zip(losses, batches, strict=True):
        weights_N = batch["weights"].reshape(-1).astype(np.float64)
        document_N = batch["document"][:, 1:].reshape(-1)
        nats_MN = np.asarray(losses_MBS, np.float64).reshape(-1, weights_N.size)
        counts += np.bincount(document_N, weights_N, documents)
        sums = sums + np.stack(
            [np.bincount(document_N, nats_N * weights_N, documents) for nats_N in nats_MN]
        )
    return sums, counts


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


def paired(
    losses_D: np.ndarray, baseline_D: np.ndarray, counts_D: np.ndarray
) -> tuple[float, float]:
    """How much more two models differ than documents do: both scored the same tokens.

    Args:
      losses_D, baseline_D: nats of each document under the two models.
      counts_D: scored tokens of each document.

    Returns:
      The token-weighted mean of `losses - baseline` in nats per token, and its standard error
      over documents: those of `summarise`, of the differences.
    """
    found = summarise((losses_D - baseline_D)[None], counts_D, np.ones_like(counts_D))
    return float(found["loss"][0]), float(found["standard_error"][0])


def member_rows(sums: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """A row a member, `member` and `eval/<source>/<metric>`, from the sums of every source."""
    rows = [{"member": m} for m in range(max(len(s.losses_MD) for s in sums.values()))]
    for source, of_source in sums.items():
        for name, values_M in summarise(*of_source).items():
            for row, value in zip(rows, values_M, strict=True):
                row[f"eval/{source}/{name}"] = float(value)
    return rows


def scorer(
    population: Population,
    loss: Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array],
    sources: Sequence[Source],
) -> Callable[[Any], dict[str, Sums]]:
    """Builds `score(params, only=None) -> {source name: Sums}` for the members of a population.

    Args:
      population: its members' parameters will be evaluated; one program serves all sources
        whose batches have one shape.
      loss: `loss(params, batch, key) -> loss_BS`.
      sources: held-out text; with `only` those of these names are scored.
    """
    token_losses = population.map(
        lambda params, tokens_BT: loss(params, {"tokens": tokens_BT}, jax.random.key(0))
    )

    def score(params: Any, only: Collection[str] | None = None) -> dict[str, Sums]:
        sums = {}
        for source in sources:
            if only is not None and source.name not in only:
                continue
            losses = (
                jax.device_get(
                    token_losses(params, put_whole(population.mesh, tokens, batch_axis=0))
                )
                for tokens in (batch["tokens"] for batch in source.batches)
            )
            found = document_sums(losses, source.batches, len(source.bytes_per_token))
            sums[source.name] = Sums(*found, source.bytes_per_token)
        return sums

    return score


def evaluator(
    population: Population,
    loss: Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array],
    sources: Sequence[Source],
) -> Callable[[Any], list[dict[str, Any]]]:
    """Builds `evaluate(params) -> rows`, the `member_rows` of `scorer`, for the training loop."""
    score = scorer(population, loss, sources)
    return lambda params: member_rows(score(params))
