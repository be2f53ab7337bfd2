"""Regions against closed forms, plain sorting and simulation; their invariants by property."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lmnoise import tree
from lmnoise.evaluation import regions
from lmnoise.models.transformer import LanguageModel, gpt2, llama

SHAPES = {
    "tokens": (7, 4),
    "blocks": {0: {"mlp": {"up": {"kernel": (4, 6)}}, "mlp_norm": {"scale": (4,)}}},
}
EVERYTHING = ((r".*", True),)


def leaves_of(draw_leaf):
    return jax.tree.map(draw_leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


@st.composite
def importances(draw):
    """Few distinct values, so that ties are the rule."""
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf])
    return leaves_of(lambda shape: draw(arrays.arrays(np.float32, shape, elements=values)))


@st.composite
def some_masks(draw):
    return leaves_of(lambda shape: draw(arrays.arrays(bool, shape)))


shares = st.floats(0, 1)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


# ---- importance ---------------------------------------------------------------------------------


def quadratic_loss(params, batch, key):
    """Per example: `1/2 (x.w + b - y)^2`."""
    del key
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2 / 2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_taylor_is_its_closed_form_on_a_quadratic(seed):
    random = np.random.default_rng(seed)
    params = {"w": random.normal(size=3).astype(np.float32), "b": np.float32(random.normal())}
    batches = [
        {
            "x": random.normal(size=(5, 3)).astype(np.float32),
            "y": random.normal(size=5).astype(np.float32),
            "weights": random.integers(0, 3, 5).astype(np.float32),
        }
        for _ in range(3)
    ]
    found = regions.taylor(quadratic_loss, params, batches)
    x, y, weights = (np.concatenate([b[n] for b in batches]) for n in ("x", "y", "weights"))
    residual = weights * (x @ params["w"] + params["b"] - y)
    np.testing.assert_allclose(found["w"], np.abs(params["w"] * (residual @ x)), 1e-4, 1e-4)
    np.testing.assert_allclose(found["b"], np.abs(params["b"] * residual.sum()), 1e-4, 1e-4)
    assert found["w"].dtype == np.float32


def test_the_absolute_value_comes_after_the_sum():
    batch = {"x": np.eye(3, dtype=np.float32), "weights": np.ones(3, np.float32)}
    params = {"w": np.ones(3, np.float32), "b": np.float32(0)}
    opposite = [batch | {"y": np.full(3, y, np.float32)} for y in (0.0, 2.0)]
    np.testing.assert_array_equal(regions.taylor(quadratic_loss, params, opposite)["w"], 0)
    assert (regions.taylor(quadratic_loss, params, opposite[:1])["w"] == 1).all()


def scaled(params, name, index, factor):
    """Parameters of which one entry is multiplied."""

    def of_leaf(its_name, leaf):
        leaf = np.array(leaf)
        if its_name == name:
            leaf[index] *= factor
        return leaf

    return tree.map_named(of_leaf, params)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_taylor_predicts_the_loss_after_shrinking_an_entry(family):
    """`loss(theta (1 - h)) - loss(theta (1 + h))` over 2 h, by finite differences."""
    shape = dict(vocab_size=19, context=6, layers=2, width=8, heads=2, mlp_width=16)
    config = gpt2(**shape) if family == "gpt2" else llama(kv_heads=1, **shape)
    model = LanguageModel(config)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: random.normal(spec.constant, 0.3, spec.shape).astype(np.float32), model.specs
    )
    batches = [
        {
            "tokens": random.integers(0, 19, (2, 7)).astype(np.int32),
            "weights": random.integers(0, 2, (2, 6)).astype(np.float32),
        }
        for _ in range(2)
    ]
    found = dict(tree.named_leaves(regions.taylor(model.loss, params, batches)))

    @jax.jit
    def total(params):
        return sum((model.loss(params, b, None) * b["weights"]).sum() for b in batches)

    for name, leaf in tree.named_leaves(params):
        index = tuple(int(random.integers(n)) for n in leaf.shape)
        h = 0.01 / max(abs(leaf[index]), 0.05)

        ends = [total(scaled(params, name, index, 1 + sign * h)) for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(found[name][index], abs(slope), rtol=2e-3, atol=1e-4)


def test_change_and_sum():
    random = np.random.default_rng(1)
    before, *after = (leaves_of(lambda s: random.normal(size=s).astype(np.float32)) for _ in "abc")
    changes = [regions.change(before, jax.tree.map(jnp.asarray, a)) for a in after]
    kept = jax.tree.map(np.copy, changes[0])
    total = regions.add(iter(changes))
    for b, x, y, t, c in zip(*map(jax.tree.leaves, (before, *after, total, kept)), strict=True):
        np.testing.assert_array_equal(t, np.abs(x - b) + np.abs(y - b))
        np.testing.assert_array_equal(c, np.abs(x - b))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(changes[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="importances"):
        regions.add([])


# ---- selection ----------------------------------------------------------------------------------


def selected(importance, share, end):
    """By a stable sort: falling values, earlier positions first."""

    def of_leaf(leaf):
        mask = np.zeros(leaf.size, bool)
        order = np.argsort(-leaf.reshape(-1), kind="stable")
        n = regions.count(share, leaf.size)
        mask[order[:n] if end == "top" else order[leaf.size - n :]] = True
        return mask.reshape(leaf.shape)

    return jax.tree.map(of_leaf, importance)


@pytest.mark.parametrize("end", regions.ENDS)
@settings(max_examples=60, deadline=None)
@given(importance=importances(), share=shares)
def test_selection_is_a_stable_sort(end, importance, share):
    mask = regions.select(importance, share, end, EVERYTHING)
    assert_same(mask, selected(importance, share, end))
    assert_same(mask, regions.select(importance, share, end, EVERYTHING))


@settings(max_examples=60, deadline=None)
@given(importance=importances(), share=shares, seed=st.integers(0, 9))
def test_counts_are_exact_in_every_tensor(importance, share, seed):
    every = [regions.select(importance, share, end) for end in regions.ENDS]
    every.append(regions.random(jax.random.key(seed), importance, share))
    for mask in every:
        for name, leaf in tree.named_leaves(mask):
            assert leaf.dtype == bool
            wanted = share * leaf.size if name.startswith("blocks") else 0
            assert abs(np.count_nonzero(leaf) - wanted) <= 0.5, name


@settings(max_examples=60, deadline=None)
@given(importance=importances(), share=st.floats(0, 0.5))
def test_top_and_bottom_are_disjoint_up_to_a_half(importance, share):
    top, bottom = (regions.select(importance, share, end, EVERYTHING) for end in regions.ENDS)
    for a, b in zip(jax.tree.leaves(top), jax.tree.leaves(bottom), strict=True):
        assert not (a & b).any()


@settings(max_examples=60, deadline=None)
@given(importance=importances(), pair=st.tuples(shares, shares), seed=st.integers(0, 9))
def test_a_larger_share_contains_a_smaller_one(importance, pair, seed):
    small, large = sorted(pair)
    key = jax.random.key(seed)
    for select in (
        lambda share: regions.select(importance, share, "top"),
        lambda share: regions.select(importance, share, "bottom"),
        lambda share: regions.random(key, importance, share),
    ):
        leftover = regions.minus(select(small), select(large))
        assert not any(leaf.any() for leaf in jax.tree.leaves(leftover))


def test_random_depends_on_key_and_name_alone():
    like = leaves_of(np.zeros)
    mask = regions.random(jax.random.key(0), like, 0.3)
    assert_same(regions.random(jax.random.key(0), like, 0.3), mask)
    alone = {"blocks": {0: {"mlp": like["blocks"][0]["mlp"]}}}
    assert_same(
        regions.random(jax.random.key(0), alone, 0.3)["blocks"][0]["mlp"],
        mask["blocks"][0]["mlp"],
    )
    other = regions.random(jax.random.key(1), like, 0.3)
    assert (
        other["blocks"][0]["mlp"]["up"]["kernel"] != mask["blocks"][0]["mlp"]["up"]["kernel"]
    ).any()


def test_random_is_uniform():
    """Each place equally often, within 4 standard deviations."""
    like, draws, share = {"blocks": {"a": np.zeros((5, 8))}}, 400, 0.25
    masks = [regions.random(jax.random.key(k), like, share)["blocks"]["a"] for k in range(draws)]
    hits = np.sum(masks, 0)
    assert np.abs(hits - share * draws).max() < 4 * math.sqrt(draws * share * (1 - share))


@settings(max_examples=40, deadline=None)
@given(trees=st.lists(importances(), min_size=2, max_size=4), share=shares)
def test_monolingual_regions_avoid_the_tops_of_the_others(trees, share):
    named = dict(zip("abcd", trees, strict=False))
    tops = {name: regions.select(i, share, "top") for name, i in named.items()}
    for language in named:
        own = regions.monolingual(tops, language)
        for other, top in tops.items():
            for mine, theirs, a in zip(
                *map(jax.tree.leaves, (own, top, tops[language])), strict=True
            ):
                assert not (mine & ~a).any()
                if other != language:
                    assert not (mine & theirs).any()
        everyone = regions.union(own, *(t for name, t in tops.items() if name != language))
        for got, *parts in zip(*map(jax.tree.leaves, (everyone, *tops.values())), strict=True):
            np.testing.assert_array_equal(got, np.any(parts, 0))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_core_table_takes_the_blocks_and_nothing_else(family):
    shape = dict(vocab_size=9, context=4, layers=2, width=8, heads=2, mlp_width=16)
    config = gpt2(tied=False, **shape) if family == "gpt2" else llama(kv_heads=1, **shape)
    specs = LanguageModel(config).specs
    left_out = {n for n, taken in tree.named_leaves(tree.select(regions.CORE, specs)) if not taken}
    norm = {"final_norm/scale", "final_norm/bias"} if family == "gpt2" else {"final_norm/scale"}
    expected = {"tokens", "head/kernel"} | norm
    assert left_out == expected | ({"positions"} if family == "gpt2" else set())


@pytest.mark.parametrize(
    ("share", "size", "wanted"),
    [(0.01, 50, 0), (0.5, 3, 1), (0.5, 4, 2), (0.03, 100, 3), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_count(share, size, wanted):
    assert regions.count(share, size) == wanted


def test_arguments_out_of_range_are_named():
    zeros = {"blocks": {"a": np.zeros(3)}}
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], not 1\.5"):
        regions.select(zeros, 1.5, "top")
    with pytest.raises(ValueError, match="'middle'"):
        regions.select(zeros, 0.5, "middle")
    with pytest.raises(ValueError, match="importance of blocks/a"):
        regions.select({"blocks": {"a": np.array([np.nan, 1.0])}}, 0.5, "top")


# ---- overlap and concentration ------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(a=some_masks(), b=some_masks())
def test_jaccard_is_symmetric_and_bounded(a, b):
    (whole, each), (mirrored, _) = regions.jaccard(a, b), regions.jaccard(b, a)
    x, y = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(m)]) for m in (a, b))
    if not (x | y).any():
        assert math.isnan(whole.jaccard)
        assert each == {}
        return
    assert whole.jaccard == mirrored.jaccard == (x & y).sum() / (x | y).sum()
    assert 0 <= whole.jaccard <= 1
    assert whole.expected == pytest.approx(mirrored.expected)
    assert regions.jaccard(a, a)[0].jaccard == 1 or not x.any()
    for name, leaf in tree.named_leaves(a):
        other = dict(tree.named_leaves(b))[name]
        if (leaf | other).any():
            assert each[name].jaccard == (leaf & other).sum() / (leaf | other).sum()
        else:
            assert name not in each


def test_the_expected_overlap_is_that_of_random_masks():
    like = {"blocks": {"a": np.zeros((40, 50)), "b": np.zeros(300)}}
    draws = [
        [regions.random(jax.random.key(2 * k + i), like, s) for i, s in enumerate((0.1, 0.3))]
        for k in range(100)
    ]
    found = [regions.jaccard(*pair) for pair in draws]
    for pick in (lambda f: f[0], lambda f: f[1]["blocks/a"], lambda f: f[1]["blocks/b"]):
        values = np.array([pick(f).jaccard for f in found])
        error = values.std() / math.sqrt(len(values))
        # The ratio of expectations is off by the order of one entry.
        assert values.mean() == pytest.approx(pick(found[0]).expected, abs=4 * error + 1e-3)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=12), factor=st.integers(1, 9))
def test_gini_is_half_the_relative_mean_difference(counts, factor):
    counts = np.array(counts)
    if not counts.any():
        assert math.isnan(regions.gini(counts))
        return
    differences = np.abs(counts[:, None] - counts[None]).mean()
    found = regions.gini(counts)
    assert found == pytest.approx(differences / (2 * counts.mean()), abs=1e-12)
    assert found == pytest.approx(regions.gini(factor * counts))
    assert -1e-12 <= found <= (len(counts) - 1) / len(counts) + 1e-12


@given(n=st.integers(1, 40), value=st.integers(1, 99))
def test_gini_of_equal_and_of_one(n, value):
    assert regions.gini(np.full(n, value)) == pytest.approx(0, abs=1e-12)
    assert regions.gini(np.eye(n)[n // 2] * value) == pytest.approx((n - 1) / n)


def test_the_expected_gini_is_the_mean_over_all_draws():
    """Against every way to draw the entries, one by one."""
    for rows, columns, entries in (
        (2, 3, 2),
        (3, 3, 4),
        (4, 2, 3),
        (5, 1, 2),
        (1, 6, 3),
        (3, 2, 6),
    ):
        ways = itertools.combinations(range(rows * columns), entries)
        every = [regions.gini(np.bincount(np.array(w) // columns, minlength=rows)) for w in ways]
        found = regions.random_gini(rows, columns, entries)
        assert found == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_the_expected_gini_is_that_of_simulated_masks(share):
    rows, columns, draws = 64, 300, 60
    like = {"blocks": {"a": np.zeros((rows, columns))}}
    found = []
    for k in range(draws):
        mask = regions.random(jax.random.key(k), like, share)
        found.append(regions.concentration(mask)["blocks/a"])
    for side in ("row", "column"):
        values = np.array([f[side].gini for f in found])
        error = values.std() / math.sqrt(draws)
        assert values.mean() == pytest.approx(found[0][side].expected, abs=4 * error)


def test_concentration_counts_inputs_as_rows_and_outputs_as_columns():
    mask = leaves_of(lambda shape: np.zeros(shape, bool))
    mask["blocks"][0]["mlp"]["up"]["kernel"][2, :5] = True
    mask["blocks"][0]["mlp_norm"]["scale"][1] = True
    ((name, found),) = regions.concentration(mask).items()
    assert name == "blocks/0/mlp/up/kernel"
    assert found["row"].counts.tolist() == [0, 0, 5, 0]
    assert found["column"].counts.tolist() == [1, 1, 1, 1, 1, 0]
    assert found["row"].gini == pytest.approx(3 / 4)
    assert found["column"].gini == pytest.approx(1 / 6)
    assert found["row"].expected == regions.random_gini(4, 6, 5)
    assert found["column"].expected == regions.random_gini(6, 4, 5)
    assert math.isnan(regions.random_gini(4, 6, 0))
