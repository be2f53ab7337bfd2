"""Devices: one mesh with the axes member, data and model, and where each array lives on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmnoise import tree
from lmnoise.errors import UserError

AXES = ("member", "data", "model")

# Tensor parallelism by path; a spec is right-aligned, so it serves a leaf with or without the
# leading axes of members and stacked layers. Optimizer moments end in the same names.
TRANSFORMER_SHARDING: tree.Table = (
    (r".*/(query|key|value|up|gate)/kernel", PartitionSpec(None, "model")),
    (r".*/(query|key|value|up|gate)/bias", PartitionSpec("model")),
    (r".*/(output|down)/kernel", PartitionSpec("model", None)),
    (r"(.*/)?tokens", PartitionSpec("model", None)),
    (r"(.*/)?head/kernel", PartitionSpec(None, "model")),
    (r".*", PartitionSpec()),
)


def make_mesh(member: int = 1, data: int = 0, model: int = 1) -> Mesh:
    """A mesh over all devices; `data` 0 takes what the other two axes leave.

    The axes are `Auto`: the compiler propagates shardings from the arguments.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if data == 0:
        data = max(1, devices // (member * model))
    if member * data * model != devices:
        raise UserError(
            f"config.mesh asks for member {member} x data {data} x model {model} devices but "
            f"there are {devices}: set the three sizes so that their product is {devices}"
        )
    return jax.make_mesh((member, data, model), AXES, axis_types=(AxisType.Auto,) * 3)


def check_divisible(mesh: Mesh, *, members: int, batch_size: int) -> None:
    """Raises a UserError unless members and batch divide evenly over the mesh."""
    for axis, size, key in (
        ("member", members, "the number of members"),
        ("data", batch_size, "config.train.batch_size"),
    ):
        if size % mesh.shape[axis]:
            raise UserError(
                f"{key} is {size}, which {mesh.shape[axis]} devices on the mesh axis {axis!r} do "
                f"not divide: change it or config.mesh.{axis}"
            )


def state_shardings(mesh: Mesh, states: Any, table: tree.Table) -> Any:
    """Shardings of a population's states: axis 0 over `member`, the rest by the table.

    An axis that the mesh does not divide is replicated instead.
    """

    def sharding(name, leaf):
        spec = tuple(tree.lookup(table, name))[: leaf.ndim - 1]
        spec = ("member", *(None,) * (leaf.ndim - 1 - len(spec)), *spec)
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return tree.map_named(sharding, states)


def over_members(mesh: Mesh) -> NamedSharding:
    """Axis 0 over `member`: per-member hyper-parameters and metrics."""
    return NamedSharding(mesh, PartitionSpec("member"))


def put_batch(mesh: Mesh, leaf: np.ndarray, *, batch_axis: int | None) -> jax.Array:
    """Places this process's part of a batch: `batch_axis` over `data`, else replicated."""
    axes = (None,) * (batch_axis or 0) + (("data",) if batch_axis is not None else ())
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_process_local_data(sharding, leaf)
