"""One step, generic over the loss: weights, groups, micro-batches, the closed-form solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import mean
from lmnoise.training.step import init_state, make_train_step

ROWS, LENGTH, WIDTH = 8, 5, 3
CONFIG = OptimizerConfig(steps=20)
MEMBER = {
    "seed": jnp.int32(3),
    "learning_rate": jnp.float32(0.1),
    "weight_decay": jnp.float32(0.01),
}


def init(key):
    return {"dense": {"kernel": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())}}


def loss(params, batch, key):
    """Per position, (B, S)."""
    del key
    dense = params["dense"]
    return jnp.square(batch["x"] @ dense["kernel"] + dense["bias"] - batch["y"])


def as_it_is(batch, member):
    del member
    return batch


def make_batch(seed, weights_B1, groups):
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "y": random.normal(size=(ROWS, LENGTH)).astype(np.float32),
        "weights": np.asarray(weights_B1, np.float32).reshape(ROWS, 1),
        "groups": {name: np.asarray(m, bool).reshape(ROWS, 1) for name, m in groups.items()},
    }


@pytest.fixture(scope="module")
def steps():
    """Jitted steps by number of micro-batches."""
    return {a: jax.jit(make_train_step(loss, as_it_is, CONFIG, a)) for a in (1, 2, 4)}


weights = st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=ROWS, max_size=ROWS).filter(any)
masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), weights=weights, mask=masks)
def test_metrics_and_gradient_are_weighted_means(steps, seed, weights, mask):
    batch = make_batch(seed, weights, {"some": mask})
    state = init_state(init, CONFIG, MEMBER)
    _, metrics = steps[1](state, batch, MEMBER)

    x, y, w = (batch[name].astype(np.float64) for name in ("x", "y", "weights"))
    kernel = np.asarray(state.params["dense"]["kernel"], np.float64)
    residual = x @ kernel - y
    w_BS = np.broadcast_to(w, residual.shape)
    np.testing.assert_allclose(metrics["loss"], [(w_BS * residual**2).sum(), w_BS.sum()], 1e-5)
    some_BS = w_BS * batch["groups"]["some"]
    np.testing.assert_allclose(
        metrics["loss/some"], [(some_BS * residual**2).sum(), some_BS.sum()], 1e-5
    )
    outer = 2 * (w_BS * residual)[..., None] * np.concatenate([x, np.ones_like(y)[..., None]], -1)
    gradient = outer.sum((0, 1)) / w_BS.sum()
    np.testing.assert_allclose(metrics["grad_norm"], [np.linalg.norm(gradient), 1], 1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), weights=weights, scale=st.floats(-1e3, 1e3))
def test_a_row_of_weight_zero_has_no_influence(steps, same, seed, weights, scale):
    batch = make_batch(seed, weights, {"all": [True] * ROWS})
    other = {name: leaf.copy() for name, leaf in batch.items() if name != "groups"}
    silent = batch["weights"][:, 0] == 0
    other["y"][silent] = scale
    other["x"][silent] *= 3
    state = init_state(init, CONFIG, MEMBER)
    same(
        steps[1](state, batch, MEMBER), steps[1](state, other | {"groups": batch["groups"]}, MEMBER)
    )


def test_a_batch_without_any_weight_leaves_no_nan(steps):
    batch = make_batch(0, [0.0] * ROWS, {"all": [True] * ROWS})
    state, metrics = steps[1](init_state(init, CONFIG, MEMBER), batch, MEMBER)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert metrics["loss"].tolist() == [0.0, 0.0]
    assert np.isnan(mean(np.asarray(metrics["loss"])[None], 0))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), weights=weights, mask=masks)
def test_micro_batches_change_nothing(steps, seed, weights, mask):
    batch = make_batch(seed, weights, {"some": mask})
    whole, parts = (init_state(init, CONFIG, MEMBER) for _ in range(2))
    for _ in range(3):
        whole, expected = steps[1](whole, batch, MEMBER)
        parts, metrics = steps[4](parts, batch, MEMBER)
        for name in expected:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-6, err_msg=name)
    for a, b in zip(
        jax.tree.leaves(parts.opt_state), jax.tree.leaves(whole.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_micro_batches_draw_their_own_keys():
    def noise(params, batch, key):
        del params
        return jax.random.normal(key, batch["weights"].shape)

    step = jax.jit(make_train_step(noise, as_it_is, CONFIG, 2))
    state = init_state(init, CONFIG, MEMBER)
    # Rows 0, 2, .. are the first micro-batch.
    even, odd = (make_batch(0, [a, b] * (ROWS // 2), {}) for a, b in ((1, 0), (0, 1)))
    first, second = (step(state, batch, MEMBER)[1]["loss"][0] for batch in (even, odd))
    assert first != second


def test_linear_regression_reaches_the_closed_form():
    random = np.random.default_rng(0)
    x_BD = random.normal(size=(64, WIDTH)).astype(np.float32)
    y_B = (x_BD @ [1.0, -2.0, 0.5] + 0.3 + 0.1 * random.normal(size=64)).astype(np.float32)
    weights_B = random.integers(0, 3, 64).astype(np.float32)
    batch = {"x": x_BD, "y": y_B, "weights": weights_B, "groups": {}}
    config = OptimizerConfig(steps=600, final_fraction=0.0)
    member = MEMBER | {"weight_decay": jnp.float32(0.0)}
    step = make_train_step(loss, as_it_is, config)
    train = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: step(s, batch, member), state, length=600)
    )
    state, metrics = train(init_state(init, config, member))

    design = np.c_[x_BD, np.ones(64)].astype(np.float64)
    weighted = design * weights_B[:, None]
    solution = np.linalg.solve(weighted.T @ design, weighted.T @ y_B)
    dense = state.params["dense"]
    np.testing.assert_allclose([*dense["kernel"], dense["bias"]], solution, atol=1e-4)
    least = (weights_B * (design @ solution - y_B) ** 2).sum() / weights_B.sum()
    np.testing.assert_allclose(mean(np.asarray(metrics["loss"])[-1:], 0), least, rtol=1e-4)
    assert state.step == 600


def test_parameters_depend_on_the_seed_alone(same):
    other = MEMBER | {"learning_rate": jnp.float32(9.0)}
    same(init_state(init, CONFIG, MEMBER).params, init_state(init, CONFIG, other).params)
    again = init_state(init, CONFIG, MEMBER | {"seed": jnp.int32(4)}).params
    assert (
        again["dense"]["kernel"] != init_state(init, CONFIG, MEMBER).params["dense"]["kernel"]
    ).any()
