"""Randomness folded from what it is for.

A key is derived from (seed, purpose, leaf name or row), never from the order in which keys were
asked for. The same draw comes out under any sharding, any order of leaves and any number of
hosts, and any step can be redone on its own.
"""

import zlib
from collections.abc import Sequence

import jax
import numpy as np


def fold(key: jax.Array, *data: str | int | jax.Array) -> jax.Array:
    """Folds strings and integers into a key, one after the other.

    Args:
      key: a typed PRNG key, shape ().
      *data: strings (hashed with CRC-32) or non-negative integers, static or traced.
    """
    for item in data:
        key = jax.random.fold_in(key, _number(item) if isinstance(item, str) else item)
    return key


def name_keys(key: jax.Array, names: Sequence[str]) -> jax.Array:
    """`fold(key, name)` of every name, shape (names,)."""
    return row_keys(key, np.array([_number(name) for name in names], np.uint32))


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key a row, shape (B,), from the row numbers `rows` (B,) alone."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
