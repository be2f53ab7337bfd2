"""Variants of one model: each is scored as if alone, whoever comes along, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.evaluation import variants
from lmnoise.evaluation.language import Source, member_rows, summarise
from lmnoise.models.transformer import LanguageModel, llama
from lmnoise.training import mesh as meshes
from lmnoise.training import population

VOCAB, LENGTH, ROWS, DOCUMENTS = 30, 8, 22, 5
PARAMS = {"table": jax.random.normal(jax.random.key(3), (VOCAB, VOCAB))}


def source(seed, batch_size=8):
    """Random tokens in documents of random lengths; rows of no weight fill up the last batch."""
    random = np.random.default_rng(seed)
    rows = {
        "tokens": random.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32),
        "document": np.sort(random.integers(0, DOCUMENTS, (ROWS, LENGTH + 1)).astype(np.int32)),
        "weights": np.ones((ROWS, LENGTH), np.float32),
    }
    padding = -ROWS % batch_size
    filled = {n: np.concatenate([a, a[:padding] * (n != "weights")]) for n, a in rows.items()}
    count = (ROWS + padding) // batch_size
    batches = [{n: np.split(a, count)[k] for n, a in filled.items()} for k in range(count)]
    return Source(f"text{seed}", batches, random.uniform(1, 5, DOCUMENTS))


def bigram_loss(params, batch, key):
    """A bigram model: the loss of a target depends on the token before it."""
    del key
    tokens_BT = batch["tokens"]
    logits_BSV = jax.nn.log_softmax(params["table"])[tokens_BT[:, :-1]]
    return -jnp.take_along_axis(logits_BSV, tokens_BT[:, 1:, None], -1)[..., 0]


SOURCES = [source(0), source(1)]


def one_device():
    return meshes.make_mesh(devices=jax.devices()[:1])


def scaled(params, member, extra):
    """`extra` times the scale, so that it is seen to be shared."""
    return {"table": params["table"] * member["scale"] * extra["factor"]}


def members_of(count):
    return {"scale": np.linspace(0.5, 2.0, 7)[:count]}


EXTRA = {"factor": np.float32(1.5)}


def evaluate(count, sources=SOURCES, mesh=None, **options):
    made = variants.evaluator(scaled, bigram_loss, sources, mesh=mesh or one_device(), **options)
    return made(PARAMS, members_of(count), EXTRA)


@pytest.fixture(scope="module")
def reference():
    return evaluate(7)


def assert_equal_sums(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        for mine, other in zip(found[name], sums, strict=True):
            np.testing.assert_allclose(mine, other, rtol=rtol)


def test_a_variant_is_scored_as_the_loop_by_hand_scores_it(reference):
    for of_source, sums in zip(SOURCES, reference.values(), strict=True):
        for member in (0, 4):
            table = np.asarray(PARAMS["table"], np.float64) * members_of(7)["scale"][member] * 1.5
            surprise = np.log(np.exp(table).sum(1, keepdims=True)) - table
            nats_D, counts_D = np.zeros(DOCUMENTS), np.zeros(DOCUMENTS)
            for batch in of_source.batches:
                weights, documents = batch["weights"], batch["document"][:, 1:]
                own = surprise[batch["tokens"][:, :-1], batch["tokens"][:, 1:]] * weights
                np.add.at(nats_D, documents, own)
                np.add.at(counts_D, documents, weights)
            np.testing.assert_allclose(sums.losses_MD[member], nats_D, rtol=1e-5)
            np.testing.assert_array_equal(sums.counts_D, counts_D)
            assert counts_D.sum() == ROWS * LENGTH
        np.testing.assert_array_equal(sums.bytes_per_token_D, of_source.bytes_per_token)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("shape", [None, (8, 1, 1), (1, 8, 1), (2, 4, 1)], ids=str)
def test_neither_the_mesh_nor_the_others_matter(reference, shape, count):
    mesh = shape and meshes.make_mesh(*shape)
    found = evaluate(count, mesh=mesh)
    first = {n: s._replace(losses_MD=s.losses_MD[:count]) for n, s in reference.items()}
    assert_equal_sums(found, first)


@pytest.mark.parametrize("group", [2, 4, 100], ids="groups of {}".format)
@pytest.mark.parametrize("shape", [None, (2, 4, 1)], ids=str)
def test_groups_agree(reference, group, shape):
    assert_equal_sums(evaluate(7, mesh=shape and meshes.make_mesh(*shape), group=group), reference)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_does_not_matter(reference, batch_size):
    assert_equal_sums(evaluate(7, [source(0, batch_size), source(1, batch_size)]), reference)


def test_one_program_for_any_number_of_members_and_one_change_for_all_batches():
    traced = []

    def change(params, member, extra):
        traced.append(member)
        return scaled(params, member, extra)

    made = variants.evaluator(change, bigram_loss, SOURCES, mesh=meshes.make_mesh(2, 4, 1), group=2)
    made(PARAMS, members_of(3), EXTRA)
    assert len(traced) == 1
    for count in (7, 4, 5):
        made(PARAMS, members_of(count), EXTRA)
    made(jax.tree.map(lambda a: 2 * a, PARAMS), members_of(7), {"factor": np.float32(2)})
    assert len(traced) == 1


def test_a_transformer_on_a_mesh_with_tensor_parallelism():
    model = LanguageModel(
        llama(vocab_size=VOCAB, context=8, layers=2, width=16, heads=4, kv_heads=2, mlp_width=32)
    )
    params = model.init(jax.random.key(0))

    def change(params, member, extra):
        return jax.tree.map(lambda a: a * member["scale"], params)

    found = [
        variants.evaluator(change, model.loss, SOURCES, mesh=mesh)(params, members_of(3))
        for mesh in (one_device(), meshes.make_mesh(2, 1, 2, 2))
    ]
    assert_equal_sums(found[1], found[0])


def test_on_accelerators_the_group_follows_from_the_free_memory(monkeypatch, reference):
    """The program's own need decides; a device with room for 2.5 members takes 2 at once."""

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 10_000 + int(2.5 * need / 0.9), "bytes_in_use": 10_000}

    asked, need = [], 1_000
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(), Device()])
    assert population.automatic_group(100, need) == 2
    assert population.automatic_group(1, need) == 1
    assert population.automatic_group(100, 100 * need) == 1
    assert population.automatic_group(100) == 100
    plain = population.automatic_group

    def noted(count, member_bytes):
        asked.append(member_bytes)
        return plain(count, need)

    monkeypatch.setattr(variants, "automatic_group", noted)
    sizes = []
    monkeypatch.setattr(
        variants,
        "map_members",
        lambda f, mesh, group, members: (
            sizes.append(group) or population.map_members(f, mesh, group, members)
        ),
    )
    assert_equal_sums(evaluate(7), reference)
    assert len(asked) == 1
    assert asked[0] > 0
    assert set(sizes) == {1, 2}


def test_sums_become_metrics(reference):
    rows = member_rows(reference)
    assert [row["member"] for row in rows] == list(range(7))
    for name, sums in reference.items():
        for metric, values_M in summarise(*sums).items():
            for row, value in zip(rows, values_M, strict=True):
                assert row[f"eval/{name}/{metric}"] == pytest.approx(value)


def test_batches_of_several_shapes_are_refused():
    other = source(2, 2)
    with pytest.raises(ValueError, match=r"one shape, not of \[\(2, 9\), \(8, 9\)\]"):
        evaluate(1, [*SOURCES, other])


def test_the_loss_may_take_anything_as_its_parameters():
    """A change may hand more than parameters to the loss."""

    def change(params, member, extra):
        return params, member["scale"]

    def loss(variant, batch, key):
        params, scale = variant
        return bigram_loss(params, batch, key) * scale

    made = variants.evaluator(change, loss, SOURCES, mesh=one_device())
    found = made(PARAMS, {"scale": jnp.array([1.0, 3.0])})["text0"].losses_MD
    np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-6)
