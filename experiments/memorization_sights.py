"""Several epochs over few examples: the loss of each example at every sight, and statistics."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from memorization_training import Bench, Rows, Training, fixed_order, in_groups, shuffled_order
from ml_collections import ConfigDict

from lmnoise.errors import UserError
from lmnoise.evaluation import memorization
from lmnoise.evaluation.memorization import Association, Search, Step
from lmnoise.report import Estimate, mean_and_error
from lmnoise.training.optimizer import schedule

SCHEDULES = {"cyclical": "A: warm-up and cosine each epoch", "cosine": "B: one cosine",
             "constant": "constant rate"}  # fmt: skip
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
      heldout: {metric: (R, H)} at `heldout_steps_H` updates.
    """

    schedule: str
    order: str
    training: Training
    losses_RT: np.ndarray
    base_RT: np.ndarray
    example_RT: np.ndarray
    epochs: int
    heldout_steps_H: np.ndarray
    heldout: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return f"{SCHEDULES[self.schedule]}, {self.order} order"

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

    @property
    def rate_K(self) -> np.ndarray:
        """The learning rate of every update."""
        fraction = jax.vmap(schedule(self.training.optimizer))(jnp.arange(self.training.steps))
        return self.training.learning_rate * np.asarray(fraction, np.float64)

    def gains(self) -> np.ndarray:
        """Gains by example and sight, (R, E - 1, N), see `memorization.gains`."""
        step_RT = np.broadcast_to(
            np.arange(self.losses_RT.shape[1]) // self.training.batch_size, self.losses_RT.shape
        )
        return np.stack(
            [
                memorization.gains(
                    self._by_example(losses_T, example_T),
                    self._by_example(step_T, example_T),
                    self.heldout_steps_H,
                    heldout_H,
                )
                for losses_T, step_T, example_T, heldout_H in zip(
                    self.losses_RT, step_RT, self.example_RT, self.heldout["loss"], strict=True
                )
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
        step_T = np.arange(self.losses_RT.shape[1]) // self.training.batch_size
        return np.stack(
            [np.diff(self._by_example(step_T, own_T), axis=0)[0] for own_T in self.example_RT]
        )

    def _by_example(self, values_T: np.ndarray, example_T: np.ndarray) -> np.ndarray:
        """(E, N), the examples in the order of their numbers."""
        order_EN = np.argsort(example_T.reshape(self.epochs, -1), axis=1)
        return np.take_along_axis(values_T.reshape(self.epochs, -1), order_EN, axis=1)


def measure(bench: Bench, section: ConfigDict, label: str) -> list[Arm]:
    """Trains every schedule in fixed order, and those of `reshuffled` in a new order an epoch.

    Raises:
      Stopped: a signal came; what was trained is stored.
      UserError: batches do not divide the examples, or the corpus is too short.
    """
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
    if all(name == "constant" for name, _ in arms):
        raise UserError(f"config.{label}.schedules needs one whose rate varies: cyclical or cosine")
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
        tokens_RNT = np.stack(
            [bench.examples(section.corpus, section.examples, s, "sights") for s in seeds]
        )
        title = f"{label}, {name}, {order}"
        found = bench.tune(training, Rows(tokens_RNT, orders(seeds)), own, title)
        base_RN = [bench.row_losses(tokens_NT) for tokens_NT in tokens_RNT]
        return found | {"base": np.round(base_RN, 5).tolist()}

    seeds, together = list(section.seeds), section.together
    found = in_groups(bench, seeds, together, setting, work, f"{name}, {order} order")
    example_RT = orders(seeds).reshape(len(seeds), -1)
    base_RN = np.concatenate([np.asarray(part["base"]) for part in found])
    steps_H, heldout = _heldout(found, bench.subject.sources[0].name)
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
        heldout_steps_H=steps_H,
        heldout=heldout,
    )


def _identity(section: ConfigDict) -> dict[str, Any]:
    """What a single arm depends on, besides what the subject says: not which others there are."""
    free = ("schedules", "reshuffled", "seeds", "together", "checkpoint_every", "draw", "sources",
            "windows")  # fmt: skip
    return {key: value for key, value in section.to_dict().items() if key not in free}


def _heldout(found: Sequence[Any], source: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The steps, and {metric: (R, H)} of all groups of seeds."""
    curves = []
    for part in found:
        for member in range(len(part["losses"])):
            curves.append([row for row in part["heldout"] if row["member"] == member])
    steps_H = np.array([row["step"] for row in curves[0]])
    values = {
        metric: np.array([[row[f"{source}/{metric}"] for row in own] for own in curves])
        for metric in METRICS
    }
    return steps_H, values


def estimate(values_RN: np.ndarray) -> Estimate:
    """The mean, with its error over seeds; of a single seed over examples."""
    return mean_and_error(values_RN.mean(1) if len(values_RN) > 1 else values_RN[0])


def known(arm: Arm, arms: Sequence[Arm]) -> np.ndarray:
    """What is known of an arm's sights from elsewhere, (R, T, C).

    The loss before training; and what became of the example in another order, where that was
    trained, which says how much there is to learn about it wherever it stands.
    """
    other = next((a for a in arms if a.order == "reshuffled" and a.order != arm.order), None)
    covariates = [arm.base_RT]
    if other is not None:
        covariates.append(np.take_along_axis(other.effects(), arm.example_RT, axis=1))
    return np.stack(covariates, axis=2)


def adjusted(arm: Arm, arms: Sequence[Arm]) -> np.ndarray:
    """The change of the loss without what goes with `known`, (R, T): for figures."""
    epochs = np.eye(arm.epochs).repeat(arm.examples, axis=0)
    place = np.tile(np.linspace(-1, 1, arm.examples), arm.epochs)[:, None]
    trend_TK = np.concatenate([epochs, epochs * place, epochs * place**2], axis=1)
    left = []
    for change_T, known_TC in zip(arm.change_RT, known(arm, arms), strict=True):
        own_TC = known_TC - known_TC.mean(0)
        fit = np.linalg.lstsq(np.concatenate([own_TC, trend_TK], axis=1), change_T)[0]
        left.append(change_T - own_TC @ fit[: own_TC.shape[1]])
    return np.stack(left)


def stairs(arm: Arm, arms: Sequence[Arm]) -> list[Step]:
    """The jump at every boundary, of the mean over seeds."""
    known_TC = known(arm, arms).mean(0)
    return [
        memorization.step_test(arm.change_RT.mean(0), place, arm.examples // 2, known_TC)
        for place in arm.boundaries
    ]


def searches(arm: Arm, arms: Sequence[Arm], seed: int) -> list[tuple[float, Search]]:
    """Around every boundary, half an epoch each way, where the curve jumps most.

    The place is in epochs from the boundary; no example is twice in such a window.
    """
    change_T, half = arm.change_RT.mean(0), arm.examples // 2
    rng, size = np.random.default_rng(seed), arm.training.batch_size
    known_TC = known(arm, arms).mean(0)
    found = []
    for boundary in arm.boundaries:
        window = slice(boundary - half, boundary + half)
        place = memorization.step_search(
            change_T[None, window],
            rng,
            stride=size,
            offset=half % size,
            covariates_TC=known_TC[window],
        )
        found.append(((place.place - half) / arm.examples, place))
    return found


class Pairs(NamedTuple):
    """Gains of the first sight (R, n) and what they may come from (R, n)."""

    name: str
    cause: str
    gains: np.ndarray
    causes: np.ndarray


RATE, WAIT = "rate at first sight", "updates since"


def pairs(arms: Sequence[Arm]) -> list[Pairs]:
    """What the gain of the first sight is held against, by batch; by example for the wait.

    The constant rate is held against the rates that schedule A had at the same places: what it
    shows there cannot come from the rate. Between arms of one order the gains are paired.
    """
    of = {(arm.schedule, arm.order): arm for arm in arms}
    constant, cyclical = of.get(("constant", "fixed")), of.get(("cyclical", "fixed"))
    found = []
    for arm in arms:
        first_RK = arm.batch_gains()
        rate_RK = np.broadcast_to(arm.rate_K[: first_RK.shape[1]], first_RK.shape)
        if arm.schedule != "constant":
            found.append(Pairs(arm.name, RATE, first_RK, rate_RK))
        if arm.schedule != "constant" and arm.order == "fixed" and constant is not None:
            paired_RK = first_RK - constant.batch_gains()
            found.append(Pairs(f"{arm.name}, minus constant rate", RATE, paired_RK, rate_RK))
        if arm is constant and cyclical is not None:
            rate_RK = np.broadcast_to(cyclical.rate_K[: first_RK.shape[1]], first_RK.shape)
            found.append(Pairs(arm.name, "rate of A at that place", first_RK, rate_RK))
        if arm.order == "reshuffled":
            found.append(Pairs(arm.name, WAIT, arm.gains()[:, 0], arm.waits()))
    return found


def causes(arms: Sequence[Arm], seed: int) -> list[tuple[Pairs, Association]]:
    """All `pairs` with their associations."""
    rng = np.random.default_rng(seed)
    return [(p, memorization.association(p.gains, p.causes, rng)) for p in pairs(arms)]
