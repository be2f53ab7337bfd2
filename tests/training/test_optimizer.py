"""AdamW and SGD against NumPy, schedules against their closed forms, tables of rates."""

import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.training.loop import LoopConfig
from lmnoise.training.optimizer import (
    NO_DECAY,
    SCHEDULES,
    OptimizerConfig,
    make_optimizer,
    schedule,
)


def expected(config, step):
    """The fraction of the peak at a step, from the closed forms; steps count from 1."""
    total = config.cycle_steps if config.schedule == "cyclical" else config.steps
    k = step % total + 1 if config.schedule == "cyclical" else step + 1
    warmup = max(1, round(config.warmup_fraction * total))
    final = config.final_fraction

    def half_cosine(start, end, fraction):
        return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2

    if config.schedule == "one_cycle" and k < warmup:
        return half_cosine(1 / 25, 1.0, k / warmup)
    if k < warmup:
        return k / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        decay = round(config.decay_fraction * total)
        return 1.0 + (final - 1.0) * max(0, k - (total - decay)) / decay
    return half_cosine(1.0, final, (k - warmup) / (total - warmup))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    config = OptimizerConfig(steps=50, schedule=name, cycle_steps=20, final_fraction=0.2)
    values = jax.vmap(schedule(config))(jnp.arange(50))
    np.testing.assert_allclose(values, [expected(config, k) for k in range(50)], atol=1e-6)
    assert values[0] > 0
    assert values.max() == pytest.approx(1.0)
    last = 19 if name == "cyclical" else 49
    assert values[last] == pytest.approx(1.0 if name == "constant" else 0.2, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 6),
    warmup=st.floats(0, 1),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_a_schedule_stays_finite_however_short(name, steps, warmup, decay, final):
    config = OptimizerConfig(
        steps=steps,
        schedule=name,
        cycle_steps=steps,
        warmup_fraction=warmup,
        decay_fraction=decay,
        final_fraction=final,
    )
    values = [float(schedule(config)(jnp.int32(k))) for k in range(steps)]
    assert all(-1e-6 <= value <= 1 + 1e-6 for value in values)
    if name != "constant" and steps > 1:
        assert values[-1] == pytest.approx(final, abs=1e-5)


def numpy_adamw(config, params, gradients, rate, decay, decayed):
    """AdamW as in arXiv 1711.05101, algorithm 2, after clipping; float64."""
    params = {name: np.float64(value) for name, value in params.items()}
    origin = dict(params) if config.decay_to == "start" else dict.fromkeys(params, 0.0)
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for k, gradient in enumerate(gradients):
        norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        factor = min(1.0, config.clip_norm / norm)
        for name, raw in gradient.items():
            g = np.float64(raw) * factor
            first[name] = config.b1 * first[name] + (1 - config.b1) * g
            second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
            m = first[name] / (1 - config.b1 ** (k + 1))
            v = second[name] / (1 - config.b2 ** (k + 1))
            update = m / (np.sqrt(v) + config.epsilon)
            if decayed[name]:
                update = update + decay * (params[name] - origin[name])
            params[name] = params[name] - rate * expected(config, k) * update
    return params


def trees(count, scale, seed=0):
    random = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3), "bias": (3,), "scale": (4,), "positions": (5, 4)}
    draws = [
        {n: (scale * random.normal(size=s)).astype(np.float32) for n, s in shapes.items()}
        for _ in range(count)
    ]
    return draws[0] if count == 1 else draws


@pytest.mark.parametrize("decay_to", ["zero", "start"])
@pytest.mark.parametrize("scale", [0.01, 3.0], ids=["unclipped", "clipped"])
def test_adamw_is_adamw(scale, decay_to):
    config = OptimizerConfig(steps=12, schedule="wsd", epsilon=1e-6, decay_to=decay_to)
    params, gradients = trees(1, 1.0, 1), trees(12, scale)
    decayed = {"kernel": True, "bias": False, "scale": False, "positions": False}

    @jax.jit
    def train(params, rate, decay):
        transformation = make_optimizer(config, params, rate, decay)
        state = transformation.init(params)
        for gradient in gradients:
            updates, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = train(params, 0.1, 0.3)
    theirs = numpy_adamw(config, params, gradients, 0.1, 0.3, decayed)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-6, err_msg=name)


