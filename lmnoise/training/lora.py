"""Low-rank updates (LoRA, arXiv 2106.09685): `W + a b` with W fixed, one pair a large kernel.

The paper's factor alpha / r is 1 here (alpha = r): the learning rate is searched anyway. The
parameters that are trained are nested dicts like the model's, with `{"a": (..., in, r), "b":
(..., r, out)}` in place of each chosen kernel and without the other leaves. The base is what the
members of a population share, so that a member holds no copy of it:

    population = Population(
        init=lambda key: lora.init(key, base, rank),
        loss=lambda base, low, batch, key: model.loss(lora.merge(base, low), batch, key),
        shared=base, ...)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise import keys, tree

# The large kernels of the blocks.
LORA: tree.Table = ((r"blocks/.*/kernel", True), (r".*", False))


def init(key: jax.Array, base: Any, rank: int, table: tree.Table = LORA) -> Any:
    """Fresh updates, float32: `a` normal of variance 1 / in, `b` zero, so that nothing changes yet.

    A column of `a` depends on the key, the leaf's name and its own number alone: the first r
    columns are the same at every rank.

    Args:
      key: typed PRNG key.
      base: the model's parameters, or their shapes.
      rank: at least 1.
      table: which leaves get an update (True or False); they need two axes or, stacked, more.

    Raises:
      ValueError: the rank is below 1, or no leaf is chosen.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    chosen: dict[tuple[int, ...], list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        if tree.lookup(table, tree.path_name(path)):
            chosen.setdefault(leaf.shape, []).append(path)
    found: dict[Any, Any] = {}
    for (*stacked, wide, out), paths in chosen.items():
        # Leaves of one shape are drawn together: one by one they take minutes to compile.
        own = keys.name_keys(keys.fold(key, "lora"), [tree.path_name(path) for path in paths])
        columns = jax.vmap(lambda k: keys.row_keys(k, np.arange(rank)))(own)
        shape = (*stacked, wide)
        a_LRI = jax.vmap(jax.vmap(lambda k, s=shape: jax.random.normal(k, s)))(columns)
        for path, a_RI in zip(paths, a_LRI, strict=True):
            branch = found
            for part in path:
                branch = branch.setdefault(part.key, {})
            branch["a"] = jnp.moveaxis(a_RI, 0, -1) / wide**0.5
            branch["b"] = jnp.zeros((*stacked, rank, out), jnp.float32)
    if not found:
        raise ValueError(f"table {table!r} chooses no leaf")
    return found


def merge(base: Any, low: Any) -> Any:
    """The parameters of the model with its updates, of the structure, shapes and dtypes of `base`.

    Args:
      base: nested dicts of arrays.
      low: what `init` made of it.
    """
    if not isinstance(base, dict):
        return base + low["a"] @ low["b"]
    return {name: merge(leaf, low[name]) if name in low else leaf for name, leaf in base.items()}


def beyond_rank(low: Any, rank: jax.Array | int) -> Any:
    """Bool arrays like the updates, True for what a member of a smaller rank must not train.

    As a member's `frozen` it makes its update one of that rank, and equal to a run of its own:
    members of several ranks share the population of the largest.

    Args:
      low: what `init` made, or its shapes.
      rank: of the member, at least 1.
    """

    def beyond(name, leaf):
        axis = leaf.ndim - (1 if name.endswith("/a") else 2)
        return np.broadcast_to(
            np.arange(leaf.shape[axis]).reshape(-1, *[1] * (leaf.ndim - 1 - axis)) >= rank,
            leaf.shape,
        )

    return tree.map_named(beyond, low)
