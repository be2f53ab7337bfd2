"""Names and pattern tables."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmnoise import tree

PARAMS = {"blocks": {0: {"kernel": 1, "bias": 2}, 1: {"kernel": 3, "bias": 4}}, "tokens": 5}


class State(NamedTuple):
    step: int
    moments: list


def test_names():
    assert tree.named_leaves(PARAMS) == [
        ("blocks/0/bias", 2),
        ("blocks/0/kernel", 1),
        ("blocks/1/bias", 4),
        ("blocks/1/kernel", 3),
        ("tokens", 5),
    ]
    # Attributes of named tuples and places in lists.
    state = State(step=7, moments=[{"mu": 8}, {"mu": 9}])
    assert tree.named_leaves(state) == [("step", 7), ("moments/0/mu", 8), ("moments/1/mu", 9)]


def test_map_named_passes_name_and_all_leaves():
    mapped = tree.map_named(lambda name, a, b: (name, a + b), PARAMS, PARAMS)
    assert mapped["blocks"][1]["kernel"] == ("blocks/1/kernel", 6)
    assert mapped["tokens"] == ("tokens", 10)


def test_first_match_wins():
    table = ((r"blocks/0/.*", "first"), (r".*/kernel", "kernel"), (r".*", "rest"))
    assert tree.select(table, PARAMS) == {
        "blocks": {
            0: {"kernel": "first", "bias": "first"},
            1: {"kernel": "kernel", "bias": "rest"},
        },
        "tokens": "rest",
    }


def test_a_pattern_matches_the_whole_name():
    with pytest.raises(KeyError):
        tree.lookup(((r"kernel", 1), (r"blocks/0", 2)), "blocks/0/kernel")


def test_none_is_a_value():
    assert tree.lookup(((r"tokens", None), (r".*", 1.0)), "tokens") is None


def test_unmatched_leaf_is_named():
    with pytest.raises(KeyError, match="'tokens'"):
        tree.select(((r"blocks/.*", 1),), PARAMS)
    with pytest.raises(KeyError, match="'tokens'"):
        tree.lookup((), "tokens")


NAME = st.text("ab/", min_size=1, max_size=4)


@given(NAME, st.lists(st.tuples(NAME, st.integers()), max_size=8))
def test_lookup_of_literal_patterns_is_a_dictionary_of_the_first(name, table):
    first = dict(reversed(table))
    if name in first:
        assert tree.lookup(table, name) == first[name]
    else:
        with pytest.raises(KeyError):
            tree.lookup(table, name)


def test_select_of_abstract_arrays():
    shapes = jax.eval_shape(lambda: {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
    assert tree.select(((r"bias", 0), (r".*", 1)), shapes) == {"kernel": 1, "bias": 0}
