"""A population is its members trained alone, whatever the group, the mesh or the device count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise import tree
from lmnoise.data.corruption import Corruption
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.training import mesh as meshes
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, mean, member_arrays, update_members

VOCAB, LENGTH, ROWS, DISPATCH = 64, 16, 8, 2
MODEL = LanguageModel(
    gpt2(vocab_size=VOCAB, context=LENGTH, layers=1, width=16, heads=8, mlp_width=32)
)
KINDS = ("uniform", "shuffled")
MEMBERS = [
    {"seed": seed, "stream": seed, "kind": kind, "rate": rate, "learning_rate": lr}
    | {"weight_decay": 0.1}
    for (seed, lr), (kind, rate) in itertools.product(
        ((0, 3e-3), (1, 1e-2)), ((0, 0.0), (0, 0.3), (1, 0.3), (1, 0.5))
    )
]


def make_population(members=MEMBERS, mesh=None, **options):
    """Micro-batches and extra rows included, so that all that follows is tested with them."""
    return Population(
        init=MODEL.init,
        loss=MODEL.loss,
        transform=Corruption(VOCAB, KINDS, budget="clean", extra_rows=ROWS),
        optimizer=OptimizerConfig(steps=8),
        members=member_arrays(members),
        mesh=mesh or meshes.make_mesh(devices=jax.devices()[:1]),
        accumulate=2,
        **options,
    )


def host_batch(index):
    tokens = np.random.default_rng(index).integers(0, VOCAB, (2, ROWS, LENGTH + 1))
    return {"tokens": tokens.astype(np.int32), "index": np.int32(index)}


def run(population, states, dispatches=2):
    """States after some dispatches, and all metrics (M, K, 2), from states on the host."""
    states, history = jax.device_put(states, population.shardings), []
    for d in range(dispatches):
        steps = range(DISPATCH * d, DISPATCH * (d + 1))
        states, metrics = population.steps(states, population.stage([*map(host_batch, steps)]))
        history.append(jax.device_get(metrics))
    return states, {n: np.concatenate([m[n] for m in history], 1) for n in history[0]}


@pytest.fixture(scope="module")
def reference():
    """All members on one device, one after the other: states, metrics, population, start."""
    population = make_population()
    start = jax.device_get(population.init())
    return *run(population, start), population, start


def test_a_member_is_the_same_alone(reference, same):
    states, metrics, _, start = reference
    population = make_population([MEMBERS[6]])
    same(population.init(), jax.tree.map(lambda a: a[6:7], start))
    alone, own = run(population, jax.tree.map(lambda a: a[6:7], start))
    same(alone, jax.tree.map(lambda a: a[6:7], states))
    same(own, {name: pairs[6:7] for name, pairs in metrics.items()})


def test_members_differ_in_what_they_are_given(reference):
    losses = mean(reference[1]["loss"], 1)
    assert len(np.unique(losses)) == len(MEMBERS)
    counts = reference[1]["loss/noise"][..., 1].sum(1) / reference[1]["loss"][..., 1].sum(1)
    assert counts[0] == counts[4] == 0
    assert counts[1] == counts[2] < counts[3]  # one u for all kinds and rates of a seed


@pytest.mark.parametrize("group", [1, 2, 3], ids="groups of {}".format)
def test_groups_in_turn_take_the_memory_of_one(group):
    """Beyond the states themselves, which are updated in place; 3 do not divide, so 2 run."""

    def step(state, rate):
        x_N, moment_N = state
        moment_N = 0.9 * moment_N + jnp.sin(x_N)
        return (x_N - rate * moment_N, moment_N), x_N.sum()

    def all_members(states, rates):
        mesh = meshes.make_mesh(devices=jax.devices()[:1])
        return update_members(step, mesh, group, states, rates)

    size, count = 100_000, 8
    states = (jnp.ones((count, size)), jnp.zeros((count, size)))
    compiled = jax.jit(all_members, donate_argnums=0).lower(states, jnp.ones(count)).compile()
    at_once = min(group, 2)
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 2 * 4 * size * at_once


@pytest.mark.parametrize("group", [2, 8], ids="groups of {}".format)
def test_groups_agree(reference, group):
    _, metrics = run(make_population(group=group), reference[3])
    for name, pairs in reference[1].items():
        np.testing.assert_allclose(metrics[name], pairs, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 2, 4, 1), (1, 1, 1, 8), (2, 1, 2, 2)], ids=str)
def test_meshes_agree(reference, shape):
    population = make_population(mesh=meshes.make_mesh(*shape))
    states, metrics = run(population, reference[3])
    for name, pairs in reference[1].items():
        np.testing.assert_allclose(metrics[name], pairs, rtol=1e-5, err_msg=name)
    for (name, leaf), wanted in zip(
        tree.named_leaves(states), jax.tree.leaves(population.shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name
    assert population._steps._cache_size() == 1


def test_states_are_donated_and_one_program_serves_all_steps(reference):
    population = reference[2]
    states = population.init()
    leaves = jax.tree.leaves(states)
    staged = population.stage([host_batch(k) for k in range(DISPATCH)])
    for _ in range(2):
        states, _ = population.steps(states, staged)
    assert all(leaf.is_deleted() for leaf in leaves)
    assert population._steps._cache_size() == 1
    assert population._init._cache_size() == 1


def test_initial_states_do_not_depend_on_the_mesh(reference, same):
    same(make_population(mesh=meshes.make_mesh(2, 1, 2, 2)).init(), reference[3])


def test_abstract_states_are_what_init_gives(reference):
    population = reference[2]
    for wanted, leaf in zip(
        jax.tree.leaves(population.abstract()), jax.tree.leaves(population.init()), strict=True
    ):
        assert (wanted.shape, wanted.dtype, wanted.sharding) == (
            leaf.shape,
            leaf.dtype,
            leaf.sharding,
        )


def test_a_kind_costs_nothing_when_no_member_of_the_group_has_it(reference):
    """A group of one keeps the branch on the kind of noise; `vmap` computes all branches."""
    population = reference[2]
    staged = population.stage([host_batch(k) for k in range(DISPATCH)])
    lowered = population._steps.lower(population.init(), population.members, None, staged)
    assert "stablehlo.case" in lowered.as_text()


def test_map_gives_every_member(reference):
    population, states = reference[2], reference[0]
    tokens = host_batch(9)["tokens"][0]
    function = population.map(
        lambda params, batch: MODEL.loss(params, {"tokens": batch}, jax.random.key(0)).mean()
    )
    placed = meshes.put_whole(population.mesh, tokens, batch_axis=0)
    losses = function(states.params, placed)
    for m in range(len(MEMBERS)):
        params = jax.tree.map(lambda a, m=m: a[m], states.params)
        own = MODEL.loss(params, {"tokens": tokens}, None).mean()
        np.testing.assert_allclose(losses[m], own, rtol=1e-6)


def test_member_arrays_are_32_bit():
    arrays = member_arrays([{"seed": 3, "rate": 0.5}, {"seed": 4, "rate": 0.25}])
    assert {n: a.dtype for n, a in arrays.items()} == {"seed": np.int32, "rate": np.float32}


def test_mean_weighs_by_count():
    pairs = np.array([[[1.0, 1.0], [9.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(mean(pairs, 1), [2.5, np.nan])


# ---- one program for other members --------------------------------------------------------------


def shifted(toy, rates, shift):
    """Regressions whose targets are shifted by what all members share."""
    instance = toy(
        rates=rates,
        loss=lambda shared, params, batch, key: toy.loss(
            params, batch | {"y": batch["y"] + shared["shift"]}, key
        ),
        shared={"shift": np.float32(shift)},
    )
    return instance, instance.population()


def steps_of(instance, population):
    staged = population.stage([instance.batches(k) | {"index": np.int32(k)} for k in range(3)])
    return population.steps(population.init(), staged)


def test_using_other_members_and_another_shared_tree_is_a_population_of_them(toy, same):
    first, population = shifted(toy, (0.3, 0.2), 0.0)
    second, wanted = shifted(toy, (0.1, 0.4), 2.0)
    before = jax.device_get(steps_of(first, population))
    other = population.using(wanted.members, {"shift": np.float32(2.0)})
    same(steps_of(second, other), steps_of(second, wanted))
    same(steps_of(first, population), before)
    half, _ = steps_of(first, population.using(shared={"shift": np.float32(2.0)}))
    same(half, steps_of(first, shifted(toy, (0.3, 0.2), 2.0)[1])[0])
    assert population._steps._cache_size() == 1


def test_using_refuses_what_would_be_another_program(toy):
    population = shifted(toy, (0.3, 0.2), 0.0)[1]
    three = shifted(toy, (0.3, 0.2, 0.1), 0.0)[1].members
    with pytest.raises(ValueError, match=r"members/.* is .* \(3,\), not .* \(2,\)"):
        population.using(three)
    with pytest.raises(ValueError, match=r"shared/shift is float32 \(2,\), not float32 \(\)"):
        population.using(shared={"shift": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="steps"):
        population.using(population.members | {"steps": np.ones(2, np.int32)})
