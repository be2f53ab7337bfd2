"""Test error of ridge regression on real and synthetic data: Theorems 1 and 2 of arXiv 2410.04840.

Real labels are `x.w1 + noise`, synthetic ones `x.w2 + noise`, with `x ~ N(0, Sigma)`,
`w1 ~ N(0, Gamma)` and `w2 - w1 ~ N(0, Delta)`. Of Gamma and Delta only the diagonals in the
eigenbasis of Sigma matter: see `rotation.diagonals` for dense matrices. The theorems draw w1 and
w2 - w1 independently; `cross`, for those that are not, is derived here (`_cross`). The statements
hold in the limit of many samples and dimensions; at a few hundred of each they are within a
fraction of a per cent, except near the interpolation threshold (5 % at n = 220, D = 200 without
penalty).

Everything is computed in float64, whatever JAX's setting, broadcasts over the scalar arguments,
can be differentiated any number of times, and is infinite exactly where the error diverges: in the
ridgeless limit (penalty 0) at the interpolation threshold, never NaN.

Outside `jax.jit` wrong arguments are ValueErrors that name the argument. Inside, where values
cannot be looked at, negative or non-finite numbers give numbers without meaning.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lmnoise.theory.arguments import (
    broadcast,
    checked,
    in_float64,
    not_negative,
    positive,
    same_shape,
)
from lmnoise.theory.collapse.fixed_point import effective_ridge
from lmnoise.theory.collapse.spectrum import (
    Degrees,
    Groups,
    degree_terms,
    excess,
    left_weight,
    rank,
    resolvent,
    sum_over,
)

# Settings that are solved together on CPU, where vectors of so many stay in cache; and numbers
# that a sum over the spectrum of all settings may hold on an accelerator.
AT_ONCE = 4096
HELD = 2**27


class Errors(NamedTuple):
    """Expected squared error on the real law without label noise, and what it is made of.

    Attributes:
      bias: what would remain without label noise and without synthetic data's shift.
      variance: from the label noise of both parts.
      collapse: from the shift of the synthetic labels; zeta in the paper. With `cross` also what
        the shift's correlation with the real law adds, which may be below 0.
      total: the sum.
      effective_ridge: kappa of plain ridge, theta of random projections.
    """

    bias: jax.Array
    variance: jax.Array
    collapse: jax.Array
    total: jax.Array
    effective_ridge: jax.Array


@in_float64
def ridge(
    eigenvalues: ArrayLike,
    prior: ArrayLike,
    shift: ArrayLike,
    *,
    n_real: ArrayLike,
    n_synthetic: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    penalty: ArrayLike,
    weight_real: ArrayLike = 1.0,
    weight_synthetic: ArrayLike = 1.0,
    cross: ArrayLike | None = None,
) -> Errors:
    """Theorem 1: ridge regression, `min (1/n) sum_i weight_i (x_i.w - y_i)^2 + penalty |w|^2`.

    With weights other than 1 the formula is a generalisation derived here: group g then counts as
    a share `q_g = p_g w_g / (H + w_g df1/n)` of the data (H as in `fixed_point.left_weight`), and
    n samples are worth `n / sum_g q_g^2 / p_g`.

    Args:
      eigenvalues, prior, shift: diagonals of Sigma, Gamma and Delta in Sigma's eigenbasis, (D,),
        not negative.
      n_real, n_synthetic: numbers of samples, not negative; one of them may be 0.
      noise_real, noise_synthetic: standard deviations of the label noise.
      penalty: lambda >= 0; 0 is the limit from above, the interpolator of least norm.
      weight_real, weight_synthetic: weights of a sample, above 0.
      cross: diagonal of `E w1 (w2 - w1)^T` in Sigma's eigenbasis, (D,), of any sign; None where
        the two are independent, as in the theorems. No law has `cross^2 > prior * shift`, which
        estimates may exceed and is not refused.

    Returns:
      float64 arrays in the common shape of the arguments after `shift`.

    Raises:
      ValueError: an argument out of its range, not finite, or of a shape that does not fit.
    """
    return _errors(dict(locals()), None)


@in_float64
def random_projection(
    eigenvalues: ArrayLike,
    prior: ArrayLike,
    shift: ArrayLike,
    *,
    n_real: ArrayLike,
    n_synthetic: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    penalty: ArrayLike,
    width: ArrayLike,
    weight_real: ArrayLike = 1.0,
    weight_synthetic: ArrayLike = 1.0,
    cross: ArrayLike | None = None,
) -> Errors:
    """Theorem 2: ridge regression on the `width` features `S x`, S i.i.d. N(0, 1/D).

    A model of the size of a neural network's last layer: `f(x) = v.(S x)`, penalty on v. The
    paper's four coupled equations are solved here in closed form given the effective ridge t: with
    `df_k` at t, `n - A = (n - df1) + (df1 - df2) (m - df1) / (m - df2)` replaces `n - df2` of
    Theorem 1, to which all tends as the width m grows (with penalty * D / m fixed).

    Args:
      width: m, above 0. The others are as in `ridge`.

    Raises:
      ValueError: as in `ridge`.
    """
    arguments = dict(locals())
    return _errors(arguments, arguments.pop("width"))


def _errors(arguments: dict[str, Any], width: ArrayLike | None) -> Errors:
    """Checks the arguments and evaluates the theorem."""
    vectors = {
        name: not_negative(name, arguments.pop(name)) for name in ("eigenvalues", "prior", "shift")
    }
    if (cross := arguments.pop("cross")) is not None:
        vectors["cross"] = checked("cross", cross, lambda x: x == x, "an array of numbers")
    same_shape(**vectors)
    scalars = {
        name: (positive if name.startswith("weight") else not_negative)(name, value)
        for name, value in arguments.items()
    }
    if width is not None:
        scalars["width"] = positive("width", width)
    scalars = broadcast(**scalars)
    positive("n_real + n_synthetic", scalars["n_real"] + scalars["n_synthetic"])
    return _evaluate(tuple(vectors.values()), scalars)


class _Fit(NamedTuple):
    """Second-order quantities of a fit, given its effective ridge.

    `df1` and `df2` are at the ridge, n counts samples and m features.

    Attributes:
      unexplained: `n - df1`.
      second: A, the degrees of freedom that carry noise; `df2` for plain ridge.
      surplus: `n - A`.
      unmixed: `(df1 - df2) / (m - df2)`, the share of the bias that a narrow model spreads over
        the directions that it fits; 0 for plain ridge.
    """

    unexplained: jax.Array
    second: jax.Array
    surplus: jax.Array
    unmixed: jax.Array


class _Mixture(NamedTuple):
    """What the weights make of the two parts.

    Attributes:
      noise: label noise a sample (variance), with these weights.
      share: effective share q2 of the synthetic part; that of the real part is 1 - q2.
      mismatch: variance that a shift of unit size adds to the labels' noise.
      tilt: `q1 q2` times the difference of the weights in effect, synthetic less real.
      worth: number of equally weighted samples that they are worth, at most n.
      lost: `n - worth`, computed without cancellation.
    """

    noise: jax.Array
    share: jax.Array
    mismatch: jax.Array
    tilt: jax.Array
    worth: jax.Array
    lost: jax.Array


class _Traces(NamedTuple):
    """Traces of Gamma and Delta with functions of Sigma = S at ridge t, (N,).

    Attributes:
      prior_missed: `tr Gamma S t^2 (S + t)^-2`.
      prior_fitted: `tr Gamma S^2 (S + t)^-2`.
      shift_missed, shift_fitted: the same of Delta.
      shift_learnt: `tr Delta S^3 (S + t)^-2`.
      shift_lost: `tr Delta S t (S + t)^-1`.
      cross_missed, cross_fitted, cross_lost: the same of `cross`.
    """

    prior_missed: jax.Array
    prior_fitted: jax.Array
    shift_missed: jax.Array
    shift_fitted: jax.Array
    shift_learnt: jax.Array
    shift_lost: jax.Array
    cross_missed: ArrayLike = 0.0
    cross_fitted: ArrayLike = 0.0
    cross_lost: ArrayLike = 0.0


def _traces(spectra, theta_N) -> tuple[Degrees, _Traces]:
    """All sums over the spectrum, which share their divisions."""

    def terms(s, prior, shift, *cross):
        inverse = resolvent(s, theta_N)
        fitted, missed = s * inverse, theta_N * inverse
        sums = (
            prior * s * missed**2,
            prior * fitted**2,
            shift * s * missed**2,
            shift * fitted**2,
            shift * s * fitted**2,
            shift * s * missed,
        )
        products = (x * y for x in cross for y in (s * missed**2, fitted**2, s * missed))
        return *degree_terms(s, theta_N), *sums, *products

    s_D = spectra[0]
    sums = sum_over(terms, theta_N.size, *spectra)
    split = len(Degrees._fields) - 1
    return Degrees(*sums[:split], rank(s_D)), _Traces(*sums[split:])


def _evaluate(spectra, scalars) -> Errors:
    """The errors at any number of settings."""
    shape = scalars["penalty"].shape
    flat = {name: value.ravel() for name, value in scalars.items()}
    count = flat["penalty"].size
    on_cpu = jax.default_backend() == "cpu"
    size = AT_ONCE if on_cpu else max(1, HELD // spectra[0].size)
    solve = functools.partial(_evaluate_part, spectra)
    if count <= size:
        errors = solve(flat)
    else:
        # The last setting fills up the last part.
        flat = {k: jnp.pad(v, (0, -count % size), "edge") for k, v in flat.items()}
        parts = {name: value.reshape(-1, size) for name, value in flat.items()}
        if on_cpu and not isinstance(flat["penalty"], jax.core.Tracer):
            errors = _on_all_cores(solve, parts)
        else:
            errors = jax.lax.map(solve, parts)
        errors = jax.tree.map(lambda value: value.ravel()[:count], errors)
    return jax.tree.map(lambda value: value.reshape(shape), errors)


def _on_all_cores(solve: Callable[..., Errors], parts: dict[str, jax.Array]) -> Errors:
    """`solve` for every row of the parts: XLA's own loop would run them on one core."""
    count = len(parts["penalty"])

    def task(row: int) -> Errors:
        with jax.enable_x64(True):  # a setting of the thread
            return jax.block_until_ready(solve({name: rows[row] for name, rows in parts.items()}))

    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
        return jax.tree.map(lambda *rows: jnp.stack(rows), *pool.map(task, range(count)))


