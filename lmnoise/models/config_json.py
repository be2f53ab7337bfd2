"""Hugging Face's config.json of each supported class, as our configuration and back.

A translation raises a UserError that names the option if the class with it computes something
that we do not. The way back writes the spelling that transformers 4 and 5 both read.
"""

from collections.abc import Mapping
from typing import Any

from lmnoise.errors import UserError
from lmnoise.models.transformer import RopeScaling, TransformerConfig, gpt2, llama

type Json = Mapping[str, Any]

# Names of the activation; the first of ours is the one that is written.
_GELU = {
    "gelu_new": "gelu",
    "gelu": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
}


def check(config: Json, **supported: tuple[Any, ...]) -> None:
    """Raises a UserError unless each option, by default its first value, has one of its values."""
    for key, values in supported.items():
        if config.get(key, values[0]) not in values:
            raise UserError(
                f"config.json: {key!r} is {config[key]!r}, which is not supported; use a "
                f"checkpoint where it is {' or '.join(map(repr, values))}"
            )


def _count(config: Json, key: str) -> int:
    value = config.get(key)
    if value is None:
        raise UserError(f"config.json: {key!r} is missing; add it, or use the original file")
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"config.json: {key!r} is {value!r}, not a positive whole number; use the original file"
        )
    return value


def _activation(config: Json, key: str, default: str) -> str:
    check(config, **{key: (default, *_GELU)})
    return _GELU[config.get(key, default)]


def _activation_name(config: TransformerConfig) -> str | None:
    return next((theirs for theirs, ours in _GELU.items() if ours == config.activation), None)


def from_gpt2(config: Json) -> TransformerConfig:
    check(
        config,
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    width = _count(config, "n_embd")
    return gpt2(
        vocab_size=_count(config, "vocab_size"),
        context=_count(config, "n_positions"),
        layers=_count(config, "n_layer"),
        width=width,
        heads=_count(config, "n_head"),
        mlp_width=config.get("n_inner") or 4 * width,
        activation=_activation(config, "activation_function", "gelu_new"),
        tied=config.get("tie_word_embeddings", True),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
    )


def to_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": _activation_name(config),
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": config.norm_epsilon,
    }


def from_gpt_neox(config: Json) -> TransformerConfig:
    check(config, attention_bias=(True,))
    rope = _rope(config, base="rotary_emb_base")
    fraction = rope.pop("partial_rotary_factor", None) or config.get("rotary_pct", 0.25)
    return gpt2(
        **_sizes(config),
        positions="rotary",
        parallel=config.get("use_parallel_residual", True),
        activation=_activation(config, "hidden_act", "gelu"),
        tied=config.get("tie_word_embeddings", False),
        norm_epsilon=config.get("layer_norm_eps", 1e-5),
        rotary_fraction=float(fraction),
        **rope,
    )


def to_gpt_neox(config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **_sizes_json(config),
        "use_parallel_residual": config.parallel,
        "hidden_act": _activation_name(config),
        "layer_norm_eps": config.norm_epsilon,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_theta,
        "rope_scaling": _rope_scaling_json(config),
    }


def from_llama(config: Json) -> TransformerConfig:
    width, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    # transformers demands it of this class even with a head width of its own.
    if width % heads:
        raise UserError(
            f"config.json: 'hidden_size' {width} is no multiple of 'num_attention_heads' {heads}; "
            f"use the original file"
        )
    return _from_llama_like(config)


