"""GGUF files <-> configurations and parameters, by way of Hugging Face's names.

Quantised tensors are dequantised to float32 one at a time, as the file is read.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

from lmnoise.errors import UserError
from lmnoise.models.architectures import join
from lmnoise.models.pretrained import from_huggingface, stored_parts
from lmnoise.models.transformer import TransformerConfig


class Kind(NamedTuple):
    """One value of `general.architecture`.

    Attributes:
      name: the class of Hugging Face's that computes it.
      fields: keys of config.json, and the metadata that hold them (behind the architecture).
      modules: names of modules; `{}` is the layer.
      interleaved: modules whose outputs of each head were reordered for interleaved rotary
        positions (ours, as Hugging Face's, rotate one half of a head against the other), and the
        key of config.json that counts their heads.
      transposed: modules whose kernels Hugging Face stores as (in, out).
      less: Hugging Face stores the scales of norms this much less.
    """

    name: str
    fields: Mapping[str, str]
    modules: Mapping[str, str]
    interleaved: Mapping[str, str] = MappingProxyType({})
    transposed: tuple[str, ...] = ()
    less: float = 0.0

    def heads(self, module: str, config: Mapping[str, Any]) -> int:
        """How many heads an interleaved module has."""
        return config.get(self.interleaved[module]) or config["num_attention_heads"]


_LLAMA_FIELDS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_LLAMA_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_GPT2_FIELDS = {
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_GPT2_MODULES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
_GEMMA3_FIELDS = _LLAMA_FIELDS | {
    # llama.cpp divides by the root of the head's width, whatever the model was trained with.
    "query_pre_attn_scalar": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "rope_local_base_freq": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GEMMA3_MODULES = _LLAMA_MODULES | {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
KINDS = {
    "llama": Kind(
        "LlamaForCausalLM",
        _LLAMA_FIELDS,
        _LLAMA_MODULES,
        interleaved={
            "blk.{}.attn_q": "num_attention_heads",
            "blk.{}.attn_k": "num_key_value_heads",
        },
    ),
    "qwen2": Kind("Qwen2ForCausalLM", _LLAMA_FIELDS, _LLAMA_MODULES),
    "gemma3": Kind("Gemma3ForCausalLM", _GEMMA3_FIELDS, _GEMMA3_MODULES, less=1.0),
    "gpt2": Kind(
        "GPT2LMHeadModel",
        _GPT2_FIELDS,
        _GPT2_MODULES,
        transposed=("blk.{}.attn_qkv", "blk.{}.attn_output", "blk.{}.ffn_up", "blk.{}.ffn_down"),
    ),
}


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Opens a GGUF file; its tensors stay memory-mapped.

    Raises:
      UserError: there is no such file, or it is no GGUF file, or cut off.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: name a .gguf file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is no GGUF file, or cut off ({error}): get it again") from None


def read_gguf(reader: gguf.GGUFReader) -> tuple[TransformerConfig, Any, str]:
    """The model in a GGUF file.

    Returns:
      The configuration, of unrolled layers; the parameters, nested dicts of float32 arrays on
      the host; and a note such as "4-bit weights (Q4_1)", by the type that most numbers of the
      blocks have, or "" for float32.

    Raises:
      UserError: an architecture, option or type of tensor that is not supported, or tensors that
        do not fit the metadata.
    """
    path = Path(reader.data.filename)
    architecture = _field(reader, "general.architecture")
    if architecture not in KINDS:
        raise UserError(
            f"{path} is of the architecture {architecture!r}; use a file of one of "
            f"{', '.join(KINDS)}, or the model's Hugging Face folder"
        )
    kind = KINDS[architecture]
    try:
        content = _config(reader, kind)
        config, params = from_huggingface(content, _Tensors(reader, kind, content))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    counts = Counter()
    for tensor in reader.tensors:
        if tensor.name.startswith("blk."):
            counts[tensor.tensor_type.name] += tensor.n_elements
    stored = counts.most_common(1)[0][0]
    bits = re.search(r"\d+", stored)[0]
    return config, params, "" if stored == "F32" else f"{bits}-bit weights ({stored})"


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _config(reader: gguf.GGUFReader, kind: Kind) -> dict[str, Any]:
    """What config.json would say."""
    architecture = _field(reader, "general.architecture")
    values = {key: _field(reader, f"{architecture}.{name}") for key, name in kind.fields.items()}
    # Floats were rounded to float32; the shortest decimal that rounds to the same was meant.
    values = {
        key: float(str(np.float32(value))) if isinstance(value, float) else value
        for key, value in values.items()
        if value is not None
    }
    heads = values.get("num_attention_heads")
    whole = {None, values.get("head_dim", heads and values.get("hidden_size", 0) // heads)}
    unsupported = {
        "rope.scaling.type": {None, "none"},
        "rope.dimension_count": whole if "rope.freq_base" in kind.fields.values() else {None},
        "expert_count": {None, 0},
    }
    for name, allowed in unsupported.items():
        value = _field(reader, f"{architecture}.{name}")
        if value not in allowed:
            raise UserError(f"its {name!r} is {value!r}, which is not supported; use another model")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    if "token_embd.weight" in shapes:
        values["vocab_size"] = shapes["token_embd.weight"][-1]
    return values | {
        "architectures": [kind.name],
        "tie_word_embeddings": "output.weight" not in shapes,
    }


class _Tensors(Mapping):
    """A file's tensors under Hugging Face's names, dequantised when they are wanted."""

    def __init__(self, reader: gguf.GGUFReader, kind: Kind, config: Mapping[str, Any]):
        self._kind, self._config = kind, config
        self._tensors = {_rename(t.name, kind.modules): t for t in reader.tensors}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            stored = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"the tensor {tensor.name!r} is of the type {tensor.tensor_type.name}, which the "
                "package gguf cannot dequantise: use a file of another type"
            ) from None
        module = _generic(tensor.name)
        if module in self._kind.transposed and stored.ndim == 2:
            return stored.T
        if module in self._kind.interleaved:
            return _halves(stored, self._kind.heads(module, self._config))
        if self._kind.less and module.endswith("norm"):
            # In float64, so that the table's addition gives the file's float32 again.
            return stored.astype(np.float64) - self._kind.less
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _generic(name: str) -> str:
    """The module of a tensor without its layer: `blk.{}.attn_q` of `blk.3.attn_q.weight`."""
    return re.sub(r"\.\d+\.", ".{}.", name.rpartition(".")[0], count=1)


def _rename(name: str, modules: Mapping[str, str]) -> str:
    """A tensor's name with the module's other name; one of no known module keeps its own."""
    module = _generic(name)
    if module not in modules:
        return name
    layer = re.findall(r"\.(\d+)\.", name)
    return f"{modules[module].format(*layer)}.{name.rpartition('.')[2]}"


def _halves(stored: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (0, 0', 1, 1', ...) to halves (0, 1, ..., 0', 1', ...)."""
    rows = stored.reshape(heads, -1, 2, *stored.shape[1:])
    return rows.swapaxes(1, 2).reshape(stored.shape)


def _pairs(stored: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `_halves`."""
    rows = stored.reshape(heads, 2, -1, *stored.shape[1:])
    return rows.swapaxes(1, 2).reshape(stored.shape)


def write_gguf(path: Path, config: TransformerConfig, params: Any) -> None:
    """Writes a model, parameters in the unrolled layout, as a GGUF file of float32 tensors.

    Raises:
      UserError: no architecture that `read_gguf` reads computes this model.
    """
    content, tensors = stored_parts(config, params)
    name = content["architectures"][0]
    architecture = next((a for a, kind in KINDS.items() if kind.name == name), None)
    if architecture is None:
        raise UserError(f"a {name} is not written as GGUF: use one of {', '.join(KINDS)}")
    kind = KINDS[architecture]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    for field, value in {field: content.get(key) for key, field in kind.fields.items()}.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        if value is not None:
            add(f"{architecture}.{field}", value)
    modules = {theirs: ours for ours, theirs in kind.modules.items()}
    for stored_name, parts in tensors.items():
        if kind.less:
            parts = [(dataclasses.replace(where, less=0.0), leaf) for where, leaf in parts]
        name, stored = _rename(stored_name, modules), join(parts, config)
        module = _generic(name)
        if module in kind.transposed and stored.ndim == 2:
            stored = np.ascontiguousarray(stored.T)
        if module in kind.interleaved:
            stored = _pairs(stored, kind.heads(module, content))
        writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
