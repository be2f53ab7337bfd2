"""Preparing and opening corpora, whole, damaged and interrupted."""

import copy
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data import packing
from lmnoise.data.packing import open_packed, packed_folder, prepare
from lmnoise.data.splits import SPLITS, SplitRule
from lmnoise.data.tokenizer import load_tokenizer
from lmnoise.errors import UserError

documents = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip),
    min_size=3,
    max_size=30,
    unique_by=lambda text: " ".join(text.split()),
)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def read_back(packed, tokenizer):
    starts = [0, *packed.ends[:-1]]
    pieces = [packed.tokens[a:b] for a, b in zip(starts, packed.ends, strict=True)]
    assert all(piece[-1] == packed.eos_id for piece in pieces)
    return [tokenizer.decode(piece[:-1]) for piece in pieces]


@pytest.fixture
def corpus(tmp_path):
    """A prepared corpus of 60 documents: (name, options of `open_packed`)."""
    name = write_jsonl(tmp_path / "c.jsonl", [f"This is document {i}." for i in range(60)])
    options = {"data_dir": tmp_path / "data", "tokenizer": "bytes"}
    prepare(name, **options)
    return name, options


@settings(max_examples=25, deadline=None)
@given(texts=documents)
def test_packing_loses_nothing(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("p")
    name = write_jsonl(folder / "c.jsonl", texts)
    tokenizer = load_tokenizer("bytes", folder)
    meta = prepare(name, data_dir=folder, tokenizer="bytes")
    found = {}
    for split in SPLITS:
        packed = open_packed(name, split, data_dir=folder, tokenizer="bytes")
        entry = meta["splits"][split]
        assert entry["documents"] == len(packed.ends) == len(packed.bytes) > 0
        assert entry["tokens"] == len(packed.tokens) == packed.ends[-1]
        assert entry["bytes"] == packed.bytes.sum()
        assert entry["sha256"] == hashlib.sha256(packed.tokens.tobytes()).hexdigest()
        read = read_back(packed, tokenizer)
        assert [len(text.encode()) for text in read] == packed.bytes.tolist()
        found |= dict(zip(packed.ids(), read, strict=True))
    assert found == {f"c.jsonl#{i}": text for i, text in enumerate(texts, 1)}


@settings(deadline=None)
@given(texts=documents, spaces=st.sampled_from([" ", "\n", " \t "]))
def test_splits_keep_copies_together(texts, spaces):
    rule = SplitRule(texts)
    assert {rule(text) for text in texts} == set(SPLITS)
    assert SplitRule(reversed(texts + texts))(texts[0]) == rule(texts[0])
    for text in texts:
        assert rule(spaces + spaces.join(text.split()) + spaces) == rule(text)


def test_split_shares():
    for count in (20, 249, 999, 20_000):
        rule = SplitRule(str(i) for i in range(count))
        splits = [rule(str(i)) for i in range(count)]
        tolerance = 0.5 / count if count < 1000 else 0.01
        for split, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
            assert abs(splits.count(split) / count - share) <= 2 * tolerance
    with pytest.raises(ValueError, match="2 distinct documents"):
        SplitRule(["a", "b", " b"])


def test_wide_vocabularies_take_four_bytes(tmp_path, monkeypatch):
    name = write_jsonl(tmp_path / "c.jsonl", [f"document {i}" for i in range(9)])
    gpt2 = load_tokenizer("gpt2", tmp_path)
    assert prepare(name, data_dir=tmp_path, tokenizer="gpt2")["dtype"] == "<u2"
    wide = copy.copy(gpt2)
    object.__setattr__(wide, "vocab_size", 70_000)
    monkeypatch.setattr(packing, "load_tokenizer", lambda spec, data_dir: wide)
    other = tmp_path / "wide"
    assert prepare(name, data_dir=other, tokenizer="gpt2")["dtype"] == "<u4"
    packed = open_packed(name, "train", data_dir=other, tokenizer="gpt2")
    narrow = open_packed(name, "train", data_dir=tmp_path, tokenizer="gpt2")
    np.testing.assert_array_equal(packed.tokens, narrow.tokens)
    assert (packed.tokens.dtype, narrow.tokens.dtype) == (np.uint32, np.uint16)


def test_a_second_call_does_nothing(corpus, capsys):
    name, options = corpus
    folder = packed_folder(name, **options)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    meta = prepare(name, **options)
    assert "already prepared" in capsys.readouterr().out
    assert meta == json.loads((folder / "meta.json").read_text())
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert not list(folder.parent.glob(".*tmp*"))


def test_files_that_were_made_anew_with_the_same_text_are_the_same_corpus(corpus):
    name, options = corpus
    before = prepare(name, **options)
    content = Path(name).read_bytes()
    Path(name).unlink()
    Path(name).write_bytes(content)
    assert prepare(name, **options) == before


def test_a_changed_source_or_option_is_refused(corpus):
    name, options = corpus
    with pytest.raises(UserError, match="another on_decode_error: remove that folder"):
        prepare(name, **options, on_decode_error="skip")
    with open(name, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="another files"):
        prepare(name, **options)


def test_a_corruption_keeps_documents_and_splits(corpus):
    name, options = corpus
    prepare(f"{name}+markup", **options)
    changed = 0
    for split in SPLITS:
        clean = open_packed(name, split, **options)
        dirty = open_packed(f"{name}+markup", split, **options)
        assert dirty.ids() == clean.ids()
        assert (dirty.bytes >= clean.bytes).all()
        changed += (dirty.bytes > clean.bytes).sum()
    assert changed > 5


def test_what_is_not_there_is_said(corpus, tmp_path):
    name, options = corpus
    with pytest.raises(UserError, match=r"run `python -m lmnoise.data prepare sotu --data_dir"):
        open_packed("sotu", "train", **options)
    with pytest.raises(UserError, match="no split 'dev'"):
        open_packed(name, "dev", **options)
    for texts in ([], ["a", "b"], ["", " "]):
        small = write_jsonl(tmp_path / "small.jsonl", texts)
        with pytest.raises(UserError, match=r"small.jsonl is too small \(\d distinct documents"):
            prepare(small, **options)
    assert not list((tmp_path / "data" / "packed").glob("small*/bytes"))
    with pytest.raises(UserError, match="unknown corpus 'nonesuch'"):
        prepare("nonesuch", **options)
    assert not (tmp_path / "data" / "packed" / "nonesuch").exists()


def test_damage_is_said(corpus):
    name, options = corpus
    folder = packed_folder(name, **options)
    tokens = (folder / "train.tokens").read_bytes()
    (folder / "train.tokens").write_bytes(tokens[:-2])
    with pytest.raises(UserError, match=r"train.tokens has \d+ bytes where meta.json says"):
        open_packed(name, "train", **options)
    (folder / "train.tokens").unlink()
    with pytest.raises(UserError, match="has 0 bytes"):
        open_packed(name, "train", **options)
    (folder / "train.tokens").write_bytes(tokens)
    ends = (folder / "train.ends.npy").read_bytes()
    for content in (ends[:-8], b"", b"not an array"):
        (folder / "train.ends.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"train.ends.npy is damaged"):
            open_packed(name, "train", **options)
    (folder / "train.ends.npy").write_bytes(ends)
    meta = (folder / "meta.json").read_text()
    changed = json.loads(meta)
    changed["splits"]["train"]["largest_token"] = 257
    (folder / "meta.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="holds the token 257, but the vocabulary has 257"):
        open_packed(name, "train", **options)
    for content, message in ((meta[:50], "cannot read"), ('{"format": 0}', "another version")):
        (folder / "meta.json").write_text(content)
        with pytest.raises(UserError, match=message):
            open_packed(name, "train", **options)


def test_a_half_prepared_folder_is_said_and_mended(corpus):
    name, options = corpus
    (packed_folder(name, **options) / "meta.json").unlink()
    with pytest.raises(UserError, match=r"half-prepared .* run `python -m lmnoise.data prepare"):
        open_packed(name, "train", **options)
    prepare(name, **options)
    assert len(open_packed(name, "train", **options).ends) == 54


def test_a_worker_maps_the_file_again(corpus):
    name, options = corpus
    packed = open_packed(name, "train", **options)
    again = copy.deepcopy(packed)
    assert isinstance(again.tokens, np.memmap)
    assert again.folder == packed.folder
    np.testing.assert_array_equal(again.tokens, packed.tokens)


SLOW = """
import signal, sys, time
from lmnoise.data import packing
# A suite that a shell runs in the background hands on that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
write = packing._Writer.write
def slow(self, document, ids):
    write(self, document, ids)
    print("written", flush=True)
    time.sleep(60)
packing._Writer.write = slow
packing.prepare(sys.argv[1], data_dir=sys.argv[2], tokenizer="bytes")
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_that_counts(tmp_path, end):
    name = write_jsonl(tmp_path / "c.jsonl", [f"document {i}" for i in range(40)])
    command = [sys.executable, "-c", SLOW, name, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(end)
        process.wait()
    options = {"data_dir": tmp_path, "tokenizer": "bytes"}
    folder = packed_folder(name, **options)
    assert len(list(folder.parent.glob(".*tmp*"))) == (end == signal.SIGKILL)
    with pytest.raises(UserError, match="not prepared"):
        open_packed(name, "train", **options)
    prepare(name, **options)
    assert len(open_packed(name, "train", **options).ends) == 36
    assert not list(folder.parent.glob(".*tmp*"))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    name = write_jsonl(tmp_path / "c.jsonl", [f"document {i}" for i in range(40)])

    def full(self, document, ids):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packing._Writer, "write", full)
    options = {"data_dir": tmp_path, "tokenizer": "bytes"}
    with pytest.raises(OSError, match="No space left"):
        prepare(name, **options)
    folder = packed_folder(name, **options)
    assert [file.name for file in folder.parent.iterdir()] == [f".{folder.name}.lock"]


def test_two_processes_prepare_one_corpus(tmp_path):
    name = write_jsonl(tmp_path / "c.jsonl", [f"document {i} " * 50 for i in range(300)])
    program = (
        "import sys; from lmnoise.data.packing import prepare; "
        "prepare(sys.argv[1], data_dir=sys.argv[2], tokenizer='bpe:300@' + sys.argv[1])"
    )
    command = [sys.executable, "-c", program, name, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == ""
    assert "already prepared" in said[1]
