"""Proposition 1 against direct numerical optimisation, and against an exactly solvable mixture."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from lmnoise.theory import noise

SHARE = st.floats(1e-3, 0.999)
PROBABILITY = st.floats(1e-4, 1.0)
EXCHANGE = st.floats(1e-3, 1e3)


def written_out(e, a, p_c, p_n, k):
    """F(e) - F(0) of the proposition, written independently of the module."""
    return -(1 - a) * np.log(1 - e / p_c) - a * np.log(1 + e / (k * p_n))


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE)
def test_minimiser_is_where_direct_optimisation_ends(a, p_c, p_n, k):
    found = minimize_scalar(
        lambda x: written_out(x * p_c, a, p_c, p_n, k),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": 1e-12},
    )
    best = float(noise.minimiser(a, p_c, p_n, k))
    # The loss is flat at its minimum: compare losses tightly and places loosely.
    assert written_out(best, a, p_c, p_n, k) <= min(0.0, found.fun) + 1e-12
    assert best / p_c == pytest.approx(found.x, abs=2e-5)


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE, st.floats(0.0, 0.99))
def test_mixture_loss_is_the_written_formula(a, p_c, p_n, k, x):
    rise = noise.mixture_loss(x * p_c, a, p_c, p_n, k) - noise.mixture_loss(0.0, a, p_c, p_n, k)
    assert rise == pytest.approx(written_out(x * p_c, a, p_c, p_n, k), rel=1e-9, abs=1e-9)


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE)
def test_threshold_is_where_the_optimum_begins_to_move(a, p_c, p_n, k):
    limit = float(noise.threshold(p_c, p_n, k))
    assert 0 < limit < 1
    assert noise.minimiser(limit * (1 - 1e-9), p_c, p_n, k) == 0
    if limit * (1 + 1e-9) < 1:
        assert noise.minimiser(limit * (1 + 1e-9), p_c, p_n, k) > 0


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE, st.floats(0.01, 0.99))
def test_item_2_every_smaller_exchange_lowers_the_loss(a, p_c, p_n, k, fraction):
    eta = float(noise.minimiser(a, p_c, p_n, k))
    assume(eta > 1e-4 * p_c)
    assert written_out(fraction * eta, a, p_c, p_n, k) < 0


@given(st.floats(1e-3, 0.333), PROBABILITY, PROBABILITY, st.floats(1e-3, 0.999), st.floats(1, 1.5))
def test_item_3_three_eta_raises_the_loss(a, p_c, p_n, position, factor):
    # k between the condition of item 3 and the threshold, so that eta > 0 and the claim is made.
    low = a * (1 - 3 * a) * p_c / ((1 - a) * (2 - 3 * a) * p_n)
    high = a * p_c / ((1 - a) * p_n)
    k = low + position * (high - low)
    bound = float(noise.harmless_bound(a, p_c, p_n, k))
    e = bound * factor
    assume(1e-4 * p_c < e < p_c)
    assert written_out(e, a, p_c, p_n, k) > 0


def test_the_constant_2_is_false_and_the_conditions_are_needed():
    a, p_c, p_n = 0.2, 0.5, 0.1
    k = 0.98 * a * p_c / ((1 - a) * p_n)
    eta = noise.minimiser(a, p_c, p_n, k)
    assert eta > 0
    assert written_out(2 * eta, a, p_c, p_n, k) < 0
    assert written_out(3 * eta, a, p_c, p_n, k) > 0
    # Far below the condition on k, three eta is not harmful and no bound is returned.
    k = 1e-3
    assert written_out(3 * noise.minimiser(a, p_c, p_n, k), a, p_c, p_n, k) < 0
    assert np.isnan(noise.harmless_bound(a, p_c, p_n, k))
    assert np.isnan(noise.harmless_bound(0.4, p_c, p_n, 100.0))
    assert noise.harmless_bound(a, p_c, p_n, 100.0) == 0


@pytest.mark.parametrize("a", [0.05, 0.2, 0.3])
def test_the_condition_of_item_3_is_where_the_bound_begins(a):
    p_c, p_n = 0.5, 0.1
    limit = a * (1 - 3 * a) * p_c / ((1 - a) * (2 - 3 * a) * p_n)
    assert np.isnan(noise.harmless_bound(a, p_c, p_n, 0.999 * limit))
    assert noise.harmless_bound(a, p_c, p_n, 1.001 * limit) > 0


def test_largest_rise_is_the_limit_and_the_printed_numbers():
    shares = np.array([0.01, 0.05, 0.10, 0.20])
    np.testing.assert_allclose(
        noise.largest_rise(shares), [0.0101, 0.0513, 0.1054, 0.2231], atol=5e-5
    )
    np.testing.assert_allclose(
        noise.clean_loss_rise(shares, 0.04, 1e-12, 1e-3), noise.largest_rise(shares), rtol=1e-8
    )
    assert noise.largest_rise(0.0) == 0


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE)
def test_clean_loss_rise_is_the_loss_at_the_minimiser_and_is_bounded(a, p_c, p_n, k):
    rise = noise.clean_loss_rise(a, p_c, p_n, k)
    expected = np.log(p_c) - np.log(p_c - noise.minimiser(a, p_c, p_n, k))
    assert rise == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert 0 <= rise <= noise.largest_rise(a)


def optimised(clean, noisy, a):
    """Lowest loss on the mixture over the logits of all outcomes, by BFGS; no formula of it used.

    Returns the probabilities and by how much the clean loss exceeds the clean entropy.
    """

    def loss(logits):
        log_p = log_softmax(logits)
        value = -(1 - a) * clean @ log_p - a * noisy @ log_p
        return value, softmax(logits) - (1 - a) * clean - a * noisy

    start = np.zeros(len(clean))
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    seen = clean > 0
    rise = -clean[seen] @ (log_softmax(found.x)[seen] - np.log(clean[seen]))
    return softmax(found.x), rise


def supports(clean_share, seed):
    """Random clean and noise distributions over 8 outcomes, of which `clean_share` can be clean."""
    random = np.random.default_rng(seed)
    clean, noisy = np.zeros((2, 8))
    clean[:clean_share] = random.dirichlet(np.ones(clean_share))
    noisy[4:] = random.dirichlet(np.ones(4))
    return clean, noisy


@pytest.mark.parametrize("a", [0.01, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("outcomes", [4, 6, 8], ids=["disjoint", "overlapping", "within"])
def test_optimum_of_a_mixture_is_where_direct_optimisation_ends(outcomes, seed, a):
    clean, noisy = supports(outcomes, seed)
    p_V, rise = optimised(clean, noisy, a)
    exact = noise.mixture_optimum(clean, noisy, a)
    np.testing.assert_allclose(p_V, exact.probabilities, atol=1e-6)
    assert rise == pytest.approx(float(exact.clean_rise), abs=1e-6)
    largest = float(noise.largest_rise(a))
    if outcomes == 4:
        assert rise == pytest.approx(largest, abs=1e-6)
    else:
        assert 0 < rise < 0.999 * largest


@pytest.mark.parametrize("length", [1, 2, 5])
def test_noise_in_whole_rows_costs_less_the_longer_the_row(length):
    """The outcomes are all rows of `length` bits: clean bits Bernoulli(0.9), noise rows uniform."""
    a = 0.2
    rows = np.array(list(itertools.product([0, 1], repeat=length)))
    clean = np.prod(np.where(rows == 1, 0.9, 0.1), axis=1)
    uniform = np.full(len(rows), 0.5**length)
    _, rise = optimised(clean, uniform, a)
    exact = noise.mixture_optimum(clean, uniform, a)
    assert rise == pytest.approx(float(exact.clean_rise), abs=1e-6)
    assert 0 < rise / length < noise.largest_rise(a, length)
    # Rows that share no outcome with the clean ones reach the bound exactly: one more bit tells.
    clean, other = np.r_[clean, 0 * clean], np.r_[0 * uniform, uniform]
    _, rise = optimised(clean, other, a)
    assert rise / length == pytest.approx(float(noise.largest_rise(a, length)), abs=1e-6)


def test_optima_of_many_mixtures_at_once():
    clean, noisy = (np.stack(d) for d in zip(*(supports(6, s) for s in range(4)), strict=True))
    shares = np.array([[0.0], [0.3]])
    found = noise.mixture_optimum(clean, noisy, shares)
    assert found.probabilities.shape == (2, 4, 8)
    assert found.clean_rise.shape == (2, 4)
    np.testing.assert_array_equal(found.clean_rise[0], 0)
    alone = noise.mixture_optimum(clean[2], noisy[2], 0.3)
    assert found.clean_rise[1, 2] == pytest.approx(float(alone.clean_rise))


@given(SHARE, PROBABILITY, PROBABILITY, EXCHANGE)
def test_exchange_rate_recovers_the_rate_of_a_trade(a, p_c, p_n, k):
    e = float(noise.minimiser(a, p_c, p_n, k))
    assume(1e-3 * p_c < e and p_n + e / k < 1 and e / k > 1e-3 * p_n)
    assert noise.exchange_rate(p_c, p_n, p_c - e, p_n + e / k) == pytest.approx(k, rel=1e-6)


def test_no_trade_has_no_exchange_rate():
    rates = noise.exchange_rate(0.5, 0.1, [0.5, 0.6, 0.4, 0.4], [0.2, 0.2, 0.1, 0.05])
    assert np.isnan(rates).all()


def test_arrays_broadcast_in_float64():
    shares, rates = np.array([[0.0], [0.1], [0.2]]), np.array([0.1, 1.0])
    for function in (noise.minimiser, noise.clean_loss_rise, noise.harmless_bound):
        values = function(shares, np.float32(0.5), np.float32(0.1), rates)
        assert values.shape == (3, 2)
        assert values.dtype == np.float64
    assert noise.mixture_loss([0.0, 0.1], 0.1, 0.5, 0.1, 1.0).shape == (2,)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: noise.largest_rise(1.0), "share"),
        (lambda: noise.largest_rise([0.1, -0.1]), "share"),
        (lambda: noise.threshold(0.0, 0.1, 1.0), "p_clean"),
        (lambda: noise.threshold(0.5, 1.1, 1.0), "p_noise"),
        (lambda: noise.threshold(0.5, np.nan, 1.0), "p_noise"),
        (lambda: noise.minimiser(0.1, 0.5, 0.1, 0.0), "exchange"),
        (lambda: noise.minimiser(0.1, 0.5, 0.1, np.inf), "exchange"),
        (lambda: noise.mixture_loss([0.0, 0.5], 0.1, [[0.5], [0.4]], 0.1, 1.0), "e"),
        (lambda: noise.exchange_rate(0.5, 0.1, 0.4, 1.2), "p_noise_after"),
        (lambda: noise.mixture_optimum([0.5, 0.4], [0.5, 0.5], 0.1), "the sum of clean_V"),
        (lambda: noise.mixture_optimum([0.5, 0.5], [1.5, -0.5], 0.1), "the sum of noise_V"),
        (lambda: noise.mixture_optimum([0.5, 0.5], [0.5, np.nan], 0.1), "the sum of noise_V"),
    ],
)
def test_arguments_outside_their_ranges_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        call()
