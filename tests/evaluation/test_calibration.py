"""Calibration against values computed by hand, and against the whole logits."""

import jax
import numpy as np
import pytest

from lmnoise.evaluation import calibration
from lmnoise.evaluation.calibration import Bins, tally
from lmnoise.evaluation.language import Source, evaluator
from lmnoise.models.transformer import LanguageModel, gpt2
from lmnoise.training import mesh
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays


def test_the_error_of_four_predictions_by_hand():
    confidences = np.array([0.9, 0.8, 0.4, 0.3])
    right = np.array([1, 0, 1, 0])
    # Two bins, (0, 0.5] and (0.5, 1]: mean confidences 0.35 and 0.85, accuracies 0.5 and 0.5.
    found = tally(confidences, right, np.ones(4), bins=2)
    assert found.counts_K.tolist() == [2, 2]
    assert found.calibration_error == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    assert found.accuracy == 0.5
    assert found.confidence == pytest.approx(0.6)
    # In one bin the two errors cancel down to the difference of the means.
    assert tally(confidences, right, np.ones(4), 1).calibration_error == pytest.approx(0.1)


def test_the_edges_of_bins_belong_to_the_bin_below_and_zero_to_the_first():
    found = tally(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.ones(5), np.ones(5), bins=4)
    assert found.counts_K.tolist() == [2, 1, 1, 1]


def test_what_has_no_weight_does_not_count():
    found = tally(np.array([[0.9, 0.2]]), np.array([[1, 1]]), np.array([[1, 0]]), bins=10)
    assert found.counts_K.sum() == 1
    assert found.calibration_error == pytest.approx(0.1)


def test_a_calibrated_forecaster_has_no_error_beyond_its_noise():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.01, 1, 200_000)
    right = rng.uniform(size=confidences.size) < confidences
    one, other = (
        tally(confidences[part], right[part], np.ones(confidences[part].size))
        for part in (slice(None, 1000), slice(1000, None))
    )
    together = Bins(*map(np.add, one, other))
    assert together.calibration_error < 0.01
    # One that claims certainty is wrong by all that it misses.
    sure = tally(np.ones_like(confidences), right, np.ones(confidences.size))
    assert sure.calibration_error == pytest.approx(1 - right.mean())


@pytest.mark.parametrize(("confidence", "bins"), [(1.1, 5), (-0.1, 5), (0.5, 0)])
def test_what_is_no_confidence_is_refused(confidence, bins):
    with pytest.raises(ValueError, match="must"):
        tally(np.array([confidence]), np.ones(1), np.ones(1), bins)


def test_the_rows_of_a_population_agree_with_the_whole_logits():
    model = LanguageModel(
        gpt2(vocab_size=40, context=8, layers=1, width=16, heads=2, logits_chunk=16)
    )
    own = dict(stream=0, learning_rate=0.0, weight_decay=0.0)
    population = Population(
        init=model.init,
        loss=model.loss,
        transform=lambda batch, member: batch,
        optimizer=OptimizerConfig(steps=2),
        members=member_arrays([{"seed": 0} | own, {"seed": 1} | own]),
        mesh=mesh.make_mesh(member=1, data=1, fsdp=1, model=1, devices=jax.devices()[:1]),
    )
    rng = np.random.default_rng(0)
    batches = [
        {
            "tokens": rng.integers(0, 40, (6, 9)).astype(np.int32),
            "document": np.repeat(np.arange(6, dtype=np.int32)[:, None], 9, axis=1),
            "weights": rng.integers(0, 2, (6, 8)).astype(np.float32),
        }
        for _ in range(2)
    ]
    source = Source("text", batches, np.ones(6))
    params = population.init().params
    rows = calibration.evaluator(population, model, [source], bins=5)(params)
    expected = evaluator(population, model.loss, [source])(params)
    for m, row in enumerate(rows):
        own = jax.tree.map(lambda leaf, m=m: leaf[m], params)
        logits = np.concatenate([model.logits(own, b["tokens"][:, :-1]) for b in batches])
        targets, weights = (
            np.concatenate([b["tokens"][:, 1:] for b in batches]),
            np.concatenate([b["weights"] for b in batches]).astype(bool),
        )
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p = (p / p.sum(-1, keepdims=True))[weights]
        right = p.argmax(-1) == targets[weights]
        assert row["member"] == m
        assert row["text/accuracy"] == pytest.approx(right.mean())
        assert row["text/confidence"] == pytest.approx(p.max(-1).mean(), rel=1e-5)
        bins = np.digitize(p.max(-1), np.arange(1, 5) / 5, right=True)
        error = sum(
            abs(right[bins == k].mean() - p.max(-1)[bins == k].mean()) * (bins == k).mean()
            for k in np.unique(bins)
        )
        assert row["text/calibration_error"] == pytest.approx(error, abs=1e-5)
        assert row["text/loss"] == pytest.approx(expected[m]["eval/text/loss"], rel=1e-5)
        assert row["text/standard_error"] == pytest.approx(
            expected[m]["eval/text/standard_error"], rel=1e-4
        )
