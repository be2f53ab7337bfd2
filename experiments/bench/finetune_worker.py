"""A contender: fine-tuning of one start over learning rates, as a population or one by one.

Started by finetune.py with its own interpreter.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from contenders import Shape
from lmnoise_worker import device_facts, device_memory, first_steps
from protocol import serve

from lmnoise.data.packing import Packed
from lmnoise.data.stream import Windows, evaluation_batches
from lmnoise.data.tasks import Rows, Task
from lmnoise.evaluation.finetune import FineTuner, PreTraining
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.outcomes import grid
from lmnoise.models.transformer import LanguageModel
from lmnoise.training.mesh import make_mesh


class FineTuning:
    """A step is a whole grid: the start is scored, tuned with each rate and scored again."""

    def __init__(self, spec):
        shape = Shape(**spec["shape"])
        model = LanguageModel(shape.model(dtype=spec["dtype"]))
        texts_NT = _texts(spec, shape)
        pretraining = texts_NT.pop("pretraining")
        packed = _packed(pretraining, shape)
        batches = list(evaluation_batches(packed, shape.length, shape.batch))
        self.tuner = FineTuner(
            model,
            Task("tokens", "text", (), np.zeros(0, np.int32), **texts_NT),
            grid(learning_rate=tuple(spec["rates"])),
            mesh=make_mesh(devices=jax.devices()[:1]),
            batch_size=shape.batch,
            pretraining=PreTraining(
                Windows(packed, shape.length), Source("tokens", batches, np.ones(1))
            ),
            # With room for a single member, the members train one after the other.
            **({"state_bytes": 0.0} if spec["kind"] == "runs" else {}),
        )
        self.params = jax.device_get(model.init(jax.random.key(0)))
        self.step = 0
        self.facts = device_facts() | {"parameters": model.parameter_count, "versions": {}}

    @first_steps
    def advance(self, steps):
        for _ in range(steps):
            self.step += 1
            with tempfile.TemporaryDirectory() as folder:
                outcomes = self.tuner.run(self.params, workdir=Path(folder), record={})
        return float(np.mean([o.after["validation"].loss.mean for o in outcomes]))

    def memory(self):
        return device_memory()


def _texts(spec, shape):
    """Rows by the name of the text, in the order of the file."""
    rows_NT = np.fromfile(spec["tokens"], np.int32).reshape(-1, shape.length + 1)
    ends = np.cumsum([count * shape.batch for count in spec["batches"].values()])
    parts = np.split(rows_NT, ends[:-1])
    return {
        name: part if name == "pretraining" else _rows(part)
        for name, part in zip(spec["batches"], parts, strict=True)
    }


def _rows(tokens_NT):
    count, length = tokens_NT.shape
    return Rows(
        tokens_NT,
        np.ones((count, length - 1), np.float32),
        np.repeat(np.arange(count, dtype=np.int32)[:, None], length, axis=1),
        np.full(count, -1, np.int32),
        np.ones(count),
    )


def _packed(rows_NT, shape):
    """As many windows as rows: each begins with the last token of the one before."""
    tokens_T = np.append(rows_NT[:, :-1].reshape(-1), 0).astype("<u2")
    ends = np.array([len(tokens_T)])
    return Packed("tokens", "test", tokens_T, ends, ends, shape.vocab_size, 0, "tokens", {})


if __name__ == "__main__":
    serve(FineTuning)
