"""A contender: generation over a KV cache by `lmnoise.evaluation.generation`.

Started by generate.py with its own interpreter.
"""

from pathlib import Path

import jax
import numpy as np
from lmnoise_worker import device_facts, device_memory, first_steps
from protocol import serve

from lmnoise.evaluation.generation import generate
from lmnoise.models.pretrained import read_folder
from lmnoise.models.transformer import LanguageModel


class Generation:
    """A step is one batch of continuations, sampled with another key each."""

    def __init__(self, spec):
        config, params = read_folder(Path(spec["model"]))
        self.model, self.params = LanguageModel(config), jax.device_put(params)
        prompts_BS = np.fromfile(spec["prompts"], np.int32).reshape(spec["batch"], -1)
        self.prompts, self.new_tokens = prompts_BS.tolist(), spec["new_tokens"]
        self.sampled, self.step = spec["method"] == "sampling", 0

    @property
    def facts(self):
        """With the tokens of the last batch, which are asked for once there is one."""
        return device_facts() | {
            "parameters": self.model.parameter_count,
            "versions": {},
            "tokens": self.tokens,
        }

    @first_steps
    def advance(self, steps):
        for _ in range(steps):
            key = jax.random.key(self.step) if self.sampled else None
            self.step += 1
            self.tokens = generate(self.model, self.params, self.prompts, self.new_tokens, key=key)
        return float(np.mean(self.tokens))

    def memory(self):
        return device_memory()


if __name__ == "__main__":
    serve(Generation)
