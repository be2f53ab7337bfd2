"""Random tokens in pre-training: Proposition 1 of arXiv 2502.06604, in closed form.

A share `a` of the training sequences is noise. `p_c` and `p_n` are the geometric-mean
probabilities that a model trained on clean text gives to clean and to noise tokens, that is
exp(-loss) with the loss in nats per token. The proposition lets the model trade: giving up `e` of
clean probability buys `e/k` of noise probability, where `k` is the exchange rate. The loss on the
mixture is then

    F(e) = -(1 - a) log(p_c - e) - a log(p_n + e/k)

and everything here follows from `eta = a p_c - (1 - a) k p_n`, its exact minimiser where positive.

`mixture_optimum` is the other way to the same question: what a model that is free to give every
outcome any probability ends at, for distributions that are known.

All functions take numbers or arrays, broadcast, and compute in float64. Losses are in nats per
token. Every function raises ValueError for a share outside [0, 1), a probability outside (0, 1] or
an exchange rate that is not positive and finite.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmnoise.theory.arguments import require

Array = NDArray[np.float64]


class MixtureOptimum(NamedTuple):
    """The model of the lowest loss on a mixture.

    Attributes:
        probabilities: (..., V), of every outcome.
        clean_rise: (...), by how much its clean loss is above the clean distribution's entropy, in
            nats per outcome.
    """

    probabilities: Array
    clean_rise: Array


def threshold(p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike) -> Array:
    """Largest share of noise that leaves the optimum where it was: `k p_n / (p_c + k p_n)`.

    arXiv 2502.06604, Proposition 1, item 1.
    """
    p_clean, p_noise = _probability("p_clean", p_clean), _probability("p_noise", p_noise)
    bought = _exchange(exchange) * p_noise
    return bought / (p_clean + bought)


def minimiser(
    share: ArrayLike, p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike
) -> Array:
    """Clean probability that the mixture's optimum gives up: `max(0, a p_c - (1 - a) k p_n)`.

    The exact minimiser over `0 <= e < p_c` of `mixture_loss`. By item 2 of Proposition 1
    (arXiv 2502.06604) every `0 < e <` this value lowers the mixture loss.
    """
    return np.maximum(0.0, _eta(share, p_clean, p_noise, exchange))


def mixture_loss(
    e: ArrayLike, share: ArrayLike, p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike
) -> Array:
    """Loss on the mixture, `F(e)` of this module's docstring, in nats per token.

    Args:
        e: clean probability given up, `-k p_n < e < p_c`; ValueError outside.
        share, p_clean, p_noise, exchange: as in this module's docstring.
    """
    share, e = _share(share), np.asarray(e, np.float64)
    p_clean, p_noise = _probability("p_clean", p_clean), _probability("p_noise", p_noise)
    clean, noise = p_clean - e, p_noise + e / _exchange(exchange)
    require("e", e, (clean > 0) & (noise > 0), "between -exchange * p_noise and p_clean")
    return -(1 - share) * np.log(clean) - share * np.log(noise)


def clean_loss_rise(
    share: ArrayLike, p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike
) -> Array:
    """By how much the clean loss is higher at the mixture's optimum: `-log(1 - eta+ / p_c)`.

    In nats per token; zero up to `threshold`, never more than `largest_rise(share)`.
    """
    given_up = minimiser(share, p_clean, p_noise, exchange)
    return -np.log1p(-given_up / _probability("p_clean", p_clean))


def largest_rise(share: ArrayLike, length: ArrayLike = 1) -> Array:
    """The most that the optimum on the mixture gives up: `-log(1 - a) / S` nats per token.

    With `length` 1 it is the limit of `clean_loss_rise` for noise that the clean model finds
    impossible (`k p_n -> 0`): Proposition 1 judges every token on its own. Noise that comes as
    whole sequences of S tokens costs an unrestricted model less: the mixture itself gives every
    clean sequence at least `1 - a` times its clean probability, so the price of not knowing which
    kind of sequence it reads is paid once for S tokens. Both speak of the optimum: a model that
    is small or not trained to the end may lose more or less.

    Args:
        share: a, in [0, 1).
        length: S, tokens of a noise sequence.
    """
    length = np.asarray(length, np.float64)
    return -np.log1p(-_share(share)) / require("length", length, length >= 1, "at least 1")


def mixture_optimum(clean_V: ArrayLike, noise_V: ArrayLike, share: ArrayLike) -> MixtureOptimum:
    """The unrestricted optimum on `P_m = a P_n + (1 - a) P_c`: it is `P_m` itself.

    Its clean loss is higher than the best by `KL(P_c || P_m)`, at most `largest_rise(share)`,
    which is reached where no outcome is possible under both. For noise in whole sequences of S
    tokens the outcomes are the sequences, and the rise is that of S tokens.

    Args:
        clean_V, noise_V: P_c and P_n, (..., V) over the same outcomes; ValueError unless the last
            axis is not negative and sums to 1.
        share: a, (...).
    """
    clean_V, noise_V = _distribution("clean_V", clean_V), _distribution("noise_V", noise_V)
    if clean_V.shape[-1] != noise_V.shape[-1]:
        raise ValueError(
            f"clean_V {clean_V.shape} and noise_V {noise_V.shape} must be over the same outcomes"
        )
    share_1 = _share(share)[..., None]
    mixture_V = share_1 * noise_V + (1 - share_1) * clean_V
    ratio = np.where(clean_V > 0, clean_V, 1.0) / np.where(clean_V > 0, mixture_V, 1.0)
    return MixtureOptimum(mixture_V, np.sum(clean_V * np.log(ratio), axis=-1))


def harmless_bound(
    share: ArrayLike, p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike
) -> Array:
    """From which `e` on the mixture loss is higher than at `e = 0`: `max(0, 3 eta)`, else NaN.

    arXiv 2502.06604, Proposition 1, item 3, with the constant 3: any `e` beyond the value returned
    (at it too, where it is positive) raises the mixture loss, so no optimiser of that loss gives
    up so much. Holds, and is returned, where

        a < 1/3  and  k > a (1 - 3a) p_c / ((1 - a) (2 - 3a) p_n);

    NaN where a condition fails. With 2 eta in place of 3 eta the statement is false for a < 1/2.
    """
    share = _share(share)
    bound = 3 * minimiser(share, p_clean, p_noise, exchange)
    enough = share * (1 - 3 * share) * _probability("p_clean", p_clean)
    enough = enough / ((1 - share) * np.abs(2 - 3 * share) * _probability("p_noise", p_noise))
    return np.where((share < 1 / 3) & (_exchange(exchange) > enough), bound, np.nan)


def exchange_rate(
    p_clean: ArrayLike, p_noise: ArrayLike, p_clean_after: ArrayLike, p_noise_after: ArrayLike
) -> Array:
    """Measured exchange rate `k = (p_c - p_c') / (p_n' - p_n)` between two trained models.

    Args:
        p_clean, p_noise: of the model trained on clean text, exp(-loss in nats per token).
        p_clean_after, p_noise_after: of the model trained on the mixture.

    Returns:
        k, or NaN where nothing was traded: the clean probability did not fall, or the noise
        probability did not rise.
    """
    lost = _probability("p_clean", p_clean) - _probability("p_clean_after", p_clean_after)
    won = _probability("p_noise_after", p_noise_after) - _probability("p_noise", p_noise)
    traded = (lost > 0) & (won > 0)
    return np.where(traded, lost / np.where(traded, won, 1.0), np.nan)


def _eta(share: ArrayLike, p_clean: ArrayLike, p_noise: ArrayLike, exchange: ArrayLike) -> Array:
    share = _share(share)
    kept = (1 - share) * _exchange(exchange) * _probability("p_noise", p_noise)
    return share * _probability("p_clean", p_clean) - kept


def _share(value: ArrayLike) -> Array:
    value = np.asarray(value, np.float64)
    return require("share", value, (value >= 0) & (value < 1), "in [0, 1)")


def _probability(name: str, value: ArrayLike) -> Array:
    value = np.asarray(value, np.float64)
    return require(name, value, (value > 0) & (value <= 1), "in (0, 1]")


def _distribution(name: str, value: ArrayLike) -> Array:
    value = np.asarray(value, np.float64)
    if value.ndim == 0:
        raise ValueError(f"{name} must be a vector of probabilities, got {value}")
    allowed = (value >= 0).all(-1) & (np.abs(value.sum(-1) - 1) <= 1e-9)
    require(f"the sum of {name}", value.sum(-1), allowed, "1, of entries that are at least 0")
    return value


def _exchange(value: ArrayLike) -> Array:
    value = np.asarray(value, np.float64)
    return require("exchange", value, (value > 0) & np.isfinite(value), "positive and finite")
