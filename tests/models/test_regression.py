"""The linear models against NumPy: objectives, minimisers, initialisation, and the train step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.models.regression import (
    LinearRegression,
    RandomProjection,
    TwoLayerLinear,
    population_batch,
)
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import init_state, make_train_step

ROWS, INPUTS, WIDTH, OUTPUTS = 30, 6, 4, 5
PENALTY = 0.3
KEY = jax.random.key(0)
MEMBER = {
    "seed": jnp.int32(1),
    "learning_rate": jnp.float32(0.05),
    "weight_decay": jnp.float32(0.0),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def data():
    random = np.random.default_rng(0)
    x_BD, y_B = random.normal(size=(ROWS, INPUTS)), random.normal(size=ROWS)
    return {"x": x_BD, "y": y_B, "weights": np.ones(ROWS), "groups": {}}


def orthogonal(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def trained(model, batch, steps=5, **options):
    """States before and after some steps of the project's own trainer."""
    config = OptimizerConfig(steps=steps, **options)
    step = jax.jit(make_train_step(model.loss, lambda batch, member: batch, config))
    state = first = init_state(model.init, config, MEMBER)
    for _ in range(steps):
        state, metrics = step(state, batch, MEMBER)
    return first.params, state.params, metrics


@pytest.mark.parametrize("projected", [False, True], ids=["ridge", "projection"])
def test_mean_loss_is_the_ridge_objective_and_its_minimiser_has_no_gradient(projected):
    batch = data()
    if projected:
        model, name = RandomProjection(INPUTS, WIDTH, PENALTY), "head"
        params = model.init(KEY)
        features = batch["x"] @ np.asarray(params["projection"]).T
    else:
        model, name = LinearRegression(INPUTS, PENALTY), "weights"
        params, features = model.init(KEY), batch["x"]
    assert not params[name].any()
    size = features.shape[1]
    some = np.random.default_rng(1).normal(size=size)
    losses_B = model.loss(params | {name: jnp.asarray(some)}, batch, KEY)
    assert losses_B.shape == (ROWS,)
    objective = ((features @ some - batch["y"]) ** 2).sum() / ROWS + PENALTY * (some**2).sum()
    assert losses_B.mean() == pytest.approx(objective)

    normal = features.T @ features / ROWS + PENALTY * np.eye(size)
    minimiser = np.linalg.solve(normal, features.T @ batch["y"] / ROWS)
    gradient = jax.grad(lambda v: model.loss(params | {name: v}, batch, KEY).mean())(
        jnp.asarray(minimiser)
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_penalty_may_be_traced():
    batch = data()
    params = {"weights": jnp.ones(INPUTS)}
    losses = jax.jit(jax.vmap(lambda p: LinearRegression(INPUTS, p).loss(params, batch, KEY)))(
        jnp.array([0.0, 2.0])
    )
    np.testing.assert_allclose(losses[1] - losses[0], 2.0 * INPUTS)


def test_projection_has_variance_one_over_the_dimension():
    draws = np.asarray(RandomProjection(50, 400).init(KEY)["projection"])
    assert draws.shape == (400, 50)
    count = draws.size
    assert abs(draws.mean()) < 4 / np.sqrt(50 * count)
    assert abs(draws.var() * 50 - 1) < 4 * np.sqrt(2 / count)
    other = RandomProjection(50, 400).init(jax.random.key(1))["projection"]
    assert not np.array_equal(draws, other)


def test_projection_stays_frozen_in_training():
    model = RandomProjection(INPUTS, WIDTH)
    before, after, _ = trained(model, data(), learning_rate_table=RandomProjection.FROZEN)
    np.testing.assert_array_equal(before["projection"], after["projection"])
    assert (before["head"] != after["head"]).all()


@pytest.mark.parametrize("width", [3, 5, 8])
def test_balanced_start_has_every_mode_at_the_start(width):
    columns = min(width, OUTPUTS)
    left = np.zeros((OUTPUTS, width))
    right = np.zeros((INPUTS, width))
    left[:, :columns] = orthogonal(OUTPUTS, 0)[:, :columns]
    right[:, :columns] = orthogonal(INPUTS, 1)[:, :columns]
    start = 0.1 * np.arange(1, width + 1)
    model = TwoLayerLinear(INPUTS, width, OUTPUTS, start, (jnp.asarray(left), jnp.asarray(right)))
    params = model.init(KEY)
    assert params["left"].shape == (OUTPUTS, width)
    assert params["right"].shape == (width, INPUTS)
    product = params["left"] @ params["right"]
    np.testing.assert_allclose(product, left @ np.diag(start) @ right.T, atol=1e-12)
    balance = params["left"].T @ params["left"] - params["right"] @ params["right"].T
    np.testing.assert_allclose(balance, 0, atol=1e-12)


def test_without_bases_the_modes_are_the_axes():
    params = TwoLayerLinear(INPUTS, WIDTH, OUTPUTS, 0.25).init(KEY)
    np.testing.assert_array_equal(params["left"], np.eye(OUTPUTS, WIDTH) / 2)
    np.testing.assert_array_equal(params["right"], np.eye(WIDTH, INPUTS) / 2)


def test_bases_of_the_wrong_shape_are_an_error():
    bases = (jnp.eye(OUTPUTS), jnp.eye(INPUTS))
    with pytest.raises(ValueError, match="U must have the shape"):
        TwoLayerLinear(INPUTS, WIDTH, OUTPUTS, 1.0, bases).init(KEY)


def test_mean_loss_on_the_population_batch_is_half_the_squared_distance():
    random = np.random.default_rng(0)
    model = TwoLayerLinear(INPUTS, WIDTH, OUTPUTS)
    left, right = random.normal(size=(OUTPUTS, WIDTH)), random.normal(size=(WIDTH, INPUTS))
    target = random.normal(size=(OUTPUTS, INPUTS))
    params = {"left": jnp.asarray(left), "right": jnp.asarray(right)}
    batch = population_batch(jnp.asarray(target))
    losses = model.loss(params, batch, KEY)
    assert losses.mean() == pytest.approx(((target - left @ right) ** 2).sum() / 2)
    gradient = jax.grad(lambda p: model.loss(p, batch, KEY).mean())(params)
    np.testing.assert_allclose(gradient["left"], (left @ right - target) @ right.T, atol=1e-10)
    np.testing.assert_allclose(gradient["right"], left.T @ (left @ right - target), atol=1e-10)

    _, _, metrics = trained(model, batch)
    assert metrics["loss"][1] == INPUTS


def test_float32_by_default():
    with jax.enable_x64(False):
        for model in (LinearRegression(3), RandomProjection(3, 2), TwoLayerLinear(3, 2, 4)):
            assert {leaf.dtype.name for leaf in model.init(KEY).values()} == {"float32"}
