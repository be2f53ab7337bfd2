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

from lmnoise.theory.collapse.spectrum import Degrees, Groups, degrees, excess, left_weight, rank

MAX_ITERATIONS = 200


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
      The ridge (N,), to rounding.
    """
    counts = groups.n if width is None else jnp.minimum(groups.n, width)
    trace = eigenvalues_D.sum()
    lightest = jnp.minimum(groups.weight_real, groups.weight_synthetic)
    high = level / lightest + trace / groups.n + (0.0 if width is None else trace / width)
    state = _start(eigenvalues_D, groups, width, level, high)
    # Where the answer is 0 the iteration need not run.
    zero = (level == 0) & (counts >= rank(eigenvalues_D))
    state = state._replace(ridge=jnp.where(zero, 0.0, state.ridge), done=zero)

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


def _start(eigenvalues_D, groups: Groups, width, level, high) -> _Search:
    """A first place and bracket for each of N settings.

    For many settings the equation is first solved on degrees of freedom that are interpolated
    between N/4 ridges. That leaves one or two iterations on the spectrum itself.
    """
    zeros = jnp.zeros_like(level)
    unknown = jnp.full_like(level, jnp.inf)
    search = _Search(zeros, zeros, high, unknown, zeros > 0, jnp.zeros((), int))
    nodes = level.size // 4
    if nodes < 64:
        return search
    heaviest = jnp.maximum(groups.weight_real, groups.weight_synthetic)
    low = jnp.min(jnp.where(level > 0, level / heaviest, jnp.inf))
    top = jnp.max(high)
    table_K = jnp.geomspace(jnp.clip(low, 1e-16 * top, 1e-4 * top), top, nodes)
    df_K = degrees(eigenvalues_D, table_K)
    below, above = _cell(table_K, df_K, groups, width, level)
    left = jnp.clip(below, 0, nodes - 2)
    ends = table_K[left], table_K[left + 1]

    def refine(_, ridge):
        df = _interpolated(df_K, left, ends, ridge)
        return jnp.clip(_next(df, ridge, groups, width, level), *ends)

    ridge = jax.lax.fori_loop(0, 4, refine, ends[0])
    within = (below >= 0) & (above < nodes)
    return search._replace(
        ridge=jnp.where(within, ridge, 0.0),
        low=jnp.where(below >= 0, ends[0], 0.0),
        high=jnp.where(above < nodes, table_K[jnp.minimum(above, nodes - 1)], high),
        step=jnp.where(within, ends[1] - ends[0], jnp.inf),
    )


def _cell(table_K, df_K: Degrees, groups: Groups, width, level) -> tuple[jax.Array, jax.Array]:
    """The neighbouring nodes between which each answer lies; -1 and K stand for beyond the ends."""

    def halve(_, ends):
        below, above = ends
        middle = (below + above) // 2
        node = jnp.maximum(middle, 0)
        df = Degrees(*(field_K[node] for field_K in df_K[:-1]), df_K.rank)
        too_low = _too_low(df, table_K[node], groups, width, level)
        apart = above - below > 1
        below = jnp.where(apart & too_low, middle, below)
        return below, jnp.where(apart & ~too_low, middle, above)

    ends = jnp.full(level.shape, -1), jnp.full(level.shape, table_K.size)
    return jax.lax.fori_loop(0, table_K.size.bit_length() + 1, halve, ends)


def _interpolated(df_K: Degrees, left, ends, ridge) -> Degrees:
    """Degrees of freedom at `ridge`, by Hermite's cubic in its logarithm between two nodes."""
    span = jnp.log(ends[1] / ends[0])
    x = jnp.log(ridge / ends[0]) / span
    start, rise = df_K.first[left], df_K.first[left + 1] - df_K.first[left]
    bend = -span * df_K.lost[left] - rise, -span * df_K.lost[left + 1] - rise
    first = start + x * rise + x * (1 - x) * ((1 - x) * bend[0] - x * bend[1])
    slope = rise + (1 - x) * (1 - 3 * x) * bend[0] - x * (2 - 3 * x) * bend[1]
    lost = jnp.maximum(-slope / span, 0.0)
    complement = (df_K.rank - first) / ridge
    return Degrees(first, first - lost, lost, lost / ridge, complement, df_K.rank)


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
    # Small steps shrink quadratically; if they do not, it is rounding that moves them.
    noise = (step <= 1e-9 * ridge) & (2 * step >= state.step)
    quadratic = (step <= 1e-9 * ridge) & (step <= 1e-3 * state.step) & jnp.isfinite(state.step)
    settled = noise | quadratic | (step <= 4 * jnp.finfo(ridge.dtype).eps * ridge)
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
        return quadratic(crossing, level, scale)
    spare = excess(width, df, ridge) / width
    return _cubic(ridge, crossing, scale, *_model(spare, df.slope / width, ridge), level)


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


def quadratic(crossing, level, scale) -> jax.Array:
    """Positive root of `t (t - crossing) = level (scale + t)`."""
    half = 0.5 * (crossing + level)
    product = level * scale
    root = jnp.hypot(half, jnp.sqrt(product))
    divisor = jnp.where(half < 0, root - half, 1.0)
    return jnp.where(half < 0, product / divisor, half + root)


def _cubic(near, first, first_scale, second, second_scale, level) -> jax.Array:
    """Largest root of `t (t - first) (t - second) = level (t + first_scale) (t + second_scale)`.

    By a few steps of Newton's method from `near`, for the logarithm as a function of the logarithm
    of the distance from the largest root of the left side.
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

    start = jnp.where(near > origin, near - origin, jnp.maximum(level, tiny))
    x = jax.lax.fori_loop(0, 6, improve, start)
    return origin + jnp.where(level > 0, x, 0.0)
