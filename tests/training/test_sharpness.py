"""Sharpness-aware steps against steps computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.step import make_train_step, start_state

ROWS, WIDTH = 6, 4
PLAIN = dict(algorithm="sgd", schedule="constant", warmup_fraction=0.0, clip_norm=1e9)


def problem():
    random = np.random.default_rng(0)
    batch = {
        "x": random.normal(size=(ROWS, WIDTH)),
        "y": random.normal(size=ROWS),
        "weights": np.array([1.0, 1.0, 2.0, 0.0, 1.0, 1.0]),
    }
    params = {"w": random.normal(size=WIDTH), "b": random.normal(size=())}
    return batch, params


def loss(params, batch, key):
    del key
    return 0.5 * (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def gradient(batch, w, b):
    """Of the weighted mean, in NumPy."""
    error = (batch["x"] @ w + b - batch["y"]) * batch["weights"] / batch["weights"].sum()
    return batch["x"].T @ error, error.sum()


def one_step(optimizer, member, accumulate=1):
    batch, params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), problem())
    step = make_train_step(loss, lambda batch, member: batch, optimizer, accumulate)
    member = {"seed": 0, "learning_rate": 0.1, "weight_decay": 0.0} | member
    state, _ = jax.jit(step)(start_state(params, optimizer), batch | {"groups": {}}, member)
    return state.params


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_the_step_by_hand(radius, accumulate):
    batch, params = problem()
    w, b = params["w"], params["b"]
    dw, db = gradient(batch, w, b)
    norm = np.sqrt((dw**2).sum() + db**2)
    dw, db = gradient(batch, w + radius * dw / norm, b + radius * db / norm)
    found = one_step(OptimizerConfig(steps=10, **PLAIN), {"sam_radius": radius}, accumulate)
    np.testing.assert_allclose(found["w"], w - 0.1 * dw, rtol=1e-5)
    np.testing.assert_allclose(found["b"], b - 0.1 * db, rtol=1e-5)


@pytest.mark.parametrize("by", ["member", "table"])
def test_the_ascent_leaves_out_what_is_frozen(by):
    batch, params = problem()
    w, b = params["w"], params["b"]
    dw, _ = gradient(batch, w, b)
    dw, _ = gradient(batch, w + 0.3 * dw / np.sqrt((dw**2).sum()), b)
    member, table = {"sam_radius": 0.3}, ((".*", 1.0),)
    if by == "member":
        member["frozen"] = {"w": np.zeros(WIDTH, bool), "b": np.ones((), bool)}
    else:
        table = (("b", None), *table)
    optimizer = OptimizerConfig(steps=10, learning_rate_table=table, **PLAIN)
    found = one_step(optimizer, member)
    np.testing.assert_allclose(found["w"], w - 0.1 * dw, rtol=1e-5)
    assert found["b"] == np.float32(b)


def test_radius_zero_is_the_plain_step_bit_for_bit():
    optimizer = OptimizerConfig(steps=10)
    for a, b in zip(
        jax.tree.leaves(one_step(optimizer, {"sam_radius": 0.0})),
        jax.tree.leaves(one_step(optimizer, {})),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_where_the_gradient_vanishes_nothing_is_divided():
    optimizer = OptimizerConfig(steps=10, **PLAIN)
    batch, params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), problem())
    batch["y"] = batch["x"] @ params["w"] + params["b"]
    step = make_train_step(loss, lambda batch, member: batch, optimizer)
    member = {"seed": 0, "learning_rate": 0.1, "weight_decay": 0.0, "sam_radius": 0.3}
    state, _ = step(start_state(params, optimizer), batch | {"groups": {}}, member)
    np.testing.assert_array_equal(state.params["w"], params["w"])
