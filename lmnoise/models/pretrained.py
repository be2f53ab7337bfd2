"""Hugging Face checkpoints as parameters: one table of names an architecture.

A table maps the path of each of our leaves (of the unrolled layout, `{}` is the layer) to the
tensor that holds it. It reads both ways; so far it is used to import.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.models.layers import Spec
from lmnoise.models.transformer import LanguageModel, TransformerConfig, gpt2, llama


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a leaf lies in a checkpoint.

    Attributes:
      name: of the tensor, without the architecture's prefix; `{}` is the layer.
      transposed: stored as (out, in), as `torch.nn.Linear` does, and not as our (in, out).
      part, parts: the leaf is the part-th of `parts` equal parts of the tensor's last axis.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1

    def read(self, stored: np.ndarray) -> np.ndarray:
        """The leaf, float32, from the stored tensor."""
        leaf = np.split(stored, self.parts, axis=-1)[self.part]
        return np.ascontiguousarray(leaf.T if self.transposed else leaf, np.float32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of Hugging Face's model classes.

    Attributes:
      prefix: of tensor names; checkpoints of the bare model leave it away.
      config: translates config.json; raises a UserError at what we do not compute.
      table: our path to `Tensor`.
      buffers: endings of the names of stored constants that are no parameters.
    """

    prefix: str
    config: Callable[[Mapping[str, Any]], TransformerConfig]
    table: Mapping[str, Tensor]
    buffers: tuple[str, ...]


def from_huggingface(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[TransformerConfig, Any]:
    """Our configuration and parameters of a Hugging Face checkpoint.

    Args:
      config: the contents of config.json.
      tensors: all tensors of the checkpoint by name, of any floating type.

    Returns:
      The configuration, and nested dicts of float32 arrays on the host in the layout that
      `LanguageModel` of this configuration wants.

    Raises:
      UserError: an architecture or option that we do not compute, a tensor that is missing,
        left over or of an unexpected shape.
    """
    name = next(iter(config.get("architectures") or ()), None)
    if name not in ARCHITECTURES:
        raise UserError(
            f"config.json: 'architectures' names {name!r}; use a checkpoint of one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[name]
    ours = architecture.config(config)
    left = {
        key.removeprefix(architecture.prefix): tensor
        for key, tensor in tensors.items()
        if not key.endswith(architecture.buffers)
    }
    used = set()

    def read(path: str, spec: Spec) -> np.ndarray:
        if spec.axes[0] == "layers":
            layer = dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
            paths = [path.replace("blocks/", f"blocks/{i}/", 1) for i in range(spec.shape[0])]
            return np.stack([read(p, layer) for p in paths])
        where, key = _locate(architecture.table, path)
        used.add(key)
        return _read(where, key, left, spec.shape)

    params = tree.map_named(read, LanguageModel(ours).specs)
    # Some writers store the tied output matrix a second time.
    surplus = sorted(set(left) - used - ({"lm_head.weight"} if ours.tied else set()))
    if surplus:
        raise UserError(
            f"the checkpoint holds {len(surplus)} tensors that {name} with this config.json does "
            f"not have, first {surplus[0]!r}: check that config.json belongs to it"
        )
    return ours, params


def _locate(table: Mapping[str, Tensor], path: str) -> tuple[Tensor, str]:
    """The table's entry for one of our paths, and the tensor's name with the layer filled in."""
    first, _, rest = path.partition("/")
    if first != "blocks":
        return table[path], table[path].name
    layer, _, leaf = rest.partition("/")
    where = table[f"blocks/{{}}/{leaf}"]
    return where, where.name.format(layer)


def _read(
    where: Tensor, key: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    if key not in tensors:
        raise UserError(
            f"the checkpoint lacks the tensor {key!r}: check that all its files are there and "
            f"that config.json belongs to it"
        )
    expected = (*shape[:-1], shape[-1] * where.parts)
    expected = expected[::-1] if where.transposed else expected
    if tensors[key].shape != expected:
        raise UserError(
            f"the tensor {key!r} has shape {tensors[key].shape}, not {expected}: check that "
            f"config.json belongs to the checkpoint"
        )
    return where.read(tensors[key])


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
        "transformer.", _gpt2_config, GPT2, (".attn.bias", ".attn.masked_bias")
    ),
    "LlamaForCausalLM": Architecture("model.", _llama_config, LLAMA, (".rotary_emb.inv_freq",)),
}
