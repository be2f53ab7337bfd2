"""What the collapse functions refuse, and that a simulation can be repeated."""

import itertools

import jax
import numpy as np
import pytest

from lmnoise.theory import collapse

GOOD = dict(
    eigenvalues=np.ones(3),
    prior=np.ones(3),
    shift=np.ones(3),
    n_real=5,
    n_synthetic=5,
    noise_real=1,
    noise_synthetic=1,
    penalty=0.1,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(eigenvalues=np.array([1, -0.5, 1])), "eigenvalues must be at least 0.*got -0.5"),
        (dict(eigenvalues=np.array([1, np.nan, 1])), "eigenvalues must be .*finite, got nan"),
        (dict(prior=np.ones(4)), r"one length: eigenvalues \(3,\), prior \(4,\)"),
        (dict(shift=np.ones((3, 3))), r"shift \(3, 3\)"),
        (dict(prior=-np.ones(3)), "prior must be at least 0"),
        (dict(n_real=-1), "n_real must be at least 0 and finite, got -1"),
        (dict(n_real=0, n_synthetic=[0, 5]), r"n_real \+ n_synthetic must be above 0"),
        (dict(noise_real=np.inf), "noise_real must be .*got inf"),
        (dict(penalty=-0.1), "penalty must be at least 0 and finite, got -0.1"),
        (dict(penalty="small"), "penalty must be a number"),
        (dict(n_real="30"), "n_real must be a number"),
        (dict(weight_real=0), "weight_real must be above 0"),
        (dict(width=0), "width must be above 0"),
        (dict(n_real=[1, 2], penalty=[1, 2, 3]), r"broadcast .*n_real \(2,\), penalty \(3,\)"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(change, words):
    function = collapse.random_projection if "width" in change else collapse.ridge
    with pytest.raises(ValueError, match=words):
        function(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(covariance=np.diag([1.0, -1.0])), "covariance must have no negative eigenvalue"),
        (dict(prior=np.array([[1.0, 0.5], [0.0, 1.0]])), "prior must be symmetric"),
        (dict(shift=np.ones(2)), "shift must be square"),
        (dict(shift=np.full((2, 2), np.nan)), "shift must be .*got nan"),
    ],
)
def test_dense_matrices_are_checked(change, words):
    matrices = dict(covariance=np.eye(2), prior=np.eye(2), shift=np.eye(2)) | change
    with pytest.raises(ValueError, match=words):
        collapse.diagonals(**matrices)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(n_real=0, n_synthetic=0), r"n_real \+ n_synthetic must be an integer of at least 1"),
        (dict(n_real=2.5), "n_real must be an integer"),
        (dict(n_real=np.nan), "n_real must be an integer"),
        (dict(noise_real=[1.0, 2.0]), r"noise_real must be one number, got the shape \(2,\)"),
        (dict(width=9, penalty=0.0), "penalty must be above 0 where width and samples exceed"),
        (dict(repetitions=1), "repetitions must be an integer of at least 2"),
        (dict(width=0), "width must be an integer of at least 1"),
        (dict(covariance=np.array([1.0, 0.0, 1.0]), penalty=0.0), "penalty must be above 0 where"),
        (dict(shift=np.ones(2)), "shift must have the covariance's size"),
    ],
)
def test_simulation_checks_its_arguments(change, words):
    good = {name: value for name, value in GOOD.items() if name != "eigenvalues"}
    good |= dict(covariance=np.ones(3), repetitions=2)
    with pytest.raises(ValueError, match=words):
        collapse.simulate(jax.random.key(0), **(good | change))


def test_a_repetition_depends_on_its_number_alone():
    """Mean and spread of 2, 3 and 4 repetitions come from the same first values."""
    arguments = {name: value for name, value in GOOD.items() if name != "eigenvalues"}
    sums = []
    for repetitions in (2, 3, 4):
        one = collapse.simulate(jax.random.key(0), np.ones(3), repetitions=repetitions, **arguments)
        variance = one.standard_error.total**2 * repetitions * (repetitions - 1)
        squares = variance + repetitions * one.mean.total**2
        sums.append((repetitions * one.mean.total, squares))
    for before, after in itertools.pairwise(sums):
        value, square = after[0] - before[0], after[1] - before[1]
        assert value > 0
        assert square == pytest.approx(value**2, rel=1e-9)


def test_an_empty_grid_has_no_errors():
    errors = collapse.ridge(**(GOOD | dict(penalty=np.zeros((2, 0)))))
    assert all(part.shape == (2, 0) for part in errors)


def test_extreme_numbers_are_not_nan():
    penalties = np.array([0.0, 1e-300, 1e-30, 1e30, 1e155, 1e300])
    for n in (1e-100, 0.5, 3.0, 1e200):
        for width in (None, 1.0, 3.0, 1e150):
            function = collapse.ridge if width is None else collapse.random_projection
            extra = {} if width is None else {"width": width}
            errors = function(**(GOOD | dict(penalty=penalties, n_real=n) | extra))
            assert not np.isnan(errors).any()
