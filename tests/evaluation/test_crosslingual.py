"""Patterns of attention against hand-made weights, similarities against NumPy and invariances."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from lmnoise.evaluation import crosslingual
from lmnoise.evaluation.crosslingual import Parse
from lmnoise.models import attention
from lmnoise.models.transformer import LanguageModel, llama

MODEL = LanguageModel(
    llama(vocab_size=11, context=16, layers=2, width=16, heads=4, kv_heads=2, mlp_width=20,
          layers_as="scan")
)  # fmt: skip
LOOK = jax.jit(lambda params, tokens_BS: MODEL.observe(params, tokens_BS, lambda _, value: value))
TEXTS = crosslingual.rows([[5, 6, 7, 5, 6, 7], [1, 2, 2], [3, 9, 3, 4, 4]], front=0, length=8)


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(1)
    draw = lambda spec: np.float32(spec.constant + generator.normal(size=spec.shape, scale=0.3))  # noqa: E731
    return jax.tree.map(draw, MODEL.specs)


def test_rows_put_a_token_in_front_and_count_it():
    assert TEXTS.tokens_NS[1].tolist() == [0, 1, 2, 2, 0, 0, 0, 0]
    assert TEXTS.lengths_N.tolist() == [7, 4, 6]
    with pytest.raises(ValueError, match=r"texts\[1\] has 3 tokens for rows of 3"):
        crosslingual.rows([[1], [1, 2, 3]], front=0, length=3)


def keys_of(pattern, row):
    """{query: keys} of a pattern."""
    found = {}
    for query, key in np.argwhere(pattern.weights_NQS[row]):
        found.setdefault(int(query), []).append(int(key))
    return found


def test_patterns_of_tokens_by_hand():
    found = crosslingual.token_patterns(TEXTS)
    # 0 | 5 6 7 5 6 7 : the second 5 (at 4) has a copy at 1, which 6 (at 2) followed.
    assert keys_of(found["same"], 0) == {4: [1], 5: [2], 6: [3]}
    assert keys_of(found["after same"], 0) == {4: [2], 5: [3], 6: [4]}
    assert keys_of(found["previous"], 1) == {2: [1], 3: [2]}
    assert keys_of(found["first"], 1) == {2: [0], 3: [0]}
    # What follows the copy of the 2 before is the query itself: no earlier token.
    assert keys_of(found["same"], 1) == {3: [2]}
    assert keys_of(found["after same"], 1) == {}
    assert found["same"].count_N.tolist() == [3, 1, 2]
    assert found["after same"].count_N.tolist() == [3, 0, 1]


def naive_after_same(tokens, length):
    return {
        (q, k)
        for q in range(2, length)
        for k in range(2, q)
        if tokens[k - 1] == tokens[q] and k - 1 >= 1
    }


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=3))
def test_patterns_of_tokens_by_loops(texts):
    found = crosslingual.token_patterns(crosslingual.rows(texts, front=1, length=10))
    for n, text in enumerate(texts):
        tokens, length = [1, *text], len(text) + 1
        keys = {tuple(map(int, at)) for at in np.argwhere(found["after same"].weights_NQS[n])}
        assert keys == naive_after_same(tokens, length)
        same = {(q, k) for q in range(2, length) for k in range(1, q) if tokens[q] == tokens[k]}
        assert {tuple(map(int, a)) for a in np.argwhere(found["same"].weights_NQS[n])} == same
        assert found["same"].count_N[n] == len({q for q, _ in same})


# Words of one and two positions. In the first row the head of words 0, 1 and 3 is word 2.
PARSES = [
    Parse([[1], [2, 3], [4], [5, 6]], [2, 2, -1, 2]),
    Parse([[1], [2], [3]], [-1, 0, 1]),
    Parse([[1], [2], [3], [4]], [2, -1, -1, -1]),
]


def test_patterns_of_arcs_by_hand():
    found = crosslingual.arc_patterns(PARSES, 8)
    # 6 -> 4 and, in the last row, 3 -> 1 go two positions back to a word of one; so does one free
    # pair in each row. Of one position there are two arcs in the second row and three free pairs
    # in the last, of three an arc in the first (4 -> 1) and a free pair in the last. The arc from
    # 4 to the word of two has no free pair.
    assert [keys_of(found["head"], n) for n in range(3)] == [{6: [4]}, {2: [1], 3: [2]}, {}]
    assert [keys_of(found["dependent"], n) for n in range(3)] == [{4: [1]}, {}, {3: [1]}]
    assert found["head"].count_N.tolist() == [1, 2, 0]
    control = found["dependent, control"]
    assert [keys_of(control, n) for n in range(3)] == [{3: [1]}, {3: [1]}, {4: [1, 2]}]
    np.testing.assert_allclose(control.weights_NQS[2, 4, [1, 2]], [1, 1 / 3])
    np.testing.assert_allclose(control.count_N, [1 / 3, 1 / 3, 1 / 3 + 1])
    control = found["head, control"]
    assert keys_of(control, 2) == {2: [1], 3: [2], 4: [2, 3]}
    np.testing.assert_allclose(control.weights_NQS[2, 4, [2, 3]], [1 / 3, 2 / 3])
    np.testing.assert_allclose(control.count_N, [1 / 3, 1 / 3, 1 / 3 + 2])


def test_a_head_that_only_counts_positions_has_no_excess():
    generator = np.random.default_rng(0)
    parses = []
    for _ in range(8):
        ends = np.cumsum(generator.integers(1, 3, generator.integers(4, 8)))
        words = [list(range(a + 1, b + 1)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        heads = generator.integers(0, len(words), len(words))
        parses.append(Parse(words, [-1 if h == n else int(h) for n, h in enumerate(heads)]))
    back_QS = np.arange(16)[:, None] - np.arange(16)[None]
    weights_QS = np.where(back_QS > 0, generator.random(16)[back_QS], 0.0)
    found = crosslingual.arc_patterns(parses, 16)
    for name in ("head", "dependent"):
        arc, control = found[name], found[f"{name}, control"]
        assert arc.count_N.sum() == pytest.approx(control.count_N.sum())
        assert arc.count_N.sum() > 5
        scores = [
            (p.weights_NQS * weights_QS[None]).sum() / p.count_N.sum() for p in (arc, control)
        ]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_attended_sums_the_weights_of_the_model(params):
    patterns = crosslingual.token_patterns(TEXTS)
    found = crosslingual.attended(MODEL, params, TEXTS, patterns, batch_size=2)
    heads = LOOK(params, TEXTS.tokens_NS)["attention/heads"]
    for layer in range(2):
        weights_NHQS = np.asarray(attention.weights(*(x[layer] for x in heads)))
        for name, pattern in patterns.items():
            expected_NH = (weights_NHQS * pattern.weights_NQS[:, None]).sum((2, 3))
            np.testing.assert_allclose(found[name][:, layer], expected_NH, atol=1e-5)


def test_padding_changes_nothing(params):
    tokens_NS = TEXTS.tokens_NS.copy()
    padding_NS = np.arange(8)[None] >= TEXTS.lengths_N[:, None]
    tokens_NS[padding_NS] = 10
    other, patterns = TEXTS._replace(tokens_NS=tokens_NS), crosslingual.token_patterns(TEXTS)
    assert {n: p.weights_NQS.tolist() for n, p in crosslingual.token_patterns(other).items()} == {
        n: p.weights_NQS.tolist() for n, p in patterns.items()
    }
    found, expected = (
        [
            *crosslingual.attended(MODEL, params, texts, patterns, 2).values(),
            crosslingual.paragraph_features(MODEL, params, texts, 2),
        ]
        for texts in (other, TEXTS)
    )
    for own, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-6)


def test_uniform_attention_has_the_shares_of_counting(params):
    """A model of zeros attends to all it sees alike."""
    zeros = jax.tree.map(np.zeros_like, params)
    patterns = crosslingual.token_patterns(TEXTS)
    sums = crosslingual.attended(MODEL, zeros, TEXTS, patterns, 2)
    share_LH, error_LH = crosslingual.shares(sums["first"], patterns["first"].count_N)
    queries = [1 / (q + 1) for length in TEXTS.lengths_N for q in range(2, length)]
    np.testing.assert_allclose(share_LH, np.mean(queries), rtol=1e-6)
    assert (error_LH > 0).all()


def test_excess_is_the_difference_of_shares_with_the_error_of_repeated_samples():
    def sample(seed):
        generator = np.random.default_rng(seed)
        count_N, control_N = generator.integers(1, 9, (2, 50)).astype(float)
        level_N = generator.normal(0.4, 0.1, 50)  # what a row has is in both
        sums = (level_N * count_N)[:, None, None], ((level_N - 0.1) * control_N)[:, None, None]
        return crosslingual.excess(sums[0], count_N, sums[1], control_N)

    found = np.array([[float(x[0, 0]) for x in sample(seed)] for seed in range(60)])
    assert found[:, 0].mean() == pytest.approx(0.1, abs=0.01)
    assert 0.75 < found[:, 1].mean() / found[:, 0].std(ddof=1) < 1.3


def test_paragraph_features_are_means_without_the_front(params):
    found = crosslingual.paragraph_features(MODEL, params, TEXTS, batch_size=2)
    assert found.shape == (3, 3, 16)
    embedded = params["tokens"][np.array([1, 2, 2])].mean(0)
    np.testing.assert_allclose(found[0, 1], embedded, atol=1e-6)
    outputs_LND = np.asarray(LOOK(params, TEXTS.tokens_NS)["output"])
    expected_LD = outputs_LND.reshape(2, 3, 8, -1)[:, 1, 1:4].mean(1)
    np.testing.assert_allclose(found[1:, 1], expected_LD, atol=1e-5)


def draw(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


def hsic_by_its_definition(k_NN, l_NN):
    """The U-statistic over quadruples of different rows (Song et al. 2012, theorem 2)."""
    n, total = len(k_NN), 0.0
    indices = [
        (i, j, q, r)
        for i in range(n) for j in range(n) for q in range(n) for r in range(n)
        if len({i, j, q, r}) == 4
    ]  # fmt: skip
    for i, j, q, r in indices:
        total += k_NN[i, j] * (l_NN[i, j] + l_NN[q, r] - 2 * l_NN[i, q])
    return total / len(indices)


def test_cka_is_its_definition():
    x, y = draw(0, (7, 3)), draw(1, (7, 4))
    rows = [x - x.mean(0), y - y.mean(0)]
    rows = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    k, l = (r @ r.T for r in rows)  # noqa: E741
    expected = hsic_by_its_definition(k, l) / np.sqrt(
        hsic_by_its_definition(k, k) * hsic_by_its_definition(l, l)
    )
    assert crosslingual.cka(x, y) == pytest.approx(expected)


def test_rsa_is_spearman_of_distances():
    x, y = draw(2, (9, 5)), draw(3, (9, 4))
    x, y = x - x.mean(0), y - y.mean(0)
    expected = spearmanr(pdist(x, "cosine"), pdist(y, "cosine")).statistic
    assert crosslingual.rsa(x + 3.0, y) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [crosslingual.cka, crosslingual.rsa])
def test_similarities_ignore_rotation_scale_and_shift(measure):
    x = draw(4, (20, 6))
    y = x[:, :4] ** 2 + 0.1 * draw(5, (20, 4))
    turned = y @ np.linalg.qr(draw(6, (4, 4)))[0] * 7.0 + draw(7, (1, 4))
    assert measure(x, y) == pytest.approx(measure(x, turned))
    assert measure(x, x @ np.linalg.qr(draw(8, (6, 6)))[0] * 0.1) == pytest.approx(1.0)


def test_unrelated_features_are_unlike_even_in_many_dimensions():
    found = [crosslingual.cka(draw(n, (24, 300)), draw(n + 99, (24, 300))) for n in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)


def test_compare_tells_aligned_from_shuffled():
    common = draw(9, (32, 4))
    x = np.concatenate([common, draw(10, (32, 4))], 1)
    y = np.concatenate([common, draw(11, (32, 4))], 1) @ np.linalg.qr(draw(12, (8, 8)))[0]
    found = crosslingual.compare(x, y, permutations=20, seed=0)
    for measure in ("cka", "rsa"):
        row = found[measure]
        assert row["value"] - 2 * row["standard_error"] > row["null_high"]
        assert abs(row["null"]) < 0.1
    assert found["cka"]["value"] == pytest.approx(crosslingual.cka(x, y))
    assert found["rsa"]["value"] == pytest.approx(crosslingual.rsa(x, y))
    assert found["retrieval"]["null"] < 0.15
    same = crosslingual.compare(x, x, permutations=2, seed=0)
    assert same["retrieval"]["value"] == 1.0
    assert same["cka"]["value"] == pytest.approx(1.0)


def test_jackknife_error_is_that_of_repeated_samples():
    def sample(seed):
        common = draw((seed, 0), (40, 3))
        return common + draw((seed, 1), (40, 3)), common + draw((seed, 2), (40, 3))

    pairs = [sample(seed) for seed in range(30)]
    spread = np.std([crosslingual.cka(*pair) for pair in pairs], ddof=1)
    errors = [
        crosslingual.compare(*pair, permutations=1, seed=0)["cka"]["standard_error"]
        for pair in pairs[:10]
    ]
    assert 0.6 < np.mean(errors) / spread < 1.6


def test_retrieval_counts_both_directions():
    x = np.eye(4)
    y = np.eye(4)[[1, 0, 2, 3]]
    assert crosslingual.retrieved(x, y).tolist() == [0, 0, 1, 1]
