"""Chunked cross-entropy against the plain one, value, gradient and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmnoise.models.cross_entropy import cross_entropy

WIDTH, VOCABULARY = 5, 11


def make(tokens):
    generator = np.random.default_rng(tokens)
    targets_N = generator.integers(0, VOCABULARY, tokens)
    shapes = (WIDTH, VOCABULARY), (tokens, WIDTH), (tokens,)
    w_DV, x_ND, weights_N = (generator.normal(size=s).astype(np.float32) for s in shapes)
    return w_DV, x_ND, targets_N, weights_N


def value_and_gradients(loss_N, w_DV, x_ND, weights_N):
    """Losses, and gradients of a weighted sum, so that mixed up tokens show."""

    def weighted(w_DV, x_ND):
        losses_N = loss_N(w_DV, x_ND)
        return losses_N @ weights_N, losses_N

    gradients, losses_N = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(w_DV, x_ND)
    return losses_N, *gradients


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50))
@example(12, 12)
@example(13, 5)  # a prime number of tokens
@example(12, 5)  # not a multiple of the chunk
def test_is_the_plain_one(tokens, chunk):
    w_DV, x_ND, targets_N, weights_N = make(tokens)

    def chunked(w_DV, x_ND):
        return cross_entropy(x_ND, w_DV, targets_N, chunk, "float32")

    def plain(w_DV, x_ND):
        return optax.softmax_cross_entropy_with_integer_labels(x_ND @ w_DV, targets_N)

    actual = value_and_gradients(chunked, w_DV, x_ND, weights_N)
    expected = value_and_gradients(plain, w_DV, x_ND, weights_N)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5)


def test_bfloat16_operands_stay_close():
    w_DV, x_ND, targets_N, weights_N = make(40)

    def loss(dtype):
        return lambda w_DV, x_ND: cross_entropy(x_ND, w_DV, targets_N, 16, dtype)

    halves = value_and_gradients(loss("bfloat16"), w_DV, x_ND, weights_N)
    wholes = value_and_gradients(loss("float32"), w_DV, x_ND, weights_N)
    for half, whole in zip(halves, wholes, strict=True):
        assert half.dtype == jnp.float32
        np.testing.assert_allclose(half, whole, rtol=0, atol=0.02 * np.abs(whole).max())


@pytest.mark.parametrize("tokens", [4096, 4099])
def test_the_logits_are_never_held_whole(tokens):
    w_DV, x_ND = jnp.zeros((8, 2048)), jnp.zeros((tokens, 8))
    targets_N = jnp.zeros(tokens, jnp.int32)

    def mean(w_DV, x_ND):
        return cross_entropy(x_ND, w_DV, targets_N, 256, "float32").mean()

    compiled = jax.jit(jax.grad(mean, (0, 1))).lower(w_DV, x_ND).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * 2048 * 4 / 4
