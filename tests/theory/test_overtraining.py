"""Over-training: closed forms against integration, simulation, minimisation and training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import integrate, optimize

from lmnoise.models.regression import TwoLayerLinear, population_batch
from lmnoise.theory import overtraining
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import init_state, make_train_step

SIGMA = np.array([3.0, 1.0, 0.4, 0.0])
SECOND = np.array([0.5, 2.0, 0.0, 1.0])
START = np.array([0.02, 0.3, 1e-4, 0.5])
# The spectrum of the check value.
LONG = np.r_[8, 4, 2, 1, 0.5, 0.25, 0.12, 0.06, np.zeros(8)]
KEY = jax.random.key(0)


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
    early, late = np.asarray(overtraining.modes([sigma], sorted(times), start))[:, 0]
    end = sigma if start > 0 else 0.0
    eps = 1e-12 * max(sigma, start)
    assert min(start, end) - eps <= early <= max(start, end) + eps
    assert abs(late - end) <= abs(early - end) + eps
    assert np.asarray(overtraining.modes([sigma], 0.0, start))[0] == pytest.approx(start, 1e-12)
    if sigma > 1e-3 and start > 1e-9:
        ended = np.asarray(overtraining.modes([sigma], 1e300, start))[0]
        assert ended == pytest.approx(end, rel=1e-12)


def test_a_singular_value_of_zero_is_the_limit_of_small_ones():
    small = 10.0 ** -np.arange(3, 13)
    modes = np.asarray(overtraining.modes(np.r_[small, 0.0], [5.0, 40.0], 0.1))
    np.testing.assert_allclose(modes[:, -1], [0.1 / 2, 0.1 / 9], rtol=1e-14)
    error = np.abs(modes[:, :-1] / modes[:, -1:] - 1)
    assert (error <= 80 * small + 1e-14).all()


# ---- noise on the weights -----------------------------------------------------------------------


def simulated(left, right, target, scale, key=KEY, draws=20_000):
    return map(float, overtraining.simulate_perturbed(key, left, right, target, scale, draws))


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_perturbed_loss_is_the_mean_over_draws(scale):
    u, v = bases(4)
    times = np.array([0.0, 1.0, 5.0])
    modes = np.asarray(overtraining.modes(SIGMA, times, START))
    expected = overtraining.perturbed_loss(SIGMA, modes, scale)
    for s, value in zip(modes, np.asarray(expected), strict=True):
        factors = balanced(u, v, s)
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
    exact, error = simulated(left, right, target, 0.0, draws=2)
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
    loss = np.asarray(overtraining.loss(sigma, modes))
    sensitivity = np.asarray(overtraining.sensitivity(modes, scale))
    assert (np.diff(loss) <= 1e-14 * (sigma**2).sum()).all()
    assert (np.diff(sensitivity) >= -1e-12 * sensitivity[-1]).all()
    perturbed = np.asarray(overtraining.perturbed_loss(sigma, modes, scale))
    np.testing.assert_allclose(perturbed, loss + sensitivity, rtol=1e-14)
    cured = overtraining.soft_threshold(sigma, scale)
    lowest = np.asarray(overtraining.perturbed_loss(sigma, cured, scale))
    assert (perturbed >= lowest * (1 - 1e-12)).all()


def test_soft_threshold_is_the_minimum_over_both_factors():
    """The expectation over the noise by hand, minimised without knowing singular vectors."""
    u, v = bases(4)
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
    cured = np.asarray(overtraining.soft_threshold(SIGMA, scale))
    np.testing.assert_allclose(cured, [2.36, 0.36, 0, 0])
    np.testing.assert_allclose(np.linalg.svd(w1 @ w2)[1], cured, atol=1e-6)
    lowest = float(overtraining.perturbed_loss(SIGMA, cured, scale))
    assert found.fun == pytest.approx(lowest, rel=1e-9)


def test_training_with_weight_decay_ends_at_the_soft_threshold():
    u, v = bases(4)
    cured = np.asarray(overtraining.soft_threshold(SIGMA, 0.25))
    ended = trained(u * SIGMA @ v.T, START, u, v, rate=0.125, steps=4000, weight_decay=0.25**2 * 4)
    np.testing.assert_allclose(ended, np.diag(cured), atol=1e-6)


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
    perturbed = np.asarray(overtraining.perturbed_loss(LONG, modes, 0.15))
    assert times[perturbed.argmin()] == 7.5
    assert perturbed.min() == pytest.approx(6.54, abs=5e-3)
    assert perturbed[-1] == pytest.approx(6.77, abs=5e-3)
    assert (np.diff(np.asarray(overtraining.loss(LONG, modes))) < 0).all()
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
    turns = np.asarray(overtraining.turning_point(LONG, 1e-6, [0.0, 0.15, 1.0]))
    assert turns[0] == np.inf
    assert 0 < turns[1] < np.inf
    assert turns[2] == 0
    # The noise takes the modes without signal to zero for ever, which outweighs all the rest.
    for sigma, start in (
        (LONG, 0.1),
        (LONG, 0.0),
        ([0.0, 0.0], 0.1),
        ([2.0, 1.0], [2.0, 1.0]),
    ):
        assert float(overtraining.turning_point(sigma, start, 0.15)) == np.inf
    # Without such modes it always turns up in the end, however small the noise.
    assert float(overtraining.turning_point([2.0, 1.0], 0.1, 1e-6)) < np.inf


def test_more_noise_turns_earlier():
    turns = np.asarray(overtraining.turning_point(LONG, 1e-6, np.geomspace(1e-3, 1.0, 30)))
    assert (np.diff(turns) <= 0).all()


# ---- fine-tuning --------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.2, 3.0])
def test_fine_tuning_is_the_gradient_flow_of_the_matrices(decay):
    u, v = bases(4)
    first, second = u * SIGMA @ v.T, u * SECOND @ v.T
    times = np.array([0.5, 3.0])
    modes = np.asarray(overtraining.modes(SIGMA, times, START))
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
    start = np.asarray(overtraining.modes(SIGMA, 3.0, START))
    expected = np.asarray(overtraining.fine_tuned(SECOND, start, 2.0, 0.25))
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


@settings(max_examples=40, deadline=None)
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
    tuned = np.asarray(overtraining.fine_tuned([sigma], start, time, decay))[0]
    assert tuned == pytest.approx(solution.y[0, -1] ** 2, rel=1e-8)

    roots = np.roots([1.0, 0.0, decay - sigma, -decay * a0])
    real = roots[np.abs(roots.imag) <= 1e-6 * np.abs(roots)].real.max()
    limit = np.asarray(overtraining.fine_tuned_limit([sigma], start, decay))[0]
    assert limit == pytest.approx(real**2, rel=1e-5)
    late = np.asarray(overtraining.fine_tuned([sigma], start, 1e9, decay))[0]
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


# ---- derivatives, types, arguments --------------------------------------------------------------


def test_derivatives_agree_with_finite_differences():
    with jax.enable_x64(True):
        sigma, start = jnp.array([3.0, 1.0, 0.4]), jnp.array([0.02, 0.3, 1e-2])
        times = jnp.array([0.7, 2.0])
        scale, decay = jnp.float64(0.2), jnp.float64(0.3)

        def lowest(sigma, scale):
            cured = overtraining.soft_threshold(sigma, scale)
            return overtraining.perturbed_loss(sigma, cured, scale)

        for function, arguments in (
            (overtraining.modes, (sigma, times, start)),
            (lowest, (sigma, scale)),
            (overtraining.turning_point, (sigma, start, scale)),
            (overtraining.fine_tuned, (sigma, start, times, decay)),
            (overtraining.fine_tuned_limit, (sigma, start, decay)),
        ):
            check_grads(jax.jit(function), arguments, order=1, modes="rev", rtol=1e-5, eps=1e-5)
        # At a singular value of 0 from one side, and across the seam to the series for small ones.
        for x in (0.0, 1e-3 / 6):
            slope = jax.grad(lambda x: overtraining.modes(x[None], 3.0, 0.1)[0])(jnp.float64(x))
            low, high = overtraining.modes([x, x + 1e-6], 3.0, 0.1)
            np.testing.assert_allclose(slope, (high - low) / 1e-6, rtol=1e-4)
        never = jax.grad(lambda scale: overtraining.turning_point(LONG, 1e-6, scale))
        assert never(0.0) == 0


FUNCTIONS = {
    "modes": lambda x: overtraining.modes(SIGMA, x, START),
    "perturbed_loss": lambda x: overtraining.perturbed_loss(SIGMA, START, x),
    "soft_threshold": lambda x: overtraining.soft_threshold(SIGMA, x),
    "turning_point": lambda x: overtraining.turning_point(SIGMA, 1e-6, x),
    "fine_tuning": lambda x: overtraining.fine_tuning(SIGMA, SECOND, START, 1.0, x),
    "fine_tuned_limit": lambda x: overtraining.fine_tuned_limit(SECOND, START, x),
    "simulate": lambda x: overtraining.simulate_perturbed(KEY, *[np.eye(2)] * 3, x, 8),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("error")
def test_float64_under_any_flag_and_transformation(name):
    """Always computed in float64: only the argument, 0.25, is exact in float32 too."""
    function = FUNCTIONS[name]
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, function(0.25))
    plain, compiled = function(np.float32(0.25)), jax.jit(function)(jnp.float32(0.25))
    mapped = jax.vmap(function)(jnp.array([0.25, 0.5], jnp.float32))
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], mapped)
    for values in (plain, compiled, first):
        for ours, theirs in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: overtraining.modes([1.0, -1.0], 1.0, 0.1), "singular_values .* -1.0"),
        (lambda: overtraining.modes([1.0, np.nan], 1.0, 0.1), "singular_values .* nan"),
        (lambda: overtraining.modes(2.0, 1.0, 0.1), "singular_values needs a last axis"),
        (lambda: overtraining.modes([1.0], -1.0, 0.1), "time .* -1.0"),
        (lambda: overtraining.modes([1.0], np.inf, 0.1), "time .* inf"),
        (lambda: overtraining.modes([1.0], 1.0, -0.1), "start .* -0.1"),
        (lambda: overtraining.modes([1.0, 2.0], 1.0, [0.1, 0.1, 0.1]), "start"),
        (lambda: overtraining.modes([1.0], 1.0, [0.1, 0.1]), r"start \(2,\)"),
        (lambda: overtraining.loss([1.0, 2.0], [1.0]), r"modes \(1,\)"),
        (lambda: overtraining.loss([1.0, 2.0], [1.0, -2.0]), "modes .* -2.0"),
        (lambda: overtraining.perturbed_loss([1.0], [1.0], -0.1), "scale .* -0.1"),
        (lambda: overtraining.perturbed_loss([1.0], np.ones((2, 1)), [0.1] * 3), "scale"),
        (lambda: overtraining.soft_threshold([1.0], np.inf), "scale .* inf"),
        (lambda: overtraining.turning_point([1.0], 0.1, -1.0), "scale .* -1.0"),
        (lambda: overtraining.fine_tuned([1.0], 0.1, 1.0, -1.0), "decay .* -1.0"),
        (lambda: overtraining.fine_tuned([1.0], "a", 1.0), "start must be a number"),
        (
            lambda: overtraining.simulate_perturbed(
                KEY, np.eye(2), np.eye(3), np.ones((2, 3)), 0.1, 9
            ),
            "left and right",
        ),
        (
            lambda: overtraining.simulate_perturbed(KEY, np.eye(2), np.eye(2), np.eye(3), 0.1, 9),
            "target",
        ),
        (
            lambda: overtraining.simulate_perturbed(KEY, np.eye(2), np.eye(2), np.eye(2), 0.1, 1),
            "draws",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
