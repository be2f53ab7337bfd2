"""The decoder against transformers: logits, losses and gradients of tiny random models."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.models.architectures import find
from lmnoise.models.pretrained import from_huggingface
from lmnoise.models.transformer import LanguageModel, stack_layers

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


@pytest.fixture(params=NAMES)
def golden(request):
    """The arrays of an archive, its tensors and gradients by Hugging Face name."""
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    for kind in ("tensor", "gradient"):
        names = [n for n in arrays if n.startswith(f"{kind}/")]
        arrays[kind] = {n.removeprefix(f"{kind}/"): arrays.pop(n) for n in names}
    return arrays | {"config": json.loads(str(arrays["config"]))}


@pytest.mark.parametrize(("layout", "attention"), [("unrolled", "row_blocks"), ("scan", "plain")])
def test_equals_transformers(golden, layout, attention):
    config, params = from_huggingface(golden["config"], golden["tensor"])
    _, expected_gradients = from_huggingface(golden["config"], golden["gradient"])
    architecture = find(golden["config"])[1]
    expected_gradients = tree.map_named(
        lambda path, leaf: leaf - architecture.locate(path)[0].less, expected_gradients
    )
    if layout == "scan":
        params, expected_gradients = stack_layers(params), stack_layers(expected_gradients)
    # 158 tokens in chunks of 2.
    config = dataclasses.replace(config, layers_as=layout, attention=attention, logits_chunk=64)
    model = LanguageModel(config)

    @jax.jit
    def compute(params, tokens):
        def mean_loss(params):
            losses = model.loss(params, {"tokens": tokens}, jax.random.key(0))
            return losses.mean(), losses

        gradients, losses = jax.grad(mean_loss, has_aux=True)(params)
        return model.logits(params, tokens), losses, gradients

    logits, losses, gradients = compute(params, jnp.asarray(golden["tokens"]))
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=1e-4)
    for (name, actual), expected in zip(
        tree.named_leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_reference_is_far_from_uniform(golden):
    # Otherwise an agreement of logits would say little.
    assert np.std(golden["logits"]) > 1
