"""The mesh's axes by name, and arrays kept on them: all that a model knows of devices.

Inside a program that runs on a mesh (`jax.sharding.use_abstract_mesh`, which the mapping over
members does) these functions place arrays; without a mesh they leave everything as it is.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

AXES = ("member", "data", "fsdp", "model")
# The rows of a batch lie over both: parameters split over `fsdp` are gathered for their use.
ROWS = ("data", "fsdp")


def shards(*axes: str) -> int:
    """Devices along these axes of the mesh in use; 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in axes)


def keep(x: jax.Array, *axes: str | tuple[str, ...]) -> jax.Array:
    """Keeps the first dimensions of `x` over the mesh axes named for them, and the rest whole.

    A dimension that the devices do not divide is whole too. Without it the compiler may prefer
    to split an activation's features, as the parameters are, and to replicate its rows.
    """
    if shards("data", "fsdp", "model") == 1:
        return x
    groups = [(name,) if isinstance(name, str) else name for name in axes]
    fits = [g if d % shards(*g) == 0 else None for g, d in zip(groups, x.shape, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))


def by_shard(
    function: Callable[..., jax.Array], *operands_BSHK: jax.Array, least_heads: int
) -> jax.Array:
    """`function(*operands)` on each device's own rows (axis 0) and heads (axis 2).

    For kernels that the compiler cannot split. Rows that `data` and `fsdp` do not divide, or
    `least_heads` that `model` does not, are computed whole on every device of the axis.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(*operands_BSHK)
    rows = ROWS if operands_BSHK[0].shape[0] % shards(*ROWS) == 0 else None
    spec = PartitionSpec(rows, None, "model" if least_heads % shards("model") == 0 else None)
    specs = (spec,) * len(operands_BSHK)
    # The replication check does not know Pallas kernels.
    mapped = jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)
    return mapped(*operands_BSHK)
