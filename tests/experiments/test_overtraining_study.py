"""The over-training study: its training against NumPy, its expectation, what its report counts."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import overtraining_chapter as chapters  # noqa: E402
import overtraining_pretraining as pretraining  # noqa: E402
import overtraining_second_task as second  # noqa: E402
import overtraining_theory as study  # noqa: E402
import overtraining_training as training  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from lmnoise.errors import UserError  # noqa: E402
from lmnoise.report import Estimate, Table  # noqa: E402
from lmnoise.theory import overtraining  # noqa: E402

TASK = training.task(dimension=3, largest=2.0, decay=1.0, start=0.01, seed=5)


def descended(target, left, right, rate, steps, decay, origin):
    """Gradient descent by hand."""
    for _ in range(steps):
        error = left @ right - target
        step = error @ right.T + decay * (left - origin[0])
        right = right - rate * (left.T @ error + decay * (right - origin[1]))
        left = left - rate * step
    return left, right


@pytest.mark.parametrize("decay_to", ["zero", "start"])
def test_checkpoints_are_those_of_gradient_descent(decay_to):
    rng = np.random.default_rng(0)
    target, left, right = rng.normal(size=(3, 3)), *rng.normal(size=(2, 2, 3, 3))
    found = training.train(
        target,
        left,
        right,
        rate=2.0**-5,
        times=[0.25, 0.5, 1.25],
        weight_decay_R=[0.0, 0.7],
        decay_to=decay_to,
    )
    assert found[0].shape == found[1].shape == (2, 3, 3, 3)
    assert found[0].dtype == np.float64
    for r, decay in enumerate((0.0, 0.7)):
        origin = (left[r], right[r]) if decay_to == "start" else (0.0, 0.0)
        for t, steps in enumerate((8, 16, 40)):
            expected = descended(target, left[r], right[r], 2.0**-5, steps, decay, origin)
            np.testing.assert_allclose(found[0][r, t], expected[0], rtol=1e-10)
            np.testing.assert_allclose(found[1][r, t], expected[1], rtol=1e-10)


def test_bases_are_orthogonal_and_the_targets_singular_values_those_of_the_task():
    for basis in training.bases(TASK):
        np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-14)
    target = training.target(TASK, training.spectrum(TASK))
    np.testing.assert_allclose(np.linalg.svd(target)[1], [2, 1, 2 / 3])
    other = training.target(TASK | {"seed": 6}, training.spectrum(TASK))
    assert np.abs(target - other).max() > 0.1


def test_expected_perturbed_loss_of_any_factors():
    """The largest distance allowed is 4 standard errors, of about 0.5 % each."""
    left, right = np.random.default_rng(1).normal(size=(2, 3, 3))
    network = training.Network(TASK, left, right)
    target = training.target(TASK, training.spectrum(TASK))
    found = overtraining.simulate_perturbed(jax.random.key(0), left, right, target, 0.4, 4096)
    expected = chapters.expected_loss(network, 0.4)
    assert abs(found.mean - expected) < 4 * found.standard_error
    assert found.standard_error < 0.02 * expected


def test_agreement_counts_distances_from_the_line_and_from_the_weights():
    points = [
        chapters.Point({"time": 1.0, "scale": 0.1}, 1.0, own, 0.5, Estimate(mean, 0.1, 9))
        for mean, own in ((1.05, 1.0), (0.75, 0.8), (1.5, 1.45))
    ]
    chapter = chapters.Chapter("name", "", Figure(), "", Table(("a",), [[1]]), points)
    line, weights = chapters.agreement([chapter]).rows
    assert line[2:6] == [3, "1 (33%)", "2 (67%)", "5.00"]
    assert weights[2:6] == [3, "3 (100%)", "3 (100%)", "0.50"]
    assert points[1].shifted(0.25) == Estimate(0.5, 0.1, 9)


def claimed(texts):
    claims = [chapters.Claim(text, holds) for text, holds in texts.items()]
    return chapters.Chapter("name", "", Figure(), "", Table(("a",), [[1]]), claims=claims)


def test_the_papers_claims_are_sorted_by_what_the_numbers_show():
    text = study._paper([claimed({"one": True, "two": False}), claimed({"three": True})])
    assert text.index("Reproduced") < text.index("- one;") < text.index("- three.")
    assert text.index("- three.") < text.index("NOT seen with these settings") < text.index("- two")
    assert "NOT seen" not in study._paper([claimed({"one": True})])


def test_claims_on_pre_training_follow_from_the_points():
    def points(means, expected, scale=0.1):
        return [
            chapters.Point({"time": t, "scale": scale}, 1.0, own, 0.5, Estimate(mean, 0.1, 9))
            for t, (mean, own) in enumerate(zip(means, expected, strict=True))
        ]

    def claims(plain, *args):
        return [c.holds for c in pretraining._claims(plain, {0.1: points(*args)})]

    assert claims([3, 2, 1], (3, 1, 2), (1, 2, 3)) == [True, True, True]
    assert claims([3, 1, 2], (3, 1, 1.2), (1, 3, 2)) == [False, False, False]
    assert claims([3, 2, 1], (1, 2, 3), (1, 2, 3)) == [True, True, False]


def test_claims_on_fine_tuning_follow_from_what_was_trained():
    of, small = config(), {"lengths": (0.25, 0.5)}
    of.second.update(small)
    setting = training.task(**of.task, seed=0) | {"time": 25.0}
    rising, falling = np.array([3.0, 1.0, 2.0]), np.array([3.0, 2.0, 1.0])
    trained = {second.QUANTITIES[0]: np.stack([rising, falling], 1)}
    first, other, *_ = second._length_claims(of, setting, second.Tuned({}, trained))
    assert first.holds
    assert not other.holds
    assert "100.0%" in first.text
    gains = {"gain": np.array([[1.0, 5.0], [1.0, 4.0], [1.0, 4.5], [1.0, 2.0], [1.0, 1.0]])}
    assert not second._decay_claims(of, setting, second.Tuned({}, gains))[-1].holds


def test_turning_point_of_fine_tuning_and_its_rise_without_decay():
    of = config()
    setting = training.task(**of.task, seed=0)
    turn, rise = second._lowest(of, setting, 1.0, 0.0)
    sigma, goal = training.spectrum(setting), second.second_spectrum(of, setting)

    def loss(modes):
        tuned = overtraining.fine_tuning(sigma, goal, modes, 1.0, 0.0)
        return float(overtraining.loss(sigma, tuned.modes))

    at = [loss(overtraining.modes(sigma, turn * by, 1e-6)) for by in (0.98, 1.0, 1.02)]
    assert at[1] < min(at[0], at[2])
    assert rise == pytest.approx(loss(overtraining.modes(sigma, 1e4, 1e-6)) / at[1] - 1, rel=1e-6)


def config():
    spec = {}
    exec((ROOT / "configs" / "overtraining_theory.py").read_text(), spec)
    return spec["get_config"]("demo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draws": 1}, "config.draws is 1"),
        ({"pretraining": {"scales": (0.1, 0.1)}}, "config.pretraining.scales"),
        ({"cure": {"scales": (0.0,)}}, "config.cure.scales"),
        ({"pretraining": {"last": 0.5}}, "config.pretraining.first 0.6"),
        ({"pretraining": {"coarser": (0.0007,)}}, "config.pretraining.coarser"),
        ({"pretraining": {"coarser": (0.25,)}}, "config.pretraining.coarser 0.25 must lie"),
        ({"cure": {"rate": 0.5}}, "config.cure.rate 0.5 must lie"),
        ({"second": {"lengths": (0.5, 0.25)}}, "config.second.lengths must rise"),
        ({"second": {"lengths": (0.3, 0.5)}}, "config.second.lengths must rise"),
        ({"task": {"start": 1.0}}, "config.task.start 1.0 must lie"),
        ({"pretraining": {"rate": 0.0}}, "config.pretraining.rate 0.0 must lie"),
        ({"cure": {"rate": 0.0}}, "config.cure.rate 0.0 must lie"),
        ({"cure": {"scales": (6.0,)}}, "config.cure.rate 0.0078125 must lie"),
        ({"second": {"shared": -3}}, "config.second.shared is -3"),
        ({"second": {"shared": 16}}, "config.second.shared 16 must be below"),
        ({"second": {"factor": 0.0}}, "config.second.factor 0.0 must be above 0"),
        ({"second": {"decays": (0.0, -1.0)}}, "config.second.decays"),
        ({"second": {"decays": ()}}, "config.second.decays"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_before_training(change, words, tmp_path):
    wrong = ConfigDict(config().to_dict())
    wrong.update(change)
    with pytest.raises(UserError, match=words):
        study.run(wrong, tmp_path / "work", tmp_path / "report", "")
    assert not (tmp_path / "work").exists()
