"""Randomness folded from what it is for.

A key is derived from (seed, purpose, leaf name or row), never from the order in which keys were
asked for. The same draw comes out under any sharding, any order of leaves and any number of
hosts, and any step can be redone on its own.
"""

import zlib

import jax


def fold(key: jax.Array, *data: str | int | jax.Array) -> jax.Array:
    """Folds strings and integers into a key, one after the other.

    Args:
      key: a typed PRNG key, shape ().
      *data: strings (hashed with CRC-32) or non-negative integers, static or traced.
    """
    for item in data:
        key = jax.random.fold_in(key, zlib.crc32(item.encode()) if isinstance(item, str) else item)
    return key


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key a row, shape (B,), from the row numbers `rows` (B,) alone."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
