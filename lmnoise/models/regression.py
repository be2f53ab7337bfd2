"""Models of regression: the counterparts of `lmnoise.theory`, and a network beside them.

The linear ones have a training in closed form, and so has the network with a frozen first layer.

Every model has `init(key) -> params`, `predict(params, x)` and `loss(params, batch, key) -> loss_B`
per example, as `lmnoise.training.step` wants them. A batch has `x` (B, D) and `y` (B,) or (B, O).
Parameters have JAX's default float type: float32, or float64 inside `jax.enable_x64(True)`.
Letters: B examples, D inputs, M projected features, K hidden units, O outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmnoise import keys

type Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearRegression:
    """`f(x) = w.x`, from `w = 0`.

    Attributes:
      dimension: D.
      penalty: of ridge; a number or a traced scalar.
    """

    dimension: int
    penalty: float | jax.Array = 0.0

    def init(self, key: jax.Array) -> Params:
        """`weights` (D,), zeros."""
        del key
        return {"weights": jnp.zeros((self.dimension,))}

    def predict(self, params: Params, x_BD: jax.Array) -> jax.Array:
        return x_BD @ params["weights"]

    def loss(self, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        """`(f(x) - y)^2 + penalty ||w||^2` per example.

        Its mean over n examples is the objective of ridge regression in arXiv 2410.04840,
        `(1/n) ||X w - y||^2 + penalty ||w||^2`.
        """
        del key
        return _ridge(self.predict(params, batch["x"]), batch["y"], params["weights"], self.penalty)


@dataclasses.dataclass(frozen=True, eq=False)
class RandomProjection:
    """`f(x) = v.(S x)` with a random S that is not trained, from `v = 0` (arXiv 2410.04840).

    S is a parameter like any other; freeze it with the table of learning rates that this class
    offers: `OptimizerConfig(learning_rate_table=RandomProjection.FROZEN)`.

    Attributes:
      dimension: D.
      width: M, rows of S.
      penalty: of ridge on v alone; a number or a traced scalar.
    """

    FROZEN = ((r"projection", None), (r".*", 1.0))

    dimension: int
    width: int
    penalty: float | jax.Array = 0.0

    def init(self, key: jax.Array) -> Params:
        """`projection` S (M, D), i.i.d. N(0, 1/D), and `head` v (M,), zeros."""
        draws = jax.random.normal(keys.fold(key, "projection"), (self.width, self.dimension))
        return {
            "projection": draws / jnp.sqrt(float(self.dimension)),
            "head": jnp.zeros((self.width,)),
        }

    def predict(self, params: Params, x_BD: jax.Array) -> jax.Array:
        return x_BD @ params["projection"].T @ params["head"]

    def loss(self, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        """`(f(x) - y)^2 + penalty ||v||^2` per example."""
        del key
        return _ridge(self.predict(params, batch["x"]), batch["y"], params["head"], self.penalty)


def _ridge(predicted_B, y_B, weights, penalty) -> jax.Array:
    return jnp.square(predicted_B - y_B) + penalty * jnp.sum(jnp.square(weights))


@dataclasses.dataclass(frozen=True, eq=False)
class TwoLayerLinear:
    """`f(x) = W1 W2 x`, from balanced factors (arXiv 2503.19206).

    With the singular vectors of a target `A = U diag(sigma) V^T` as bases, every mode starts at
    strength s0, and mode i is learned by hidden unit i alone. Any shape will do: modes beyond K
    are never learned, hidden units beyond the bases stay at zero. The closed forms of
    `lmnoise.theory.overtraining` for noise on the weights are those of square factors, D = K = O.

    Attributes:
      inputs, width, outputs: D, K, O.
      start: s0 >= 0, a number or (K,), one for every mode.
      bases: U (O, K) and V (D, K) with orthonormal columns; None: the axes, for a diagonal A.
    """

    inputs: int
    width: int
    outputs: int
    start: float | jax.Array = 1.0
    bases: tuple[jax.Array, jax.Array] | None = None

    def init(self, key: jax.Array) -> Params:
        """`left` W1 = U sqrt(s0) (O, K) and `right` W2 = sqrt(s0) V^T (K, D); `key` is not used."""
        del key
        axes = jnp.eye(self.outputs, self.width), jnp.eye(self.inputs, self.width)
        left_OK, right_DK = self.bases or axes
        for name, basis, rows in (("U", left_OK, self.outputs), ("V", right_DK, self.inputs)):
            if basis.shape != (rows, self.width):
                raise ValueError(f"{name} must have the shape {(rows, self.width)}: {basis.shape}")
        strength_1K = jnp.sqrt(jnp.broadcast_to(jnp.asarray(self.start), (1, self.width)))
        return {"left": left_OK * strength_1K, "right": (right_DK * strength_1K).T}

    def predict(self, params: Params, x_BD: jax.Array) -> jax.Array:
        return x_BD @ params["right"].T @ params["left"].T

    def loss(self, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        """`1/2 ||y - W1 W2 x||^2` per example."""
        del key
        return jnp.square(self.predict(params, batch["x"]) - batch["y"]).sum(-1) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class TwoLayerRelu:
    """`f(x) = V relu(W x) / sqrt(K)`, from `V = 0`, without biases.

    With `OptimizerConfig(learning_rate_table=TwoLayerRelu.FROZEN)` W is not trained: random
    features, whose loss is that of ridge regression.

    Attributes:
      inputs, width, outputs: D, K, O.
      penalty: of ridge on V alone; a number or a traced scalar.
    """

    FROZEN = ((r"hidden", None), (r".*", 1.0))

    inputs: int
    width: int
    outputs: int
    penalty: float | jax.Array = 0.0

    def init(self, key: jax.Array) -> Params:
        """`hidden` W (K, D), i.i.d. N(0, 2/D), and `head` V (O, K), zeros."""
        draws = jax.random.normal(keys.fold(key, "hidden"), (self.width, self.inputs))
        return {
            "hidden": draws * jnp.sqrt(2.0 / self.inputs),
            "head": jnp.zeros((self.outputs, self.width)),
        }

    def features(self, params: Params, x_BD: jax.Array) -> jax.Array:
        """`relu(W x) / sqrt(K)`, (B, K): of mean squared length 1 where x has length sqrt(D)."""
        return jax.nn.relu(x_BD @ params["hidden"].T) / jnp.sqrt(float(self.width))

    def predict(self, params: Params, x_BD: jax.Array) -> jax.Array:
        return self.features(params, x_BD) @ params["head"].T

    def loss(self, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
        """`||f(x) - y||^2 + penalty ||V||^2` per example."""
        del key
        error_B = jnp.square(self.predict(params, batch["x"]) - batch["y"]).sum(-1)
        return error_B + self.penalty * jnp.sum(jnp.square(params["head"]))


def population_batch(target_OD: jax.Array) -> dict[str, Any]:
    """A batch on which the mean loss of `TwoLayerLinear` is `1/2 ||A - W1 W2||_F^2`.

    That is the loss on the whole population of inputs of covariance I without label noise. The
    D examples are the axes times sqrt(D). Weights of one and no groups come along.
    """
    inputs = target_OD.shape[1]
    length = jnp.sqrt(float(inputs))
    return {
        "x": length * jnp.eye(inputs, dtype=target_OD.dtype),
        "y": length * target_OD.T,
        "weights": jnp.ones(inputs, target_OD.dtype),
        "groups": {},
    }
