"""Documents of any length against the softmax, plain greedy turns and full forwards."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmnoise import keys, tree
from lmnoise.evaluation.documents import Written, mean_losses, repeated_share, write
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.training.mesh import make_mesh

VOCABULARY, CONTEXT, SEPARATOR, NO_TOKEN = 23, 8, 22, 23
ROWS, LENGTH, TOP_P = 512, 20, 0.98
MODEL = LanguageModel(
    gpt2(vocab_size=VOCABULARY, context=CONTEXT, layers=1, width=8, heads=2, layers_as="unrolled")
)
KEY = keys.fold(jax.random.key(3), "documents")


@functools.cache
def parameters():
    def draw(name, spec):
        generator = np.random.default_rng(list(name.encode()))
        return np.float32(spec.constant + generator.normal(size=spec.shape, scale=0.3))

    return tree.map_named(draw, MODEL.specs)


@functools.cache
def _logits():
    return jax.jit(MODEL.logits)


def logits_after(row):
    """Logits (S, V) of a full forward, float64; attention is causal, so padding does no harm."""
    padded = np.array([row + [0] * (CONTEXT - len(row))], np.int32)
    return np.asarray(_logits()(parameters(), padded), np.float64)[0, : len(row)]


def documents(rows=ROWS, length=LENGTH, *, prompts=None, params=None, devices=1, **settings):
    """One shape for all, so one compiled program: turns of 4 tokens that read 5.

    With a nucleus everywhere, of which tokens that are equally probable are all part.
    """
    prompts = np.zeros((rows, 0), np.int32) if prompts is None else np.array(prompts, np.int32)
    options = dict(begin=[SEPARATOR], separator=SEPARATOR, top_p=TOP_P) | settings
    return write(
        MODEL,
        parameters() if params is None else params,
        prompts,
        length,
        keys.row_keys(KEY, np.arange(rows)),
        mesh=make_mesh(devices=jax.devices()[:devices]),
        **options,
    )


def test_first_tokens_follow_the_softmax_of_the_full_forward():
    temperature = 0.7
    written = documents(temperature=temperature)
    first = [document.tokens[0] if document.tokens else SEPARATOR for document in written]
    p_V = np.exp(logits_after([SEPARATOR])[0] / temperature)
    p_V /= p_V.sum()
    order = np.argsort(-p_V)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(p_V[order]), TOP_P))]
    assert 2 < len(kept) < VOCABULARY
    counts_V = np.bincount(first, minlength=VOCABULARY)
    assert counts_V[kept].sum() == ROWS
    assert stats.chisquare(counts_V[kept], ROWS * p_V[kept] / p_V[kept].sum()).pvalue > 0.01


def test_every_turn_draws_anew():
    """A model that knows nothing: any two positions of a document are independent."""
    blank = jax.tree.map(np.zeros_like, parameters())
    tokens_BT = np.array([d.tokens for d in documents(params=blank, separator=NO_TOKEN)])
    assert tokens_BT.shape == (ROWS, LENGTH)
    pairs = [(i, j) for i in range(LENGTH) for j in range(i)]
    equal = np.array([(tokens_BT[:, i] == tokens_BT[:, j]).mean() for i, j in pairs])
    assert np.abs(equal - 1 / VOCABULARY).max() < 5 * np.sqrt(1 / VOCABULARY / ROWS)


def test_longer_than_the_context_each_turn_reads_the_end_again():
    prompts = np.arange(2 * ROWS).reshape(ROWS, 2) % VOCABULARY
    # So cold that every draw is the most probable token; 12 new ones are 3 turns.
    found = documents(length=14, prompts=prompts, temperature=1e-4, separator=NO_TOKEN)
    for prompt, document in zip(prompts[:8], found, strict=False):
        row = [SEPARATOR, *prompt.tolist()]
        for _ in range(3):
            start = max(0, len(row) - 5)
            for _ in range(4):
                row.append(int(np.argmax(logits_after(row[start:])[-1])))
        assert document == Written(row[1:], False)


def test_documents_end_at_the_separator_or_the_length():
    # So hot that the separator is as probable as any other token.
    free = documents(separator=NO_TOKEN, temperature=100.0)
    written = documents(temperature=100.0)
    ends = [d.tokens.index(SEPARATOR) if SEPARATOR in d.tokens else None for d in free]
    assert {None, 0} < set(ends)
    assert max(end for end in ends if end is not None) > CONTEXT
    for document, whole, end in zip(written, free, ends, strict=True):
        assert document == Written(whole.tokens[:end], end is not None)


def test_rows_are_the_same_on_any_devices_and_beside_any_others():
    spread = documents(16, devices=8)
    assert spread == documents()[:16]
    assert len({tuple(document.tokens) for document in spread}) == 16


@pytest.mark.parametrize("skip", [0, 2])
def test_mean_losses_are_those_of_full_forwards(skip):
    written = [Written([1, 2, 3], True), Written([4, 5, 6, 7, 8, 9, 10, 11, 12, 13], False)]
    begin = [SEPARATOR] if skip == 0 else []
    found = mean_losses(
        MODEL,
        parameters(),
        written,
        10,
        begin=begin,
        separator=SEPARATOR,
        mesh=make_mesh(devices=jax.devices()[:1]),
        skip=skip,
    )
    for document, loss in zip(written, found, strict=True):
        row = begin + document.tokens + [SEPARATOR] * document.ended
        losses = []
        for start in range(0, len(row) - 1, CONTEXT):
            targets = row[start + 1 : start + CONTEXT + 1]
            logits_SV = logits_after(row[start : start + CONTEXT])[: len(targets)]
            log_p_SV = logits_SV - np.log(np.exp(logits_SV).sum(-1, keepdims=True))
            losses += [-log_p_V[target] for log_p_V, target in zip(log_p_SV, targets, strict=True)]
        assert loss == pytest.approx(np.mean(losses[max(0, skip - 1) :]), rel=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
def test_repeated_share_counts_the_runs_that_were_there_before(tokens, size):
    runs = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
    before = sum(run in runs[:i] for i, run in enumerate(runs))
    assert repeated_share(tokens, size) == pytest.approx(before / len(runs) if runs else 0)


def test_what_cannot_be_written():
    with pytest.raises(ValueError, match="0 tokens to begin with, 20 to write"):
        documents(1, begin=[])
    with pytest.raises(ValueError, match="3 tokens to begin with, 0 to write"):
        documents(1, 2, prompts=[[1, 2]])
