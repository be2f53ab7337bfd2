"""What `LanguageModel.observe` sees, recomputed in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.models import attention
from lmnoise.models.transformer import LanguageModel, gpt2, llama, stack_layers

GPT2 = gpt2(vocab_size=17, context=16, layers=2, width=12, heads=3)
LLAMA = llama(vocab_size=17, context=16, layers=2, width=12, heads=6, kv_heads=2, mlp_width=20)
OLMO2 = dataclasses.replace(LLAMA, norm_position="after", query_key_norm="whole")
NEOX = dataclasses.replace(
    GPT2, positions="rotary", parallel=True, activation="gelu_exact", rotary_fraction=0.5
)
GEMMA3 = dataclasses.replace(
    LLAMA,
    norm_position="both",
    query_key_norm="head",
    activation="geglu",
    scaled_embeddings=True,
    local_theta=100.0,
    global_every=2,
)
TOKENS = np.random.default_rng(1).integers(0, 17, (2, 16), dtype=np.int32)

POINTS = {
    "residual",
    "attention/input",
    "attention/heads",
    "attention/output",
    "mlp/input",
    "mlp/hidden",
    "mlp/output",
    "output",
}
OBSERVED = pytest.mark.parametrize(
    "config", [GPT2, LLAMA, OLMO2, NEOX, GEMMA3], ids=["gpt2", "llama", "olmo2", "neox", "gemma3"]
)


def wide(config):
    """Random parameters of the unrolled layout, far enough from zero for all to matter."""

    def draw(name, spec):
        generator = np.random.default_rng(list(name.encode()))
        noise = generator.normal(size=spec.shape, scale=0.2)
        return np.float32(spec.constant + noise)

    unrolled = dataclasses.replace(config, layers_as="unrolled")
    return tree.map_named(draw, LanguageModel(unrolled).specs)


@functools.cache
def observed(config):
    """All points whole, LND arrays but the heads, for the same parameters in any layout."""
    params = stack_layers(wide(config)) if config.layers_as == "scan" else wide(config)
    look = jax.jit(functools.partial(LanguageModel(config).observe, function=lambda _, x_ND: x_ND))
    return jax.device_get(look(params, TOKENS))


def normed(config, x_ND, leaves):
    """LayerNorm or RMSNorm as NumPy has it."""
    if config.norm == "layernorm":
        x_ND = x_ND - x_ND.mean(-1, keepdims=True)
    spread = np.sqrt((x_ND**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return x_ND / spread * leaves["scale"][None] + leaves.get("bias", np.zeros(1))[None]


@OBSERVED
def test_observed_points_follow_from_one_another(config):
    points, params = observed(config), wide(config)
    assert set(points) == POINTS
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    embedded = params["tokens"][TOKENS]
    if config.scaled_embeddings:
        embedded = embedded * np.float32(config.width**0.5)
    if config.positions == "learned":
        embedded = embedded + params["positions"][None]
    np.testing.assert_array_equal(points["residual"][0], embedded.reshape(-1, config.width))
    np.testing.assert_array_equal(points["residual"][1:], points["output"][:-1])
    for layer, block in params["blocks"].items():
        at = jax.tree.map(lambda x, layer=layer: x[layer], points)
        between = at["residual"] + at["attention/output"]
        before_mlp = at["residual"] if config.parallel else between
        down = block["mlp"]["down"]
        close(
            at["mlp/hidden"] @ down["kernel"] + down.get("bias", np.zeros(1))[None],
            at["mlp/output"],
        )
        if config.norm_position != "after":
            close(normed(config, at["residual"], block["attention_norm"]), at["attention/input"])
            close(normed(config, before_mlp, block["mlp_norm"]), at["mlp/input"])
        else:
            close(at["residual"], at["attention/input"])
            close(before_mlp, at["mlp/input"])
        after = {"before": None, "after": "mlp_norm", "both": "mlp_post_norm"}[config.norm_position]
        added = normed(config, at["mlp/output"], block[after]) if after else at["mlp/output"]
        close(between + added, at["output"])
    features = LanguageModel(config).features(params, TOKENS)
    close(normed(config, points["output"][-1], params["final_norm"]), features)


@OBSERVED
@pytest.mark.parametrize("changes", [{"layers_as": "scan"}, {"remat": "full"}], ids=str)
def test_observation_does_not_depend_on_the_layout_or_remat(config, changes):
    found = observed(dataclasses.replace(config, **changes))
    for name, expected in observed(config).items():
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5, err_msg=name)
        jax.tree.map(close, found[name], expected)


def mixed(config, weights_BHQS, kernels, input_ND):
    """What the heads add, given their weights, in NumPy."""
    value = kernels["value"]
    v_ND = input_ND @ value["kernel"] + value.get("bias", np.zeros(1))[None]
    v_BSGK = v_ND.reshape(*TOKENS.shape, config.kv_heads, -1)
    rows = []
    for row in range(TOKENS.shape[0]):
        heads = [
            weights_BHQS[row, head] @ v_BSGK[row, :, head * config.kv_heads // config.heads]
            for head in range(config.heads)
        ]
        rows.append(np.concatenate(heads, -1))
    output = kernels["output"]
    return np.concatenate(rows) @ output["kernel"] + output.get("bias", np.zeros(1))[None]


@OBSERVED
def test_attention_weights_are_those_that_mixed_the_values(config):
    params = wide(config)
    for layer, block in params["blocks"].items():
        at = jax.tree.map(lambda x, layer=layer: x[layer], observed(config))
        weights_BHQS = np.asarray(attention.weights(*at["attention/heads"]))
        np.testing.assert_allclose(weights_BHQS.sum(-1), 1.0, atol=1e-6)
        assert not np.triu(weights_BHQS, 1).any()
        found = mixed(config, weights_BHQS, block["attention"], at["attention/input"])
        if "attention_post_norm" in block:
            found = normed(config, found, block["attention_post_norm"])
        elif config.norm_position == "after":
            found = normed(config, found, block["attention_norm"])
        np.testing.assert_allclose(found, at["attention/output"], rtol=0, atol=1e-5)


def test_observation_keeps_what_the_function_gives():
    def largest(name, value):
        return {name: () if name == "attention/heads" else jnp.abs(value).max(0)}

    found = LanguageModel(GPT2).observe(wide(GPT2), TOKENS, largest)
    for name in POINTS - {"attention/heads"}:
        x_LND = observed(GPT2)[name]
        np.testing.assert_allclose(found[name][name], np.abs(x_LND).max(1), rtol=1e-5)
