"""Configurations and tables of Hugging Face's classes: both ways, and what is refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.models.architectures import ARCHITECTURES, Tensor, find, for_export, join
from lmnoise.models.transformer import LanguageModel, RopeScaling, gpt2, llama
from lmnoise.training.optimizer import NO_DECAY

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = (
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_neox_serial",
    "llama",
    "llama_scaled",
    "llama_tied",
    "mistral",
    "olmo",
    "olmo2",
    "qwen2",
    "qwen3",
)
CONFIGS = {}
for _name in NAMES:
    with np.load(GOLDEN / f"{_name}.npz", allow_pickle=False) as _archive:
        CONFIGS[_name] = json.loads(str(_archive["config"]))


def translate(name, **changes):
    config = CONFIGS[name] | changes
    return find(config)[1].config(config)


# Configurations


def sizes(draw):
    """Sizes that any class can say, and whether the embeddings are tied."""
    heads = draw(st.integers(1, 5))
    count = st.integers(1, 10**5)
    return {
        "vocab_size": draw(count),
        "context": draw(count),
        "layers": draw(count),
        "width": heads * 2 * draw(st.integers(2, 300)),
        "heads": heads,
        "mlp_width": draw(count),
        "tied": draw(st.booleans()),
        "norm_epsilon": draw(st.floats(1e-8, 1e-3)),
    }


def rope(draw):
    positive = st.floats(1e-3, 1e6)
    scaling = st.builds(RopeScaling, positive, positive, positive, st.integers(1, 10**6))
    return {
        "rope_theta": draw(st.floats(1.0, 1e7)),
        "rope_scaling": draw(st.none() | scaling),
    }


OWN = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"query_key_norm": "head"},
    "OlmoForCausalLM": {"norm": "layernorm_fixed", "norm_epsilon": 1e-5},
    "Gemma3ForCausalLM": {
        "norm_position": "both",
        "query_key_norm": "head",
        "activation": "geglu",
        "scaled_embeddings": True,
        "local_theta": 300.0,
        "global_every": 4,
        "layers": 9,
    },
    "Olmo2ForCausalLM": {"norm_position": "after", "query_key_norm": "whole"},
}


@st.composite
def configs(draw, name):
    """Any model of a class."""
    fields = sizes(draw)
    gelu = draw(st.sampled_from(["gelu", "gelu_exact"]))
    if name == "GPT2LMHeadModel":
        return gpt2(**fields, activation=gelu)
    if name == "GPTNeoXForCausalLM":
        fraction = draw(st.sampled_from([1.0, 0.5]))
        fields["width"] *= 2
        return gpt2(
            **fields | rope(draw),
            activation=gelu,
            positions="rotary",
            rotary_fraction=fraction,
            parallel=draw(st.booleans()),
        )
    fields["kv_heads"] = draw(st.sampled_from([1, fields["heads"]]))
    own_width = fields["heads"] * 2 * draw(st.integers(1, 300))
    fields["heads_width"] = 0 if own_width == fields["width"] else own_width
    return llama(**fields | rope(draw) | OWN[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_export_is_the_inverse_of_config(name, data):
    config = data.draw(configs(name))
    content = json.loads(json.dumps(ARCHITECTURES[name].export(config)))
    assert find(content)[0] == name
    assert ARCHITECTURES[name].config(content) == config
    # Another class may compute the same model, and how it is computed does not matter.
    other = dataclasses.replace(config, dtype="bfloat16", layers_as="scan", remat="full")
    _, architecture = for_export(other)
    assert architecture.config(architecture.export(other)) == config


@pytest.mark.parametrize("name", NAMES)
def test_class_for_export(name):
    # Within its window a Mistral is a Llama.
    theirs = "LlamaForCausalLM" if name == "mistral" else CONFIGS[name]["architectures"][0]
    assert for_export(translate(name))[0] == theirs


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"norm": "rmsnorm", "bias": False}, "norm='rmsnorm'"),
        ({"qkv_bias": True}, "qkv_bias=True"),
        ({"norm_position": "after"}, "norm_position='after'"),
    ],
)
def test_model_of_no_class(fields, named):
    model = gpt2(vocab_size=5, context=8, layers=1, width=8, heads=2, **fields)
    with pytest.raises(UserError, match=f"GPT2LMHeadModel.*{named}"):
        for_export(model)


def test_spellings_of_rotary_options():
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 64}
    wanted = RopeScaling(8.0, 1.0, 4.0, 64)
    # transformers 5, 4, and what is not given.
    both = {"rope_type": "llama3", **scaled}
    new = translate("llama", rope_parameters=both | {"rope_theta": 5e5})
    old = translate("llama", rope_parameters=None, rope_scaling=both, rope_theta=5e5)
    assert new == old
    assert (new.rope_theta, new.rope_scaling) == (5e5, wanted)
    del both["original_max_position_embeddings"]
    assert translate("llama", rope_parameters=both).rope_scaling.original_context == 80

    old = {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500}
    neox = translate("gpt_neox", **old)
    assert (neox.rotary_fraction, neox.rope_theta) == (0.5, 500)
    assert translate("gpt_neox", rope_parameters=None).rotary_fraction == 0.25


def test_windows_bound_the_context():
    assert translate("mistral", sliding_window=33).context == 33
    assert translate("mistral", sliding_window=None).context == 80
    assert translate("mistral", sliding_window=4096).context == 80
    for name in ("qwen2", "qwen3"):
        assert translate(name, sliding_window=33).context == 80
        assert translate(name, sliding_window=33, use_sliding_window=True).context == 33


def test_layers_with_the_global_base():
    assert translate("gemma3").global_every == 2
    assert translate("gemma3", layer_types=None).global_every == 6
    assert translate("gemma3", layer_types=None, sliding_window_pattern=4).global_every == 4
    old = {"rope_parameters": None, "rope_theta": 5e5, "rope_local_base_freq": 50.0}
    config = translate("gemma3", **old)
    assert (config.rope_theta, config.local_theta) == (5e5, 50.0)
    config = translate("gemma3", rope_parameters=None)
    assert (config.rope_theta, config.local_theta) == (1e6, 1e4)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "architectures", ["MixtralForCausalLM"]),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "mlp_bias", True),
        ("llama", "hidden_size", 25),
        ("llama", "hidden_size", "24"),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        ("llama", "rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
        ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("mistral", "hidden_act", "gelu"),
        ("qwen3", "attention_bias", True),
        ("olmo", "clip_qkv", 8.0),
        ("gemma3", "query_pre_attn_scalar", 168),
        ("gemma3", "final_logit_softcapping", 30.0),
        ("gemma3", "layer_types", ["full_attention", "sliding_attention"]),
        ("gpt_neox", "attention_bias", False),
        ("gpt_neox", "hidden_act", "relu"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_unsupported_option_is_named(name, key, value):
    changes = {key: value} | ({"rope_parameters": None} if key == "rope_scaling" else {})
    with pytest.raises(UserError, match=f"'{key}'"):
        translate(name, **changes)


def test_sizes_that_do_not_divide():
    with pytest.raises(UserError, match=r"config\.json: .* kv_heads 4"):
        translate("olmo2", num_key_value_heads=4)


def test_scaling_that_lacks_a_value():
    with pytest.raises(UserError, match="'rope_parameters' lacks 'low_freq_factor'"):
        translate("llama", rope_parameters={"rope_type": "llama3", "factor": 2.0})


# Tables


@pytest.mark.parametrize("name", NAMES)
def test_table_reads_and_joins_every_tensor_bit_for_bit(name):
    architecture = find(CONFIGS[name])[1]
    config = translate(name, layers_as="unrolled")
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        stored = {
            n.removeprefix("tensor/").removeprefix(architecture.prefix): archive[n]
            for n in archive
            if n.startswith("tensor/")
        }
    specs = LanguageModel(dataclasses.replace(config, layers_as="unrolled")).specs
    parts = {}
    for path, spec in tree.named_leaves(specs):
        where, key = architecture.locate(path)
        assert where.stored_shape(spec.shape) == stored[key].shape, path
        leaf = where.read(stored[key], config)
        assert (leaf.shape, leaf.dtype) == (spec.shape, np.float32), path
        parts.setdefault(key, []).insert(0, (where, leaf))
    assert set(parts) == set(stored)
    for key, leaves in parts.items():
        np.testing.assert_array_equal(join(leaves, config), stored[key], err_msg=key)


def test_fused_by_head():
    # Rows of the stored tensor are [head, query | key | value, feature of the head].
    config = gpt2(vocab_size=5, context=8, layers=1, width=6, heads=3)
    stored = np.random.default_rng(0).normal(size=(3, 3, 2, 6)).astype(np.float32)
    for part in range(3):
        where = Tensor("qkv", transposed=True, part=part, parts=3, by_head=True)
        leaf = where.read(stored.reshape(18, 6), config)
        for head in range(3):
            columns = slice(2 * head, 2 * head + 2)
            np.testing.assert_array_equal(leaf[:, columns], stored[head, part].T)


def test_join_wants_all_parts():
    config = translate("gpt2")
    leaf = np.zeros((24, 24), np.float32)
    parts = [(Tensor("c_attn", part=i, parts=3), leaf) for i in range(3)]
    assert join(parts, config).shape == (24, 72)
    with pytest.raises(ValueError, match="all 3 of 'c_attn'"):
        join(parts[1:], config)


@pytest.mark.parametrize("name", NAMES)
def test_matrices_alone_decay(name):
    specs = LanguageModel(translate(name)).specs
    decays = tree.select(NO_DECAY, specs)
    for (path, spec), decay in zip(tree.named_leaves(specs), jax.tree.leaves(decays), strict=True):
        matrix = len(spec.axes) - ("layers" in spec.axes) == 2
        assert decay == (matrix and path != "positions"), path
