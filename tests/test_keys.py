"""Keys depend on what they are for, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lmnoise import keys, tree

KEY = jax.random.key(0)
ITEM = st.text(max_size=8) | st.integers(0, 2**31 - 1)


def data(key):
    return tuple(np.ravel(jax.random.key_data(key)).tolist())


def draws(params):
    return tree.map_named(
        lambda name, x: jax.random.bits(keys.fold(KEY, "noise", name), x.shape), params
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(ITEM, max_size=3), st.lists(ITEM, max_size=3))
def test_fold_is_a_chain(first, second):
    chained = keys.fold(keys.fold(KEY, *first), *second)
    assert data(keys.fold(KEY, *first, *second)) == data(chained)


def test_keys_of_many_names_are_those_of_each():
    names = ["a", "blocks/3/mlp/up/kernel", "é"]
    assert [data(k) for k in keys.name_keys(KEY, names)] == [data(keys.fold(KEY, n)) for n in names]


def test_different_uses_get_different_keys():
    uses = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), (0,), (1,), (0, 1), (1, 0), ("a", 0)]
    assert len({data(keys.fold(KEY, *use)) for use in uses}) == len(uses)
    assert data(keys.fold(jax.random.key(1), "a")) != data(keys.fold(KEY, "a"))


def test_strings_hash_the_same_in_every_process():
    # CRC-32 of "123456789" is the check value of its specification; `hash` would be salted.
    assert data(keys.fold(KEY, "123456789")) == data(jax.random.fold_in(KEY, 0xCBF43926))


def test_traced_integers_fold_as_static_ones():
    traced = jax.jit(lambda step: keys.fold(KEY, "step", step))(jnp.int32(7))
    assert data(traced) == data(keys.fold(KEY, "step", 7))


def test_draws_do_not_depend_on_the_other_leaves():
    params = {name: jnp.zeros((3, 4)) for name in "abcde"}
    all_of_them = draws(params)
    for name, leaf in reversed(params.items()):
        np.testing.assert_array_equal(draws({name: leaf})[name], all_of_them[name])


def test_draws_do_not_depend_on_sharding():
    params = {"kernel": jnp.zeros((16, 24)), "bias": jnp.zeros(24)}
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    shardings = {
        "kernel": NamedSharding(mesh, PartitionSpec("data", "model")),
        "bias": NamedSharding(mesh, PartitionSpec("model")),
    }
    sharded = jax.jit(draws, out_shardings=shardings)(params)
    assert len(sharded["kernel"].addressable_shards) == 8
    jax.tree.map(np.testing.assert_array_equal, sharded, draws(params))


@given(st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_row_keys_depend_on_the_row_alone(rows):
    together = keys.row_keys(KEY, jnp.asarray(rows, jnp.int32))
    for row, key in zip(rows, together, strict=True):
        assert data(key) == data(keys.fold(KEY, row))