def to_llama(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("LlamaForCausalLM", "llama", config)


def from_mistral(config: Json) -> TransformerConfig:
    # Attention windows are not computed: up to the window's length the model is exact.
    window = config.get("sliding_window", 4096) or None
    return _from_llama_like(config, window=window)


def to_mistral(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("MistralForCausalLM", "mistral", config) | {"sliding_window": None}


def from_qwen2(config: Json) -> TransformerConfig:
    return _from_llama_like(config, window=_qwen_window(config), qkv_bias=True)


def to_qwen2(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("Qwen2ForCausalLM", "qwen2", config) | {"use_sliding_window": False}


def from_qwen3(config: Json) -> TransformerConfig:
    config = {"head_dim": 128} | config
    return _from_llama_like(config, window=_qwen_window(config), query_key_norm="head")


def to_qwen3(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("Qwen3ForCausalLM", "qwen3", config) | {"use_sliding_window": False}


def _qwen_window(config: Json) -> int | None:
    return config.get("sliding_window", 4096) if config.get("use_sliding_window") else None


def from_olmo(config: Json) -> TransformerConfig:
    check(config, clip_qkv=(None,))
    # The class has no option for the epsilon.
    return _from_llama_like(config, norm="layernorm_fixed", norm_epsilon=1e-5)


def to_olmo(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("OlmoForCausalLM", "olmo", config)


def from_olmo2(config: Json) -> TransformerConfig:
    config = {"rms_norm_eps": 1e-5} | config
    return _from_llama_like(config, norm_position="after", query_key_norm="whole")


def to_olmo2(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("Olmo2ForCausalLM", "olmo2", config)


def from_gemma3(config: Json) -> TransformerConfig:
    defaults = {"head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": True}
    config = defaults | config
    check(
        config,
        hidden_activation=("gelu_pytorch_tanh",),
        query_pre_attn_scalar=(config["head_dim"],),
        attn_logit_softcapping=(None,),
        final_logit_softcapping=(None,),
        use_bidirectional_attention=(False, None),
    )
    rope = config.get("rope_parameters") or {}
    plain = {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    local = _rope({"rope_parameters": plain | rope.get("sliding_attention", {})}, base="rope_theta")
    everywhere = {"rope_theta": config.get("rope_theta", 1e6), **(config.get("rope_scaling") or {})}
    return _from_llama_like(
        config | {"rope_parameters": everywhere | rope.get("full_attention", {})},
        window=config.get("sliding_window", 4096),
        norm_position="both",
        query_key_norm="head",
        activation="geglu",
        scaled_embeddings=True,
        local_theta=local["rope_theta"],
        global_every=_global_every(config),
    )


def _global_every(config: Json) -> int:
    """Each which layer attends without a window and has the global rotary base."""
    layers = _count(config, "num_hidden_layers")
    every = config.get("sliding_window_pattern", 6)
    types = config.get("layer_types") or _layer_types(layers, every)
    if types != _layer_types(layers, every):
        every = types.index("full_attention") + 1 if "full_attention" in types else layers + 1
    if types != _layer_types(layers, every):
        raise UserError(
            f"config.json: 'layer_types' is {types!r}, which is not supported; use a checkpoint "
            f"where each n-th is 'full_attention' and the others 'sliding_attention'"
        )
    return every


def _layer_types(layers: int, every: int) -> list[str]:
    kinds = ("full_attention", "sliding_attention")
    return [kinds[bool(i % every)] for i in range(1, layers + 1)]


def to_gemma3(config: TransformerConfig) -> dict[str, Any]:
    return _llama_like_json("Gemma3ForCausalLM", "gemma3_text", config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.head_width,
        "sliding_window": config.context,
        "sliding_window_pattern": config.global_every,
        "layer_types": _layer_types(config.layers, config.global_every),
        "rope_local_base_freq": config.local_theta,
    }


def _sizes(config: Json) -> dict[str, int]:
    """The sizes under the names that all classes but GPT-2's share."""
    return {
        "vocab_size": _count(config, "vocab_size"),
        "context": _count(config, "max_position_embeddings"),
        "layers": _count(config, "num_hidden_layers"),
        "width": _count(config, "hidden_size"),
        "heads": _count(config, "num_attention_heads"),
        "mlp_width": _count(config, "intermediate_size"),
    }


def _sizes_json(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "tie_word_embeddings": config.tied,
    }


def _from_llama_like(
    config: Json, *, window: int | None = None, **fields: Any
) -> TransformerConfig:
    """A class that descends from Llama; `fields` are its own, `window` bounds the context."""
    check(
        config,
        hidden_act=("silu",),
        attention_bias=(False,),
        mlp_bias=(False,),
        partial_rotary_factor=(None, 1.0),
    )
    sizes = _sizes(config)
    heads = sizes["heads"]
    heads_width = heads * config["head_dim"] if config.get("head_dim") else 0
    rope = _rope(config, base="rope_theta")
    check(rope, partial_rotary_factor=(None, 1.0))
    rope.pop("partial_rotary_factor", None)
    common = {
        **sizes,
        "context": min(sizes["context"], window or sizes["context"]),
        "kv_heads": config.get("num_key_value_heads") or heads,
        "heads_width": 0 if heads_width == sizes["width"] else heads_width,
        "tied": config.get("tie_word_embeddings", False),
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
    }
    return llama(**{**common, **rope, **fields})


def _llama_like_json(name: str, model_type: str, config: TransformerConfig) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": model_type,
        **_sizes_json(config),
        "hidden_act": "silu",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_json(config),
    }


def _rope(config: Json, *, base: str) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, where it is given, `partial_rotary_factor`.

    transformers 5 moved them into `rope_parameters`; before, `base` and `rope_scaling` were
    options of their own.
    """
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    nested = any(isinstance(value, Mapping) for value in rope.values())
    if kind not in ("default", "llama3") or nested:
        raise UserError(
            f"config.json: {key!r} is {rope!r}, which is not supported; use a checkpoint with "
            f"rotary embeddings of 'rope_type' 'default' or 'llama3'"
        )
    fields = {"rope_theta": float(rope.get("rope_theta", config.get(base, 10_000.0)))}
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        missing = [name for name in names if name not in rope]
        if missing:
            raise UserError(f"config.json: {key!r} lacks {missing[0]!r}; use the original file")
        original = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
        fields["rope_scaling"] = RopeScaling(*(float(rope[name]) for name in names), original)
    return fields


def _rope_scaling_json(config: TransformerConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    return scaling and {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }
