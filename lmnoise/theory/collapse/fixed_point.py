"""The one scalar equation behind the collapse theorems, solved to machine precision.

With `df1(t) = tr S (S + t)^-1` the effective ridge `t` of a fit with n samples, width m and
penalty lambda solves (arXiv 2410.04840, Theorems 1 and 2; m is infinite for plain ridge)

    t * (1 - df1(t)/n) * (1 - df1(t)/m) = lambda * d/m      (right side lambda for plain ridge).

Where samples carry weights, `1 - df1/n` becomes the mean over samples of their weight times what
their leverage leaves of it (`left_weight`), a generalisation that is derived here and checked by
simulation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_ITERATIONS = 200


class Groups(NamedTuple):
    """Number of samples and weight of a sample, of the real and of the synthetic part."""

    n_real: jax.Array
    n_synthetic: jax.Array
    weight_real: jax.Array
    weight_synthetic: jax.Array

    @property
    def n(self) -> jax.Array:
        return self.n_real + self.n_synthetic


class Degrees(NamedTuple):
    """Degrees of freedom of a spectrum at `t`.

    Attributes:
      first, second: `df_k = tr S^k (S + t)^-k`.
      lost: `df1 - df2`, summed without cancellation.
      slope: `-d df1 / dt`.
      complement: `tr 1[S > 0] (S + t)^-1`, so that `rank - df1 = t * complement`.
      rank: number of positive eigenvalues.
    """

    first: jax.Array
    second: jax.Array
    lost: jax.Array
    slope: jax.Array
    complement: jax.Array
    rank: jax.Array


def degrees(eigenvalues_D: jax.Array, ridge_N: jax.Array) -> Degrees:
    """Degrees of freedom at N ridges, each (N,)."""
    eigenvalues_1D, ridge_N1 = eigenvalues_D[None], ridge_N[:, None]
    inverse_ND = resolvent(eigenvalues_D, ridge_N)
    kept_ND, removed_ND = eigenvalues_1D * inverse_ND, ridge_N1 * inverse_ND
    return Degrees(
        first=kept_ND.sum(1),
        second=(kept_ND * kept_ND).sum(1),
        lost=(kept_ND * removed_ND).sum(1),
        slope=(kept_ND * inverse_ND).sum(1),
        complement=inverse_ND.sum(1),
        rank=(eigenvalues_D > 0).sum().astype(ridge_N.dtype),
    )


def resolvent(eigenvalues_D: jax.Array, ridge_N: jax.Array) -> jax.Array:
    """`1 / (eigenvalue + ridge)`, (N, D), and 0 where the eigenvalue is 0.

    No test error depends on those directions, and at ridge 0 they would be infinite.
    """
    positive_1D = (eigenvalues_D > 0)[None]
    safe_1D = jnp.where(positive_1D, eigenvalues_D[None], 1.0)
    return jnp.where(positive_1D, 1.0 / (safe_1D + ridge_N[:, None]), 0.0)


def excess(count: jax.Array, df: Degrees, ridge: jax.Array) -> jax.Array:
    """`count - df1`, by whichever of two sums does not cancel."""
    below = count - df.first
    above = (count - df.rank) + ridge * df.complement
    return jnp.where(2 * df.first < df.rank, below, above)


def left_weight(df1: jax.Array, unexplained: jax.Array, groups: Groups) -> jax.Array:
    """Mean over samples of weight times (1 - leverage): `1 - df1/n` where all weights are 1.

    It is the H that solves `H = sum_g p_g w_g H / (H + w_g y)` with y = df1/n, the larger root of
    a quadratic equation.

    Args:
      unexplained: `n - df1`, see `excess`.
    """
    n, real, synthetic = groups.n, groups.weight_real, groups.weight_synthetic
    product = real * synthetic * (df1 / n) * (unexplained / n)
    mean = (groups.n_real * real + groups.n_synthetic * synthetic) / n
    half = 0.5 * (mean - (df1 / n) * (real + synthetic))
    root = jnp.sqrt(jnp.maximum(half * half + product, 0.0))
    # The larger root, in the form that does not subtract nearly equal numbers.
    divisor = jnp.where(half < 0, root - half, 1.0)
    return jnp.where(half < 0, product / divisor, half + root)


@jax.custom_jvp
def effective_ridge(
    eigenvalues_D: jax.Array, groups: Groups, width: jax.Array | None, level: jax.Array
) -> jax.Array:
    """The effective ridge of this module's docstring.

    Derivatives of every order come from the implicit function theorem. At the interpolation
    threshold of the ridgeless limit, where they do not exist, they are not finite.

    Args:
      eigenvalues_D: of the covariance, not negative.
      groups: arrays (N,).
      width: m (N,), or None for plain ridge.
      level: right side of the equation (N,); 0 is the ridgeless limit, which has
        `df1 = min(n, m)`, or ridge 0 where that is not below the rank.

    Returns:
      The ridge (N,), to a few units in the last place.
    """
    counts = groups.n if width is None else jnp.minimum(groups.n, width)
    trace = eigenvalues_D.sum()
    lightest = jnp.minimum(groups.weight_real, groups.weight_synthetic)
    high = level / lightest + trace / groups.n + (0.0 if width is None else trace / width)
    zeros = jnp.zeros_like(level)
    # Where the answer is 0 the iteration need not run.
    done = (level == 0) & (counts >= (eigenvalues_D > 0).sum())
    state = _Search(zeros, zeros, high, jnp.full_like(level, jnp.inf), done, jnp.zeros((), int))

    def going(state):
        return ~jnp.all(state.done) & (state.count < MAX_ITERATIONS)

    def improve(state):
        df = degrees(eigenvalues_D, state.ridge)
        too_low = _too_low(df, state.ridge, groups, width, level)
        guess = _next(df, state.ridge, groups, width, level)
        return _narrowed(state, too_low, guess)

    return jax.lax.while_loop(going, improve, state).ridge


class _Search(NamedTuple):
    """Where the root is looked for: the current place, a bracket around it, the last step."""

    ridge: jax.Array
    low: jax.Array
    high: jax.Array
    step: jax.Array
    done: jax.Array
    count: jax.Array


def _narrowed(state: _Search, too_low: jax.Array, guess: jax.Array) -> _Search:
    """Moves to `guess`, or where that leaves the bracket, or is slow, to its geometric middle."""
    low = jnp.where(too_low, jnp.maximum(state.low, state.ridge), state.low)
    high = jnp.where(too_low, state.high, jnp.minimum(state.high, state.ridge))
    # A guess at an end of the bracket may lie outside it by rounding.
    inside = (guess >= low * (1 - 1e-9)) & (guess <= high * (1 + 1e-9))
    slow = (state.count >= 20) & (state.count % 2 == 0)
    middle = jnp.sqrt(jnp.maximum(low, 1e-8 * high) * high)
    ridge = jnp.where(inside & ~slow, guess, middle)
    step = jnp.abs(ridge - state.ridge)
    # Steps that small shrink quadratically; if they do not, it is rounding that moves them.
    noise = (step <= 1e-9 * ridge) & (2 * step >= state.step)
    settled = noise | (step <= 4 * jnp.finfo(ridge.dtype).eps * ridge)
    ridge = jnp.where(state.done, state.ridge, ridge)
    return _Search(ridge, low, high, step, state.done | settled, state.count + 1)


@effective_ridge.defjvp
def _implicit_derivative(primals, tangents):
    ridge = effective_ridge(*primals)

    def residual(ridge, eigenvalues_D, groups, width, level):
        return _residual(degrees(eigenvalues_D, ridge), ridge, groups, width, level)

    def at_ridge(*operands):
        return residual(ridge, *operands)

    _, moved = jax.jvp(at_ridge, primals, tangents)
    _, slope = jax.jvp(lambda r: residual(r, *primals), (ridge,), (jnp.ones_like(ridge),))
    return ridge, -moved / slope


def _residual(df: Degrees, ridge, groups: Groups, width, level) -> jax.Array:
    """Left side of the equation minus its right side."""
    value = ridge * left_weight(df.first, excess(groups.n, df, ridge), groups)
    if width is not None:
        value = value * excess(width, df, ridge) / width
    return value - level


def _too_low(df: Degrees, ridge, groups: Groups, width, level) -> jax.Array:
    """Whether the answer lies above: df1 exceeds n or m, or the left side is too small."""
    counts = groups.n if width is None else jnp.minimum(groups.n, width)
    return (excess(counts, df, ridge) < 0) | (_residual(df, ridge, groups, width, level) < 0)


def _next(df: Degrees, ridge, groups: Groups, width, level) -> jax.Array:
    """Solves the equation with both factors replaced by models that match value and slope.

    `1 - factor` (df1/n and df1/m where weights are equal) is modelled by `R s / (s + t)`. Because
    `1 / df1` is concave in t the model lies below df1 and the solution below the answer: the
    iteration then climbs to it from any start, quadratically, and for a covariance that is a
    multiple of the identity it arrives in one step.
    """
    explained = df.first / groups.n
    left = left_weight(df.first, excess(groups.n, df, ridge), groups)
    at_start = left_weight(jnp.zeros_like(ridge), groups.n, groups)
    fall = -_left_weight_slope(explained, left, groups) * df.slope / groups.n
    crossing, scale = _model(left / at_start, fall / at_start, ridge)
    level = level / at_start
    if width is None:
        return _quadratic(crossing, level, scale)
    spare = excess(width, df, ridge) / width
    return _cubic(crossing, scale, *_model(spare, df.slope / width, ridge), level)


def _model(factor, rise, ridge) -> tuple[jax.Array, jax.Array]:
    """Where the modelled factor `(t - crossing) / (t + scale)` vanishes, and its scale."""
    scale = (1 - factor) / jnp.where(rise > 0, rise, jnp.inf) - ridge
    scale = jnp.maximum(scale, jnp.finfo(ridge.dtype).tiny)
    return (1 - factor) * ridge - factor * scale, scale


def _left_weight_slope(explained, left, groups: Groups) -> jax.Array:
    """Derivative of `left_weight` with respect to y = df1/n."""
    real, synthetic = groups.weight_real, groups.weight_synthetic
    mean = (groups.n_real * real + groups.n_synthetic * synthetic) / groups.n
    numerator = real * synthetic * (1 - 2 * explained) - (real + synthetic) * left
    return numerator / (2 * left - mean + explained * (real + synthetic))


def _quadratic(crossing, level, scale) -> jax.Array:
    """Positive root of `t (t - crossing) = level (scale + t)`."""
    half = 0.5 * (crossing + level)
    product = level * scale
    root = jnp.sqrt(half * half + product)
    divisor = jnp.where(half < 0, root - half, 1.0)
    return jnp.where(half < 0, product / divisor, half + root)


def _cubic(first, first_scale, second, second_scale, level) -> jax.Array:
    """Largest root of `t (t - first) (t - second) = level (t + first_scale) (t + second_scale)`.

    By Newton's method for the logarithm, as a function of the logarithm of the distance from the
    largest root of the left side.
    """
    origin = jnp.maximum(jnp.maximum(first, second), 0.0)
    gaps = origin - first, origin - second
    tiny = jnp.finfo(level.dtype).tiny
    log_level = jnp.log(jnp.maximum(level, tiny))

    def improve(_, x):
        t = origin + x
        top, bottom = (t, gaps[0] + x, gaps[1] + x), (t + first_scale, t + second_scale)
        value = sum(jnp.log(a) for a in top) - sum(jnp.log(b) for b in bottom)
        slope = x * (sum(1 / a for a in top) - sum(1 / b for b in bottom))
        return jnp.maximum(x * jnp.exp((log_level - value) / slope), tiny)

    x = jax.lax.fori_loop(0, 12, improve, jnp.maximum(level, tiny))
    return origin + jnp.where(level > 0, x, 0.0)
