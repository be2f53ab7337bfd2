"""Tokenizers: known ids, round trips, determinism, and what cannot be loaded."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data.tokenizer import EOS, load_tokenizer, tokenizer_slug
from lmnoise.errors import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of 40 small documents."""
    folder = tmp_path_factory.mktemp("books")
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"The fox number {i} jumps over the lazy dogs.\n" * 9)
    return folder


@pytest.fixture(scope="module")
def all_tokenizers(corpus, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    specs = ("gpt2", "bytes", f"bpe:300@{corpus}/")
    return {spec[:4]: load_tokenizer(spec, data_dir) for spec in specs}


def test_gpt2_ids(all_tokenizers):
    gpt2 = all_tokenizers["gpt2"]
    assert gpt2.encode("Hello world") == [15496, 995]
    # Published ids of the original encoder.
    assert gpt2.encode("This is some text") == [1212, 318, 617, 2420]
    assert gpt2.encode("  two spaces\n\nnew") == [220, 734, 9029, 198, 198, 3605]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    assert gpt2.decode([15496, 50256, 995]) == f"Hello{EOS} world"


def test_bytes(all_tokenizers):
    tokenizer = all_tokenizers["byte"]
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    assert tokenizer.decode([0xC3, 0xA9, 256, 0x41, 256]) == f"é{EOS}A{EOS}"
    assert tokenizer.decode([0xC3]) == "\ufffd"


@settings(deadline=None)
@given(batch=st.lists(texts, max_size=4))
def test_round_trip_and_no_separator_in_text(all_tokenizers, batch):
    for tokenizer in all_tokenizers.values():
        encoded = tokenizer.encode_batch(batch)
        assert [tokenizer.decode(ids) for ids in encoded] == batch
        assert encoded == [tokenizer.encode(text) for text in batch]
        spelled = tokenizer.encode("a" + EOS)
        assert tokenizer.eos_id not in [i for ids in [*encoded, spelled] for i in ids]
        assert max([0, *(i for ids in encoded for i in ids)]) < tokenizer.vocab_size
        assert tokenizer.decode(spelled) == "a" + EOS


def test_bpe_is_trained_once_and_the_same_everywhere(corpus, tmp_path):
    spec = f"bpe:290@{corpus}/"
    first = load_tokenizer(spec, tmp_path / "a")
    assert first.vocab_size == 290
    assert first.eos_id == 289
    assert len(first.encode("The fox jumps")) < len("The fox jumps")
    file = tmp_path / "a" / "tokenizers" / tokenizer_slug(spec) / "tokenizer.json"
    changed = file.stat().st_mtime_ns
    assert load_tokenizer(spec, tmp_path / "a").fingerprint == first.fingerprint
    assert file.stat().st_mtime_ns == changed
    program = (
        "import sys; from lmnoise.data.tokenizer import load_tokenizer; "
        "print(load_tokenizer(sys.argv[1], sys.argv[2]).fingerprint)"
    )
    command = [sys.executable, "-c", program, spec, str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == first.fingerprint
    by_path = load_tokenizer(str(file), tmp_path)
    assert (by_path.eos_id, by_path.fingerprint) == (289, first.fingerprint)
    assert by_path.name != first.name


def test_a_file_may_name_its_end_of_text_token(corpus, tmp_path):
    trained = load_tokenizer(f"bpe:270@{corpus}/", tmp_path)
    content = json.loads(trained.model.to_str())
    content["added_tokens"][0]["content"] = "<stop>"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(str(path), tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for named in ("<stop>", {"content": "<stop>"}):
        config.write_text(json.dumps({"eos_token": named}))
        assert load_tokenizer(str(path), tmp_path).eos_id == 269
    config.write_text("[")
    with pytest.raises(UserError, match="not a JSON object"):
        load_tokenizer(str(path), tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt3", "unknown tokenizer 'gpt3'"),
        ("bpe:10@sotu", "257 tokens or more"),
        ("bpe:1000", "the form is"),
        ("bpe:1000@nonesuch", "unknown corpus"),
        ("missing/tokenizer.json", "cannot read"),
    ],
)
def test_unusable_specifications(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_tokenizer(spec, tmp_path)


def test_a_damaged_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(str(path), tmp_path)
