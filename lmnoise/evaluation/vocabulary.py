"""Vocabulary extension: tokens learnt on one language, on top of a checkpoint's own.

The merges of byte-pair encoding (arXiv 1508.07909) go on where the checkpoint's own stop: the
text is tokenised as it is, and the pairs of tokens that come most often become new ones. The
checkpoint's tokens keep their ids and embeddings, and every text still decodes to itself; a new
token begins as the mean of the tokens that it takes the place of.

Two vocabularies compare by bits per byte on the same text, never by loss per token.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from lmnoise.errors import UserError
from lmnoise.evaluation.language import Source
from lmnoise.models.transformer import TransformerConfig

# To the trainer a token is one character: that of its id, above all that text has in practice.
_FIRST = 0x10000
# SentencePiece's mark of a space begins a word, and its bytes do not join by their names.
_SPACE, _BYTE = "\u2581", "<0x"


class Extension(NamedTuple):
    """A tokenizer with new tokens; `pieces[n]` are the old ids that the n-th new token joins.

    The n-th new token has the id `first + n`.
    """

    tokenizer: tokenizers.Tokenizer
    first: int
    pieces: list[tuple[int, ...]]


def learn(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], count: int, first: int
) -> Extension:
    """Learns `count` tokens on `texts`, on top of those of a BPE tokenizer.

    Args:
      tokenizer: of kind BPE; it is not changed.
      texts: of the language; the same texts give the same tokens.
      count: how many new tokens.
      first: id of the first of them, above all old ones: the size of the model's vocabulary.

    Raises:
      UserError: the tokenizer is of another kind, or the text has too few pairs of tokens.
      ValueError: `first` is not above all ids.
    """
    rules = json.loads(tokenizer.to_str())
    if rules["model"]["type"] != "BPE":
        raise UserError(
            f"a vocabulary of kind {rules['model']['type']} cannot be extended: take a checkpoint "
            "with a BPE tokenizer"
        )
    if first <= max(tokenizer.get_vocab(with_added_tokens=True).values()):
        raise ValueError(f"first is {first}, which is the id of a token already")
    vocab = rules["model"]["vocab"]
    name_of, pieces = {number: token for token, number in vocab.items()}, {}
    for left, right in _merges(tokenizer, texts, count):
        joined = left + right
        token = "".join(name_of[number] for number in joined)
        if token not in vocab:
            if len(pieces) == count:
                break
            vocab[token] = first + len(pieces)
            pieces[token] = joined
        names = ["".join(name_of[number] for number in part) for part in (left, right)]
        rules["model"]["merges"].append(names)
    if len(pieces) < count:
        raise UserError(
            f"the text has pairs for {len(pieces)} new tokens, not {count}: ask for fewer, or "
            "learn them on more text"
        )
    extended = tokenizers.Tokenizer.from_str(json.dumps(rules))
    extended.encode_special_tokens = tokenizer.encode_special_tokens
    return Extension(extended, first, list(pieces.values()))


def _merges(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs to join, most frequent first, each side as the old ids that it is made of."""
    words = list(_words(tokenizer, texts))
    alphabet = len(set(itertools.chain.from_iterable(words)))
    # Some pairs make what the vocabulary has already, so more are learnt than asked for.
    trainer = trainers.BpeTrainer(vocab_size=alphabet + 2 * count, show_progress=False)
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(words, trainer)
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = (tuple(ord(character) - _FIRST for character in part) for part in pair)
        yield left, right


def _words(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> Iterator[str]:
    """The stretches of tokens that may be joined, as strings of one character a token."""
    whole = set(tokenizer.get_added_tokens_decoder())
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        word, last = [], None
        for token, number, of_word in zip(
            encoding.tokens, encoding.ids, encoding.word_ids, strict=True
        ):
            alone = number in whole or (token.startswith(_BYTE) and token.endswith(">"))
            if word and (alone or of_word != last or token.startswith(_SPACE)):
                yield "".join(word)
                word = []
            if not alone:
                word.append(chr(_FIRST + number))
            last = of_word
        if word:
            yield "".join(word)


def extend(
    config: TransformerConfig, params: Any, pieces: Sequence[Sequence[int]]
) -> tuple[TransformerConfig, Any]:
    """The model with one more token for each of `pieces`, whose embedding is their mean.

    So is its column of the output head, where that is not tied to the embeddings. What else the
    model has is shared with `params`, not copied.
    """
    added_VD = np.stack([params["tokens"][list(of_token)].mean(0) for of_token in pieces])
    changed = {"tokens": np.concatenate([params["tokens"], added_VD])}
    if not config.tied:
        kernel_DV = params["head"]["kernel"]
        added_DV = np.stack([kernel_DV[:, list(p)].mean(1) for p in pieces], 1)
        kernel_DV = np.concatenate([kernel_DV, added_DV], 1)
        changed["head"] = {**params["head"], "kernel": kernel_DV}
    config = dataclasses.replace(config, vocab_size=config.vocab_size + len(pieces))
    return config, {**params, **changed}


def text_source(
    name: str,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    *,
    front: int,
    length: int,
    batch_size: int,
) -> Source:
    """Held-out text to score whole, a text a row, so that any vocabulary scores the same bytes.

    Args:
      name: of the source.
      texts: each a document.
      encoded: their tokens, at most `length` each.
      front: the token that stands before each text.
      length: targets a row.
      batch_size: rows a batch; the last one is filled up with rows that count nothing.
    """
    rows = -(-len(texts) // batch_size) * batch_size
    tokens = np.full((rows, length + 1), front, np.int32)
    weights, document = np.zeros((rows, length), np.float32), np.zeros(tokens.shape, np.int32)
    for n, ids in enumerate(encoded):
        if not 0 < len(ids) <= length:
            raise ValueError(f"encoded[{n}] has {len(ids)} tokens for rows of {length} targets")
        tokens[n, 1 : len(ids) + 1] = ids
        weights[n, : len(ids)] = 1.0
        document[n] = n
    batches = [
        {"tokens": tokens[at], "document": document[at], "weights": weights[at]}
        for at in np.split(np.arange(rows), rows // batch_size)
    ]
    sizes = [len(text.encode()) / len(ids) for text, ids in zip(texts, encoded, strict=True)]
    return Source(name, batches, np.array(sizes))


def reached(x: Sequence[float], y: Sequence[float], target: float) -> float:
    """The first x at which the curve through the points is down at `target`; NaN if it never is.

    Between points the curve is straight.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    low = np.flatnonzero(y <= target)
    if not low.size:
        return float("nan")
    at = int(low[0])
    if at == 0:
        return float(x[0])
    share = (y[at - 1] - target) / (y[at - 1] - y[at])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))
