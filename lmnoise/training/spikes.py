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
    """

    threshold: float = 0.0
    window: int = 100
    skip: int = 2
    max_rollbacks: int = 3


class SpikeDetector:
    """Watches the losses of M members; its history is part of a checkpoint."""

    def __init__(self, config: SpikeConfig, history: Sequence[Sequence[float]] = ()):
        self._config = config
        self.history: list[list[float]] = [list(row) for row in history]

    def first_spike(self, losses_MK: np.ndarray) -> tuple[int, int] | None:
        """The first (step, member) among K new steps that is a spike, or None.

        Steps before it join the history; the spike and what follows it do not.
        """
        for step, losses_M in enumerate(losses_MK.T):
            bad_M = ~np.isfinite(losses_M)
            if self._config.threshold and len(self.history) >= self._config.window / 2:
                past = np.asarray(self.history)
                median_M = np.median(past, axis=0)
                mad_M = np.median(np.abs(past - median_M), axis=0)
                bad_M |= losses_M > median_M + self._config.threshold * 1.4826 * mad_M
            if bad_M.any():
                return step, int(np.argmax(bad_M))
            self.history = [*self.history, losses_M.tolist()][-self._config.window :]
        return None


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
