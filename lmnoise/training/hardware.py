"""Peak rates and memory of known accelerators: what a speed is held against, and a run fits in."""

import dataclasses
import os
from collections.abc import Sequence

import jax

from lmnoise.errors import UserError

# The share of a device's memory that may be planned for: the allocator cannot use every gap.
USABLE = 0.9


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

    @property
    def usable_bytes(self) -> float:
        """Memory that may be planned for.

        Of a GPU JAX takes three quarters, or what XLA_CLIENT_MEM_FRACTION says.
        """
        if "tpu" in self.name:
            return USABLE * self.bytes
        names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new and old
        share = next((os.environ[name] for name in names if os.environ.get(name)), "0.75")
        try:
            return min(USABLE, float(share)) * self.bytes
        except ValueError as error:
            raise UserError(f"{names[0]} must be a number, not {share!r}") from error


# The most specific name first. No V100: it has no bf16.
CHIPS = (
    Chip("gh200 144g", 989e12, 144e9, 1),
    Chip("gh200", 989e12, 96e9, 1),
    Chip("h200 nvl", 835e12, 141e9, 8),
    Chip("h200", 989e12, 141e9, 8),
    Chip("h100 nvl", 835e12, 94e9, 8),
    Chip("h100 pcie", 756e12, 80e9, 8),
    Chip("h100", 989e12, 80e9, 8),
    Chip("a100-sxm4-40gb", 312e12, 40e9, 8),
    Chip("a100-pcie-40gb", 312e12, 40e9, 8),
    Chip("a100", 312e12, 80e9, 8),
    Chip("l40s", 362e12, 48e9, 8),
    Chip("l40", 181e12, 48e9, 8),
    Chip("l4", 121e12, 24e9, 8),
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


def usable_bytes(devices: Sequence[jax.Device]) -> float | None:
    """Memory of each of the devices that may be planned for; None if it is not known.

    Every process asks a device of its own, so that all of the same hardware find the same.
    """
    own = [d for d in devices if d.process_index == jax.process_index()]
    limit = (own[0].memory_stats() or {}).get("bytes_limit") if own else None
    chip = this_chip(devices[0])
    if chip is None:
        return limit and USABLE * limit
    return min(chip.usable_bytes, limit) if limit else chip.usable_bytes
