"""What one sight of an example leaves behind: stairs of the loss, gains, canaries.

All of it takes numbers that a training left, and no model. Letters: T sights in the order of
training, E epochs, N examples, M members, C candidates, D draws.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

type Array = NDArray[np.float64]


class Step(NamedTuple):
    """A jump of a curve: its size (negative downwards), standard error and two-sided p-value."""

    size: float
    standard_error: float
    p_value: float


class Search(NamedTuple):
    """The place (before which value) where a jump fits best, its F statistic and p-value."""

    place: int
    statistic: float
    p_value: float


class Association(NamedTuple):
    """A correlation, the 2.5 and 97.5 % points of its permutation null, the p-value, the slope."""

    correlation: float
    null: tuple[float, float]
    p_value: float
    slope: float


def step_test(
    values_T: ArrayLike, place: int, window: int, covariates_TC: ArrayLike | None = None
) -> Step:
    """Whether a curve jumps at a known place, against the curve going on smoothly.

    Least squares of a parabola plus a jump on the `window` values on each side of the place, and
    Student's t of the jump (its square is the F statistic of one against none). Valid where the
    values around the place have independent errors: in a fixed order of N examples a window of at
    most N / 2 holds no example twice, so what an example keeps from epoch to epoch does no harm.

    Args:
      values_T: the curve; means over seeds, if there are several.
      place: index of the first value after the jump.
      window: values on each side, at least 3.
      covariates_TC: what is known of each value from elsewhere than its place, such as the loss
        of the example before training; part of the least squares.

    Raises:
      ValueError: the window is too small or reaches beyond the curve.
    """
    values_T = np.asarray(values_T, np.float64)
    if window < 3 or place < window or place + window > len(values_T):
        raise ValueError(f"a window of {window} around {place} does not fit {len(values_T)} values")
    y_W = values_T[place - window : place + window]
    at_W = (np.arange(2 * window) - window + 0.5) / window
    x_WK = np.stack([np.ones_like(at_W), at_W, at_W**2, at_W > 0], axis=1)
    if covariates_TC is not None:
        own_WC = np.asarray(covariates_TC, np.float64)[place - window : place + window]
        x_WK = np.concatenate([own_WC - own_WC.mean(0), x_WK], axis=1)
    inverse_KK = np.linalg.pinv(x_WK.T @ x_WK)
    fit_K = inverse_KK @ x_WK.T @ y_W
    freedom = 2 * window - x_WK.shape[1]
    variance = np.square(y_W - x_WK @ fit_K).sum() / freedom
    size, error = float(fit_K[-1]), float(np.sqrt(variance * inverse_KK[-1, -1]))
    if error == 0:
        return Step(size, 0.0, 0.0 if size else 1.0)
    return Step(size, error, float(2 * stdtr(freedom, -abs(size) / error)))


def step_search(
    values_EN: ArrayLike,
    rng: np.random.Generator,
    *,
    stride: int = 1,
    offset: int = 0,
    covariates_TC: ArrayLike | None = None,
    degree: int = 2,
    draws: int = 999,
) -> Search:
    """Where a curve of E epochs over the same N examples jumps most, if it does at all.

    The largest F statistic of a jump beside a polynomial trend over all places. Its null comes
    from the residuals of the trend alone, put in another order (Freedman and Lane 1983): the
    examples change places, each with its residuals of all epochs, so that what they have in
    common stays.

    Args:
      values_EN: in the order of training, one row an epoch; E may be 1.
      rng: of the permutations.
      stride, offset: places that count: `offset`, `offset + stride` and so on, where batches
        begin.
      covariates_TC: as of `step_test`, beside the trend.
      degree: of the trend.
      draws: number of permutations.
    """
    values_EN = np.asarray(values_EN, np.float64)
    count = values_EN.size
    at_T = np.linspace(-1, 1, count)
    trend_TK = np.vander(at_T, degree + 1)
    if covariates_TC is not None:
        trend_TK = np.concatenate([trend_TK, np.asarray(covariates_TC, np.float64)], axis=1)
    trend_TK = np.linalg.qr(trend_TK)[0]
    margin = max(2, degree + 1)  # beyond which a jump is no more than a few odd values
    places_P = np.arange(offset, count, stride)
    places_P = places_P[(places_P >= margin) & (places_P <= count - margin)]
    jumps_TP = (np.arange(count)[:, None] >= places_P[None]).astype(np.float64)
    jumps_TP -= trend_TK @ (trend_TK.T @ jumps_TP)
    jumps_TP /= np.linalg.norm(jumps_TP, axis=0, keepdims=True)

    def statistics(values_DT):
        residual_DT = values_DT - (values_DT @ trend_TK) @ trend_TK.T
        explained_DP = np.square(residual_DT @ jumps_TP)
        rest_DP = np.square(residual_DT).sum(1, keepdims=True) - explained_DP
        return explained_DP * (count - trend_TK.shape[1] - 1) / np.maximum(rest_DP, 1e-300)

    values_T = values_EN.reshape(-1)
    found_P = statistics(values_T[None])[0]
    residual_EN = (values_T - trend_TK @ (trend_TK.T @ values_T)).reshape(values_EN.shape)
    order_DN = rng.permuted(np.tile(np.arange(values_EN.shape[1]), (draws, 1)), axis=1)
    null_DT = residual_EN[:, order_DN].swapaxes(0, 1).reshape(draws, count)
    null_D = statistics(null_DT).max(1)
    best = int(found_P.argmax())
    p_value = (1 + int((null_D >= found_P[best]).sum())) / (draws + 1)
    return Search(int(places_P[best]), float(found_P[best]), p_value)


def gains(
    losses_EN: ArrayLike,
    steps_EN: ArrayLike,
    heldout_steps_H: ArrayLike,
    heldout_losses_H: ArrayLike,
) -> Array:
    """What each sight but the last did for an example by its next, (E - 1, N), nats per token.

    The loss at one sight minus that at the next, minus the same difference on held-out examples,
    whose loss is interpolated between the steps at which it was measured: what is left is what
    the example itself taught about itself.

    Args:
      losses_EN: loss of each example at its e-th sight, before the update that it takes part in.
      steps_EN: number of updates before that sight.
      heldout_steps_H, heldout_losses_H: updates so far, rising, and the held-out loss.
    """
    losses_EN = np.asarray(losses_EN, np.float64)
    heldout_EN = np.interp(np.asarray(steps_EN, np.float64), heldout_steps_H, heldout_losses_H)
    return -np.diff(losses_EN, axis=0) + np.diff(heldout_EN, axis=0)


def association(
    values_MN: ArrayLike, cause_MN: ArrayLike, rng: np.random.Generator, draws: int = 999
) -> Association:
    """How values go with a cause that was assigned to them, against a shuffled assignment.

    Pearson's correlation after the mean of each member was taken away, so that differences
    between members count for nothing; the null shuffles the causes within each member.

    Raises:
      ValueError: the cause is the same for all values of every member.
    """
    values_MN, cause_MN = (
        a - a.mean(1, keepdims=True)
        for a in (np.asarray(values_MN, np.float64), np.asarray(cause_MN, np.float64))
    )
    spread = np.square(cause_MN).sum()
    if spread <= 1e-24:
        raise ValueError("the cause does not vary within any member")
    scale = np.sqrt(spread * np.square(values_MN).sum())
    product = float((values_MN * cause_MN).sum())
    null_D = np.array([(values_MN * rng.permuted(cause_MN, axis=1)).sum() for _ in range(draws)])
    p_value = (1 + int((np.abs(null_D) >= abs(product) * (1 - 1e-12)).sum())) / (draws + 1)
    low, high = np.quantile(null_D / scale, [0.025, 0.975])
    return Association(product / scale, (float(low), float(high)), p_value, product / spread)


def candidates(prefix: Sequence[int], symbols: Sequence[int], length: int) -> np.ndarray:
    """Every row `prefix` + `length` symbols, (len(symbols) ** length, P + length) int32.

    The symbols' positions count up like digits, the last the fastest.
    """
    fillings = np.array(list(itertools.product(symbols, repeat=length)), np.int32)
    front = np.tile(np.asarray(prefix, np.int32), (len(fillings), 1))
    return np.concatenate([front, fillings], axis=1)


def exposure(losses_C: ArrayLike, planted: int) -> float:
    """Exposure of a canary in bits, `log2 |R| - log2 rank` (arXiv 1802.08232).

    |R| is the number of candidate fillings and the rank that of the planted one by its loss, 1
    for the lowest; ties count against it. From 0 to log2 |R|. Of a canary that was never seen the
    mean is about 1 / log 2 = 1.44 bits.

    Args:
      losses_C: loss of every candidate, the planted one among them.
      planted: its index.
    """
    losses_C = np.asarray(losses_C, np.float64)
    rank = int((losses_C <= losses_C[planted]).sum())
    return float(np.log2(len(losses_C)) - np.log2(rank))


def verbatim_rate(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """The share of continuations that are the wanted text, token by token.

    Raises:
      ValueError: no text, or one of another length than its continuation.
    """
    if not len(wanted):
        raise ValueError("wanted must hold a text or more")
    same = [
        all(a == b for a, b in zip(own, text, strict=True))
        for own, text in zip(found, wanted, strict=True)
    ]
    return sum(same) / len(same)
