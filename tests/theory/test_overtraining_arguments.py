"""Over-training: derivatives, float64 and refused arguments of its functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lmnoise.theory import overtraining

KEY = jax.random.key(0)
SIGMA = np.array([3.0, 1.0, 0.4, 0.0])
SECOND = np.array([0.5, 2.0, 0.0, 1.0])
START = np.array([0.02, 0.3, 1e-4, 0.5])


def test_derivatives_agree_with_finite_differences():
    with jax.enable_x64(True):
        sigma, start = jnp.array([3.0, 1.0, 0.4]), jnp.array([0.02, 0.3, 1e-2])
        times = jnp.array([0.7, 2.0])
        scale, decay = jnp.float64(0.2), jnp.float64(0.3)

        def lowest(sigma, scale):
            cured = overtraining.soft_threshold(sigma, scale)
            return overtraining.perturbed_loss(sigma, cured, scale)

        turning_point = jax.jit(overtraining.turning_point)
        for function, arguments in (
            (overtraining.modes, (sigma, times, start)),
            (lowest, (sigma, scale)),
            (turning_point, (sigma, start, scale)),
            (overtraining.fine_tuned, (sigma, start, times, decay)),
            (overtraining.fine_tuned_limit, (sigma, start, decay)),
        ):
            check_grads(jax.jit(function), arguments, order=1, modes="rev", rtol=1e-5, eps=1e-5)
        # At a singular value of 0 from one side, and across the seam to the series for small ones.
        for x in (0.0, 1e-3 / 6):
            slope = jax.grad(lambda x: overtraining.modes(x[None], 3.0, 0.1)[0])(jnp.float64(x))
            low, high = overtraining.modes([x, x + 1e-6], 3.0, 0.1)
            np.testing.assert_allclose(slope, (high - low) / 1e-6, rtol=1e-4)
        assert jax.grad(turning_point, 2)(sigma, start, 0 * scale) == 0


FUNCTIONS = {
    "modes": lambda x: overtraining.modes(SIGMA, x, START),
    "perturbed_loss": lambda x: overtraining.perturbed_loss(SIGMA, START, x),
    "soft_threshold": lambda x: overtraining.soft_threshold(SIGMA, x),
    "turning_point": lambda x: overtraining.turning_point(SIGMA[:3], 1e-6, x),
    "fine_tuning": lambda x: overtraining.fine_tuning(SIGMA, SECOND, START, 1.0, x),
    "fine_tuned_limit": lambda x: overtraining.fine_tuned_limit(SECOND, START, x),
    "simulate": lambda x: overtraining.simulate_perturbed(KEY, *[np.eye(2)] * 3, x, 8),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("error")
def test_float64_under_any_flag_and_transformation(name):
    """Always computed in float64, and rounded once where it leaves a caller's float32 trace.

    The argument, 0.25, is exact in float32 too.
    """
    function = FUNCTIONS[name]
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, function(0.25))
    plain, compiled = function(np.float32(0.25)), jax.jit(function)(jnp.float32(0.25))
    mapped = jax.vmap(function)(jnp.array([0.25, 0.5], jnp.float32))
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], mapped)
    for values, kind in ((plain, np.float64), (compiled, np.float32), (first, np.float32)):
        for ours, theirs in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == kind
            rounded = np.asarray(theirs).astype(kind)
            np.testing.assert_allclose(ours, rounded, rtol=4 * np.finfo(kind).eps)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: overtraining.modes([1.0, -1.0], 1.0, 0.1), "singular_values .* -1.0"),
        (lambda: overtraining.modes([1.0, np.nan], 1.0, 0.1), "singular_values .* nan"),
        (lambda: overtraining.modes(2.0, 1.0, 0.1), "singular_values needs a last axis"),
        (lambda: overtraining.modes([1.0], -1.0, 0.1), "time .* -1.0"),
        (lambda: overtraining.modes([1.0], np.inf, 0.1), "time .* inf"),
        (lambda: overtraining.modes([1.0], 1.0, -0.1), "start .* -0.1"),
        (lambda: overtraining.modes([1.0, 2.0], 1.0, [0.1, 0.1, 0.1]), "start"),
        (lambda: overtraining.modes([1.0], 1.0, [0.1, 0.1]), r"start \(2,\)"),
        (lambda: overtraining.loss([1.0, 2.0], [1.0]), r"modes \(1,\)"),
        (lambda: overtraining.loss([1.0, 2.0], [1.0, -2.0]), "modes .* -2.0"),
        (lambda: overtraining.perturbed_loss([1.0], [1.0], -0.1), "scale .* -0.1"),
        (lambda: overtraining.perturbed_loss([1.0], np.ones((2, 1)), [0.1] * 3), "scale"),
        (lambda: overtraining.soft_threshold([1.0], np.inf), "scale .* inf"),
        (lambda: overtraining.turning_point([1.0], 0.1, -1.0), "scale .* -1.0"),
        (lambda: overtraining.fine_tuned([1.0], 0.1, 1.0, -1.0), "decay .* -1.0"),
        (lambda: overtraining.fine_tuned([1.0], "a", 1.0), "start must be a number"),
        (
            lambda: overtraining.simulate_perturbed(
                KEY, np.eye(2), np.eye(3), np.ones((2, 3)), 0.1, 9
            ),
            "left and right",
        ),
        (
            lambda: overtraining.simulate_perturbed(KEY, np.eye(2), np.eye(2), np.eye(3), 0.1, 9),
            "target",
        ),
        (
            lambda: overtraining.simulate_perturbed(KEY, np.eye(2), np.eye(2), np.eye(2), 0.1, 1),
            "draws",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
