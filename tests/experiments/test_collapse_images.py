"""The study of collapse on images: mixtures, exact fits, trained networks, theory."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT)]

import collapse_images  # noqa: E402
import collapse_images_data as data  # noqa: E402
import collapse_images_features as exact  # noqa: E402
import collapse_images_networks as networks  # noqa: E402
import collapse_images_theory as theory  # noqa: E402
import regression_fit  # noqa: E402

from configs.collapse_images import SMALL, get_config  # noqa: E402
from lmnoise.errors import UserError  # noqa: E402
from lmnoise.models.regression import TwoLayerRelu  # noqa: E402
from lmnoise.training.optimizer import OptimizerConfig  # noqa: E402

CLASSES = 10
pytestmark = pytest.mark.usefixtures("compiled_once")


def toy(n):
    """Images of one pixel with random labels."""
    label_N = np.random.default_rng(0).integers(0, CLASSES, n, np.int32)
    x_N1 = np.arange(n, dtype=np.float32)[:, None]
    return data.Pictures("toy", CLASSES, x_N1, x_N1[:5], label_N, label_N[:5])


def test_images_are_split_anew_centred_and_scaled():
    own = data.pictures("digits", "data", 2)
    assert own.train_NP.shape == (1200, 16)
    assert own.test_NP.shape == (597, 16)
    np.testing.assert_allclose(own.train_NP.mean(0), 0, atol=1e-5)
    assert np.square(own.train_NP).sum(1).mean() == pytest.approx(16, rel=1e-5)
    # scikit-learn's first 1,200 images are not the training set.
    assert (own.train_N[:10] != np.arange(10)).any()
    assert np.bincount(np.concatenate([own.train_N, own.test_N])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"config.pool 3 does not divide"):
        data.pictures("digits", "data", 3)


def test_mixtures_have_exact_shares_nested_over_shares_and_sets_nested_over_sizes():
    pool = data.Pool(toy(500), seed=3, reserved=50)
    assert set(pool.rows(100)) < set(pool.rows(300))
    assert not set(pool.rows(450)) & set(pool.teacher_rows)
    with pytest.raises(UserError, match="has 450 images for training, not 451"):
        pool.rows(451)
    before_N = np.zeros(300, bool)
    for share in (0.0, 0.01, 0.05, 0.5, 1.0):
        chosen_N = pool.synthetic(300, share)
        assert chosen_N.sum() == round(share * 300)
        assert (before_N <= chosen_N).all()
        before_N = chosen_N
        mixed_NO = pool.mixture(np.full((300, CLASSES), 7, np.float32), share)
        np.testing.assert_array_equal((mixed_NO == 7).all(1), chosen_N)
        real_N = toy(500).train_N[pool.rows(300)]
        np.testing.assert_array_equal(mixed_NO.argmax(1)[~chosen_N], real_N[~chosen_N])
    assert (data.Pool(toy(500), 4, 50).synthetic(300, 0.5) != pool.synthetic(300, 0.5)).any()


def test_flips_move_the_mean_label_by_the_quality_that_was_set():
    quality, n = 0.2, 40_000
    wrong = data.wrong_share(quality, CLASSES)
    pool = data.Pool(toy(n), seed=1, reserved=0)
    real_N, flipped_NO = pool.pictures.train_N[pool.rows(n)], pool.flipped(n, wrong)
    assert (flipped_NO.argmax(1) != real_N).mean() == pytest.approx(wrong, abs=1e-4)
    shifts = []
    for label in range(CLASSES):
        mean_O = flipped_NO[real_N == label].mean(0)
        shifts.append(np.square(mean_O - data.targets(np.array([label]), CLASSES)[0]).sum())
    # A mean over 4,000 labels has a variance of less than 1 / 4,000.
    assert np.mean(shifts) == pytest.approx(quality, abs=0.01)


def test_exact_fits_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    z_NK, y_NY = rng.normal(size=(30, 8)), rng.normal(size=(30, 3))

    def expected(n, width, penalty):
        rows = np.concatenate([z_NK[:n, :width], np.sqrt(n * penalty) * np.eye(width)])
        labels = np.concatenate([y_NY[:n], np.zeros((width, 3))])
        return np.linalg.lstsq(rows, labels)[0]

    found = exact.nested_fits(z_NK, {n: y_NY[:n] for n in (5, 12, 30)}, 0.1)
    for n, weights_KY in found.items():
        np.testing.assert_allclose(weights_KY, expected(n, 8, 0.1), atol=1e-10)
    for n in (5, 30):
        fitted_KY = exact.ridge(z_NK[:n], y_NY[:n], 1e-3)
        np.testing.assert_allclose(fitted_KY, expected(n, 8, 1e-3), atol=1e-9)


def test_a_network_with_a_frozen_first_layer_is_trained_to_the_exact_fit():
    rng, penalty = np.random.default_rng(0), 0.05
    x_NP, y_NO = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(40, 2))
    model, seed_R = TwoLayerRelu(5, 6, 2, penalty), jnp.array([7], jnp.int32)
    optimizer = OptimizerConfig(
        steps=2000, algorithm="sgd", momentum=0.9, final_fraction=0.0, clip_norm=float("inf"),
        learning_rate_table=TwoLayerRelu.FROZEN,
    )  # fmt: skip
    given = {"x": x_NP[None], "y": y_NO[None].astype(np.float32), "weights": np.ones((1, 40))}
    given = {name: jnp.asarray(array, jnp.float32) for name, array in given.items()}
    start = regression_fit.start(model, seed_R)
    params, _ = regression_fit.train(
        model, optimizer, given, seed_R=seed_R, learning_rate_R=jnp.array([0.2])
    )
    np.testing.assert_array_equal(params["hidden"], start["hidden"])
    z_NK = exact.features(params["hidden"][0], x_NP)
    assert z_NK.min() == 0
    np.testing.assert_allclose(
        params["head"][0].T, exact.nested_fits(z_NK, {40: y_NO}, penalty)[40], atol=1e-4
    )


def test_networks_are_paired_and_room_for_more_images_changes_nothing():
    rng = np.random.default_rng(0)
    x_SNP = rng.normal(size=(2, 20, 4)).astype(np.float32)
    first_NO, second_NO = rng.normal(size=(2, 20, 3)).astype(np.float32)
    own = ConfigDict(dict(batch_size=8, learning_rate=5e-2))

    def trained(labels, streams, room):
        plan = networks.Plan(4, 6, 3, 100, room)
        return networks.train(plan, own, x_SNP, np.stack(labels), (5, 9), streams)

    params, loss_M = trained([first_NO, second_NO, first_NO, first_NO], [0, 0, 0, 1], 20)
    again, _ = trained([first_NO, second_NO, first_NO, first_NO], [0, 0, 0, 1], 50)
    for name, leaves in params.items():
        np.testing.assert_array_equal(leaves[0], leaves[2])
        assert (leaves[0] != leaves[1]).any()
        assert (leaves[0] != leaves[3]).any()
        np.testing.assert_array_equal(leaves, again[name])
    assert loss_M.shape == (4,)
    before_M = [np.square(labels).sum(1).mean() for labels in (first_NO, second_NO, first_NO)]
    assert (loss_M[:3] < 0.8 * np.array(before_M)).all()


def gaussian_law(d=40, outputs=2, correlation=-0.6):
    rng = np.random.default_rng(5)
    s_D = np.arange(1, d + 1) ** -1.2
    real_DO = rng.normal(size=(d, outputs)) * np.sqrt(s_D)[:, None]
    shift_DO = correlation * real_DO + 0.2 * rng.normal(size=(d, outputs)) * np.sqrt(s_D)[:, None]
    law = theory.Law(
        s_D, (real_DO**2).sum(1), (shift_DO**2).sum(1), (real_DO * shift_DO).sum(1), 0.3, 0.8
    )
    return law, real_DO, shift_DO


@pytest.mark.parametrize(("n", "m"), [(60, 25), (25, 60)])
def test_theory_with_its_cross_term_is_the_error_of_gaussian_inputs(n, m):
    """Random projections of Gaussian eigenfunctions, with a shift that opposes the real law."""
    law, real_DO, shift_DO = gaussian_law()
    d, share, penalty, rng = len(real_DO), 0.5, 0.02, np.random.default_rng(1)
    errors = []
    for _ in range(250):
        psi_ND = rng.normal(size=(n, d))
        z_NM = psi_ND * np.sqrt(law.eigenvalues_D) @ (s_DM := rng.normal(size=(d, m)) / np.sqrt(m))
        synthetic_N1 = (np.arange(n) < share * n)[:, None]
        noise_N1 = np.sqrt(np.where(synthetic_N1, law.synthetic_residual, law.residual) / 2)
        y_NO = psi_ND @ real_DO + synthetic_N1 * (psi_ND @ shift_DO)
        y_NO = y_NO + noise_N1 * rng.normal(size=y_NO.shape)
        weights_MO = exact.ridge(z_NM, y_NO, penalty)
        fitted_DO = np.sqrt(law.eigenvalues_D)[:, None] * (s_DM @ weights_MO)
        errors.append(np.square(fitted_DO - real_DO).sum() + law.residual)
    mean, error = np.mean(errors), np.std(errors) / np.sqrt(len(errors))
    # The theorem is a limit of many dimensions: 40 leave a difference of a per cent.
    assert abs(float(law.error(n, share, m, penalty)) - mean) < 4 * error + 0.01 * mean
    assert abs(float(law.error(n, share, m, penalty, cross=False)) - mean) > 4 * error


def test_laws_of_labels_on_the_eigenfunctions_of_random_features():
    rng = np.random.default_rng(0)
    x_NP = rng.normal(size=(3000, 6)).astype(np.float32)
    own = theory.basis(x_NP, 30, seed=2)
    np.testing.assert_allclose(own.psi_ND.T @ own.psi_ND / 3000, np.eye(30), atol=1e-2)
    # Half of the draws of variance 2 / 6 pass the relu: the mean squared length is 1.
    assert own.eigenvalues_D.sum() == pytest.approx(1, rel=0.3)

    made_NO = own.psi_ND[:, :2] * [2.0, 0.5]
    labels_NO = made_NO + rng.normal(size=(3000, 2))
    moved_NO = 0.4 * labels_NO
    law = theory.law_of_network(own, labels_NO, moved_NO)
    assert law.real_D[:2] == pytest.approx([4, 0.25], rel=0.15)
    assert law.residual == pytest.approx(2, rel=0.1)
    np.testing.assert_allclose(law.shift_D, 0.36 * law.real_D, atol=1e-3)
    assert law.cross_D[:2] == pytest.approx(-0.6 * law.real_D[:2], rel=1e-2)
    assert law.synthetic_residual == pytest.approx(0.16 * law.residual, rel=1e-3)
    mean = theory.mean_law([law, theory.law_of_network(own, labels_NO, labels_NO)])
    np.testing.assert_allclose(mean.shift_D, law.shift_D / 2, atol=1e-6)


def test_the_law_of_flips_is_that_of_labels_that_were_flipped():
    own = data.pictures("digits", "data", 1)
    spectrum = theory.basis(own.train_NP, 40, seed=0)
    pool = data.Pool(own, seed=0, reserved=0)
    real_NO = data.targets(own.train_N[pool.rows(1200)], CLASSES)
    spectrum = theory.Basis(spectrum.eigenvalues_D, spectrum.psi_ND[pool.rows(1200)])
    wrong = data.wrong_share(0.3, CLASSES)
    law = theory.law_of_flips(spectrum, real_NO, wrong)
    flipped_NO = pool.flipped(1200, wrong)
    drawn = theory.law_of_network(spectrum, real_NO, flipped_NO)
    assert law.quality == pytest.approx(0.3 - (wrong / 0.9) ** 2 * law.residual, rel=1e-2)
    # One draw of flips: coefficients of 1,200 labels.
    assert law.cross_D.sum() == pytest.approx(drawn.cross_D.sum(), rel=0.1)
    assert law.synthetic_residual == pytest.approx(drawn.synthetic_residual, rel=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": (0,)}, "config.seeds has no two seeds"),
        ({"networks": {"seeds": (0, 7)}}, "config.networks.seeds: 7 is not"),
        ({"features": {"samples": {"counts": (60, 50, 80)}}}, "config.features.samples: "),
        ({"networks": {"widths": {"shares": (0.1, 1.0)}}}, "config.networks.widths.shares"),
        ({"features": {"widths": {"shares": tuple(np.linspace(0, 0.9, 6))}}}, "have 8 different"),
        ({"features": {"widths": {"penalty": 0.0}}}, "config.features.widths.penalty: 0.0"),
        ({"quality": 0.95}, "config.quality: 0.95 must be 0 to 0.9"),
        ({"networks": {"samples": {"counts": (60, 120, 1150)}}}, "digits has 1200 training"),
    ],
)
def test_a_study_that_cannot_be_drawn_is_refused_before_it_runs(tmp_path, change, words):
    config = get_config("laptop")
    config.update(SMALL)
    config.update(change)
    with pytest.raises(UserError, match=words):
        collapse_images.run(config, tmp_path, tmp_path / "report", "")
    assert not any(tmp_path.iterdir())


def test_features_of_one_seed_are_the_same_for_every_training_set():
    model = TwoLayerRelu(5, 6, 2)
    first, again, other = (exact.first_layer(model, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