def run(config, rate, decay, count=5):
    params = trees(1, 1.0, 1)
    transformation = make_optimizer(config, params, rate, decay)
    state = transformation.init(params)
    for gradient in trees(count, 1.0):
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_a_first_moment_of_bfloat16_moves_almost_as_a_whole_one():
    config = OptimizerConfig(steps=5, moment_dtype="bfloat16")
    start = trees(1, 1.0, 1)
    states = jax.eval_shape(make_optimizer(config, start, 0.1, 0.1).init, start)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(states) if leaf.ndim]
    assert sorted(map(str, dtypes)) == ["bfloat16"] * 4 + ["float32"] * 4
    ours, whole = (
        run(config, 0.1, 0.1),
        run(dataclasses.replace(config, moment_dtype="float32"), 0.1, 0.1),
    )
    for name, value in whole.items():
        moved = np.abs(value - start[name]).max()
        # The moment is rounded to 8 bits at each of the five steps.
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=5 * 2**-8 * moved)
        assert ours[name].dtype == jnp.float32


def test_frozen_leaves_keep_their_bits_and_others_their_multiplier():
    table = ((r"positions|bias", None), (r"scale", 0.5), (r".*", 1.0))
    config = OptimizerConfig(steps=5, clip_norm=math.inf)
    plain, start = run(config, 0.1, 0.0), trees(1, 1.0, 1)
    params = run(dataclasses.replace(config, learning_rate_table=table), 0.1, 0.0)
    for name in ("positions", "bias"):
        assert np.array_equal(params[name], start[name])
    np.testing.assert_array_equal(params["kernel"], plain["kernel"])
    moved, half = plain["scale"] - start["scale"], params["scale"] - start["scale"]
    np.testing.assert_allclose(half, 0.5 * moved, rtol=1e-4, atol=1e-7)


def test_frozen_leaves_do_not_enter_the_norm_that_clips():
    table = ((r"positions|bias|scale", None), (r".*", 1.0))
    config = OptimizerConfig(steps=5, learning_rate_table=table)
    params, start, gradients = run(config, 0.1, 0.0), trees(1, 1.0, 1), trees(5, 1.0)
    alone = [{"kernel": g["kernel"]} for g in gradients]
    theirs = numpy_adamw(config, {"kernel": start["kernel"]}, alone, 0.1, 0.0, {"kernel": True})
    np.testing.assert_allclose(params["kernel"], theirs["kernel"], rtol=2e-5, atol=2e-6)


def test_rates_may_be_traced():
    config = OptimizerConfig(steps=5)
    rates, decays = jnp.array([0.01, 0.1]), jnp.array([0.0, 0.5])
    both = jax.jit(jax.vmap(lambda rate, decay: run(config, rate, decay)))(rates, decays)
    for m in range(2):
        alone = run(config, float(rates[m]), float(decays[m]))
        for name in alone:
            np.testing.assert_allclose(both[name][m], alone[name], rtol=1e-5, atol=1e-6)


SGD = OptimizerConfig(
    steps=30, algorithm="sgd", schedule="constant", warmup_fraction=0.0, clip_norm=math.inf
)


