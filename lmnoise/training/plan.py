"""What a run will take, before anything is compiled: memory of each device, FLOPs and time.

The persistent part is exact, from the shapes and shardings of the states. What a step takes on
top is an estimate: the gradient, and what the model says of its activations; the compiler may do
better, by fusing, or worse, by copying.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from lmnoise.training import mesh as meshes
from lmnoise.training.hardware import USABLE, Chip
from lmnoise.training.loop import Cost
from lmnoise.training.population import batch_shardings, group_in_place, place
from lmnoise.training.step import TrainState


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree; of each device's part where they have a sharding."""

    def size(leaf):
        where = getattr(leaf, "sharding", None)
        shape = where.shard_shape(leaf.shape) if where is not None else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a mesh, in numbers.

    Attributes:
      sizes: of the mesh's axes.
      parameters: of one member.
      members: of the population.
      cost: of one step of all members.
      steps: of the run.
      bytes: on each device, by what takes them.
      chip: kind of the devices; None if it is not known.
      mfu: the share of the chip's peak that the run is expected to reach.
    """

    sizes: dict[str, int]
    parameters: int
    members: int
    cost: Cost
    steps: int
    bytes: dict[str, float]
    chip: Chip | None
    mfu: float

    @property
    def devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def argument_bytes(self) -> float:
        """What lies on a device between the steps, exactly."""
        return sum(self.bytes[name] for name in ("parameters", "optimizer", "batches"))

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())

    @property
    def tokens_per_second(self) -> float | None:
        if self.chip is None:
            return None
        return self.mfu * self.chip.flops * self.devices / self.cost.flops * self.cost.tokens

    def warnings(self) -> list[str]:
        """What stands against the run, with the key to change."""
        found = []
        if self.chip is not None and self.total_bytes > self.chip.usable_bytes:
            keys = ["config.train.accumulate up", "config.model.remat to full"]
            if self.members > self.sizes["member"]:
                keys.append("config.train.members_at_once down")
            if self.sizes["data"] > 1:
                keys.append("config.mesh.fsdp up")
            if self.total_bytes <= USABLE * self.chip.bytes:
                keys.append(f"XLA_CLIENT_MEM_FRACTION up to {USABLE}")
            found.append(
                f"does not fit into the {self.chip.usable_bytes / 1e9:.0f} GB that may be used of "
                f"the {self.chip.bytes / 1e9:.0f} GB of a device: turn {', or '.join(keys)}, or "
                "take more devices"
            )
        return found

    def text(self) -> str:
        """The plan as lines for a terminal."""
        mesh = " x ".join(f"{name} {size}" for name, size in self.sizes.items())
        chips = f" ({self.chip.name})" if self.chip else ""
        rows = [
            ("parameters", f"{self.parameters:,} x {self.members} members"),
            ("devices", f"{self.devices}{chips}: {mesh}"),
            *((f"  {name}", f"{size / 1e9:.3f} GB") for name, size in self.bytes.items()),
            ("a device holds", f"about {self.total_bytes / 1e9:.3f} GB" + self._of_memory()),
            ("a step", f"{self.cost.tokens:,} tokens, {self.cost.flops:.3g} FLOPs"),
        ]
        if self.tokens_per_second is None:
            rows.append(("speed", "not known of this machine: name a chip with --dry_run_chip"))
        else:
            seconds = self.steps * self.cost.tokens / self.tokens_per_second
            rows += [
                (f"at MFU {self.mfu:.0%}", f"{self.tokens_per_second:,.0f} tokens/s"),
                (f"{self.steps:,} steps", f"{_duration(seconds)} without evaluation and saving"),
            ]
        lines = [f"{name:<18}{value}" for name, value in rows]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings()])

    def _of_memory(self) -> str:
        if self.chip is None:
            return ""
        return f", {self.total_bytes / self.chip.bytes:.0%} of {self.chip.bytes / 1e9:.0f} GB"


def device_bytes(
    devices: Mesh | AbstractMesh,
    *,
    states: TrainState,
    members: dict[str, Any],
    batches: dict[str, jax.ShapeDtypeStruct],
    running: Callable[..., dict[str, float]],
    rows: int,
    accumulate: int,
    members_at_once: int,
) -> dict[str, float]:
    """Bytes that a run takes on each device of a mesh, by what takes them.

    Args:
      states, members, batches: shapes: of the population's states and hyper-parameters, (M, ...),
        and of the batches of one dispatch, whole.
      running: `running(rows=, fsdp=, parts=)` is what a running member takes on a device besides
        its gradient, by what takes it.
      rows: of a step.
      accumulate: micro-batches a step.
      members_at_once: on a device; 0 for all that it has.
    """
    sizes, table = devices.shape, meshes.TRANSFORMER_SHARDING
    states = place(states, meshes.state_shardings(devices, states, table))
    members = place(members, meshes.state_shardings(devices, members, table))
    params, local = tree_bytes(states.params), -(-members["seed"].shape[0] // sizes["member"])
    at_once = group_in_place(members_at_once or local, local)
    of_member = running(
        rows=-(-rows // (accumulate * sizes["data"] * sizes["fsdp"])),
        fsdp=sizes["fsdp"],
        parts=sizes["model"],
    )
    return {
        "parameters": params,
        "optimizer": tree_bytes((states.step, states.opt_state)),
        "batches": tree_bytes((place(batches, batch_shardings(devices, batches)), members)),
        # Sums over micro-batches stand beside the gradient of the next.
        "gradients": at_once / local * params * (2 if accumulate > 1 else 1),
        **{name: at_once * size for name, size in of_member.items()},
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
