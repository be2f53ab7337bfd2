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
    tmp_path,
    *,
    kind="gpt2",
    pre="gpt-2",
    extra=(),
    merges=("h e", "l l", "he ll"),
    eos=None,
    bos=None,
    front=None,
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
    if bos is not None:
        writer.add_bos_token_id(bos)
    if front is not None:
        writer.add_add_bos_token(front)
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


# Tokens with scores, worst last; `_` is SentencePiece's sign for a space.
PIECES = ["_a", "ab", "bc", "abc", "_ab", "cc", *"_abcé"]


def sentencepiece(tmp_path, **fields):
    """A file with PIECES, the bytes, a token that stays whole and one that text never yields."""
    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "llama")
    special = [("<unk>", 2), ("</s>", CONTROL), ("\n\n", USER_DEFINED), ("  ", USER_DEFINED)]
    special += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([t for t, _ in special] + [p.replace("_", "\u2581") for p in PIECES])
    writer.add_token_types([t for _, t in special] + [NORMAL] * len(PIECES))
    writer.add_token_scores([0.0] * len(special) + [-float(n) for n in range(len(PIECES))])
    writer.add_unk_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in fields.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_tokenizer(gguf.GGUFReader(tmp_path / "s.gguf"))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # By hand: of all neighbours the pair that makes the best token is joined, again and again.
        ("abc", "abc"),  # ab before bc, then abc
        ("abcc", "abc c"),  # ab; of abc and cc, abc is the better
        ("bcc", "bc c"),
        (" abc", "_a bc"),  # _a takes the a, so abc cannot be
        (" ab ab", "_ab _ab"),  # _a, then _ab
        ("ccc", "cc c"),  # of two equal pairs the first
        ("a b", "a _ b"),
        ("é", "é"),
        ("aü", "a <0xC3> <0xBC>"),  # a character without a token is its bytes
        ("b\n\n\na", "b \n\n <0x0A> a"),
        ("a   b", "a __ _ b"),  # two blanks stay whole and are found first
        ("</s>", "<0x3C> <0x2F> <0x73> <0x3E>"),
    ],
)
def test_the_merges_of_sentencepiece(tmp_path, text, pieces):
    tokenizer, eos = sentencepiece(tmp_path, add_space_prefix=False)
    for name, content in tokenizer_files(tokenizer, eos).items():
        (tmp_path / name).write_text(content)
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), tmp_path)
    found = [loaded.model.id_to_token(i) for i in loaded.encode(text)]
    assert " ".join(t.replace("\u2581", "_").replace(" ", "_") for t in found) == pieces
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.model.id_to_token(loaded.eos_id) == "</s>"


def test_the_blank_in_front_is_sentencepieces_default(tmp_path):
    tokenizer, _ = sentencepiece(tmp_path)
    assert tokenizer.encode("abc").tokens == ["\u2581a", "bc"]
    for text in ("abc", " abc", "a b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_token_in_front_of_every_text(tmp_path):
    def bos_id(tokenizer, eos):
        for name, content in tokenizer_files(tokenizer, eos).items():
            (tmp_path / name).write_text(content)
        loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), tmp_path)
        assert len(loaded.encode("b")) == 1  # text never has it
        return loaded.bos_id

    end = [(EOS, CONTROL)]
    assert bos_id(*sentencepiece(tmp_path, add_space_prefix=False)) is None
    assert bos_id(*sentencepiece(tmp_path, add_space_prefix=False, bos_token_id=1)) == 1
    without = {"bos_token_id": 1, "add_bos_token": False}
    assert bos_id(*sentencepiece(tmp_path, add_space_prefix=False, **without)) is None
    assert bos_id(*gguf_tokenizer(reader(tmp_path, extra=end, bos=259))) is None
    assert bos_id(*gguf_tokenizer(reader(tmp_path, extra=end, bos=259, front=True))) == 259


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "t5"}, r"x\.gguf has a tokenizer of kind 't5'.*tokenizer\.json"),
        ({"kind": "llama"}, "tokenizer in .* is damaged"),
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
