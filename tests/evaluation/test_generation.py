"""Generation against full forwards, the softmax and transformers' logits."""

import dataclasses
import functools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from lmnoise import keys, tree
from lmnoise.evaluation.generation import extend, generate, generate_variants, sample
from lmnoise.models import decoding
from lmnoise.models.pretrained import from_huggingface
from lmnoise.models.transformer import LanguageModel, gpt2, llama, stack_layers
from lmnoise.training.mesh import make_mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SHAPE = dict(vocab_size=37, context=16, layers=2, width=16, heads=4)
# The loop over layers compiles faster; "unrolled" has the other layout.
GPT2 = gpt2(**SHAPE, layers_as="scan")
LLAMA = llama(**SHAPE, kv_heads=2, mlp_width=24, layers_as="scan")
# The golden files have the other families: scaled and partial rotations, parallel blocks, gemma.
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "unrolled": dataclasses.replace(
        LLAMA,
        layers_as="unrolled",
        local_theta=100.0,
        global_every=2,
        norm_position="after",
        query_key_norm="whole",
    ),
}
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [8, 2]]
LONGEST, ROOM = 6, 10
KEY = jax.random.key(7)


@functools.cache
def case(name):
    """A model with weights far enough from zero for the argmax to vary."""

    def draw(name, spec):
        generator = np.random.default_rng(list(name.encode()))
        return np.float32(spec.constant + generator.normal(size=spec.shape, scale=0.3))

    unrolled = dataclasses.replace(CONFIGS[name], layers_as="unrolled")
    params = tree.map_named(draw, LanguageModel(unrolled).specs)
    scanned = CONFIGS[name].layers_as == "scan"
    return LanguageModel(CONFIGS[name]), stack_layers(params) if scanned else params


@functools.cache
def read_one_by_one(model):
    """Logits (B, ROOM - LONGEST + 1, V) after each beginning and each further token."""

    def read(params, tokens_BT, length_B):
        beginning_BS = jnp.where(
            jnp.arange(LONGEST)[None] < length_B[:, None], tokens_BT[:, :LONGEST], 0
        )
        logits_BV, cache = decoding.prefill(model, params, beginning_BS, length_B, ROOM)

        def step(cache, i):
            token_B = jnp.take_along_axis(tokens_BT, (length_B + i)[:, None], axis=1)[:, 0]
            logits_BV, cache = decoding.decode(model, params, token_B, cache)
            return cache, logits_BV

        found_NBV = jax.lax.scan(step, cache, jnp.arange(ROOM - LONGEST))[1]
        return jnp.concatenate([logits_BV[None], found_NBV]).swapaxes(0, 1)

    return jax.jit(read)


def at_the_same_places(logits_BSV, length_B):
    return np.stack(
        [row[n - 1 : n + ROOM - LONGEST] for row, n in zip(logits_BSV, length_B, strict=True)]
    )


