"""Greedy continuations against the argmax of the logits, one step after the other."""

import functools

import jax
import numpy as np
import pytest

from lmnoise.evaluation.continuation import greedy, greedy_variants
from lmnoise.models.transformer import LanguageModel, gpt2, llama

CONFIGS = {
    "gpt2": gpt2(vocab_size=37, context=16, layers=1, width=16, heads=2),
    "llama": llama(
        vocab_size=37, context=16, layers=1, width=16, heads=4, kv_heads=2, mlp_width=24
    ),
}
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5]]


@functools.cache
def case(name):
    """A model with weights far enough from zero for the argmax to vary."""
    model = LanguageModel(CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(1))
    return model, jax.tree.map(lambda leaf: 20 * leaf if leaf.ndim > 1 else leaf, params)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_argmax_of_the_logits_step_by_step(name):
    model, params = case(name)
    logits = jax.jit(model.logits)
    expected = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(4):
            logits_BSV = logits(params, np.array([tokens], np.int32))
            tokens.append(int(np.argmax(logits_BSV[0, -1])))
        expected.append(tokens[len(prompt) :])
    assert greedy(model, params, PROMPTS, 4) == expected
    assert len({token for row in expected for token in row}) > 3


def test_neither_the_padding_nor_the_other_prompts_matter():
    model, params = case("llama")
    found = greedy(model, params, PROMPTS, 4)
    assert [greedy(model, params, [prompt], 4)[0] for prompt in PROMPTS] == found
    assert greedy(model, params, PROMPTS[::-1], 4) == found[::-1]
    assert greedy(model, params, PROMPTS, 2) == [row[:2] for row in found]


def test_variants_are_the_continuations_of_the_changed_parameters():
    model, params = case("gpt2")

    def change(params, member, extra):
        return params | {"tokens": params["tokens"] * member["factor"] + extra}

    factors, extra = np.array([1.0, -1.0, 0.5], np.float32), 0.1 * params["tokens"][::-1]
    found = greedy_variants(model, params, PROMPTS, 4, change, {"factor": factors}, extra)
    expected = [
        greedy(model, params | {"tokens": params["tokens"] * f + extra}, PROMPTS, 4)
        for f in factors
    ]
    assert found == expected
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "needs a token"), ([[1], []], "needs a token"), ([[1] * 11], "exceed the context of 16")],
)
def test_prompts_that_cannot_be_continued(prompts, message):
    with pytest.raises(ValueError, match=message):
        greedy(*case("gpt2"), prompts, 6)
