"""Extended vocabularies: text comes back, old tokens stay, new ones are the means they say."""

import functools
import itertools

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmnoise.data.tokenizer import load_tokenizer
from lmnoise.errors import UserError
from lmnoise.evaluation import vocabulary
from lmnoise.evaluation.language import document_sums, summarise
from lmnoise.models.transformer import LanguageModel, llama

KOREAN = ["문서를 저장합니다. 문서를 엽니다.", "표의 행을 삭제합니다. 문서를 저장합니다."] * 3
TINY = functools.partial(
    llama, context=32, layers=1, width=8, heads=2, kv_heads=1, mlp_width=12, vocab_size=257
)


@functools.cache
def gpt2():
    return load_tokenizer("gpt2", "unused").model


@functools.cache
def extended():
    return vocabulary.learn(gpt2(), KOREAN, 20, first=50_257)


def sentencepiece():
    """A tokenizer as SentencePiece makes them: marks for spaces, bytes for the rest."""
    characters = ["▁", *"문서를저장"]
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {c: 256 + n for n, c in enumerate(characters)} | {"문서": 300}
    model = models.BPE(vocab, [("문", "서")], unk_token=None, fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


@settings(deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back(text):
    ids = extended().tokenizer.encode(text, add_special_tokens=False).ids
    assert extended().tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(KOREAN + ["문서", " 저장", "hello", "표"]), max_size=4))
def test_new_tokens_stand_for_their_pieces(parts):
    """Writing each new token as its pieces gives the old tokens' text, and is no longer."""
    text = "".join(parts)
    new, old = (
        t.encode(text, add_special_tokens=False).ids for t in (extended().tokenizer, gpt2())
    )
    first, pieces = extended().first, extended().pieces
    spelled = [p for i in new for p in (pieces[i - first] if i >= first else (i,))]
    assert gpt2().decode(spelled, skip_special_tokens=False) == text
    assert len(new) <= len(old)


def test_old_tokens_keep_their_ids_and_new_ones_are_used():
    before, after = gpt2().get_vocab(), extended().tokenizer.get_vocab()
    assert before.items() <= after.items()
    assert sorted(after[token] for token in after.keys() - before.keys()) == list(
        range(50_257, 50_277)
    )
    counts = [len(t.encode(KOREAN[0]).ids) for t in (extended().tokenizer, gpt2())]
    assert counts[0] < 0.7 * counts[1]
    english = "The spreadsheet is saved."
    assert extended().tokenizer.encode(english).ids == gpt2().encode(english).ids


def test_the_first_merge_is_the_most_frequent_pair():
    pairs = {}
    for text in KOREAN:
        for word, _ in gpt2().pre_tokenizer.pre_tokenize_str(text):
            ids = plain().encode(word).ids
            for pair in itertools.pairwise(ids):
                pairs[pair] = pairs.get(pair, 0) + 1
    assert pairs[extended().pieces[0]] == max(pairs.values())


@functools.cache
def plain():
    """GPT-2's merges, for words in the alphabet of bytes."""
    copy = tokenizers.Tokenizer.from_str(gpt2().to_str())
    copy.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return copy


def test_the_same_text_gives_the_same_tokens():
    again = vocabulary.learn(gpt2(), KOREAN, 20, first=50_257)
    assert again.pieces == extended().pieces
    assert again.tokenizer.to_str() == extended().tokenizer.to_str()


def test_new_ids_may_begin_above_a_padded_vocabulary():
    padded = vocabulary.learn(gpt2(), KOREAN, 3, first=50_304)
    new = padded.tokenizer.get_vocab().keys() - gpt2().get_vocab().keys()
    assert sorted(padded.tokenizer.token_to_id(t) for t in new) == [50_304, 50_305, 50_306]
    with pytest.raises(ValueError, match="first is 100"):
        vocabulary.learn(gpt2(), KOREAN, 3, first=100)


