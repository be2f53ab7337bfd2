"""What `LanguageModel.observe` sees, recomputed in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise import tree
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
    """All points whole, an LND array each, for the same parameters in any layout."""
    params = stack_layers(wide(config)) if config.layers_as == "scan" else wide(config)
    look = jax.jit(functools.partial(LanguageModel(config).observe, function=lambda _, x_ND: x_ND))
    return {name: np.asarray(x) for name, x in look(params, TOKENS).items()}


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
        at = {name: x[layer] for name, x in points.items()}
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
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5, err_msg=name)


def test_observation_keeps_what_the_function_gives():
    largest = lambda name, x_ND: {name: jnp.abs(x_ND).max(0)}  # noqa: E731
    found = LanguageModel(GPT2).observe(wide(GPT2), TOKENS, largest)
    for name, x_LND in observed(GPT2).items():
        np.testing.assert_allclose(found[name][name], np.abs(x_LND).max(1), rtol=1e-5)