@pytest.mark.parametrize("name", ["gpt2", "unrolled"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(length=st.tuples(*[st.integers(1, LONGEST)] * 4), seed=st.integers(0, 9))
def test_the_cache_gives_the_logits_of_the_full_forward(name, length, seed):
    model, params = case(name)
    tokens_BT = np.random.default_rng(seed).integers(0, 37, (4, ROOM), dtype=np.int32)
    length_B = np.array(length, np.int32)
    whole = np.asarray(_logits(model)(params, tokens_BT))
    found = read_one_by_one(model)(params, tokens_BT, length_B)
    scale = np.abs(whole).max()
    expected = at_the_same_places(whole, length_B)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


@functools.cache
def _logits(model):
    return jax.jit(model.logits)


@pytest.mark.parametrize("name", ["llama_scaled", "gemma3", "gpt_neox"])
def test_the_cache_gives_the_logits_of_transformers(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    tensors = {k.removeprefix("tensor/"): v for k, v in arrays.items() if k.startswith("tensor/")}
    config, params = from_huggingface(json.loads(str(arrays["config"])), tensors)
    tokens_BT, length_B = arrays["tokens"][:, :ROOM].astype(np.int32), np.array([LONGEST, 2])
    found = read_one_by_one(LanguageModel(config))(params, tokens_BT, length_B)
    expected = at_the_same_places(arrays["logits"], length_B)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_greedy_is_the_argmax_of_full_forwards_step_by_step():
    model, params = case("unrolled")
    rows = [list(prompt) for prompt in PROMPTS]
    for _ in range(4):
        # Attention is causal: what stands behind the last token does not matter.
        padded = np.array([row + [0] * (ROOM - len(row)) for row in rows], np.int32)
        logits_BSV = np.asarray(_logits(model)(params, padded))
        for row, logits_SV in zip(rows, logits_BSV, strict=True):
            row.append(int(np.argmax(logits_SV[len(row) - 1])))
    expected = [row[-4:] for row in rows]
    assert generate(model, params, PROMPTS, 4) == expected
    assert len({token for row in expected for token in row}) > 2


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_greedy_takes_the_first_of_equals_and_of_nan(value):
    model, params = case("unrolled")
    same = jax.tree.map(lambda leaf: np.full_like(leaf, value), params)
    assert generate(model, same, PROMPTS, 4) == [[0] * 4] * 4


def test_a_row_does_not_depend_on_the_others():
    write = functools.partial(generate, *case("llama"), new_tokens=4, top_p=0.9)
    found = write(prompts=PROMPTS, key=KEY)
    again = write(prompts=[PROMPTS[0], [8] * 4, PROMPTS[2], [7]], key=KEY)
    assert (again[0], again[2]) == (found[0], found[2])
    assert write(prompts=PROMPTS, key=jax.random.key(8)) != found


def test_rows_on_a_mesh_are_the_same_rows():
    model, params = case("llama")
    length_B = np.array([len(prompt) for prompt in PROMPTS], np.int32)
    tokens_BS = np.array([prompt + [0] * (5 - len(prompt)) for prompt in PROMPTS], np.int32)
    key_B = keys.row_keys(keys.fold(KEY, "generate"), np.arange(4))
    mesh = make_mesh(data=4, model=2)
    rows, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("data", None))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = extend(
            model,
            jax.device_put(params, whole),
            jax.device_put(tokens_BS, rows),
            jax.device_put(length_B, rows),
            4,
            jax.device_put(key_B, rows),
            top_p=0.9,
        )
    expected = generate(model, params, PROMPTS, 4, key=KEY, top_p=0.9)
    np.testing.assert_array_equal(found, expected)


def test_no_second_compilation_for_other_settings_parameters_and_lengths(caplog):
    model, params = case("llama")
    write = functools.partial(generate, model, new_tokens=4)
    write(params, prompts=PROMPTS, key=KEY, temperature=0.7, top_p=0.8, stop=2)
    other = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        write(other, prompts=PROMPTS[::-1], key=KEY, temperature=1.3, top_p=0.4, stop=5)
    assert not [r.message for r in caplog.records if "XLA compilation" in r.getMessage()]


def test_after_the_end_of_the_text_a_row_is_filled_with_it():
    write = functools.partial(generate, *case("llama"), PROMPTS, 4, key=KEY, top_p=0.9)
    free = write()
    stop = free[0][1]
    assert stop != free[0][0]
    for row, expected in zip(write(stop=stop), free, strict=True):
        end = expected.index(stop) if stop in expected else 4
        assert row == expected[:end] + [stop] * (4 - end)


PROBABILITIES = np.array([0.02, 0.3, 0.06, 0.25, 0.12, 0.05, 0.2])


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [
        (1.0, None, range(7)),
        (0.5, None, range(7)),
        (2.0, 0.9, (1, 2, 3, 4, 5, 6)),
        (1.0, 0.74, (1, 3, 6)),
        (1.0, 0.76, (1, 3, 4, 6)),
        (1.0, 0.01, (1,)),
    ],
)
def test_sampling_follows_the_softmax(temperature, top_p, kept):
    draws = 20_000
    logits_BV = np.tile(np.log(PROBABILITIES), (draws, 1)).astype(np.float32) + 3.0
    key_B = keys.row_keys(KEY, np.arange(draws))
    found = np.asarray(jax.jit(sample)(key_B, logits_BV, temperature, top_p))
    expected = PROBABILITIES ** (1 / temperature)
    kept = list(kept)
    counts = np.bincount(found, minlength=7)
    assert counts[kept].sum() == draws
    share = expected[kept] / expected[kept].sum()
    if len(kept) > 1:
        assert stats.chisquare(counts[kept], draws * share).pvalue > 0.01


def test_sampling_from_a_vocabulary_of_several_blocks():
    """Frequencies follow the softmax in blocks of all sizes, and what has no mass never comes."""
    draws, size = 20_000, 50
    probability_V = np.random.default_rng(0).dirichlet(np.ones(size))
    probability_V[[0, 7, 8, 21, *range(32, 43), 49]] = 0.0
    with np.errstate(divide="ignore"):
        logits_BV = np.tile(np.log(probability_V), (draws, 1)).astype(np.float32)
    key_B = keys.row_keys(KEY, np.arange(draws))
    found = np.asarray(jax.jit(sample)(key_B, logits_BV, 1.0, None))
    counts = np.bincount(found, minlength=size)
    often = probability_V > 5 / draws
    assert not counts[probability_V == 0].any()
    expected = probability_V[often] / probability_V[often].sum() * counts[often].sum()
    assert stats.chisquare(counts[often], expected).pvalue > 0.01


def test_sampling_from_a_large_vocabulary():
    """Rare tokens come too, of which one cumulative sum in float32 would lose 0.5 %."""
    draws, size = 50_000, 262_144
    probability_V = np.arange(1.0, size + 1) ** -1.3
    probability_V /= probability_V.sum()
    logits_1V = np.log(probability_V)[None].astype(np.float32)
    draw = jax.vmap(lambda key: sample(key[None], logits_1V, 1.0, None)[0])
    found = np.asarray(jax.jit(draw)(keys.row_keys(KEY, np.arange(draws))))
    edges = np.unique(np.geomspace(1, size, 40).astype(int)) - 1
    counts, _ = np.histogram(found, [*edges[:-1], size])
    expected = draws * np.add.reduceat(probability_V, edges[:-1])
    assert stats.chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_a_draw_is_a_token_whatever_the_logits(top_p):
    """50 tokens are 7 blocks of 8, whose last 6 places are none."""
    logits_BV = np.full((4, 50), -np.inf, np.float32)
    logits_BV[0], logits_BV[1, 3], logits_BV[2, 49] = np.nan, np.inf, 0.0
    found = jax.jit(sample)(keys.row_keys(KEY, np.arange(4)), logits_BV, 1.0, top_p)
    assert found.tolist() == [0, 0, 49, 0]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 9), (1 - 2**-23, 37)])
