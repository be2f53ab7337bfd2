"""The numbers of two steps of a fixed tiny run.

They pin everything at once: initialisation, the noise, the model, the loss, clipping, AdamW and
the schedule. A change says that the same config now trains another model: runs made before
cannot be compared with runs made after, nor resumed. If that was meant, say so in the commit
and write the new numbers here; if not, something is wrong.
"""

import jax
import numpy as np
import pytest

from lmnoise.data.corruption import Corruption
from lmnoise.models.transformer import LanguageModel, gpt2, llama
from lmnoise.training.mesh import make_mesh
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, mean, member_arrays

VOCAB, LENGTH, ROWS = 97, 16, 8
FAMILIES = {
    "gpt2": gpt2(vocab_size=VOCAB, context=LENGTH, layers=2, width=32, heads=4),
    "llama": llama(
        vocab_size=VOCAB,
        context=LENGTH,
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        mlp_width=64,
    ),
}
# Mean loss, loss of the noise rows, and norm of the gradient, in steps 1 and 2.
GOLDEN = {
    "gpt2": [[4.594637, 4.597231], [4.578300, 4.628216], [1.0890247, 0.8149573]],
    "llama": [[4.589952, 4.574662], [4.592095, 4.570155], [0.7639389, 0.7566062]],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps(family):
    model = LanguageModel(FAMILIES[family])
    member = {"seed": 1, "stream": 0, "kind": 0, "rate": 0.3}
    population = Population(
        init=model.init,
        loss=model.loss,
        transform=Corruption(VOCAB, ("uniform",)),
        optimizer=OptimizerConfig(steps=4),
        members=member_arrays([member | {"learning_rate": 0.01, "weight_decay": 0.1}]),
        mesh=make_mesh(devices=jax.devices()[:1]),
    )
    # Every token follows from the two before it, so that there is something to learn.
    tokens = np.zeros((2, 1, ROWS, LENGTH + 1), np.int32)
    tokens[..., 0] = np.arange(2 * ROWS).reshape(2, 1, ROWS)
    for s in range(1, LENGTH + 1):
        tokens[..., s] = (5 * tokens[..., s - 1] + 3 * tokens[..., s - 2] + s) % VOCAB
    staged = [{"tokens": tokens[k], "index": np.int32(k)} for k in range(2)]
    _, metrics = population.steps(population.init(), population.stage(staged))
    found = [
        mean(np.asarray(metrics[name])[0, :, None], 1).tolist()
        for name in ("loss", "loss/noise", "grad_norm")
    ]
    np.testing.assert_allclose(found, GOLDEN[family], rtol=1e-4)
