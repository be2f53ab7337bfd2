"""Scripts of characters, and the share of a text that is in a foreign one.

A script is not a language: French in a German text is not seen, and names, commands and loan words
in another script count as foreign, so that a share says something only beside that of a text that
people wrote.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

_LATIN = frozenset({"Latin"})
# Of the corpora's languages, without the region: "pt" for "pt-br".
SCRIPTS = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "nl", "pt", "pl", "hu", "tr", "vi"), _LATIN),
    "ru": frozenset({"Cyrillic"}),
    "zh": frozenset({"Han"}),
    "ja": frozenset({"Han", "Hiragana", "Katakana"}),
    "ko": frozenset({"Hangul", "Han"}),
    "hi": frozenset({"Devanagari"}),
    "ar": frozenset({"Arabic"}),
}
# First words of Unicode names that are not the script's; below, of what all scripts share.
_FIRST_WORDS = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "FEMININE": "Latin",
    "MASCULINE": "Latin",
    "KATAKANA-HIRAGANA": "Katakana",
}
_SHARED = (
    "ALEF", "ANGSTROM", "BET", "BLACK-LETTER", "CARON", "COMBINING", "DALET", "DOUBLE-STRUCK",
    "EULER", "GIMEL", "INFORMATION", "KELVIN", "MATHEMATICAL", "MICRO", "MODIFIER", "OHM",
    "PLANCK", "SCRIPT", "TURNED", "VARIATION", "VERTICAL",
)  # fmt: skip
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def script_of(character: str) -> str:
    """The script of a letter or of its mark: "Latin", "Han", "Devanagari"; "" for all else.

    From the character's Unicode name. Digits, punctuation and what all scripts share, such as
    combining accents, have none.
    """
    if unicodedata.category(character)[0] not in "LM":
        return ""
    first, *others = unicodedata.name(character, "VARIATION").split()
    if first in ("HALFWIDTH", "FULLWIDTH", "SUPERSCRIPT"):
        first = others[0]
    if first in _SHARED:
        return ""
    return _FIRST_WORDS.get(first, first.capitalize())


def code_switched(text: str, language: str) -> float:
    """The share of a text's letters that are outside the language's scripts; nan without letters.

    Args:
      text: what was written.
      language: such as "de" or "zh-cn", see `SCRIPTS`.

    Raises:
      ValueError: a language whose scripts are not known.
    """
    return _share((_foreign(character, language) for character in text), language)


def code_switched_tokens(
    tokens: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    language: str,
    special: Collection[int] = (),
) -> float:
    """The share of tokens that carry a letter outside the language's scripts; nan without any.

    A token is given the characters that it completes, since one character may take several
    byte-level tokens. Tokens that complete no letter are not counted.

    Args:
      tokens: what a model wrote.
      decode: text of token ids, with U+FFFD for the bytes of an unfinished character.
      language: see `code_switched`.
      special: ids that are not text, such as the end of it, and are not counted.

    Raises:
      ValueError: a language whose scripts are not known.
    """
    return _share(
        (
            max((_foreign(c, language) for c in text if script_of(c)), default=None)
            for text in completed(tokens, decode, special)
        ),
        language,
    )


def completed(
    tokens: Sequence[int], decode: Callable[[Sequence[int]], str], special: Collection[int] = ()
) -> list[str]:
    """The characters that each token completes; see `code_switched_tokens`."""
    found, pending, given = [], [], 0
    for token in tokens:
        if token in special:
            found.append("")
            pending, given = [], 0
            continue
        pending.append(token)
        text = decode(pending)
        whole = text.rstrip(_INCOMPLETE)
        found.append(whole[given:])
        # What has ended with a whole character need not be decoded again.
        pending, given = ([], 0) if whole == text else (pending, max(given, len(whole)))
    return found


def _foreign(character: str, language: str) -> bool | None:
    """Whether a letter is outside the language's scripts; None for all else."""
    script = script_of(character)
    return script not in _scripts(language) if script else None


def _scripts(language: str) -> frozenset[str]:
    known = SCRIPTS.get(language.split("-")[0])
    if known is None:
        raise ValueError(f"language must be one of {sorted(SCRIPTS)}, not {language!r}")
    return known


def _share(foreign: Iterable[bool | None], language: str) -> float:
    _scripts(language)
    counted = [value for value in foreign if value is not None]
    return sum(counted) / len(counted) if counted else math.nan
