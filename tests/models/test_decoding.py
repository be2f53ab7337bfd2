"""The cache: one row alone, and what the compiler makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmnoise.models import decoding
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.training.mesh import make_mesh

CONFIG = gpt2(vocab_size=37, context=64, layers=4, width=16, heads=4, layers_as="unrolled")
SCANNED = dataclasses.replace(CONFIG, layers_as="scan")


def parameters(model):
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    drawn = [0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, drawn)


def test_a_row_alone_has_the_logits_of_the_full_forward():
    """Tied embeddings meet a single row the other way round."""
    model = LanguageModel(CONFIG)
    params = parameters(model)
    tokens_1T = np.random.default_rng(1).integers(0, 37, (1, 4), np.int32)

    @jax.jit
    def both(params):
        first_1V, cache = decoding.prefill(model, params, tokens_1T[:, :3], np.array([3]), 4)
        second_1V, _ = decoding.decode(model, params, tokens_1T[:, 3], cache)
        return jnp.stack([first_1V, second_1V], 1), model.logits(params, tokens_1T)[:, 2:]

    found, expected = both(params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("config", [CONFIG, SCANNED], ids=["unrolled", "scan"])
def test_the_cache_is_written_in_place(config):
    """Room for the cache of all steps and what one layer reads, and none for a copy of it."""
    model, batch = LanguageModel(config), 64

    def steps(params, tokens_B1):
        length_B = jnp.ones(batch, jnp.int32)
        logits_BV, cache = decoding.prefill(model, params, tokens_B1, length_B, CONFIG.context)

        def step(_, state):
            logits_BV, cache = state
            token_B = logits_BV.argmax(-1).astype(jnp.int32)
            return decoding.decode(model, params, token_B, cache)

        return jax.lax.fori_loop(0, CONFIG.context - 1, step, (logits_BV, cache))[0]

    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens_B1 = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    program = jax.jit(steps).lower(params, tokens_B1).compile()
    whole = 2 * CONFIG.layers * batch * CONFIG.context * CONFIG.width * 4
    assert whole <= program.memory_analysis().temp_size_in_bytes < 1.5 * whole


@pytest.mark.parametrize("config", [CONFIG, SCANNED], ids=["unrolled", "scan"])
def test_the_cache_lies_over_the_mesh(config):
    """Rows over the devices of `data`, groups over those of `model`."""
    model, mesh = LanguageModel(config), make_mesh(data=4, model=2)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def begin(params, tokens_BS):
        return decoding.prefill(model, params, tokens_BS, jnp.full(4, 3), 8)[1]

    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        tokens_BS = jax.ShapeDtypeStruct((4, 3), jnp.int32, sharding=rows)
        cache = jax.jit(begin).lower(params, tokens_BS).compile().output_shardings
    stacked = [4] if config is SCANNED else []
    shape = (*stacked, 4, CONFIG.heads, 8, CONFIG.head_width)
    on_a_device = (*stacked, 1, CONFIG.heads // 2, 8, CONFIG.head_width)
    found = jax.tree.leaves((cache.k_LBGTK, cache.v_LBGTK))
    assert {sharding.shard_shape(shape) for sharding in found} == {on_a_device}
