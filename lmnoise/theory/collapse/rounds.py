"""Training again and again on what the last model wrote: closed forms.

Ridgeless regression with more samples than dimensions, where the covariance does not matter. In
iterative mixing every round fits n1 real and n2 synthetic samples, which the previous model
labels (arXiv 2410.04840, section 5); alternatives replace or accumulate the data of all rounds
(arXiv 2404.01413), or weight the two parts (arXiv 2509.22341). Everything is in float64.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lmnoise.theory.arguments import broadcast, checked, in_float64, not_negative, positive
from lmnoise.theory.collapse.formulas import ridge
from lmnoise.theory.collapse.monte_carlo import check_counts


@in_float64
def fresh_rounds(
    rounds: ArrayLike,
    *,
    size: int,
    n_real: ArrayLike,
    n_synthetic: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    start: ArrayLike,
    weight_real: ArrayLike = 1.0,
    weight_synthetic: ArrayLike = 1.0,
) -> jax.Array:
    """Error after `rounds` of iterative mixing with new real and new synthetic inputs each time.

    Theorem 1 with the last round's error as the quality c^2 gives `E_t = v + g E_{t-1}`; without
    weights g = p2^2 + p1 p2 u and v = s^2 u, u = r/(1-r), r = D/n. To first order in r that is
    `E_t = p2^2 E_{t-1} + s^2 r`.

    Args:
      rounds: t >= 0; infinity is not allowed, but any large number gives the limit v/(1-g).
      size: D, below n_real + n_synthetic.
      start: error of the model that labels the first round.

    Raises:
      ValueError: an argument out of its range, or too few samples.
    """
    check_counts(size=size)
    n = sum(
        broadcast(
            n_real=not_negative("n_real", n_real),
            n_synthetic=not_negative("n_synthetic", n_synthetic),
        ).values()
    )
    checked("n_real + n_synthetic", n, lambda x: x > size, f"above size = {size}")
    one, zero = jnp.ones(size), jnp.zeros(size)
    errors = ridge(
        one,
        zero,
        one / size,
        n_real=n_real,
        n_synthetic=n_synthetic,
        noise_real=noise_real,
        noise_synthetic=noise_synthetic,
        penalty=0.0,
        weight_real=weight_real,
        weight_synthetic=weight_synthetic,
    )
    values = broadcast(
        rounds=not_negative("rounds", rounds),
        start=not_negative("start", start),
        new=errors.variance,
        kept=errors.collapse,
    )
    t, start, new, kept = values.values()
    # Without real samples the last error is kept whole, and each round adds its own.
    whole = jnp.abs(kept - 1) < 1e-12
    series = jnp.where(whole, t, (1 - kept**t) / jnp.where(whole, 1.0, 1 - kept))
    return new * series + kept**t * start


@in_float64
def same_data_rounds(
    rounds: ArrayLike,
    *,
    size: int,
    n_real: ArrayLike,
    n_synthetic: ArrayLike,
    noise_real: ArrayLike,
    noise_synthetic: ArrayLike,
    start: ArrayLike,
) -> jax.Array:
    """Error after `rounds` with the same real samples each time, to first order in D/n.

        E_0 [p2^(2t) + r p1 p2^(2t-1) (t p1 + (2 t^2 - t) p2)]
            + (1 - p2^t)^2 s1^2 D/n1 + p2 s2^2 r (1 - p2^(2t)) / (1 - p2^2),    r = D/n

    Synthetic inputs and labels are new in every round. The models tend to the fit of the real
    part alone, plus the noise of the labels: no number of rounds makes synthetic data add to what
    the real part knows. Derived here; the start's term in brackets counts how the fluctuations
    that the rounds share add up, and needs t^2 D/n to be small.
    """
    check_counts(size=size)
    values = broadcast(
        t=not_negative("rounds", rounds),
        n_real=positive("n_real", n_real),
        n_synthetic=not_negative("n_synthetic", n_synthetic),
        noise_real=not_negative("noise_real", noise_real),
        noise_synthetic=not_negative("noise_synthetic", noise_synthetic),
        start=not_negative("start", start),
    )
    t, n_real, n_synthetic, noise_real, noise_synthetic, start = values.values()
    n = n_real + n_synthetic
    p1, p2, r = n_real / n, n_synthetic / n, size / n
    shared = r * p1 * p2 ** jnp.maximum(2 * t - 1, 0) * (t * p1 + (2 * t**2 - t) * p2)
    real = noise_real**2 * size / n_real * (1 - p2**t) ** 2
    labels = noise_synthetic**2 * p2 * r * (1 - p2 ** (2 * t)) / (1 - p2**2)
    return (p2 ** (2 * t) + shared) * start + real + labels


@in_float64
def generation_factor(generations: ArrayLike, *, accumulate: bool) -> jax.Array:
    """Error after that many generations of training on one's own output, over that after one.

    Each generation labels n new inputs for the next. Replacing all data the error grows linearly;
    accumulating them it is `sum_{i <= t} 1/i^2 <= pi^2/6` (arXiv 2404.01413, Theorem 1), to first
    order in D/n.

    Args:
      generations: t, integers of at least 1.
    """
    t = checked("generations", generations, lambda x: (x >= 1) & (x % 1 == 0), "integers from 1")
    return math.pi**2 / 6 - jax.scipy.special.zeta(2.0, t + 1) if accumulate else t


@in_float64
def relabelling_limit(real_share: ArrayLike, noise_ratio: ArrayLike = 1.0) -> jax.Array:
    """Limit error of weighted relabelling over that of the real data of one round alone.

    Each round mixes a fit of fresh real data, weight a, with one of data that the last model
    labelled: `(a^2 + q (1-a)^2) / (1 - (1-a)^2)`, to first order in D/n (arXiv 2509.22341).

    Args:
      real_share: a, above 0 and at most 1.
      noise_ratio: q, variance of a fit to synthetic labels over that of a fit to real ones: 1 for
        as many labels with as much noise.
    """
    a, q = broadcast(
        real_share=checked("real_share", real_share, lambda x: (x > 0) & (x <= 1), "in (0, 1]"),
        noise_ratio=not_negative("noise_ratio", noise_ratio),
    ).values()
    return (a**2 + q * (1 - a) ** 2) / (a * (2 - a))


@in_float64
def best_real_share(noise_ratio: ArrayLike = 1.0) -> jax.Array:
    """The share with the least `relabelling_limit`, which there equals the share itself.

    The positive root of `a^2 = q (1 - a)`; for q = 1 the golden ratio's (sqrt(5) - 1)/2.
    """
    q = not_negative("noise_ratio", noise_ratio)
    return 2 / (1 + jnp.sqrt(1 + 4 / q))