@jax.jit
def _evaluate_part(spectra, scalars) -> Errors:
    s_D, _, shift_D, *_ = spectra
    width, penalty = scalars.get("width"), scalars["penalty"]
    groups = Groups(*(scalars[name] for name in Groups._fields))
    level = penalty if width is None else penalty * (s_D.shape[0] / width)
    theta = effective_ridge(s_D, groups, width, level)
    df, traces = _traces(spectra, theta)
    fit = _fit(df, theta, groups.n, width, level)
    mixture = _mixture(df, fit, groups, scalars["noise_real"], scalars["noise_synthetic"])

    gap = jnp.maximum(fit.surplus - mixture.lost, 0.0)
    inflation = _ratio(mixture.worth, gap)  # 1 + u of the paper, where weights are equal
    rise = _ratio(fit.second, gap)  # u
    fluctuation = rise * mixture.worth / groups.n
    leakage = _leakage(fit, df, theta, inflation, groups.n, width)

    bias = _times(inflation, traces.prior_missed) + _times(leakage, traces.prior_fitted)
    variance = _times(fluctuation, mixture.noise)
    moved = traces.shift_learnt + _times(rise, traces.shift_missed)
    moved += _times(leakage, traces.shift_fitted)
    mismatch = mixture.mismatch * (shift_D * s_D).sum()
    mismatch += 2 * mixture.share * mixture.tilt * traces.shift_lost
    collapse = _times(mixture.share**2, moved) + _times(fluctuation, mismatch)
    if len(spectra) > 3:
        collapse += _cross(traces, mixture, inflation, leakage, fluctuation)
    return Errors(bias, variance, collapse, bias + variance + collapse, theta)


