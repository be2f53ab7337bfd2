"""Loss on held-out text: sums by document, standard errors, bits per byte, any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data.packing import Packed
from lmnoise.data.stream import evaluation_batches
from lmnoise.evaluation.language import Source, document_sums, evaluator, paired, summarise
from lmnoise.training import mesh as meshes
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays

VOCAB, LENGTH = 30, 8


def packed(seed=0, documents=9):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 25, documents)
    return Packed(
        name="made up",
        split="validation",
        tokens=random.integers(0, VOCAB, sizes.sum()).astype(np.uint16),
        ends=np.cumsum(sizes),
        bytes=random.integers(1, 90, documents),
        vocab_size=VOCAB,
        eos_id=0,
        tokenizer_fingerprint="",
        meta={},
    )


def source_of(data, batch_size, limit=None):
    tokens_D = np.diff(data.ends, prepend=0)
    read = evaluation_batches(data, LENGTH, batch_size, limit)
    return Source("text", list(read), data.bytes / tokens_D)


def init(key):
    return {"table": jax.random.normal(key, (VOCAB, VOCAB))}


def bigram_loss(params, batch, key):
    """A bigram model: the loss of a target depends on the token before it."""
    del key
    tokens_BT = batch["tokens"]
    logits_BSV = jax.nn.log_softmax(params["table"])[tokens_BT[:, :-1]]
    return -jnp.take_along_axis(logits_BSV, tokens_BT[:, 1:, None], -1)[..., 0]


@pytest.fixture(scope="module")
def population():
    """Two bigram models on one device."""
    members = [{"seed": s, "stream": 0, "learning_rate": 0.0, "weight_decay": 0.0} for s in (0, 1)]
    return Population(
        init=init,
        loss=bigram_loss,
        transform=lambda batch, member: batch,
        optimizer=OptimizerConfig(steps=1),
        members=member_arrays(members),
        mesh=meshes.make_mesh(devices=jax.devices()[:1]),
    )


def by_hand(table, data, windows):
    """{document: (nats, tokens)} one token after the other, float64."""
    table = np.asarray(table, np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(1, keepdims=True))
    found = {}
    for position in (w * LENGTH + s for w in windows for s in range(1, LENGTH + 1)):
        document = int(np.searchsorted(data.ends, position, side="right"))
        before, target = (int(data.tokens[p]) for p in (position - 1, position))
        nats, tokens = found.get(document, (0.0, 0))
        found[document] = nats - log_probabilities[before, target], tokens + 1
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("limit", [None, 5])
def test_it_is_the_naive_loop_for_any_batch_size(population, seed, limit):
    data, params = packed(seed), population.init().params
    rows = {}
    for batch_size in (1, 3, 7):
        source = source_of(data, batch_size, limit)
        rows[batch_size] = evaluator(population, bigram_loss, [source])(params)
    total = (len(data.tokens) - 1) // LENGTH
    windows = [n * total // limit for n in range(limit)] if limit else range(total)
    for member in range(2):
        found = by_hand(params["table"][member], data, windows)
        nats, tokens = (sum(values) for values in zip(*found.values(), strict=True))
        text_bytes = sum(
            n * data.bytes[d] / np.diff(data.ends, prepend=0)[d] for d, (_, n) in found.items()
        )
        expected = {
            "member": member,
            "eval/text/loss": nats / tokens,
            "eval/text/bits_per_byte": nats / np.log(2) / text_bytes,
            "eval/text/perplexity": np.exp(nats / tokens),
            "eval/text/tokens": len(windows) * LENGTH,
        }
        for batch_size, members in rows.items():
            for name, value in expected.items():
                assert members[member][name] == pytest.approx(value, rel=1e-6), (batch_size, name)
            error = members[member]["eval/text/standard_error"]
            assert error == pytest.approx(rows[1][member]["eval/text/standard_error"], rel=1e-5)


def test_the_mesh_changes_nothing(population):
    data, params = packed(3, 40), population.init().params
    source = source_of(data, 8)
    expected = evaluator(population, bigram_loss, [source])(params)
    wide = Population(
        init=init,
        loss=bigram_loss,
        transform=lambda batch, member: batch,
        optimizer=OptimizerConfig(steps=1),
        members=jax.device_get(population.members),
        mesh=meshes.make_mesh(2, 4, 1),
    )
    found = evaluator(wide, bigram_loss, [source])(wide.init().params)
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-6)


def test_one_program_serves_all_sources(population):
    sources = [source_of(packed(seed), 4) for seed in (0, 1)]
    sources = [Source(f"s{i}", s.batches, s.bytes_per_token) for i, s in enumerate(sources)]
    traced = []

    def loss(params, batch, key):
        traced.append(1)
        return bigram_loss(params, batch, key)

    evaluate = evaluator(population, loss, sources)
    params = population.init().params
    rows = evaluate(params)
    count = len(traced)
    assert evaluate(params) == rows
    assert len(traced) == count
    assert {name.split("/")[1] for name in rows[0] if "/" in name} == {"s0", "s1"}


def test_sums_belong_to_the_document_of_the_target():
    batch = {
        "tokens": np.zeros((1, 5), np.int32),
        "document": np.array([[0, 0, 1, 1, 2]], np.int32),
        "weights": np.array([[1, 1, 0, 1]], np.float32),
    }
    losses_MBS = np.array([[[1.0, 2.0, 4.0, 8.0]], [[3.0, 5.0, 7.0, 9.0]]])
    nats, counts = document_sums([losses_MBS] * 2, [batch, batch], 4)
    np.testing.assert_array_equal(nats, [[2, 4, 16, 0], [6, 10, 18, 0]])
    np.testing.assert_array_equal(counts, [2, 2, 2, 0])


def test_bits_per_byte_by_hand():
    # 6 tokens of 2 bytes and 2 of 4 bytes are 20 bytes; 8 tokens at ln 2 nats are 8 bits.
    nats, counts = np.log(2) * np.array([[6.0, 2.0]]), np.array([6.0, 2.0])
    found = summarise(nats, counts, np.array([2.0, 4.0]))
    assert found["bits_per_byte"] == pytest.approx(8 / 20)
    assert found["perplexity"] == pytest.approx(2)
    assert found["standard_error"] == pytest.approx(0, abs=1e-12)
    assert found["tokens"] == 8


def documents(seed, count):
    """Nats (1, D) and tokens (D,) of documents of very different lengths."""
    random = np.random.default_rng(seed)
    counts_D = random.integers(20, 400, count).astype(float)
    means_D = 4 + random.normal(size=count)
    return (means_D * counts_D)[None], counts_D


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_error_is_that_of_the_jackknife_and_the_bootstrap(seed):
    nats, counts = documents(seed, 300)
    error = summarise(nats, counts, np.ones(300))["standard_error"][0]
    left_out = (nats.sum() - nats[0]) / (counts.sum() - counts)
    jackknife = np.sqrt(299 / 300 * np.square(left_out - left_out.mean()).sum())
    assert error == pytest.approx(jackknife, rel=0.02)
    draws = np.random.default_rng(seed).integers(0, 300, (4000, 300))
    bootstrap = (nats[0][draws].sum(1) / counts[draws].sum(1)).std()
    assert error == pytest.approx(bootstrap, rel=0.06)


@settings(deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(2, 30), unseen=st.integers(0, 5))
def test_documents_without_a_scored_token_do_not_count(seed, count, unseen):
    nats, counts = documents(seed, count)
    padded = np.pad(nats, ((0, 0), (0, unseen))), np.pad(counts, (0, unseen))
    plain = summarise(nats, counts, np.ones(count))
    found = summarise(*padded, np.ones(count + unseen))
    for name, values in plain.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_one_document_has_no_standard_error():
    found = summarise(np.array([[3.0]]), np.array([2.0]), np.ones(1))
    assert np.isnan(found["standard_error"][0])
    assert found["loss"][0] == 1.5


@pytest.mark.parametrize("seed", range(3))
def test_a_paired_difference_is_that_of_the_means_with_the_error_of_the_bootstrap(seed):
    """Documents differ by 1 nat a token, the two models by 0.1: pairing takes the first out."""
    nats, counts = documents(seed, 300)
    random = np.random.default_rng(seed)
    baseline = nats[0]
    losses = baseline + (0.1 + 0.05 * random.normal(size=300)) * counts
    difference, error = paired(losses, baseline, counts)
    assert difference == pytest.approx((losses.sum() - baseline.sum()) / counts.sum())
    draws = random.integers(0, 300, (4000, 300))
    bootstrap = ((losses - baseline)[draws].sum(1) / counts[draws].sum(1)).std()
    assert error == pytest.approx(bootstrap, rel=0.06)
    assert error < 0.1 * summarise(nats, counts, np.ones(300))["standard_error"][0]
    assert paired(baseline, losses, counts) == pytest.approx((-difference, error))
    unseen = (np.append(a, 0.0) for a in (losses, baseline, counts))
    assert paired(*unseen) == pytest.approx((difference, error))
    assert paired(baseline, baseline, counts) == (0, 0)
