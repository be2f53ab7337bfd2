"""Which checkpoint of a series to fine-tune, with the evidence."""

import dataclasses
from collections.abc import Mapping, Sequence

from lmnoise.evaluation.finetune import Outcome


@dataclasses.dataclass(frozen=True)
class Rival:
    """A checkpoint of the series beside the one that was chosen.

    Attributes:
      name: of the checkpoint.
      loss: test loss after fine-tuning at its own tuned settings, mean over seeds, nats a token.
      difference: of that loss to the chosen checkpoint's, mean over seeds of paired differences.
      standard_error: of the difference; n: what it is over, seeds or, of a single seed, documents.
      interval: 95 %, of Student's t.
    """

    name: str
    loss: float
    difference: float
    standard_error: float
    n: int
    interval: tuple[float, float]

    @property
    def shown(self) -> bool:
        """Whether the difference shows: the interval leaves out zero."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Choice:
    """The checkpoint to fine-tune.

    Attributes:
      name: of the chosen one, whose mean validation loss after fine-tuning is lowest.
      loss: its test loss after fine-tuning, nats a token.
      rivals: the others, in the order of the series.
    """

    name: str
    loss: float
    rivals: tuple[Rival, ...]

    @property
    def equals(self) -> tuple[str, ...]:
        """Checkpoints whose difference to the chosen one is not shown."""
        raise NotImplementedError

    def sentence(self) -> str:
        """The recommendation in plain words, with its evidence."""
        raise NotImplementedError


def choose_checkpoint(series: Mapping[str, Sequence[Outcome]]) -> Choice:
    """Recommends a checkpoint of a series for a task.

    For every checkpoint and seed the setting is tuned on validation rows; the checkpoint is chosen
    on them too; what is reported are test rows, paired by seed, or by document for a single seed.

    Args:
      series: {name: outcomes}, all of the same settings on the same task, in their order.

    Raises:
      ValueError: the checkpoints were not fine-tuned alike, or in some all settings diverged.
    """
    raise NotImplementedError