def _cross(traces: _Traces, mixture: _Mixture, inflation, leakage, fluctuation) -> jax.Array:
    """What the product `cross` of real law and shift adds; derived here, not in the paper.

    The fit is `A w1 + A2 (w2 - w1) + noise`, where A is what a fit to real labels alone makes of
    their law and A2 the part of it by the synthetic samples, so the term is
    `2 E tr (A - 1)^T Sigma A2 M` with M the cross. For equal weights samples are alike and A2 is
    worth `p2 A`; with `E A = Sigma (Sigma + t)^-1` and bias(M) the bias with M for Gamma it is

        2 p2 [bias(M) - tr M Sigma t (Sigma + t)^-1].

    For other weights `2 A^T Sigma A2` has the mean of `A^T Sigma A + A2^T Sigma A2 -
    A1^T Sigma A1`, of which the theorem gives all three: p2 becomes q2, and their labels' noise
    no longer cancels.
    """
    bias = inflation * traces.cross_missed + leakage * traces.cross_fitted
    noise = fluctuation * mixture.tilt * traces.cross_lost
    # Where the errors diverge this term is not larger than the others, and does not undo that.
    finite = jnp.isfinite(inflation)
    return jnp.where(finite, 2 * (mixture.share * (bias - traces.cross_lost) + noise), 0.0)