def test_the_ends_of_the_uniform_numbers_are_tokens_with_mass(uniform, token, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform))
    logits_1V = np.full((1, 50), -np.inf, np.float32)
    logits_1V[0, 9:38] = 0.0
    assert sample(keys.row_keys(KEY, np.arange(1)), logits_1V, 1.0, None).tolist() == [token]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), top_p=st.floats(0.01, 0.99), spread=st.floats(0.1, 20.0))
def test_the_nucleus_is_the_smallest_set(seed, top_p, spread):
    logits_V = np.random.default_rng(seed).normal(size=16).astype(np.float32) * np.float32(spread)
    key_B = keys.row_keys(jax.random.key(seed), np.arange(256))
    found = np.asarray(jax.jit(sample)(key_B, np.tile(logits_V, (256, 1)), 1.0, top_p))
    p = np.exp(logits_V.astype(np.float64))
    p /= p.sum()
    before = {token: p[p > p[token]].sum() for token in set(found.tolist())}
    assert all(mass < top_p + 1e-5 for mass in before.values())


def test_variants_are_the_continuations_of_the_changed_parameters():
    model, params = case("unrolled")

    def change(params, member, extra):
        return params | {"tokens": params["tokens"] * member["factor"] + extra}

    factors, extra = np.array([1.0, -1.0, 0.5], np.float32), 0.1 * params["tokens"][::-1]
    found = generate_variants(model, params, PROMPTS, 4, change, {"factor": factors}, extra)
    expected = [
        generate(model, params | {"tokens": params["tokens"] * f + extra}, PROMPTS, 4)
        for f in factors
    ]
    assert found == expected
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("prompts", "fields", "message"),
    [
        ([], {}, "needs a token"),
        ([[1], []], {}, "needs a token"),
        ([[1] * 12], {}, "exceed the context of 16"),
        ([[1]], {"temperature": 0.0}, "temperature must be positive"),
        ([[1]], {"top_p": 1.5}, "top_p in"),
    ],
)
def test_what_cannot_be_generated(prompts, fields, message):
    with pytest.raises(ValueError, match=message):
        generate(*case("gpt2"), prompts, 6, key=KEY, **fields)
