"""Which rows a step of fine-tuning sees, and how they weigh."""

import functools
import sys
from pathlib import Path

import jax
import numpy as np

from lmnoise.evaluation.finetune_program import Batches, Replay

sys.path.insert(0, str(Path(__file__).parent))

from finetune_toy import BATCH, LENGTH, ROWS, TASK, VOCAB, OneToken, mesh

REPLAY = jax.jit(Replay(VOCAB, TASK.train))
whole_batch = functools.cache(Batches(TASK.train, OneToken(), [0, 1], ROWS, mesh()))


def replayed(rate, seed, step=0):
    """Which rows of a step are pre-training text, and their weights."""
    batch = {k: v[0] for k, v in whole_batch(step).items()} | {"index": np.int32(step)}
    member = {"seed": seed, "rate": rate, "kind": 0}
    found = jax.device_get(REPLAY(batch, member))
    taken = (found["tokens"] == 3).all(1)
    np.testing.assert_array_equal(taken, found["groups"]["replay"][:, 0])
    return taken, found["weights"]


def test_replay_takes_its_share_of_rows_and_more_of_it_takes_the_same_and_others():
    counts = {}
    for step in range(12):
        before = np.zeros(ROWS, bool)
        for rate in (0.0, 0.3, 0.7, 1.0):
            taken, weights = replayed(rate, 0, step)
            assert not (before & ~taken).any()
            # A row of text weighs as much as a row of which a label is scored.
            np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
            assert ((weights > 0).sum(1) == np.where(taken, LENGTH, 1)).all()
            counts[rate] = counts.get(rate, 0) + taken.sum()
            before = taken
    assert counts[0.0] == 0
    assert counts[1.0] == 12 * ROWS
    for rate in (0.3, 0.7):
        assert abs(counts[rate] / (12 * ROWS) - rate) < 4 * (rate * (1 - rate) / 144) ** 0.5
    assert (replayed(0.5, 0)[0] != replayed(0.5, 1)[0]).any()


def test_all_settings_of_a_seed_see_the_same_rows_each_once_an_epoch():
    batches = Batches(TASK.train, None, [0, 1], BATCH, mesh())
    epochs = []
    for epoch in range(2):
        read = [batches(3 * epoch + k)["tokens"] for k in range(3)]
        epochs.append(np.concatenate(read, axis=1))
    for seed in (0, 1):
        for epoch in epochs:
            assert {row.tobytes() for row in epoch[seed]} == {
                row.tobytes() for row in TASK.train.tokens
            }
        assert (epochs[0][seed] != epochs[1][seed]).any()
    assert (epochs[0][0] != epochs[0][1]).any()
