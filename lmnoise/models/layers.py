"""The layers of the decoder: Flax NNX modules that declare each tensor once (`Spec`).

Activations are two-dimensional, `x_ND` with N = B*S tokens, except inside attention. Letters as
in `transformer`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lmnoise.models import attention
from lmnoise.models.products import product


@dataclasses.dataclass(frozen=True)
class Spec:
    """One tensor: shape, initialiser (constant plus normal of a standard deviation), axes."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    constant: float = 0.0

    def draw(self, key: jax.Array) -> jax.Array:
        value = jnp.full(self.shape, self.constant, jnp.float32)
        if self.std:
            value += self.std * jax.random.normal(key, self.shape, jnp.float32)
        return value


def param(shape: tuple[int, ...], axes: tuple[str, ...], std: float, constant: float = 0.0):
    spec = Spec(shape, axes, std, constant)
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), spec=spec)


class Linear(nnx.Module):
    """`x @ kernel + bias`, operands in `dtype`, accumulated in float32."""

    def __init__(self, config, shape, axes, std=0.02, bias=None):
        self.dtype = config.dtype
        self.kernel = param(shape, axes, std)
        has_bias = config.bias if bias is None else bias
        self.bias = param(shape[1:], axes[1:], 0.0) if has_bias else None

    def __call__(self, x_ND):
        y = product(x_ND, self.kernel[...], self.dtype)
        return y if self.bias is None else y + self.bias[...][None]


class Norm(nnx.Module):
    """LayerNorm, with or without parameters, or RMSNorm, in float32."""

    def __init__(self, config, size, axis):
        self.centred, self.epsilon = config.norm != "rmsnorm", config.norm_epsilon
        self.size = size
        fixed = config.norm == "layernorm_fixed"
        self.scale = None if fixed else param((size,), (axis,), 0.0, constant=1.0)
        has_bias = config.norm == "layernorm" and config.bias
        self.bias = param((size,), (axis,), 0.0) if has_bias else None

    def __call__(self, x_ND):
        if self.centred:
            x_ND = x_ND - x_ND.mean(-1, keepdims=True)
        variance = jnp.square(x_ND).mean(-1, keepdims=True)
        y = x_ND * jax.lax.rsqrt(variance + self.epsilon)
        y = y if self.scale is None else y * self.scale[...][None]
        return y if self.bias is None else y + self.bias[...][None]


def rotary_frequencies(config, local: jax.Array | bool = False) -> jax.Array:
    """Radians a position of each rotated pair of features, (rotary width / 2,) float32.

    `local` says whether the layer is one of those with the base `config.local_theta`.
    """
    exponents = -jnp.arange(0, config.rotary_width, 2, dtype=jnp.float32) / config.rotary_width
    base = config.rope_theta
    if config.local_theta:
        base = jnp.where(local, config.local_theta, base)
    frequencies = base**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_context * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def rotate(
    x_BSHK: jax.Array, frequencies: jax.Array, position_BS: jax.Array | None = None
) -> jax.Array:
    """Rotary position embedding with half-split pairs (arXiv 2104.09864), positions 0..S-1.

    The first two features a frequency are rotated; the others pass. `position_BS` gives other
    positions.
    """
    half = frequencies.shape[0]
    if position_BS is None:
        position_BS = jnp.arange(x_BSHK.shape[1], dtype=jnp.float32)[None]
    angle = position_BS[..., None].astype(jnp.float32) * frequencies[None, None]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second, passed = jnp.split(x_BSHK, [half, 2 * half], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, passed], -1)


