"""The tokenizer inside a GGUF file.

Byte-level BPE only (`tokenizer.ggml.model` "gpt2"). The file stores vocabulary, merges and the
name of a pre-tokenizer; the rules behind the names are those of llama.cpp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmnoise.data.tokenizer import EOS
from lmnoise.errors import UserError

_ADDED = _CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


class _Rules(NamedTuple):
    """How text is cut before the merges; `whole_words`: a word of the vocabulary needs none."""

    cut: Callable[[], list[pre_tokenizers.PreTokenizer]]
    whole_words: bool = False
    normalizer: Callable[[], normalizers.Normalizer] | None = None


def _words(digits: str) -> Callable[[], list[pre_tokenizers.PreTokenizer]]:
    """Contractions, words with one leading sign, numbers as `digits` says, signs, spaces."""
    pattern = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return lambda: [
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False)]


PRE_TOKENIZERS = {
    "gpt-2": _Rules(_gpt2),
    "smollm": _Rules(lambda: [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]),
    "llama-bpe": _Rules(_words(r"\p{N}{1,3}"), whole_words=True),
    "qwen2": _Rules(_words(r"\p{N}"), normalizer=normalizers.NFC),
}


def gguf_tokenizer(reader: gguf.GGUFReader) -> tuple[tokenizers.Tokenizer, str | None]:
    """The tokenizer in a GGUF file, and the token that ends a document, if one is known.

    That is `<|endoftext|>` where the file has it: chat models name the end of a turn instead,
    which no document of their pre-training ended with.

    Raises:
      UserError: the file has none, or one of another kind.
    """
    path, kind, pre = reader.data.filename, _field(reader, "model"), _field(reader, "pre")
    if kind != "gpt2":
        raise UserError(
            f"{path} has a tokenizer of kind {kind!r}, and only byte-level BPE ('gpt2') is read: "
            "use the model's Hugging Face folder, with its tokenizer.json"
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{path} wants the pre-tokenizer {pre!r}, which is none of "
            f"{', '.join(PRE_TOKENIZERS)}: use the model's Hugging Face folder, with its "
            "tokenizer.json"
        )
    tokens, merges = _field(reader, "tokens") or [], _field(reader, "merges") or []
    rules = PRE_TOKENIZERS[pre]
    try:
        bpe = models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=rules.whole_words,
        )
    except Exception as error:  # `tokenizers` raises plain Exception for a bad merge
        raise UserError(
            f"the tokenizer in {path} is damaged ({error}): get the file again"
        ) from None
    tokenizer = tokenizers.Tokenizer(bpe)
    if rules.normalizer is not None:
        tokenizer.normalizer = rules.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(rules.cut())
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "token_type") or []
    added = {kind: [t for t, k in zip(tokens, types, strict=False) if k == kind] for kind in _ADDED}
    tokenizer.add_tokens(added[_USER_DEFINED])
    tokenizer.add_special_tokens(added[_CONTROL])
    if EOS in added[_CONTROL]:
        return tokenizer, EOS
    end = _field(reader, "eos_token_id")
    return tokenizer, None if end is None else tokenizer.id_to_token(end)


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    return None if field is None else field.contents()
