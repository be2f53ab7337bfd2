"""Hugging Face's model classes: what each computes, and one table of names each.

A table maps the path of each of our leaves (of the unrolled layout, `{}` is the layer) to the
tensor that holds it. Configurations and tables read both ways, to import and to export.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmnoise.errors import UserError
from lmnoise.models import config_json
from lmnoise.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a leaf lies in a checkpoint.

    Attributes:
      name: of the tensor, without the architecture's prefix; `{}` is the layer.
      transposed: stored as (out, in), as `torch.nn.Linear` does, and not as our (in, out).
      part, parts: the leaf is the part-th of `parts` equal parts of the tensor's outputs.
      by_head: the parts lie side by side in each head, and not in the whole tensor.
      less: this much less than the leaf is stored.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1
    by_head: bool = False
    less: float = 0.0

    def read(self, stored: np.ndarray, config: TransformerConfig) -> np.ndarray:
        """The leaf, float32, from the stored tensor."""
        whole = stored.T if self.transposed else stored
        split = whole.reshape(*whole.shape[:-1], self._groups(config), self.parts, -1)
        leaf = split[..., self.part, :].reshape(*whole.shape[:-1], -1)
        if self.less:
            leaf = leaf.astype(np.float64) + self.less
        return np.ascontiguousarray(leaf, np.float32)

    def stored_shape(self, leaf_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole stored tensor, of whose parts one has `leaf_shape`."""
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
    whole = np.ascontiguousarray(whole.T if first.transposed else whole, np.float32)
    return whole - np.float32(first.less) if first.less else whole


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of Hugging Face's model classes.

    Attributes:
      prefix: of tensor names; checkpoints of the bare model leave it away.
      translate: config.json to our configuration.
      export: its inverse, for the models that the class computes (see `for_export`).
      table: our path to `Tensor`.
      buffers: endings of the names of stored constants that are no parameters.
    """

    prefix: str
    translate: Callable[[Mapping[str, Any]], TransformerConfig]
    export: Callable[[TransformerConfig], dict[str, Any]]
    table: Mapping[str, Tensor]
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)

    def config(self, config: Mapping[str, Any]) -> TransformerConfig:
        """Our configuration of the contents of a config.json.

        Raises:
          UserError: an option that is missing, or that we do not compute.
        """
        config_json.check(config, quantization_config=(None,))
        try:
            return self.translate(config)
        except ValueError as error:
            raise UserError(f"config.json: {error}; use the original file") from error

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
      UserError: none does; it names the class and the fields that come nearest.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in HOW}
    model = dataclasses.replace(config, **defaults)
    unsaid = {}
    for name, architecture in ARCHITECTURES.items():
        try:
            said = vars(architecture.config(architecture.export(model)))
        except UserError:
            continue
        unsaid[name] = [
            f"{key}={value!r}" for key, value in vars(model).items() if said[key] != value
        ]
        if not unsaid[name]:
            return name, architecture
    nearest = min(unsaid, key=lambda name: len(unsaid[name]))
    raise UserError(
        f"no class of Hugging Face that is supported computes this model: {nearest} comes nearest "
        f"but not with {', '.join(unsaid[nearest])}; export a model of its kind"
    )


# Fields that say how a model is computed and not which; a config.json has none of them.
HOW = ("dtype", "layers_as", "attention", "remat", "logits_chunk")


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


def _linear(ours: str, theirs: str, *, bias: bool = False, **where: Any) -> dict[str, Tensor]:
    """A `torch.nn.Linear`."""
    entries = {f"{ours}/kernel": Tensor(f"{theirs}.weight", transposed=True, **where)}
    return entries | ({f"{ours}/bias": Tensor(f"{theirs}.bias", **where)} if bias else {})


OLMO = {
    "tokens": Tensor("embed_tokens.weight"),
    **_linear("blocks/{}/attention/query", "layers.{}.self_attn.q_proj"),
    **_linear("blocks/{}/attention/key", "layers.{}.self_attn.k_proj"),
    **_linear("blocks/{}/attention/value", "layers.{}.self_attn.v_proj"),
    **_linear("blocks/{}/attention/output", "layers.{}.self_attn.o_proj"),
    **_linear("blocks/{}/mlp/gate", "layers.{}.mlp.gate_proj"),
    **_linear("blocks/{}/mlp/up", "layers.{}.mlp.up_proj"),
    **_linear("blocks/{}/mlp/down", "layers.{}.mlp.down_proj"),
    **_linear("head", "lm_head"),
}

LLAMA = OLMO | {
    "blocks/{}/attention_norm/scale": Tensor("layers.{}.input_layernorm.weight"),
    "blocks/{}/mlp_norm/scale": Tensor("layers.{}.post_attention_layernorm.weight"),
    "final_norm/scale": Tensor("norm.weight"),
}

QWEN2 = LLAMA | {
    "blocks/{}/attention/query/bias": Tensor("layers.{}.self_attn.q_proj.bias"),
    "blocks/{}/attention/key/bias": Tensor("layers.{}.self_attn.k_proj.bias"),
    "blocks/{}/attention/value/bias": Tensor("layers.{}.self_attn.v_proj.bias"),
}

QWEN3 = LLAMA | {
    "blocks/{}/attention/query_norm/scale": Tensor("layers.{}.self_attn.q_norm.weight"),
    "blocks/{}/attention/key_norm/scale": Tensor("layers.{}.self_attn.k_norm.weight"),
}

OLMO2 = QWEN3 | {
    "blocks/{}/attention_norm/scale": Tensor("layers.{}.post_attention_layernorm.weight"),
    "blocks/{}/mlp_norm/scale": Tensor("layers.{}.post_feedforward_layernorm.weight"),
}


# The class multiplies by one more than the stored scale.
GEMMA3 = {
    path: dataclasses.replace(where, less=1.0) if path.endswith("/scale") else where
    for path, where in (
        QWEN3
        | {
            "blocks/{}/attention_post_norm/scale": LLAMA["blocks/{}/mlp_norm/scale"],
            "blocks/{}/mlp_norm/scale": Tensor("layers.{}.pre_feedforward_layernorm.weight"),
            "blocks/{}/mlp_post_norm/scale": Tensor("layers.{}.post_feedforward_layernorm.weight"),
        }
    ).items()
}


def _gpt_neox_part(ours: str, part: int) -> dict[str, Tensor]:
    theirs = "layers.{}.attention.query_key_value"
    return _linear(
        f"blocks/{{}}/attention/{ours}", theirs, bias=True, part=part, parts=3, by_head=True
    )


GPT_NEOX = {
    "tokens": Tensor("embed_in.weight"),
    "blocks/{}/attention_norm/scale": Tensor("layers.{}.input_layernorm.weight"),
    "blocks/{}/attention_norm/bias": Tensor("layers.{}.input_layernorm.bias"),
    **_gpt_neox_part("query", 0),
    **_gpt_neox_part("key", 1),
    **_gpt_neox_part("value", 2),
    **_linear("blocks/{}/attention/output", "layers.{}.attention.dense", bias=True),
    "blocks/{}/mlp_norm/scale": Tensor("layers.{}.post_attention_layernorm.weight"),
    "blocks/{}/mlp_norm/bias": Tensor("layers.{}.post_attention_layernorm.bias"),
    **_linear("blocks/{}/mlp/up", "layers.{}.mlp.dense_h_to_4h", bias=True),
    **_linear("blocks/{}/mlp/down", "layers.{}.mlp.dense_4h_to_h", bias=True),
    "final_norm/scale": Tensor("final_layer_norm.weight"),
    "final_norm/bias": Tensor("final_layer_norm.bias"),
    **_linear("head", "embed_out"),
}

ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(
        "transformer.",
        config_json.from_gpt2,
        config_json.to_gpt2,
        GPT2,
        (".attn.bias", ".attn.masked_bias"),
    ),
    "LlamaForCausalLM": Architecture("model.", config_json.from_llama, config_json.to_llama, LLAMA),
    "MistralForCausalLM": Architecture(
        "model.", config_json.from_mistral, config_json.to_mistral, LLAMA
    ),
    "Qwen2ForCausalLM": Architecture("model.", config_json.from_qwen2, config_json.to_qwen2, QWEN2),
    "Qwen3ForCausalLM": Architecture("model.", config_json.from_qwen3, config_json.to_qwen3, QWEN3),
    "OlmoForCausalLM": Architecture("model.", config_json.from_olmo, config_json.to_olmo, OLMO),
    "Olmo2ForCausalLM": Architecture("model.", config_json.from_olmo2, config_json.to_olmo2, OLMO2),
    "Gemma3ForCausalLM": Architecture(
        "model.", config_json.from_gemma3, config_json.to_gemma3, GEMMA3
    ),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox.",
        config_json.from_gpt_neox,
        config_json.to_gpt_neox,
        GPT_NEOX,
        (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    ),
}
