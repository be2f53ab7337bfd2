"""The text that the multilingual study measures on: aligned paragraphs, sentences, prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lmnoise.analyze.defaults import label
from lmnoise.analyze.subject import Subject, prepare_all
from lmnoise.data.splits import SPLITS
from lmnoise.data.treebank import open_treebank, token_words
from lmnoise.errors import UserError
from lmnoise.evaluation import crosslingual

# UTF-8 bytes: shorter lines are headings and names of menus.
SHORTEST = 40
_LEAST = 8


class Texts(NamedTuple):
    """What the study reads.

    Attributes:
      aligned: by language, English first; row n says the same in all.
      sentences, parses: of the treebank.
      scored: by language, English first, held-out paragraphs.
      trained: by language that is trained on, how many of the aligned paragraphs stand in the
        text that it is trained on.
      tuning: by language that has a rate tuned, paragraphs of the other held-out split.
    """

    aligned: dict[str, crosslingual.Rows]
    sentences: crosslingual.Rows
    parses: list[crosslingual.Parse]
    scored: dict[str, list[str]]
    trained: dict[str, int]
    tuning: dict[str, list[str]]


def front(subject: Subject) -> int:
    """The token before every text: what the model was trained to see there."""
    bos = subject.checkpoint.bos_id
    return subject.tokenizer.eos_id if bos is None else bos


def documents(subject: Subject, name: str, splits: Sequence[str]) -> dict[str, str]:
    """The documents of a prepared corpus by id."""
    found = {}
    for split in splits:
        packed = subject.packed(name, split)
        starts = np.concatenate([[0], packed.ends[:-1]])
        for key, start, end in zip(packed.ids(), starts, packed.ends, strict=True):
            found[key] = subject.tokenizer.decode(packed.tokens[start : end - 1])
    return found


def read(subject: Subject, config: ConfigDict) -> Texts:
    """All text of the study, cut to what fits the windows under the checkpoint's own tokens.

    Raises:
      UserError: a corpus or treebank has too little that fits.
    """
    section = config.multilingual
    names = dict.fromkeys((section.english, *section.languages))
    prepare_all((*names, *section.aligned), subject.checkpoint, subject.data)
    sentences, parses = _sentences(subject, config)
    # Paragraphs such as warnings stand in many documents, so in training text too.
    seen = {name: _lines(subject, name, "train") for name in section.languages}
    split, count = subject.data.split, section.texts
    other = tuning_split(config)
    aligned, trained = _aligned(subject, config, seen)
    return Texts(
        aligned=aligned,
        sentences=sentences,
        parses=parses,
        scored={label(name): _held_out(subject, name, split, seen, count) for name in names},
        trained=trained,
        tuning={
            label(name): _held_out(subject, name, other, seen, count) for name in section.extended
        },
    )


def tuning_split(config: ConfigDict) -> str:
    """The held-out split that rates are chosen on: the one that is not scored."""
    return "test" if config.data.split == "validation" else "validation"


def _lines(subject: Subject, name: str, split: str) -> dict[str, None]:
    """The paragraphs of a split, each once, in their order."""
    pages = documents(subject, name, (split,)).values()
    return dict.fromkeys(line for page in pages for line in page.splitlines())


def _aligned(
    subject: Subject, config: ConfigDict, seen: dict[str, dict[str, None]]
) -> tuple[dict[str, crosslingual.Rows], dict[str, int]]:
    """Paragraphs of the held-out documents of the first language, the same in all; no copies.

    And how many of them were trained on, by language.
    """
    section = config.multilingual
    names = (section.english, *section.aligned)
    # Corpora of one package agree in their splits; a user's may not.
    splits = dict.fromkeys(names, SPLITS) | {section.english: (subject.data.split,)}
    pages = [documents(subject, name, splits[name]) for name in names]
    found = {}
    for key in pages[0]:
        lines = [page.get(key, "").splitlines() for page in pages]
        if len({len(of_language) for of_language in lines}) != 1:
            continue
        for paragraph in zip(*lines, strict=True):
            if len(paragraph[0].encode()) >= SHORTEST:
                found.setdefault(paragraph[0], paragraph)
    texts = list(found.values())
    encoded = [subject.tokenizer.encode_batch(paragraph) for paragraph in texts]
    fits = [
        (paragraph, ids)
        for paragraph, ids in zip(texts, encoded, strict=True)
        if all(0 < len(of_language) < subject.data.length for of_language in ids)
    ]
    _require(len(fits), f"paragraphs that {', '.join(map(label, names))} share", subject)
    texts, chosen = zip(*spread(fits, section.paragraphs), strict=True)
    trained = {
        label(name): sum(line in seen[name] for line in of_language)
        for name, of_language in zip(names, zip(*texts, strict=True), strict=True)
        if name in seen
    }
    aligned = {
        label(name): crosslingual.rows(texts, front(subject), subject.data.length)
        for name, texts in zip(names, zip(*chosen, strict=True), strict=True)
    }
    return aligned, trained


def _sentences(
    subject: Subject, config: ConfigDict
) -> tuple[crosslingual.Rows, list[crosslingual.Parse]]:
    section, length, found = config.multilingual, subject.data.length, []
    for sentence in open_treebank(section.treebank, Path(subject.data.data_dir)):
        ids, positions = token_words(sentence, subject.tokenizer)
        if len(positions) > 3 and all(positions) and len(ids) < length:
            words = [[position + 1 for position in word] for word in positions]
            found.append((ids, crosslingual.Parse(words, sentence.heads)))
    _require(len(found), f"sentences of {section.treebank}", subject)
    texts, parses = zip(*spread(found, section.sentences), strict=True)
    return crosslingual.rows(texts, front(subject), length), list(parses)


def _held_out(
    subject: Subject, name: str, split: str, seen: dict[str, dict[str, None]], count: int
) -> list[str]:
    """Paragraphs of a split that fit a window and do not stand in the text trained on."""
    found = [
        line
        for line in _lines(subject, name, split)
        if len(line.encode()) >= SHORTEST and line not in seen.get(name, ())
    ]
    sizes = [len(ids) for ids in subject.tokenizer.encode_batch(found)]
    found = [t for t, size in zip(found, sizes, strict=True) if size <= subject.data.length]
    _require(len(found), f"held-out paragraphs of {label(name)}", subject)
    return spread(found, count)


def _require(count: int, what: str, subject: Subject) -> None:
    if count < _LEAST:
        raise UserError(
            f"only {count} {what} fit config.data.length of {subject.data.length} tokens: raise it"
        )


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spread over them, so that they are always the same."""
    count = min(count, len(values))
    return [values[n * len(values) // count] for n in range(count)]
