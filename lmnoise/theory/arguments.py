"""What the closed forms accept: one sentence that names the argument and its value otherwise."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


def in_float64[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Makes a closed form compute in float64, whatever JAX's setting.

    Results are NumPy arrays, which stay float64 in what follows. Where they are being traced
    (inside `jax.jit`, `grad`, `vmap`) they are JAX's, of the caller's own default type: float32
    unless 64-bit types are enabled.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        narrow = not jax.config.jax_enable_x64

        def leave(value):
            if not isinstance(value, jax.Array):
                return value
            if _known(value):
                return np.asarray(value)
            return value.astype(jnp.float32) if narrow and value.dtype == jnp.float64 else value

        with jax.enable_x64(True):
            return jax.tree.map(leave, function(*args, **kwargs))

    return wrapped


def _known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def require(
    name: str, value: NDArray[np.float64], allowed: NDArray[np.bool_], where: str
) -> NDArray[np.float64]:
    """`value`, or a ValueError that shows the first entry that is not `allowed`."""
    if not np.all(allowed):
        wrong = np.broadcast_to(value, np.shape(allowed))[~np.asarray(allowed)][0]
        raise ValueError(f"{name} must be {where}, got {wrong}")
    return value


def checked(name: str, value: Any, test: Callable[[Any], Any], where: str) -> jax.Array:
    """`value` as a JAX array, float64 inside `in_float64`.

    Args:
      test: from a float64 NumPy array to which of its entries are allowed; NaN and infinity never
        are. Values that are being traced (inside `jax.jit`, `grad`, `vmap`) cannot be looked at
        and pass unchecked.

    Raises:
      ValueError: an entry is not allowed, or `value` is not an array of numbers.
    """
    if _known(value):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be a number or an array, got {value!r}") from error
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be a number or an array of them, got {value!r}")
        array = array.astype(np.float64)
        require(name, array, np.isfinite(array) & test(array), f"{where} and finite")
    return jnp.asarray(value, jnp.float64)


def positive(name: str, value: Any) -> jax.Array:
    """`value` > 0, see `checked`."""
    return checked(name, value, lambda x: x > 0, "above 0")


def not_negative(name: str, value: Any) -> jax.Array:
    """`value` >= 0, see `checked`."""
    return checked(name, value, lambda x: x >= 0, "at least 0")


def share(name: str, value: Any) -> jax.Array:
    """0 <= `value` <= 1, see `checked`."""
    return checked(name, value, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")


def same_shape(**arrays: jax.Array) -> None:
    """Raises ValueError unless all are vectors of one length, which is not 0."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or first[0] == 0 or any(shape != first for shape in shapes.values()):
        text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"these must be vectors of one length: {text}")


def scalar(name: str, value: jax.Array) -> jax.Array:
    """`value`, or a ValueError if it is not a single number."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be one number, got the shape {jnp.shape(value)}")
    return value


def broadcast(**arrays: jax.Array) -> dict[str, jax.Array]:
    """The arrays in their common shape; ValueError with all shapes if there is none."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    try:
        common = np.broadcast_shapes(*shapes.values())
    except ValueError:
        text = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape)
        raise ValueError(f"these do not broadcast with each other: {text}") from None
    return {name: jnp.broadcast_to(array, common) for name, array in arrays.items()}
