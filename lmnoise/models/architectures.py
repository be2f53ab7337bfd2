"""Hugging Face's model classes: translations of config.json, and one table of names each.

A table maps the path of each of our leaves (of the unrolled layout, `{}` is the layer) to the
tensor that holds it. Configurations and tables read both ways, to import and to export.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmnoise.errors import UserError
from lmnoise.models.transformer import TransformerConfig, gpt2, llama


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a leaf lies in a checkpoint.

    Attributes:
      name: of the tensor, without the architecture's prefix; `{}` is the layer.
      transposed: stored as (out, in), as `torch.nn.Linear` does, and not as our (in, out).
      part, parts: the leaf is the part-th of `parts` equal parts of the tensor's outputs.
      by_head: the parts lie side by side in each head, and not in the whole tensor.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def read(self, stored: np.ndarray, config: TransformerConfig) -> np.ndarray:
        """The leaf, float32, from the stored tensor."""
        whole = stored.T if self.transposed else stored
        split = whole.reshape(*whole.shape[:-1], self._groups(config), self.parts, -1)
        leaf = split[..., self.part, :].reshape(*whole.shape[:-1], -1)
        return np.ascontiguousarray(leaf, np.float32)

    def stored_shape(
        self, leaf_shape: tuple[int, ...], config: TransformerConfig
    ) -> tuple[int, ...]:
        """The shape of the whole stored tensor, of whose parts one has `leaf_shape`."""
        del config  # all parts are alike in every architecture that is here
        shape = (*leaf_shape[:-1], leaf_shape[-1] * self.parts)
        return shape[::-1] if self.transposed else shape

    def _groups(self, config: TransformerConfig) -> int:
        return config.heads if self.by_head else 1


def join(parts: Sequence[tuple[Tensor, np.ndarray]], config: TransformerConfig) -> np.ndarray:
    """The stored tensor, float32, from the leaves that share it, in any order.

    The inverse of `Tensor.read`.

    Raises:
      ValueError: the leaves are not all the parts of one tensor.
    """
    parts = sorted(parts, key=lambda entry: entry[0].part)
    first = parts[0][0]
    expected = [dataclasses.replace(first, part=i) for i in range(first.parts)]
    if [where for where, _ in parts] != expected:
        raise ValueError(f"parts must be all {first.parts} of {first.name!r}, not {parts}")
    groups = first._groups(config)
    split = [np.reshape(leaf, (*leaf.shape[:-1], groups, -1)) for _, leaf in parts]
    whole = np.stack(split, axis=-2).reshape(*split[0].shape[:-2], -1)
    return np.ascontiguousarray(whole.T if first.transposed else whole, np.float32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of Hugging Face's model classes.

    Attributes:
      prefix: of tensor names; checkpoints of the bare model leave it away.
      config: translates config.json; raises a UserError at what we do not compute.
      export: its inverse, for the models that the class computes (see `for_export`).
      table: our path to `Tensor`.
      buffers: endings of the names of stored constants that are no parameters.
    """

    prefix: str
    config: Callable[[Mapping[str, Any]], TransformerConfig]
    export: Callable[[TransformerConfig], dict[str, Any]]
    table: Mapping[str, Tensor]
    buffers: tuple[str, ...]

    def locate(self, path: str) -> tuple[Tensor, str]:
        """The table's entry for one of our paths, and the tensor's name with the layer in it."""
        first, _, rest = path.partition("/")
        if first != "blocks":
            return self.table[path], self.table[path].name
        layer, _, leaf = rest.partition("/")
        where = self.table[f"blocks/{{}}/{leaf}"]
        return where, where.name.format(layer)


