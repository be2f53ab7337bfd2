"""Synthesis of text: what lies in the folder, whatever wrote it, stopped it or comes after it."""

import dataclasses
import errno
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from loading import load

from lmnoise import synthesize as module
from lmnoise import tree
from lmnoise.checkpoints import Checkpoint, fingerprint
from lmnoise.data import files, packing
from lmnoise.data.stream import Windows, batches
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation.documents import Written, repeated_share
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.synthesize import Recipe, synthesize
from lmnoise.training.processes import StopSignals

pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")
ROOT = Path(__file__).parent.parent
CONTEXT, EOS = 12, 256
CONFIG = gpt2(
    vocab_size=257, context=CONTEXT, layers=1, width=16, heads=2, tied=False, layers_as="unrolled"
)
LIKELY = [*b"aeinorst ", EOS]
RECIPE = Recipe(tokens=400, length=20, batch_size=16)


@functools.cache
def checkpoint(seed=0, name="model-3"):
    """A model of random letters, which ends its documents now and then."""

    def draw(name, spec):
        generator = np.random.default_rng([seed, *name.encode()])
        return np.float32(spec.constant + generator.normal(size=spec.shape, scale=0.5))

    params = tree.map_named(draw, LanguageModel(CONFIG).specs)
    params["final_norm"]["bias"][0] = 4.0
    params["head"]["kernel"][0] = -1.0
    params["head"]["kernel"][0, LIKELY] = 1.0
    known = fingerprint(CONFIG, params)
    return Checkpoint(
        name, LanguageModel(CONFIG), params, "bytes", None, 640.0, known, "", step=3, member=0
    )


def write(folder, recipe=RECIPE, generator=None, **options):
    options = dict(data_dir=folder / "data") | options
    return synthesize(generator or checkpoint(), recipe, folder / "text", **options)


