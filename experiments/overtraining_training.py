"""Two-layer linear networks trained by the project's own step, with checkpoints on the way."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lmnoise import keys, points
from lmnoise.models.regression import TwoLayerLinear, population_batch
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import init_state, make_train_step

type Setting = dict[str, Any]
type Array = NDArray[np.float64]


def task(dimension: int, largest: float, decay: float, start: float, seed: int) -> Setting:
    """A target `A = U diag(sigma) V^T` with random U, V and `sigma_i = largest * i^-decay`.

    Training starts with the strength `start` in every mode.
    """
    return dict(dimension=dimension, largest=largest, decay=decay, start=start, seed=seed)


def spectrum(of: Setting) -> Array:
    """The singular values (D,) of a task."""
    return of["largest"] * np.arange(1.0, of["dimension"] + 1) ** -of["decay"]


def bases(of: Setting) -> tuple[Array, Array]:
    """U and V (D, D), orthogonal, drawn from the seed of the task."""
    key = keys.fold(jax.random.key(of["seed"]), "bases")
    with jax.enable_x64(True):
        draws = jax.random.normal(key, (2, of["dimension"], of["dimension"]), jnp.float64)
    u_DD, v_DD = np.linalg.qr(np.asarray(draws))[0]
    return u_DD, v_DD


def target(of: Setting, sigma_D: Array) -> Array:
    """`U diag(sigma) V^T` in the bases of a task."""
    u_DD, v_DD = bases(of)
    return u_DD * sigma_D @ v_DD.T


def key_of(of: Setting) -> jax.Array:
    """The setting's own randomness; every number in it has a part in it."""
    return keys.fold(jax.random.key(of["seed"]), json.dumps(of, sort_keys=True))


@dataclass(frozen=True)
class Network:
    """The two factors W1, W2 (D, D) of a trained network; `of` is its setting, with `time`."""

    of: Setting
    left: Array
    right: Array

    @cached_property
    def strengths(self) -> Array:
        """`U^T W1 W2 V` on the diagonal, (D,)."""
        u_DD, v_DD = bases(self.of)
        return np.einsum("di,de,ei->i", u_DD, self.left @ self.right, v_DD)

    def loss(self, sigma_D: Array) -> float:
        """`1/2 ||A - W1 W2||^2` of the whole matrices."""
        return float(np.square(target(self.of, sigma_D) - self.left @ self.right).sum() / 2)


def pretrained(workdir: Path, settings: Sequence[Setting], title: str) -> list[list[Network]]:
    """Trains every setting from the small start, or reads it back: a network for every time.

    Args:
      settings: a `task` with `rate` (of SGD), `weight_decay` and `times` in whole steps.
    """
    results = points.compute(workdir, settings, _pretrain, title)
    return [
        [
            Network(of | dict(time=time), np.array(left), np.array(right))
            for time, left, right in zip(of["times"], found["left"], found["right"], strict=True)
        ]
        for of, found in zip(settings, results, strict=True)
    ]


def _pretrain(of: Setting) -> dict[str, Any]:
    u_DD, v_DD = bases(of)
    roots_D = np.sqrt(np.full(of["dimension"], of["start"]))
    left, right = train(
        target(of, spectrum(of)),
        (u_DD * roots_D)[None],
        (v_DD * roots_D).T[None],
        rate=of["rate"],
        times=of["times"],
        weight_decay_R=[of["weight_decay"]],
    )
    return {"left": left[0].tolist(), "right": right[0].tolist()}


def train(
    target_DD: Array,
    left_RDD: Array,
    right_RDD: Array,
    *,
    rate: float,
    times: Sequence[float],
    weight_decay_R: Sequence[float],
    decay_to: str = "zero",
) -> tuple[Array, Array]:
    """SGD with a constant rate on the population loss, in float64, R networks at once.

    Args:
      left_RDD, right_RDD: the factors that training starts from.
      times: T of them, rising, step times rate; whole numbers of steps.
      weight_decay_R: one for each network, towards `decay_to`.

    Returns:
      The factors at these times, (R, T, D, D) each.
    """
    count_T = np.rint(np.asarray(times) / rate).astype(np.int32)
    with jax.enable_x64(True):
        member = {
            "seed": jnp.zeros(len(left_RDD), jnp.int32),
            "learning_rate": jnp.full(len(left_RDD), rate, jnp.float64),
            "weight_decay": jnp.asarray(weight_decay_R, jnp.float64),
        }
        factors = {"left": jnp.asarray(left_RDD), "right": jnp.asarray(right_RDD)}
        legs = (np.r_[np.int32(0), count_T[:-1]], count_T)
        params = _train(jnp.asarray(target_DD), factors, member, legs, decay_to)
        return np.asarray(params["left"]), np.asarray(params["right"])


@partial(jax.jit, static_argnames="decay_to")
def _train(target_DD, factors, member, legs, decay_to):
    """The factors at the end of every leg of steps; `factors` and `member` have an axis R."""
    config = OptimizerConfig(
        steps=2,  # of a constant schedule, which goes on for as long as it is asked
        algorithm="sgd",
        schedule="constant",
        warmup_fraction=0.0,
        clip_norm=math.inf,
        decay_to=decay_to,
    )
    size = len(target_DD)
    loss = TwoLayerLinear(size, size, size).loss
    step = make_train_step(loss, lambda batch, member: batch, config)
    batch = population_batch(target_DD)

    @jax.vmap
    def run(factors, member):
        def leg(state, ends):
            state = jax.lax.fori_loop(*ends, lambda _, s: step(s, batch, member)[0], state)
            return state, state.params

        return jax.lax.scan(leg, init_state(lambda _: factors, config, member), legs)[1]

    return run(factors, member)
