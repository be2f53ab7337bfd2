"""Shifted power laws: planted parameters, invariances, an independent fit, and coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from lmnoise.evaluation import powerlaw
from lmnoise.evaluation.powerlaw import PowerLaw
from lmnoise.report import paired_difference

TOKENS_B = 2.0 ** np.arange(17, 22)
exponents = st.floats(0.05, 1.0)
parts = st.floats(0.2, 5.0)


def planted(at_first, exponent, floor):
    """Curves that are `at_first` above their floors at the smallest size."""
    at_first, exponent, floor = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (at_first, exponent, floor))
    )
    return PowerLaw(at_first * TOKENS_B[0] ** exponent, exponent, floor, np.zeros_like(floor))


def same(found, law, tolerance=1e-3):
    for name in ("amplitude", "exponent", "floor"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=tolerance)


@pytest.mark.parametrize("shared", [False, True])
def test_planted_curves_are_found(shared):
    law = planted([2.0, 2.5, 0.5], 0.3, [2.5, 2.7, 3.5])
    found = powerlaw.fit(TOKENS_B, law(TOKENS_B), shared)
    same(found, law)
    assert not found.at_edge.any()
    assert found.residual == pytest.approx(0, abs=1e-8)
    assert found(10 * TOKENS_B) == pytest.approx(law(10 * TOKENS_B), rel=1e-4)
    assert found(TOKENS_B[0]).shape == (3,)


@settings(max_examples=30, deadline=None)
@given(parts, exponents, parts, st.floats(0.01, 1e4), parts)
def test_units_of_tokens_and_losses(at_first, exponent, floor, unit, more):
    law = planted([at_first], exponent, floor)
    losses_PB = law(TOKENS_B)
    found = powerlaw.fit(unit * TOKENS_B, more * losses_PB)
    scaled = PowerLaw(more * law.amplitude * unit**exponent, law.exponent, more * law.floor, 0)
    same(found, scaled)
    same(
        powerlaw.fit(TOKENS_B, losses_PB + more),
        PowerLaw(law.amplitude, law.exponent, law.floor + more, 0),
    )


@settings(max_examples=30, deadline=None)
@given(parts, exponents, parts, st.floats(1e3, 1e9))
def test_tokens_that_reach_a_loss(at_first, exponent, floor, tokens):
    law = planted([at_first], exponent, floor)
    assert law.tokens(law(tokens)) == pytest.approx(tokens, rel=1e-4)
    assert law.tokens(law.floor) == np.inf
    assert law.tokens(law.floor - 1) == np.inf


@pytest.mark.parametrize("noise", [0.001, 0.03, 0.3])
def test_no_worse_than_a_general_optimiser(noise):
    rng = np.random.default_rng(3)
    law = planted(rng.uniform(0.5, 2, 8), rng.uniform(0.1, 0.8, 8), rng.uniform(0.5, 3, 8))
    losses_PB = np.abs(law(TOKENS_B) + noise * rng.normal(size=(8, 5)))
    found = powerlaw.fit(TOKENS_B, losses_PB)
    sizes_B = TOKENS_B / TOKENS_B[0]
    assert (found.amplitude >= 0).all()
    assert (found.floor >= 0).all()
    for p, losses_B in enumerate(losses_PB):
        costs = [
            least_squares(
                lambda x, losses_B=losses_B: x[0] * sizes_B ** -x[1] + x[2] - losses_B,
                (1.0, start, 1.0),
                bounds=((0, powerlaw.LEAST_EXPONENT, 0), (99, powerlaw.LARGEST_EXPONENT, 99)),
            ).cost
            for start in (0.05, 0.3, 1.0, 2.5)
        ]
        assert found.residual[p] ** 2 * 5 / 2 <= min(costs) * (1 + 1e-6) + 1e-12


def test_edges():
    rising_B, flat_B = 4 - 10 / np.log(TOKENS_B), np.full(5, 3.0)
    straight_B, pure_B = 5 - 0.1 * np.log(TOKENS_B), 9 * TOKENS_B**-0.1
    found = powerlaw.fit(TOKENS_B, [rising_B, flat_B, straight_B, pure_B])
    assert found.amplitude[0] == 0
    assert found.floor[0] == pytest.approx(rising_B.mean())
    assert found(TOKENS_B)[1] == pytest.approx(flat_B)
    assert found.floor[2] == 0 or found.at_edge[2]
    assert found.floor[3] == pytest.approx(0, abs=0.05)
    assert found.tokens(0.1)[0] == np.inf


def test_a_shared_exponent_turns_other_exponents_into_floors():
    losses_PB = planted([2.1, 2.1], [0.3, 0.25], 2.5)(TOKENS_B)
    shared, free = powerlaw.fit(TOKENS_B, losses_PB, True), powerlaw.fit(TOKENS_B, losses_PB)
    assert np.diff(shared.floor) == pytest.approx([0.26], abs=0.01)
    assert shared.residual == pytest.approx([0.004, 0.004], abs=5e-4)
    assert free.floor == pytest.approx([2.5, 2.5], abs=1e-3)


def noisy(rng, curves, seeds, spread):
    """Losses (P, R, B): noise of the seed that the curves share, and noise of each model."""
    shared_RB = rng.normal(0, spread, (seeds, 1))
    return curves[:, None] + shared_RB + rng.normal(0, spread, (len(curves), seeds, 5))


def test_means_have_students_interval():
    losses_PRB = noisy(np.random.default_rng(0), np.ones((2, 5)), 3, 0.1)
    found = powerlaw.bootstrap(TOKENS_B, losses_PRB, draws=27).interval(
        lambda _, losses_PB: losses_PB[..., 1, -1] - losses_PB[..., 0, -1]
    )
    expected = paired_difference(losses_PRB[1, :, -1], losses_PRB[0, :, -1])
    assert (found.low, found.high) == pytest.approx(expected.interval)


def test_what_curves_share_in_a_seed_cancels():
    law = planted([2.0, 2.0], 0.3, [2.5, 3.0])
    shift_R1 = np.array([[0.0], [0.2], [0.5]])
    found = powerlaw.bootstrap(TOKENS_B, law(TOKENS_B)[:, None] + shift_R1)
    rises, floors = found.floor_rises(), found.floors()
    assert rises.value == pytest.approx([0, 0.5], abs=1e-3)
    assert rises.half_width == pytest.approx([0, 0], abs=2e-3)
    assert (floors.half_width > 0.1).all()
    slope = found.floor_slope([0.0, 0.25])
    assert slope.value == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.003, 0.03])
def test_intervals_of_free_fits_cover(seeds, spread):
    """Each curve is a trial of its own; 500 trials that cover with 95 % have an error of 1 %."""
    rng = np.random.default_rng(seeds)
    law = planted(np.full(500, 2.0), 0.25, 2.5)
    losses_PRB = law(TOKENS_B)[:, None] + rng.normal(0, spread, (500, seeds, 5))
    found = powerlaw.bootstrap(TOKENS_B, losses_PRB, draws=100).floors()
    covered = ((found.low <= 2.5) & (found.high >= 2.5)).mean()
    assert 0.91 <= covered <= 0.985


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_a_shared_exponent_cover(seeds):
    rng = np.random.default_rng(seeds)
    law, shares_P = planted([2.0, 2.05, 2.5], 0.25, [2.5, 2.55, 3.5]), np.array([0.0, 0.1, 1.0])
    slope = np.polyfit(shares_P, law.floor, 1)[0]
    covered, widths = [], []
    for _ in range(150):
        losses_PRB = noisy(rng, law(TOKENS_B), seeds, 0.01)
        found = powerlaw.bootstrap(TOKENS_B, losses_PRB, shared_exponent=True, draws=60)
        rises, trend = found.floor_rises(), found.floor_slope(shares_P)
        true_P = law.floor - law.floor[0]
        covered.append([*((rises.low <= true_P) & (true_P <= rises.high))[1:],
                        trend.low <= slope <= trend.high])  # fmt: skip
        widths.append(rises.half_width[-1])
    assert np.mean(covered, axis=0) == pytest.approx(0.95, abs=0.05)
    # The rise of the last floor, 1, is shown.
    assert np.median(widths) < 0.2


@pytest.mark.parametrize(
    ("tokens", "losses", "message"),
    [
        ([1.0, 2.0], [[1.0, 2.0]], "3 different"),
        ([0.0, 1.0, 2.0], [[1.0, 2.0, 3.0]], "above 0"),
        ([1.0, 2.0, 3.0], [[1.0, 2.0]], "sizes"),
        ([1.0, 2.0, 3.0], [[1.0, np.nan, 2.0]], "finite"),
    ],
)
def test_what_cannot_be_fitted(tokens, losses, message):
    with pytest.raises(ValueError, match=message):
        powerlaw.fit(tokens, losses)


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="2 seeds"):
        powerlaw.bootstrap(TOKENS_B, np.ones((2, 1, 5)))
    with pytest.raises(ValueError, match="draws"):
        powerlaw.bootstrap(TOKENS_B, np.ones((2, 2, 5)), draws=1)
    with pytest.raises(ValueError, match="regressor_P"):
        powerlaw.bootstrap(TOKENS_B, np.ones((2, 2, 5))).floor_slope([1.0, 1.0])
