"""`python -m lmnoise.convert`: what lies in the folder, and when it writes nothing."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers

from lmnoise.checkpoints import Checkpoint, fingerprint, open_checkpoint
from lmnoise.convert import convert
from lmnoise.data.tokenizer import EOS, load_tokenizer
from lmnoise.errors import UserError
from lmnoise.models.transformer import LanguageModel, gpt2, llama

CONFIGS = {
    "llama": llama(
        vocab_size=257, context=16, layers=2, width=16, heads=2, kv_heads=1, mlp_width=32
    ),
    "gpt2": gpt2(vocab_size=257, context=16, layers=2, width=16, heads=2),
    "gpt2 without biases": gpt2(
        vocab_size=257, context=16, layers=2, width=16, heads=2, bias=False
    ),
}


def checkpoint(name="llama", seed=0, note="4-bit weights (Q4_1)"):
    config, generator = CONFIGS[name], np.random.default_rng(seed)
    model = LanguageModel(config)
    params = jax.tree.map(lambda s: generator.normal(size=s.shape).astype(np.float32), model.specs)
    return Checkpoint(name, model, params, "bytes", None, 640.0, fingerprint(config, params), note)


def contents(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_converted_folder_is_the_same_checkpoint(name, tmp_path):
    source = checkpoint(name)
    assert convert(source, tmp_path / "hf", dtype="float32", data_dir=tmp_path)
    opened = open_checkpoint(str(tmp_path / "hf"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, opened.params, source.params)
    assert opened.fingerprint == source.fingerprint
    assert (opened.tokens, opened.note, opened.name) == (640, source.note, "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (256, 256)


def test_the_tokenizer_comes_along(tmp_path):
    convert(checkpoint(), tmp_path / "hf", dtype="float32", data_dir=tmp_path)
    model = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    every_byte = "".join(map(chr, range(0x250))) + "日本 🙂"
    assert model.encode(every_byte).ids == list(every_byte.encode())
    assert model.decode(list(every_byte.encode())) == every_byte
    assert model.encode(EOS).ids == [256]
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == EOS
    loaded = load_tokenizer(str(tmp_path / "hf" / "tokenizer.json"), tmp_path)
    assert (loaded.vocab_size, loaded.eos_id) == (257, 256)


def test_half_precision_and_back(tmp_path):
    convert(checkpoint(), tmp_path / "half", dtype="bfloat16", data_dir=tmp_path)
    half = open_checkpoint(str(tmp_path / "half"), tmp_path)
    assert half.fingerprint != checkpoint().fingerprint
    convert(half, tmp_path / "again", dtype="bfloat16", data_dir=tmp_path)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("half", "again")]
    assert weights[0] == weights[1]


def test_a_folder_in_use_is_left_alone(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    assert convert(checkpoint(), folder, dtype="float32", data_dir=tmp_path)  # it was empty
    before = contents(folder)
    assert not convert(checkpoint(), folder, dtype="float32", data_dir=tmp_path)
    for other, dtype in ((checkpoint(seed=1), "float32"), (checkpoint(), "float16")):
        with pytest.raises(UserError, match="hf is not empty: remove it"):
            convert(other, folder, dtype=dtype, data_dir=tmp_path)
    assert contents(folder) == before
    (folder / "lmnoise.json").write_text("{")
    with pytest.raises(UserError, match=r"lmnoise\.json is not JSON"):
        convert(checkpoint(), folder, dtype="float32", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"config\.json is a file"):
        convert(checkpoint(), folder / "config.json", dtype="float32", data_dir=tmp_path)


def test_nothing_remains_of_a_conversion_that_failed(tmp_path):
    source = checkpoint()
    source.params["tokens"][3, 3] = 1e30
    with pytest.raises(UserError, match="float16 cannot"):
        convert(source, tmp_path / "hf", dtype="float16", data_dir=tmp_path)
    with pytest.raises(UserError, match="no class of Hugging Face"):
        convert(
            checkpoint("gpt2 without biases"), tmp_path / "hf", dtype="float32", data_dir=tmp_path
        )
    assert not [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")]


def test_command_line(tmp_path):
    convert(checkpoint(), tmp_path / "a", dtype="float32", data_dir=tmp_path)
    command = [sys.executable, "-m", "lmnoise.convert", f"--data_dir={tmp_path}"]

    def run(*arguments):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    status, out, _ = run(str(tmp_path / "a"), str(tmp_path / "b"), "--dtype=float16")
    assert (status, out.count("\n")) == (0, 1)
    assert f"now holds a: {checkpoint().model.parameter_count:,} parameters" in out
    status, out, error = run(str(tmp_path / "none"), str(tmp_path / "c"))
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: there is no ")
