"""Devices: one mesh with the axes member, data, fsdp and model, and where each array lives."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lmnoise import tree
from lmnoise.axes import AXES, ROWS
from lmnoise.errors import UserError
from lmnoise.training.hardware import usable_bytes

# Parameters over `fsdp` (gathered for their use) and `model` (tensor parallelism) by path; a spec
# is right-aligned, so it serves a leaf with or without the leading axes of members and stacked
# layers. Optimizer moments, starts and frozen entries end in the same names. Vectors as long as
# the width or a head are replicated: they are small, and used whole on every device.
TRANSFORMER_SHARDING: tree.Table = (
    (r".*/(query|key|value|up|gate)/kernel", PartitionSpec("fsdp", "model")),
    (r".*/(query|key|value|up|gate)/bias", PartitionSpec("model")),
    (r".*/(output|down)/kernel", PartitionSpec("model", "fsdp")),
    (r"(.*/)?tokens", PartitionSpec("model", "fsdp")),
    (r"(.*/)?positions", PartitionSpec(None, "fsdp")),
    (r"(.*/)?head/kernel", PartitionSpec("fsdp", "model")),
    (r".*", PartitionSpec()),
)


def make_mesh(
    member: int = 1,
    data: int = 0,
    fsdp: int = 1,
    model: int = 1,
    devices: Sequence[jax.Device] | None = None,
    needs: "Needs | None" = None,
) -> Mesh:
    """A mesh over the devices (default: all).

    With the needs of a run sizes of 0 are chosen for it, see `choose_sizes`; without, only
    `data` may be 0 and takes what the other axes leave.

    The devices of a host follow each other, so that it holds rows that do (see `part_of_batch`).
    The order of `jax.make_mesh` scatters them on a 2D torus of TPUs, and most sizes do not exist
    for it on a 3D one. The axes are `Auto`: the compiler propagates shardings from the arguments.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (member, data, fsdp, model), strict=True))
    if needs is not None:
        sizes = choose_sizes(
            sizes,
            needs,
            devices=len(devices),
            usable_bytes=usable_bytes(devices),
            hosts=len({device.process_index for device in devices}),
        )
    for name, size in sizes.items():
        if size < (least := 0 if name == "data" else 1):
            raise UserError(f"config.mesh.{name} is {size}: it must be at least {least}")
    sizes["data"] = sizes["data"] or max(1, len(devices) // (member * fsdp * model))
    _refuse_other_product(sizes, len(devices))
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(
        np.array(ordered).reshape(tuple(sizes.values())),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of devices that need not exist."""
    return AbstractMesh(
        tuple(sizes[name] for name in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def _refuse_other_product(sizes: Mapping[str, int], count: int) -> None:
    """Raises a UserError unless the sizes multiply to the number of devices."""
    if math.prod(sizes.values()) != count:
        asked = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"config.mesh asks for {asked} devices but there are {count}: set the sizes so that "
            f"their product is {count}"
        )


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a run asks of a mesh.

    Attributes:
      members: of the population.
      rows: of a micro-batch.
      heads: a number that `model` must divide, so that each device has whole heads.
      bytes: memory that a device needs on a mesh of given sizes, by what takes it.
    """

    members: int
    rows: int
    heads: int = 1
    bytes: Callable[[Mapping[str, int]], Mapping[str, float]] = lambda sizes: {}


def choose_sizes(
    given: Mapping[str, int],
    needs: Needs,
    *,
    devices: int,
    usable_bytes: float | None = None,
    hosts: int = 1,
) -> dict[str, int]:
    """Sizes of the mesh's axes: those given, and in place of zeros the best for the run.

    Of all meshes that use every device and divide members, rows and heads: the largest `member`,
    which needs no communication; then the smallest `model`, which needs the most, so 1 unless
    there are more devices than rows; then the smallest `fsdp` with which the run fits in memory
    (the largest if it never does, 1 if the memory is not known); the rest is `data`. Each host
    must hold rows of a batch that follow each other.

    Args:
      given: size by axis, 0 for one to choose.
      needs: what the run asks for.
      devices: of all hosts, equally many each.
      usable_bytes: memory of one device that may be planned for; None if it is not known.

    Raises:
      UserError: no mesh of this many devices suits.
    """
    for name in AXES:
        if given[name] < 0:
            raise UserError(f"config.mesh.{name} is {given[name]}: it must be at least 0")

    fixed = math.prod(size or 1 for size in given.values())
    if devices % fixed or (fixed != devices and 0 not in given.values()):
        _refuse_other_product({n: given[n] or 1 for n in AXES}, devices)
    if given["data"] and given["fsdp"]:
        _check_rows(given, needs.rows, "config.train.batch_size / accumulate")
    found = _dividing(given, needs, devices)
    found.sort(key=lambda sizes: (-sizes["member"], sizes["model"], sizes["fsdp"]))
    following = [sizes for sizes in found if _follow(sizes, devices // hosts)]
    if not following:
        _refuse_all(needs, devices, hosts, found)
    for sizes in following:
        if usable_bytes is None or sum(needs.bytes(sizes).values()) <= usable_bytes:
            return sizes
    return min(following, key=lambda s: (-s["member"], s["model"], -s["fsdp"]))


def _dividing(given: Mapping[str, int], needs: Needs, devices: int) -> list[dict[str, int]]:
    """All sizes that keep those given, use every device and divide members, rows and heads."""
    limits = {"member": needs.members, "data": needs.rows, "fsdp": needs.rows, "model": needs.heads}
    choices = [
        [given[name]] if given[name] else [d for d in _divisors(devices) if limits[name] % d == 0]
        for name in AXES
    ]
    return [
        sizes
        for sizes in (dict(zip(AXES, c, strict=True)) for c in itertools.product(*choices))
        if math.prod(sizes.values()) == devices
        and needs.rows % (sizes["data"] * sizes["fsdp"]) == 0
    ]


def _refuse_all(needs: Needs, devices: int, hosts: int, found: list[dict[str, int]]) -> None:
    """Raises a UserError: no mesh suits; because of the hosts if any divides all."""
    keys = (
        "set config.train.batch_size and accumulate so that their quotient is a multiple of "
        f"{devices}, or use another number of devices"
    )
    if found:
        asked = " x ".join(f"{name} {size}" for name, size in found[0].items())
        raise UserError(
            f"no mesh of {devices} devices gives each of {hosts} hosts of {devices // hosts} rows "
            f"of a batch that follow each other ({asked} does not, for one): {keys}"
        )
    raise UserError(
        f"no mesh of {devices} devices divides {needs.members} members, {needs.rows} rows "
        f"(config.train.batch_size / accumulate) and {needs.heads} heads: {keys}"
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _follow(sizes: Mapping[str, int], local: int) -> bool:
    """Whether hosts of `local` devices each hold rows of a batch that follow each other."""
    if local % sizes["model"]:
        return sizes["model"] % local == 0
    rows, own = sizes["data"] * sizes["fsdp"], local // sizes["model"]
    return rows % own == 0 or own % rows == 0


def check_divisible(mesh: Mesh, *, members: int, batch_size: int, accumulate: int = 1) -> None:
    """Raises a UserError unless members and micro-batches divide evenly over the mesh."""
    if members % mesh.shape["member"]:
        raise UserError(
            f"the number of members is {members}, which the {mesh.shape['member']} devices of "
            "config.mesh.member do not divide: change it or them"
        )
    quotient = " / accumulate" if accumulate > 1 else ""
    _check_rows(mesh.shape, batch_size // accumulate, f"config.train.batch_size{quotient}")


def _check_rows(sizes: Mapping[str, int], rows: int, key: str) -> None:
    """Raises a UserError unless the axes of rows divide them."""
    if rows % (count := math.prod(sizes[axis] for axis in ROWS)):
        names = " and ".join(f"config.mesh.{axis}" for axis in ROWS)
        raise UserError(
            f"{key} is {rows}, which the {count} devices of {names} do not divide: change it or "
            "them"
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
    where = NamedSharding(mesh, PartitionSpec(ROWS))
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

    `batch_axis` goes over `data` and `fsdp`; without one the leaf is the same everywhere.
    """
    # With several processes JAX does not count this transfer among the explicit ones.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(batch_sharding(mesh, batch_axis), leaf)


def put_whole(mesh: Mesh, leaf: np.ndarray, *, batch_axis: int) -> jax.Array:
    """Places a batch that every process has as a whole; `batch_axis` goes over its rows' axes."""
    where = batch_sharding(mesh, batch_axis)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(where, leaf, leaf.shape)


def batch_sharding(mesh: Mesh, batch_axis: int | None) -> NamedSharding:
    """Axis `batch_axis` over the axes of rows; the same everywhere without one."""
    axes = () if batch_axis is None else (None,) * batch_axis + (ROWS,)
    return NamedSharding(mesh, PartitionSpec(*axes))
