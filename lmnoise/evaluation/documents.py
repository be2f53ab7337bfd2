"""Whole documents that a model writes, of any length, and what tells good ones from bad.

Letters: B rows, K tokens of a prompt, S positions of a window, W windows.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmnoise.evaluation.generation import extend
from lmnoise.models.transformer import LanguageModel
from lmnoise.training import mesh as meshes


class Written(NamedTuple):
    """A document: its tokens, prompt included and separator not, and whether that ended it."""

    tokens: list[int]
    ended: bool


def write(
    model: LanguageModel,
    params: Any,
    prompts_BK: np.ndarray,
    length: int,
    key_B: jax.Array,
    *,
    begin: Sequence[int],
    separator: int,
    mesh: Mesh,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Written]:
    """A document a row, to the separator or to `length` tokens.

    What does not fit in the context is written in turns: each reads the end of what is there
    again, half the context or more, and goes on. All turns and all calls of one shape are one
    compiled program; rows that have ended wait for the others.

    Args:
      model: the writer.
      params: its parameters on the devices of the mesh, the same on all.
      prompts_BK: int32, with which the documents begin, without separators; K may be 0.
      length: most tokens of a document, more than K.
      key_B: a key a row, see `extend`.
      begin: what the model reads before a document, such as the separator or a token that marks
        the beginning of a text; not empty if K is 0.
      separator: the token that ends a document.
      mesh: the rows lie over its axes of rows, which divide them.
      temperature, top_p: see `extend`.

    Raises:
      ValueError: nothing to begin with, no token to write, or a context of less than 3 tokens.
    """
    batch, prompt = prompts_BK.shape
    new = length - prompt
    front_BN = np.tile(np.array(begin, np.int32), (batch, 1))
    text_BT = np.concatenate([front_BN, prompts_BK.astype(np.int32)], axis=1)
    window, step = _turns(text_BT.shape[1], new, model.config.context)
    options = dict(temperature=temperature, top_p=top_p, stop=separator)
    ended_B = np.zeros(batch, bool)
    rows = meshes.batch_sharding(mesh, 0)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for turn in range(-(-new // step)):
            read_BS = text_BT[:, -window:]
            length_B = np.full(batch, read_BS.shape[1], np.int32)
            read_BS = np.pad(read_BS, ((0, 0), (0, window - read_BS.shape[1])))
            # Positions begin anew with each turn, and draws depend on them.
            arrays = jax.device_put((read_BS, length_B, _of_turn(key_B, turn)), rows)
            read_BS, length_B, turn_B = arrays
            found_BN = extend(model, params, read_BS, length_B, step, turn_B, **options)
            text_BT = np.concatenate([text_BT, np.asarray(found_BN)], axis=1)
            ended_B |= (text_BT[:, -step:] == separator).any(1)
            if ended_B.all():
                break
    return [_cut(row_T[len(begin) :].tolist(), length, separator) for row_T in text_BT]


def mean_losses(
    model: LanguageModel,
    params: Any,
    documents: Sequence[Written],
    length: int,
    *,
    begin: Sequence[int],
    separator: int,
    mesh: Mesh,
    skip: int = 0,
) -> np.ndarray:
    """Mean next-token loss of each document, (B,) float64, nats a token.

    A document's separator counts, if it has one. What does not fit in the context is read in
    windows that follow each other. One compiled program for all calls of one shape.

    Args:
      model: that judges.
      params: its parameters on the devices of the mesh.
      documents: as `write` returns them.
      length: most tokens of any of them, which sets the shape.
      begin, separator, mesh: see `write`.
      skip: tokens of the prompt, which do not count.
    """
    # All but the first token; a separator has its place among the `length`.
    targets = len(begin) + length - 1
    window = min(model.config.context, targets)
    count = -(-targets // window)
    tokens_BT = np.full((len(documents), count * window + 1), separator, np.int32)
    weights_BT = np.zeros(tokens_BT.shape, np.float64)
    for row_T, weight_T, document in zip(tokens_BT, weights_BT, documents, strict=True):
        row_T[: len(begin)] = begin
        end = len(begin) + len(document.tokens)
        row_T[len(begin) : end] = document.tokens
        weight_T[max(1, len(begin) + skip) : end + document.ended] = 1
    rows, sums_B = meshes.batch_sharding(mesh, 0), np.zeros(len(documents))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for start in range(0, count * window, window):
            part_BS = jax.device_put(tokens_BT[:, start : start + window + 1], rows)
            losses_BS = np.asarray(_losses(model, params, part_BS), np.float64)
            sums_B += (losses_BS * weights_BT[:, start + 1 : start + window + 1]).sum(1)
    return sums_B / np.maximum(weights_BT.sum(1), 1)


def repeated_share(tokens: Sequence[int], size: int = 4) -> float:
    """The share of the runs of `size` tokens that the document had before; 0 if it has none."""
    runs = len(tokens) - size + 1
    if runs < 1:
        return 0.0
    return 1 - len({tuple(tokens[i : i + size]) for i in range(runs)}) / runs


def _turns(front: int, new: int, context: int) -> tuple[int, int]:
    """(tokens that each turn reads at most, tokens that it writes)."""
    if front < 1 or new < 1 or context < 3:
        raise ValueError(
            f"{front} tokens to begin with, {new} to write and a context of {context}: they must "
            "be at least 1, 1 and 3"
        )
    if front + new - 1 <= context:
        return front, new
    half = context // 2
    turns = -(-new // half)
    step = -(-new // turns)
    return context - step + 1, step


@jax.jit
def _of_turn(key_B, turn):
    return jax.vmap(lambda key: jax.random.fold_in(key, turn))(key_B)


@functools.partial(jax.jit, static_argnums=0)
def _losses(model, params, tokens_BT):
    return model.loss(params, {"tokens": tokens_BT}, jax.random.key(0))


def _cut(tokens: list[int], length: int, separator: int) -> Written:
    tokens = tokens[:length]
    if separator in tokens:
        return Written(tokens[: tokens.index(separator)], True)
    return Written(tokens, False)
