"""The collapse theorems against simulation, SciPy's root finder and the paper's own equations."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from lmnoise import keys
from lmnoise.theory import collapse

SIZE = 200
NOISE = dict(noise_real=0.4, noise_synthetic=0.7)


def powers(exponent, size=SIZE):
    values = np.arange(1.0, size + 1) ** -exponent
    return values / values.mean()


def gamma(seed, size=SIZE):
    return np.random.default_rng(seed).gamma(1.0, size=size)


def rotated(seed, diagonal):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(diagonal),) * 2))[0]
    return (basis * diagonal) @ basis.T


# covariance, prior, shift: as diagonals, and as matrices that do not commute
LAWS = {
    "isotropic": (np.ones(SIZE), np.ones(SIZE) / SIZE, 0.5 * np.ones(SIZE) / SIZE),
    "power law": (powers(1.5), powers(0.5) / SIZE, powers(1.0) / SIZE),
    "random": (gamma(0), gamma(1) / SIZE, gamma(2) / SIZE),
    "dense": (
        rotated(3, powers(1.0)),
        rotated(4, gamma(5)) / SIZE,
        rotated(6, powers(0.7)) / SIZE,
    ),
}
# real and synthetic samples: fewer than dimensions, just more than dimensions, many more
COUNTS = ((80, 40), (190, 30), (350, 50))
# penalty, and weights of a real and of a synthetic sample
FITS = ((0.02, 1.0, 1.0), (1.0, 1.0, 1.0), (0.05, 0.4, 3.0))
WIDTHS = (None, 100, 230)


def theory_of(law, n_real, n_synthetic, width, penalty, weight_real, weight_synthetic):
    covariance, prior, shift = law
    if covariance.ndim == 2:
        covariance, prior, shift = collapse.diagonals(covariance, prior, shift)
    arguments = dict(
        n_real=n_real,
        n_synthetic=n_synthetic,
        penalty=penalty,
        weight_real=weight_real,
        weight_synthetic=weight_synthetic,
        **NOISE,
    )
    if width is None:
        return collapse.ridge(covariance, prior, shift, **arguments)
    return collapse.random_projection(covariance, prior, shift, width=width, **arguments)


def simulated(name, n_real, n_synthetic, width, penalty, weight_real, weight_synthetic):
    # A key of its own for every setting: a lucky draw passes one comparison, not all of them.
    setting = (name, n_real, n_synthetic, width, penalty, weight_real, weight_synthetic)
    return collapse.simulate(
        keys.fold(jax.random.key(7), repr(setting)),
        *LAWS[name],
        n_real=n_real,
        n_synthetic=n_synthetic,
        penalty=penalty,
        weight_real=weight_real,
        weight_synthetic=weight_synthetic,
        width=width,
        repetitions=60,
        **NOISE,
    )


def deviations(simulation, theory):
    return {
        name: (getattr(simulation.mean, name) - getattr(theory, name))
        / getattr(simulation.standard_error, name)
        for name in collapse.Parts._fields
    }


@pytest.mark.parametrize(
    ("name", "counts", "width"),
    [
        *itertools.product(("isotropic", "power law", "random"), COUNTS, WIDTHS),
        *itertools.product(("dense",), COUNTS[:2], WIDTHS[:2]),
    ],
    ids=lambda value: str(value),
)
def test_simulation_agrees_within_four_standard_errors(name, counts, width):
    """31 tests of 3 settings each, 93 in all, and of each the three parts and their total."""
    for fit in FITS:
        theory = theory_of(LAWS[name], *counts, width, *fit)
        z = deviations(simulated(name, *counts, width, *fit), theory)
        assert all(abs(value) < 4 for value in z.values()), (fit, z)


def paper_random_projection(eigenvalues, prior, shift, n_real, n_synthetic, penalty, width):
    """Theorem 2 as arXiv 2410.04840 states it: e, tau and the linear pair (u, w), in NumPy."""
    size, n = len(eigenvalues), n_real + n_synthetic
    shares = n_real / n, n_synthetic / n
    gamma, psi = width / size, width / n

    def df1(theta):
        return (eigenvalues / (eigenvalues + theta)).sum()

    def equation(log_theta):
        theta = np.exp(log_theta)
        left = theta * (1 - df1(theta) / width) * (1 - df1(theta) / n)
        return left - penalty * size / width

    # Below this ridge one of the factors is negative.
    smallest = min(n, width)
    low = -30.0
    if df1(np.exp(low)) > smallest:
        low = brentq(lambda t: df1(np.exp(t)) - smallest, -30, 20, xtol=1e-14) + 1e-12
    theta = np.exp(brentq(equation, low, 20, xtol=1e-14))
    tau = 1 - df1(theta) / width
    e = penalty / (gamma * tau * theta)
    k = gamma * tau * e * eigenvalues + penalty
    mean = lambda values: values.sum() / size  # noqa: E731
    assert 1 / e == pytest.approx(1 + psi * tau * mean(eigenvalues / k), rel=1e-8)
    assert 1 / tau == pytest.approx(1 + e * mean(eigenvalues / k), rel=1e-8)
    square, linear = mean((eigenvalues / k) ** 2), mean(eigenvalues / k**2)
    matrix = [
        [1 - psi * e**2 * gamma * tau**2 * square, -psi * e**2 * linear],
        [-(tau**2) * penalty**2 * linear, 1 - tau**2 * gamma * e**2 * square],
    ]
    right = [psi * e**2 * gamma * tau**2 * square, tau**2 * penalty**2 * linear]
    u, w = np.linalg.solve(matrix, right)
    w /= gamma * tau**2
    weight = eigenvalues / (eigenvalues + theta) ** 2
    noise = shares[0] * NOISE["noise_real"] ** 2 + shares[1] * NOISE["noise_synthetic"] ** 2
    shifted = (shift * weight * (eigenvalues**2 + u * theta**2 + w * eigenvalues)).sum()
    zeta = shares[1] ** 2 * shifted + shares[0] * shares[1] * u * (shift * eigenvalues).sum()
    bias = (prior * weight * ((1 + u) * theta**2 + w * eigenvalues)).sum()
    return bias, noise * u, zeta, bias + noise * u + zeta, theta


@pytest.mark.parametrize("width", [20, 119, 121, 200, 1000])
@pytest.mark.parametrize("penalty", [1e-5, 0.1, 10.0])
@pytest.mark.parametrize("name", ["isotropic", "power law", "random"])
def test_theorem_2_solves_the_equations_of_the_paper(name, penalty, width):
    written = paper_random_projection(*LAWS[name], 80, 40, penalty, width)
    ours = theory_of(LAWS[name], 80, 40, width, penalty, 1.0, 1.0)
    np.testing.assert_allclose(ours, written, rtol=1e-7)


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("name", list(LAWS)[:3])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0)])
def test_theorem_2_tends_to_theorem_1(name, penalty, weights):
    limit = theory_of(LAWS[name], 80, 40, None, penalty, *weights)
    gaps = []
    for width in (1e4, 1e5, 1e6):
        wide = theory_of(LAWS[name], 80, 40, width, penalty * width / SIZE, *weights)
        gaps.append(abs(wide.total / limit.total - 1))
    assert gaps[2] < 1e-3
    np.testing.assert_allclose(np.divide(gaps[:2], gaps[1:]), 10, rtol=0.1)


def scipy_ridge(eigenvalues, n, penalty):
    def equation(log_kappa):
        kappa = np.exp(log_kappa)
        return kappa - kappa * (eigenvalues / (eigenvalues + kappa)).sum() / n - penalty

    return np.exp(brentq(equation, -25, 25, xtol=1e-15, rtol=1e-15))


@given(
    st.integers(1, 60),
    st.floats(1.0, 100.0),
    st.floats(1e-6, 1e3),
    st.floats(0.0, 6.0),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_effective_ridge_is_the_root_that_brentq_finds(positive, n, penalty, exponent, seed):
    """Any decay of the spectrum, with zeros in it; the shape is fixed, so that it compiles once."""
    eigenvalues = np.zeros(60)
    spread = np.random.default_rng(seed).uniform(0.1, 10, positive)
    eigenvalues[:positive] = spread * np.arange(1.0, positive + 1) ** -exponent
    ours = collapse.ridge(
        eigenvalues,
        np.ones(60),
        np.ones(60),
        n_real=n,
        n_synthetic=0,
        noise_real=1,
        noise_synthetic=0,
        penalty=penalty,
    )
    assert ours.effective_ridge == pytest.approx(scipy_ridge(eigenvalues, n, penalty), rel=1e-9)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1e-3, 10.0), (5.0, 0.2)])
@pytest.mark.parametrize("wide", [False, True])
def test_effective_ridge_solves_its_equation_over_a_wide_grid(weights, wide):
    """The weighted equation written from its other end: the leverages of the two groups."""
    n = np.array([3.0, 150, 199, 200, 201, 1e4])[:, None, None]
    penalty = np.array([1e-6, 1e-2, 1.0, 1e3])[:, None]
    width = np.array([2.0, 150, 200, 3000.0])
    for eigenvalues in (powers(0.0), powers(3.0), gamma(3)):
        arguments = dict(n_real=0.7 * n, n_synthetic=0.3 * n, penalty=penalty, **NOISE)
        arguments |= dict(zip(("weight_real", "weight_synthetic"), weights, strict=True))
        law = (eigenvalues, eigenvalues, eigenvalues)
        if wide:
            theta = collapse.random_projection(*law, width=width, **arguments).effective_ridge
            m = width
        else:
            theta = collapse.ridge(*law, **arguments).effective_ridge
            m = np.inf
        df1 = (eigenvalues / (eigenvalues + theta[..., None])).sum(-1)
        level = penalty * (SIZE / m if wide else 1.0)
        # tau = level / theta / (1 - df1/m) and e = df1 / (n tau) must satisfy the dual equation.
        tau = level / theta / (1 - df1 / m)
        e = df1 / (n * tau)
        dual = 0.7 * weights[0] / (1 + weights[0] * e) + 0.3 * weights[1] / (1 + weights[1] * e)
        # Where df1 nearly exhausts m, 1 - df1/m is known only to rounding.
        known = (1 - df1 / m) > 1e-7
        assert known.mean() > 0.5
        np.testing.assert_allclose(tau[known], dual[known], rtol=1e-6)
        assert (df1 < n).all()
        assert (df1 < m * (1 + 1e-12)).all()


def test_ridgeless_limits_and_thresholds():
    law = LAWS["random"]
    n = np.array([50.0, 199, 200, 201, 1000])
    errors = theory_of(law, n, 0.0, None, 0.0, 1.0, 1.0)
    assert np.isinf(errors.variance[2])
    assert np.isinf(errors.total[2])
    assert errors.bias[2] == errors.collapse[2] == 0
    finite = np.array([0, 1, 3, 4])
    np.testing.assert_allclose(errors.variance[3:], 0.16 * 200 / (n[3:] - 200))
    small = theory_of(law, n, 0.0, None, 1e-12, 1.0, 1.0)
    np.testing.assert_allclose(errors.total[finite], small.total[finite], rtol=1e-6)
    # Without noise or shift nothing diverges at the threshold.
    clean = collapse.ridge(
        *law[:2],
        np.zeros(SIZE),
        n_real=n,
        n_synthetic=0,
        noise_real=0.0,
        noise_synthetic=0.0,
        penalty=0.0,
    )
    assert np.isfinite(clean).all()
    np.testing.assert_array_equal(clean.total > 0, [True, True, False, False, False])


def test_a_singular_covariance_has_no_more_directions_than_its_rank():
    """What rounding makes of zero eigenvalues must not be fitted: the variance is r / (n - r)."""
    factor = np.random.default_rng(0).normal(size=(100, 30))
    law = collapse.diagonals(factor @ factor.T, np.eye(100), np.eye(100))
    assert (law[0] > 0).sum() == 30
    errors = collapse.ridge(
        *law, n_real=40, n_synthetic=0, noise_real=1, noise_synthetic=0, penalty=0
    )
    assert errors.variance == pytest.approx(3.0)


def test_random_projections_diverge_where_width_meets_samples():
    law, widths = LAWS["power law"], np.array([60.0, 120.0, 150.0, 200.0, 400.0])
    errors = theory_of(law, 80, 40, widths, 0.0, 1.0, 1.0)
    assert np.isinf(errors.total[1])
    for part in (errors.bias, errors.variance, errors.collapse):
        assert np.isinf(part[1])
        assert np.isfinite(np.delete(part, 1)).all()
    # n = m = rank, no noise: infinity times 0, with a finite limit from above.
    exact, near = (
        collapse.random_projection(
            *LAWS["isotropic"][:2],
            np.zeros(SIZE),
            n_real=200,
            n_synthetic=0,
            noise_real=0,
            noise_synthetic=0,
            penalty=penalty,
            width=200,
        )
        for penalty in (0.0, 1e-14)
    )
    assert exact.total == pytest.approx(1 / 3)
    assert near.total == pytest.approx(1 / 3, rel=1e-4)


ARGUMENTS = ("n_real", "n_synthetic", "noise_real", "noise_synthetic", "penalty")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("point", [(80, 40, 0.4, 0.7, 0.05), (300, 100, 0.4, 0.7, 1e-3)])
def test_gradients_are_those_of_finite_differences(wide, point):
    names = (*ARGUMENTS, "weight_real", "weight_synthetic", *(("width",) if wide else ()))
    values = jnp.array([*point, 0.6, 1.7, *((150.0,) if wide else ())])
    function = collapse.random_projection if wide else collapse.ridge
    law = LAWS["random"]

    def total(values, eigenvalues=law[0]):
        return function(eigenvalues, *law[1:], **dict(zip(names, values, strict=True))).total

    with jax.enable_x64(True):
        values = jnp.asarray(values, jnp.float64)
        gradient = jax.jit(jax.grad(total))(values)
        step = 1e-4 * values
        differences = [
            (total(values.at[i].add(step[i])) - total(values.at[i].add(-step[i]))) / (2 * step[i])
            for i in range(len(names))
        ]
        np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-10)
        by_spectrum = jax.jit(jax.grad(lambda s: total(values, s)))(jnp.asarray(law[0]))
        for i in (0, 77, 199):
            moved = 1e-4 * np.eye(SIZE)[i]
            difference = (total(values, law[0] + moved) - total(values, law[0] - moved)) / 2e-4
            assert float(by_spectrum[i]) == pytest.approx(float(difference), rel=1e-4)
        # The second derivative too, which goes through the fixed point twice.
        index = names.index("penalty")
        unit = jnp.eye(len(names))[index]
        first = jax.grad(lambda x: total(values + x * unit))
        second = jax.jit(jax.grad(first))(0.0)
        h = 1e-4 * point[index]
        difference = (first(h) - first(-h)) / (2 * h)
        assert float(second) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize(
    ("n", "width"),
    [(80, None), (300, None), (300, 60), (60, 90), (90, 300), (300, 250), (260, 450)],
)
def test_ridgeless_gradients_are_those_of_the_limit(n, width):
    """With respect to the penalty, and to all else; n and width on both sides of the rank."""
    names = ("penalty", "n_real", "weight_synthetic", *(("width",) if width else ()))
    function = collapse.random_projection if width else collapse.ridge

    def parts(values):
        arguments = dict(zip(names, values, strict=True))
        errors = function(
            *LAWS["random"], n_synthetic=0.3 * n, weight_real=0.6, **arguments, **NOISE
        )
        return jnp.stack(errors[:4])

    with jax.enable_x64(True):
        slopes = [
            jax.jacfwd(parts)(jnp.array([p, 0.7 * n, 1.7, *((1.0 * width,) if width else ())]))
            for p in (0.0, 1e-11)
        ]
        np.testing.assert_allclose(*slopes, rtol=2e-4, atol=1e-5)


def test_float64_under_every_transformation_and_setting():
    law = LAWS["random"]

    def total(penalty):
        return theory_of(law, 80.0, 40.0, None, penalty, 1.0, 1.0).total

    penalties = np.array([0.0, 1e-3, 0.1])
    plain = total(penalties)
    assert isinstance(plain, np.ndarray)
    assert plain.dtype == np.float64
    np.testing.assert_allclose(jax.jit(total)(penalties), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(total)(penalties), plain, rtol=1e-6)
    # What follows inside is in the caller's type, without warnings of truncation.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = jax.jit(lambda p: 2.0 * total(p).mean())(penalties)
        slopes = jax.jacrev(lambda p: 2.0 * total(p))(jnp.asarray(penalties[1:]))
    assert float(mean) == pytest.approx(2 * plain.mean(), rel=1e-6)
    assert slopes.dtype == jnp.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.vmap(jax.jit(total))(penalties), plain, rtol=1e-13)


def test_parts_add_up_and_behave():
    errors = theory_of(LAWS["random"], 80.0, np.array([0.0, 40.0]), None, 0.1, 1.0, 1.0)
    np.testing.assert_allclose(errors.total, errors.bias + errors.variance + errors.collapse)
    assert errors.collapse[0] == 0 < errors.collapse[1]
    # Scaling all weights is scaling the penalty.
    scaled = theory_of(LAWS["random"], 80.0, 40.0, None, 0.3, 3.0, 3.0)
    np.testing.assert_allclose(scaled[:4], [part[1] for part in errors[:4]], rtol=1e-12)
