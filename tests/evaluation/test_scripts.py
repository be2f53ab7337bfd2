"""Scripts of characters and the share of foreign ones, on texts made by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmnoise.evaluation.scripts import (
    SCRIPTS,
    code_switched,
    code_switched_tokens,
    completed,
    script_of,
)

EXAMPLES = {
    "Latin": "aZéßığữªＡ",
    "Cyrillic": "яЁ",
    "Han": "中々〆",
    "Hiragana": "ひ",
    "Katakana": "カーｱ",
    "Hangul": "한ᄒ",
    "Devanagari": "हाि",
    "Arabic": "عپ",
    "Greek": "λ",
    "": "1 .,-_?٣µ𝐀\u0301\n\ufffd",
}
SAME = {
    "en-us": "Hello, world 1",
    "vi": "Tiếng Việt",
    "tr": "ığdır",
    "ru": "Привет!",
    "zh-cn": "你好。",
    "ja": "カタカナとひらがなと漢字",
    "ko": "한국어 漢字",
    "hi": "हिन्दी",
    "ar": "مرحبا",
}


def decode(ids):
    """Plain bytes."""
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(("script", "characters"), EXAMPLES.items())
def test_scripts(script, characters):
    assert {c: script_of(c) for c in characters} == dict.fromkeys(characters, script)


@pytest.mark.parametrize(("language", "text"), SAME.items())
def test_a_language_is_at_home_in_its_own_scripts(language, text):
    assert code_switched(text, language) == 0
    assert code_switched_tokens(list(text.encode()), decode, language) == 0
    foreign = "ru" if language != "ru" else "en"
    assert code_switched(text, foreign) == 1
    assert code_switched_tokens(list(text.encode()), decode, foreign) == 1


def test_shares_by_hand():
    assert code_switched("abc я 12", "ru") == 3 / 4
    # Two tokens: Latin letters, then a mixed one that is foreign by its last letter.
    words = {0: "да", 1: " ab", 2: "дa", 3: " 12"}
    spell = lambda ids: "".join(words[i] for i in ids)  # noqa: E731
    assert code_switched_tokens([0, 1, 2, 3], spell, "ru") == 2 / 3
    assert code_switched_tokens([0, 1, 2, 3], spell, "ru", special={1}) == 1 / 2
    assert math.isnan(code_switched_tokens([3, 3], spell, "ru"))
    assert math.isnan(code_switched("12 ...", "en"))


def test_a_character_belongs_to_the_token_that_completes_it():
    assert completed(list("aя中".encode()), decode) == ["a", "", "я", "", "", "中"]


def test_a_character_that_is_never_completed_is_nobodys():
    tokens = [*"я".encode()[:1], *b"b", *"中".encode()[:2]]
    assert completed(tokens, decode)[1].endswith("b")
    assert code_switched_tokens(tokens, decode, "en") == 0


@given(st.text(), st.lists(st.integers(1, 9)))
def test_any_split_into_tokens_gives_every_character_once(text, sizes):
    """Tokens are pieces of the text's bytes, wherever they are cut."""
    text, pieces, sizes = text.replace("\ufffd", ""), [], iter(sizes)
    data = text.encode()
    while data:
        size = next(sizes, 1)
        pieces.append(data[:size])
        data = data[size:]
    spell = lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")  # noqa: E731
    assert "".join(completed(range(len(pieces)), spell)) == text


def test_unknown_languages_are_named():
    with pytest.raises(ValueError, match="'tlh'"):
        code_switched("", "tlh")
    assert "Latin" in SCRIPTS["en"]
