"""Every fast variant against its plain twin, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.theory import collapse
from lmnoise.theory.collapse import fixed_point, formulas, monte_carlo, spectrum

SIZE = 40
EIGENVALUES = np.concatenate([np.random.default_rng(0).gamma(1.0, size=SIZE - 3), np.zeros(3)])


def settings(count):
    """Random settings on both sides of the threshold, ridgeless ones among them."""
    rng = np.random.default_rng(count)
    penalty = 10 ** rng.uniform(-6, 1, count)
    penalty[::7] = 0.0
    n = rng.integers(5, 200, count).astype(float)
    share = rng.uniform(0, 1, count)
    return dict(
        n_real=n * (1 - share),
        n_synthetic=n * share,
        noise_real=0.3,
        noise_synthetic=0.5,
        penalty=penalty,
        weight_real=10 ** rng.uniform(-1, 1, count),
        weight_synthetic=10 ** rng.uniform(-1, 1, count),
    )


def law():
    return EIGENVALUES, np.ones(SIZE), np.linspace(0, 1, SIZE)


@pytest.mark.parametrize("wide", [False, True])
def test_many_settings_at_once_are_as_each_alone(wide, monkeypatch):
    """The table of starts, the loop over the spectrum, and the parts on several threads."""
    many = settings(700)
    if wide:
        many["width"] = np.random.default_rng(1).uniform(2, 300, 700)
    function = collapse.random_projection if wide else collapse.ridge
    monkeypatch.setattr(formulas, "AT_ONCE", 300)
    together = function(*law(), **many)
    columns = {name: np.broadcast_to(values, 700) for name, values in many.items()}
    alone = [
        function(*law(), **{name: values[i] for name, values in columns.items()})
        for i in range(0, 700, 9)
    ]
    for name, values in together._asdict().items():
        expected = [getattr(errors, name) for errors in alone]
        np.testing.assert_allclose(values[::9], expected, rtol=1e-9, err_msg=name)


def test_parts_inside_jit_are_as_parts_on_threads(monkeypatch):
    monkeypatch.setattr(formulas, "AT_ONCE", 64)
    many = {name: np.broadcast_to(values, 150) for name, values in settings(150).items()}
    plain = collapse.ridge(*law(), **many)
    with jax.enable_x64(True):
        traced = jax.jit(lambda many: collapse.ridge(*law(), **many))(many)
    for name, values in plain._asdict().items():
        np.testing.assert_allclose(getattr(traced, name), values, rtol=1e-12, err_msg=name)


def test_sums_over_the_spectrum_by_loop_and_by_reduction():
    with jax.enable_x64(True):
        ridges = jnp.geomspace(1e-8, 1e3, 90)

        def sums(eigenvalues, ridges, looped):
            def terms(s):
                return spectrum.degree_terms(s, ridges)

            return spectrum.sum_over(terms, 90, eigenvalues, looped=looped)

        for value, twin in zip(
            sums(jnp.asarray(EIGENVALUES), ridges, True),
            sums(jnp.asarray(EIGENVALUES), ridges, False),
            strict=True,
        ):
            np.testing.assert_allclose(value, twin, rtol=1e-13)

        def scalar(eigenvalues, ridges, looped):
            return sum(values.sum() for values in sums(eigenvalues, ridges, looped))

        gradients = [
            jax.grad(scalar, (0, 1))(jnp.asarray(EIGENVALUES), ridges, looped)
            for looped in (True, False)
        ]
        for value, twin in zip(*gradients, strict=True):
            np.testing.assert_allclose(value, twin, rtol=1e-12)


def test_gradients_of_many_settings_are_those_of_each():
    with jax.enable_x64(True):
        many = {
            name: jnp.asarray(np.broadcast_to(values, 300))
            for name, values in settings(300).items()
        }

        def total(penalty, rows):
            return collapse.ridge(*law(), **rows | {"penalty": penalty}).total.sum()

        together = jax.jit(jax.grad(total))(many["penalty"], many)
        alone = jax.jit(jax.grad(total))
        for i in range(1, 300, 29):
            rows = {name: values[i : i + 1] for name, values in many.items()}
            expected = alone(rows["penalty"], rows)[0]
            np.testing.assert_allclose(together[i], expected, rtol=1e-6)


def test_the_bracket_alone_finds_the_root(monkeypatch):
    """Bisection is the fallback: with useless guesses the answer is the same."""
    few = {name: np.broadcast_to(values, 20) for name, values in settings(20).items()}
    usual = collapse.ridge(*law(), **few)
    jax.clear_caches()
    monkeypatch.setattr(fixed_point, "_next", lambda df, ridge, *rest: -jnp.ones_like(ridge))
    bisected = collapse.ridge(*law(), **few)
    jax.clear_caches()
    np.testing.assert_allclose(bisected.effective_ridge, usual.effective_ridge, rtol=1e-8)


@pytest.mark.parametrize("width", [None, 30])
def test_repetitions_under_vmap_are_as_one_by_one(width):
    with jax.enable_x64(True):
        roots = monte_carlo.square_roots(
            covariance=np.ones(20), prior=np.ones(20), shift=np.eye(20)
        )
        numbers = {
            name: jnp.asarray(0.5)
            for name in ("noise_real", "noise_synthetic", "weight_real", "weight_synthetic")
        } | {"penalty": jnp.asarray(0.1)}
        rows = jax.random.split(jax.random.key(0), 5)
        together = monte_carlo._several(rows, roots, numbers, 12, 9, width, 2)
        for i, row in enumerate(rows):
            alone = monte_carlo._once(row, roots, numbers, 12, 9, width)
            for name, value in alone._asdict().items():
                np.testing.assert_allclose(getattr(together, name)[i], value, rtol=1e-9)
