"""What one sight of an example leaves behind: stairs of the loss, gains, canaries.

All of it takes numbers that a training left, and no model. Letters: T sights in the order of
training, E epochs, N examples, M members, K places, C candidates, D draws.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtr, stdtrit

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
    """A correlation, the 2.5 and 97.5 % points over shifts, and the p-value."""

    correlation: float
    null: tuple[float, float]
    p_value: float


class Share(NamedTuple):
    """A mean or a share with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


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
    return _last(x_WK, y_W)


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


def slope_test(values_N: ArrayLike, covariates_NC: ArrayLike | None = None) -> Step:
    """How far the line through a curve goes from its first value to its last.

    Least squares, and Student's t of the slope. Valid where the values have independent errors,
    as those of different examples have; a curve that is not a line leaves larger residuals.

    Args:
      values_N: the curve; means over seeds, if there are several.
      covariates_NC: as of `step_test`.

    Raises:
      ValueError: too few values for the line, its covariates and an error.
    """
    y_N = np.asarray(values_N, np.float64)
    x_NK = np.stack([np.ones_like(y_N), np.linspace(0, 1, len(y_N))], axis=1)
    if covariates_NC is not None:
        own_NC = np.asarray(covariates_NC, np.float64)
        x_NK = np.concatenate([own_NC - own_NC.mean(0), x_NK], axis=1)
    if len(y_N) <= x_NK.shape[1]:
        raise ValueError(f"{len(y_N)} values are too few for {x_NK.shape[1]} coefficients")
    return _last(x_NK, y_N)


def _last(x_NK: Array, y_N: Array) -> Step:
    """The last coefficient of a least-squares fit, with Student's t against zero."""
    inverse_KK = np.linalg.pinv(x_NK.T @ x_NK)
    fit_K = inverse_KK @ x_NK.T @ y_N
    freedom = len(y_N) - x_NK.shape[1]
    variance = np.square(y_N - x_NK @ fit_K).sum() / freedom
    size, error = float(fit_K[-1]), float(np.sqrt(variance * inverse_KK[-1, -1]))
    if error == 0:
        return Step(size, 0.0, 0.0 if size else 1.0)
    return Step(size, error, float(2 * stdtr(freedom, -abs(size) / error)))


def gains(
    losses_EN: ArrayLike,
    steps_EN: ArrayLike,
    control_steps_H: ArrayLike,
    control_losses_H: ArrayLike,
) -> Array:
    """What each sight but the last did for an example by its next, (E - 1, N), nats per token.

    The loss at one sight minus that at the next, minus the same difference on controls, whose
    loss is interpolated between the steps at which it was measured: what is left is what the
    example itself taught about itself, if which examples are controls was drawn at random.

    Args:
      losses_EN: loss of each example at its e-th sight, before the update that it takes part in.
      steps_EN: number of updates before that sight.
      control_steps_H, control_losses_H: updates so far, rising, and the controls' loss.
    """
    losses_EN = np.asarray(losses_EN, np.float64)
    control_EN = np.interp(np.asarray(steps_EN, np.float64), control_steps_H, control_losses_H)
    return -np.diff(losses_EN, axis=0) + np.diff(control_EN, axis=0)


def correlation(values_MK: ArrayLike, cause_MK: ArrayLike) -> float:
    """Pearson's correlation after the mean of each member was taken away.

    Raises:
      ValueError: the cause is the same for all values of every member.
    """
    values_MK, cause_MK = _centred(values_MK), _centred(cause_MK)
    spread = np.square(cause_MK).sum()
    if spread <= 1e-24:
        raise ValueError("the cause does not vary within any member")
    return float((values_MK * cause_MK).sum() / np.sqrt(spread * np.square(values_MK).sum()))


def association(values_MK: ArrayLike, cause_K: ArrayLike) -> Association:
    """How values along a training go with a cause that has a course of its own.

    Pearson's correlation after the mean of each member and a line along the places were taken
    away, against those with the cause shifted in a circle by every number of places, by the same
    for all members: a drift that members share stays what it is. Shuffling single places would not
    do, as neighbours under a drift are alike. The p-value is the share of all K shifts, none among
    them, whose correlation is at least as large in absolute value.

    It assumes that what is left of a drift beside the line is as likely to lie under one part of
    the cause's course as under another. That holds for a random walk if the cause ends where it
    began, as the rate of one cycle does; for a cause that goes one way it does not, and then no
    test can tell the cause from a drift. A smooth cause has few shifts that differ, so the power
    is small.

    Args:
      values_MK: by member and place.
      cause_K: of each place.

    Raises:
      ValueError: the cause is a line.
    """
    values_MK = _centred(values_MK)
    cause_K = np.asarray(cause_K, np.float64)
    count = len(cause_K)
    line_K2 = np.linalg.qr(np.vander(np.linspace(-1, 1, count), 2))[0]
    values_MK = values_MK - (values_MK @ line_K2) @ line_K2.T
    shifted_KK = np.stack([np.roll(cause_K, shift) for shift in range(count)])
    shifted_KK = shifted_KK - (shifted_KK @ line_K2) @ line_K2.T
    spread_K = np.square(shifted_KK).sum(1)
    if spread_K[0] <= 1e-24:
        raise ValueError("the cause does not vary beside a line")
    scale_K = np.sqrt(np.maximum(spread_K, 1e-24) * np.square(values_MK).sum() * len(values_MK))
    null_K = shifted_KK @ values_MK.sum(0) / scale_K
    found = float(null_K[0])
    p_value = float((np.abs(null_K) >= abs(found) * (1 - 1e-9)).mean())
    low, high = np.quantile(null_K, [0.025, 0.975])
    return Association(found, (float(low), float(high)), p_value)


def _centred(values_MK: ArrayLike) -> Array:
    values_MK = np.asarray(values_MK, np.float64)
    return values_MK - values_MK.mean(1, keepdims=True)


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


def wilson(successes: int, count: int) -> Share:
    """A share with Wilson's 95 % interval, which lies in [0, 1] and has a width at 0 and 1 too.

    Raises:
      ValueError: not 0 <= successes <= count, or nothing was counted.
    """
    if not 0 <= successes <= count or not count:
        raise ValueError(f"successes must lie in 0 to count, not {successes} of {count}")
    z, share = float(ndtri(0.975)), successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    # At the ends the bound is exact but for rounding.
    return Share(share, min(share, float(middle - half)), max(share, float(middle + half)))


def bounded_mean(values_N: ArrayLike, low: float, high: float) -> Share:
    """A mean with the 95 % interval of Student's t, cut at what the values cannot pass.

    Raises:
      ValueError: fewer than two values.
    """
    values_N = np.asarray(values_N, np.float64)
    if len(values_N) < 2:
        raise ValueError("an interval needs two values or more")
    half = stdtrit(len(values_N) - 1, 0.975) * values_N.std(ddof=1) / np.sqrt(len(values_N))
    mean = float(values_N.mean())
    return Share(mean, max(low, float(mean - half)), min(high, float(mean + half)))
