"""Fine-tuning tasks: another text to model, or documents whose class is to be named.

    text:CORPUS      any corpus that `lmnoise.data.corpora` knows, as windows
    labels:NAME      a corpus of `LABELLED`, or a user's .jsonl with the keys `text` and `label`

Both are language modelling, so that one program trains and scores either: a class is named by one
token after the text, and only that token is scored.
"""

import collections
import dataclasses
import hashlib
import string
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from etils import epath

from lmnoise.data import mirror
from lmnoise.data.catalogue import CORPORA
from lmnoise.data.corpora import open_corpus
from lmnoise.data.names import CorpusName, Document
from lmnoise.data.packing import open_packed, prepare
from lmnoise.data.splits import SPLITS
from lmnoise.data.stream import Windows
from lmnoise.data.tokenizer import Tokenizer, load_tokenizer
from lmnoise.errors import UserError

LABELLED: dict[str, str] = {
    "imdb": "sentiment of a film review",
    "rotten_tomatoes": "sentiment of a sentence on a film",
    "newsgroups": "newsgroup of an article",
    "r8": "topic of a piece of news",
    "stdlib_code": "what a function's module is for",
    "stdlib_questions": "what a question's module is for",
    **{name: "program of a help page" for name in CORPORA if name.startswith("libreoffice_")},
}
_SEPARATOR = "\nLabel:"
_NAMES = string.ascii_uppercase + string.ascii_lowercase + string.digits


class Rows(NamedTuple):
    """N rows of T = S + 1 tokens.

    tokens: (N, T) int32. weights: (N, S) float32, 1 for a target to score, 0 for others.
    document: (N, T) int32, the document that each token belongs to. label: (N,) int32, the index
    of the row's class, -1 without. bytes_per_token: (documents,) float64, UTF-8 bytes of each
    document over its number of tokens.
    """

    tokens: np.ndarray
    weights: np.ndarray
    document: np.ndarray
    label: np.ndarray
    bytes_per_token: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """What to fine-tune on, and what to measure it by.

    Rows of kind "text" are the windows of a split, with every target scored. Rows of kind
    "labels" are [beginning token], the beginning of a document, a separator, the token that names
    its class, then padding: the class is the one scored target, at `weights.argmax(1)`. Padding
    is on the right, where no scored target sees it, so a short document is scored as it is.

    classes: names, sorted. class_tokens: (C,) int32, distinct, in their order. Both are empty for
    text.
    """

    name: str
    kind: Literal["text", "labels"]
    classes: tuple[str, ...]
    class_tokens: np.ndarray
    train: Rows
    validation: Rows
    test: Rows


def open_task(
    spec: str,
    *,
    tokenizer: str,
    data_dir: epath.PathLike,
    length: int,
    bos_id: int | None = None,
    train_rows: int = 0,
    heldout_rows: int = 0,
) -> Task:
    """The task that `spec` names (see the head of the module), downloaded and tokenised if need be.

    A split's rows are those of the corpus's split. Which of them are chosen depends on their
    number alone: windows evenly over the split; documents by a hash of their id, with the classes
    in their natural shares and in the order of that hash, so that a row that few are asked for is
    there too when more are.

    Args:
      spec: `text:CORPUS` or `labels:NAME`.
      tokenizer: see `load_tokenizer`.
      data_dir: where corpora and tokenizers lie, a folder or an object store.
      length: S, targets a row.
      bos_id: a token that every row begins with, None for none.
      train_rows: at most that many rows to train on; 0 for all.
      heldout_rows: the same of validation, and of test.

    Raises:
      UserError: an unknown spec, a corpus without labels, a class that no chosen training row
        has, more classes than the tokenizer has names for, a window too short.
    """
    kind, _, name = spec.partition(":")
    limits = (train_rows, heldout_rows, heldout_rows)
    if min(limits) < 0:
        raise UserError(f"train_rows and heldout_rows must not be negative, but are {limits[:2]}")
    if kind == "text" and name:
        prepare(name, data_dir=data_dir, tokenizer=tokenizer)
        options = {"data_dir": data_dir, "tokenizer": tokenizer, "bos_id": bos_id}
        rows = [
            _window_rows(Windows(open_packed(name, split, **options), length), limit)
            for split, limit in zip(SPLITS, limits, strict=True)
        ]
        return Task(spec, "text", (), np.zeros(0, np.int32), *rows)
    if kind != "labels" or not name:
        raise UserError(f"unknown task {spec!r}: give text:CORPUS or labels:NAME")
    documents = _labelled_documents(name, data_dir)
    classes = tuple(sorted({d.label for chosen in documents.values() for d in chosen}))
    encoder = load_tokenizer(tokenizer, data_dir)
    class_tokens = _class_tokens(encoder, classes, tokenizer)
    chosen = [choose(documents[split], n) for split, n in zip(SPLITS, limits, strict=True)]
    if missing := set(classes) - {document.label for document in chosen[0]}:
        raise UserError(
            f"no training row of {name} has the label {min(missing)!r}: raise train_rows, or give "
            "it more documents"
        )
    rows = [_label_rows(d, encoder, length, bos_id, classes, class_tokens) for d in chosen]
    return Task(spec, "labels", classes, class_tokens, *rows)


