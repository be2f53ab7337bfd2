"""Low-rank updates: their algebra, their gradient, ranks that share a population."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.models.transformer import LanguageModel, llama, stack_layers
from lmnoise.training import lora
from lmnoise.training.mesh import make_mesh
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays

MODEL = LanguageModel(
    llama(vocab_size=13, context=8, layers=2, width=8, heads=2, kv_heads=1, mlp_width=12)
)
BASE = MODEL.init(jax.random.key(0))
TOKENS = np.random.default_rng(0).integers(0, 13, (4, 9)).astype(np.int32)


def loss(base, low, batch, key):
    return MODEL.loss(lora.merge(base, low), batch, key)


def test_a_fresh_update_changes_nothing():
    low = lora.init(jax.random.key(1), BASE, 3)
    names = {name for name, _ in tree.named_leaves(low)}
    assert "blocks/1/attention/query/kernel/a" in names
    assert all("/kernel/" in name for name in names)
    for a, b in zip(jax.tree.leaves(lora.merge(BASE, low)), jax.tree.leaves(BASE), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = low["blocks"][0]["mlp"]["up"]["kernel"]
    assert (kernel["a"].shape, kernel["b"].shape) == ((8, 3), (3, 12))


def test_its_size():
    low = lora.init(jax.random.key(1), {"blocks": {"up": {"kernel": jnp.zeros((400, 7))}}}, 50)
    a = np.asarray(low["blocks"]["up"]["kernel"]["a"])
    assert a.var() * 400 == pytest.approx(1, abs=4 * np.sqrt(2 / a.size))


def test_merging_by_hand_stacked_or_not():
    low = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape),
        lora.init(jax.random.key(1), BASE, 2),
    )
    own = low["blocks"][1]["mlp"]["down"]["kernel"]
    merged = lora.merge(BASE, low)
    wanted = np.asarray(BASE["blocks"][1]["mlp"]["down"]["kernel"]) + own["a"] @ own["b"]
    np.testing.assert_allclose(merged["blocks"][1]["mlp"]["down"]["kernel"], wanted, rtol=1e-5)
    stacked = lora.merge(stack_layers(BASE), stack_layers(low))
    np.testing.assert_allclose(stacked["blocks"]["mlp"]["down"]["kernel"][1], wanted, rtol=1e-5)


def test_the_gradient_by_hand():
    """d/da = (dL/dW) b^T and d/db = a^T (dL/dW)."""
    low = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape), jnp.float32),
        lora.init(jax.random.key(1), BASE, 2),
    )
    batch, key = {"tokens": TOKENS}, jax.random.key(0)
    found = jax.grad(lambda low: loss(BASE, low, batch, key).mean())(low)
    whole = jax.grad(lambda p: MODEL.loss(p, batch, key).mean())(lora.merge(BASE, low))
    own, ours, theirs = (
        t["blocks"][0]["attention"]["query"]["kernel"] for t in (low, found, whole)
    )
    np.testing.assert_allclose(ours["a"], theirs @ own["b"].T, atol=1e-5)
    np.testing.assert_allclose(ours["b"], own["a"].T @ theirs, atol=1e-5)


@functools.cache
def trained(ranks, width):
    """Updates after three steps of a population of members of these ranks."""
    low = jax.eval_shape(lambda: lora.init(jax.random.key(0), BASE, width))
    members = [
        {"seed": 0, "stream": 0, "learning_rate": 0.05, "weight_decay": 0.1,
         "frozen": lora.beyond_rank(low, rank)}
        for rank in ranks
    ]  # fmt: skip
    population = Population(
        init=lambda key: lora.init(key, BASE, width),
        loss=loss,
        transform=lambda batch, member: (
            {"tokens": batch["tokens"], "weights": jnp.ones((1, 1)), "groups": {}}
        ),
        optimizer=OptimizerConfig(steps=3),
        members=member_arrays(members),
        mesh=make_mesh(devices=jax.devices()[:1]),
        shared=BASE,
    )
    staged = population.stage([{"tokens": TOKENS[None], "index": np.int32(k)} for k in range(3)])
    states, metrics = population.steps(population.init(), staged)
    return jax.device_get((states.params, metrics))


def test_ranks_that_share_a_population_are_runs_of_their_own():
    both, _ = trained((1, 3), 3)
    alone, _ = trained((1,), 1)
    for m, single in ((0, alone), (1, trained((3,), 3)[0])):
        ours = lora.merge(BASE, jax.tree.map(lambda leaf, m=m: leaf[m], both))
        theirs = lora.merge(BASE, jax.tree.map(lambda leaf: leaf[0], single))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.allclose(both["blocks"][0]["mlp"]["up"]["kernel"]["b"][1], 0)


def test_a_rank_of_none_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        lora.init(jax.random.key(0), BASE, 0)
    with pytest.raises(ValueError, match="chooses no leaf"):
        lora.init(jax.random.key(0), BASE, 1, ((".*", False),))
