"""One decoder for the GPT-2 and Llama families, in Flax NNX, split once into functions.

Every tensor is declared once, with its shape, initialiser and logical axes (`Spec`); from the
declarations come `init`, the abstract parameters and the sharding. Outside attention the
activations are two-dimensional, `x_ND` with N = B*S tokens.

Letters: B rows, S positions, N = B*S tokens, D width, H heads, G key/value heads, K head width,
F MLP width, V vocabulary, L layers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmnoise import keys, tree
from lmnoise.models import attention
from lmnoise.models.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a decoder.

    `norm`, `positions`, `activation`, `tied` and `bias` span the families; see `gpt2`, `llama`.
    `dtype` is the type of the operands of the large products (accumulated in float32); weights,
    softmax, norms and losses stay float32. `layers_as` is "unrolled" (faster on CPU), "scan"
    (compiles in constant time) or "auto"; `logits_chunk` is the number of tokens whose logits
    are held at once.
    """

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    norm: str = "layernorm"
    positions: str = "learned"
    activation: str = "gelu"
    tied: bool = True
    bias: bool = True
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    dtype: str = "float32"
    layers_as: str = "auto"
    attention: str = "auto"
    remat: bool = False
    logits_chunk: int = 4096

    def __post_init__(self):
        choices = {
            "norm": ("layernorm", "rmsnorm"),
            "positions": ("learned", "rotary"),
            "activation": ("gelu", "swiglu"),
            "layers_as": ("auto", "unrolled", "scan"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"width {self.width} must divide by heads {self.heads}, and heads by kv_heads "
                f"{self.kv_heads}"
            )

        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.head_width}")
        attention.choose(self.attention, dtype=self.dtype, length=self.context)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def scanned(self) -> bool:
        if self.layers_as == "auto":
            return jax.default_backend() != "cpu"
        return self.layers_as == "scan"


def gpt2(*, width: int, heads: int, **fields) -> TransformerConfig:
    """LayerNorm, learned positions, GELU, biases, tied embeddings."""
    return TransformerConfig(
        **{"width": width, "heads": heads, "kv_heads": heads, "mlp_width": 4 * width, **fields}
    )


def llama(*, width: int, heads: int, kv_heads: int, mlp_width: int, **fields) -> TransformerConfig:
    """RMSNorm, rotary positions, SwiGLU, grouped queries, no biases."""
    family = dict(norm="rmsnorm", positions="rotary", activation="swiglu", bias=False, tied=False)
    return TransformerConfig(
        width=width, heads=heads, kv_heads=kv_heads, mlp_width=mlp_width, **{**family, **fields}
    )


FAMILIES = {"gpt2": gpt2, "llama": llama}


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


def _param(shape: tuple[int, ...], axes: tuple[str, ...], std: float, constant: float = 0.0):
    spec = Spec(shape, axes, std, constant)
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), spec=spec)


class Linear(nnx.Module):
    """`x @ kernel + bias`, operands in `dtype`, accumulated in float32."""

    def __init__(self, config, shape, axes, std=0.02, bias=None):
        self.dtype = config.dtype
        self.kernel = _param(shape, axes, std)
        has_bias = config.bias if bias is None else bias
        self.bias = _param(shape[1:], axes[1:], 0.0) if has_bias else None

    def __call__(self, x_ND):
        y = _product(x_ND, self.kernel[...], self.dtype)
        return y if self.bias is None else y + self.bias[...][None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_ND: jax.Array, w_DF: jax.Array, dtype: str) -> jax.Array:
    """`x @ w` and its gradients, all float32, with operands in `dtype`.

    JAX's own gradient would keep the incoming float32 and run both of its products, two thirds
    of the work, in float32.
    """
    return _product_forward(x_ND, w_DF, dtype)[0]


def _product_forward(x_ND, w_DF, dtype):
    x_ND, w_DF = x_ND.astype(dtype), w_DF.astype(dtype)
    return jnp.dot(x_ND, w_DF, preferred_element_type=jnp.float32), (x_ND, w_DF)


def _product_backward(dtype, operands, dy_NF):
    x_ND, w_DF = operands
    dy_NF = dy_NF.astype(dtype)
    return (
        jnp.dot(dy_NF, w_DF.T, preferred_element_type=jnp.float32),
        jnp.dot(x_ND.T, dy_NF, preferred_element_type=jnp.float32),
    )


_product.defvjp(_product_forward, _product_backward)


class Norm(nnx.Module):
    """LayerNorm or RMSNorm in float32."""

    def __init__(self, config):
        self.centred, self.epsilon = config.norm == "layernorm", config.norm_epsilon
        self.scale = _param((config.width,), ("width",), 0.0, constant=1.0)
        has_bias = self.centred and config.bias
        self.bias = _param((config.width,), ("width",), 0.0) if has_bias else None

    def __call__(self, x_ND):
        if self.centred:
            x_ND = x_ND - x_ND.mean(-1, keepdims=True)
        variance = jnp.square(x_ND).mean(-1, keepdims=True)
        y = x_ND * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...][None]
        return y if self.bias is None else y + self.bias[...][None]


def rotate(x_BSHK: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding with half-split pairs (arXiv 2104.09864), positions 0..S-1."""
    length, width = x_BSHK.shape[1], x_BSHK.shape[3]
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency[None]
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    first, second = jnp.split(x_BSHK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nnx.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config):
        self.config = config
        width, heads_width = config.width, config.heads * config.head_width
        groups_width = config.kv_heads * config.head_width
        self.query = Linear(config, (width, heads_width), ("width", "heads"))
        self.key = Linear(config, (width, groups_width), ("width", "heads"))
        self.value = Linear(config, (width, groups_width), ("width", "heads"))
        # GPT-2's scaling keeps the variance of the residual stream independent of the depth.
        std = 0.02 * (2 * config.layers) ** -0.5
        self.output = Linear(config, (heads_width, width), ("heads", "width"), std)

    def __call__(self, x_ND, length):
        c = self.config
        q_BSHK = self.query(x_ND).reshape(-1, length, c.heads, c.head_width)
        k_BSGK = self.key(x_ND).reshape(-1, length, c.kv_heads, c.head_width)
        v_BSGK = self.value(x_ND).reshape(-1, length, c.kv_heads, c.head_width)
        if c.positions == "rotary":
            q_BSHK, k_BSGK = rotate(q_BSHK, c.rope_theta), rotate(k_BSGK, c.rope_theta)
        variant = attention.choose(c.attention, dtype=c.dtype, length=length)
        operands = [x.astype(c.dtype) for x in (q_BSHK, k_BSGK, v_BSGK)]
        mixed_BSHK = attention.VARIANTS[variant](*operands).astype(jnp.float32)
        return self.output(mixed_BSHK.reshape(x_ND.shape[0], -1))


class MLP(nnx.Module):
    """GELU (tanh approximation, as GPT-2) or SwiGLU."""

    def __init__(self, config):
        shape, axes = (config.width, config.mlp_width), ("width", "mlp")
        self.up = Linear(config, shape, axes)
        self.gate = Linear(config, shape, axes) if config.activation == "swiglu" else None
        std = 0.02 * (2 * config.layers) ** -0.5
        self.down = Linear(config, shape[::-1], axes[::-1], std)

    def __call__(self, x_ND):
        if self.gate is None:
            return self.down(jax.nn.gelu(self.up(x_ND)))
        return self.down(jax.nn.silu(self.gate(x_ND)) * self.up(x_ND))


class Block(nnx.Module):
    """Pre-norm residual block."""

    def __init__(self, config):
        self.attention_norm, self.attention = Norm(config), Attention(config)
        self.mlp_norm, self.mlp = Norm(config), MLP(config)

    def __call__(self, x_ND, length):
        x_ND = x_ND + self.attention(self.attention_norm(x_ND), length)
        return x_ND + self.mlp(self.mlp_norm(x_ND))


class Transformer(nnx.Module):
    """Tokens (B, S) to features after the final norm (N, D)."""

    def __init__(self, config):
        self.config = config
        self.tokens = _param((config.vocab_size, config.width), ("vocab", "width"), 0.02)
        learned = config.positions == "learned"
        self.positions = (
            _param((config.context, config.width), ("context", "width"), 0.02) if learned else None
        )
        if config.scanned:
            self.blocks = _stack(Block(config), config.layers)
        else:
            self.blocks = nnx.List([Block(config) for _ in range(config.layers)])
        self.final_norm = Norm(config)
        shape, axes = (config.width, config.vocab_size), ("width", "vocab")
        self.head = None if config.tied else Linear(config, shape, axes, bias=False)

    def __call__(self, tokens_BS):
        length = tokens_BS.shape[1]
        if length > self.config.context:
            raise ValueError(f"{length} positions exceed the context of {self.config.context}")
        x_BSD = self.tokens[...][tokens_BS]
        if self.positions is not None:
            x_BSD = x_BSD + self.positions[...][None, :length]
        x_ND = x_BSD.reshape(-1, self.config.width)
        for block in [self.blocks] if self.config.scanned else self.blocks:
            graphdef, layer = nnx.split(block)

            def apply(layer, x_ND, graphdef=graphdef):
                return nnx.merge(graphdef, layer)(x_ND, length)

            if self.config.remat:
                apply = jax.checkpoint(apply)
            if self.config.scanned:
                x_ND, _ = jax.lax.scan(lambda x, layer: (apply(layer, x), None), x_ND, layer)  # noqa: B023
            else:
                x_ND = apply(layer, x_ND)
        return self.final_norm(x_ND)

    def unembed(self, x_ND):
        """Logits (N, V) in float32."""
        if self.head is None:
            return _product(x_ND, self.tokens[...].T, self.config.dtype)
        return self.head(x_ND)


def _stack(block: Block, layers: int) -> Block:
    """The block with a leading axis `layers` on every declared tensor."""
    graphdef, state = nnx.split(block)

    def stack(variable):
        spec = variable.get_metadata()["spec"]
        return _param((layers, *spec.shape), ("layers", *spec.axes), spec.std, spec.constant)

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(stack, state, is_leaf=is_variable))


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The decoder as plain functions of a parameter pytree (nested dicts of float32 arrays)."""

    config: TransformerConfig

    @functools.cached_property
    def _module(self) -> Transformer:
        return Transformer(self.config)

    @functools.cached_property
    def _graphdef(self) -> Any:
        return nnx.split(self._module)[0]

    @functools.cached_property
    def specs(self) -> Any:
        """The pytree of `Spec`s, one a parameter."""
        state = nnx.split(self._module)[1]
        return nnx.to_pure_dict(state, extract_fn=lambda variable: variable.get_metadata()["spec"])

    def init(self, key: jax.Array) -> Any:
        """Fresh float32 parameters; a draw depends on the key and the leaf's name alone."""
        return tree.map_named(functools.partial(_draw, key), self.specs)

    def features(self, params: Any, tokens_BS: jax.Array) -> jax.Array:
        """Features after the final norm, (B*S, D) float32."""
        return self._bind(params)(tokens_BS)

    def logits(self, params: Any, tokens_BS: jax.Array) -> jax.Array:
        """Logits (B, S, V) float32, held whole: for small inputs."""
        module = self._bind(params)
        return module.unembed(module(tokens_BS)).reshape(*tokens_BS.shape, -1)

    def loss(self, params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """Next-token cross-entropy of each position, (B, S) float32, nats per token.

        Args:
          params: the parameters.
          batch: `tokens` (B, S+1) int32; position s predicts token s+1.
          key: unused; part of the signature that all models share.
        """
        del key
        module, tokens_BT = self._bind(params), batch["tokens"]
        x_ND = module(tokens_BT[:, :-1])
        losses_N = cross_entropy(
            module.unembed, x_ND, tokens_BT[:, 1:].reshape(-1), self.config.logits_chunk
        )
        return losses_N.reshape(tokens_BT.shape[0], -1)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(math.prod(spec.shape) for _, spec in tree.named_leaves(self.specs))

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs a token (forward and backward), arXiv 2204.02311 appendix B.

        Six a parameter that multiplies (embeddings that are only looked up do not), and
        12*L*H*K*S for the two attention products, causality not deducted.
        """
        c = self.config
        sizes = {n: math.prod(spec.shape) for n, spec in tree.named_leaves(self.specs)}
        looked_up = sizes.get("positions", 0) + (0 if c.tied else sizes["tokens"])
        attended = 12 * c.layers * c.heads * c.head_width * length
        return 6.0 * (sum(sizes.values()) - looked_up) + attended

    def _bind(self, params: Any) -> Transformer:
        return nnx.merge(self._graphdef, params)


def _draw(key: jax.Array, name: str, spec: Spec) -> jax.Array:
    """Draws one leaf; a stacked leaf draws each layer under that layer's own name."""
    if spec.axes[0] != "layers":
        return spec.draw(keys.fold(key, "init", name))
    layer = dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
    names = [name.replace("blocks/", f"blocks/{i}/", 1) for i in range(spec.shape[0])]
    return jax.vmap(layer.draw)(jnp.stack([keys.fold(key, "init", n) for n in names]))


def stack_layers(params: Any) -> Any:
    """Parameters of an unrolled decoder in the layout of a scanned one."""
    layers = [params["blocks"][i] for i in sorted(params["blocks"])]
    return {**params, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack_layers(params: Any, layers: int) -> Any:
    """Parameters of a scanned decoder in the layout of an unrolled one."""
    blocks = {i: jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(layers)}
    return {**params, "blocks": blocks}
