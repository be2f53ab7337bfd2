"""Loss spikes and NaN: find the offending step by a running median and MAD.

Bad batches in real corpora make the perplexity jump; the cure used in practice is to rewind to
a good checkpoint and skip the data (arXiv 2204.02311 section 5.1). A spike is judged for each
member against its own recent losses; the whole population rewinds, so that its members go on
seeing the same batches.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """When a loss is a spike, and what follows.

    Attributes:
      threshold: a loss above median + threshold * 1.4826 * MAD is a spike; 0 watches only for
        losses that are not finite, which is always done.
      window: recent steps that median and MAD are taken over; half of them must be there.
      skip: batches to skip: the one with the spike and those just before it.
      max_rollbacks: failures after which the run stops.
      rewind: False takes a loss that is not finite for a result of its member, with which the
        population goes on: nothing is skipped, so that the others never notice.
    """

    threshold: float = 0.0
    window: int = 100
    skip: int = 2
    max_rollbacks: int = 3
    rewind: bool = True


class SpikeDetector:
    """Watches the losses of M members; its history is part of a checkpoint.

    `history` holds the losses (M,) of recent steps, nan where a step had nothing to score.
    """

    def __init__(self, config: SpikeConfig, history: Sequence[Sequence[float]] = ()):
        self._config = config
        self.history: list[list[float]] = [list(row) for row in history]

    def first_spike(self, pairs_MK2: np.ndarray) -> tuple[int, int] | None:
        """The first (step, member) among K new steps that is a spike, or None.

        Steps before it join the history; the spike and what follows it do not.

        Args:
          pairs_MK2: sums of losses, and the weights that they are sums over.
        """
        for step, pairs_M2 in enumerate(pairs_MK2.swapaxes(0, 1)):
            sums_M, counts_M = pairs_M2.T
            scored_M = counts_M != 0
            losses_M = np.where(scored_M, sums_M / np.where(scored_M, counts_M, 1), np.nan)
            bad_M = scored_M & ~np.isfinite(losses_M)
            if self._config.threshold and len(self.history) >= self._config.window / 2:
                bad_M |= losses_M > self._limits()
            if bad_M.any() and self._config.rewind:
                return step, int(np.argmax(bad_M))
            self.history = [*self.history, losses_M.tolist()][-self._config.window :]
        return None

    def _limits(self) -> np.ndarray:
        """The loss (M,) above which a step is a spike; inf for a member without a past."""
        past = np.asarray(self.history)
        past = np.where(np.isnan(past).all(0), np.inf, past)
        median = np.nanmedian if np.isnan(past).any() else np.median  # the first is slow
        median_M = median(past, axis=0)
        mad_M = median(np.abs(past - np.where(np.isinf(median_M), 0, median_M)), axis=0)
        return median_M + self._config.threshold * 1.4826 * mad_M


def data_index(step: int, skipped: Sequence[int]) -> int:
    """The index of the batch of `step`: the step-th batch that is not among `skipped`.

    Args:
      step: number of optimisation steps before this one.
      skipped: sorted indices of batches never to be used (again).
    """
    index = step
    for skip in skipped:
        if skip <= index:
            index += 1
    return index