def find(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """The class that a config.json names, and what we know of it.

    Raises:
      UserError: the class is not supported.
    """
    name = next(iter(config.get("architectures") or ()), None)
    if name not in ARCHITECTURES:
        raise UserError(
            f"config.json: 'architectures' names {name!r}; use a checkpoint of one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def for_export(config: TransformerConfig) -> tuple[str, Architecture]:
    """The first class that computes this model: whose config.json says all of it.

    Raises:
      UserError: none does.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in HOW}
    model = dataclasses.replace(config, **defaults)
    for name, architecture in ARCHITECTURES.items():
        try:
            if architecture.config(architecture.export(model)) == model:
                return name, architecture
        except UserError:
            continue
    raise UserError(
        f"none of {', '.join(ARCHITECTURES)} computes this model ({model}): export a model of "
        f"one of these families"
    )


# Fields that say how a model is computed and not which; a config.json has none of them.
HOW = ("dtype", "layers_as", "attention", "remat", "logits_chunk")


def _option(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise UserError(f"config.json: {key!r} is missing; add it, or use the original file")
    return config[key]


def _check(config: Mapping[str, Any], **supported: tuple[Any, ...]) -> None:
    """Raises a UserError unless each option, by default its first value, has one of its values."""
    for key, values in supported.items():
        if config.get(key, values[0]) not in values:
            raise UserError(
                f"config.json: {key!r} is {config[key]!r}, which is not supported; use a "
                f"checkpoint where it is {' or '.join(map(repr, values))}"
            )


def _gpt2_config(config: Mapping[str, Any]) -> TransformerConfig:
    _check(
        config,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    width = _option(config, "n_embd")
    return gpt2(
        vocab_size=_option(config, "vocab_size"),
        context=_option(config, "n_positions"),
        layers=_option(config, "n_layer"),
        width=width,
        heads=_option(config, "n_head"),
        mlp_width=config.get("n_inner") or 4 * width,
        tied=config.get("tie_word_embeddings", True),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
    )


def _gpt2_json(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": config.norm_epsilon,
    }


def _llama_config(config: Mapping[str, Any]) -> TransformerConfig:
    width, heads = _option(config, "hidden_size"), _option(config, "num_attention_heads")
    _check(
        config,
        hidden_act=("silu",),
        attention_bias=(False,),
        mlp_bias=(False,),
        head_dim=(None, width // heads),
    )
    return llama(
        vocab_size=_option(config, "vocab_size"),
        context=_option(config, "max_position_embeddings"),
        layers=_option(config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        mlp_width=_option(config, "intermediate_size"),
        tied=config.get("tie_word_embeddings", False),
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
    )


def _llama_json(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_width,
        "tie_word_embeddings": config.tied,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
    }


def _rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotary frequencies; transformers 5 moved it into `rope_parameters`."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(
            f"config.json: {key!r} is {rope!r}, which is not supported; use a checkpoint with "
            f"plain rotary embeddings ('rope_type': 'default')"
        )
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


# Conv1D kernels are stored as (in, out), and query, key and value side by side.
GPT2 = {
    "tokens": Tensor("wte.weight"),
    "positions": Tensor("wpe.weight"),
    "blocks/{}/attention_norm/scale": Tensor("h.{}.ln_1.weight"),
    "blocks/{}/attention_norm/bias": Tensor("h.{}.ln_1.bias"),
    "blocks/{}/attention/query/kernel": Tensor("h.{}.attn.c_attn.weight", part=0, parts=3),
    "blocks/{}/attention/query/bias": Tensor("h.{}.attn.c_attn.bias", part=0, parts=3),
    "blocks/{}/attention/key/kernel": Tensor("h.{}.attn.c_attn.weight", part=1, parts=3),
    "blocks/{}/attention/key/bias": Tensor("h.{}.attn.c_attn.bias", part=1, parts=3),
    "blocks/{}/attention/value/kernel": Tensor("h.{}.attn.c_attn.weight", part=2, parts=3),
    "blocks/{}/attention/value/bias": Tensor("h.{}.attn.c_attn.bias", part=2, parts=3),
    "blocks/{}/attention/output/kernel": Tensor("h.{}.attn.c_proj.weight"),
    "blocks/{}/attention/output/bias": Tensor("h.{}.attn.c_proj.bias"),
    "blocks/{}/mlp_norm/scale": Tensor("h.{}.ln_2.weight"),
    "blocks/{}/mlp_norm/bias": Tensor("h.{}.ln_2.bias"),
    "blocks/{}/mlp/up/kernel": Tensor("h.{}.mlp.c_fc.weight"),
    "blocks/{}/mlp/up/bias": Tensor("h.{}.mlp.c_fc.bias"),
    "blocks/{}/mlp/down/kernel": Tensor("h.{}.mlp.c_proj.weight"),
    "blocks/{}/mlp/down/bias": Tensor("h.{}.mlp.c_proj.bias"),
    "final_norm/scale": Tensor("ln_f.weight"),
    "final_norm/bias": Tensor("ln_f.bias"),
    "head/kernel": Tensor("lm_head.weight", transposed=True),
}

LLAMA = {
    "tokens": Tensor("embed_tokens.weight"),
    "blocks/{}/attention_norm/scale": Tensor("layers.{}.input_layernorm.weight"),
    "blocks/{}/attention/query/kernel": Tensor("layers.{}.self_attn.q_proj.weight", True),
    "blocks/{}/attention/key/kernel": Tensor("layers.{}.self_attn.k_proj.weight", True),
    "blocks/{}/attention/value/kernel": Tensor("layers.{}.self_attn.v_proj.weight", True),
    "blocks/{}/attention/output/kernel": Tensor("layers.{}.self_attn.o_proj.weight", True),
    "blocks/{}/mlp_norm/scale": Tensor("layers.{}.post_attention_layernorm.weight"),
    "blocks/{}/mlp/gate/kernel": Tensor("layers.{}.mlp.gate_proj.weight", True),
    "blocks/{}/mlp/up/kernel": Tensor("layers.{}.mlp.up_proj.weight", True),
    "blocks/{}/mlp/down/kernel": Tensor("layers.{}.mlp.down_proj.weight", True),
    "final_norm/scale": Tensor("norm.weight"),
    "head/kernel": Tensor("lm_head.weight", transposed=True),
}

ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(
        "transformer.", _gpt2_config, _gpt2_json, GPT2, (".attn.bias", ".attn.masked_bias")
    ),
    "LlamaForCausalLM": Architecture(
        "model.", _llama_config, _llama_json, LLAMA, (".rotary_emb.inv_freq",)
    ),
}