def quadratic(seed=0, size=5):
    """(H, c, w) of the loss `1/2 (w - c)^T H (w - c)` and a start."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    hessian = basis @ np.diag(np.linspace(0.2, 3.0, size)) @ basis.T
    return hessian, random.normal(size=size), random.normal(size=size)


def descend(config, rate, decay, steps=30, penalty=0.0):
    """`w` after gradient descent on the quadratic, `penalty/2 ||w||^2` added; in float64."""
    with jax.enable_x64(True):
        hessian, centre, start = map(jnp.asarray, quadratic())

        def loss(params):
            offset = params["w"] - centre
            return offset @ hessian @ offset / 2 + penalty * (params["w"] ** 2).sum() / 2

        def step(carry, _):
            params, state = carry
            transformation = make_optimizer(config, params, rate, decay)
            updates, state = transformation.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = {"w": start}
        state = make_optimizer(config, params, rate, decay).init(params)
        return np.asarray(jax.lax.scan(step, (params, state), length=steps)[0][0]["w"])


@pytest.mark.parametrize("decay_to", ["zero", "start"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_gradient_descent_in_closed_form(momentum, decay_to):
    """Linear in w: `w_k - w* = (I - rate (H + wd))^k (w_0 - w*)`; with momentum a 2x2 block."""
    rate, decay, steps = 0.125, 0.4, 30  # rates are float32: a power of two is exact
    config = dataclasses.replace(SGD, momentum=momentum, decay_to=decay_to)
    hessian, centre, start = quadratic()
    eye = np.eye(len(start))
    curvature = hessian + decay * eye
    origin = start if decay_to == "start" else np.zeros_like(start)
    optimum = np.linalg.solve(curvature, hessian @ centre + decay * origin)
    # (w - w*, m) -> m' = momentum m + H (w - w*), w' = w - rate m'.
    block = np.block(
        [[eye - rate * curvature, -rate * momentum * eye], [curvature, momentum * eye]]
    )
    end = np.linalg.matrix_power(block, steps) @ np.r_[start - optimum, np.zeros_like(start)]
    np.testing.assert_allclose(
        descend(config, rate, decay, steps), optimum + end[: len(start)], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_weight_decay_of_sgd_is_the_gradient_of_half_the_squared_norm(momentum):
    config = dataclasses.replace(SGD, momentum=momentum)
    decayed = descend(config, 0.1, 0.4)
    np.testing.assert_allclose(decayed, descend(config, 0.1, 0.0, penalty=0.4), rtol=1e-12)
    assert not np.allclose(decayed, descend(config, 0.1, 0.0), rtol=1e-2)


def test_sgd_is_clipped_and_follows_the_schedule_and_the_table_of_rates():
    table = ((r"scale", 0.5), (r"positions", None), (r".*", 1.0))
    config = dataclasses.replace(
        SGD, steps=5, schedule="cosine", clip_norm=1.0, learning_rate_table=table
    )
    after, start, gradients = run(config, 0.1, 0.0), trees(1, 1.0, 1), trees(5, 1.0)
    assert np.array_equal(after["positions"], start["positions"])
    trained = ("kernel", "bias", "scale")
    norms = [math.sqrt(sum((g[name] ** 2).sum() for name in trained)) for g in gradients]
    for name in trained:
        steps = [expected(config, k) * g[name] / norms[k] for k, g in enumerate(gradients)]
        moved = 0.1 * (0.5 if name == "scale" else 1.0) * sum(steps)
        np.testing.assert_allclose(after[name], start[name] - moved, rtol=1e-5, atol=1e-6)


def test_the_start_is_kept_only_of_leaves_that_decay_and_are_trained():
    params = trees(1, 1.0, 1)
    table = ((r"kernel", None), (r".*", 1.0))
    for options, kept in (
        ({}, {"kernel"}),
        ({"learning_rate_table": table}, set()),
        ({"decay_table": ((r"kernel|scale", True), (r".*", False))}, {"kernel", "scale"}),
    ):
        config = dataclasses.replace(SGD, decay_to="start", **options)
        state = make_optimizer(config, params, 0.1, 0.3).init(params)
        arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert sorted(a.shape for a in arrays) == sorted(params[name].shape for name in kept)
        assert np.isfinite(run(config, 0.1, 0.3)["bias"]).all()


def test_a_state_without_the_new_options_is_what_it_was():
    params = trees(1, 1.0, 1)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1, {name: name == "kernel" for name in params}),
        optax.scale_by_schedule(lambda count: count),
        optax.stateless(lambda updates, params=None: updates),
    )
    state = make_optimizer(OptimizerConfig(steps=5), params, 0.1, 0.1).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(chain.init(params))
    state = make_optimizer(SGD, params, 0.1, 0.1).init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]


def test_a_resumed_run_still_decays_towards_its_start(toy, same, tmp_path):
    instance = toy()
    table = ((r"w", True), *NO_DECAY)
    instance.optimizer = dataclasses.replace(SGD, decay_to="start", decay_table=table)
    for member in instance.members:
        member["weight_decay"] = 0.5
    config = LoopConfig(steps=12, checkpoint_every=4, steps_per_dispatch=2)
    population = instance.population()
    whole = instance.fit(config, tmp_path / "whole", population)

    def stop(index):
        if index == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    instance.on_batch = stop
    assert instance.fit(config, tmp_path / "run", population) is None
    instance.on_batch = lambda index: None
    same(whole, instance.fit(config, tmp_path / "run", population))
    start = jax.device_get(population.init().params)
    kept = [leaf for leaf in jax.tree.leaves(jax.device_get(whole.opt_state)) if leaf.ndim > 1]
    np.testing.assert_array_equal(kept[0], start["w"])


def test_a_table_that_misses_a_leaf_is_an_error():
    config = OptimizerConfig(steps=5, learning_rate_table=((r"kernel", 1.0),))
    with pytest.raises(KeyError, match="'bias'"):
        run(config, 0.1, 0.0, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "linear"},
        {"schedule": "cyclical"},
        {"warmup_fraction": 1.5},
        {"final_fraction": -0.1},
        {"clip_norm": 0.0},
        {"algorithm": "lion"},
        {"decay_to": "mean"},
        {"momentum": 1.0, "algorithm": "sgd"},
        {"momentum": -0.1, "algorithm": "sgd"},
        {"momentum": 0.9},
    ],
    ids=str,
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizerConfig(steps=10, **wrong)
