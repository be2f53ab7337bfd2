"""Frozen entries keep their bits and the others never notice; training from given parameters."""

import dataclasses
import os
import signal

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from lmnoise import tree
from lmnoise.data.corruption import Corruption
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.training import mesh as meshes
from lmnoise.training.loop import LoopConfig
from lmnoise.training.optimizer import OptimizerConfig, make_optimizer
from lmnoise.training.population import Population, member_arrays

SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": (4,)}
ADAMW = OptimizerConfig(steps=8, decay_table=((r".*", True),), epsilon=1e-6)
SGD = dataclasses.replace(ADAMW, algorithm="sgd", momentum=0.5)


def trees(count, seed):
    random = np.random.default_rng(seed)
    return [
        {n: random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
        for _ in range(count)
    ]


def train(config, params, gradients, frozen=None):
    @jax.jit
    def steps(params, gradients, frozen):
        transformation = make_optimizer(config, params, 0.1, 0.3, frozen)
        state = transformation.init(params)
        for gradient in gradients:
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return jax.device_get(steps(params, gradients, frozen))


@pytest.mark.parametrize("decay_to", ["zero", "start"])
@pytest.mark.parametrize("config", [ADAMW, SGD], ids=["adamw", "sgd"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0, 1))
def test_the_rest_moves_as_if_the_frozen_entries_were_not_there(config, decay_to, seed, share):
    """Against an optimizer whose only parameter is the vector of the entries that may move."""
    config = dataclasses.replace(config, decay_to=decay_to)
    start, *gradients = trees(6, seed)
    random = np.random.default_rng(seed + 1)
    frozen = {n: random.random(s) < share for n, s in SHAPES.items()}

    def free(values):
        return {"free": np.concatenate([values[n][~frozen[n]] for n in SHAPES])}

    after = train(config, start, gradients, frozen)
    alone = train(config, free(start), [free(g) for g in gradients])
    np.testing.assert_allclose(free(after)["free"], alone["free"], rtol=2e-6, atol=2e-6)
    for name, mask in frozen.items():
        assert after[name][mask].tobytes() == start[name][mask].tobytes()


def test_frozen_entries_keep_even_their_signs_of_zero_and_hide_a_gradient_that_is_not_finite():
    start = {"w": np.array([-0.0, 0.0, 1.0, 2.0], np.float32)}
    frozen = {"w": np.array([True, True, True, False])}
    gradients = [{"w": np.array([1.0, -1.0, np.nan, 3.0], np.float32)}]
    after = train(ADAMW, start, gradients, frozen)["w"]
    assert after[:3].tobytes() == start["w"][:3].tobytes()
    assert np.isfinite(after[3])
    assert after[3] != 2.0


def test_frozen_entries_and_frozen_leaves_go_together():
    config = dataclasses.replace(ADAMW, learning_rate_table=((r"scale", None), (r".*", 1.0)))
    start, *gradients = trees(4, 0)
    frozen = {n: np.zeros(s, bool) for n, s in SHAPES.items()}
    frozen["kernel"][:2] = True
    after = train(config, start, gradients, frozen)
    for same, mine in (("scale", ...), ("kernel", np.s_[:2])):
        np.testing.assert_array_equal(after[same][mine], start[same][mine])
    assert (after["kernel"][2:] != start["kernel"][2:]).all()


def test_the_optimizer_keeps_the_same_state_with_and_without_a_mask():
    start, *_ = trees(1, 0)
    frozen = jax.tree.map(lambda a: np.ones(a.shape, bool), start)
    states = [make_optimizer(ADAMW, start, 0.1, 0.1, f).init(start) for f in (None, frozen)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


# ---- members ------------------------------------------------------------------------------------

VOCAB, LENGTH, ROWS, WIDTH = 32, 8, 4, 16
MODEL = LanguageModel(
    gpt2(
        vocab_size=VOCAB,
        context=LENGTH,
        layers=1,
        width=WIDTH,
        heads=4,
        mlp_width=32,
        layers_as="unrolled",
    )
)
QUERY = "blocks/0/attention/query/kernel"


def some_mask(share=0.5):
    """A mask of the model's parameters; none of the embeddings."""
    random = np.random.default_rng(5)
    return tree.map_named(
        lambda name, spec: random.random(spec.shape) < (share if "blocks" in name else 0),
        MODEL.specs,
    )


def members(*masks):
    plain = {"seed": 0, "stream": 0, "kind": 0, "rate": 0.0}
    plain |= {"learning_rate": 0.01, "weight_decay": 0.5}
    return member_arrays([plain if m is None else plain | {"frozen": m} for m in masks])


def language_population(*masks, mesh=None, **options):
    return Population(
        init=MODEL.init,
        loss=MODEL.loss,
        transform=Corruption(VOCAB, ("uniform",)),
        optimizer=OptimizerConfig(steps=8, **options),
        members=members(*masks),
        mesh=mesh or meshes.make_mesh(devices=jax.devices()[:1]),
    )


def host_batch(index):
    tokens = np.random.default_rng(index).integers(0, VOCAB, (1, ROWS, LENGTH + 1))
    return {"tokens": tokens.astype(np.int32), "index": np.int32(index)}


def run(population, states):
    states, metrics = population.steps(states, population.stage([*map(host_batch, range(4))]))
    return jax.device_get((states, metrics))


NOTHING = jax.tree.map(lambda spec: np.zeros(spec.shape, bool), MODEL.specs)


@pytest.fixture(scope="module")
def pair():
    """(states, metrics, start) of a member with frozen entries and its twin without."""
    population = language_population(some_mask(), NOTHING)
    start = jax.device_get(population.init())
    return *run(population, population.init()), start


def test_frozen_and_not_are_two_members_of_one_population(pair, same):
    states, metrics, start = pair
    for (name, mask), before, after in zip(
        tree.named_leaves(some_mask()),
        jax.tree.leaves(start.params),
        jax.tree.leaves(states.params),
        strict=True,
    ):
        assert after[0][mask].tobytes() == before[0][mask].tobytes(), name
        moved = after[1] != before[1]
        assert moved[mask].mean() > 0.9 if mask.any() else moved.any(), name
        assert (after[0] != before[0])[~mask].any(), name
    assert metrics["loss"][0, 0, 0] == metrics["loss"][1, 0, 0]  # the same start and batch
    alone = language_population(NOTHING)
    same(run(alone, alone.init())[0], jax.tree.map(lambda a: a[1:], states))


def test_a_mask_of_nothing_changes_nothing(pair):
    population = language_population(None)
    states, metrics = run(population, population.init())
    for name, pairs in pair[1].items():
        np.testing.assert_allclose(metrics[name][0], pairs[1], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        states.params["tokens"][0], pair[0].params["tokens"][1], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 2, 2, 2), (2, 1, 2, 2)], ids=str)