def lines(folder):
    paths = sorted((folder / "text").glob("part-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def contents(folder):
    """Of every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in (folder / "text").iterdir()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder that was written without a stop, and what its generator.json says."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, write(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Documents of digits, prepared as bytes: the name and the data directory."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "text").mkdir()
    for n in range(40):
        digits = "".join(str((n * k) % 10) for k in range(1, 30 + n))
        (folder / "text" / f"{n}.txt").write_text(digits)
    name = str(folder / "text")
    packing.prepare(name, data_dir=folder / "data", tokenizer="bytes")
    return name, folder / "data"


def test_the_folder_and_what_is_said_of_it(plain):
    folder, said = plain
    assert json.loads((folder / "text" / "generator.json").read_text()) == said
    documents, counts, recipe = lines(folder), said["counts"], said["recipe"]
    assert len({document["text"] for document in documents}) > len(documents) / 2
    assert set(contents(folder)) == {
        "generator.json",
        *(f"part-{n:05d}.jsonl" for n in range(said["shards"])),
    }
    assert recipe == dataclasses.asdict(RECIPE)
    assert said["generator"] == {
        "name": "model-3",
        "fingerprint": checkpoint().fingerprint,
        "step": 3,
        "member": 0,
        "tokens": 640.0,
        "note": "",
    }
    assert counts["documents"] == len(documents) == len({d["row"] for d in documents})
    assert counts["rows"] == 16 * said["shards"]
    assert counts["documents"] + counts["blank"] == counts["rows"]
    assert counts["tokens"] == sum(len(d["text"].encode()) + 1 for d in documents)
    assert counts["tokens"] - 16 * 21 < 400 <= counts["tokens"]
    assert 0 < counts["ended"] < counts["documents"]
    assert max(len(d["text"]) for d in documents) <= 20
    damaged = [d for d in documents if "\ufffd" in d["text"]]
    assert counts["not_utf8"] == len(damaged)
    # Bytes that are a text come back as they were.
    assert counts["same_tokens"] >= counts["documents"] - len(damaged) - counts["blank"]


def test_a_second_call_writes_nothing(plain):
    folder, said = plain
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "text").iterdir()}
    assert write(folder) == said
    assert write(folder, generator=dataclasses.replace(checkpoint(), name="moved-3")) == said
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "text").iterdir()} == before


def test_a_row_does_not_depend_on_the_batch(real, tmp_path, monkeypatch):
    """With a writer that writes its prompt and its key; that of documents has tests of its own."""

    def given(model, params, prompts_BK, length, key_B, **_):
        rows = zip(prompts_BK.tolist(), jax.random.key_data(key_B).tolist(), strict=True)
        return [Written([*prompt, *str(key).encode()], True) for prompt, key in rows]

    monkeypatch.setattr(module.documents, "write", given)
    recipe = dataclasses.replace(RECIPE, prompt_tokens=4, length=40, tokens=2000)
    for size in (16, 5):
        own = dataclasses.replace(recipe, batch_size=size)
        write(tmp_path / str(size), own, prompts=real[0], data_dir=real[1])
    whole, found = lines(tmp_path / "16"), lines(tmp_path / "5")
    assert [document["row"] for document in whole] == list(range(len(whole)))
    assert found == whole[: len(found)]
    assert len({d["text"] for d in whole}) == len({d["text"][4:] for d in whole}) == len(whole)
    # Another generator has other draws, or generations would add up the same accidents.
    write(tmp_path / "1", recipe, checkpoint(1), prompts=real[0], data_dir=real[1])
    assert not {d["text"][4:] for d in whole} & {d["text"][4:] for d in lines(tmp_path / "1")}


def test_after_a_stop_the_same_call_writes_the_same_folder(plain, tmp_path, monkeypatch):
    folder, _ = plain
    calls = iter([False, True])
    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, "reached", lambda stop: next(calls))
        with pytest.raises(Stopped):
            write(tmp_path)
    assert {"part-00000.jsonl", "unfinished.json"} < set(contents(tmp_path))
    with pytest.raises(UserError, match=r"text is unfinished: run the command again"):
        packing.prepare(str(tmp_path / "text"), data_dir=tmp_path / "d", tokenizer="bytes")
    # What a kill between two files leaves.
    (tmp_path / "text" / "part-00001.jsonl").write_text("")
    (tmp_path / "text" / ".part-00002.jsonl.tmp-7").write_text("{")
    write(tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_shards_beyond_the_first_that_are_enough_go(plain, tmp_path, monkeypatch):
    """Which several processes write, or one whose folder lost a shard."""
    folder, said = plain
    calls = iter([False] * (said["shards"] + 1) + [True])
    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, "reached", lambda stop: next(calls))
        patched.setattr(module.shards, "_tokens", lambda counts: 0)
        with pytest.raises(Stopped):
            write(tmp_path)
    assert len(list((tmp_path / "text").glob("part-*"))) == said["shards"] + 1
    (tmp_path / "text" / "part-00000.jsonl").unlink()
    write(tmp_path)
    assert contents(tmp_path) == contents(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"recipe": dataclasses.replace(RECIPE, seed=1)}, r"recipe.seed is 0, not 1"),
        (lambda: {"generator": checkpoint(1)}, "generator.fingerprint is"),
        (lambda: {"judge": checkpoint(1)}, "judge is None, not"),
    ],
)
def test_a_folder_of_other_text_is_left_alone(plain, change, message):
    folder, _ = plain
    before = contents(folder)
    with pytest.raises(UserError, match=message):
        write(folder, **change())
    assert contents(folder) == before


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        synthesize(checkpoint(), RECIPE, tmp_path / "file", data_dir=tmp_path)


def test_short_documents_and_those_that_repeat_themselves_are_dropped(plain, tmp_path):
    folder, _ = plain
    recipe = dataclasses.replace(RECIPE, shortest=6, repetition=0.1, tokens=300)
    counts = write(tmp_path, recipe)["counts"]
    found = lines(tmp_path)

    def good(document):
        tokens = list(document["text"].encode())
        return len(tokens) >= 6 and repeated_share(tokens) <= 0.1

    whole = [d for d in lines(folder) if "\ufffd" not in d["text"] and d["row"] < counts["rows"]]
    rows = {document["row"] for document in found}
    assert rows & {d["row"] for d in whole} == {d["row"] for d in whole if good(d)}
    dropped = counts["blank"] + counts["short"] + counts["repetitive"]
    assert counts["documents"] == len(found) == counts["rows"] - dropped
    assert counts["short"]


def test_filters_that_keep_nothing_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module.documents, "repeated_share", lambda tokens: 0.6)
    monkeypatch.setattr(module, "_PATIENCE", 2)
    with pytest.raises(UserError, match=r"nothing was kept of 2 batches \(32 rows, "):
        write(tmp_path, dataclasses.replace(RECIPE, repetition=0.5))


def test_the_best_of_every_batch_are_kept(plain, tmp_path):
    folder, _ = plain
    recipe = dataclasses.replace(RECIPE, keep=0.5, tokens=100)
    counts = write(tmp_path / "own", recipe)["counts"]
    write(tmp_path / "other", recipe, judge=checkpoint(1))
    own, other = lines(tmp_path / "own"), lines(tmp_path / "other")
    assert counts["documents"] + counts["poor"] + counts["blank"] == counts["rows"]
    assert 0 <= counts["documents"] - counts["poor"] <= counts["rows"] / 16
    assert {d["row"] for d in own} != {d["row"] for d in other}
    # What the filter leaves is as it was, and the generator likes it better than the rest.
    by_row = {document["row"]: document["text"] for document in lines(folder)}
    assert all(by_row[d["row"]] == d["text"] for d in own if d["row"] in by_row)
    all_rows = write(tmp_path / "all", dataclasses.replace(recipe, keep=0.999, tokens=200))
    losses = {d["row"]: d["loss"] for d in lines(tmp_path / "all") if d["row"] < 16}
    kept = [losses[d["row"]] for d in own if d["row"] in losses]
    assert max(kept) < min(losses[row] for row in set(losses) - {d["row"] for d in own})
    assert all_rows["counts"]["poor"] == 0


def test_a_judge_with_another_tokenizer_is_refused(tmp_path):
    judge = dataclasses.replace(checkpoint(1), tokenizer="gpt2", name="other-1")
    with pytest.raises(UserError, match="the judge other-1 has the tokenizer gpt2 and"):
        write(tmp_path, judge=judge)


def test_documents_begin_with_real_text(real, tmp_path):
    name, data_dir = real
    recipe = dataclasses.replace(RECIPE, prompt_tokens=4, length=24)
    said = write(tmp_path, recipe, prompts=name, data_dir=data_dir)
    packed = packing.open_packed(name, "train", data_dir=data_dir, tokenizer="bytes")
    assert said["prompts"] == {"corpus": name, "sha256": packed.meta["splits"]["train"]["sha256"]}
    text = bytes(min(token, 255) for token in packed.tokens.tolist()).decode("latin1")
    beginnings = [document["text"][:4] for document in lines(tmp_path)]
    assert all(beginning.isdecimal() and beginning in text for beginning in beginnings)
    assert len(set(beginnings)) > len(beginnings) / 2


def test_the_folder_is_a_corpus_like_any_other(plain, tmp_path):
    folder, said = plain
    name = str(folder / "text")
    meta = packing.prepare(name, data_dir=tmp_path, tokenizer="bytes")
    assert meta["source"]["generated"] == said
    splits = [
        packing.open_packed(name, split, data_dir=tmp_path, tokenizer="bytes")
        for split in ("train", "validation", "test")
    ]
    assert sum(len(split.tokens) for split in splits) == said["counts"]["tokens"]
    batch = batches(Windows(splits[0], 16), seeds=[0], batch_size=4)[0]["tokens"]
    assert batch.shape == (1, 4, 17)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"recipe.temperature is 0.0: it must be positive"),
        ({"temperature": float("nan")}, r"recipe.temperature is nan"),
        ({"top_p": 0.0}, r"recipe.top_p is 0.0: it must be in \(0, 1\]"),
        ({"tokens": 0}, r"recipe.tokens is 0"),
        ({"shortest": 21}, r"recipe.shortest is 21: it must be between 1 and 20"),
        ({"prompt_tokens": 20}, r"recipe.prompt_tokens is 20"),
        ({"keep": 0.0}, r"recipe.keep is 0.0"),
        ({"repetition": 2.0}, r"recipe.repetition is 2.0"),
        ({"seed": -1}, r"recipe.seed is -1"),
        ({"batch_size": 0}, r"recipe.batch_size is 0"),
    ],
)
def test_recipes_that_cannot_be_followed(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_prompts_that_are_not_there(tmp_path, real):
    recipe = dataclasses.replace(RECIPE, prompt_tokens=4)
    with pytest.raises(UserError, match="no corpus of prompts is named"):
        write(tmp_path, recipe)
    with pytest.raises(UserError, match=r"is not prepared .* run `python -m lmnoise.data prepare"):
        write(tmp_path, recipe, prompts="./nothing")
    longer = dataclasses.replace(recipe, length=400, prompt_tokens=200)
    with pytest.raises(UserError, match="has 200 tokens in a row"):
        write(tmp_path, longer, prompts=real[0], data_dir=real[1])


def test_a_batch_that_the_devices_do_not_divide(tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"recipe.batch_size is 12, which 8 devices do not"):
        write(tmp_path, dataclasses.replace(RECIPE, batch_size=12))


def test_a_full_disk_leaves_whole_shards(tmp_path, monkeypatch):
    replace = files.os.replace

    def full(source, target):
        if Path(target).name == "part-00001.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write(tmp_path)
    assert caught.value.filename.endswith("part-00001.jsonl")
    assert {"part-00000.jsonl", ".part-00001.json"} < set(contents(tmp_path))
    assert not any("tmp" in name for name in contents(tmp_path))


def test_presets_are_recipes():
    configs = load(ROOT / "configs" / "synthesize.py")
    for preset in configs.PRESETS:
        recipe = Recipe(**configs.get_config(preset).recipe)
        assert recipe.prompt_tokens < recipe.shortest <= recipe.length


PROCESS = """
import sys
from pathlib import Path
from lmnoise.synthesize import synthesize
from lmnoise.training import processes

with processes.joined():
    from test_synthesize import RECIPE, checkpoint  # asks for the devices
    folder = Path(sys.argv[1])
    synthesize(checkpoint(), RECIPE, folder / "text", data_dir=folder / "data")
"""


def test_two_processes_write_the_same_folder(plain, tmp_path):
    folder, _ = plain
    command = [ROOT / "tpu" / "simulate.sh", "2", "1", sys.executable, "-c", PROCESS, tmp_path]
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path) == contents(folder)
