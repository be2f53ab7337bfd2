"""The collapse study's second path: models trained by the project's own step, not solved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import regression_fit
from collapse_points import Point, Setting, key_of, law, predicted, weights

from lmnoise import keys, points
from lmnoise.models.regression import LinearRegression, RandomProjection
from lmnoise.report import Estimate, mean_and_error
from lmnoise.training.optimizer import OptimizerConfig

ALGORITHMS = {"sgd": "SGD", "adamw": "Adam"}
POWER_STEPS = 30


def trained(
    workdir: Path, settings: Sequence[Setting], steps: int, adam_rate: float, title: str
) -> list[Point]:
    """Trains every setting with SGD and with Adam, or reads it back.

    SGD has momentum 0.9 and a peak learning rate of 1 over the largest curvature of the loss, so
    that it is stable for every sample; both follow a cosine to zero. `adam_rate` is in the stored
    setting of both, so that another one trains SGD again too.
    """
    runs = [
        s | dict(algorithm=algorithm, steps=steps, adam_rate=adam_rate)
        for s in settings
        for algorithm in ALGORITHMS
    ]
    results = points.compute(workdir, runs, _train, title)
    return [
        Point(
            setting=s,
            theory=predicted(s),
            measured={"total": Estimate(*result["total"], s["repetitions"])},
            method=ALGORITHMS[s["algorithm"]],
            excess=Estimate(*result["excess"], s["repetitions"]),
        )
        for s, result in zip(runs, results, strict=True)
    ]


def _train(of: Setting) -> dict[str, Any]:
    """Error of the trained models, and what it exceeds the exact fit of the same data by."""
    seed_R = jnp.arange(of["repetitions"], dtype=jnp.int32)
    with jax.enable_x64(True):
        x_RND, y_RN, truth_RD, weight_N = _draw(of)
        features_RMD = _features(of, seed_R)
        exact_RD, curvature_R = _exact(x_RND, y_RN, weight_N, of["penalty"], features_RMD)
        data = {"x": x_RND, "y": y_RN, "weights": jnp.broadcast_to(weight_N[None], y_RN.shape)}
        data = {name: array.astype(jnp.float32) for name, array in data.items()}
    sgd_rate_R = 1 / np.asarray(curvature_R)
    rate_R = sgd_rate_R if of["algorithm"] == "sgd" else np.full_like(sgd_rate_R, of["adam_rate"])
    params, _ = regression_fit.train(
        _model(of),
        _optimizer(of),
        data,
        seed_R=seed_R,
        learning_rate_R=jnp.asarray(rate_R, jnp.float32),
    )
    trained_RD = np.asarray(params["head" if of["width"] else "weights"], np.float64)
    if of["width"]:
        trained_RD = np.einsum("rm,rmd->rd", trained_RD, features_RMD)
    after_R, best_R = (
        (law(of)[0] * np.square(np.asarray(w_RD) - truth_RD)).sum(-1)
        for w_RD in (trained_RD, exact_RD)
    )
    return {
        name: list(mean_and_error(values_R)[:2])
        for name, values_R in (("total", after_R), ("excess", after_R - best_R))
    }


def _model(of: Setting) -> LinearRegression | RandomProjection:
    if of["width"]:
        return RandomProjection(of["dimension"], of["width"], of["penalty"])
    return LinearRegression(of["dimension"], of["penalty"])


def _optimizer(of: Setting) -> OptimizerConfig:
    common = dict(schedule="cosine", final_fraction=0.0, clip_norm=float("inf"))
    if of["width"]:
        common["learning_rate_table"] = RandomProjection.FROZEN
    if of["algorithm"] == "sgd":
        common["momentum"] = 0.9
    return OptimizerConfig(steps=of["steps"], algorithm=of["algorithm"], **common)


def _features(of: Setting, seed_R: jax.Array) -> np.ndarray | None:
    """The random projections that training starts from (R, M, D); None for plain ridge."""
    if not of["width"]:
        return None
    with jax.enable_x64(False):  # as training draws them
        return np.asarray(regression_fit.start(_model(of), seed_R)["projection"], np.float64)


def _draw(of: Setting) -> tuple[jax.Array, ...]:
    """Inputs, labels and truths of all repetitions, and the weights of the samples.

    They do not depend on how the model is trained, so that optimisers see the same data.
    """
    key = key_of({k: v for k, v in of.items() if k not in ("algorithm", "steps", "adam_rate")})
    r, d, n = of["repetitions"], of["dimension"], of["n_real"] + of["n_synthetic"]
    deviation_D, prior_D, shift_D = (jnp.sqrt(v) for v in law(of))

    def normal(purpose, *shape):
        return jax.random.normal(keys.fold(key, purpose), (r, *shape), jnp.float64)

    x_RND = normal("inputs", n, d) * deviation_D[None, None]
    truth_RD = normal("truth", d) * prior_D[None]
    moved_RD = truth_RD + normal("shift", d) * shift_D[None]
    synthetic_N = jnp.arange(n) >= of["n_real"]
    real_RN, synthetic_RN = (jnp.einsum("rnd,rd->rn", x_RND, w) for w in (truth_RD, moved_RD))
    clean_RN = jnp.where(synthetic_N[None], synthetic_RN, real_RN)
    weight_real, weight_synthetic = weights(of)
    weight_N = jnp.where(synthetic_N, weight_synthetic, weight_real)
    return x_RND, clean_RN + of["noise"] * normal("noise", n), np.asarray(truth_RD), weight_N


@jax.jit
def _exact(x_RND, y_RN, weight_N, penalty, features_RMD):
    """The minimisers of the training loss, (R, D), and the largest curvature of each loss."""

    def one(operands):
        x_ND, y_N, features_MD = operands
        z_NM = x_ND if features_MD is None else x_ND @ features_MD.T
        weighted_MN = z_NM.T * weight_N[None] / len(y_N)
        matrix_MM = weighted_MN @ z_NM + penalty * jnp.eye(z_NM.shape[1])
        v_M = jnp.linalg.solve(matrix_MM, weighted_MN @ y_N)

        def improve(_, w_M):
            w_M = matrix_MM @ w_M
            return w_M / jnp.linalg.norm(w_M)

        w_M = jax.lax.fori_loop(0, POWER_STEPS, improve, weighted_MN @ y_N)
        # The loss is the quadratic form of the matrix, so its curvature is twice the eigenvalue.
        curvature = 2 * jnp.linalg.norm(matrix_MM @ w_M)
        return (v_M if features_MD is None else v_M @ features_MD), curvature

    return jax.lax.map(one, (x_RND, y_RN, features_RMD))