def test_meshes_agree_and_the_mask_lies_where_its_parameters_do(pair, shape):
    population = language_population(some_mask(), NOTHING, mesh=meshes.make_mesh(*shape))
    start = jax.device_get(population.init().params)
    states, metrics = run(population, population.init())
    for name, pairs in pair[1].items():
        np.testing.assert_allclose(metrics[name], pairs, rtol=1e-5, err_msg=name)
    leaves = map(jax.tree.leaves, (states.params, start, some_mask()))
    for after, before, frozen in zip(*leaves, strict=True):
        assert after[0][frozen].tobytes() == before[0][frozen].tobytes()
    placed = dict(tree.named_leaves(population.members["frozen"]))[QUERY]
    assert placed.sharding.spec == PartitionSpec("member", "fsdp", "model")


def test_member_arrays_stack_masks():
    arrays = members(some_mask(), NOTHING)
    stacked = dict(tree.named_leaves(arrays["frozen"]))[QUERY]
    assert (stacked.dtype, stacked.shape) == (bool, (2, WIDTH, WIDTH))
    assert stacked[0].any()
    assert not stacked[1].any()
    with pytest.raises(KeyError, match="frozen"):
        members(some_mask(), None)


# ---- given parameters ---------------------------------------------------------------------------


def given_params():
    random = np.random.default_rng(9)
    return jax.tree.map(
        lambda spec: random.normal(0.1, 0.02, spec.shape).astype(np.float32), MODEL.specs
    )