def choose(documents: Sequence[Document], count: int) -> list[Document]:
    """At most `count` documents (0 for all), with the classes in their natural shares.

    Each class's documents are spread evenly, in the order of a hash of their ids, over the unit
    interval, and those with the smallest numbers are taken: a smaller choice is part of a larger.
    """
    hashed = sorted(documents, key=_hash)
    sizes = collections.Counter(document.label for document in documents)
    seen = collections.Counter()
    place = {}
    for document in hashed:
        place[document.id] = (seen[document.label] + 0.5) / sizes[document.label]
        seen[document.label] += 1
    taken = sorted(hashed, key=lambda document: place[document.id])[: count or None]
    return sorted(taken, key=_hash)


def _hash(document: Document) -> bytes:
    return hashlib.blake2b(document.id.encode(), digest_size=8).digest()


def _labelled_documents(name: str, data_dir: epath.PathLike) -> dict[str, list[Document]]:
    corpus = CorpusName.parse(name)
    own = corpus.is_path and corpus.base.partition("#")[0].endswith(".jsonl")
    if corpus.base not in LABELLED and not own:
        raise UserError(
            f"{name} has no labels: choose {', '.join(LABELLED)}, or a .jsonl file with the keys "
            "'text' and 'label'"
        )
    documents = {split: [] for split in SPLITS}
    for split, document in open_corpus(corpus.base, mirror.local_data_dir(data_dir)).documents():
        if document.label:
            documents[split].append(document._replace(text=corpus.corrupt(document)))
        elif own:
            raise UserError(
                f"{document.id} has no label: give every line a 'label', a string or a whole number"
            )
    return documents


def _class_tokens(encoder: Tokenizer, classes: Sequence[str], spec: str) -> np.ndarray:
    """One token a class: the last of the encoding of a letter or digit behind a space."""
    last = dict.fromkeys(ids[-1] for ids in encoder.encode_batch([f" {x}" for x in _NAMES]))
    if len(classes) > len(last):
        raise UserError(
            f"{len(classes)} classes need as many tokens to name them, but the letters and digits "
            f"of {spec} are {len(last)}: join classes"
        )
    return np.array(list(last)[: len(classes)], np.int32)


def _window_rows(windows: Windows, limit: int) -> Rows:
    count = min(limit or len(windows), len(windows))
    packed = windows.packed
    batch = windows.gather(np.arange(count) * len(windows) // count)
    return Rows(
        batch["tokens"],
        np.ones((count, windows.length), np.float32),
        batch["document"],
        np.full(count, -1, np.int32),
        packed.bytes / np.diff(packed.ends, prepend=0),
    )


def _label_rows(
    documents: Sequence[Document],
    encoder: Tokenizer,
    length: int,
    bos_id: int | None,
    classes: Sequence[str],
    class_tokens: np.ndarray,
) -> Rows:
    head = [] if bos_id is None else [bos_id]
    separator = encoder.encode(_SEPARATOR)
    room = length - len(head) - len(separator)
    if room < 1:
        raise UserError(
            f"a window of {length} targets leaves no room for the text before a label: make it at "
            f"least {length - room + 1}"
        )
    label_N = np.array([classes.index(document.label) for document in documents], np.int32)
    tokens_NT = np.full((len(documents), length + 1), encoder.eos_id, np.int32)
    weights_NS = np.zeros((len(documents), length), np.float32)
    encoded = encoder.encode_batch([document.text for document in documents])
    for n, ids in enumerate(encoded):
        row = [*head, *ids[:room], *separator, class_tokens[label_N[n]]]
        tokens_NT[n, : len(row)] = row
        weights_NS[n, len(row) - 2] = 1
    sizes_N = np.array([len(document.text.encode()) for document in documents])
    return Rows(
        tokens_NT,
        weights_NS,
        np.repeat(np.arange(len(documents), dtype=np.int32)[:, None], length + 1, axis=1),
        label_N,
        sizes_N / np.maximum(1, [len(ids) for ids in encoded]),
    )
