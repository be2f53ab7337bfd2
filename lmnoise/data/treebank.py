"""Sentences whose words are linked to their syntactic heads, from files in the CoNLL-U format.

`turkish_web` is the Turkish Web Treebank (PyPI `turkish-treebanks`, Apache-2.0), 4,849 sentences
annotated by hand, as no other dependency treebank is in a package of the registries; a user's own
`.conllu` file serves any other language (https://universaldependencies.org).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lmnoise.data.fetch import Package, fetch, unpacked
from lmnoise.data.tokenizer import Tokenizer
from lmnoise.errors import UserError

TURKISH = Package("pip", "turkish-treebanks", "1.0.0")
NAMED = {"turkish_web": TURKISH}
# Its relation between the parts of one word ("inflectional groups").
_SAME_WORD = "ig"


class Sentence(NamedTuple):
    """A text, where its words begin and end, and the number of each one's head, -1 for none."""

    text: str
    words: list[tuple[int, int]]
    heads: list[int]


def open_treebank(spec: str, data_dir: Path) -> list[Sentence]:
    """The sentences of a named treebank, or of a `.conllu` file.

    Raises:
      UserError: an unknown name, a missing file, or one that is not CoNLL-U.
    """
    if spec in NAMED:
        with unpacked(fetch(NAMED[spec], data_dir).path) as root:
            files = sorted(root.glob("data/*.conllu"))
            return [sentence for file in files for sentence in read_conllu(file)]
    path = Path(spec).expanduser()
    if path.suffix != ".conllu":
        raise UserError(f"unknown treebank {spec!r}: choose {', '.join(NAMED)}, or a .conllu file")
    return list(read_conllu(path))


def read_conllu(path: Path) -> Iterator[Sentence]:
    """The sentences with a `# text`; one whose words are not found in its text is left out."""
    try:
        blocks = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the treebank {path}: {error}") from None
    for number, block in enumerate(blocks, 1):
        lines = block.splitlines()
        text = next((x.partition("=")[2].strip() for x in lines if x.startswith("# text =")), None)
        columns = [line.split("\t") for line in lines if line and not line.startswith("#")]
        try:
            # "3-4" is a range of words and "5.1" one that is not in the text.
            found = [(c[1], int(c[6]) - 1, c[7]) for c in columns if c[0].isdecimal()]
        except (IndexError, ValueError):
            raise UserError(f"{path} is no CoNLL-U file: see its sentence {number}") from None
        sentence = text and _sentence(text, found)
        if sentence:
            yield sentence


def _sentence(text: str, found: Sequence[tuple[str, int, str]]) -> Sentence | None:
    """Places the words; the parts of one word are joined, and its last part says its head."""
    words, heads, word_of, end = [], [], [], 0
    for number, (form, head, _) in enumerate(found):
        start = text.find(form, end)
        # Text between the words belongs to one that is not listed as such, like French "du".
        if start < 0 or text[end:start].strip() or not -1 <= head < len(found):
            return None
        joined = number and found[number - 1][1:] == (number, _SAME_WORD) and start == end
        end = start + len(form)
        if joined:
            words[-1], heads[-1] = (words[-1][0], end), head
        else:
            words.append((start, end))
            heads.append(head)
        word_of.append(len(words) - 1)
    own = [-1 if head < 0 else word_of[head] for head in heads]
    return Sentence(text, words, [-1 if h == n else h for n, h in enumerate(own)])


def token_words(sentence: Sentence, tokenizer: Tokenizer) -> tuple[list[int], list[list[int]]]:
    """A sentence's tokens, and the positions of each word's own among them.

    A token belongs to the word in which it ends (a token may begin with the space before). A
    word that shares its only token with a later word has none.
    """
    encoding = tokenizer.as_model().encode(sentence.text, add_special_tokens=False)
    positions = [[] for _ in sentence.words]
    word = 0
    for position, (_, end) in enumerate(encoding.offsets):
        while word + 1 < len(sentence.words) and sentence.words[word + 1][0] < end:
            word += 1
        positions[word].append(position)
    return list(encoding.ids), positions
