"""The tokenizer in a GGUF file: its cuts, its special tokens, what is refused."""

import gguf
import pytest

from lmnoise.data.gguf_tokenizer import gguf_tokenizer
from lmnoise.data.tokenizer import EOS, load_tokenizer, tokenizer_files
from lmnoise.errors import UserError

BYTES = load_tokenizer("bytes", "").as_model().get_vocab()
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TEXT = "I'LL  say 12345\n\n\n it's Ünï-code!?"
# By llama.cpp's table, written out by hand; the blanks are shown as they are.
CUTS = {
    "gpt-2": ["I", "'", "LL", " ", " say", " 12345", "\n\n\n", " it", "'s", " Ünï", "-"]
    + ["code", "!?"],
    "smollm": ["I", "'", "LL", " ", " say", " ", *"12345", "\n\n\n", " it", "'s", " Ünï"]
    + ["-", "code", "!?"],
    "llama-bpe": ["I", "'LL", " ", " say", " ", "123", "45", "\n\n\n", " it", "'s", " Ünï", "-code"]
    + ["!?"],
    "qwen2": ["I", "'LL", " ", " say", " ", *"12345", "\n\n\n", " it", "'s", " Ünï", "-code", "!?"],
}


def reader(
    tmp_path, *, kind="gpt2", pre="gpt-2", extra=(), merges=("h e", "l l", "he ll"), eos=None
):
    """A file with the bytes, what the merges make, and `extra` (token, type) pairs."""
    tokens = sorted(BYTES, key=BYTES.get)[:256] + [m.replace(" ", "") for m in merges]
    types = [NORMAL] * len(tokens) + [t for _, t in extra]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    if kind is not None:
        writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [token for token, _ in extra])
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(list(merges))
    if eos is not None:
        writer.add_eos_token_id(eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(tmp_path / "x.gguf")


@pytest.mark.parametrize("pre", CUTS)
def test_cuts(tmp_path, pre):
    tokenizer, _ = gguf_tokenizer(reader(tmp_path, pre=pre))
    cuts = [TEXT[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert cuts == CUTS[pre]
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT


def test_merges_and_tokens_of_kinds(tmp_path):
    extra = [("<|turn|>", CONTROL), ("<think>", USER_DEFINED), (EOS, CONTROL)]
    tokenizer, eos = gguf_tokenizer(reader(tmp_path, extra=extra, eos=259))
    assert eos == EOS
    assert tokenizer.encode("hello").ids == [258, ord("o")]
    assert tokenizer.encode("<think>he<|turn|>").ids == [260, 256, 259]
    # Documents that spell out a special token do not get it.
    for name, text in tokenizer_files(tokenizer, eos).items():
        (tmp_path / name).write_text(text)
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), tmp_path)
    assert loaded.encode(EOS) == [*EOS.encode()]
    assert (loaded.eos_id, loaded.vocab_size) == (261, 262)


def test_the_end_of_a_text_is_the_files_own_without_a_known_one(tmp_path):
    extra = [("<|done|>", CONTROL)]
    assert gguf_tokenizer(reader(tmp_path, extra=extra, eos=259))[1] == "<|done|>"
    assert gguf_tokenizer(reader(tmp_path, extra=extra))[1] is None


def test_whole_words_need_no_merges_where_the_rules_say_so(tmp_path):
    extra = [("hol", NORMAL)]
    assert gguf_tokenizer(reader(tmp_path, extra=extra))[0].encode("hol").ids == [*b"hol"]
    llama = reader(tmp_path, extra=extra, pre="llama-bpe")
    assert gguf_tokenizer(llama)[0].encode("hol").ids == [259]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "llama"}, r"x\.gguf has a tokenizer of kind 'llama'.*tokenizer\.json"),
        ({"kind": None}, "tokenizer of kind None"),
        (
            {"pre": "gpt-4o"},
            "pre-tokenizer 'gpt-4o', which is none of gpt-2, smollm, llama-bpe, qwen2",
        ),
        ({"merges": ("h e", "x ÿy")}, "tokenizer in .* is damaged"),
        ({"merges": ("he",)}, "tokenizer in .* is damaged"),
    ],
)
def test_what_is_refused(tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        gguf_tokenizer(reader(tmp_path, **changes))
