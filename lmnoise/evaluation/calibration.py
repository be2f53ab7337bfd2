"""Confidence of next-token predictions, and whether it is justified (arXiv 1706.04599).

A prediction is the most probable next token, its confidence that probability. A model that is
right about as often as it is confident is calibrated; training on few examples makes it more
confident than right, and then the loss rises while the accuracy does not fall.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise.evaluation.language import Source, document_sums, summarise
from lmnoise.models.transformer import LanguageModel
from lmnoise.training.mesh import put_whole
from lmnoise.training.population import Population


class Bins(NamedTuple):
    """Predictions by confidence: bin k of K equal ones covers (k / K, (k + 1) / K].

    Float64 sums over the predictions of each bin: how many there are, their confidences, and how
    many were right. Sums over batches add up: `Bins(*map(np.add, one, other))`.
    """

    counts_K: np.ndarray
    confidences_K: np.ndarray
    right_K: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of predictions that were right."""
        return float(self.right_K.sum() / self.counts_K.sum())

    @property
    def confidence(self) -> float:
        """The mean confidence; above the accuracy it is over-confidence."""
        return float(self.confidences_K.sum() / self.counts_K.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, `sum_k n_k / n * |accuracy_k - confidence_k|`."""
        return float(np.abs(self.right_K - self.confidences_K).sum() / self.counts_K.sum())


def tally(confidences: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int = 15) -> Bins:
    """Sorts predictions into bins.

    Args:
      confidences: of any shape, in [0, 1].
      right: of that shape, 1 where the prediction was right.
      weights: of that shape, 0 for what does not count.
      bins: K.

    Raises:
      ValueError: a confidence outside [0, 1], or no bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence_N, right_N, weight_N = (
        np.asarray(a, np.float64).reshape(-1) for a in (confidences, right, weights)
    )
    # Of a softmax in float32 the largest may be a rounding error above 1.
    if not np.all((confidence_N >= 0) & (confidence_N <= 1 + 1e-5)):
        raise ValueError(f"confidences must lie in [0, 1], not {confidence_N.max()}")
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    return Bins(
        *(
            np.bincount(bin_N, weight_N * values_N, bins)
            for values_N in (np.ones_like(weight_N), confidence_N, right_N)
        )
    )


def predictions(
    model: LanguageModel, params: Any, tokens_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses in nats, confidences, and whether the prediction was right, each (B, S) float32.

    Rows are taken in turn, as many at once as have `config.logits_chunk` tokens.
    """

    def of_row(tokens_T):
        log_p_SV = jax.nn.log_softmax(model.logits(params, tokens_T[None, :-1])[0], axis=-1)
        targets_S = tokens_T[1:]
        losses_S = -jnp.take_along_axis(log_p_SV, targets_S[:, None], axis=1)[:, 0]
        right_S = jnp.argmax(log_p_SV, -1) == targets_S
        return losses_S, jnp.exp(log_p_SV.max(-1)), right_S.astype(jnp.float32)

    rows, length = tokens_BT.shape[0], tokens_BT.shape[1] - 1
    at_once = min(rows, max(1, model.config.logits_chunk // length))
    return jax.lax.map(of_row, tokens_BT, batch_size=at_once)


def evaluator(
    population: Population, model: LanguageModel, sources: Sequence[Source], bins: int = 15
) -> Callable[[Any], list[dict[str, Any]]]:
    """Builds `evaluate(params) -> rows` for the training loop, a row a member.

    A row has `member` and, for each source, `<source>/loss` and its `/standard_error` over
    documents (nats per token), `/accuracy`, `/confidence` and `/calibration_error`.

    Args:
      population: its members' parameters will be evaluated.
      model: whose predictions they make.
      sources: held-out text, all batches of one shape for one program.
      bins: of the calibration error.
    """
    predict = population.map(lambda params, tokens_BT: predictions(model, params, tokens_BT))

    def of_source(params, source):
        losses, tallies = [], [None] * population.count
        for batch in source.batches:
            tokens_BT = put_whole(population.mesh, batch["tokens"], batch_axis=0)
            losses_MBS, *rest = jax.device_get(predict(params, tokens_BT))
            losses.append(losses_MBS)
            for m, (confidences_BS, right_BS) in enumerate(zip(*rest, strict=True)):
                found = tally(confidences_BS, right_BS, batch["weights"], bins)
                before = tallies[m]
                tallies[m] = found if before is None else Bins(*map(np.add, before, found))
        sums = document_sums(losses, source.batches, len(source.bytes_per_token))
        return summarise(*sums, source.bytes_per_token), tallies

    def evaluate(params: Any) -> list[dict[str, Any]]:
        rows = [{"member": m} for m in range(population.count)]
        for source in sources:
            means, tallies = of_source(params, source)
            for m, row in enumerate(rows):
                row |= {
                    f"{source.name}/loss": float(means["loss"][m]),
                    f"{source.name}/standard_error": float(means["standard_error"][m]),
                    f"{source.name}/accuracy": tallies[m].accuracy,
                    f"{source.name}/confidence": tallies[m].confidence,
                    f"{source.name}/calibration_error": tallies[m].calibration_error,
                }
        return rows

    return evaluate
