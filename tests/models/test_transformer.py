"""The decoder's parameters, numerics and invariances; `test_golden` checks its values."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lmnoise import tree
from lmnoise.models.layers import rotary_frequencies, rotate
from lmnoise.models.transformer import LanguageModel, gpt2, llama, stack_layers, unstack_layers

KEY = jax.random.key(0)
GPT2 = gpt2(vocab_size=17, context=16, layers=2, width=12, heads=3)
LLAMA = llama(
    vocab_size=17,
    context=16,
    layers=2,
    width=12,
    heads=6,
    kv_heads=2,
    mlp_width=20,
    logits_chunk=8,
)
CONFIGS = pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
# For statistics: sizes are multiples of 64 elements, which vectorise alike in any layout.
LARGER = dict(vocab_size=192, context=32, width=48, mlp_width=96)
TOKENS = np.random.default_rng(1).integers(0, 17, (2, 17), dtype=np.int32)


def replace(config, **fields):
    return LanguageModel(dataclasses.replace(config, **fields))


@functools.cache
def fresh(config):
    return LanguageModel(config).init(KEY)


@functools.cache
def wide(config):
    """Parameters far enough from zero for every branch to matter, in the unrolled layout."""

    def widen(name, leaf):
        if leaf.ndim > 1:
            return 10.0 * leaf
        return leaf + 0.1 * np.random.default_rng(len(name)).normal(size=leaf.shape)

    return tree.map_named(widen, jax.tree.map(np.asarray, fresh(config)))


@functools.cache
def compiled(config):
    """`(params, tokens_BT) -> losses, logits, gradient of the mean loss`, compiled once."""
    model = LanguageModel(config)

    @jax.jit
    def compute(params, tokens_BT):
        def mean(params):
            losses = model.loss(params, {"tokens": tokens_BT}, KEY)
            return losses.mean(), losses

        gradient, losses = jax.grad(mean, has_aux=True)(params)
        return losses, model.logits(params, tokens_BT[:, :-1]), gradient

    return compute


def assert_close(actual, expected, atol):
    for (name, a), e in zip(tree.named_leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=atol, err_msg=name)


# Parameters


def test_names_and_shapes_of_gpt2():
    linear = lambda rows, columns: {"kernel": (rows, columns), "bias": (columns,)}  # noqa: E731
    norm = {"scale": (12,), "bias": (12,)}
    block = {
        "attention_norm": norm,
        "attention": {name: linear(12, 12) for name in ("query", "key", "value", "output")},
        "mlp_norm": norm,
        "mlp": {"up": linear(12, 48), "down": linear(48, 12)},
    }
    assert jax.tree.map(lambda x: x.shape, fresh(GPT2)) == {
        "tokens": (17, 12),
        "positions": (16, 12),
        "blocks": {0: block, 1: block},
        "final_norm": norm,
    }


def test_names_and_shapes_of_llama():
    norm = {"scale": (2, 12)}
    kernel = lambda rows, columns: {"kernel": (2, rows, columns)}  # noqa: E731
    model = replace(LLAMA, layers_as="scan")
    assert jax.tree.map(lambda x: x.shape, model.init(KEY)) == {
        "tokens": (17, 12),
        "blocks": {
            "attention_norm": norm,
            "attention": {
                "query": kernel(12, 12),
                "key": kernel(12, 4),
                "value": kernel(12, 4),
                "output": kernel(12, 12),
            },
            "mlp_norm": norm,
            "mlp": {"gate": kernel(12, 20), "up": kernel(12, 20), "down": kernel(20, 12)},
        },
        "final_norm": {"scale": (12,)},
        "head": {"kernel": (12, 17)},
    }


@CONFIGS
def test_init_draws_each_leaf_as_declared(config):
    config = dataclasses.replace(config, **LARGER)
    specs = jax.tree.leaves(LanguageModel(config).specs)
    output_std = 0.02 / math.sqrt(2 * config.layers)
    for (name, leaf), spec in zip(tree.named_leaves(fresh(config)), specs, strict=True):
        leaf = np.asarray(leaf, np.float64)
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, float(name.endswith("scale")), err_msg=name)
            continue
        wanted = output_std if name.endswith(("output/kernel", "down/kernel")) else 0.02
        assert spec.std == pytest.approx(wanted), name
        # Five standard errors.
        assert abs(leaf.mean()) < 5 * wanted / math.sqrt(leaf.size), name
        assert abs(leaf.std() / wanted - 1) < 5 / math.sqrt(2 * leaf.size), name


def test_leaves_of_one_shape_get_different_draws():
    params = fresh(dataclasses.replace(GPT2, **LARGER))
    leaves = [np.ravel(x) for x in jax.tree.leaves(params) if x.ndim > 1]
    for i, a in enumerate(leaves):
        for b in leaves[:i]:
            if a.size == b.size:
                assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


@CONFIGS
def test_init_of_the_layouts_is_the_same_bit_for_bit(config):
    config = dataclasses.replace(config, **LARGER)
    unrolled = fresh(config)
    scanned = fresh(dataclasses.replace(config, layers_as="scan"))
    jax.tree.map(np.testing.assert_array_equal, scanned, stack_layers(unrolled))
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(scanned, config.layers), unrolled)


def test_a_further_layer_leaves_the_other_draws_alone():
    config = dataclasses.replace(GPT2, **LARGER)
    deep = dict(tree.named_leaves(fresh(dataclasses.replace(config, layers=3))))
    for name, leaf in tree.named_leaves(fresh(config)):
        # The outputs' standard deviation depends on the depth; their draws do not.
        output = name.endswith(("output/kernel", "down/kernel"))
        factor = math.sqrt(2 / 3) if output else 1.0
        np.testing.assert_allclose(deep[name], factor * leaf, rtol=1e-6 if output else 0)


def test_init_does_not_depend_on_sharding():
    config = dataclasses.replace(GPT2, **LARGER)
    sharding = NamedSharding(jax.make_mesh((8,), ("model",)), PartitionSpec(None, "model"))
    shardings = jax.tree.map(lambda x: sharding if x.ndim == 2 else None, fresh(config))
    sharded = jax.jit(LanguageModel(config).init, out_shardings=shardings)(KEY)
    assert len({s.device for s in sharded["tokens"].addressable_shards}) == 8
    # The random bits are equal; the normal quantile of small shards may round otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded, fresh(config))


# Gradients and their twins


@CONFIGS
def test_gradient_against_finite_differences(config):
    params, compute = wide(config), compiled(config)
    generator = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: generator.normal(size=x.shape), params)
    length = math.sqrt(sum(np.square(d).sum() for d in jax.tree.leaves(direction)))

    def moved(step):
        at = jax.tree.map(lambda x, d: np.float32(x + step / length * d), params, direction)
        return np.asarray(compute(at, TOKENS)[0], np.float64).mean()

    # Central differences of the fourth order.
    step = 0.1
    slope = (8 * (moved(step) - moved(-step)) - moved(2 * step) + moved(-2 * step)) / (12 * step)
    products = jax.tree.map(np.vdot, compute(params, TOKENS)[2], direction)
    assert sum(jax.tree.leaves(products)) / length == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("policy", "share"), [("full", 0.5), ("products", 0.8)])
@pytest.mark.parametrize("layers_as", ["unrolled", "scan"])
def test_remat_keeps_less_and_computes_the_same(layers_as, policy, share):
    config = dataclasses.replace(LLAMA, layers_as=layers_as)
    remat = dataclasses.replace(config, remat=policy)
    layout = stack_layers if layers_as == "scan" else lambda params: params
    losses, _, gradient = compiled(LLAMA)(wide(LLAMA), TOKENS)
    expected = losses, layout(gradient)
    losses, _, gradient = compiled(remat)(layout(wide(LLAMA)), TOKENS)
    assert_close((losses, gradient), expected, atol=1e-5)

    def kept(config):
        model = LanguageModel(config)
        loss = lambda p: model.loss(p, {"tokens": TOKENS}, KEY).mean()  # noqa: E731
        residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], layout(wide(LLAMA)))
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert kept(remat) < share * kept(config)


@CONFIGS
def test_bfloat16_operands_stay_close(config):
    half = dataclasses.replace(config, dtype="bfloat16")
    _, expected, expected_gradient = compiled(config)(wide(config), TOKENS)
    _, actual, gradient = compiled(half)(wide(config), TOKENS)
    error = np.abs(actual - expected).max() / np.std(expected)
    # Not zero: the operands were indeed rounded.
    assert 1e-4 < error < 0.1
    assert {x.dtype for x in jax.tree.leaves((actual, gradient))} == {np.dtype("float32")}
    difference = optax.tree.norm(optax.tree.sub(gradient, expected_gradient))
    assert difference < 0.05 * optax.tree.norm(expected_gradient)


def test_every_product_of_the_gradient_has_bfloat16_operands():
    model = replace(LLAMA, dtype="bfloat16")
    gradient = jax.grad(lambda p: model.loss(p, {"tokens": TOKENS}, KEY).mean())
    text = jax.jit(gradient).lower(wide(LLAMA)).as_text()
    matrix = r"tensor<\d+x\d+x(bf16|f32)>"
    products = re.findall(rf"dot_general.* : \({matrix}, {matrix}\) -> {matrix}", text)
    # Seven in a layer and the output matrix, each with two gradients; the chunk's loop computes
    # the logits once more.
    assert len(products) >= 3 * (2 * 7 + 1)
    assert set(products) == {("bf16", "bf16", "f32")}


# Invariances


@CONFIGS
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 16), min_size=17, max_size=17),
    position=st.integers(0, 15),
    change=st.integers(1, 16),
)
def test_causality(config, tokens, position, change):
    before = np.array(tokens, np.int32)
    after = before.copy()
    after[position] = (before[position] + change) % 17
    _, logits, _ = compiled(config)(wide(config), np.stack([before, after]))
    difference = np.abs(logits[1] - logits[0]).max(-1)
    assert difference[:position].max(initial=0) < 1e-5
    assert difference[position] > 1e-3


@CONFIGS
def test_rows_do_not_see_one_another(config):
    compute, params = compiled(config), wide(config)
    swapped = compute(params, TOKENS[::-1])[:2]
    assert_close([x[::-1] for x in swapped], compute(params, TOKENS)[:2], atol=1e-5)


@CONFIGS
def test_loss_is_the_cross_entropy_of_the_next_token(config):
    losses, logits, _ = compiled(config)(wide(config), TOKENS)
    assert (losses.shape, losses.dtype) == ((2, 16), np.float32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:])
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


def test_grouped_queries_are_heads_with_repeated_kernels():
    def repeat(name, leaf):
        if not name.endswith(("key/kernel", "value/kernel")):
            return leaf
        return np.repeat(leaf.reshape(12, 2, 2), 3, axis=1).reshape(12, 12)

    repeated = tree.map_named(repeat, wide(LLAMA))
    actual = compiled(dataclasses.replace(LLAMA, kv_heads=6))(repeated, TOKENS)[1]
    expected = compiled(LLAMA)(wide(LLAMA), TOKENS)[1]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta", [100.0, 10_000.0])
def test_rotation_is_a_complex_product_and_sees_relative_positions(theta):
    length, width = 40, 8
    q, k = np.random.default_rng(3).normal(size=(2, width)).astype(np.float32)
    everywhere = lambda x: np.broadcast_to(x, (1, length, 1, width))  # noqa: E731
    frequencies = rotary_frequencies(
        dataclasses.replace(LLAMA, heads=1, kv_heads=1, heads_width=width, rope_theta=theta)
    )
    q_SK, k_SK = (np.asarray(rotate(everywhere(x), frequencies))[0, :, 0] for x in (q, k))
    half = width // 2
    turn = np.exp(1j * np.arange(length)[:, None] * theta ** (-np.arange(half) / half))
    expected = (q[:half] + 1j * q[half:]) * turn
    np.testing.assert_allclose(q_SK[:, :half] + 1j * q_SK[:, half:], expected, atol=1e-5)
    scores = q_SK @ k_SK.T
    for offset in range(-length + 1, length):
        assert np.ptp(np.diagonal(scores, offset)) < 1e-4


# Costs, limits, training


def test_flops_per_token_by_hand():
    # Four products of 12 x 12 and the MLP in each of two layers, and the tied output matrix.
    kernels = 2 * (4 * 12 * 12 + 2 * 12 * 48) + 17 * 12
    vectors = 2 * (4 * 12 + 4 * 12 + 48 + 12) + 2 * 12
    by_hand = 6 * (kernels + vectors) + 12 * 2 * 12 * 16
    assert LanguageModel(GPT2).flops_per_token(16) == by_hand


@pytest.mark.parametrize(
    "config",
    [
        gpt2(vocab_size=512, context=128, layers=2, width=128, heads=4),
        llama(
            vocab_size=512,
            context=128,
            layers=2,
            width=128,
            heads=4,
            kv_heads=2,
            mlp_width=256,
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_flops_per_token_against_the_compiler(config):
    model = replace(config, attention="plain", layers_as="unrolled")
    gradient = jax.grad(lambda p, b: model.loss(p, b, KEY).mean())
    shapes = jax.eval_shape(model.init, KEY)
    lowered = jax.jit(gradient).lower(shapes, {"tokens": jnp.zeros((2, 129), int)})
    flops = lowered.cost_analysis()["flops"] / (2 * 128)
    assert model.flops_per_token(128) == pytest.approx(flops, rel=0.15)


def test_context_is_a_limit():
    model = LanguageModel(GPT2)
    with pytest.raises(ValueError, match="17 positions exceed the context of 16"):
        model.features(fresh(GPT2), jnp.zeros((1, 17), jnp.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "batchnorm"}, "norm must be one of"),
        ({"positions": "alibi"}, "positions must be one of"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"layers_as": "loop"}, "layers_as must be one of"),
        ({"norm_position": "between"}, "norm_position must be one of"),
        ({"query_key_norm": "all"}, "query_key_norm must be one of"),
        ({"heads_width": 10}, "heads_width 10 must divide by heads 3"),
        ({"positions": "rotary", "rotary_fraction": 0.75}, "even number of features, not 3 of 4"),
        ({"heads": 5, "kv_heads": 5}, "width 12 must divide by heads 5"),
        ({"kv_heads": 2}, "kv_heads 2"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GPT2, **fields)


def test_unknown_attention():
    with pytest.raises(ValueError, match="'flash'"):
        replace(GPT2, attention="flash")
    with pytest.raises(ValueError, match="runs on gpu and this is cpu"):
        replace(GPT2, attention="cudnn")


@CONFIGS
def test_learns_one_batch_by_heart_in_one_compilation(config):
    model = replace(config, width=48, mlp_width=96, layers_as="scan")
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        mean = lambda p: model.loss(p, {"tokens": TOKENS}, KEY).mean()  # noqa: E731
        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    params = model.init(KEY)
    state = optimizer.init(params)
    losses = []
    for _ in range(150):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    # Fresh logits are near zero: close to a uniform guess.
    assert losses[0] == pytest.approx(math.log(17), abs=0.2)
    assert losses[-1] < 0.05
    assert step._cache_size() == 1
