"""Peak rates and memory of known accelerators: what a speed is held against, and a run fits in."""

import dataclasses

import jax

from lmnoise.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them, from the vendors' data sheets.

    Attributes:
      name: part of the device kind, in lower case.
      flops: dense bf16 FLOP/s.
      bytes: memory.
      host: how many a host has, as a rule.
    """

    name: str
    flops: float
    bytes: float
    host: int


# The most specific name first.
CHIPS = (
    Chip("h200", 989e12, 141e9, 8),
    Chip("h100 pcie", 756e12, 80e9, 8),
    Chip("h100", 989e12, 80e9, 8),
    Chip("a100-sxm4-40gb", 312e12, 40e9, 8),
    Chip("a100-pcie-40gb", 312e12, 40e9, 8),
    Chip("a100", 312e12, 80e9, 8),
    Chip("l40", 362e12, 48e9, 8),
    Chip("l4", 121e12, 24e9, 8),
    Chip("v100", 125e12, 16e9, 8),
    Chip("tpu7", 1153.5e12, 96e9, 8),  # Two devices a chip.
    Chip("tpu v6e", 918e12, 32e9, 4),
    Chip("tpu v6", 918e12, 32e9, 4),
    Chip("tpu v5p", 459e12, 95e9, 4),
    Chip("tpu v5 lite", 197e12, 16e9, 4),
    Chip("tpu v5e", 197e12, 16e9, 4),
    Chip("tpu v5", 459e12, 95e9, 4),  # How JAX calls v5p.
    Chip("tpu v4", 275e12, 32e9, 4),
    Chip("tpu v3", 61.5e12, 16e9, 8),  # Two devices a chip.
)


def this_chip(device: jax.Device | None = None) -> Chip | None:
    """The kind of a device (default: the first); None for one that is not in the table."""
    kind = (device or jax.devices()[0]).device_kind.lower()
    return next((chip for chip in CHIPS if chip.name in kind), None)


def named_chip(name: str) -> Chip:
    """The chip of this name; a UserError that lists them if there is none."""
    for chip in CHIPS:
        if chip.name == name.lower():
            return chip
    raise UserError(
        f"--dry_run_chip {name!r} is not one of {', '.join(chip.name for chip in CHIPS)}"
    )


def peak_flops() -> float | None:
    """Peak bf16 FLOP/s of all devices together; None for a kind that is not in the table."""
    chip = this_chip()
    return chip.flops * jax.device_count() if chip else None


def device_bytes(device: jax.Device) -> float | None:
    """Memory of a device, as it says itself or from the table; None if neither knows."""
    stats = device.memory_stats() or {} if device.process_index == jax.process_index() else {}
    chip = this_chip(device)
    return stats.get("bytes_limit") or (chip.bytes if chip else None)
