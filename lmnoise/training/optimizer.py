"""AdamW, SGD and their schedules, from traced hyper-parameters and tables of path patterns."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmnoise import tree

NO_DECAY: tree.Table = ((r"(.*/)?(bias|scale|positions)", False), (r".*", True))
SCHEDULES = ("cosine", "wsd", "one_cycle", "cyclical", "constant")
ALGORITHMS = ("adamw", "sgd")
MOMENT_DTYPES = ("float32", "bfloat16")
DECAY_TO = ("zero", "start")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or SGD after clipping by the global norm.

    Attributes:
      steps: length of the schedule.
      algorithm: "adamw", whose weight decay is decoupled (arXiv 1711.05101); or "sgd", whose
        weight decay wd is exactly the gradient of `wd/2 ||w||^2`, added after clipping.
      momentum: of "sgd": the step follows `m <- momentum * m + gradient`.
      decay_to: "zero"; or "start": weight decay pulls towards the parameters with which the
        state was made, which it keeps (one more copy of those that decay).
      schedule: "cosine"; "wsd" (warm-up, stable, linear decay over the last `decay_fraction`);
        "one_cycle" (cosine up from 1/25 of the peak and down, arXiv 1708.07120); "cyclical" (a
        warm-up and a cosine every `cycle_steps`); "constant" after warm-up.
      warmup_fraction: of the schedule, or of each cycle.
      final_fraction: of the peak, at the end; "constant" stays at the peak.
      moment_dtype: in which "adamw" keeps its first moment, "float32" or "bfloat16" (2 bytes a
        parameter less). The second stays float32: in 8 bits it would no longer follow a decay
        of 0.999.
      clip_norm: largest global norm of the gradient.
      decay_table: which leaves decay, by path pattern (True or False).
      learning_rate_table: multiplier of the learning rate by path pattern; None freezes.
    """

    steps: int
    algorithm: str = "adamw"
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    decay_fraction: float = 0.2
    final_fraction: float = 0.1
    cycle_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    moment_dtype: str = "float32"
    momentum: float = 0.0
    clip_norm: float = 1.0
    decay_to: str = "zero"
    decay_table: tree.Table = NO_DECAY
    learning_rate_table: tree.Table = ((r".*", 1.0),)

    def __post_init__(self):
        for name, choices in (
            ("schedule", SCHEDULES),
            ("algorithm", ALGORITHMS),
            ("decay_to", DECAY_TO),
            ("moment_dtype", MOMENT_DTYPES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        if self.schedule == "cyclical" and self.cycle_steps < 1:
            raise ValueError("schedule 'cyclical' needs cycle_steps >= 1, the steps of an epoch")
        for name in ("warmup_fraction", "decay_fraction", "final_fraction", "b1", "b2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.b1 == 1 or self.b2 == 1:
            raise ValueError("b1 and b2 must be below 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.momentum and self.algorithm != "sgd":
            raise ValueError(f"momentum is for 'sgd', not {self.algorithm!r}, which has b1")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 (inf clips nothing), not {self.clip_norm}")


def schedule(config: OptimizerConfig) -> Callable[..., jax.Array]:
    """Builds `fraction(count, steps=None)`, the learning rate as a fraction of its peak.

    Step 0 is already above zero. With `steps`, perhaps traced, the whole schedule is shrunk from
    `config.steps` to that many; "cyclical" keeps its cycles.
    """
    total = config.cycle_steps if config.schedule == "cyclical" else config.steps
    warmup = min(max(1, round(config.warmup_fraction * total)), total - 1)
    if config.schedule == "one_cycle":
        pieces = [_cosine(0.04, 1.0, warmup), _cosine(1.0, config.final_fraction, total - warmup)]
        base = optax.join_schedules(pieces, [warmup])
    elif config.schedule in ("cosine", "cyclical"):
        base = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, total, config.final_fraction)
    else:
        pieces = [optax.linear_schedule(0.0, 1.0, warmup), optax.constant_schedule(1.0)]
        boundaries = [warmup]
        if config.schedule == "wsd":
            decay = min(max(1, round(config.decay_fraction * total)), total - warmup)
            pieces.append(optax.linear_schedule(1.0, config.final_fraction, decay))
            boundaries.append(total - decay)
        base = optax.join_schedules(pieces, boundaries)

    def fraction(count, steps=None):
        if config.schedule == "cyclical":
            return base(count % total + 1)
        return base(count + 1 if steps is None else (count + 1) * (config.steps / steps))

    return fraction


def _cosine(start: float, end: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Half a cosine from `start` at count 0 to `end` at count `steps`."""

    def value(count):
        phase = jnp.pi * jnp.clip(count / max(1, steps), 0.0, 1.0)
        return end + (start - end) * (1 + jnp.cos(phase)) / 2

    return value


def make_optimizer(
    config: OptimizerConfig,
    params: Any,
    learning_rate: float | jax.Array,
    weight_decay: float | jax.Array,
    frozen: Any = None,
    steps: jax.Array | None = None,
) -> optax.GradientTransformation:
    """The algorithm for parameters of this structure; rate and decay may be traced, one a member.

    Args:
      config: the algorithm and its schedule.
      params: parameters, for their names and structure.
      learning_rate, weight_decay: numbers, or arrays of shape ().
      frozen: bool arrays like `params`, perhaps traced, True where an entry must keep its bits;
        the others move as they would without these. The optimizer's state is the same with
        and without it.
      steps: that the schedule is shrunk to, see `schedule`.

    Raises:
      KeyError: a table matches no pattern to some leaf.
    """
    multipliers = tree.map_named(
        lambda name, _: _Multiplier(tree.lookup(config.learning_rate_table, name)), params
    )
    fraction = schedule(config)
    decay = _decay(config, params, weight_decay)
    if config.algorithm == "adamw":
        update = [
            optax.scale_by_adam(
                config.b1, config.b2, config.epsilon, mu_dtype=jnp.dtype(config.moment_dtype)
            ),
            decay,
        ]
    else:
        update = [decay, optax.trace(config.momentum)] if config.momentum else [decay]
    trained = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        *update,
        optax.scale_by_schedule(lambda count: -learning_rate * fraction(count, steps)),
        _scale_leaves(multipliers),
    )
    labels = jax.tree.map(lambda m: "frozen" if m.value is None else "trained", multipliers)
    if "frozen" not in jax.tree.leaves(labels):
        return _without(frozen, trained)
    still = {"trained": trained, "frozen": optax.set_to_zero()}
    return _without(frozen, optax.multi_transform(still, labels))


def _without(
    frozen: Any, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Hides the gradient of frozen entries, so that no norm counts it, and undoes their update."""
    if frozen is None:
        return transformation

    def update(updates, state, params):
        hidden = jax.tree.map(lambda f, u: jnp.where(f, 0.0, u), frozen, updates)
        updates, state = transformation.update(hidden, state, params)
        # Adding -0.0 keeps the bits of every number, adding 0.0 those of all but -0.0.
        return jax.tree.map(lambda f, u: jnp.where(f, -0.0, u), frozen, updates), state

    return optax.GradientTransformation(transformation.init, update)


class _Start(NamedTuple):
    """The parameters at the start of training, those that decay."""

    params: Any


def _decay(
    config: OptimizerConfig, params: Any, weight_decay: float | jax.Array
) -> optax.GradientTransformation:
    """Adds `weight_decay` times the distance from zero or from the start, by `decay_table`."""
    decays = tree.select(config.decay_table, params)
    if config.decay_to == "zero":
        return optax.add_decayed_weights(weight_decay, decays)

    def init(params):
        # A buffer of its own: the step donates parameters and state.
        return _Start(jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        pulled = jax.tree.map(
            lambda u, p, s: u + weight_decay * (p - s), updates, params, state.params
        )
        return pulled, state

    return optax.masked(optax.GradientTransformation(init, update), decays)


@dataclasses.dataclass(frozen=True)
class _Multiplier:
    """A leaf of its own, so that None does not vanish from the tree."""

    value: float | None


def _scale_leaves(multipliers: Any) -> optax.GradientTransformation:
    def scale(updates):
        return jax.tree.map(
            lambda u, m: u if isinstance(u, optax.MaskedNode) or m.value == 1.0 else u * m.value,
            updates,
            multipliers,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )

    return optax.stateless(lambda updates, params=None: scale(updates))
