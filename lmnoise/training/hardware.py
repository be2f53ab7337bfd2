"""Peak rates of known accelerators, so that a speed can be held against its peak."""

import jax

# Dense bf16 FLOP/s of one chip, from the vendors' data sheets; the key is part of the device
# kind in lower case, the most specific first.
_PEAKS = (
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l40", 362e12),
    ("l4", 121e12),
    ("v100", 125e12),
    ("tpu7", 2307e12),
    ("tpu v6", 918e12),
    ("tpu v5p", 459e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),  # How JAX calls v5p.
    ("tpu v4", 275e12),
    ("tpu v3", 123e12),
)


def peak_flops() -> float | None:
    """Peak bf16 FLOP/s of all devices together; None for a kind that is not in the table."""
    kind = jax.devices()[0].device_kind.lower()
    for name, peak in _PEAKS:
        if name in kind:
            return peak * jax.device_count()
    return None
