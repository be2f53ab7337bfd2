"""Stairs of the loss, what is flat between them, and what the gain of a sight goes with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from memorization_sights import Arm

from lmnoise.evaluation import memorization
from lmnoise.evaluation.memorization import Association, Search, Step
from lmnoise.report import Estimate, mean_and_error


def known(arm: Arm, arms: Sequence[Arm]) -> np.ndarray:
    """What is known of an arm's sights from elsewhere, (R, T, C).

    The loss before training; and what became of the example in another order, where that was
    trained, which says how much there is to learn about it wherever it stands.
    """
    others = [a for a in arms if a.order == "reshuffled" and a.order != arm.order]
    others.sort(key=lambda other: other.schedule != arm.schedule)
    other = next(iter(others), None)
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


class Boundary(NamedTuple):
    """What happens between two epochs.

    Attributes:
      over_seeds: the jump of every seed by itself, in nats.
      step: the jump of the mean over seeds, and whether there is one.
      away, search: how many epochs from the boundary the largest jump is, if it is not known
        where, and whether there is one.
    """

    over_seeds: Estimate
    step: Step | None
    away: float | None
    search: Search | None


def boundaries(arm: Arm, arms: Sequence[Arm], seed: int) -> list[Boundary]:
    """The jump at every boundary.

    Only in fixed order can examples be tested: half an epoch each way holds none twice then. With
    reshuffling it does, so that errors are not independent, and seeds alone say how sure it is.
    """
    half, known_RTC = arm.examples // 2, known(arm, arms)
    tests = [None] * len(arm.boundaries)
    if arm.order == "fixed":
        tests = _searches(arm, known_RTC.mean(0), seed)
    found = []
    for place, test in zip(arm.boundaries, tests, strict=True):
        of_seeds = [
            memorization.step_test(change_T, place, half, known_TC).size
            for change_T, known_TC in zip(arm.change_RT, known_RTC, strict=True)
        ]
        step = None
        if test is not None:
            mean_T, known_TC = arm.change_RT.mean(0), known_RTC.mean(0)
            step = memorization.step_test(mean_T, place, half, known_TC)
        found.append(Boundary(mean_and_error(of_seeds), step, *(test or (None, None))))
    return found


def _searches(arm: Arm, known_TC: np.ndarray, seed: int) -> list[tuple[float, Search]]:
    """Around every boundary, half an epoch each way, where the curve jumps most.

    The place is in epochs from the boundary.
    """
    change_T, half = arm.change_RT.mean(0), arm.examples // 2
    rng, size = np.random.default_rng(seed), arm.training.batch_size
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


def inside(arm: Arm, arms: Sequence[Arm]) -> list[Step]:
    """How far the loss goes inside each epoch, along a line; no example is twice in one."""
    return [_line(arm, arms, slice(e * arm.examples, (e + 1) * arm.examples))
            for e in range(arm.epochs)]  # fmt: skip


def last_quarter(arm: Arm, arms: Sequence[Arm]) -> Step:
    """How far the loss goes in the last quarter of epoch 2, where that of schedule A should rise:

    what was seen there in epoch 1 was seen at a low rate.
    """
    return _line(arm, arms, slice(2 * arm.examples - arm.examples // 4, 2 * arm.examples))


def _line(arm: Arm, arms: Sequence[Arm], window: slice) -> Step:
    known_TC = known(arm, arms).mean(0)
    return memorization.slope_test(arm.change_RT.mean(0)[window], known_TC[window])


class Cause(NamedTuple):
    """Gains of the first sight (M, n), what they may come from (M, n), and what was found.

    Attributes:
      name, of: whose gains, and what they are held against.
      correlations: of each member, over members.
      tested: by circular shifts; None where the cause does not end where it began.
      claim: whether the rate is claimed to be the cause if this shows.
    """

    name: str
    of: str
    gains: np.ndarray
    causes: np.ndarray
    correlations: Estimate
    tested: Association | None
    claim: bool


RATE, WAIT = "rate at first sight", "updates since"


def causes(arms: Sequence[Arm]) -> list[Cause]:
    """What the gain of the first sight goes with, by batch; by example for the wait.

    The claim is made of the gain under schedule A minus that of the same examples at the same
    places under a constant rate, both orders together: what a place does by itself is in both.
    The constant rate is also held against the rates that A had there. The rate of schedule B goes
    one way in the first epoch, and the wait goes with the place of the first sight: neither can
    be told from a drift, so there is no test of them.
    """
    of = {(arm.schedule, arm.order): arm for arm in arms}
    cyclical = next((arm for arm in arms if arm.schedule == "cyclical"), None)
    found = []
    for name in ("cyclical", "cosine"):
        own = [(arm, of.get(("constant", arm.order))) for arm in arms if arm.schedule == name]
        paired = [arm.batch_gains() - c.batch_gains() for arm, c in own if c is not None]
        if paired:
            title = f"{own[0][0].schedule_name}, minus constant rate"
            found.append(_cause(title, RATE, np.concatenate(paired), own[0][0], True))
    for arm in arms:
        if arm.schedule != "constant":
            found.append(_cause(arm.name, RATE, arm.batch_gains(), arm))
        elif cyclical is not None:
            found.append(_cause(arm.name, "rate of A at that place", arm.batch_gains(), cyclical))
        if arm.order == "reshuffled":
            gains_RN, waits_RN = arm.gains()[:, 0], arm.waits()
            found.append(Cause(arm.name, WAIT, gains_RN, waits_RN,
                               _correlations(gains_RN, waits_RN), None, False))  # fmt: skip
    return found


def _cause(name: str, of: str, gains_MK: np.ndarray, like: Arm, claim: bool = False) -> Cause:
    """Against the rates of `like` in the first epoch."""
    rate_K = like.rate_K[: gains_MK.shape[1]]
    causes_MK = np.broadcast_to(rate_K, gains_MK.shape)
    closed = like.schedule == "cyclical"
    tested = memorization.association(gains_MK, rate_K) if closed else None
    correlations = _correlations(gains_MK, causes_MK)
    return Cause(name, of, gains_MK, causes_MK, correlations, tested, claim and closed)


def _correlations(values_MN: np.ndarray, causes_MN: np.ndarray) -> Estimate:
    return mean_and_error(
        [
            memorization.correlation(values_N[None], cause_N[None])
            for values_N, cause_N in zip(values_MN, causes_MN, strict=True)
        ]
    )
