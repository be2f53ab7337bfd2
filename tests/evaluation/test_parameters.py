"""Single parameters against the same entry set by hand; controls; the scan over norm weights."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise import tree
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.parameters import (
    Scalar,
    change,
    controls,
    measurer,
    norm_leaves,
    norm_scan,
    operations,
    ranked,
    scaled,
    trial,
)
from lmnoise.models.transformer import LanguageModel, llama
from lmnoise.training import mesh as meshes

KEY = jax.random.key(3)
MODEL = LanguageModel(
    llama(vocab_size=37, context=8, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24)
)
DOWN, NORM = "blocks/1/mlp/down/kernel", "blocks/0/attention_norm/scale"
SCALARS = [Scalar(DOWN, (5, 7)), Scalar(NORM, (3,)), Scalar("tokens", (36, 15))]


@functools.cache
def params():
    return jax.tree.map(
        lambda leaf: 10 * leaf if leaf.ndim > 1 else leaf, jax.jit(MODEL.init)(jax.random.key(1))
    )


@functools.cache
def sources():
    """Two sources of two batches, each document in several rows."""
    random = np.random.default_rng(2)
    found = []
    for name, documents in (("a", 5), ("b", 3)):
        batches = [
            {
                "tokens": random.integers(0, 37, (2, 9), dtype=np.int32),
                "document": np.sort(random.integers(0, documents, (2, 9), dtype=np.int32)),
                "weights": random.integers(0, 2, (2, 8)).astype(np.float32),
            }
            for _ in range(2)
        ]
        found.append(Source(name, batches, np.ones(documents)))
    return found


@functools.cache
def measure(devices=1):
    mesh = meshes.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    leaves = [*norm_leaves(params()), DOWN, "tokens"]
    return measurer(leaves, MODEL.loss, sources(), mesh=mesh)


def with_entry(scalar, new):
    def put(name, leaf):
        leaf = np.array(leaf)
        if name == scalar.leaf:
            leaf[scalar.index] = new
        return leaf

    return tree.map_named(put, params())


LOSS = jax.jit(lambda params, tokens: MODEL.loss(params, {"tokens": tokens}, KEY))


def documents_by_hand(params, source):
    """Nats and tokens (D,) of each document, one target after the other."""
    nats, tokens = np.zeros((2, len(source.bytes_per_token)))
    for batch in source.batches:
        losses_BS = np.asarray(LOSS(params, batch["tokens"]))
        for where in np.ndindex(losses_BS.shape):
            document = batch["document"][where[0], where[1] + 1]
            nats[document] += losses_BS[where] * batch["weights"][where]
            tokens[document] += batch["weights"][where]
    return nats, tokens


@pytest.mark.parametrize("scalar", SCALARS, ids=str)
def test_an_operation_is_the_entry_set_by_hand(scalar):
    made = operations(KEY, params(), scalar, scales=(0.0, 10.0), draws=1)
    rows = measure()(params(), made)
    old = scalar.value(params())
    for row, operation in zip(rows, made, strict=True):
        new = operation.factor * old + operation.offset
        assert (row["value"], row["new"], row["operation"]) == (old, new, operation.kind)
        changed, differences = with_entry(scalar, np.float32(new)), []
        for source in sources():
            nats, tokens = documents_by_hand(changed, source)
            base, _ = documents_by_hand(params(), source)
            mean = (nats - base).sum() / tokens.sum()
            residuals = (nats - base - mean * tokens)[tokens > 0]
            count = len(residuals)
            error = np.sqrt(np.square(residuals).sum() * count / (count - 1)) / tokens.sum()
            expected = {
                "loss": nats.sum() / tokens.sum(),
                "baseline": base.sum() / tokens.sum(),
                "difference": mean,
                "standard_error": error,
                "perplexity_ratio": np.exp(mean),
            }
            for name, value in expected.items():
                found = row[f"{source.name}/{name}"]
                assert found == pytest.approx(value, rel=1e-5, abs=2e-6), (source.name, name)
            differences.append(mean)
        assert row["difference"] == pytest.approx(np.mean(differences), abs=2e-6)
    assert max(abs(row["difference"]) for row in rows) > 1e-3


def test_scale_one_changes_nothing_exactly():
    for row in measure()(params(), [scaled(scalar, 1.0) for scalar in SCALARS]):
        for source in sources():
            assert row[f"{source.name}/difference"] == 0
            assert row[f"{source.name}/loss"] == row[f"{source.name}/baseline"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2), st.integers(0, 10**6), st.floats(-20, 20, width=32))
def test_a_member_sets_its_entry_and_no_other(which, flat, factor):
    small = {"a": np.ones((3, 5), np.float32), "b": np.ones((7,), np.float32), "c": np.ones((2, 2))}
    small = {"x": small, "y": np.full((4,), 3, np.float32)}
    leaves = ["x/a", "x/b", "y"]
    leaf = dict(tree.named_leaves(small))[leaves[which]]
    member = {
        "leaf": np.int32(which),
        "index": np.int32(flat % leaf.size),
        "factor": np.float32(factor),
        "offset": np.float32(0.5),
    }
    found = dict(
        tree.named_leaves(change(leaves)(jax.tree.map(jax.numpy.asarray, small), member, 0))
    )
    for name, old in tree.named_leaves(small):
        expected = old.copy()
        if name == leaves[which]:
            expected.reshape(-1)[flat % leaf.size] *= np.float32(factor)
            expected.reshape(-1)[flat % leaf.size] += 0.5
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def test_the_devices_and_the_company_change_nothing():
    made = [o for s in SCALARS for o in operations(KEY, params(), s, scales=(0.0,), draws=1)]
    together = measure()(params(), made)
    alone = [measure()(params(), [operation])[0] for operation in made]
    assert together == alone
    for row, wide in zip(together, measure(2)(params(), made), strict=True):
        assert {k: v for k, v in row.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in wide.items() if isinstance(v, float)}, rel=1e-5, abs=2e-6
        )


def test_one_program_serves_all_scalars():
    traced = []

    def loss(params, batch, key):
        traced.append(1)
        return MODEL.loss(params, batch, key)

    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    own = measurer([NORM, DOWN, "tokens"], loss, sources(), mesh=mesh)
    own(params(), [scaled(SCALARS[0], 2.0)])
    count = len(traced)
    own(params(), [scaled(scalar, factor) for scalar in SCALARS for factor in (0.0, 3.0)])
    assert len(traced) == count


def test_a_broken_model_is_measured_without_warnings():
    broken = [Scalar("final_norm/scale", (0,))]
    rows = measure()(params(), [scaled(broken[0], 1e30), scaled(broken[0], np.inf)])
    assert rows[0]["a/perplexity_ratio"] == np.inf
    assert np.isnan(rows[1]["difference"])
    assert ranked([*rows[::-1], {"difference": 0.1}]) == [rows[1], rows[0], {"difference": 0.1}]


def test_a_leaf_that_the_measurer_does_not_know():
    with pytest.raises(ValueError, match=r"other leaves than \['blocks/0/mlp/up/kernel'"):
        measure()(params(), [scaled(Scalar("blocks/0/mlp/up/kernel", (0, 0)), 2.0)])
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="no leaf 'nowhere'"):
        measurer(["nowhere"], MODEL.loss, sources(), mesh=mesh)(params(), [])
    with pytest.raises(ValueError, match="no leaf 'nowhere'"):
        operations(KEY, params(), Scalar("nowhere", (0,)))


def test_a_draw_has_the_leaf_s_mean_and_deviation_and_its_own_randomness():
    scalar = Scalar("a", (1, 2))
    leaf = np.random.default_rng(0).normal(3, 0.5, (4, 6)).astype(np.float32)
    made = operations(KEY, {"a": leaf}, scalar, scales=(), draws=400)
    values = np.array([o.offset for o in made])
    assert {o.factor for o in made} == {0.0}
    assert values.mean() == pytest.approx(leaf.mean(), abs=float(leaf.std()) / 5)
    assert values.std() == pytest.approx(leaf.std(), rel=0.15)
    assert operations(KEY, {"a": leaf}, scalar, scales=(2.0,), draws=3)[1:] == made[:3]
    other = operations(KEY, {"a": leaf}, Scalar("a", (2, 1)), scales=(), draws=3)
    assert not {o.offset for o in other} & set(values)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from([(60,), (12, 9)]),
    count=st.integers(1, 12),
    share=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_controls_are_distinct_near_in_magnitude_and_never_the_candidate(seed, shape, count, share):
    random = np.random.default_rng(seed)
    leaf = random.normal(size=shape).astype(np.float32)
    candidates = [
        Scalar("x", tuple(int(i) for i in np.unravel_index(n, shape)))
        for n in random.choice(leaf.size, 4, replace=False)
    ]
    found = controls(KEY, {"x": leaf}, candidates[0], count, share=share, exclude=candidates)
    assert found == controls(
        KEY, {"x": leaf}, candidates[0], count, share=share, exclude=candidates
    )
    assert len(set(found)) == count
    assert not set(found) & set(candidates)
    ranks = np.argsort(np.argsort(np.abs(leaf), axis=None)).reshape(shape)
    pool = max(count, share * leaf.size)
    for control in found:
        distance = abs(int(ranks[control.index]) - int(ranks[candidates[0].index]))
        assert distance <= pool + len(candidates)


def test_controls_of_the_largest_entry_are_the_next_largest():
    leaf = np.array([0.1, -9.0, 0.5, -3.0, 2.0, 0.2], np.float32)
    found = controls(KEY, {"x": leaf}, Scalar("x", (1,)), 2)
    assert {s.index[0] for s in found} == {3, 4}
    excluded = controls(KEY, {"x": leaf}, Scalar("x", (1,)), 2, exclude=[Scalar("x", (3,))])
    assert {s.index[0] for s in excluded} == {2, 4}
    with pytest.raises(ValueError, match="exceeds the 5 other entries of x"):
        controls(KEY, {"x": leaf}, Scalar("x", (1,)), 6)


def test_a_trial_holds_the_candidate_and_both_kinds_of_controls():
    other = Scalar(DOWN, (1, 1))
    made = trial(KEY, params(), SCALARS[0], matched=3, random=2, exclude=[other], draws=2)
    by_role = {role: {o.scalar for o in made if o.role == role} for role in ("matched", "random")}
    assert {o.scalar for o in made if o.role == "candidate"} == {SCALARS[0]}
    assert [len(scalars) for scalars in by_role.values()] == [3, 2]
    assert not by_role["matched"] & by_role["random"]
    assert not {SCALARS[0], other} & (by_role["matched"] | by_role["random"])
    kinds = ["zero", "scale 0.1", "scale 2", "scale 10", "randomise 0", "randomise 1"]
    assert [o.kind for o in made] == kinds * 6


def test_the_scan_is_every_norm_weight_alone():
    leaf = "blocks/1/mlp_norm/scale"
    rows = norm_scan(measure(), params(), leaf, range(16), 10.0)
    alone = [measure()(params(), [scaled(Scalar(leaf, (d,)), 10.0)])[0] for d in range(16)]
    assert rows == alone
    assert norm_scan(measure(), params(), leaf, range(4, 7), 10.0) == alone[4:7]
    assert all(row["difference"] != 0 for row in rows)


def test_norm_leaves():
    assert norm_leaves(params()) == [
        *(f"blocks/{i}/{norm}_norm/scale" for i in (0, 1) for norm in ("attention", "mlp")),
        "final_norm/scale",
    ]
