"""Inflection points of planted curves: U-shaped, falling, flat."""

import numpy as np
import pytest
from scipy import stats

from lmnoise.evaluation.inflection import bootstrap_least, inflection, slopes

TOKENS = 1e5 * 2.0 ** np.arange(8)


def planted(curve, seeds=4, noise=0.01, seed=0):
    """A curve for every seed: a level of its own, and noise at every budget."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(seeds, 1))
    return np.asarray(curve) + level + noise * rng.normal(size=(seeds, len(TOKENS)))


@pytest.mark.parametrize("turn", [2, 4, 6])
def test_a_planted_turn_is_found_and_its_rise_measured(turn):
    curve = 0.1 * np.square(np.arange(8) - turn)
    found = inflection(TOKENS, planted(curve))
    assert found.shown
    assert not found.first
    assert found.least == TOKENS[turn]
    assert found.interval[0] <= TOKENS[turn] <= found.interval[1]
    assert found.interval[1] <= TOKENS[turn] * 2
    assert found.rise_interval[0] < curve[-1] < found.rise_interval[1]


def test_a_falling_curve_has_no_inflection_in_range():
    found = inflection(TOKENS, planted(-0.1 * np.arange(8)))
    assert not found.shown
    assert found.least == TOKENS[-1]
    assert found.rise == pytest.approx(0)


def test_a_rising_curve_turns_at_or_before_the_first_budget():
    found = inflection(TOKENS, planted(0.1 * np.arange(8)))
    assert found.shown
    assert found.first


def test_flat_curves_seldom_show_an_inflection():
    shown = [
        inflection(TOKENS, planted(np.zeros(8), seeds=3, seed=seed), draws=2).shown
        for seed in range(1000)
    ]
    # One side of a 95 % interval would be 0.025; seeds that choose each other's budget add a bit.
    assert np.mean(shown) < 0.06


def test_a_turn_that_seeds_disagree_on_has_a_wide_interval():
    early, late = (0.1 * np.square(np.arange(8) - turn) for turn in (1, 5))
    found = inflection(TOKENS, np.stack([early, early, late, late]))
    assert found.interval[0] == TOKENS[1]
    assert found.interval[1] == TOKENS[5]


def test_a_single_seed_shows_nothing():
    found = inflection(TOKENS, planted(np.square(np.arange(8) - 3.0), seeds=1))
    assert found.least == TOKENS[3]
    assert np.isnan(found.interval).all()
    assert not found.shown


def test_draws_of_two_curves_are_paired():
    losses = planted(np.square(np.arange(8) - 3.0), noise=1.0)
    same = [bootstrap_least(TOKENS, losses + shift, draws=50, seed=1) for shift in (0.0, 5.0)]
    np.testing.assert_array_equal(*same)
    other = bootstrap_least(TOKENS, losses, draws=50, seed=2)
    assert (other != same[0]).any()


def test_slopes_are_those_of_least_squares():
    values = planted(0.3 * np.arange(8), noise=0.5)
    expected = [stats.linregress(np.log2(TOKENS), row).slope for row in values]
    np.testing.assert_allclose(slopes(TOKENS, values), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("tokens", "losses", "words"),
    [
        ([2.0, 1.0], [[1.0, 2.0]], "must rise"),
        ([1.0, 2.0], [1.0, 2.0], "a row a seed"),
        ([1.0, 2.0], [[1.0, 2.0, 3.0]], "2 columns"),
        ([1.0, 2.0], [[1.0, np.nan]], "not finite"),
    ],
)
def test_curves_that_cannot_be_are_refused(tokens, losses, words):
    with pytest.raises(ValueError, match=words):
        inflection(tokens, losses)