def test_sentencepiece_joins_neither_bytes_nor_words():
    texts = ["문서를 저장 문서를 저장 ab 문서를"]
    found = vocabulary.learn(sentencepiece(), texts, 3, first=400)
    new = found.tokenizer.get_vocab().keys() - sentencepiece().get_vocab().keys()
    assert len(new) == 3
    assert not any("<0x" in token or "▁" in token[1:] for token in new)
    ids = found.tokenizer.encode(texts[0]).ids
    assert found.tokenizer.decode(ids) == texts[0]
    assert len(ids) < len(sentencepiece().encode(texts[0]).ids)


def test_too_little_text_and_other_kinds_are_refused():
    with pytest.raises(UserError, match="ask for fewer"):
        vocabulary.learn(gpt2(), ["a b"], 50, first=50_257)
    word_level = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="kind WordLevel"):
        vocabulary.learn(word_level, ["a"], 1, first=1)


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_means_of_their_pieces(tied):
    model = LanguageModel(TINY(tied=tied))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda spec: np.float32(generator.normal(size=spec.shape)), model.specs)
    pieces = [(5, 7), (200, 200, 11)]
    config, grown = vocabulary.extend(model.config, params, pieces)
    assert config.vocab_size == 259
    np.testing.assert_array_equal(grown["tokens"][:257], params["tokens"])
    for n, of_token in enumerate(pieces):
        mean = sum(params["tokens"][i] for i in of_token) / len(of_token)
        np.testing.assert_allclose(grown["tokens"][257 + n], mean, atol=1e-7)
        if not tied:
            kernel = params["head"]["kernel"]
            mean = sum(kernel[:, i] for i in of_token) / len(of_token)
            np.testing.assert_allclose(grown["head"]["kernel"][:, 257 + n], mean, atol=1e-7)
    shapes = jax.tree.map(lambda spec: spec.shape, LanguageModel(config).specs)
    assert jax.tree.map(np.shape, grown) == shapes
    # Old tokens have the logits they had.
    tokens = np.array([[1, 2, 3]], np.int32)
    before = jax.jit(model.logits)(params, tokens)
    after = jax.jit(LanguageModel(config).logits)(grown, tokens)
    np.testing.assert_allclose(after[..., :257], before, atol=1e-5)


def test_bits_per_byte_of_two_vocabularies_count_the_same_bytes():
    """Log probabilities of the bytes themselves: any tokens that add them up give the same."""
    texts, nats_per_byte = ["문서를 저장", "ab"], 0.7
    for encode in (lambda t: list(t.encode()), lambda t: [len(w.encode()) for w in t.split(" ")]):
        encoded = [encode(text) for text in texts]
        source = vocabulary.text_source("ko", texts, encoded, front=0, length=20, batch_size=3)
        losses = []
        for batch in source.batches:
            loss = np.full(batch["weights"].shape, np.nan)
            for n, text in enumerate(texts):
                share = len(text.encode()) * nats_per_byte / len(encoded[n])
                loss[n, : len(encoded[n])] = share
            losses.append(np.nan_to_num(loss, nan=9.0)[None])
        sums = document_sums(losses, source.batches, len(texts))
        found = summarise(*sums, source.bytes_per_token)
        assert found["bits_per_byte"][0] == pytest.approx(nats_per_byte / np.log(2))
    with pytest.raises(ValueError, match=r"encoded\[0\] has 3 tokens"):
        vocabulary.text_source("x", ["abc"], [[1, 2, 3]], front=0, length=2, batch_size=1)


def test_where_a_curve_reaches_a_target():
    assert vocabulary.reached([0, 10, 20], [5.0, 3.0, 1.0], 2.0) == pytest.approx(15.0)
    assert vocabulary.reached([0, 10], [5.0, 3.0], 5.5) == 0.0
    assert vocabulary.reached([0, 10, 20, 30], [5.0, 1.0, 4.0, 0.0], 3.0) == pytest.approx(5.0)
    assert np.isnan(vocabulary.reached([0, 10], [5.0, 3.0], 2.0))
