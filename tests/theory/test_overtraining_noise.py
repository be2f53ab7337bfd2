"""Over-training: noise on the weights and the turning point against simulation and search."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from lmnoise.theory import overtraining

KEY = jax.random.key(0)
SIGMA = np.array([3.0, 1.0, 0.4, 0.0])
START = np.array([0.02, 0.3, 1e-4, 0.5])
BASES = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 4, 4)))[0]
# The spectrum of the check value.
LONG = np.r_[8, 4, 2, 1, 0.5, 0.25, 0.12, 0.06, np.zeros(8)]


def simulated(left, right, target, scale, key=KEY):
    return map(float, overtraining.simulate_perturbed(key, left, right, target, scale, 4096))


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_perturbed_loss_is_the_mean_over_draws(scale):
    u, v = BASES
    times = np.array([0.0, 1.0, 5.0])
    modes = overtraining.modes(SIGMA, times, START)
    expected = overtraining.perturbed_loss(SIGMA, modes, scale)
    for s, value in zip(modes, expected, strict=True):
        factors = u * np.sqrt(s), np.sqrt(s)[:, None] * v.T
        mean, error = simulated(*factors, u * SIGMA @ v.T, scale)
        assert abs(mean - value) < 4 * error
        assert error < 0.02 * value


def test_simulation_of_factors_of_any_shape():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(3, 5)), random.normal(size=(5, 2))
    target = random.normal(size=(3, 2))
    mean, error = simulated(left, right, target, 0.2)
    noise = 0.2**2 * (3 * (right**2).sum() + 2 * (left**2).sum()) + 0.2**4 * 3 * 5 * 2
    assert abs(mean - (((target - left @ right) ** 2).sum() + noise) / 2) < 4 * error
    other, _ = simulated(left, right, target, 0.2, key=jax.random.key(1))
    assert 0 < abs(mean - other) < 6 * error
    exact, error = simulated(left, right, target, 0.0)
    assert exact == pytest.approx(((target - left @ right) ** 2).sum() / 2)
    assert error == 0


@settings(max_examples=50, deadline=None)
@given(
    sigma=st.lists(st.floats(0, 10), min_size=3, max_size=3),
    start=st.floats(1e-6, 1e-2),
    scale=st.floats(0, 1),
)
def test_sensitivity_grows_and_loss_falls_with_pre_training(sigma, start, scale):
    sigma = np.maximum(sigma, start)
    times = np.r_[0.0, np.geomspace(1e-3, 1e3, 40)]
    modes = overtraining.modes(sigma, times, start)
    loss = overtraining.loss(sigma, modes)
    sensitivity = overtraining.sensitivity(modes, scale)
    assert (np.diff(loss) <= 1e-14 * (sigma**2).sum()).all()
    assert (np.diff(sensitivity) >= -1e-12 * sensitivity[-1]).all()
    perturbed = overtraining.perturbed_loss(sigma, modes, scale)
    np.testing.assert_allclose(perturbed, loss + sensitivity, rtol=1e-14)
    cured = overtraining.soft_threshold(sigma, scale)
    lowest = overtraining.perturbed_loss(sigma, cured, scale)
    assert (perturbed >= lowest * (1 - 1e-12)).all()


def test_soft_threshold_is_the_minimum_over_both_factors():
    """The expectation over the noise by hand, minimised without knowing singular vectors."""
    u, v = BASES
    target, scale, d = u * SIGMA @ v.T, 0.4, 4

    def expected(flat):
        w1, w2 = flat.reshape(2, d, d)
        error = w1 @ w2 - target
        penalty = scale**2 * d
        value = (error**2).sum() / 2 + penalty / 2 * (flat**2).sum() + scale**4 * d**3 / 2
        return value, np.r_[(error @ w2.T).ravel(), (w1.T @ error).ravel()] + penalty * flat

    flat = np.random.default_rng(1).normal(size=2 * d * d)
    found = optimize.minimize(expected, flat, jac=True, method="BFGS", options={"gtol": 1e-9})
    w1, w2 = found.x.reshape(2, d, d)
    cured = overtraining.soft_threshold(SIGMA, scale)
    np.testing.assert_allclose(cured, [2.36, 0.36, 0, 0])
    np.testing.assert_allclose(np.linalg.svd(w1 @ w2)[1], cured, atol=1e-6)
    lowest = float(overtraining.perturbed_loss(SIGMA, cured, scale))
    assert found.fun == pytest.approx(lowest, rel=1e-9)


# ---- the turning point --------------------------------------------------------------------------


def dense_perturbed(sigma, start, scale, times):
    """The perturbed loss (T,) from the formula as printed; for positive singular values."""
    grown = np.exp(2 * sigma * times[:, None])
    s = sigma * grown / (grown - 1 + sigma / start)
    d = len(sigma)
    return ((sigma - s) ** 2).sum(1) / 2 + scale**2 * d * s.sum(1) + scale**4 * d**3 / 2


def test_check_value_of_the_two_layer_network():
    """A start of 1e-6 seen every 2.5 time units up to 100 gives 6.54 at 7.5, and 6.77 at the end.

    The true minimum lies between two of those times.
    """
    times = np.linspace(0, 100, 41)
    modes = overtraining.modes(LONG, times, 1e-6)
    perturbed = overtraining.perturbed_loss(LONG, modes, 0.15)
    assert times[perturbed.argmin()] == 7.5
    assert perturbed.min() == pytest.approx(6.54, abs=5e-3)
    assert perturbed[-1] == pytest.approx(6.77, abs=5e-3)
    assert (np.diff(overtraining.loss(LONG, modes)) < 0).all()
    turn = float(overtraining.turning_point(LONG, 1e-6, 0.15))
    assert turn == pytest.approx(7.196, abs=1e-3)
    lowest = overtraining.perturbed_loss(LONG, overtraining.modes(LONG, turn, 1e-6), 0.15)
    assert float(lowest) == pytest.approx(6.5371, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_turning_point_is_the_lowest_of_all_times(seed):
    random = np.random.default_rng(seed)
    sigma = np.sort(10 ** random.uniform(-1, 1, size=6))
    start = 10 ** random.uniform(-8, -2)
    scale = 10 ** random.uniform(-1.5, -0.3)
    times = np.linspace(0, 30 / sigma[0], 200_001)
    times = times[times * sigma[-1] < 300]
    values = dense_perturbed(sigma, start, scale, times)
    best = values.argmin()
    turn = float(overtraining.turning_point(sigma, start, scale))
    assert turn == pytest.approx(times[best], abs=1.01 * times[1])

    def slope(t):
        at = [t - 1e-5, t + 1e-5]
        return np.diff(dense_perturbed(sigma, start, scale, np.array(at)))[0] / 2e-5

    if 0 < best < len(times) - 1:
        root = optimize.brentq(slope, times[best - 1], times[best + 1], xtol=1e-12)
        assert turn == pytest.approx(root, rel=1e-5)


def test_turning_point_at_once_and_never():
    """And the more noise, the earlier."""
    scales = np.r_[0.0, np.geomspace(1e-3, 1.0, 30)]
    turns = overtraining.turning_point(LONG, 1e-6, scales)
    assert np.isinf(turns[0])
    assert 0 < turns[15] < np.inf
    assert turns[-1] == 0
    assert (turns[1:] <= turns[:-1]).all()
    # The noise takes the modes without signal to zero for ever, which outweighs all the rest.
    never = overtraining.turning_point(
        [[0.0, 0.0], [2.0, 1.0], [0.0, 1.0], [2.0, 1.0], [2.0, 1.0]],
        [[0.1, 0.1], [2.0, 1.0], [0.1, 0.1], [0.0, 0.0], [0.1, 0.1]],
        [0.15, 0.15, 0.15, 0.15, 1e-6],
    )
    assert np.isinf(never[:4]).all()
    # Without such modes it always turns up in the end, however small the noise.
    assert never[4] < np.inf