def test_every_member_starts_from_what_is_given(same):
    mesh = meshes.make_mesh(2, 1, 2, 2)
    population, params = language_population(None, None, mesh=mesh), given_params()
    states = population.start(params)
    for leaf, wanted in zip(
        jax.tree.leaves(states), jax.tree.leaves(population.abstract()), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    for m in range(2):
        same(jax.tree.map(lambda a, m=m: a[m], states.params), params)


@pytest.mark.parametrize("decay_to", ["zero", "start"])
def test_states_are_donated_and_what_was_given_is_not(toy, same, decay_to):
    instance = frozen_toy(toy)
    instance.optimizer = dataclasses.replace(instance.optimizer, decay_to=decay_to)
    population = instance.population()
    params = jax.tree.map(jax.numpy.asarray, START)
    staged = population.stage([instance.batches(0) | {"index": np.int32(0)}])
    states = population.start(params)
    after, _ = population.steps(states, staged)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    same(params, START)
    same(population.steps(population.start(START), staged)[0], after)


def test_a_start_of_its_own_initial_parameters_is_init(same):
    population = language_population(None, None)
    own = jax.tree.map(lambda a: a[0], population.init().params)
    same(population.start(own), population.init())


def test_parameters_of_another_model_are_refused():
    population = language_population(None)
    params = given_params()
    params["blocks"][0]["attention"]["query"]["kernel"] = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match=rf"params/{QUERY} is float32 \(3, 3\), not float32"):
        population.start(params)
    with pytest.raises(ValueError, match="float64"):
        population.start(jax.tree.map(np.float64, given_params()))


# ---- the loop -----------------------------------------------------------------------------------

CONFIG = LoopConfig(steps=12, checkpoint_every=4, steps_per_dispatch=2)
START = {"w": np.array([3.0, -1.0, 0.5], np.float32), "bias": np.float32(7.0)}
MASK = {"w": np.array([True, False, False]), "bias": np.array(True)}


def frozen_toy(toy):
    instance = toy()
    none = jax.tree.map(np.zeros_like, MASK)
    for member, mask in zip(instance.members, (MASK, none), strict=True):
        member |= {"frozen": mask, "weight_decay": 0.5}
    table = ((r"w", True), (r".*", False))
    instance.optimizer = dataclasses.replace(SGD, steps=12, decay_to="start", decay_table=table)
    instance.start = START
    return instance


def test_a_run_from_given_parameters_resumes_exactly(toy, same, tmp_path):
    instance = frozen_toy(toy)
    population = instance.population()
    whole = jax.device_get(instance.fit(CONFIG, tmp_path / "whole", population))

    def stop(index):
        if index == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    instance.on_batch = stop
    assert instance.fit(CONFIG, tmp_path / "run", population) is None
    instance.on_batch = lambda index: None
    # A run that has a checkpoint goes on from there, whatever start it is given.
    instance.start = jax.tree.map(np.zeros_like, START)
    same(whole, instance.fit(CONFIG, tmp_path / "run", population))

    params = whole.params
    assert params["w"][0, 0] == 3.0
    assert params["bias"].tolist() == [7.0, params["bias"][1]] != [7.0, 7.0]
    assert (params["w"][0, 1:] != START["w"][1:]).all()
    (kept,) = [
        leaf
        for leaf in jax.tree.leaves(whole.opt_state)
        if leaf.shape == (2, 3) and (leaf == START["w"]).all()
    ]
    assert kept.dtype == np.float32


def test_decay_pulls_to_the_given_start(toy, tmp_path):
    """The stronger the pull, the nearer to the start the run ends."""
    distances = []
    for decay in (0.0, 1.0, 4.0):
        instance = frozen_toy(toy)
        for member in instance.members:
            member["weight_decay"] = decay
        states = instance.fit(CONFIG, tmp_path / str(decay))
        distances.append(np.abs(jax.device_get(states.params["w"]) - START["w"]).sum(1))
    assert (np.diff(distances, axis=0) < 0).all()


def test_a_rollback_to_the_beginning_begins_with_the_given_start(toy, same, tmp_path):
    instance = frozen_toy(toy)
    population = instance.population()
    instance.poison = {1: np.nan}
    states = instance.fit(CONFIG, tmp_path / "run", population)
    assert states.step.tolist() == [12, 12]
    assert states.params["w"][0, 0] == 3.0