class Attention(nnx.Module):
    """Causal self-attention with grouped queries; `observe` is told of queries and keys."""

    def __init__(self, config):
        self.config = config
        width, heads_width = config.width, config.heads * config.head_width
        groups_width = config.kv_heads * config.head_width
        bias = config.bias or config.qkv_bias
        self.query = Linear(config, (width, heads_width), ("width", "heads"), bias=bias)
        self.key = Linear(config, (width, groups_width), ("width", "heads"), bias=bias)
        self.value = Linear(config, (width, groups_width), ("width", "heads"), bias=bias)
        sizes = {
            "none": (None, None),
            "whole": (heads_width, groups_width),
            "head": (config.head_width, config.head_width),
        }[config.query_key_norm]
        self.query_norm, self.key_norm = (size and Norm(config, size, "heads") for size in sizes)
        # GPT-2's scaling keeps the variance of the residual stream independent of the depth.
        std = 0.02 * (2 * config.layers) ** -0.5
        self.output = Linear(config, (heads_width, width), ("heads", "width"), std)

    def __call__(self, x_ND, length, local, observe, position_BS=None, attend=None):
        """`attend(q, k, v)` takes the place of the causal mixing of the row's own positions."""
        c = self.config
        q, k, v = self.query(x_ND), self.key(x_ND), self.value(x_ND)
        if self.query_norm is not None:
            q = self.query_norm(q.reshape(-1, self.query_norm.size))
            k = self.key_norm(k.reshape(-1, self.key_norm.size))
        q_BSHK = q.reshape(-1, length, c.heads, c.head_width)
        k_BSGK = k.reshape(-1, length, c.kv_heads, c.head_width)
        v_BSGK = v.reshape(-1, length, c.kv_heads, c.head_width)
        if c.positions == "rotary":
            frequencies = rotary_frequencies(c, local)
            q_BSHK = rotate(q_BSHK, frequencies, position_BS)
            k_BSGK = rotate(k_BSGK, frequencies, position_BS)
        if attend is None:
            variant = attention.choose(c.attention, dtype=c.dtype, length=length)
            attend = attention.VARIANTS[variant]
        observe("attention/heads", (q_BSHK, k_BSGK))
        operands = [x.astype(c.dtype) for x in (q_BSHK, k_BSGK, v_BSGK)]
        mixed_BSHK = attend(*operands).astype(jnp.float32)
        return self.output(mixed_BSHK.reshape(x_ND.shape[0], -1))


class MLP(nnx.Module):
    """GELU, SwiGLU or GeGLU; `observe` is told of the input of the down projection."""

    def __init__(self, config):
        shape, axes = (config.width, config.mlp_width), ("width", "mlp")
        self.up = Linear(config, shape, axes)
        gated = config.activation in ("swiglu", "geglu")
        self.gate = Linear(config, shape, axes) if gated else None
        self.activation = {
            "swiglu": jax.nn.silu,
            "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
        }.get(config.activation, jax.nn.gelu)
        std = 0.02 * (2 * config.layers) ** -0.5
        self.down = Linear(config, shape[::-1], axes[::-1], std)

    def __call__(self, x_ND, observe):
        if self.gate is None:
            hidden_NF = self.activation(self.up(x_ND))
        else:
            hidden_NF = self.activation(self.gate(x_ND)) * self.up(x_ND)
        observe("mlp/hidden", hidden_NF)
        return self.down(hidden_NF)


class Block(nnx.Module):
    """Residual block; `observe(name, value)` is told of the points along the way.

    `position_BS` and `attend` are for `Attention`.
    """

    def __init__(self, config):
        self.norm_position, self.parallel = config.norm_position, config.parallel
        norm = functools.partial(Norm, config, config.width, "width")
        both = config.norm_position == "both"
        self.attention_norm, self.attention = norm(), Attention(config)
        self.attention_post_norm = norm() if both else None
        self.mlp_norm, self.mlp = norm(), MLP(config)
        self.mlp_post_norm = norm() if both else None

    def __call__(self, x_ND, length, local, observe, position_BS=None, attend=None):
        observe("residual", x_ND)
        before, after = self._around(self.attention_norm, self.attention_post_norm)
        input_ND = before(x_ND)
        observe("attention/input", input_ND)
        added_ND = after(self.attention(input_ND, length, local, observe, position_BS, attend))
        observe("attention/output", added_ND)
        between_ND = x_ND + added_ND
        before, after = self._around(self.mlp_norm, self.mlp_post_norm)
        input_ND = before(x_ND if self.parallel else between_ND)
        observe("mlp/input", input_ND)
        added_ND = self.mlp(input_ND, observe)
        observe("mlp/output", added_ND)
        output_ND = between_ND + after(added_ND)
        observe("output", output_ND)
        return output_ND

    def _around(self, norm, post_norm):
        """What is applied before and after attention or MLP, given its norms."""
        keep = lambda x_ND: x_ND  # noqa: E731
        return {"before": (norm, keep), "after": (keep, norm), "both": (norm, post_norm)}[
            self.norm_position
        ]


def stack(block: Block, layers: int) -> Block:
    """The block with a leading axis `layers` on every declared tensor."""
    graphdef, state = nnx.split(block)

    def repeat(variable):
        spec = variable.get_metadata()["spec"]
        return param((layers, *spec.shape), ("layers", *spec.axes), spec.std, spec.constant)

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(repeat, state, is_leaf=is_variable))
