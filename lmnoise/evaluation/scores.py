"""Losses and accuracies of texts and of tasks of labels, by document, so that they can be paired.

Letters: M members, B rows, S positions, T = S + 1 tokens, N documents, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import stdtrit

from lmnoise.data.tasks import Rows, Task
from lmnoise.evaluation.language import Source, document_sums, summarise
from lmnoise.models.transformer import LanguageModel
from lmnoise.training.mesh import put_whole


class Mean(NamedTuple):
    """A mean over `n` documents or rows, with its standard error over them."""

    mean: float
    standard_error: float
    n: int


class Spread(NamedTuple):
    """A mean over rows and seeds, with what chance in either leaves open.

    All seeds are scored on the same rows, so that neither error holds the other: the rows drawn
    otherwise, or the seeds, would give another mean.

    Attributes:
      rows: over rows or documents, of their means over the seeds.
      seeds: over seeds, of their means over the rows.
    """

    rows: Mean
    seeds: Mean

    @property
    def mean(self) -> float:
        return self.rows.mean

    @property
    def standard_error(self) -> float:
        """Both variances added; of one that is not known (a single row or seed) the other."""
        known = [part.standard_error for part in self if part.n > 1]
        return math.hypot(*known) if known else math.nan

    @property
    def n(self) -> int:
        """Seeds, or of a single one rows."""
        return self.seeds.n if self.seeds.n > 1 else self.rows.n

    def half_width(self, level: float = 0.95) -> float:
        """Half of the interval that covers the mean over all rows and seeds; nan without either.

        The squared half widths of the two intervals of Student's t are added, which holds the level
        whatever the two variances are (Banerjee 1961, Sankhya A 23; Satterthwaite's degrees of
        freedom do not with two or three seeds). Chance that is of a row and a seed together counts
        in both. A single seed, or row, has no error of its own: the interval leaves it out.
        """
        known = [
            float(stdtrit(part.n - 1, (1 + level) / 2)) * part.standard_error
            for part in self
            if part.n > 1
        ]
        return math.hypot(*known) if known else math.nan


def over_seeds(rows: Mean, by_seed: Sequence[float]) -> Spread:
    """The spread of values averaged over seeds, and of each seed's value over all rows."""
    n = len(by_seed)
    error = float(np.std(by_seed, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Spread(rows, Mean(float(np.mean(by_seed)), error, n))


class Scores(NamedTuple):
    """Sums of one text over its documents; of a task of labels a row is a document.

    Attributes:
      losses: nats of each document.
      counts: scored tokens of each.
      right: for labels 1.0 where the scored token's class had the largest logit among the classes,
        else 0.0; None for text.
    """

    losses: list[float]
    counts: list[float]
    right: list[float] | None = None

    @property
    def loss(self) -> Mean:
        """Nats a scored token."""
        return _mean(self.losses, self.counts)

    @property
    def accuracy(self) -> Mean:
        """Share of rows whose class is right; nan for text, and where the loss is not finite."""
        return _mean(self.right if np.isfinite(self.losses).all() else None, self.counts)

    def change(self, before: "Scores") -> Mean:
        """The loss less that of `before` on the same documents, paired; nats a scored token."""
        return _mean(np.subtract(self.losses, before.losses), self.counts)

    def accuracy_change(self, before: "Scores") -> Mean:
        """The accuracy less that of `before` on the same rows, paired; nan as `accuracy`."""
        if np.isnan(self.accuracy.mean):
            return self.accuracy
        return _mean(np.subtract(self.right, before.right), self.counts)


def _mean(values: Sequence[float] | None, counts: Sequence[float]) -> Mean:
    if values is None or not np.isfinite(values).all():
        return Mean(np.nan, np.nan, len(counts))
    counts_N = np.asarray(counts, np.float64)
    with np.errstate(over="ignore"):  # of a perplexity that is not asked for
        found = summarise(np.asarray(values, np.float64)[None], counts_N, np.ones_like(counts_N))
    return Mean(float(found["loss"][0]), float(found["standard_error"][0]), len(counts_N))


@dataclasses.dataclass(frozen=True)
class Text:
    """Held-out rows in batches of one shape, the last filled up.

    Attributes:
      batches: what the function of `functions` takes.
      documents: number of them; of labels the number of rows.
      weighted: of text the same batches with `document` and `weights`, for the sums; None of
        labels.
    """

    batches: Sequence[dict[str, np.ndarray]]
    documents: int
    weighted: Sequence[dict[str, np.ndarray]] | None

    @property
    def labels(self) -> bool:
        """Whether a row is scored by its class alone."""
        return self.weighted is None

    def scores(self, results: Sequence[tuple[np.ndarray, ...]]) -> list[Scores]:
        """One `Scores` a member from what the function gave of every batch, leaves (M, B, ...)."""
        if self.weighted is not None:
            losses_MN, counts_N = document_sums(
                (losses for (losses,) in results), self.weighted, self.documents
            )
            seen = counts_N > 0
            counts = counts_N[seen].tolist()
            return [Scores(losses_N[seen].tolist(), counts) for losses_N in losses_MN]
        losses_MN, right_MN = (
            np.concatenate(part, axis=1)[:, : self.documents].astype(np.float64)
            for part in zip(*results, strict=True)
        )
        counts = [1.0] * self.documents
        return [
            Scores(losses_N.tolist(), counts, right_N.tolist())
            for losses_N, right_N in zip(losses_MN, right_MN, strict=True)
        ]


def of_source(source: Source) -> Text:
    """The text of a source."""
    batches = [{"tokens": batch["tokens"]} for batch in source.batches]
    return Text(batches, len(source.bytes_per_token), source.batches)


def of_rows(rows: Rows, batch_size: int, labels: bool) -> Text:
    """Rows of a task, of labels or of text."""
    count = len(rows.tokens)
    chosen = [np.arange(start, start + batch_size) for start in range(0, count, batch_size)]
    # The last batch is filled up with the last row, which then has no weight.
    whole = [np.minimum(index_B, count - 1) for index_B in chosen]
    if labels:
        position_N = rows.weights.argmax(1).astype(np.int32)
        batches = [
            {"tokens": rows.tokens[i], "position": position_N[i], "label": rows.label[i]}
            for i in whole
        ]
        return Text(batches, count, None)
    weighted = [
        {
            "tokens": rows.tokens[i],
            "document": rows.document[i],
            "weights": rows.weights[i] * (index_B < count)[:, None],
        }
        for index_B, i in zip(chosen, whole, strict=True)
    ]
    batches = [{"tokens": batch["tokens"]} for batch in weighted]
    return Text(batches, len(rows.bytes_per_token), weighted)


def functions(model: LanguageModel, class_tokens: np.ndarray) -> dict[bool, Callable[..., Any]]:
    """What to compute of each batch of a `Text`, by its `labels`: `function(params, batch)`.

    Of text it gives (losses_BS,). Of labels (losses_B, right_B), float32: the cross-entropy of the
    class's token over the whole vocabulary, and whether that token has the largest logit among
    those of the classes.

    Args:
      model: the model.
      class_tokens: (C,) int32, the token that names each class; empty for text.
    """

    def of_text(params, batch):
        return (model.loss(params, {"tokens": batch["tokens"]}, jax.random.key(0)),)

    def of_labels(params, batch):
        tokens_BT, position_B = batch["tokens"], batch["position"]
        logits_BV = model.logits_at(params, tokens_BT[:, :-1], position_B)
        target_B1 = jnp.take_along_axis(tokens_BT, position_B[:, None] + 1, axis=1)
        of_target_B = jnp.take_along_axis(logits_BV, target_B1, axis=1)[:, 0]
        found_B = logits_BV[:, class_tokens].argmax(1)
        right_B = (found_B == batch["label"]).astype(jnp.float32)
        return jax.nn.logsumexp(logits_BV, axis=1) - of_target_B, right_B

    return {False: of_text, True: of_labels}


class Examination:
    """Scores on the held-out rows of a task and on pre-training text, of any parameters.

    Args:
      model: the model.
      task: its rows "validation" and "test" are scored.
      heldout: pre-training text, scored as "pretraining"; None for none.
      batch_size: rows at once of the task.
      mesh: devices; rows go over its axes `data` and `fsdp`.
    """

    def __init__(
        self, model: LanguageModel, task: Task, heldout: Source | None, batch_size: int, mesh: Mesh
    ):
        self._mesh = mesh
        self.functions = functions(model, task.class_tokens)
        self._texts = {
            name: of_rows(getattr(task, name), batch_size, task.kind == "labels")
            for name in ("validation", "test")
        }
        if heldout is not None:
            self._texts["pretraining"] = of_source(heldout)
        self._single = {
            labels: jax.jit(lambda params, batch, f=f: [a[None] for a in f(params, batch)])
            for labels, f in self.functions.items()
        }

    def single(self, params: Any) -> dict[str, Scores]:
        """{text: scores} of parameters without an axis of members."""
        return self.members(self._single, params)[0]

    def members(self, measures: Mapping[bool, Any], *params: Any) -> list[dict[str, Scores]]:
        """{text: scores} of every member.

        Args:
          measures: `functions` over members, `measure(*params, batch)` with leaves (M, B, ...).
          *params: the first arguments of `measures`.
        """
        found = {}
        for name, text in self._texts.items():
            results = []
            for batch in text.batches:
                placed = {k: put_whole(self._mesh, v, batch_axis=0) for k, v in batch.items()}
                results.append(jax.device_get(measures[text.labels](*params, placed)))
            found[name] = text.scores(results)
        return [dict(zip(found, own, strict=True)) for own in zip(*found.values(), strict=True)]
