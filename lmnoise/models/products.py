"""Matrix products with operands in a low precision and results in float32."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` of equal dtypes over the last two axes, accumulated in float32; (..., M, N).

    On CPU, XLA has fast bfloat16 products only of operands that lie in memory row by row; it
    turns all others into float32 products, at half the speed. So transposed operands are copied
    there, and the barrier keeps a transposition of the result from being moved onto them.
    """
    if x.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)
    y = jnp.matmul(_by_rows(x), _by_rows(w), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(_by_rows(y))


def _by_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_ND: jax.Array, w_DF: jax.Array, dtype: str) -> jax.Array:
    """`x @ w` and its gradients, all float32, with operands in `dtype`.

    JAX's own gradient would keep the incoming float32 and run both of its products, two thirds
    of the work, in float32.
    """
    return _product_forward(x_ND, w_DF, dtype)[0]


def _product_forward(x_ND, w_DF, dtype):
    x_ND, w_DF = x_ND.astype(dtype), w_DF.astype(dtype)
    return matmul(x_ND, w_DF), (x_ND, w_DF)


def _product_backward(dtype, operands, dy_NF):
    x_ND, w_DF = operands
    dy_NF = dy_NF.astype(dtype)
    return matmul(dy_NF, w_DF.T), matmul(x_ND.T, dy_NF)


product.defvjp(_product_forward, _product_backward)
