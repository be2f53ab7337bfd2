"""GGUF files: written and read again, the permutation of llama files, what is refused."""

import dataclasses
import shutil

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise import tree
from lmnoise.errors import UserError
from lmnoise.models.architectures import HOW
from lmnoise.models.gguf_file import KINDS, open_gguf, read_gguf, write_gguf
from lmnoise.models.transformer import LanguageModel, gpt2, llama

SHAPE = dict(vocab_size=64, context=32, layers=2, width=32, heads=4)
CONFIGS = {
    "gpt2": gpt2(**SHAPE),
    "gpt2 untied": gpt2(**SHAPE, tied=False),
    "llama": llama(**SHAPE, kv_heads=2, mlp_width=64),
    "llama tied": llama(**SHAPE, kv_heads=1, mlp_width=96, tied=True, rope_theta=1e5),
    "qwen2": llama(**SHAPE, kv_heads=4, mlp_width=64, qkv_bias=True),
    "gemma3": llama(
        **SHAPE,
        kv_heads=1,
        mlp_width=64,
        heads_width=64,
        norm_position="both",
        query_key_norm="head",
        activation="geglu",
        tied=True,
        scaled_embeddings=True,
        norm_epsilon=1e-6,
        rope_theta=1e6,
        local_theta=1e4,
        global_every=2,
    ),
}


def random_params(config, seed=0):
    generator = np.random.default_rng(seed)
    specs = LanguageModel(config).specs
    return jax.tree.map(lambda spec: generator.normal(size=spec.shape).astype(np.float32), specs)


def write(path, config, params, field=None, **changes):
    """A file as `write_gguf` makes it, with metadata or tensors changed; None takes one away."""
    write_gguf(path, config, params)
    reader = gguf.GGUFReader(path)
    fields = {n: f for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    architecture = (field or {}).get("general.architecture")
    writer = gguf.GGUFWriter(
        path.with_suffix(".tmp"), architecture or fields["general.architecture"].contents()
    )
    for name, value in fields.items():
        if name != "general.architecture" and name not in (field or {}):
            writer.add_key_value(name, value.contents(), value.types[0])
    for name, value in (field or {}).items():
        if name != "general.architecture" and value is not None:
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else None
            writer.add_key_value(name, value, kind or gguf.GGUFValueType.UINT32)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    for name, tensor in (tensors | changes.pop("tensors", {})).items():
        if tensor is not None:
            raw = changes.get("types", {}).get(name)
            data = tensor if raw is None else gguf.quants.quantize(tensor, raw)
            writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".tmp").rename(path)


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        read_gguf(open_gguf(path))
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(list(CONFIGS)), seed=st.integers(0, 2**32 - 1))
def test_written_and_read_again_is_exact(tmp_path_factory, name, seed):
    folder = tmp_path_factory.mktemp("gguf")
    config, params = CONFIGS[name], random_params(CONFIGS[name], seed)
    write_gguf(folder / "model.gguf", config, params)
    again, back, note = read_gguf(open_gguf(folder / "model.gguf"))
    assert dataclasses.replace(again, **{f: getattr(config, f) for f in HOW}) == config
    assert not again.scanned
    assert note == ""
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    shutil.rmtree(folder)


def test_names_shapes_and_the_order_of_rotary_rows(tmp_path):
    """What other programs find in a llama file: interleaved queries and keys, plain values."""
    config = CONFIGS["llama"]
    params = random_params(config)
    write_gguf(tmp_path / "model.gguf", config, params)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {t.name: t.data for t in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
    assert set(tensors) <= {f"{name}.weight" for _, name in names.mapping.values()}
    attention = params["blocks"][1]["attention"]
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight"], attention["value"]["kernel"].T)
    for name, stored in (("query", "attn_q"), ("key", "attn_k")):
        kernel, half = attention[name]["kernel"].T, config.head_width // 2
        for row, values in enumerate(tensors[f"blk.1.{stored}.weight"]):
            head, place = divmod(row, config.head_width)
            ours = head * config.head_width + place // 2 + half * (place % 2)
            np.testing.assert_array_equal(values, kernel[ours])


def test_names_scales_and_defaults_of_gemma3(tmp_path):
    """What other programs write: scales as they multiply, no local base, a pattern of 6 layers."""
    config = CONFIGS["gemma3"]
    params = random_params(config)
    path = tmp_path / "model.gguf"
    taken = ("rope.freq_base_swa", "attention.sliding_window_pattern")
    write(path, config, params, {f"gemma3.{name}": None for name in taken})
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.layers)
    assert set(tensors) <= {f"{name}.weight" for _, name in names.mapping.values()}
    ours = {
        "attn_norm": "attention_norm",
        "attn_q_norm": "attention/query_norm",
        "attn_k_norm": "attention/key_norm",
        "post_attention_norm": "attention_post_norm",
        "ffn_norm": "mlp_norm",
        "post_ffw_norm": "mlp_post_norm",
    }
    leaves = dict(tree.named_leaves(params))
    for theirs, name in ours.items():
        np.testing.assert_array_equal(
            tensors[f"blk.1.{theirs}.weight"], leaves[f"blocks/1/{name}/scale"]
        )
    np.testing.assert_array_equal(tensors["output_norm.weight"], leaves["final_norm/scale"])
    again, back, _ = read_gguf(open_gguf(path))
    assert (again.local_theta, again.rope_theta, again.global_every) == (1e4, 1e6, 6)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
    ("kind", "note", "error"),
    [
        (gguf.GGMLQuantizationType.F16, "16-bit weights (F16)", 1e-3),
        (gguf.GGMLQuantizationType.BF16, "16-bit weights (BF16)", 1e-2),
        (gguf.GGMLQuantizationType.Q8_0, "8-bit weights (Q8_0)", 2e-2),
        (gguf.GGMLQuantizationType.Q4_1, "4-bit weights (Q4_1)", 0.3),
    ],
)
def test_quantised_tensors(tmp_path, kind, note, error):
    config = CONFIGS["llama"]
    params = random_params(config)
    matrices = ("token_embd", "output", "ffn_up", "ffn_gate", "attn_q", "attn_k")
    path = tmp_path / "model.gguf"
    write_gguf(path, config, params)
    names = [t.name for t in gguf.GGUFReader(path).tensors]
    types = {n: kind for n in names if n.split(".")[-2] in matrices}
    write(path, config, params, types=types)
    _, back, said = read_gguf(open_gguf(path))
    assert said == note
    for (name, leaf), wanted in zip(tree.named_leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=error, atol=error, err_msg=name)
    exact = np.testing.assert_array_equal
    exact(back["final_norm"]["scale"], params["final_norm"]["scale"])


