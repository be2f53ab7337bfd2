"""One decoder for the families around GPT-2 and Llama, in Flax NNX, split once into functions.

Every tensor is declared once, with its shape, initialiser and logical axes (`layers.Spec`);
from the declarations come `init`, the abstract parameters and the sharding.

Letters: B rows, S positions, N = B*S tokens, D width, H heads, G key/value heads, K head width,
F MLP width, V vocabulary, L layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmnoise import axes, keys, tree
from lmnoise.models import attention
from lmnoise.models.cross_entropy import cross_entropy
from lmnoise.models.layers import Block, Linear, Norm, Spec, param, stack
from lmnoise.models.products import product


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's longer wavelengths (arXiv 2407.21783).

    A pair that turns less than `low` times over `original_context` positions turns `factor`
    times slower, one that turns more than `high` times is as before, and in between the two
    frequencies are mixed linearly in the number of turns.
    """

    factor: float
    low: float
    high: float
    original_context: int


# Which values inside a block are kept for the backward pass; None keeps its input alone.
_REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": None,
    # Attention's products have batch axes, so their quadratic results are not kept.
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a decoder.

    The fields from `norm` to `rope_scaling` span the families; see `gpt2`, `llama` and
    `architectures`.

    Attributes:
      norm: "layernorm", "layernorm_fixed" (no parameters) or "rmsnorm".
      norm_position: "before" attention and MLP, "after" each, on what it adds, or "both".
      query_key_norm: the same norm on queries and keys, before the rotation: "none", of the
        "whole" vector or of each "head".
      parallel: attention and MLP read the same residual stream.
      positions: "learned" or "rotary".
      activation: "gelu" (tanh approximation, as GPT-2), "gelu_exact", "swiglu" or "geglu" (with
        the approximation).
      bias: in all linear layers (the head aside) and LayerNorms.
      qkv_bias: in the projections to query, key and value, even without `bias`.
      heads_width: of all query heads together; 0 for `width`.
      scaled_embeddings: tokens enter times the square root of the width.
      local_theta: base of the rotation in all layers but each `global_every`-th; 0 for
        `rope_theta`.
      rotary_fraction: the share of each head's features, the first, that is rotated.
      dtype: of the operands of the large products (accumulated in float32); weights, softmax,
        norms and losses stay float32.
      layers_as: "unrolled" (faster on CPU), "scan" (compiles in constant time) or "auto".
      remat: what the backward pass computes again instead of keeping it: "none", "full" (all
        inside a block) or "products" (all but the results of the large products).
      logits_chunk: number of tokens whose logits a device holds at once.
    """

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    norm: str = "layernorm"
    norm_position: str = "before"
    query_key_norm: str = "none"
    parallel: bool = False
    positions: str = "learned"
    activation: str = "gelu"
    tied: bool = True
    bias: bool = True
    qkv_bias: bool = False
    heads_width: int = 0
    scaled_embeddings: bool = False
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    local_theta: float = 0.0
    global_every: int = 1
    rotary_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    dtype: str = "float32"
    layers_as: str = "auto"
    attention: str = "auto"
    remat: str = "none"
    logits_chunk: int = 4096

    def __post_init__(self):
        choices = {
            "norm": ("layernorm", "layernorm_fixed", "rmsnorm"),
            "norm_position": ("before", "after", "both"),
            "query_key_norm": ("none", "whole", "head"),
            "positions": ("learned", "rotary"),
            "activation": ("gelu", "gelu_exact", "swiglu", "geglu"),
            "layers_as": ("auto", "unrolled", "scan"),
            "remat": tuple(_REMAT),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, not {getattr(self, field)!r}")
        if (self.heads_width or self.width) % self.heads or self.heads % self.kv_heads:
            field = "heads_width" if self.heads_width else "width"
            raise ValueError(
                f"{field} {getattr(self, field)} must divide by heads {self.heads}, and heads by "
                f"kv_heads {self.kv_heads}"
            )
        if self.positions == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            raise ValueError(
                f"rotary positions need an even number of features, not {self.rotary_width} of "
                f"{self.head_width}"
            )
        attention.choose(self.attention, dtype=self.dtype, length=self.context)

    @property
    def head_width(self) -> int:
        return (self.heads_width or self.width) // self.heads

    @property
    def rotary_width(self) -> int:
        return int(self.head_width * self.rotary_fraction)

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


class Transformer(nnx.Module):
    """Tokens (B, S) to features after the final norm (N, D), and what is observed on the way."""

    def __init__(self, config):
        self.config = config
        self.tokens = param((config.vocab_size, config.width), ("vocab", "width"), 0.02)
        learned = config.positions == "learned"
        self.positions = (
            param((config.context, config.width), ("context", "width"), 0.02) if learned else None
        )
        if config.scanned:
            self.blocks = stack(Block(config), config.layers)
        else:
            self.blocks = nnx.List([Block(config) for _ in range(config.layers)])
        self.final_norm = Norm(config, config.width, "width")
        shape, axes = (config.width, config.vocab_size), ("width", "vocab")
        self.head = None if config.tied else Linear(config, shape, axes, bias=False)

    def __call__(self, tokens_BS, function=None):
        """Features, and of each block what `function` gives of each point, stacked over layers.

        Without a function nothing is observed, and the second value is empty.
        """
        length = tokens_BS.shape[1]
        if length > self.config.context:
            raise ValueError(f"{length} positions exceed the context of {self.config.context}")

        def apply(block, x_ND, local):
            points = {}

            def observe(name, value):
                if function is not None:
                    points[name] = function(name, value)

            return block(x_ND, length, local, observe), points

        remat = "none" if function is not None else self.config.remat
        x_ND, points = self.through(self.embed(tokens_BS), apply, remat=remat)
        if not self.config.scanned:
            points = jax.tree.map(lambda *values: jnp.stack(values), *points)
        return self.final_norm(x_ND), points

    def embed(self, tokens_BS, position_BS=None):
        """What enters the first block, (N, D); at positions 0..S-1 unless others are given."""
        x_BSD = axes.keep(self.tokens[...], "model")[tokens_BS]
        if self.config.scaled_embeddings:
            x_BSD = x_BSD * self.config.width**0.5
        if self.positions is not None:
            if position_BS is None:
                x_BSD = x_BSD + self.positions[...][None, : tokens_BS.shape[1]]
            else:
                x_BSD = x_BSD + self.positions[...][position_BS]
        return axes.keep(x_BSD.reshape(-1, self.config.width), axes.ROWS)

    def through(self, x_ND, apply, *of_layers, remat="none"):
        """The stream after all blocks, and of each block what `apply` saw.

        That is stacked over layers if these are scanned, and otherwise a tuple of the layers'.

        Args:
          x_ND: see `embed`.
          apply: `apply(block, x_ND, local, *own) -> x_ND, seen`.
          *of_layers: arrays (L, ...), of which each block gets its `own`; also tuples of L arrays
            if layers are not scanned.
          remat: see `TransformerConfig`.
        """
        local_L = np.arange(1, self.config.layers + 1) % self.config.global_every != 0
        of_layers, seen = (local_L, *of_layers), []
        for i, block in enumerate([self.blocks] if self.config.scanned else self.blocks):
            graphdef, layer = nnx.split(block)

            def step(x_ND, layer_and_own, graphdef=graphdef):
                layer, *own = layer_and_own
                x_ND, seen = apply(nnx.merge(graphdef, layer), x_ND, *own)
                return axes.keep(x_ND, axes.ROWS), seen

            if remat != "none":
                step = jax.checkpoint(step, policy=_REMAT[remat])
            if self.config.scanned:
                return jax.lax.scan(step, x_ND, (layer, *of_layers))
            x_ND, of_block = step(x_ND, (layer, *(x_L[i] for x_L in of_layers)))
            seen.append(of_block)
        return x_ND, tuple(seen)

    @property
    def unembedding(self):
        """(D, V) float32."""
        return self.tokens[...].T if self.head is None else self.head.kernel[...]


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
        return self.bind(params)(tokens_BS)[0]

    def observe(
        self,
        params: Any,
        tokens_BS: jax.Array,
        function: Callable[[str, jax.Array], Any],
    ) -> dict[str, Any]:
        """What happens inside each block, `{point: (L, ...)}`.

        Args:
          params: the parameters.
          tokens_BS: int32.
          function: `function(point, value)` is what to keep of a point's activations, (N, D)
            unless said below; it sees one layer at a time, so that they need not be held for all.

        The points are "residual" (the block's input), "attention/input" (after the norm),
        "attention/heads" (queries (B, S, H, K) and keys (B, S, G, K) as they meet, a pair for
        `attention.weights`), "attention/output" (what is added to the residual stream),
        "mlp/input", "mlp/hidden" (the input of the down projection, (N, F)), "mlp/output" (what
        the down projection gives) and "output" (the block's).
        """
        return self.bind(params)(tokens_BS, function)[1]

    def logits(self, params: Any, tokens_BS: jax.Array) -> jax.Array:
        """Logits (B, S, V) float32, held whole: for small inputs."""
        module = self.bind(params)
        logits_NV = product(module(tokens_BS)[0], module.unembedding, self.config.dtype)
        return logits_NV.reshape(*tokens_BS.shape, -1)

    def logits_at(self, params: Any, tokens_BS: jax.Array, position_B: jax.Array) -> jax.Array:
        """Logits (B, V) float32 of what follows one position of each row.

        Args:
          params: the parameters.
          tokens_BS: int32.
          position_B: int32, the position of each row whose next token is asked for.
        """
        module = self.bind(params)
        x_BSD = module(tokens_BS)[0].reshape(*tokens_BS.shape, -1)
        x_BD = jnp.take_along_axis(x_BSD, position_B[:, None, None], axis=1)[:, 0]
        return product(x_BD, module.unembedding, self.config.dtype)

    def loss(self, params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """Next-token cross-entropy of each position, (B, S) float32, nats per token.

        Args:
          params: the parameters.
          batch: `tokens` (B, S+1) int32; position s predicts token s+1.
          key: unused; part of the signature that all models share.
        """
        del key
        module, tokens_BT = self.bind(params), batch["tokens"]
        x_ND, _ = module(tokens_BT[:, :-1])
        losses_N = cross_entropy(
            x_ND,
            module.unembedding,
            tokens_BT[:, 1:].reshape(-1),
            self.config.logits_chunk * axes.shards(*axes.ROWS),
            self.config.dtype,
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

    def bind(self, params: Any) -> Transformer:
        """The decoder with these parameters, for functions of its parts."""
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
