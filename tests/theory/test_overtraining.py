"""Over-training: learning and fine-tuning against integration of both matrices and training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from lmnoise.models.regression import TwoLayerLinear, population_batch
from lmnoise.theory import overtraining
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import init_state, make_train_step

SIGMA = np.array([3.0, 1.0, 0.4, 0.0])
SECOND = np.array([0.5, 2.0, 0.0, 1.0])
START = np.array([0.02, 0.3, 1e-4, 0.5])


def bases(d, seed=0):
    random = np.random.default_rng(seed)
    return [np.linalg.qr(random.normal(size=(d, d)))[0] for _ in range(2)]


def matrix_flow(target, left, right, time, decay=0.0):
    """Gradient flow of both whole matrices, decay towards the start included, by SciPy."""
    d = len(target)

    def velocity(_, flat):
        w1, w2 = flat.reshape(2, d, d)
        error = target - w1 @ w2
        first, second = error @ w2.T - decay * (w1 - left), w1.T @ error - decay * (w2 - right)
        return np.stack([first, second]).ravel()

    solution = integrate.solve_ivp(
        velocity, (0, time), np.stack([left, right]).ravel(), "DOP853", rtol=1e-11, atol=1e-13
    )
    return solution.y[:, -1].reshape(2, d, d)


def balanced(u, v, strengths):
    return u * np.sqrt(strengths), np.sqrt(strengths)[:, None] * v.T


def trained(target, start, u, v, *, rate, steps, weight_decay=0.0, decay_to="zero"):
    """Strengths `U^T W1 W2 V` (d, d) after the project's own trainer on the population loss."""
    with jax.enable_x64(True):
        d = len(target)
        model = TwoLayerLinear(d, d, d, jnp.asarray(start), (jnp.asarray(u), jnp.asarray(v)))
        config = OptimizerConfig(
            steps=steps,
            algorithm="sgd",
            schedule="constant",
            warmup_fraction=0.0,
            clip_norm=math.inf,
            decay_to=decay_to,
        )
        member = {
            "seed": jnp.int32(0),
            "learning_rate": jnp.float64(rate),
            "weight_decay": jnp.float64(weight_decay),
        }
        batch = population_batch(jnp.asarray(target))
        step = make_train_step(model.loss, lambda batch, member: batch, config)
        run = jax.jit(
            lambda state: jax.lax.scan(lambda s, _: step(s, batch, member), state, length=steps)
        )
        params = run(init_state(model.init, config, member))[0].params
        return u.T @ np.asarray(params["left"] @ params["right"]) @ v


# ---- pre-training -------------------------------------------------------------------------------


def test_modes_are_the_gradient_flow_of_the_matrices():
    u, v = bases(4)
    times = np.array([0.0, 0.3, 1.0, 4.0])
    modes = overtraining.modes(SIGMA, times, START)
    assert modes.shape == (4, 4)
    for time, s in zip(times, modes, strict=True):
        left, right = matrix_flow(u * SIGMA @ v.T, *balanced(u, v, START), time or 1e-12)
        np.testing.assert_allclose(u.T @ left @ right @ v, np.diag(s), atol=1e-8)


def test_modes_are_the_limit_of_gradient_descent():
    u, v = bases(4)
    expected = np.diag(overtraining.modes(SIGMA, 2.0, START))
    whole, half, quarter = (
        trained(u * SIGMA @ v.T, START, u, v, rate=2.0**-k, steps=2 * 2**k) - expected
        for k in (6, 7, 8)
    )
    assert np.abs(whole).max() < 0.02
    # First order: half the step, half the deviation.
    np.testing.assert_allclose(np.diag(whole) / np.diag(half), 2.0, atol=0.1)
    np.testing.assert_allclose(np.diag(half) / np.diag(quarter), 2.0, atol=0.05)
    for deviation in (whole, half, quarter):
        np.testing.assert_allclose(deviation - np.diag(np.diag(deviation)), 0, atol=1e-12)


strength = st.floats(1e-300, 1e3) | st.just(0.0)


@settings(max_examples=100, deadline=None)
@given(sigma=strength, start=strength, times=st.tuples(*[st.floats(0, 1e6)] * 2))
def test_modes_move_from_the_start_to_the_singular_value(sigma, start, times):
    early, late = overtraining.modes([sigma], sorted(times), start)[:, 0]
    end = sigma if start > 0 else 0.0
    eps = 1e-12 * max(sigma, start)
    assert min(start, end) - eps <= early <= max(start, end) + eps
    assert abs(late - end) <= abs(early - end) + eps
    assert overtraining.modes([sigma], 0.0, start)[0] == pytest.approx(start, 1e-12)
    if sigma > 1e-3 and start > 1e-9:
        ended = overtraining.modes([sigma], 1e300, start)[0]
        assert ended == pytest.approx(end, rel=1e-12)


def test_a_singular_value_of_zero_is_the_limit_of_small_ones():
    small = 10.0 ** -np.arange(3, 13)
    modes = overtraining.modes(np.r_[small, 0.0], [5.0, 40.0], 0.1)
    np.testing.assert_allclose(modes[:, -1], [0.1 / 2, 0.1 / 9], rtol=1e-14)
    error = np.abs(modes[:, :-1] / modes[:, -1:] - 1)
    assert (error <= 80 * small + 1e-14).all()