def test_defaults_of_metadata_that_are_not_there(tmp_path):
    config = CONFIGS["llama"]
    field = dict.fromkeys(["llama.rope.freq_base", "llama.attention.key_length"])
    write(tmp_path / "model.gguf", config, random_params(config), field)
    again, _, _ = read_gguf(open_gguf(tmp_path / "model.gguf"))
    assert again.rope_theta == 10_000
    assert again.head_width == config.head_width


@pytest.mark.parametrize(
    ("field", "tensors", "match"),
    [
        ({"general.architecture": "gemma2"}, {}, r"'gemma2'; use .* llama, qwen2, gemma3, gpt2"),
        ({"llama.rope.scaling.type": "yarn"}, {}, r"'rope\.scaling\.type' is 'yarn'"),
        ({"llama.rope.dimension_count": 4}, {}, r"'rope\.dimension_count' is 4"),
        ({"llama.expert_count": 8}, {}, "'expert_count' is 8"),
        ({"llama.block_count": None}, {}, "'num_hidden_layers' is missing"),
        ({"llama.block_count": 1}, {}, r"holds 9 tensors .*layers\.1\."),
        ({}, {"blk.1.ffn_up.weight": None}, r"lacks the tensor 'layers\.1\.mlp\.up_proj"),
        ({}, {"token_embd.weight": None}, "'vocab_size' is missing"),
        ({}, {"rope_freqs.weight": np.ones(4, np.float32)}, r"1 tensors .*'rope_freqs\.weight'"),
        ({}, {"blk.0.attn_v.weight": np.ones((32, 32), np.float32)}, r"v_proj.* has shape"),
        ({}, {"output_norm.weight": np.full(32, np.nan, np.float32)}, r"norm\.weight.*finite"),
    ],
)
def test_files_that_are_refused(tmp_path, field, tensors, match):
    config = CONFIGS["llama"]
    path = tmp_path / "model.gguf"
    write(path, config, random_params(config), field, tensors=tensors)
    refused(path, match)


def test_damaged_files(tmp_path):
    refused(tmp_path / "none.gguf", "there is no file")
    refused(tmp_path, "there is no file")
    path = tmp_path / "model.gguf"
    write_gguf(path, CONFIGS["llama"], random_params(CONFIGS["llama"]))
    whole = path.read_bytes()
    for cut in (0, 3, 4, 20, 100, 700, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, "no GGUF file, or cut off")
    path.write_bytes(b"{}" * 100)
    refused(path, "no GGUF file")


def test_a_model_that_gguf_has_no_kind_for(tmp_path):
    config = dataclasses.replace(CONFIGS["llama"], parallel=True)
    with pytest.raises(UserError):
        write_gguf(tmp_path / "model.gguf", config, random_params(config))


def test_every_kind_is_written():
    assert {name.split()[0] for name in CONFIGS} == set(KINDS)


def test_logits_of_a_file_are_those_of_the_model(tmp_path):
    config = CONFIGS["llama tied"]
    params = random_params(config)
    write_gguf(tmp_path / "model.gguf", config, params)
    again, back, _ = read_gguf(open_gguf(tmp_path / "model.gguf"))
    tokens = jnp.arange(24).reshape(2, 12)
    expected = LanguageModel(config).logits(params, tokens)
    np.testing.assert_allclose(LanguageModel(again).logits(back, tokens), expected, rtol=1e-5)
