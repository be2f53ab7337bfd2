"""Fine-tuning over a grid of settings: what a task gains, and what pre-training text loses.

All settings of a grid train as populations of a few programs, compiled once and used for every
start, so that a series of checkpoints or several starts cost no further compilation. Settings of
one seed see the same rows in the same order, and the start is scored on the same text as what
comes of it: all differences are paired.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lmnoise.data.stream import Windows
from lmnoise.evaluation.language import Source
from lmnoise.models.transformer import LanguageModel


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to fine-tune.

    Attributes:
      learning_rate: its peak.
      epochs: passes over the rows of the task; the schedule ends with them.
      weight_decay: towards zero.
      decay_to_start: strength of a decay towards the start instead.
      sam_radius: of sharpness-aware minimisation (arXiv 2010.01412); 0 is plain.
      replay: share of the rows that are taken from pre-training text instead of the task.
      frozen: name of a mask whose entries keep their bits; "" freezes none.
      rank: of low-rank updates of the large kernels (LoRA, arXiv 2106.09685), the only
        parameters that then train; 0 trains all.
      seed: of the order of the rows, of the replay and of the low-rank updates.
    """

    learning_rate: float
    epochs: float = 1.0
    weight_decay: float = 0.0
    decay_to_start: float = 0.0
    sam_radius: float = 0.0
    replay: float = 0.0
    frozen: str = ""
    rank: int = 0
    seed: int = 0


def grid(**axes: Sequence[Any]) -> list[Setting]:
    """The settings of the product of the axes, `grid(learning_rate=(1e-5, 1e-4), seed=(0, 1))`."""
    return [
        Setting(**dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


class PreTraining(NamedTuple):
    """Text that the start was trained on: windows to replay, and held-out text for forgetting."""

    windows: Windows
    heldout: Source


class Mean(NamedTuple):
    """A mean over `n` documents or rows, with its standard error over them."""

    mean: float
    standard_error: float
    n: int


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
    right: list[float] | None

    @property
    def loss(self) -> Mean:
        """Nats a scored token."""
        raise NotImplementedError

    @property
    def accuracy(self) -> Mean:
        """Share of rows whose class is right; nan for text."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one setting did to one start.

    Attributes:
      setting: as given.
      before, after: scores of "validation" and "test" of the task and, where pre-training text
        was given, of "pretraining". `before` is that of the start, the same for all settings.
      notes: what the callback of `FineTuner.run` returned, JSON.
    """

    setting: Setting
    before: dict[str, Scores]
    after: dict[str, Scores]
    notes: Any = None

    @property
    def diverged(self) -> bool:
        """Whether a loss afterwards is not finite."""
        raise NotImplementedError

    def change(self, text: str) -> Mean:
        """Loss after less before on "validation", "test" or "pretraining", paired; nats a token."""
        raise NotImplementedError

    def accuracy_change(self, text: str) -> Mean:
        """Accuracy after less before on "validation" or "test", paired; nan for text."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON keeps it."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Outcome":
        """The inverse of `to_json`."""
        raise NotImplementedError


class FineTuner:
    """Fine-tunes starts of one shape over a grid of settings.

    Args:
      model: whose parameters start.
      task: an `lmnoise.data.tasks.Task`.
      settings: the grid; equal ones are an error.
      mesh: devices.
      batch_size: rows a step.
      pretraining: needed for `replay` and for forgetting.
      masks: those that `Setting.frozen` names, bool arrays like the parameters.
      schedule, warmup_fraction: see `OptimizerConfig`; "cyclical" has a cycle an epoch.
      state_bytes: members whose states would take more train one group after the other.

    Raises:
      ValueError: a setting makes no sense; it names the field and its value.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Any,
        settings: Sequence[Setting],
        *,
        mesh: Mesh,
        batch_size: int,
        pretraining: PreTraining | None = None,
        masks: Mapping[str, Any] | None = None,
        schedule: str = "cosine",
        warmup_fraction: float = 0.1,
        state_bytes: float = 8e9,
    ):
        raise NotImplementedError

    def run(
        self,
        params: Any,
        *,
        workdir: Path,
        record: dict[str, Any],
        title: str = "fine-tuning",
        after: Callable[[Setting, Any], Any] | None = None,
    ) -> list[Outcome]:
        """Fine-tunes from `params` under every setting; a call that was stopped goes on.

        Args:
          params: float32 arrays without an axis of members, on the host or a device.
          workdir: for what is under way and for the outcomes of this start alone; the caller may
            remove it once it has stored them.
          record: what the outcomes depend on besides the settings (the start, the text), JSON.
          title: of the progress bar.
          after: `after(setting, params)` measures the final parameters of one setting (low-rank
            updates merged, on the devices) and returns JSON, kept as `Outcome.notes`.

        Returns:
          The outcomes in the order of the settings. A setting that diverged is an outcome too.

        Raises:
          Stopped: a signal came; what was reached is saved.
          UserError: `workdir` belongs to another record.
        """
        raise NotImplementedError


def tuned(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome with the lowest loss on the task's validation rows; its test scores are fair.

    Raises:
      ValueError: all diverged, or there is none.
    """
    raise NotImplementedError


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of which no other gains more on the test rows and forgets less, by increasing gain.

    Gain is the fall of the loss on "test", forgetting the rise of that on "pretraining".
    """
    raise NotImplementedError
