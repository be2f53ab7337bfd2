"""Loss of many variants of one model on held-out text, in one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmnoise.evaluation.language import Source, Sums, document_sums
from lmnoise.training import mesh as meshes
from lmnoise.training.population import automatic_group, map_members
from lmnoise.training.step import Loss


def evaluator(
    change: Callable[[Any, Any, Any], Any],
    loss: Loss,
    sources: Sequence[Source],
    *,
    mesh: Mesh,
    group: int = 0,
) -> Callable[..., dict[str, Sums]]:
    """Builds `evaluate(params, members, extra=None) -> {source name: Sums}`.

    Variant m is `change(params, member_m, extra)`, made inside the program once and scored on
    every batch. `params` and `extra` are shared by all variants, and no more variants exist at a
    time than are in flight: the mesh axis `member` times a group on each of its devices. Members
    (a pytree, every leaf with a leading axis M) come in any number; how many are in one call of
    the program changes no result. `summarise(*sums)` and `member_rows` turn sums into metrics.

    `params` on the host are moved to the devices at every call, so place them before several.

    Args:
      change: a variant of the parameters, or of anything that `loss` takes as its first argument.
      loss: `loss(params, batch, key) -> loss_BS`.
      sources: held-out text, all batches of one shape.
      mesh: devices; rows go over the axes `data` and `fsdp`.
      group: variants at once on a device; 0 picks 1 on CPU and elsewhere as many as fit in the
        memory that is free at the first call.

    Raises:
      ValueError: batches of different shapes, or none.
    """
    shapes = {batch["tokens"].shape for source in sources for batch in source.batches}
    if len(shapes) != 1:
        raise ValueError(f"sources must have batches of one shape, not of {sorted(shapes)}")
    tokens_KBT = np.stack([batch["tokens"] for source in sources for batch in source.batches])
    tokens_KBT = meshes.put_whole(mesh, tokens_KBT, batch_axis=1)
    shards = mesh.shape["member"]

    program = _program(change, loss, mesh)
    found_group = [group]

    def group_of(count, *operands):
        """Members at once on a device, of `count`: a power of two, so that few programs exist."""
        if found_group[0] == 0:
            found_group[0] = _fitting_group(program, shards, *operands)
        return min(found_group[0], 1 << (count - 1).bit_length())

    def evaluate(params: Any, members: Any, extra: Any = None) -> dict[str, Sums]:
        params, extra = (_place(mesh, shared) for shared in (params, extra))
        members = jax.tree.map(np.asarray, members)
        count = len(jax.tree.leaves(members)[0])
        size = shards * group_of(-(-count // shards), params, extra, tokens_KBT, members)
        parts = []
        for start in range(0, count, size):
            # The last call is filled up with the last member.
            own = _take(members, np.minimum(np.arange(start, start + size), count - 1))
            shardings = meshes.state_shardings(mesh, own, meshes.TRANSFORMER_SHARDING)
            placed = jax.device_put(own, shardings)
            found = jax.device_get(program(params, extra, tokens_KBT, placed))
            parts.append(_sums(sources, found[: count - start]))
        return {
            source.name: Sums(np.concatenate([part[i][0] for part in parts]), *parts[0][i][1:])
            for i, source in enumerate(sources)
        }

    return evaluate


def _program(change: Callable[[Any, Any, Any], Any], loss: Loss, mesh: Mesh) -> Any:
    """Compiles `losses(params, extra, tokens_KBT, members) -> losses_MKBS`, for one group."""

    def losses(params, extra, tokens_KBT, members):
        def of_member(member):
            variant = change(params, member, extra)
            return jax.lax.map(
                lambda tokens_BT: loss(variant, {"tokens": tokens_BT}, jax.random.key(0)),
                tokens_KBT,
            )

        at_once = jax.tree.leaves(members)[0].shape[0] // mesh.shape["member"]
        return map_members(of_member, mesh, at_once, members)

    return jax.jit(losses, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _place(mesh: Mesh, shared: Any) -> Any:
    shared = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), shared
    )
    return jax.device_put(shared, meshes.parameter_shardings(mesh, shared))


def _take(members: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], members)


def _fitting_group(program: Any, shards: int, params, extra, tokens_KBT, members) -> int:
    """Members at once, from the memory that the program takes with one on each device."""
    if jax.default_backend() == "cpu":
        return 1
    one = _take(members, np.zeros(shards, int))
    compiled = program.lower(params, extra, tokens_KBT, one).compile()
    member_bytes = compiled.memory_analysis().temp_size_in_bytes
    return automatic_group(2**16, member_bytes)


def _sums(sources: Sequence[Source], losses_MKBS: np.ndarray) -> list[Sums]:
    found, start = [], 0
    for source in sources:
        end = start + len(source.batches)
        sums = document_sums(
            losses_MKBS[:, start:end].swapaxes(0, 1), source.batches, len(source.bytes_per_token)
        )
        found.append(Sums(*sums, source.bytes_per_token))
        start = end
    return found
