"""Several epochs over few examples: the loss of each example at every sight, and of controls."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from memorization_training import Bench, Rows, Training, fixed_order, in_groups, shuffled_order
from ml_collections import ConfigDict

from lmnoise.errors import UserError
from lmnoise.evaluation import memorization
from lmnoise.report import Estimate, mean_and_error
from lmnoise.training.optimizer import schedule

SCHEDULES = {"cyclical": "A: warm-up and cosine each epoch", "cosine": "B: one cosine",
             "constant": "constant rate"}  # fmt: skip
LEAST = 20  # examples, of which a quarter must leave a line and its covariates an error
METRICS = ("loss", "accuracy", "confidence", "calibration_error")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One schedule and order; R seeds, T = E * N sights in the order of training.

    Attributes:
      schedule, order: as in the config.
      training: of the runs.
      losses_RT: of each example before the update that it takes part in, nats per token.
      base_RT: the loss of the same examples before any training.
      example_RT: which example it was.
      epochs: E.
      controls_RHC: loss of windows that were drawn with the examples and never trained on, at
        `steps_H` updates.
      heldout: {metric: (R, H)} of text from other documents, at `steps_H`.
    """

    schedule: str
    order: str
    training: Training
    losses_RT: np.ndarray
    base_RT: np.ndarray
    example_RT: np.ndarray
    epochs: int
    steps_H: np.ndarray
    controls_RHC: np.ndarray
    heldout: dict[str, np.ndarray]

    @property
    def schedule_name(self) -> str:
        return SCHEDULES[self.schedule]

    @property
    def name(self) -> str:
        return f"{self.schedule_name}, {self.order} order"

    @property
    def examples(self) -> int:
        return self.losses_RT.shape[1] // self.epochs

    @property
    def boundaries(self) -> list[int]:
        """The first sight of every epoch but the first."""
        return [e * self.examples for e in range(1, self.epochs)]

    @property
    def change_RT(self) -> np.ndarray:
        """Loss minus that before training: what an example is like goes out of it."""
        return self.losses_RT - self.base_RT

    def effects(self) -> np.ndarray:
        """How much further than others each example's loss fell at the same places, (R, N)."""
        change_REN = self.change_RT.reshape(len(self.change_RT), self.epochs, -1)
        basis_NK = np.linalg.qr(np.vander(np.linspace(-1, 1, self.examples), 3))[0]
        residual_REN = change_REN - (change_REN @ basis_NK) @ basis_NK.T
        return np.stack(
            [
                self._by_example(own.reshape(-1), example_T).mean(0)
                for own, example_T in zip(residual_REN, self.example_RT, strict=True)
            ]
        )

    @functools.cached_property
    def rate_K(self) -> np.ndarray:
        """The learning rate of every update."""
        fraction = jax.vmap(schedule(self.training.optimizer))(jnp.arange(self.training.steps))
        return self.training.learning_rate * np.asarray(fraction, np.float64)

    @property
    def _step_RT(self) -> np.ndarray:
        """Updates before each sight."""
        step_T = np.arange(self.losses_RT.shape[1]) // self.training.batch_size
        return np.broadcast_to(step_T, self.losses_RT.shape)

    def gains(self) -> np.ndarray:
        """Gains by example and sight, (R, E - 1, N), see `memorization.gains`."""
        return np.stack(
            [
                memorization.gains(
                    self._by_example(losses_T, example_T),
                    self._by_example(step_T, example_T),
                    self.steps_H,
                    controls_HC.mean(1),
                )
                for losses_T, step_T, example_T, controls_HC in zip(
                    self.losses_RT, self._step_RT, self.example_RT, self.controls_RHC, strict=True
                )
            ]
        )

    def gain(self) -> Estimate:
        """The mean gain of the first sight."""
        steps_R2N = np.stack(
            [
                self._by_example(step_T, example_T)[:2]
                for step_T, example_T in zip(self._step_RT, self.example_RT, strict=True)
            ]
        )
        fall_RC = self._controls(steps_R2N[:, 1]) - self._controls(steps_R2N[:, 0])
        return over_windows(self.gains()[:, 0], fall_RC)

    def unseen(self) -> Estimate:
        """How much more than controls the examples of the second half of epoch 1 had fallen.

        By their first sight, which is their loss before they teach anything: zero but for chance.
        """
        late = slice(self.examples // 2, self.examples)
        fall_RC = self._controls(self._step_RT[:, late]) - self.controls_RHC[:, 0]
        change_RN = self.change_RT[:, late]
        return over_windows(-(change_RN - fall_RC.mean(1, keepdims=True)), fall_RC)

    def _controls(self, steps_RN: np.ndarray) -> np.ndarray:
        """The mean loss of each control at some updates, (R, C)."""
        return np.stack(
            [
                [np.interp(steps_N, self.steps_H, own_H).mean() for own_H in controls_HC.T]
                for steps_N, controls_HC in zip(steps_RN, self.controls_RHC, strict=True)
            ]
        )

    def batch_gains(self) -> np.ndarray:
        """The mean gain of the first sight in every batch of the first epoch, (R, K / E)."""
        gain_RN = self.gains()[:, 0]
        first_RN = self.example_RT[:, : self.examples]
        seen_RN = np.take_along_axis(gain_RN, first_RN, axis=1)
        return seen_RN.reshape(len(gain_RN), -1, self.training.batch_size).mean(2)

    def waits(self) -> np.ndarray:
        """Updates between the first sight and the second, (R, N)."""
        return np.stack(
            [
                np.diff(self._by_example(step_T, own_T), axis=0)[0]
                for step_T, own_T in zip(self._step_RT, self.example_RT, strict=True)
            ]
        )

    def _by_example(self, values_T: np.ndarray, example_T: np.ndarray) -> np.ndarray:
        """(E, N), the examples in the order of their numbers."""
        order_EN = np.argsort(example_T.reshape(self.epochs, -1), axis=1)
        return np.take_along_axis(values_T.reshape(self.epochs, -1), order_EN, axis=1)


def over_windows(values_RN: np.ndarray, controls_RC: np.ndarray) -> Estimate:
    """The mean of values from which the controls' mean was taken, with its error.

    Over seeds from three on; of fewer over examples and controls, those of each seed by
    themselves, which says nothing of other seeds.
    """
    if len(values_RN) > 2:
        return mean_and_error(values_RN.mean(1))
    variance_R = sum(a.var(1, ddof=1) / a.shape[1] for a in (values_RN, controls_RC))
    count = min(values_RN.shape[1], controls_RC.shape[1])
    error = np.sqrt(variance_R.sum()) / len(values_RN)
    return Estimate(float(values_RN.mean()), float(error), count)


def measure(bench: Bench, section: ConfigDict, label: str) -> list[Arm]:
    """Trains every schedule in fixed order, and those of `reshuffled` in a new order an epoch.

    Raises:
      Stopped: a signal came; what was trained is stored.
      UserError: batches do not divide the examples, or the corpus is too short.
    """
    if section.examples < LEAST:
        raise UserError(f"config.{label}.examples must be at least {LEAST} for the statistics")
    if section.controls < 2:
        raise UserError(f"config.{label}.controls must be at least 2, not {section.controls}")
    if section.examples % section.batch_size or section.epochs < 2:
        raise UserError(
            f"config.{label}.batch_size {section.batch_size} must divide its examples "
            f"{section.examples}, and there must be two epochs or more"
        )
    arms = [(name, "fixed") for name in section.schedules]
    arms += [(name, "reshuffled") for name in section.reshuffled]
    if unknown := {name for name, _ in arms} - SCHEDULES.keys():
        raise UserError(
            f"config.{label} names the schedule {min(unknown)!r}: take {', '.join(SCHEDULES)}"
        )
    return [_arm(bench, section, label, name, order) for name, order in arms]


def _arm(bench: Bench, section: ConfigDict, label: str, name: str, order: str) -> Arm:
    per_epoch = section.examples // section.batch_size
    training = Training(
        steps=section.epochs * per_epoch,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        schedule=name,
        cycle_steps=per_epoch if name == "cyclical" else 0,
        evaluate_every=section.evaluate_every,
        checkpoint_every=section.checkpoint_every,
        sights=True,
    )
    setting = {"what": "sights", "section": _identity(section), "arm": [name, order]}

    def orders(seeds):
        if order == "fixed":
            return np.stack([fixed_order(section.examples, training) for _ in seeds])
        return np.stack([shuffled_order(section.examples, training, seed) for seed in seeds])

    def work(seeds, own):
        count = section.examples
        drawn_RNT = np.stack(
            [bench.examples(section.corpus, windows_of(section), s, "sights") for s in seeds]
        )
        # A random split, as they were drawn in a random order.
        tokens_RNT, controls_RCT = drawn_RNT[:, :count], drawn_RNT[:, count:]
        rows = Rows(tokens_RNT, orders(seeds), controls_RCT)
        found = bench.tune(training, rows, own, f"{label}, {name}, {order}")
        base_RN = [bench.row_losses(tokens_NT) for tokens_NT in tokens_RNT]
        return found | {"base": np.round(base_RN, 5).tolist()}

    seeds, together = list(section.seeds), section.together
    found = in_groups(bench, seeds, together, setting, work, f"{name}, {order} order")
    example_RT = orders(seeds).reshape(len(seeds), -1)
    base_RN = np.concatenate([np.asarray(part["base"]) for part in found])
    steps_H, controls_RHC, heldout = _heldout(found, bench.subject.sources[0].name)
    return Arm(
        schedule=name,
        order=order,
        training=training,
        losses_RT=np.concatenate(
            [np.asarray(part["losses"]).reshape(len(part["losses"]), -1) for part in found]
        ),
        base_RT=np.take_along_axis(base_RN, example_RT, axis=1),
        example_RT=example_RT,
        epochs=section.epochs,
        steps_H=steps_H,
        controls_RHC=controls_RHC,
        heldout=heldout,
    )


def _identity(section: ConfigDict) -> dict[str, Any]:
    """What a single arm depends on, besides what the subject says: not which others there are."""
    free = ("schedules", "reshuffled", "seeds", "together", "checkpoint_every", "draw", "sources",
            "windows")  # fmt: skip
    return {key: value for key, value in section.to_dict().items() if key not in free}


def _heldout(
    found: Sequence[Any], source: str
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The steps, controls (R, H, C) and {metric: (R, H)} of all groups of seeds."""
    curves = []
    for part in found:
        for member in range(len(part["losses"])):
            curves.append([row for row in part["heldout"] if row["member"] == member])
    steps_H = np.array([row["step"] for row in curves[0]])
    values = {
        metric: np.array([[row[f"{source}/{metric}"] for row in own] for own in curves])
        for metric in METRICS
    }
    count = sum(name.startswith("control/") for name in curves[0][0])
    controls_RHC = [[[row[f"control/{i}"] for i in range(count)] for row in own] for own in curves]
    return steps_H, np.array(controls_RHC), values


def windows_of(section: ConfigDict) -> int:
    """How many windows a seed draws."""
    return section.examples + section.controls
