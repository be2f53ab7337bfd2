"""Corollaries, best settings and training in rounds, against simulation and against grids."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmnoise.theory import collapse

POSITIVE = st.floats(1e-3, 1e2)
UNIT = st.floats(0.01, 0.99)
KEY = jax.random.key(3)


def flat(n, share, quality, signal, noise_real, noise_synthetic, penalty, size=40, **weights):
    """`ridge` with Sigma = I, the long way round."""
    one = np.ones(size)
    return collapse.ridge(
        one,
        signal * one / size,
        quality * one / size,
        n_real=(1 - share) * n,
        n_synthetic=share * n,
        noise_real=noise_real,
        noise_synthetic=noise_synthetic,
        penalty=penalty,
        **weights,
    )


@given(POSITIVE, UNIT, POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.just(0.0) | POSITIVE)
@settings(deadline=None, max_examples=60)
def test_isotropic_closed_form(ratio, share, quality, signal, noise, other, penalty):
    assume(penalty > 0 or abs(ratio - 1) > 1e-4)
    ours = collapse.isotropic(
        ratio,
        synthetic_share=share,
        quality=quality,
        signal=signal,
        noise_real=noise,
        noise_synthetic=other,
        penalty=penalty,
    )
    general = flat(40 / ratio, share, quality, signal, noise, other, penalty)
    np.testing.assert_allclose(ours, general, rtol=1e-7, atol=1e-12)


def test_isotropic_is_the_printed_corollary_and_diverges_at_the_threshold():
    r, p2, c2 = 0.25, 0.2, 0.7
    ours = collapse.isotropic(
        np.array([r, 1.0]),
        synthetic_share=p2,
        quality=c2,
        signal=1.0,
        noise_real=0.5,
        noise_synthetic=0.3,
    )
    s2, u = 0.8 * 0.25 + 0.2 * 0.09, r / (1 - r)
    assert ours.total[0] == pytest.approx(s2 * u + p2**2 * c2 + 0.8 * 0.2 * c2 * u)
    assert np.isinf(ours.total[1])


def test_the_floor_is_what_stays_with_any_number_of_samples():
    total = flat(np.array([1e3, 1e5, 1e8]), 0.1, 0.6, 1.0, 0.5, 0.5, 0.0).total
    floor = collapse.floor(0.1, 0.6)
    assert (total > floor).all()
    assert total[2] == pytest.approx(floor, rel=1e-4)
    assert floor == pytest.approx(0.006)


@given(st.integers(1, 200), st.floats(0, 5))
@settings(deadline=None, max_examples=20)
def test_powerlaw(size, exponent):
    values = collapse.powerlaw(size, exponent)
    assert values.mean() == pytest.approx(1)
    assert values[0] / values[-1] == pytest.approx(float(size) ** exponent)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_weighted_mixing_is_the_first_order_of_weighted_ridge(fraction, share):
    parameters = dict(synthetic_share=share, quality=0.4, noise_real=0.8, noise_synthetic=0.5)
    weights = dict(
        zip(
            ("weight_real", "weight_synthetic"),
            collapse.mixing_weights(fraction, share),
            strict=True,
        )
    )
    gaps = []
    for ratio in (1e-2, 1e-3, 1e-4):
        exact = flat(40 / ratio, share, 0.4, 1.0, 0.8, 0.5, 0.0, **weights).total
        first = collapse.weighted_mixing(fraction, ratio, **parameters)
        gaps.append(abs(exact - first) / ratio)
    np.testing.assert_allclose(np.divide(gaps[:2], gaps[1:]), 10, rtol=0.2)


@given(st.floats(1e-4, 0.5), UNIT, st.floats(0, 5), st.floats(0.01, 3), st.floats(0, 3))
@settings(deadline=None, max_examples=10)
def test_best_fraction_beats_a_grid(ratio, share, quality, noise, other):
    parameters = dict(
        synthetic_share=share, quality=quality, noise_real=noise, noise_synthetic=other
    )
    best = collapse.best_fraction(ratio, **parameters)
    at_best = collapse.weighted_mixing(best, ratio, **parameters)
    grid = collapse.weighted_mixing(np.linspace(0, 1, 1001), ratio, **parameters)
    assert at_best <= grid.min() * (1 + 1e-9)


def test_with_more_data_the_best_weight_of_synthetic_data_goes_to_zero():
    parameters = dict(synthetic_share=0.5, quality=0.5, noise_real=1.0, noise_synthetic=1.0)
    best = [collapse.best_fraction(r, **parameters) for r in (1e-2, 1e-3, 1e-4)]
    np.testing.assert_allclose(np.divide(best[1:], best[:-1]), 0.1, rtol=0.15)


LAW = collapse.powerlaw(80, 1.2), np.ones(80) / 80, 0.3 * np.ones(80) / 80
DATA = dict(noise_real=0.5, noise_synthetic=0.4)


def best_on_a_grid(total, *axes):
    mesh = np.meshgrid(*axes, indexing="ij")
    errors = np.asarray(total(*mesh))
    at = np.unravel_index(np.nanargmin(errors), errors.shape)
    return [axis[i] for axis, i in zip(axes, at, strict=True)], errors.min()


def test_best_penalty_against_a_grid():
    def total(penalty):
        return collapse.ridge(*LAW, n_real=60, n_synthetic=20, penalty=penalty, **DATA).total

    found = collapse.optimal(total, {"penalty": (1e-6, 1e2)})
    (best,), error = best_on_a_grid(total, np.geomspace(0.01, 10, 4001))
    assert found.values["penalty"] == pytest.approx(best, rel=2e-3)
    assert found.total <= error
    assert found.at_bound == ()
    slope = jax.grad(lambda p: total(p))(found.values["penalty"])
    assert abs(slope) < 1e-6


def test_best_width_is_found_on_the_right_side_of_the_peak():
    def total(width):
        return collapse.random_projection(
            *LAW, n_real=60, n_synthetic=20, penalty=1e-4, width=width, **DATA
        ).total

    found = collapse.optimal(total, {"width": (2.0, 5000.0)})
    (best,), error = best_on_a_grid(total, np.geomspace(2, 5000, 8001))
    assert found.values["width"] == pytest.approx(best, rel=2e-3)
    assert found.total <= error * (1 + 1e-12)
    # A worse valley lies beyond the peak at m = n.
    beyond = collapse.optimal(total, {"width": (90.0, 5000.0)})
    assert beyond.total > found.total
    assert beyond.at_bound == ("width",)


def test_best_weight_and_penalty_together():
    def total(fraction, penalty):
        weights = collapse.mixing_weights(fraction, 0.25)
        return collapse.ridge(
            *LAW,
            n_real=300,
            n_synthetic=100,
            penalty=penalty,
            weight_real=weights[0],
            weight_synthetic=weights[1],
            **DATA,
        ).total

    found = collapse.optimal(total, {"fraction": (1e-3, 0.9), "penalty": (1e-4, 10.0)})
    axes = np.geomspace(1e-3, 0.9, 150), np.geomspace(1e-4, 10, 150)
    (fraction, penalty), error = best_on_a_grid(total, *axes)
    assert found.total <= error
    assert found.values["fraction"] == pytest.approx(fraction, rel=0.1)
    assert found.values["penalty"] == pytest.approx(penalty, rel=0.1)
    assert found.values["fraction"] < 0.25


def test_best_real_share_of_a_fixed_number_of_samples():
    """Synthetic labels without noise are worth having when real ones have some."""

    def total(real_share):
        return collapse.ridge(
            *LAW,
            n_real=200 * real_share,
            n_synthetic=200 * (1 - real_share),
            noise_real=0.7,
            noise_synthetic=0.0,
            penalty=1e-3,
        ).total

    found = collapse.optimal(total, {"real_share": (0.0, 1.0)})
    (best,), error = best_on_a_grid(total, np.linspace(0, 1, 4001))
    assert found.values["real_share"] == pytest.approx(best, abs=1e-3)
    assert 0.01 < best < 0.99
    assert found.total <= error


def test_optimal_refuses_bounds_that_make_no_sense():
    with pytest.raises(ValueError, match="bounds of penalty must be two that ascend"):
        collapse.optimal(lambda penalty: penalty, {"penalty": (1.0, 0.1)})
    with pytest.raises(ValueError, match="bounds must name"):
        collapse.optimal(lambda: 1.0, {})
    with pytest.raises(ValueError, match="not finite anywhere"):
        collapse.optimal(lambda penalty: penalty * np.inf, {"penalty": (1.0, 2.0)})


def test_optimal_takes_any_function_negative_ones_too():
    found = collapse.optimal(lambda a, b: (a - 0.3) ** 2 + b - 5, {"a": (0, 1), "b": (1, 2)})
    assert found.values["a"] == pytest.approx(0.3, abs=1e-6)
    assert found.values["b"] == 1
    assert found.at_bound == ("b",)


ROUNDS = dict(size=60, n_real=200, n_synthetic=100, noise_real=1.0, noise_synthetic=0.5)


@pytest.mark.parametrize("weights", [{}, {"weight_real": 0.5, "weight_synthetic": 2.0}])
def test_rounds_on_fresh_data_within_four_standard_errors(weights):
    run = collapse.simulate_rounds(
        KEY, start=2.0, rounds=6, same_data=False, repetitions=200, **ROUNDS, **weights
    )
    theory = collapse.fresh_rounds(np.arange(1, 7), start=2.0, **ROUNDS, **weights)
    assert (abs(run.mean - theory) < 4 * run.standard_error).all()


def test_the_limit_of_fresh_rounds_to_first_order():
    many = dict(ROUNDS, n_real=2e7, n_synthetic=1e7)
    p2, ratio = 1 / 3, 60 / 3e7
    noise = (1 - p2) * 1.0 + p2 * 0.25
    limit = collapse.fresh_rounds(1e4, start=2.0, **many)
    assert limit == pytest.approx(noise * ratio / (1 - p2**2), rel=1e-5)


def test_rounds_on_the_same_real_data_end_at_the_real_part_alone():
    few = dict(size=20, n_real=600, n_synthetic=300, noise_real=1.0, noise_synthetic=0.5)
    run = collapse.simulate_rounds(KEY, start=1.0, rounds=6, same_data=True, repetitions=400, **few)
    theory = collapse.same_data_rounds(np.arange(1, 7), start=1.0, **few)
    # First order in D/n = 0.022: what it leaves out is about D/n of each term.
    slack = 4 * run.standard_error + 2 * (20 / 900) * theory
    assert (abs(run.mean - theory) < slack).all()
    real_only = 20 / 600
    assert theory[-1] > real_only
    assert collapse.same_data_rounds(100, start=1.0, **few | {"noise_synthetic": 0.0}) == (
        pytest.approx(real_only)
    )


def test_the_start_fades_as_the_shared_fluctuations_say():
    """No noise, so that all that is left is the start: its first order in D/n to 1.5 %."""
    few = dict(size=20, n_real=200, n_synthetic=800, noise_real=0.0, noise_synthetic=0.0)
    run = collapse.simulate_rounds(
        KEY, start=1.0, rounds=4, same_data=True, repetitions=4000, **few
    )
    theory = collapse.same_data_rounds(np.arange(1, 5), start=1.0, **few)
    assert (abs(run.mean / theory - 1) < 0.015 + 4 * run.standard_error / theory).all()
    # Without the fluctuations that the rounds share it would be this, 12 % less in the end.
    assert 0.8**8 / theory[-1] == pytest.approx(0.88, abs=0.02)


def test_rounds_without_real_data_add_up():
    rounds = np.array([0, 1, 5, 100])
    errors = collapse.fresh_rounds(
        rounds, start=1.0, **ROUNDS | {"n_real": 0, "n_synthetic": 77, "noise_synthetic": 1.0}
    )
    np.testing.assert_allclose(errors, 1 + rounds * 60 / (77 - 60), rtol=1e-6)


@pytest.mark.parametrize("accumulate", [True, False])
def test_replacing_grows_and_accumulating_does_not(accumulate):
    run = collapse.simulate_generations(
        KEY, size=10, n=1000, noise=1.0, generations=8, accumulate=accumulate, repetitions=300
    )
    factor = collapse.generation_factor(np.arange(1, 9), accumulate=accumulate)
    # The first generation is a plain fit: r/(1-r) up to 1/n.
    theory = factor * 10 / (1000 - 10 - 1)
    slack = 4 * run.standard_error + (10 / 1000) * theory
    assert (abs(run.mean - theory) < slack).all()
    assert collapse.generation_factor(10**5, accumulate=True) < np.pi**2 / 6
    sums = np.cumsum(1 / np.arange(1, 9) ** 2) if accumulate else np.arange(1, 9)
    np.testing.assert_allclose(factor, sums, rtol=1e-12)


def test_golden_ratio():
    golden = (np.sqrt(5) - 1) / 2
    np.testing.assert_allclose(collapse.best_real_share([0.0, 1e18]), [0, 1])
    assert collapse.best_real_share() == pytest.approx(golden)
    assert collapse.relabelling_limit(golden) == pytest.approx(golden)
    shares = np.linspace(0.01, 1, 1000)
    for ratio in (0.1, 1.0, 5.0):
        best = collapse.best_real_share(ratio)
        assert collapse.relabelling_limit(best, ratio) == pytest.approx(best)
        assert (
            collapse.relabelling_limit(best, ratio)
            <= collapse.relabelling_limit(shares, ratio).min()
        )


def test_golden_ratio_in_simulation():
    """Equal parts with that weight settle at .618 of the error of a round's real part alone."""
    golden = float(collapse.best_real_share())
    weights = collapse.mixing_weights(1 - golden, 0.5)
    arguments = dict(size=20, n_real=500, n_synthetic=500, noise_real=1.0, noise_synthetic=1.0)
    arguments |= dict(zip(("weight_real", "weight_synthetic"), map(float, weights), strict=True))
    run = collapse.simulate_rounds(
        KEY, start=0.0, rounds=12, same_data=False, repetitions=300, **arguments
    )
    theory = collapse.fresh_rounds(np.arange(1, 13), start=0.0, **arguments)
    assert (abs(run.mean - theory) < 4 * run.standard_error).all()
    assert theory[-1] / (20 / 480) == pytest.approx(golden, rel=0.03)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: collapse.floor(1.5, 1.0),
            r"synthetic_share must be in \[0, 1\] and finite, got 1.5",
        ),
        (lambda: collapse.powerlaw(0, 1.0), "size must be"),
        (lambda: collapse.powerlaw(5, -1.0), "exponent must be at least 0"),
        (lambda: collapse.powerlaw(5, [1.0, 2.0]), "exponent must be one number"),
        (lambda: collapse.floor([0.1, 0.2], np.ones(3)), r"do not broadcast .*quality \(3,\)"),
        (lambda: collapse.same_data_rounds(1, start=1.0, **ROUNDS | {"size": 0}), "size must be"),
        (lambda: collapse.mixing_weights(0.0, 0.5), "fraction must be strictly between"),
        (lambda: collapse.generation_factor(1.5, accumulate=True), "generations must be integers"),
        (lambda: collapse.fresh_rounds(1, start=1.0, **ROUNDS | {"size": 400}), "above size = 400"),
        (lambda: collapse.relabelling_limit(0.0), "real_share must be in"),
        (
            lambda: collapse.simulate_rounds(
                KEY,
                start=1.0,
                rounds=2,
                same_data=True,
                repetitions=2,
                **ROUNDS | {"size": 300},
            ),
            "above size = 300, got 300",
        ),
    ],
)
def test_wrong_arguments_are_named_with_their_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
