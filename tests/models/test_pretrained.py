"""What the importer refuses, and the spellings of a checkpoint that it accepts."""

import json
import pathlib

import jax
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.models.architectures import ARCHITECTURES
from lmnoise.models.pretrained import from_huggingface
from lmnoise.models.transformer import LanguageModel, stack_layers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FIRST_WEIGHT = {
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "llama": "model.layers.0.mlp.up_proj.weight",
}


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        tensors = {n.removeprefix("tensor/"): archive[n] for n in archive if n.startswith("tensor")}
        return json.loads(str(archive["config"])), tensors


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_tied"])
def test_structure_is_the_models_own(name):
    config, params = from_huggingface(*load(name))
    expected = jax.eval_shape(LanguageModel(config).init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, leaf), wanted in zip(
        tree.named_leaves(params), jax.tree.leaves(expected), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype), path


@pytest.mark.parametrize("architecture", ARCHITECTURES.values())
def test_tables_read_both_ways(architecture):
    """Each tensor is named by exactly its parts, so that a table can also export."""
    by_name = {}
    for where in architecture.table.values():
        by_name.setdefault(where.name, []).append(where)
    for entries in by_name.values():
        assert sorted(e.part for e in entries) == list(range(entries[0].parts))


def test_scanned_layout(monkeypatch):
    config, tensors = load("llama")
    _, unrolled = from_huggingface(config, tensors)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ours, scanned = from_huggingface(config, tensors)
    assert ours.scanned
    assert_same(scanned, stack_layers(unrolled))


def test_accepted_spellings():
    config, tensors = load("gpt2")
    _, expected = from_huggingface(config, tensors)
    # As the GPT-2 checkpoints of 2019: no prefix, masks stored, a half-precision file.
    bare = {n.removeprefix("transformer."): t for n, t in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 80, 80)), "lm_head.weight": bare["wte.weight"]}
    assert_same(from_huggingface(config, bare)[1], expected)
    halves = {n: t.astype(np.float16) for n, t in tensors.items()}
    assert all(
        leaf.dtype == np.float32 for leaf in jax.tree.leaves(from_huggingface(config, halves)[1])
    )
    del config["n_inner"]
    assert ARCHITECTURES["GPT2LMHeadModel"].config(config).mlp_width == 4 * 24


def test_rope_theta_of_transformers_4_and_5():
    config, tensors = load("llama")
    assert from_huggingface(config, tensors)[0].rope_theta == 10_000
    del config["rope_parameters"]
    assert from_huggingface(config, tensors)[0].rope_theta == 10_000
    assert from_huggingface(config | {"rope_theta": 5e5}, tensors)[0].rope_theta == 5e5


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gpt2", "architectures", ["GPT2ForTokenClassification"]),
        ("gpt2", "architectures", None),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "n_embd", None),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("llama", "head_dim", 8),
        ("llama", "num_hidden_layers", None),
        ("llama", "rope_parameters", {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}),
    ],
)
def test_unsupported_option_is_named(name, key, value):
    config, tensors = load(name)
    with pytest.raises(UserError, match=f"'{key}'"):
        from_huggingface(config | {key: value}, tensors)


@pytest.mark.parametrize("name", FIRST_WEIGHT)
def test_wrong_tensors_are_named(name):
    config, tensors = load(name)
    weight = FIRST_WEIGHT[name]
    short = weight.split(".", 1)[1].replace(".", r"\.")
    with pytest.raises(UserError, match=f"lacks .*'{short}'"):
        from_huggingface(config, {n: t for n, t in tensors.items() if n != weight})
    with pytest.raises(UserError, match=f"'{short}' has shape"):
        from_huggingface(config, tensors | {weight: tensors[weight][:, :-1]})
    extra = weight.replace("weight", "lora_A")
    with pytest.raises(UserError, match=r"1 tensors .*lora_A"):
        from_huggingface(config, tensors | {extra: tensors[weight]})
