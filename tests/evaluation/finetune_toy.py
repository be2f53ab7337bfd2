"""A model of bigrams, a task of labels and pre-training text, for all that fine-tunes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise.data.stream import Windows
from lmnoise.data.tasks import Rows, Task
from lmnoise.evaluation.finetune import PreTraining
from lmnoise.evaluation.language import Source
from lmnoise.training.mesh import make_mesh

VOCAB, LENGTH, ROWS, BATCH = 32, 8, 12, 4


class Bigram:
    """What follows a token, through a kernel: all that a fine-tuner asks of a model."""

    config = dataclasses.make_dataclass("Config", ["vocab_size"])(VOCAB)

    def init(self, key):
        shapes = {"tokens": (VOCAB, 6), "blocks": {0: {"kernel": (6, 8)}}, "head": (8, VOCAB)}
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        draws = [jax.random.normal(key, shape) * 0.3 for shape in leaves]
        return jax.tree.unflatten(structure, draws)

    def logits(self, params, tokens):
        hidden = jnp.tanh(params["tokens"][tokens] @ params["blocks"][0]["kernel"])
        return hidden @ params["head"]

    def logits_at(self, params, tokens, position):
        return self.logits(params, jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0])

    def loss(self, params, batch, key):
        return token_losses(params, batch["tokens"])

    def flops_per_token(self, length):
        return 1.0


def token_losses(params, tokens):
    logits = jax.nn.log_softmax(MODEL.logits(params, tokens[:, :-1]))
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]


MODEL = Bigram()
START = jax.device_get(MODEL.init(jax.random.key(0)))
CLASSES = np.array([5, 9, 11], np.int32)
KERNEL = "blocks/0/kernel"


def rows(count, seed):
    """Rows of labels at different positions, padded on the right."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (count, LENGTH + 1)).astype(np.int32)
    label, position = random.integers(0, 3, count), random.integers(2, LENGTH, count)
    tokens[np.arange(count), position + 1] = CLASSES[label]
    weights = np.zeros((count, LENGTH), np.float32)
    weights[np.arange(count), position] = 1
    document = np.repeat(np.arange(count, dtype=np.int32)[:, None], LENGTH + 1, axis=1)
    return Rows(tokens, weights, document, label.astype(np.int32), np.ones(count))


TASK = Task("toy", "labels", ("a", "b", "c"), CLASSES, rows(ROWS, 0), rows(6, 1), rows(7, 2))


def of_text(labelled):
    """The same rows as text: every target is scored, and a row is a document."""
    return labelled._replace(weights=np.ones_like(labelled.weights))


class OneToken(Windows):
    """Pre-training text of one token, so that a replayed row is known when it is seen."""

    def __init__(self):
        self.length = LENGTH

    def __len__(self):
        return 20

    def gather(self, index_B):
        tokens = np.full((len(index_B), LENGTH + 1), 3, np.int32)
        return {"tokens": tokens, "document": np.zeros_like(tokens)}


HELD_OUT = Source(
    "held out",
    [
        {
            "tokens": np.random.default_rng(9).integers(0, VOCAB, (BATCH, LENGTH + 1), np.int32),
            "document": np.arange(BATCH, dtype=np.int32)[:, None] // 2
            + np.zeros(9, np.int32)[None],
            "weights": np.ones((BATCH, LENGTH), np.float32),
        }
    ],
    np.ones(2),
)
PRETRAINING = PreTraining(OneToken(), HELD_OUT)


def mesh():
    return make_mesh(devices=jax.devices()[:1])
