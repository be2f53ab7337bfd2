"""Names for the leaves of a pytree, and tables of patterns that select among them.

One kind of table serves learning rates, weight decay, freezing, sharding and perturbation: a
sequence of `(regular expression, value)`. The first pattern that matches the whole name of a
leaf gives its value; a leaf that no pattern matches is an error, so that a misspelt pattern
cannot silently select nothing.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

type Table = Sequence[tuple[str, Any]]


def path_name(path: Iterable[Any]) -> str:
    """The name of a leaf, such as `blocks/3/attention/query/kernel`, from its key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function also gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """All `(name, leaf)` pairs in the tree's own order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def lookup(table: Table, name: str) -> Any:
    """The value of the first pattern that matches the whole of `name`.

    Raises:
      KeyError: no pattern matches; the message names the leaf.
    """
    for pattern, value in table:
        if re.fullmatch(pattern, name):
            return value
    patterns = ", ".join(repr(pattern) for pattern, _ in table)
    raise KeyError(f"no pattern of the table ({patterns}) matches the leaf {name!r}")


def select(table: Table, tree: Any) -> Any:
    """A tree of the same structure with each leaf's value from the table.

    Raises:
      KeyError: a leaf is matched by no pattern.
    """
    return map_named(lambda name, _: lookup(table, name), tree)
