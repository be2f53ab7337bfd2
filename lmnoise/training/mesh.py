"""Devices: one mesh with the axes member, data and model, and where each array lives on it."""

import os
from collections.abc import Sequence
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


def join_processes() -> None:
    """Joins the processes of one run if the environment names a coordinator.

    Reads JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID, and does
    nothing without the first. Call it before anything that starts JAX's devices.

    Raises:
      UserError: one of the other two is missing or no number.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        return
    numbers = {}
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        try:
            numbers[name] = int(os.environ[name])
        except (KeyError, ValueError):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, so {name} must be a number: set it, or unset "
                "JAX_COORDINATOR_ADDRESS to run one process"
            ) from None
    jax.distributed.initialize(
        num_processes=numbers["JAX_NUM_PROCESSES"], process_id=numbers["JAX_PROCESS_ID"]
    )


def make_mesh(
    member: int = 1, data: int = 0, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over the devices (default: all); `data` 0 takes what the other two axes leave.

    The axes are `Auto`: the compiler propagates shardings from the arguments.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size, least in (("member", member, 1), ("data", data, 0), ("model", model, 1)):
        if size < least:
            raise UserError(f"config.mesh.{name} is {size}: it must be at least {least}")
    data = data or max(1, count // (member * model))
    if member * data * model != count:
        raise UserError(
            f"config.mesh asks for member {member} x data {data} x model {model} devices but "
            f"there are {count}: set the three sizes so that their product is {count}"
        )
    return jax.make_mesh(
        (member, data, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


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
    return _by_table(mesh, states, table, ("member",))


def parameter_shardings(mesh: Mesh, params: Any, table: tree.Table = TRANSFORMER_SHARDING) -> Any:
    """Shardings by the table of what all members share, so without an axis of members.

    An axis that the mesh does not divide is replicated instead.
    """
    return _by_table(mesh, params, table, ())


def _by_table(mesh: Mesh, leaves: Any, table: tree.Table, leading: tuple[str, ...]) -> Any:
    def sharding(name, leaf):
        free = leaf.ndim - len(leading)
        spec = tuple(tree.lookup(table, name))[:free]
        spec = (*leading, *(None,) * (free - len(spec)), *spec)
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return tree.map_named(sharding, leaves)


def part_of_batch(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(index, count): this process holds part `index` of `count` equal parts of a batch's rows.

    Processes that differ only along the other axes hold the same part.

    Raises:
      UserError: its devices hold rows that do not follow each other.
    """
    where = NamedSharding(mesh, PartitionSpec("data"))
    slices = where.addressable_devices_indices_map((batch_size,)).values()
    ranges = {rows.indices(batch_size)[:2] for (rows,) in slices}
    first, end = min(a for a, _ in ranges), max(b for _, b in ranges)
    if sum(b - a for a, b in ranges) != end - first or first % (end - first):
        raise UserError(
            "the devices of one process hold scattered rows of a batch: change config.mesh so "
            "that its axis data follows the processes"
        )
    return first // (end - first), batch_size // (end - first)


def put_part(mesh: Mesh, leaf: np.ndarray, *, batch_axis: int | None) -> jax.Array:
    """Places a batch of which each process has its part (see `part_of_batch`).

    `batch_axis` goes over `data`; without one the leaf is the same everywhere.
    """
    # With several processes JAX does not count this transfer among the explicit ones.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(_over_data(mesh, batch_axis), leaf)


def put_whole(mesh: Mesh, leaf: np.ndarray, *, batch_axis: int) -> jax.Array:
    """Places a batch that every process has as a whole; `batch_axis` goes over `data`."""
    where = _over_data(mesh, batch_axis)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(where, leaf, leaf.shape)


def _over_data(mesh: Mesh, batch_axis: int | None) -> NamedSharding:
    axes = () if batch_axis is None else (None,) * batch_axis + ("data",)
    return NamedSharding(mesh, PartitionSpec(*axes))
