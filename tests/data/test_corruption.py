"""The laws of the noise, and that a row's noise depends on (seed, step, row) alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from lmnoise.data.corruption import KINDS, REPEATED_SPAN, Corruption, extra_rows_for
from lmnoise.training.mesh import make_mesh

VOCAB, ROWS, LENGTH = 50, 16, 13
EXTRA = 48  # room for rates up to 0.75
steps = st.integers(0, 2**31 - 1)
seeds = st.integers(0, 2**31 - 1)
rates = st.floats(0, 0.75, width=32)
kinds = st.integers(0, len(KINDS) - 1)


def clean_tokens(rows=ROWS, length=LENGTH):
    return np.random.default_rng(7).integers(0, VOCAB, (rows, length + 1)).astype(np.int32)


@functools.cache
def compiled(budget="total", kinds=KINDS, **options):
    extra = EXTRA if budget == "clean" else 0
    corruption = Corruption(VOCAB, kinds, budget=budget, extra_rows=extra, **options)

    @jax.jit
    def apply(tokens, noise, index, seed, rate, kind):
        member = {"seed": seed, "rate": rate, "kind": kind}
        return corruption({"tokens": tokens, "noise": noise, "index": index}, member)

    return apply


def corrupt(seed, step, rate, kind, *, budget="total", tokens=None, **options):
    tokens = clean_tokens() if tokens is None else tokens
    kind = KINDS.index(kind) if isinstance(kind, str) else kind
    numbers = np.int32(step), np.int32(seed), np.float32(rate), np.int32(kind)
    out = compiled(budget, **options)(tokens, tokens[::-1] + 1000, *numbers)
    out = jax.device_get(out)
    return out["tokens"], out["weights"], out["groups"]["clean"], out["groups"]["noise"]


@pytest.mark.parametrize("budget", ["total", "clean"])
@settings(max_examples=60, deadline=None)
@given(seed=seeds, step=steps, low=rates, high=rates, kind=kinds)
def test_higher_rates_contain_lower_ones(budget, seed, step, low, high, kind):
    low, high = sorted((low, high))
    less, more = (corrupt(seed, step, rate, kind, budget=budget) for rate in (low, high))
    is_noise = (~less[2])[:, 0] & (less[3] | (kind == KINDS.index("dropped")))[:, 0]
    assert not (is_noise & more[2][:, 0]).any()
    assert not (less[3] & ~more[3]).any()
    np.testing.assert_array_equal(less[0][is_noise], more[0][is_noise])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, step=steps, rate=rates, kind=kinds)
def test_total_budget(seed, step, rate, kind):
    tokens, weights, clean, noise = corrupt(seed, step, rate, kind)
    assert tokens.shape == (ROWS, LENGTH + 1)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[clean[:, 0]], clean_tokens()[clean[:, 0]])
    assert not (clean & noise).any()
    np.testing.assert_array_equal(weights, (clean | noise).astype(np.float32))
    if KINDS[kind] == "dropped":
        assert not noise.any()
    else:
        assert (clean | noise).all()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, step=steps, rate=rates, kind=kinds)
def test_clean_budget(seed, step, rate, kind):
    tokens, weights, clean, noise = corrupt(seed, step, rate, kind, budget="clean")
    np.testing.assert_array_equal(tokens[:ROWS], clean_tokens())
    assert tokens.shape == (ROWS + EXTRA, LENGTH + 1)
    np.testing.assert_array_equal(clean[:, 0], np.arange(ROWS + EXTRA) < ROWS)
    np.testing.assert_array_equal(weights, (clean | noise).astype(np.float32))
    assert not (clean & noise).any()
    if KINDS[kind] == "dropped":
        assert not noise.any()


@pytest.mark.parametrize("budget", ["total", "clean"])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
def test_share_of_noise(budget, rate):
    steps = np.arange(500, dtype=np.int32)
    tokens = clean_tokens(length=1)
    member = np.int32(1), np.float32(rate), np.int32(0)
    alone = compiled(budget, ("uniform",))
    apply = jax.vmap(alone, in_axes=(None, None, 0, None, None, None))
    groups = jax.device_get(apply(tokens, tokens, steps, *member)["groups"])
    noise, clean = groups["noise"].sum(), groups["clean"].sum()
    if budget == "total":
        assert noise + clean == 500 * ROWS
        error = np.sqrt(rate * (1 - rate) / (500 * ROWS))
        assert abs(noise / (500 * ROWS) - rate) < 4 * error
    else:
        wanted = rate / (1 - rate) * ROWS
        draw = wanted / EXTRA
        error = np.sqrt(draw * (1 - draw) * EXTRA / 500)
        assert abs(noise / 500 - wanted) < 4 * error
        assert wanted / (wanted + ROWS) == pytest.approx(rate)


def test_rate_zero_is_clean_and_a_row_is_noise_independently_of_the_others():
    tokens, weights, clean, _ = corrupt(0, 0, 0.0, "uniform")
    assert clean.all()
    assert (weights == 1).all()
    np.testing.assert_array_equal(tokens, clean_tokens())
    short = clean_tokens(length=1)
    apply = jax.vmap(compiled(kinds=("uniform",)), in_axes=(None, None, 0, None, None, None))
    index = np.arange(800, dtype=np.int32)
    out = apply(short, short, index, np.int32(0), np.float32(0.5), np.int32(0))
    noise_KB = np.asarray(out["groups"]["noise"])[..., 0]
    correlation = np.corrcoef(noise_KB.T) - np.eye(ROWS)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(800)


def rows_of(kind, count=200, **options):
    """Noise rows and the clean rows that they came from."""
    pairs = []
    for step in range(-(-count // ROWS)):
        tokens, _, _, noise = corrupt(3, step, 0.99999, kind, **options)
        assert noise.all() or kind == "dropped"
        pairs += zip(tokens, clean_tokens(), strict=True)
    return map(np.stack, zip(*pairs, strict=True))


def test_uniform_noise_is_uniform():
    tokens, _ = rows_of("uniform")
    counts = np.bincount(tokens.ravel(), minlength=VOCAB)
    assert len(counts) == VOCAB
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.chisquare(np.bincount(tokens[:, 0], minlength=VOCAB)).pvalue > 1e-4
    assert abs(np.corrcoef(tokens[:, :-1].ravel(), tokens[:, 1:].ravel())[0, 1]) < 0.08


@pytest.mark.parametrize("std", [None, 4.0])
def test_gaussian_noise_has_its_mean_and_spread(std):
    tokens, _ = rows_of("gaussian", gaussian_std=std)
    wanted = VOCAB / 8 if std is None else std
    assert abs(tokens.mean() - VOCAB / 2) < 4 * wanted / np.sqrt(tokens.size)
    assert tokens.std() == pytest.approx(np.hypot(wanted, np.sqrt(1 / 12)), rel=0.05)
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB


def test_gaussian_noise_is_clipped_to_the_vocabulary():
    tokens, _ = rows_of("gaussian", gaussian_std=100.0)
    below = stats.norm.cdf(0.5, VOCAB / 2, 100)
    above = stats.norm.sf(VOCAB - 1.5, VOCAB / 2, 100)
    for token, share in ((0, below), (VOCAB - 1, above)):
        error = np.sqrt(share * (1 - share) / tokens.size)
        assert abs((tokens == token).mean() - share) < 4 * error
    assert tokens.min() == 0
    assert tokens.max() == VOCAB - 1


def test_shuffled_noise_permutes_the_row():
    tokens, own = rows_of("shuffled")
    np.testing.assert_array_equal(np.sort(tokens, 1), np.sort(own, 1))
    assert (tokens != own).any(1).mean() > 0.99
    position = np.arange(LENGTH + 1)
    distinct = np.tile(position, (ROWS, 1)).astype(np.int32)
    draws = [corrupt(1, k, 0.99999, "shuffled", tokens=distinct)[0] for k in range(60)]
    first = np.bincount(np.concatenate(draws)[:, 0], minlength=LENGTH + 1)
    assert stats.chisquare(first).pvalue > 1e-4


def test_repeated_noise_repeats_the_start_of_the_row():
    tokens, own = rows_of("repeated")
    for position in range(LENGTH + 1):
        np.testing.assert_array_equal(tokens[:, position], own[:, position % REPEATED_SPAN])


def test_dropped_rows_have_no_weight_and_no_group():
    _, weights, clean, noise = corrupt(0, 0, 0.5, "dropped")
    other = corrupt(0, 0, 0.5, "uniform")
    np.testing.assert_array_equal(clean, other[2])  # it loses the same rows
    assert 0 < clean.sum() < ROWS
    assert not noise.any()
    np.testing.assert_array_equal(weights, clean.astype(np.float32))


def test_stream_noise_is_the_other_stream():
    tokens, _, _, noise = corrupt(0, 0, 0.5, "stream")
    noisy = noise[:, 0]
    assert 0 < noisy.sum() < ROWS
    np.testing.assert_array_equal(tokens[noisy], (clean_tokens()[::-1] + 1000)[noisy])


@settings(max_examples=20, deadline=None)
@given(seed=seeds, step=steps, kind=kinds, rows=st.sampled_from([1, 8]))
def test_a_row_does_not_depend_on_the_rows_around_it(seed, step, kind, rows):
    if KINDS[kind] == "stream":
        return  # its noise is data, which changes with the batch
    whole = corrupt(seed, step, 0.5, kind)
    fewer = corrupt(seed, step, 0.5, kind, tokens=clean_tokens()[:rows])
    for a, b in zip(whole, fewer, strict=True):
        np.testing.assert_array_equal(a[:rows], b)


def test_steps_and_seeds_differ():
    base = corrupt(0, 0, 0.5, "uniform")
    for other in (corrupt(1, 0, 0.5, "uniform"), corrupt(0, 1, 0.5, "uniform")):
        assert (base[3] != other[3]).any()
        both = (base[3] & other[3])[:, 0]
        assert (base[0][both] != other[0][both]).mean() > 0.9


@pytest.mark.parametrize("budget", ["total", "clean"])
def test_sharding_and_mapping_over_members_change_nothing(budget):
    tokens = clean_tokens()
    where = NamedSharding(make_mesh(data=8), PartitionSpec("data"))
    for kind in range(len(KINDS)):
        numbers = np.int32(5), np.int32(9), np.float32(0.5), np.int32(kind)
        plain = jax.device_get(compiled(budget)(tokens, tokens, *numbers))
        placed = jax.device_put(tokens, where)
        sharded = jax.device_get(compiled(budget)(placed, placed, *numbers))
        members = jnp.array([9, 9, 4]), jnp.array([0.5, 0.1, 0.5]), jnp.array([kind, 0, 0])
        mapped = jax.vmap(compiled(budget), in_axes=(None, None, None, 0, 0, 0))
        first = jax.tree.map(lambda a: a[0], jax.device_get(mapped(tokens, tokens, 5, *members)))
        for other in (sharded, first):
            jax.tree.map(np.testing.assert_array_equal, plain, other)


@given(rate=st.floats(0, 0.9), rows=st.integers(1, 64), multiple=st.integers(1, 8))
def test_extra_rows_have_room_for_the_rate(rate, rows, multiple):
    extra = extra_rows_for(rate, rows, multiple)
    assert extra % multiple == 0
    assert extra >= rate / (1 - rate) * rows - 1e-6
    assert extra < rate / (1 - rate) * rows + multiple


def test_unknown_kinds_and_budgets_are_errors():
    with pytest.raises(ValueError, match=r"unknown kinds of noise \['pink'\]"):
        Corruption(VOCAB, ("uniform", "pink"))
    with pytest.raises(ValueError, match="budget"):
        Corruption(VOCAB, KINDS, budget="both")