def _fit(df: Degrees, theta, n, width, level) -> _Fit:
    def left_over(count, binding):
        left = excess(count, df, theta)
        # In the ridgeless limit the smaller of n and m is used up exactly; its derivative is not 0.
        exactly = (level == 0) & (theta > 0) & binding
        return jnp.where(exactly, left - jax.lax.stop_gradient(left), left)

    if width is None:
        unexplained = left_over(n, True)
        return _Fit(unexplained, df.second, unexplained + df.lost, jnp.zeros_like(theta))
    unexplained, spare = left_over(n, n <= width), left_over(width, width <= n)
    total = spare + df.lost
    # 0 / 0 only where the width is the rank and the ridge 0, where all its uses vanish.
    unmixed = jnp.where(total > 0, df.lost / jnp.where(total > 0, total, 1.0), 0.0)
    second = df.second + df.lost * unmixed
    return _Fit(unexplained, second, unexplained + df.lost * (1 - unmixed), unmixed)


def _mixture(df: Degrees, fit: _Fit, groups: Groups, noise_real, noise_synthetic) -> _Mixture:
    n, left = groups.n, left_weight(df.first, fit.unexplained, groups)
    shares = groups.n_real / n, groups.n_synthetic / n

    def effective(weight):
        """A sample's weight in effect, and by how much that exceeds 1."""
        divisor = left + weight * df.first / n
        return weight / divisor, (weight * fit.unexplained / n - left) / divisor

    real, more_real = effective(groups.weight_real)
    synthetic, more_synthetic = effective(groups.weight_synthetic)
    share = shares[1] * synthetic
    spread = shares[0] * more_real**2 + shares[1] * more_synthetic**2
    return _Mixture(
        noise=shares[0] * (real * noise_real) ** 2 + shares[1] * (synthetic * noise_synthetic) ** 2,
        share=share,
        mismatch=shares[0] * shares[1] * (real * synthetic) ** 2,
        tilt=shares[0] * real * share * (more_synthetic - more_real),
        worth=n / (1 + spread),
        lost=n * spread / (1 + spread),
    )


def _leakage(fit: _Fit, df: Degrees, theta, inflation, n, width) -> jax.Array:
    """w' of Theorem 2 (see `random_projection`); 0 for plain ridge."""
    if width is None:
        return jnp.zeros_like(theta)
    usual = _times(inflation, theta * fit.unmixed)
    # n = m = rank without penalty: infinity times 0, whose limit from above is this.
    triple = (theta == 0) & (n == width) & (n == df.rank)
    complement = jnp.where(triple, df.complement, 1.0)
    return jnp.where(triple, n / (3 * complement), usual)


def _ratio(numerator, denominator) -> jax.Array:
    """The quotient, infinite at denominator 0, with a gradient that is finite elsewhere."""
    safe = jnp.where(denominator > 0, denominator, 1.0)
    return jnp.where(denominator > 0, numerator / safe, jnp.inf)


def _times(factor, term) -> jax.Array:
    """The product, 0 where `term` is, even if the factor is infinite."""
    safe = jnp.where(term == 0, 1.0, factor)
    return safe * term