def test_training_with_weight_decay_ends_at_the_soft_threshold():
    u, v = bases(4)
    cured = overtraining.soft_threshold(SIGMA, 0.25)
    ended = trained(u * SIGMA @ v.T, START, u, v, rate=0.125, steps=4000, weight_decay=0.25**2 * 4)
    np.testing.assert_allclose(ended, np.diag(cured), atol=1e-6)


# ---- fine-tuning --------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.2, 3.0])
def test_fine_tuning_is_the_gradient_flow_of_the_matrices(decay):
    u, v = bases(4)
    first, second = u * SIGMA @ v.T, u * SECOND @ v.T
    times = np.array([0.5, 3.0])
    modes = overtraining.modes(SIGMA, times, START)
    tuned = overtraining.fine_tuning(SIGMA, SECOND, modes, 1.5, decay)
    assert tuned.gain.shape == tuned.forgetting.shape == (2,)

    def loss(target, w1, w2):
        return ((target - w1 @ w2) ** 2).sum() / 2

    for t in range(2):
        before = balanced(u, v, modes[t])
        after = matrix_flow(second, *before, 1.5, decay)
        np.testing.assert_allclose(
            u.T @ after[0] @ after[1] @ v, np.diag(tuned.modes[t]), atol=1e-8
        )
        gain = loss(second, *before) - loss(second, *after)
        forgetting = loss(first, *after) - loss(first, *before)
        np.testing.assert_allclose(tuned.gain[t], gain, atol=1e-7)
        np.testing.assert_allclose(tuned.forgetting[t], forgetting, atol=1e-7)


def test_fine_tuning_is_the_limit_of_training_with_decay_to_the_start():
    u, v = bases(4)
    start = overtraining.modes(SIGMA, 3.0, START)
    expected = overtraining.fine_tuned(SECOND, start, 2.0, 0.25)
    whole, half, quarter = (
        np.diag(
            trained(
                u * SECOND @ v.T,
                start,
                u,
                v,
                rate=2.0**-k,
                steps=2 * 2**k,
                weight_decay=0.25,
                decay_to="start",
            )
        )
        - expected
        for k in (6, 7, 8)
    )
    assert np.abs(whole).max() < 0.02
    np.testing.assert_allclose(whole / half, 2.0, atol=0.1)
    np.testing.assert_allclose(half / quarter, 2.0, atol=0.05)


@settings(max_examples=30, deadline=None)
@given(
    sigma=st.floats(-2, 1).map(lambda x: 10**x) | st.just(0.0),
    start=st.floats(-8, 1).map(lambda x: 10**x),
    decay=st.floats(-6, 1).map(lambda x: 10**x),
    time=st.floats(-2, 2).map(lambda x: 10**x),
)
def test_decay_to_the_start_over_all_magnitudes(sigma, start, decay, time):
    a0 = math.sqrt(start)
    solution = integrate.solve_ivp(
        lambda t, a: (sigma - a * a) * a - decay * (a - a0),
        (0, time),
        [a0],
        "LSODA",
        rtol=1e-12,
        atol=1e-20,
    )
    tuned = overtraining.fine_tuned([sigma], start, time, decay)[0]
    assert tuned == pytest.approx(solution.y[0, -1] ** 2, rel=1e-8)

    roots = np.roots([1.0, 0.0, decay - sigma, -decay * a0])
    real = roots[np.abs(roots.imag) <= 1e-6 * np.abs(roots)].real.max()
    limit = overtraining.fine_tuned_limit([sigma], start, decay)[0]
    assert limit == pytest.approx(real**2, rel=1e-5)
    late = overtraining.fine_tuned([sigma], start, 1e9, decay)[0]
    assert late == pytest.approx(limit, rel=1e-9)


def test_without_decay_fine_tuning_is_training_on():
    start = np.r_[START[:3], 0.0]
    tuned = overtraining.fine_tuned(SECOND, start, [0.7, 5.0])
    np.testing.assert_array_equal(tuned, overtraining.modes(SECOND, [0.7, 5.0], start))
    np.testing.assert_array_equal(overtraining.fine_tuned_limit(SECOND, start), [0.5, 2, 0, 0])
    weak = overtraining.fine_tuned(SECOND[:2], START[:2], 5.0, 1e-9)
    np.testing.assert_allclose(weak, tuned[1, :2], rtol=1e-7)
    # A mode that starts at 0 stays there, and so does all else when the pull is very strong.
    np.testing.assert_array_equal(overtraining.fine_tuned(SECOND, 0.0, 5.0, 0.3), np.zeros(4))
    np.testing.assert_allclose(overtraining.fine_tuned(SECOND, START, 5.0, 1e9), START, rtol=1e-6)


def test_decay_trades_gain_for_less_forgetting():
    decays = np.r_[0.0, np.geomspace(1e-3, 10, 20)]
    modes = overtraining.modes(SIGMA, 10.0, 1e-3)
    tuned = overtraining.fine_tuning(SIGMA, SECOND, modes, 50.0, decays)
    assert (np.diff(np.asarray(tuned.gain)) < 0).all()
    assert (np.diff(np.asarray(tuned.forgetting)) < 0).all()
