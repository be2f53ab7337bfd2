"""Windows and batches against slow, plain definitions of what they are."""

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data.packing import Packed
from lmnoise.data.stream import Beginnings, Windows, batches, evaluation_batches
from lmnoise.errors import UserError

VOCABULARY = 50


def make_packed(lengths, name="made", seed=0, fingerprint="f"):
    """Documents of the given lengths (separator included), with known tokens."""
    ends = np.cumsum(lengths).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, ends[-1]).astype("<u2")
    return Packed(name, "train", tokens, ends, ends, VOCABULARY, 0, fingerprint, {})


def joined(parts, key):
    return np.concatenate([part[key] for part in parts], axis=1)


lengths_of_documents = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@settings(deadline=None)
@given(lengths=lengths_of_documents, length=st.integers(1, 12))
def test_windows_cover_the_split_in_order(lengths, length):
    packed = make_packed(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    if sum(lengths) < length + 1:
        with pytest.raises(UserError, match="fewer than one window"):
            Windows(packed, length)
        return
    windows = Windows(packed, length)
    items = [windows[i] for i in range(len(windows))]
    for i, item in enumerate(items):
        assert item["tokens"].dtype == item["document"].dtype == np.int32
        np.testing.assert_array_equal(item["tokens"], packed.tokens[i * length :][: length + 1])
        np.testing.assert_array_equal(item["document"], owner[i * length :][: length + 1])
    targets = np.concatenate([item["tokens"][1:] for item in items])
    np.testing.assert_array_equal(targets, packed.tokens[1 : 1 + len(targets)])
    assert sum(lengths) - 1 - len(targets) < length
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_windows_begin_with_the_token_that_a_model_wants_in_front():
    packed = make_packed([9, 12])
    plain = Windows(packed, 4).gather(np.arange(5))
    marked = Windows(dataclasses.replace(packed, bos_id=7), 4).gather(np.arange(5))
    assert (marked["tokens"][:, 0] == 7).all()
    np.testing.assert_array_equal(marked["tokens"][:, 1:], plain["tokens"][:, 1:])
    np.testing.assert_array_equal(marked["document"], plain["document"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), count=st.integers(2, 60), batch_size=st.integers(1, 9))
def test_every_epoch_is_another_permutation(seed, count, batch_size):
    windows = Windows(make_packed([count * 4 + 1]), 4)
    stream = batches(windows, seeds=[seed], batch_size=batch_size)
    number_of = {tuple(windows[i]["tokens"]): i for i in range(count)}
    needed = -(-3 * count // batch_size)
    tokens = np.concatenate([stream[k]["tokens"][0] for k in range(needed)])[: 3 * count]
    epochs = np.array([number_of[tuple(row)] for row in tokens]).reshape(3, count)
    assert len(number_of) < count or np.all(np.sort(epochs) == np.arange(count))
    if count > 20:
        assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("weights", [None, [0.7, 0.3]])
def test_processes_join_to_the_same_global_batch(weights):
    sources = [Windows(make_packed([97, 60]), 8), Windows(make_packed([50], seed=1), 8)]
    seeds = [3, 4, 2**63]

    def joint(process_count, k):
        parts = [
            batches(
                sources,
                seeds=seeds,
                batch_size=8,
                process_index=index,
                process_count=process_count,
                weights=weights,
            )[k]
            for index in range(process_count)
        ]
        return {key: joined(parts, key) for key in parts[0]}

    for k in (0, 1, 7, 10_000):
        one = joint(1, k)
        assert one["tokens"].shape == one["document"].shape == (3, 8, 9)
        assert one["source"].shape == (3, 8)
        for process_count in (2, 4, 8):
            for key, value in joint(process_count, k).items():
                np.testing.assert_array_equal(value, one[key])


def test_a_stream_depends_on_its_own_seed_only():
    windows = Windows(make_packed([1000]), 7)
    together = batches(windows, seeds=[5, 6], batch_size=4)
    alone = batches(windows, seeds=[6], batch_size=4)
    for k in (0, 3, 100):
        np.testing.assert_array_equal(together[k]["tokens"][1], alone[k]["tokens"][0])
    # Neighbouring seeds must not share epochs, as they would with grain's own seed + epoch.
    rows = 140
    assert len(windows) == 142
    near = batches(windows, seeds=[5, 6], batch_size=142)
    assert not np.array_equal(near[1]["tokens"][0], near[0]["tokens"][1])
    assert (near[0]["tokens"][0] != near[0]["tokens"][1]).any(axis=1).sum() > rows / 2


def test_golden_order_of_windows():
    """The order of the windows is part of every result: a change here changes all runs."""
    packed = make_packed([41])
    packed.tokens[:] = np.arange(41)
    stream = batches(Windows(packed, 4), seeds=[0, 1], batch_size=5)
    order = np.concatenate([stream[k]["tokens"][:, :, 0] // 4 for k in range(4)], axis=1)
    assert order.tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [
    [9, 6, 0, 4, 5, 2, 7, 1, 8, 3, 4, 6, 5, 8, 0, 1, 7, 2, 9, 3],
    [2, 3, 1, 4, 5, 6, 7, 8, 9, 0, 2, 4, 7, 0, 9, 8, 1, 3, 5, 6],
]


def test_mixture_keeps_its_proportions_and_its_sources():
    first, second, third = (
        Windows(make_packed([size * 5 + 1], seed=size), 5) for size in (9, 4, 7)
    )
    weights = [0.75, 0.25, 0]
    stream = batches([first, second, third], seeds=[0], batch_size=16, weights=weights)
    rows = [stream[k] for k in range(10)]
    source = np.concatenate([row["source"][0] for row in rows])
    assert np.bincount(source, minlength=3).tolist() == [120, 40, 0]
    for row in rows:
        for s, tokens in zip(row["source"][0], row["tokens"][0], strict=True):
            held = [first, second, third][s].packed.tokens
            assert any(np.array_equal(held[i : i + 6], tokens) for i in range(0, len(held) - 5, 5))
    by_size = batches([first, second], seeds=[0], batch_size=13)
    assert np.bincount(by_size[0]["source"][0]).tolist() == [9, 4]


@settings(max_examples=30, deadline=None)
@given(
    lengths=lengths_of_documents, batch_size=st.integers(1, 7), limit=st.none() | st.integers(1, 9)
)
def test_evaluation_reads_every_window_once(lengths, batch_size, limit):
    packed = make_packed([*lengths, 10])
    windows = Windows(packed, 4)
    read = list(evaluation_batches(packed, 4, batch_size, limit))
    count = min(limit or len(windows), len(windows))
    assert {batch["tokens"].shape for batch in read} == {(batch_size, 5)}
    weights = np.concatenate([batch["weights"] for batch in read])
    assert weights.dtype == np.float32
    assert weights.sum() == count * 4
    kept = weights[:, 0] == 1
    tokens = np.concatenate([batch["tokens"] for batch in read])[kept]
    # Without a limit every window in order, with one an even choice of them.
    chosen = [i * len(windows) // count for i in range(count)]
    assert len(set(chosen)) == count
    np.testing.assert_array_equal(tokens, [windows[i]["tokens"] for i in chosen])


def test_what_cannot_be_streamed_is_said():
    windows = Windows(make_packed([50]), 4)
    with pytest.raises(UserError, match="does not divide over 4"):
        batches(windows, seeds=[0], batch_size=6, process_count=4)
    other = Windows(make_packed([50], name="other", fingerprint="g"), 4)
    with pytest.raises(UserError, match="different tokenizers"):
        batches([windows, other], seeds=[0], batch_size=4)
    with pytest.raises(UserError, match="same window length"):
        batches([windows, Windows(make_packed([50]), 5)], seeds=[0], batch_size=4)
    for weights in ([1], [0, 0], [-1, 2], [float("nan"), 1]):
        with pytest.raises(UserError, match="as many weights"):
            batches([windows, windows], seeds=[0], batch_size=4, weights=weights)
    with pytest.raises(UserError, match="one seed"):
        batches(windows, seeds=[], batch_size=4)
    with pytest.raises(UserError, match="at least 1"):
        Windows(make_packed([50]), 0)


def test_grain_reads_ahead_and_resumes():
    stream = batches(Windows(make_packed([500]), 4), seeds=[1, 2], batch_size=4)
    iterator = iter(stream.to_iter_dataset())
    for k in range(3):
        np.testing.assert_array_equal(next(iterator)["tokens"], stream[k]["tokens"])
    state = iterator.get_state()
    again = iter(stream.to_iter_dataset())
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], stream[3]["tokens"])
    np.testing.assert_array_equal(stream[5:7][0]["tokens"], stream[5]["tokens"])


def test_windows_in_memory_can_be_copied():
    windows = copy.deepcopy(Windows(make_packed([30]), 4))
    assert len(windows) == 7


@settings(deadline=None)
@given(lengths=lengths_of_documents, size=st.integers(1, 8))
def test_beginnings_are_every_run_inside_a_document_once(lengths, size):
    packed = make_packed(lengths)
    separators = set((packed.ends - 1).tolist())
    starts = range(0, len(packed.tokens) - size + 1, size)
    whole = [s for s in starts if not separators & set(range(s, s + size))]
    if not whole:
        with pytest.raises(UserError, match="to begin with: take fewer"):
            Beginnings(packed, size, "name")
        return
    beginnings = Beginnings(packed, size, "name")
    found = beginnings(np.arange(len(whole)))
    expected = [packed.tokens[s : s + size].tolist() for s in whole]
    assert sorted(found.tolist()) == sorted(expected)
    np.testing.assert_array_equal(beginnings(np.array([len(whole) - 1])), found[-1:])
