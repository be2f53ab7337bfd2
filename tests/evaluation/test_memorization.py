"""Stairs, gains and canaries against synthetic curves and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmnoise.evaluation import memorization
from lmnoise.evaluation.memorization import step_search, step_test

EPOCHS, EXAMPLES = 3, 40


def curve(rng, drop=0.0, shape="flat"):
    """Losses (E, N): what an example has of its own, a smooth trend, noise, and stairs."""
    at = np.arange(EPOCHS * EXAMPLES) / EXAMPLES
    trend = {"flat": 0 * at, "line": -0.3 * at, "decay": np.exp(-at / 2)}[shape]
    stairs = -drop * np.floor(at)
    own = rng.normal(0, 0.3, EXAMPLES)
    noise = rng.normal(0, 0.1, (EPOCHS, EXAMPLES))
    return (trend + stairs).reshape(EPOCHS, EXAMPLES) + own + noise


@pytest.mark.parametrize("shape", ["flat", "line", "decay"])
def test_without_stairs_the_false_positives_are_at_the_nominal_level(shape):
    rng = np.random.default_rng(0)
    trials, level = 400, 0.1
    found = np.mean(
        [
            step_test(curve(rng, shape=shape).reshape(-1), EXAMPLES, EXAMPLES // 2).p_value < level
            for _ in range(trials)
        ]
    )
    # Three standard errors of a share of 400.
    assert abs(found - level) < 3 * np.sqrt(level * (1 - level) / trials)


def test_covariates_keep_the_level_and_sharpen_the_test():
    rng = np.random.default_rng(6)
    trials, level = 400, 0.1
    p_values, errors = [], []
    for _ in range(trials):
        own = rng.normal(0, 0.5, EXAMPLES)
        values = (curve(rng, shape="decay") + own).reshape(-1)
        known = np.tile(own + rng.normal(0, 0.1, EXAMPLES), EPOCHS)[:, None]
        tests = [step_test(values, EXAMPLES, EXAMPLES // 2, c) for c in (None, known)]
        errors.append([test.standard_error for test in tests])
        p_values.append(tests[1].p_value)
    found = np.mean(np.array(p_values) < level)
    assert abs(found - level) < 3 * np.sqrt(level * (1 - level) / trials)
    plain, sharper = np.mean(errors, axis=0)
    # Of variances 0.25 + 0.09 + 0.01 about 0.01 / (0.25 + 0.01) of the first are left.
    assert sharper / plain == pytest.approx(np.sqrt(0.11 / 0.35), rel=0.05)


@pytest.mark.parametrize("shape", ["flat", "decay"])
def test_searching_has_the_nominal_level_too(shape):
    rng = np.random.default_rng(1)
    trials, level = 200, 0.1
    found = np.mean(
        [
            step_search(curve(rng, shape=shape)[:2], rng, draws=99).p_value <= level
            for _ in range(trials)
        ]
    )
    assert abs(found - level) < 3 * np.sqrt(level * (1 - level) / trials)


def test_stairs_are_found_where_they_are():
    rng = np.random.default_rng(2)
    values = curve(rng, drop=1.0, shape="line")
    for boundary in (EXAMPLES, 2 * EXAMPLES):
        step = step_test(values.reshape(-1), boundary, EXAMPLES // 2)
        assert step.p_value < 0.01
        assert abs(step.size + 1.0) < 4 * step.standard_error
    search = step_search(values[:2], rng, draws=199)
    assert search.p_value == pytest.approx(1 / 200)
    assert abs(search.place - EXAMPLES) <= 2


def test_the_step_is_that_of_least_squares():
    values = np.random.default_rng(3).normal(size=20)
    at = np.arange(-5, 5.0)
    design = np.stack([np.ones(10), at, at**2, at >= 0], axis=1)
    fit, (rest,), *_ = np.linalg.lstsq(design, values[5:15], rcond=None)
    step = step_test(values, 10, 5)
    assert step.size == pytest.approx(fit[-1])
    # The t statistic squared is the F statistic against the parabola alone.
    _, (without,), *_ = np.linalg.lstsq(design[:, :3], values[5:15], rcond=None)
    f = (without - rest) / (rest / 6)
    assert (step.size / step.standard_error) ** 2 == pytest.approx(f)


@pytest.mark.parametrize(("place", "window"), [(10, 2), (3, 4), (18, 4)])
def test_a_window_that_does_not_fit_is_refused(place, window):
    with pytest.raises(ValueError, match="does not fit"):
        step_test(np.zeros(20), place, window)


def test_gains_by_hand():
    # Held-out losses at 0, 2 and 4 updates; two examples a step, one step an epoch apart.
    found = memorization.gains(
        [[3.0, 3.0], [2.0, 2.5]], [[0, 1], [2, 3]], [0, 2, 4], [4.0, 3.6, 3.4]
    )
    # 1.0 - (4.0 - 3.6) and 0.5 - (3.8 - 3.5).
    np.testing.assert_allclose(found, [[0.6, 0.2]])


def cycle(count):
    """The rate of one cycle with a warm-up."""
    at = np.arange(count) / count
    return np.where(at < 0.1, at / 0.1, (1 + np.cos(np.pi * (at - 0.1) / 0.9)) / 2)


def test_the_association_finds_a_cause():
    rng = np.random.default_rng(4)
    cause, line = cycle(96), np.linspace(0, 1, 96)
    effect = 4 * cause + rng.normal(0, 0.5, (3, 96)) + np.array([[0.0], [5.0], [-5.0]])
    found = memorization.association(effect + 3 * line, cause)

    def partial(cause):
        fits = [np.polyval(np.polyfit(line, a, 1), line) for a in (*effect, cause)]
        left = [a - fit for a, fit in zip((*effect, cause), fits, strict=True)]
        return np.corrcoef(np.concatenate(left[:3]), np.tile(left[3], 3))[0, 1]

    shifted = [partial(np.roll(cause, shift)) for shift in range(96)]
    assert found.correlation == pytest.approx(shifted[0])
    np.testing.assert_allclose(found.null, np.quantile(shifted, [0.025, 0.975]))
    assert found.p_value == np.mean(np.abs(shifted) >= shifted[0] - 1e-9) <= 5 / 96
    assert memorization.association(-effect, cause).correlation == pytest.approx(-shifted[0])
    plain = np.corrcoef((effect - effect.mean(1, keepdims=True)).ravel(), np.tile(cause, 3))[0, 1]
    assert memorization.correlation(effect, np.tile(cause, (3, 1))) == pytest.approx(plain)


@pytest.mark.parametrize("drift", [0.0, 0.25, 0.5])
def test_a_drift_that_members_share_is_not_taken_for_the_cause(drift):
    rng = np.random.default_rng(8)
    trials, level, cause = 500, 0.1, cycle(96)
    walks = np.cumsum(rng.normal(0, drift, (trials, 1, 96)), axis=2)
    values = rng.normal(size=(trials, 3, 96)) + walks
    found = np.mean([memorization.association(own, cause).p_value <= level for own in values])
    # A line that is fitted is no circle, so that the level is near the nominal one, not at it;
    # under a drift it is below.
    error = np.sqrt(level * (1 - level) / trials)
    assert level / 4 < found < 1.2 * level + 3 * error
    assert drift or found > level - 3 * error


def test_a_cause_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="does not vary"):
        memorization.association(np.zeros((2, 3)), np.arange(3.0))
    with pytest.raises(ValueError, match="does not vary"):
        memorization.correlation(np.zeros((2, 3)), np.ones((2, 3)))


def test_the_slope_is_that_of_least_squares_and_keeps_its_level():
    rng = np.random.default_rng(9)
    own = rng.normal(size=30)
    values = 2 * own + np.linspace(0, -1, 30) + rng.normal(0, 0.1, 30)
    design = np.stack([own, np.ones(30), np.linspace(0, 1, 30)], axis=1)
    fit, (rest,), *_ = np.linalg.lstsq(design, values, rcond=None)
    found = memorization.slope_test(values, own[:, None])
    assert found.size == pytest.approx(fit[-1])
    error = np.sqrt(rest / 27 * np.linalg.inv(design.T @ design)[-1, -1])
    assert found.standard_error == pytest.approx(error)
    trials, level = 400, 0.1
    false = [memorization.slope_test(rng.normal(size=20)).p_value < level for _ in range(trials)]
    assert abs(np.mean(false) - level) < 3 * np.sqrt(level * (1 - level) / trials)
    with pytest.raises(ValueError, match="too few"):
        memorization.slope_test(np.zeros(3), np.ones((3, 1)))


def test_wilson_solves_its_equation():
    for successes, count in ((0, 24), (3, 24), (24, 24), (1, 2)):
        found = memorization.wilson(successes, count)
        assert 0 <= found.low <= found.mean <= found.high <= 1
        assert found.low < found.high
        for end in {found.low, found.high} - {0.0, 1.0}:
            z = abs(found.mean - end) / np.sqrt(end * (1 - end) / count)
            assert z == pytest.approx(1.959964, rel=1e-5)
    with pytest.raises(ValueError, match="0 to count"):
        memorization.wilson(3, 2)


def test_the_mean_of_bounded_values_stays_within():
    found = memorization.bounded_mean([9.0, 10.0, 10.0], 0.0, 10.0)
    # Student's t of 2 degrees of freedom: 4.3027 times a standard error of 1/3.
    assert found.low == pytest.approx(29 / 3 - 4.302653 / 3)
    assert found.high == 10.0
    with pytest.raises(ValueError, match="two values"):
        memorization.bounded_mean([1.0], 0.0, 1.0)


def test_candidates_count_like_digits():
    rows = memorization.candidates([7, 8], [1, 3, 5], 2)
    assert rows.shape == (9, 4)
    assert rows.dtype == np.int32
    assert [tuple(row) for row in rows] == [
        (7, 8, a, b) for a, b in itertools.product((1, 3, 5), repeat=2)
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_exposure_is_its_definition(losses, data):
    planted = data.draw(st.integers(0, len(losses) - 1))
    rank = max(place for place, loss in enumerate(sorted(losses), 1) if loss == losses[planted])
    expected = np.log2(len(losses)) - np.log2(rank)
    assert memorization.exposure(losses, planted) == pytest.approx(expected)
    assert 0 <= memorization.exposure(losses, planted) <= np.log2(len(losses))


def test_a_canary_that_was_never_seen_has_the_exposure_of_a_random_rank():
    rng = np.random.default_rng(5)
    found = [memorization.exposure(rng.normal(size=256), 3) for _ in range(2000)]
    mean = np.mean(np.log2(256) - np.log2(np.arange(1, 257)))
    assert abs(np.mean(found) - mean) < 4 * np.std(found) / np.sqrt(2000)
    assert mean == pytest.approx(1 / np.log(2), abs=0.05)


def test_the_verbatim_rate_counts_whole_texts():
    assert memorization.verbatim_rate([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.5
    with pytest.raises(ValueError, match="must hold"):
        memorization.verbatim_rate([], [])
