"""Meshes: how they are chosen, what lies where, and that no number depends on them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from lmnoise import tree
from lmnoise.axes import AXES
from lmnoise.data.corruption import Corruption
from lmnoise.errors import UserError
from lmnoise.models import attention
from lmnoise.models.transformer import LanguageModel, gpt2, llama
from lmnoise.training import mesh as meshes
from lmnoise.training.mesh import Needs, choose_sizes
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays

CHOSEN = dict(member=0, data=0, fsdp=0, model=0)


def sizes(member=1, data=1, fsdp=1, model=1):
    return dict(member=member, data=data, fsdp=fsdp, model=model)


# ---- choice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "devices", "memory", "wanted"),
    [
        (Needs(1, 8), 1, None, sizes()),
        (Needs(16, 480, 12), 128, 95e9, sizes(member=16, data=8)),
        (Needs(6, 64), 8, None, sizes(member=2, data=4)),
        (Needs(1, 256, 8, lambda s: {"all": 80 / s["fsdp"]}), 256, 30, sizes(data=64, fsdp=4)),
        (Needs(1, 256, 8, lambda s: {"all": 800}), 256, 30, sizes(fsdp=256)),  # never fits
        (Needs(1, 64, 8), 256, None, sizes(data=64, model=4)),  # more devices than rows
        (Needs(3, 4, 6), 8, None, sizes(data=4, model=2)),
    ],
)
def test_choice(needs, devices, memory, wanted):
    assert choose_sizes(CHOSEN, needs, devices=devices, usable_bytes=memory) == wanted


@given(
    members=st.integers(1, 24),
    rows=st.integers(1, 64),
    heads=st.integers(1, 16),
    devices=st.integers(1, 64),
    fixed=st.fixed_dictionaries({name: st.sampled_from([0, 0, 1, 2, 4]) for name in AXES}),
)
def test_what_is_chosen_divides_and_keeps_what_is_given(members, rows, heads, devices, fixed):
    needs = Needs(members, rows, heads)
    try:
        found = choose_sizes(fixed, needs, devices=devices)
    except UserError:
        return
    assert math.prod(found.values()) == devices
    assert all(found[name] == size for name, size in fixed.items() if size)
    assert fixed["member"] or members % found["member"] == 0
    assert fixed["model"] or heads % found["model"] == 0
    assert rows % (found["data"] * found["fsdp"]) == 0


def test_hosts_hold_rows_that_follow_each_other():
    assert choose_sizes(CHOSEN, Needs(6, 4), devices=12, hosts=2)["member"] == 6
    # 3 x 4 rows over 2 hosts of 6 would give each one and a half members.
    assert choose_sizes(CHOSEN, Needs(3, 4), devices=12, hosts=1)["member"] == 3
    with pytest.raises(UserError, match=r"no mesh of 12 .* each of 2 hosts of 6 rows .*member 3"):
        choose_sizes(CHOSEN, Needs(3, 4), devices=12, hosts=2)


@pytest.mark.parametrize(
    ("fixed", "needs", "words"),
    [
        (sizes(member=3), Needs(3, 8), "member 3 x data 1 x fsdp 1 x model 1 .* product is 8"),
        (sizes(member=2, data=2), Needs(2, 8), "product is 8"),
        (CHOSEN, Needs(1, 7), r"no mesh of 8 devices .* config\.train\.batch_size"),
        (CHOSEN | {"data": 4, "fsdp": 2}, Needs(1, 2), "accumulate is 2, which the 8 devices"),
        (CHOSEN | {"fsdp": -1}, Needs(1, 8), r"config\.mesh\.fsdp is -1"),
    ],
)
def test_impossible_meshes_are_user_errors(fixed, needs, words):
    with pytest.raises(UserError, match=words):
        meshes.make_mesh(**fixed, needs=needs)


def test_without_needs_data_takes_what_is_left():
    assert dict(meshes.make_mesh(2, 0, 2).shape) == sizes(2, 2, 2)
    assert dict(meshes.make_mesh().shape) == sizes(data=8)
    for given_sizes, words in (
        ((3, 0, 1), "product is 8"),
        ((0, 0, 1), "config.mesh.member is 0"),
        ((1, 0, 1, 0), "config.mesh.model is 0"),
    ):
        with pytest.raises(UserError, match=words):
            meshes.make_mesh(*given_sizes)


def test_members_and_batch_must_divide():
    mesh = meshes.make_mesh(2, 2, 2)
    meshes.check_divisible(mesh, members=4, batch_size=8)
    with pytest.raises(UserError, match="number of members is 3"):
        meshes.check_divisible(mesh, members=3, batch_size=8)
    with pytest.raises(UserError, match=r"config\.train\.batch_size is 6.*config\.mesh\.fsdp"):
        meshes.check_divisible(mesh, members=2, batch_size=6)
    with pytest.raises(UserError, match="batch_size / accumulate is 2, which the 4 devices"):
        meshes.check_divisible(mesh, members=2, batch_size=8, accumulate=4)


def test_one_process_holds_the_whole_batch():
    for shape in ((1, 8), (8, 1), (2, 2, 2), (1, 1, 2, 4)):
        assert meshes.part_of_batch(meshes.make_mesh(*shape), 8) == (0, 1)


# ---- where leaves lie ---------------------------------------------------------------------------

LENGTH, ROWS, VOCAB, WIDTH, MLP = 16, 8, 64, 16, 48
NEW = dict(query_key_norm="whole", qkv_bias=True, norm_position="both", tied=False)


def make_model(layout, **fields):
    shape = dict(vocab_size=VOCAB, context=LENGTH, layers=2, width=WIDTH, mlp_width=MLP)
    family = llama if fields else gpt2
    groups = dict(kv_heads=4) if fields else {}
    return LanguageModel(
        family(**shape, **groups, heads=4, layers_as=layout, logits_chunk=32, **fields)
    )


def make_population(model, mesh, members=1, **options):
    kinds = dict(rate=0.3, learning_rate=0.05, weight_decay=0.1, kind=0)
    return Population(
        init=model.init,
        loss=model.loss,
        transform=Corruption(VOCAB, ("uniform",), budget="clean", extra_rows=ROWS),
        **{"optimizer": OptimizerConfig(steps=8, algorithm="sgd", momentum=0.9)} | options,
        members=member_arrays([kinds | {"seed": s, "stream": 0} for s in range(members)]),
        mesh=mesh,
    )


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
@pytest.mark.parametrize("fields", [{}, NEW], ids=["gpt2", "newer"])
def test_every_matrix_is_split_over_both_axes(layout, fields):
    mesh = meshes.make_mesh(1, 2, 2, 2)
    optimizer = OptimizerConfig(steps=8, decay_to="start")
    population = make_population(make_model(layout, **fields), mesh, optimizer=optimizer)
    own = {"fsdp", "model"}
    for name, leaf in tree.named_leaves(population.abstract()):
        names, end = set(leaf.sharding.spec) - {None, "member"}, name.split("/")[-2:]
        if end[-1] in ("kernel", "tokens"):
            assert names == own, name
        elif end[-1] == "positions":
            assert names == {"fsdp"}, name
        elif end[-1] == "bias" and end[0] in ("query", "key", "value", "up", "gate"):
            assert names == {"model"}, name
        else:  # norms, biases of the width, counts
            assert names == set(), name
            assert leaf.size <= 2 * MLP, name
    specs = {n: s.spec for n, s in tree.named_leaves(population.shardings)}
    for name, spec in specs.items():
        for moment in ("/mu/", "/nu/", "/inner_state/params/"):
            if moment in name:
                assert spec == specs["params/" + name.split(moment)[1]], name


def test_specs_align_to_the_right_and_what_does_not_divide_is_whole():
    mesh = meshes.make_mesh(1, 1, 1, 8)
    table = ((r".*", PartitionSpec("model")),)
    leaf = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    shardings = meshes.state_shardings(mesh, {"a": leaf, "b": leaf.update(shape=(3, 16))}, table)
    assert shardings["a"].spec == PartitionSpec("member", None)
    assert shardings["b"].spec == PartitionSpec("member", "model")


# ---- numbers ------------------------------------------------------------------------------------


def host_batch(index, rows=ROWS):
    tokens = np.random.default_rng(index).integers(0, VOCAB, (1, rows, LENGTH + 1))
    return {"tokens": tokens.astype(np.int32), "index": np.int32(index)}


def given_params(model):
    random = np.random.default_rng(0)
    draw = lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def trained(model, population):
    """Losses and states of two steps of SGD, whose states are sums of gradients."""
    states = population.start(given_params(model))
    return jax.device_get(
        population.steps(states, population.stage([host_batch(k) for k in range(2)]))
    )


@pytest.mark.parametrize(
    ("layout", "shape", "accumulate"),
    [("scan", (1, 2, 2, 2), 2), ("unrolled", (2, 1, 2, 2), 1)],
    ids=str,
)
def test_losses_and_gradients_are_those_of_one_device(layout, shape, accumulate, capfd):
    model, options = make_model(layout, **NEW), dict(members=2, accumulate=accumulate)
    one = meshes.make_mesh(devices=jax.devices()[:1])
    wanted = trained(model, make_population(model, one, **options))
    found = trained(model, make_population(model, meshes.make_mesh(*shape), **options))
    for (name, a), b in zip(tree.named_leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
    assert "rematerialization" not in capfd.readouterr().err  # that the partitioner gave up


def test_fsdp_divides_memory_and_gathers_parameters_not_activations():
    rows = 64
    model = make_model("scan", **NEW)
    batch = {
        "tokens": jax.ShapeDtypeStruct((1, 1, rows, LENGTH + 1), np.int32),
        "index": jax.ShapeDtypeStruct((1,), np.int32),
    }
    memory = {}
    for fsdp in (1, 8):
        mesh = meshes.make_mesh(fsdp=fsdp, data=1, devices=jax.devices()[:fsdp])
        compiled = make_population(model, mesh, optimizer=OptimizerConfig(steps=8)).lower(batch)
        compiled = compiled.compile()
        memory[fsdp] = compiled.memory_analysis()
    assert memory[8].argument_size_in_bytes < memory[1].argument_size_in_bytes / 6
    assert memory[8].temp_size_in_bytes < memory[1].temp_size_in_bytes / 3
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    sizes_gathered = {math.prod(map(int, shape.split(","))) for shape in gathered}
    # Layers' kernels one at a time, and the tables of tokens; never rows times positions.
    assert sizes_gathered <= {WIDTH * WIDTH, WIDTH * MLP, WIDTH * VOCAB}
    assert len(gathered) >= 8
    assert not re.search(r"all-to-all\(", compiled.as_text())


@pytest.mark.parametrize("groups", [4, 1])
def test_splash_on_a_mesh_is_plain_attention(groups):
    """Rows over data and fsdp, heads over model where they divide; members over their own axis."""
    mesh, (members, rows, length, width) = meshes.make_mesh(2, 1, 2, 2), (2, 2, 128, 32)
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (4, groups, groups)
    q, k, v = (
        jax.random.normal(key, (members, rows, length, n, width)) * 0.3
        for key, n in zip(keys, heads, strict=True)
    )

    def value_and_gradient(name, mesh=None):
        def loss(*operands):
            of_member = lambda *x: jnp.square(attention.VARIANTS[name](*x)).sum()  # noqa: E731
            return jax.vmap(of_member, spmd_axis_name="member")(*operands).sum()

        def both(*operands):
            if mesh is None:
                return jax.value_and_grad(loss, (0, 1, 2))(*operands)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return jax.value_and_grad(loss, (0, 1, 2))(*operands)

        return both

    where = jax.NamedSharding(mesh, PartitionSpec("member", ("data", "fsdp")))
    on_mesh = jax.jit(value_and_gradient("splash_interpreted", mesh))
    found = on_mesh(*jax.device_put((q, k, v), where))
    wanted = jax.jit(value_and_gradient("plain"))(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
