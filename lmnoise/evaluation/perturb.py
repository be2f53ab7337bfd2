"""Perturbed parameters: where, what and how much, as a pure function of a key.

Every leaf draws under its own name and every entry keeps its draw whatever the strength, so a
sensitivity curve over strengths follows one direction a seed, and two kinds of perturbation, two
models of one shape, or two masks are compared on the same draws.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmnoise import keys, tree

KINDS = ("gaussian", "zero", "reinitialise", "scale", "quantise")
UNITS = ("weight_rms", "init_std", "absolute")


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """What happens to which tensors; the strength that goes with it is traced.

    Attributes:
      kind: one of
        `gaussian`: `theta + strength * unit * normal`;
        `zero`: a share `strength` of the entries becomes 0, those of which `u < strength` with a
          uniform u an entry, so that a larger share contains a smaller one;
        `reinitialise`: the entries that `zero` would hit are drawn anew, from a normal of the
          mean and the standard deviation of the whole leaf;
        `scale`: `theta * strength`;
        `quantise`: rounding to the nearest of the levels that `strength` bits (1 or more) give,
          see `quantise`.
      unit: of `gaussian`: `weight_rms`, the root mean square of the whole leaf; `init_std`, the
        standard deviation that it was initialised with (0 for norms and biases, so they stay);
        `absolute`, 1.
      table: path patterns to True, False (untouched) or a number that multiplies the strength;
        for `scale` it multiplies `strength - 1`, and `quantise` takes none.
    """

    kind: str
    unit: str = "weight_rms"
    table: tree.Table = ((r".*", True),)

    def __post_init__(self):
        for field, allowed in (("kind", KINDS), ("unit", UNITS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        for pattern, value in self.table:
            if self.kind == "quantise" and not isinstance(value, bool):
                raise ValueError(f"quantise takes True or False for {pattern!r}, not {value!r}")


def perturb(
    params: Any,
    key: jax.Array,
    strength: jax.Array | float,
    perturbation: Perturbation,
    *,
    specs: Any,
    mask: Any = None,
) -> Any:
    """Perturbed parameters, of the same structure, shapes and dtypes.

    A `strength` of 0 (`scale`: 1) changes no bit, and neither does anything change the entries
    that the table or the mask leaves out.

    Args:
      params: nested dicts of arrays, unrolled: a stacked leaf would be one leaf.
      key: typed PRNG key; every leaf folds its name into it.
      strength: scalar, static or traced.
      perturbation: what to do.
      specs: tree of `Spec` as the parameters; only the unit `init_std` reads it.
      mask: tree of bool arrays as the parameters, True where an entry may change; None for all.

    Raises:
      KeyError: a leaf that no pattern of the table matches.
    """
    kind, table = perturbation.kind, perturbation.table
    multipliers = {name: tree.lookup(table, name) for name, _ in tree.named_leaves(params)}
    stds = {name: spec.std for name, spec in tree.named_leaves(specs)}
    touched = {name: leaf for name, leaf in tree.named_leaves(params) if multipliers[name]}
    noise, which = {}, {}
    if kind in ("gaussian", "reinitialise"):
        noise = _draws(jax.random.normal, keys.fold(key, "perturb"), touched)
    if kind in ("zero", "reinitialise"):
        which = _draws(jax.random.uniform, keys.fold(key, "perturb which"), touched)

    def change(name, theta, allowed=None):
        multiplier = multipliers[name]
        if not multiplier:
            return theta
        if kind == "gaussian":
            size = strength * multiplier * _unit(theta, perturbation.unit, stds[name])
            # Adding 0 would turn -0 into +0.
            changed = jnp.where(size == 0, theta, theta + size * noise[name])
        elif kind == "scale":
            changed = theta * (1 + multiplier * (strength - 1))
        elif kind == "quantise":
            changed = quantise(theta, strength, axis=-2 if name.endswith("kernel") else -1)
        else:
            new = theta.mean() + theta.std() * noise[name] if kind == "reinitialise" else 0.0
            changed = jnp.where(which[name] < strength * multiplier, new, theta)
        return changed if allowed is None else jnp.where(allowed, changed, theta)

    return tree.map_named(change, params, *([] if mask is None else [mask]))


def quantise(theta: jax.Array, bits: jax.Array | float, axis: int) -> jax.Array:
    """Symmetric rounding to the nearest level of each channel, whose entries run along `axis`.

    With n = 2^(bits-1) - 1 the levels are `-n..n` times the channel's largest absolute value
    over n. One bit leaves the sign times the channel's mean absolute value (arXiv 1603.05279).
    A kernel (in, out) has a channel an output, so `axis` -2; an embedding one a token (which is
    an output of a tied head), and a vector is one channel, so `axis` -1.

    Args:
      theta: at least one axis.
      bits: integer of at least 1, static or traced.
    """
    size = jnp.abs(theta)
    largest, mean = size.max(axis, keepdims=True), size.mean(axis, keepdims=True)
    # The power is rounded because it is not exact on every backend.
    steps = jnp.round(jnp.exp2(jnp.asarray(bits, theta.dtype) - 1)) - 1
    share = jnp.where(largest > 0, theta / largest, 0)
    # `largest` stays as it is, so quantising again changes nothing.
    rounded = largest * (jnp.round(share * steps) / jnp.maximum(steps, 1))
    return jnp.where(steps < 1, jnp.where(theta < 0, -mean, mean), rounded)


def sensitivity(perturbation: Perturbation, specs: Any) -> Callable[[Any, Any, Any], Any]:
    """The `change` of `variants.evaluator` for members `strength` (M,) and `seed` (M,) int32.

    `extra` is the mask, or None.
    """

    def change(params, member, mask):
        key = jax.random.key(member["seed"])
        return perturb(params, key, member["strength"], perturbation, specs=specs, mask=mask)

    return change


def _unit(theta: jax.Array, unit: str, std: float) -> jax.Array | float:
    if unit == "weight_rms":
        return jnp.sqrt(jnp.square(theta).mean())
    return std if unit == "init_std" else 1.0


def _draws(
    sample: Callable[..., jax.Array], key: jax.Array, leaves: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """A draw of each leaf's shape, `sample(fold(key, name), shape)`.

    One loop draws all leaves of a shape, so that the generator is compiled once a shape: a
    decoder of 30 layers compiles in a fifth of the time.
    """
    names_of = collections.defaultdict(list)
    for name, leaf in leaves.items():
        names_of[leaf.shape].append(name)
    found = {}
    for shape, names in names_of.items():
        drawn = jax.lax.map(lambda k, shape=shape: sample(k, shape), keys.name_keys(key, names))
        found |= {name: drawn[i] for i, name in enumerate(names)}
    return found
