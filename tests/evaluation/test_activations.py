"""Massive dimensions and super weights that were planted are found where they were planted."""

import functools

import jax
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.evaluation.activations import massive, norm_candidates, spikes, super_weights
from lmnoise.evaluation.parameters import Scalar
from lmnoise.models.transformer import LanguageModel, gpt2, llama

SHAPE = dict(vocab_size=37, context=8, layers=3, width=16, heads=4)
MODELS = {
    "gpt2": LanguageModel(gpt2(**SHAPE)),
    "llama": LanguageModel(llama(**SHAPE, kv_heads=2, mlp_width=24)),
}
RANDOM = np.random.default_rng(5)
BATCHES = [{"tokens": RANDOM.integers(0, 37, (2, 9), dtype=np.int32)} for _ in range(2)]


@functools.cache
def fresh(name):
    return jax.device_get(jax.jit(MODELS[name].init)(jax.random.key(1)))


def planted(name, **entries):
    """Fresh parameters with `entries`, `{leaf: [(index, factor)]}`, multiplied."""

    def grow(leaf_name, leaf):
        leaf = np.array(leaf)
        for index, factor in entries.get(leaf_name, ()):
            leaf[index] *= factor
        return leaf

    return tree.map_named(grow, fresh(name))


def whole(model, params, point):
    """The point's magnitudes for all batches, (K, L, B, S, D)."""
    seen = [
        jax.jit(lambda p, t: model.observe(p, t, lambda _, x: x))(params, batch["tokens"][:, :-1])
        for batch in BATCHES
    ]
    found = np.abs(np.stack([np.asarray(one[point]) for one in seen]))
    return found.reshape(*found.shape[:2], 2, 8, -1)


@pytest.mark.parametrize("name", MODELS)
def test_massive_is_the_extremes_of_the_residual_stream(name):
    model = MODELS[name]
    found = massive(model, fresh(name), BATCHES)
    size_KLBSD = whole(model, fresh(name), "output")
    np.testing.assert_allclose(found.largest_LD, size_KLBSD.max((0, 2, 3)), rtol=1e-5)
    medians = np.median(size_KLBSD, axis=(2, 3, 4)).mean(0)
    np.testing.assert_allclose(found.median_L, medians, rtol=1e-5)
    position_LD = size_KLBSD.max((0, 2)).argmax(1)
    np.testing.assert_array_equal(found.position_LD, position_LD)


@pytest.mark.parametrize("name", MODELS)
def test_a_planted_dimension_is_found_with_its_layers(name):
    grown = {"blocks/1/mlp/down/kernel": [((slice(None), 11), 3e4)]}
    found = massive(MODELS[name], planted(name, **grown), BATCHES)
    first, second = found.dimensions(2)
    assert (first["dimension"], first["first_layer"], first["last_layer"]) == (11, 1, 2)
    assert first["ratio"] > 100 > 20 > second["ratio"]
    assert first["ratio"] == pytest.approx(found.ratio_LD.max())
    assert first["largest"] / first["median"] == pytest.approx(first["ratio"])
    everywhere = massive(MODELS[name], planted(name, tokens=[((slice(None), 4), 1e4)]), BATCHES)
    (first,) = everywhere.dimensions(1)
    assert (first["dimension"], first["first_layer"], first["last_layer"]) == (4, 0, 2)


def test_norm_candidates_are_the_norm_weights_of_the_dimension():
    found = norm_candidates(fresh("gpt2"), [11, 2])
    norms = [f"blocks/{i}/{norm}_norm/scale" for i in range(3) for norm in ("attention", "mlp")]
    leaves = [*norms, "final_norm/scale"]
    assert found == [Scalar(leaf, (d,)) for d in (11, 2) for leaf in leaves]


@pytest.mark.parametrize("name", MODELS)
def test_planted_super_weights_are_found_one_after_the_other(name):
    up, down = "blocks/{}/mlp/up/kernel", "blocks/{}/mlp/down/kernel"
    params = planted(
        name,
        **{
            up.format(2): [((slice(None), 7), 300.0)],
            down.format(2): [((7, 3), 1e4)],
            up.format(0): [((slice(None), 9), 100.0)],
            down.format(0): [((9, 5), 1e3)],
        },
    )
    first, second, *_ = super_weights(MODELS[name], params, BATCHES, 3)
    assert (first["scalar"], first["layer"]) == (Scalar(down.format(2), (7, 3)), 2)
    assert second["scalar"] == Scalar(down.format(0), (9, 5))
    assert first["value"] == params["blocks"][2]["mlp"]["down"]["kernel"][7, 3]
    assert first["share"] == pytest.approx(1, abs=0.05)
    assert first["score"] == min(first["input_ratio"], first["output_ratio"]) > second["score"]


def test_a_spike_of_the_input_alone_ranks_below_one_of_both():
    up, down = "blocks/{}/mlp/up/kernel", "blocks/{}/mlp/down/kernel"
    params = planted(
        "llama",
        **{
            up.format(0): [((slice(None), 9), 1e4)],
            down.format(0): [((9, slice(None)), 0.0)],
            up.format(1): [((slice(None), 7), 100.0)],
            down.format(1): [((7, 3), 1e3)],
        },
    )
    (found,) = super_weights(MODELS["llama"], params, BATCHES, 1)
    assert found["scalar"] == Scalar(down.format(1), (7, 3))


def test_spikes_are_the_extremes_of_the_projection():
    model, params = MODELS["gpt2"], fresh("gpt2")
    found = spikes(model, params, BATCHES)
    for point, channel, largest, ratio in (
        ("mlp/hidden", found.row, found.largest_input, found.input_ratio),
        ("mlp/output", found.column, found.largest_output, found.output_ratio),
    ):
        size_LD = whole(model, params, point).max((0, 2, 3))
        np.testing.assert_array_equal(channel, size_LD.argmax(1))
        np.testing.assert_allclose(largest, size_LD.max(1), rtol=1e-5)
        np.testing.assert_allclose(ratio, size_LD.max(1) / np.median(size_LD, 1), rtol=1e-5)


def test_every_entry_is_named_once():
    found = super_weights(MODELS["llama"], fresh("llama"), BATCHES, 12)
    scalars = [one["scalar"] for one in found]
    assert len(set(scalars)) == len(scalars) > 3


def test_no_batch():
    for function in (massive, spikes):
        with pytest.raises(ValueError, match="at least one batch"):
            function(MODELS["gpt2"], fresh("gpt2"), [])
