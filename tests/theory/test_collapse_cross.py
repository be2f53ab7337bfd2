"""The collapse theorems where synthetic data's shift and the real law are not independent."""

import functools

import numpy as np
import pytest

from lmnoise.theory import collapse

SIZE = 60
EIGENVALUES = np.arange(1.0, SIZE + 1) ** -1.2
PRIOR = np.random.default_rng(0).gamma(1.0, size=SIZE)
SHIFT = 0.5 * np.random.default_rng(1).gamma(1.0, size=SIZE)
# A shift against the real law in most directions, and along it in some.
CROSS = np.where(np.arange(SIZE) % 4, -0.8, 0.5) * np.sqrt(PRIOR * SHIFT)
NOISE = dict(noise_real=0.3, noise_synthetic=0.5)


def error_of(width, **arguments):
    if width is None:
        return collapse.ridge(EIGENVALUES, PRIOR, **arguments)
    return collapse.random_projection(EIGENVALUES, PRIOR, width=width, **arguments)


def simulated(counts, width, penalty, weights, repetitions=60):
    """`2 E (A w1 - w1)^T Sigma A2 (w2 - w1)` of fits by NumPy, and its standard error.

    Of every data set the fit is taken as the matrix that it is, so that the laws need no draws.
    """
    rng, n, terms = np.random.default_rng(5), sum(counts), []
    synthetic_N = np.arange(n) >= counts[0]
    weight_N = np.where(synthetic_N, *weights[::-1])
    for _ in range(repetitions):
        x_ND = rng.normal(size=(n, SIZE)) * np.sqrt(EIGENVALUES)
        basis_DM = np.eye(SIZE)
        if width is not None:
            basis_DM = rng.normal(size=(SIZE, width)) / np.sqrt(SIZE)
        z_NM = x_ND @ basis_DM
        gram_MM = z_NM.T @ (weight_N[:, None] / n * z_NM) + penalty * np.eye(z_NM.shape[1])
        fit_DN = basis_DM @ np.linalg.solve(gram_MM, z_NM.T * weight_N / n)
        missed_DD = fit_DN @ x_ND - np.eye(SIZE)
        moved_DD = fit_DN @ (synthetic_N[:, None] * x_ND)
        terms.append(2 * (EIGENVALUES @ (missed_DD * moved_DD) @ CROSS))
    return np.mean(terms), np.std(terms, ddof=1) / np.sqrt(repetitions)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.4, 3.0)])
@pytest.mark.parametrize(("counts", "width"), [((25, 15), None), ((60, 30), None), ((60, 40), 45)])
def test_simulation_of_a_correlated_shift(counts, width, weights):
    plain, found = (
        error_of(
            width, shift=SHIFT, n_real=counts[0], n_synthetic=counts[1], penalty=0.02,
            weight_real=weights[0], weight_synthetic=weights[1], cross=cross, **NOISE,
        )
        for cross in (None, CROSS)
    )  # fmt: skip
    mean, error = simulated(counts, width, 0.02, weights)
    assert abs(mean) > 10 * error
    # A limit of many dimensions: 60 leave a difference of per cents.
    assert float(found.total - plain.total) == pytest.approx(mean, abs=4 * error + 0.02 * abs(mean))


@pytest.mark.parametrize("width", [None, 35, 150])
@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.3])
def test_labels_without_the_law_teach_nothing_of_it(width, penalty):
    """Synthetic data alone whose shift undoes the real law: what is left is all of it."""
    found = error_of(
        width, shift=PRIOR, cross=-PRIOR, n_real=0, n_synthetic=50, penalty=penalty, **NOISE
    )
    np.testing.assert_allclose(found.bias + found.collapse, EIGENVALUES @ PRIOR, rtol=1e-10)


@pytest.mark.parametrize("width", [None, 35])
def test_the_errors_on_both_laws_differ_by_the_mean_fit(width):
    """`|f - w1|^2 - |f - w2|^2` is linear in the fit, whose mean the effective ridge gives."""
    counts, noise = (20, 50), (0.3, 0.5)
    solve = functools.partial(collapse.ridge, penalty=0.05)
    if width is not None:
        solve = functools.partial(collapse.random_projection, penalty=0.05, width=width)

    def error(prior, cross, counts, noise):
        return solve(
            EIGENVALUES, prior, SHIFT, cross=cross, n_real=counts[0], n_synthetic=counts[1],
            noise_real=noise[0], noise_synthetic=noise[1],
        )  # fmt: skip

    on_first = error(PRIOR, CROSS, counts, noise)
    on_second = error(PRIOR + SHIFT + 2 * CROSS, -CROSS - SHIFT, counts[::-1], noise[::-1])
    learnt_D = EIGENVALUES**2 / (EIGENVALUES + on_first.effective_ridge)
    expected = 2 * learnt_D @ (CROSS + 5 / 7 * SHIFT) - EIGENVALUES @ (2 * CROSS + SHIFT)
    assert float(on_first.total - on_second.total) == pytest.approx(expected, rel=1e-10)


def test_limits_of_the_cross_term():
    def both(width, **changes):
        arguments = dict(n_real=300, n_synthetic=300, shift=SHIFT, penalty=1e-3) | changes
        return [error_of(width, cross=cross, **arguments, **NOISE) for cross in (None, CROSS)]

    plain, found = both(None)
    assert found.total != plain.total
    assert found.total == pytest.approx(found.bias + found.variance + found.collapse)
    # Real data alone; a fit that falls short of nothing, and one that falls short of all.
    same = (None, dict(n_synthetic=0)), (None, dict(penalty=0.0)), (None, dict(penalty=1e12))
    for width, changes in (*same, (150, dict(penalty=0.0))):
        plain, found = both(width, **changes)
        assert found.total == pytest.approx(plain.total, rel=1e-9)
    # At the interpolation threshold the error is infinite, not unknown.
    assert both(30, n_real=15, n_synthetic=15, penalty=0.0)[1].total == np.inf


@pytest.mark.parametrize(
    ("cross", "words"),
    [
        (np.ones(3), r"one length: .*cross \(3,\)"),
        (np.full(SIZE, np.nan), "cross must be an array of numbers and finite, got nan"),
    ],
)
def test_a_wrong_cross_is_named(cross, words):
    with pytest.raises(ValueError, match=words):
        error_of(None, shift=SHIFT, cross=cross, n_real=5, n_synthetic=5, penalty=0.1, **NOISE)
