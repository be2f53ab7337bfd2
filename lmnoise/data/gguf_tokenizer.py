"""The tokenizer inside a GGUF file.

Of the kinds of `tokenizer.ggml.model`, two are read. "gpt2" is byte-level BPE: the file stores
vocabulary, merges and the name of a pre-tokenizer; the rules behind the names are those of
llama.cpp. "llama" is the BPE of SentencePiece (arXiv 1808.06226): the file stores vocabulary and
scores, and the merges follow from them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lmnoise.data.tokenizer import EOS
from lmnoise.errors import UserError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type
_SPACE = "\u2581"  # stands for a space in SentencePiece's tokens


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
    path, kind = reader.data.filename, _field(reader, "model")
    if kind not in _KINDS:
        raise UserError(
            f"{path} has a tokenizer of kind {kind!r}, and only byte-level BPE ('gpt2') and the "
            "BPE of SentencePiece ('llama') are read: use the model's Hugging Face folder, with "
            "its tokenizer.json"
        )
    tokens, types = _field(reader, "tokens") or [], _field(reader, "token_type") or []
    try:
        tokenizer = _KINDS[kind](reader, tokens, types)
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception for a bad merge
        raise UserError(
            f"the tokenizer in {path} is damaged ({error}): get the file again"
        ) from None
    control = [t for t, k in zip(tokens, types, strict=False) if k == _CONTROL]
    tokenizer.add_special_tokens(control)
    _put_in_front(reader, tokenizer, kind)
    if EOS in control:
        return tokenizer, EOS
    end = _field(reader, "eos_token_id")
    return tokenizer, None if end is None else tokenizer.id_to_token(end)


def _put_in_front(reader: gguf.GGUFReader, tokenizer: tokenizers.Tokenizer, kind: str) -> None:
    """Notes the token that the model expects before every text, if it does."""
    begin, wanted = _field(reader, "bos_token_id"), _field(reader, "add_bos_token")
    if begin is not None and (kind == "llama" if wanted is None else wanted):
        token = tokenizer.id_to_token(begin)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, begin)]
        )


def _byte_level(
    reader: gguf.GGUFReader, tokens: Sequence[str], types: Sequence[int]
) -> tokenizers.Tokenizer:
    pre, merges = _field(reader, "pre"), _field(reader, "merges") or []
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{reader.data.filename} wants the pre-tokenizer {pre!r}, which is none of "
            f"{', '.join(PRE_TOKENIZERS)}: use the model's Hugging Face folder, with its "
            "tokenizer.json"
        )
    rules = PRE_TOKENIZERS[pre]
    bpe = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [tuple(merge.split(" ", 1)) for merge in merges],
        ignore_merges=rules.whole_words,
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    if rules.normalizer is not None:
        tokenizer.normalizer = rules.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(rules.cut())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([t for t, k in zip(tokens, types, strict=False) if k == _USER_DEFINED])
    return tokenizer


def _sentencepiece(
    reader: gguf.GGUFReader, tokens: Sequence[str], types: Sequence[int]
) -> tokenizers.Tokenizer:
    scores, unknown = _field(reader, "scores") or [], _field(reader, "unknown_token_id")
    kinds = dict(zip(tokens, types, strict=True))
    scores = {t: s for t, s in zip(tokens, scores, strict=True) if kinds[t] == _NORMAL}
    bpe = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        _merges(scores),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    before, after = [normalizers.Replace(" ", _SPACE)], [decoders.Fuse()]
    if _field(reader, "add_space_prefix") is not False:
        before.insert(0, normalizers.Prepend(_SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), *after]
    )
    # The file has them with plain spaces, so they are looked for before spaces are replaced.
    whole = [t for t, kind in kinds.items() if kind == _USER_DEFINED]
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in whole])
    return tokenizer


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, those that make the one of the best score first."""
    return [
        (token[:cut], token[cut:])
        for token in sorted(scores, key=scores.get, reverse=True)
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in scores and token[cut:] in scores
    ]


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    return None if field is None else field.contents()
