"""The spike detector, and which batch a step sees."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmnoise.training.spikes import SpikeConfig, SpikeDetector, data_index


def pairs(losses_MK, counts=4.0):
    counts_MK = np.broadcast_to(counts, np.shape(losses_MK))
    return np.stack([np.where(counts_MK == 0, 0, losses_MK) * counts_MK, counts_MK], -1)


@pytest.fixture
def noise():
    """Losses (2, 10000) that fall slowly, with independent noise."""
    random = np.random.default_rng(0)
    trend = 2 + np.exp(-np.arange(10_000) / 3000)
    return trend + 0.05 * random.normal(size=(2, 10_000))


def test_stationary_noise_raises_no_alarm(noise):
    detector = SpikeDetector(SpikeConfig(threshold=10.0))
    for begin in range(0, 10_000, 100):
        assert detector.first_spike(pairs(noise[:, begin : begin + 100])) is None
    assert len(detector.history) == 100


def test_a_spike_of_one_member_is_found_at_its_step(noise):
    detector = SpikeDetector(SpikeConfig(threshold=10.0))
    losses = noise[:, :200].copy()
    losses[1, 150] += 3.0
    assert detector.first_spike(pairs(losses)) == (150, 1)
    np.testing.assert_allclose(detector.history, losses[:, 50:150].T)


def test_no_alarm_before_half_a_window_is_there(noise):
    losses = noise[:, :100].copy()
    losses[0, 49] = 50.0
    assert SpikeDetector(SpikeConfig(threshold=10.0)).first_spike(pairs(losses)) is None
    losses[0, 50] = 5000.0
    assert SpikeDetector(SpikeConfig(threshold=10.0)).first_spike(pairs(losses)) == (50, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_always_found(noise, value):
    losses = noise[:, :10].copy()
    losses[0, 3] = value
    assert SpikeDetector(SpikeConfig()).first_spike(pairs(losses)) == (3, 0)


def test_without_a_threshold_nothing_else_is(noise):
    losses = noise[:, :200].copy()
    losses[0, 150] = 1e30
    assert SpikeDetector(SpikeConfig()).first_spike(pairs(losses)) is None


def test_steps_that_score_nothing_are_no_spikes(noise):
    losses, counts = noise[:, :300].copy(), np.full((2, 300), 4.0)
    counts[0, ::2] = 0
    counts[1] = 0
    detector = SpikeDetector(SpikeConfig(threshold=10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector.first_spike(pairs(losses, counts)) is None
        losses[0, 1] = 50.0
        assert detector.first_spike(pairs(losses[:, :2], counts[:, :2])) == (1, 0)
    assert np.isnan(np.asarray(detector.history)[:, 1]).all()


@pytest.mark.parametrize("cut", [1, 30, 99, 150])
def test_a_restored_history_is_as_good_as_the_first(noise, cut):
    config = SpikeConfig(threshold=4.0, window=40)
    losses = noise[:, :200].copy()
    losses[0, 180] += 1.0
    whole, first = SpikeDetector(config), SpikeDetector(config)
    found = whole.first_spike(pairs(losses))
    assert first.first_spike(pairs(losses[:, :cut])) is None
    second = SpikeDetector(config, json.loads(json.dumps(first.history)))
    step, member = second.first_spike(pairs(losses[:, cut:]))
    assert found == (180, 0) == (step + cut, member)
    assert second.history == whole.history


indices = st.lists(st.integers(0, 60), unique=True, max_size=20).map(sorted)


@given(skipped=indices)
def test_data_index_counts_what_is_not_skipped(skipped):
    remaining = [index for index in range(200) if index not in skipped]
    assert [data_index(step, skipped) for step in range(100)] == remaining[:100]


@given(skipped=indices, step=st.integers(0, 100))
def test_skipping_a_later_batch_moves_no_earlier_one(skipped, step):
    later = data_index(step, skipped)
    more = sorted([*skipped, later])
    assert [data_index(s, more) for s in range(step)] == [
        data_index(s, skipped) for s in range(step)
    ]
    assert data_index(step, more) > later
