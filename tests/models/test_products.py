"""Products in bfloat16 against float64, in every position of their operands in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.models.products import matmul, product

SIZES = st.sampled_from([1, 2, 7, 8, 9, 64, 65])


def draw(seed, *shape):
    """Numbers that bfloat16 holds exactly."""
    values = np.random.default_rng(seed).normal(size=shape).astype(jnp.bfloat16)
    return values.astype(np.float32)


def assert_near(actual, expected):
    """Equal up to the order of float32 sums."""
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans())
def test_of_operands_that_are_transposed_and_of_results_that_will_be(n, d, f, x_is, w_is, y_is):
    x_ND, w_DF = draw(0, n, d), draw(1, d, f)

    @jax.jit
    def run(x, w):
        x, w = (a.astype(jnp.bfloat16) for a in (x, w))
        y = matmul(x.T if x_is else x, w.T if w_is else w)
        return y.T if y_is else y

    y = run(x_ND.T if x_is else x_ND, w_DF.T if w_is else w_DF)
    expected = x_ND.astype(np.float64) @ w_DF
    assert_near(y, expected.T if y_is else expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_stacks(dtype):
    x, w = draw(0, 2, 3, 5, 16), draw(1, 2, 3, 16, 24)
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    expected = np.float64(x) @ np.float64(w)
    assert_near(jax.jit(matmul)(x, w), expected)
    by_column = jax.jit(lambda x, w: matmul(x.swapaxes(2, 3), w.swapaxes(2, 3)).swapaxes(2, 3))
    assert_near(by_column(x.swapaxes(2, 3), w.swapaxes(2, 3)), expected.swapaxes(2, 3))


def sum_of_squares(x_ND, w_DF):
    return jnp.square(product(x_ND, w_DF, "bfloat16")).sum() / 2


@settings(max_examples=10, deadline=None)
@given(SIZES, SIZES, SIZES)
def test_gradients_are_products_of_rounded_operands(n, d, f):
    x_ND, w_DF = draw(0, n, d), draw(1, d, f)
    dx_ND, dw_DF = jax.jit(jax.grad(sum_of_squares, (0, 1)))(x_ND, w_DF)
    y_NF = product(x_ND, w_DF, "bfloat16")
    dy_NF = np.asarray(y_NF.astype(jnp.bfloat16)).astype(np.float64)
    assert_near(dx_ND, dy_NF @ w_DF.T)
    assert_near(dw_DF, x_ND.T @ dy_NF)


def test_a_table_that_is_read_by_row_and_multiplied_by_column():
    # Tied embeddings: the gradient of the transposed table is transposed once more.
    table_VD, targets_N = draw(0, 65, 16), np.arange(32) % 65

    def loss(table_VD, multiply):
        x_ND = table_VD[targets_N]
        return jnp.square(multiply(x_ND, table_VD.T)).sum() / 65

    ours = jax.jit(jax.grad(lambda t: loss(t, lambda x, w: product(x, w, "bfloat16"))))(table_VD)
    plain = jax.grad(lambda t: loss(t, jnp.matmul))(table_VD)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=0.01 * np.abs(plain).max())


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_under_vmap(axes):
    x, w = draw(0, 3, 32, 16), draw(1, 3, 16, 24)
    pick = lambda a, axis, m: a[m if axis == 0 else 0]  # noqa: E731
    operands = [a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True)]
    gradient = jax.grad(sum_of_squares, (0, 1))
    together = jax.jit(jax.vmap(gradient, axes))(*operands)
    for m in range(3):
        alone = gradient(pick(x, axes[0], m), pick(w, axes[1], m))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[m], b, rtol=1e-5, atol=1e-4)
