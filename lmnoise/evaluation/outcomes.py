"""Ways to fine-tune, and what they did: gain on a task, and what pre-training text lost."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmnoise.evaluation.scores import Mean, Scores


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to fine-tune.

    Attributes:
      learning_rate: its peak.
      epochs: passes over the rows of the task; the schedule ends with them. With `replay` the steps
        are `epochs` times the rows over (1 - replay): a row of the task is then learned from
        `epochs` times on average, as each pass leaves out a random share `replay` of them.
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

    def __post_init__(self):
        full = not self.rank
        rules = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "epochs": (self.epochs > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "decay_to_start": (
                self.decay_to_start == 0
                or (self.decay_to_start > 0 and not self.weight_decay and full),
                "at least 0, and 0 beside weight_decay or rank",
            ),
            "sam_radius": (self.sam_radius >= 0, "at least 0"),
            "replay": (0 <= self.replay < 1, "in [0, 1)"),
            "frozen": (full or not self.frozen, "empty beside rank"),
            "rank": (self.rank >= 0, "at least 0"),
            "seed": (0 <= self.seed < 2**31, "in [0, 2**31)"),
        }
        for name, (holds, words) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {words}, not {getattr(self, name)!r}")


def grid(**axes: Sequence[Any]) -> list[Setting]:
    """The settings of the product of the axes, `grid(learning_rate=(1e-5, 1e-4), seed=(0, 1))`."""
    return [
        Setting(**dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


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
        return not all(np.isfinite(scores.losses).all() for scores in self.after.values())

    def change(self, text: str) -> Mean:
        """Loss after less before on "validation", "test" or "pretraining", paired; nats a token."""
        return self.after[text].change(self.before[text])

    def accuracy_change(self, text: str) -> Mean:
        """Accuracy after less before on "validation" or "test", paired; nan for text."""
        return self.after[text].accuracy_change(self.before[text])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON keeps it."""
        return {
            "setting": dataclasses.asdict(self.setting),
            "before": {text: scores._asdict() for text, scores in self.before.items()},
            "after": {text: scores._asdict() for text, scores in self.after.items()},
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Outcome":
        """The inverse of `to_json`."""
        before, after = (
            {text: Scores(**scores) for text, scores in stored[when].items()}
            for when in ("before", "after")
        )
        return cls(Setting(**stored["setting"]), before, after, stored["notes"])


def averaged(outcomes: Sequence[Outcome]) -> Outcome:
    """One setting over its seeds: of each document the mean loss, and share of seeds right."""

    def mean(own: Sequence[Scores]) -> Scores:
        losses, right = (
            None
            if getattr(own[0], name) is None
            else np.mean([getattr(scores, name) for scores in own], axis=0).tolist()
            for name in ("losses", "right")
        )
        return own[0]._replace(losses=losses, right=right)

    first = outcomes[0]
    before, after = (
        {text: mean([getattr(o, when)[text] for o in outcomes]) for text in getattr(first, when)}
        for when in ("before", "after")
    )
    return Outcome(first.setting, before, after)


def tuned(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome with the lowest loss on the task's validation rows; its test scores are fair.

    Raises:
      ValueError: all diverged, or there is none.
    """
    sound = [outcome for outcome in outcomes if not outcome.diverged]
    if not sound:
        raise ValueError(f"outcomes has none that did not diverge, of {len(outcomes)}")
    return min(sound, key=lambda outcome: outcome.after["validation"].loss.mean)


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of which no other gains more on the test rows and forgets less, by increasing gain.

    Gain is the fall of the loss on "test", forgetting the rise of that on "pretraining".
    """
    sound = [outcome for outcome in outcomes if not outcome.diverged]
    found, least = [], math.inf
    for outcome in sorted(sound, key=lambda o: (o.change("test"), o.change("pretraining"))):
        if (forgotten := outcome.change("pretraining").mean) < least:
            found.append(outcome)
            least = forgotten
    return found[::-1]
