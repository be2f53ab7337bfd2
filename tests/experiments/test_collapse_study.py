"""The collapse study: its settings, its trained models against NumPy, what its report counts."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import collapse_chapter  # noqa: E402
import collapse_points  # noqa: E402
import collapse_rounds  # noqa: E402
import collapse_theory  # noqa: E402
import collapse_training  # noqa: E402
import collapse_width  # noqa: E402
import regression_fit  # noqa: E402

from lmnoise.errors import UserError  # noqa: E402
from lmnoise.models.regression import LinearRegression, RandomProjection  # noqa: E402
from lmnoise.report import Estimate  # noqa: E402
from lmnoise.training.optimizer import OptimizerConfig  # noqa: E402

RIDGE = collapse_points.setting(
    dimension=8,
    decay=0.5,
    prior_decay=1.0,
    quality=0.7,
    noise=0.2,
    penalty=0.05,
    n_real=20,
    n_synthetic=10,
    repetitions=5,
    seed=3,
)


def data(repetitions=3, n=20, d=6):
    rng = np.random.default_rng(0)
    weight_N = np.where(np.arange(n) < n // 2, 0.5, 1.5)
    return {
        "x": rng.normal(size=(repetitions, n, d)).astype(np.float32),
        "y": rng.normal(size=(repetitions, n)).astype(np.float32),
        "weights": np.broadcast_to(weight_N, (repetitions, n)).astype(np.float32),
    }


def ridge(z_NM, y_N, weight_N, penalty):
    gram = z_NM.T * weight_N @ z_NM / len(y_N)
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), z_NM.T @ (weight_N * y_N) / len(y_N))


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
@pytest.mark.parametrize("width", [0, 4])
def test_every_repetition_is_trained_to_the_minimum_of_its_own_data(algorithm, width):
    given, penalty, seed_R = data(), 0.1, jnp.arange(3, dtype=jnp.int32)
    model = RandomProjection(6, width, penalty) if width else LinearRegression(6, penalty)
    table = RandomProjection.FROZEN if width else ((r".*", 1.0),)
    rate = {"sgd": 0.1, "adamw": 0.05}[algorithm]
    params, losses_RT = regression_fit.train(
        model,
        OptimizerConfig(
            steps=600,
            algorithm=algorithm,
            schedule="cosine",
            final_fraction=0.0,
            clip_norm=float("inf"),
            learning_rate_table=table,
        ),
        given,
        seed_R=seed_R,
        learning_rate_R=jnp.full(3, rate),
    )
    start = regression_fit.start(model, seed_R)
    assert losses_RT.shape == (3, 600)
    for r in range(3):
        x_ND, y_N, weight_N = (np.asarray(given[k][r], np.float64) for k in ("x", "y", "weights"))
        z_NM = x_ND @ np.asarray(start["projection"][r]).T if width else x_ND
        best_M = ridge(z_NM, y_N, weight_N, penalty)
        np.testing.assert_allclose(
            params["head" if width else "weights"][r], best_M, atol=2e-4, rtol=2e-4
        )
        np.testing.assert_allclose(losses_RT[r, 0], np.mean(weight_N * y_N**2), rtol=1e-5)
    if width:
        np.testing.assert_array_equal(params["projection"], start["projection"])
        assert len(np.unique(start["projection"][:, 0, 0])) == 3


def test_both_optimisers_see_the_same_data_and_reach_its_exact_fit(tmp_path):
    settings = [RIDGE, RIDGE | dict(width=12), RIDGE | dict(weight=0.1)]
    points = collapse_training.trained(tmp_path, settings, 3000, 1e-2, "fits")
    assert [p.method for p in points] == ["SGD", "Adam"] * 3
    for sgd, adam in zip(points[::2], points[1::2], strict=True):
        assert sgd.total.mean == pytest.approx(adam.total.mean, rel=1e-3)
        for point in (sgd, adam):
            assert abs(point.excess.mean) < 1e-3 * point.total.mean
            assert point.theory == collapse_points.predicted(point.setting)


@pytest.mark.parametrize("weight", [None, 0.2])
def test_data_that_are_drawn_follow_the_law_of_the_setting(weight):
    of = RIDGE | dict(repetitions=4000, weight=weight)
    with jax.enable_x64(True):
        x_RND, y_RN, truth_RD, weight_N = map(np.asarray, collapse_training._draw(of))
    eigenvalues_D, prior_D, shift_D = collapse_points.law(of)
    assert (eigenvalues_D * prior_D).sum() == pytest.approx(1)
    assert (eigenvalues_D * shift_D).sum() == pytest.approx(of["quality"])
    np.testing.assert_allclose(x_RND.var((0, 1)), eigenvalues_D, rtol=4 * np.sqrt(2 / 120_000))
    np.testing.assert_allclose(truth_RD.var(0), prior_D, rtol=4 * np.sqrt(2 / 4000))
    residual_RN = y_RN - np.einsum("rnd,rd->rn", x_RND, truth_RD)
    real, synthetic = residual_RN[:, :20], residual_RN[:, 20:]
    # Labels of one repetition share their shift: repetitions are the independent values.
    for part, expected in ((real, 0.04), (synthetic, 0.04 + 0.7)):
        values_R = (part**2).mean(1)
        error = values_R.std() / np.sqrt(len(values_R))
        assert abs(values_R.mean() - expected) < 4 * error
    assert weight_N.mean() == pytest.approx(1)
    share = weight_N[20:].sum() / weight_N.sum()
    assert share == pytest.approx(1 / 3 if weight is None else weight)


def test_settings_that_differ_in_anything_are_independent_and_shares_are_whole_numbers():
    keys = [
        jax.random.key_data(collapse_points.key_of(RIDGE | change)).tolist()
        for change in ({}, {"seed": 4}, {"penalty": 0.06}, {"repetitions": 6})
    ]
    assert len({tuple(key) for key in keys}) == 4
    assert collapse_points.split(1000, 0.001) == (999, 1)
    assert collapse_points.split(50, 0.5) == (25, 25)


def point(z, theory=2.0):
    errors = dict.fromkeys(collapse_points.PARTS, theory)
    measured = dict.fromkeys(collapse_points.PARTS, Estimate(theory + z * 0.1, 0.1, 9))
    return collapse_points.Point(setting=RIDGE, theory=errors, measured=measured)


def test_disagreement_is_counted_and_named():
    found = [point(z) for z in (0.5, -1.9, 2.1, -3.9, 5.0)]
    chapter = collapse_chapter.Chapter(
        "one", "One", None, "", found, collapse_chapter.table(found), parts=("total", "bias")
    )
    table = collapse_chapter.agreement([chapter])
    error, bias = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert error["points"] == 5
    assert error["within 2 SE"] == "2 (40%)"
    assert error["within 4 SE"] == "4 (80%)"
    assert error["largest distance (SE)"] == "5.00"
    assert error["difference there"] == "+25.00%"
    assert bias["of what"] == "bias"


def test_rounds_of_one_simulation_are_taken_as_fully_correlated():
    settings = [RIDGE | dict(round=t) for t in (1, 2, 3)] + [RIDGE | dict(seed=9, round=1)]
    found = [dataclasses.replace(point(1.0), setting=s | dict(process="p")) for s in settings]
    chapter = collapse_chapter.Chapter("one", "One", None, "", found, collapse_chapter.table(found))
    [row] = collapse_chapter.agreement([chapter]).rows
    assert row[-1] == f"+1.00 ± {np.sqrt(3**2 + 1) / 4:.2f}"


def test_what_the_line_of_the_same_real_data_needs_is_computed():
    config = laptop()
    last = [dataclasses.replace(point(0.6), setting=RIDGE | dict(n_real=n)) for n in (750, 300)]
    note = collapse_rounds._same_data_note(config, last)
    assert "At round 10 t² d/n is 2, and d/n1 is up to 0.1: not both are small" in note
    assert "low in late rounds" in note
    assert "+3.0% ± 5.0% at p2 = 0.5" in note
    config.rounds.update(dict(rounds=2, dimension=3))
    assert "up to 0.01: both are small." in collapse_rounds._same_data_note(config, last)


def test_where_the_collapse_part_is_largest_is_computed():
    config = laptop()
    assert "is largest near the threshold m = n = 500" in collapse_width._descent_notes(config)[0]
    config.widths.widths = (50, 100)
    assert "is NOT always largest" in collapse_width._descent_notes(config)[0]
    config.widths.qualities = (0.0,)
    assert collapse_width._descent_notes(config) == []


def laptop():
    sys.path.insert(0, str(ROOT))
    from configs.collapse_theory import get_config

    return get_config("laptop")


def test_the_table_of_a_figure_has_settings_theory_and_measurement():
    table = collapse_chapter.table([point(1.0)])
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert (row["n_real"], row["n_synthetic"], row["weight"]) == (20, 10, "")
    assert (row["theory total"], row["measured total"]) == (2.0, Estimate(2.1, 0.1, 9))
    assert row["z"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repetitions": 1}, "config.repetitions: 1 must be at least 2"),
        ({"fit": {"steps": 0}}, "config.fit.steps: 0 must be"),
        ({"widths": {"penalty": -1.0}}, "config.widths.penalty: -1.0 must be"),
        ({"weights": {"weights": (0.5, 1.0)}}, "config.weights.weights: 1.0 must be"),
        ({"scaling": {"shares": tuple(np.linspace(0, 0.2, 8))}}, "config.scaling.shares has 8"),
        ({"widths": {"widths": ()}}, "config.widths.widths has 0"),
        ({"fit": {"share": 0.3}}, "config.fit.share 0.3 must be one of"),
        ({"scaling": {"shares": (1.0,)}}, "config.scaling.shares: 1.0"),
        ({"weights": {"shares": (0.0,)}}, "config.weights.shares: 0.0 of 600 samples"),
        ({"rounds": {"n": 30}}, "config.rounds.n 30 must be above"),
    ],
)
def test_a_study_that_cannot_be_drawn_is_refused_before_it_runs(tmp_path, change, words):
    config = laptop()
    config.update(change)
    with pytest.raises(UserError, match=words):
        collapse_theory.run(config, tmp_path, tmp_path / "report", "")
    assert not any(tmp_path.iterdir())
