"""The attention variants against the plain one and against numpy, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.models import attention
from lmnoise.models.attention import BLOCK


def operands(seed, rows, length, groups, repeat, width, scale=1.0):
    """Random q, k, v; scores have standard deviation `scale`."""
    generator = np.random.default_rng(seed)
    q = scale * generator.normal(size=(rows, length, groups * repeat, width))
    k, v = generator.normal(size=(2, rows, length, groups, width))
    return tuple(x.astype(np.float32) for x in (q, k, v))


def by_definition(q_BSHK, k_BSGK, v_BSGK):
    """Causal attention in float64, a query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BSHK, k_BSGK, v_BSGK))
    out = np.empty_like(q)
    for b, s, h in np.ndindex(q.shape[:3]):
        g = h // (q.shape[2] // k.shape[2])
        scores = k[b, : s + 1, g] @ q[b, s, h] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, s, h] = weights @ v[b, : s + 1, g] / weights.sum()
    return out


@jax.jit(static_argnums=0)
def value_and_gradients(name, q, k, v, cotangent):
    value, pullback = jax.vjp(attention.VARIANTS[name], q, k, v)
    return value, *pullback(cotangent)


def assert_twins(name, operands, atol):
    """Value and gradients equal those of `plain`, as a share of each array's largest entry."""
    generator = np.random.default_rng(99)
    cotangent = generator.normal(size=operands[0].shape).astype(np.float32)
    actual = value_and_gradients(name, *operands, cotangent)
    expected = value_and_gradients("plain", *operands, cotangent)
    for what, a, e in zip(("value", "dq", "dk", "dv"), actual, expected, strict=True):
        assert np.isfinite(a).all(), what
        tolerance = atol * max(1.0, float(np.abs(e).max()))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("name", ["plain", "row_blocks"])
@pytest.mark.parametrize("length", [1, 5, BLOCK + 3])
def test_definition(name, length):
    q, k, v = operands(0, rows=2, length=length, groups=2, repeat=3, width=4, scale=2.0)
    out = jax.jit(attention.VARIANTS[name])(q, k, v)
    np.testing.assert_allclose(out, by_definition(q, k, v), rtol=0, atol=2e-6)


@settings(max_examples=6, deadline=None)
@given(
    length=st.integers(1, 2 * BLOCK + 1) | st.sampled_from([BLOCK, BLOCK + 1, 2 * BLOCK]),
    groups=st.sampled_from([1, 2]),
    repeat=st.sampled_from([1, 3]),
    scale=st.sampled_from([0.0, 1.0, 10.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_row_blocks_is_plain(length, groups, repeat, scale, seed):
    assert_twins("row_blocks", operands(seed, 1, length, groups, repeat, 8, scale), atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "row_blocks"])
@pytest.mark.parametrize("scale", [1e3, 1e8])
def test_large_scores_do_not_overflow(name, scale):
    q, k, v = operands(1, rows=1, length=BLOCK + 5, groups=1, repeat=2, width=8, scale=scale)
    value, *gradients = value_and_gradients(name, q, k, v, np.ones_like(q))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(value, by_definition(q, k, v), rtol=0, atol=5e-3)


def test_bfloat16_operands_stay_close():
    q, k, v = operands(2, rows=1, length=2 * BLOCK, groups=2, repeat=2, width=16)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = jax.jit(attention.row_blocks)(*halves)
    assert out.dtype == jnp.bfloat16
    # Three roundings to 8 bits: of v, of the weights and of the result.
    np.testing.assert_allclose(out.astype(jnp.float32), by_definition(*halves), atol=2e-2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [5, 2 * BLOCK + 3])
def test_gradients_with_bfloat16_operands_stay_close(length, groups):
    drawn = operands(4, rows=2, length=length, groups=groups, repeat=2, width=16)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in drawn]
    cotangent = jnp.ones(halves[0].shape, jnp.bfloat16)
    ours = value_and_gradients("row_blocks", *halves, cotangent)
    wide = [x.astype(jnp.float32) for x in (*halves, cotangent)]
    for a, e in zip(ours, value_and_gradients("plain", *wide), strict=True):
        assert a.dtype == jnp.bfloat16
        # Weights, their gradients and the result are each rounded to 8 bits.
        tolerance = 2e-2 * max(1.0, float(jnp.abs(e).max()))
        np.testing.assert_allclose(a.astype(jnp.float32), e, rtol=0, atol=tolerance)


def test_splash_is_plain():
    """In Pallas' interpreter; lengths are multiples of 128 (grouped queries too)."""
    assert_twins("splash_interpreted", operands(3, 2, 256, 1, 2, 64), atol=1e-5)


def test_choose(monkeypatch):
    def choose(backend, dtype, length, name="auto"):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        return attention.choose(name, dtype=dtype, length=length)

    assert choose("cpu", "float32", 100) == "row_blocks"
    assert choose("tpu", "bfloat16", 256) == "splash"
    assert choose("tpu", "bfloat16", 100) == "plain"
    assert choose("gpu", "bfloat16", 100) == "cudnn"
    assert choose("gpu", "float32", 100) == "plain"
    assert choose("gpu", "float32", 100, name="row_blocks") == "row_blocks"
    with pytest.raises(ValueError, match="flash"):
        choose("cpu", "float32", 100, name="flash")
