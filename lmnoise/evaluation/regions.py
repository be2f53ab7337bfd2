"""Regions: which entries of each tensor carry a language, how they overlap and where they lie.

Two rules of importance (arXiv 2310.14928 and 2402.14700): the change during continued
pre-training, whose core are the entries that change least, and the first-order Taylor term, whose
core is the top. A region is a mask, a pytree of NumPy bool arrays like the parameters, selected
tensor by tensor, so that every tensor gives the same share of its entries.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from tqdm import tqdm

from lmnoise import keys, tree

type Params = Any
type Importance = Any
type Mask = Any

# The blocks' attention, MLP and norms; no embeddings, positions, head or final norm.
CORE: tree.Table = ((r"blocks/.*", True), (r".*", False))
ENDS = ("top", "bottom")


# ---- importance ---------------------------------------------------------------------------------


def taylor(
    loss: Callable[[Params, dict[str, Any], jax.Array], jax.Array],
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    title: str = "taylor",
) -> Importance:
    """`|theta * gradient|` of each entry, NumPy float32, in nats (arXiv 2402.14700).

    The gradient is that of the sum of all losses times their weights; the absolute value comes
    after the sum. So it grows with the number of tokens: languages that are to count alike need
    batches of as many.

    Args:
      loss: `loss(params, batch, key) -> loss_BS`.
      params: float32 arrays, on the host or a device.
      batches: of one shape, with `weights` broadcastable to the loss.
      title: of the progress bar.
    """
    accumulate, importance = _taylor_programs(loss)
    params = jax.device_put(params)
    total = jax.tree.map(jnp.zeros_like, params)
    for batch in tqdm(batches, desc=title, unit="batch"):
        total = accumulate(total, params, batch)
    return jax.device_get(importance(total, params))


@functools.lru_cache(maxsize=1)
def _taylor_programs(loss: Callable[..., jax.Array]) -> tuple[Callable, Callable]:
    """`accumulate` and `importance`, compiled once for all languages."""

    @functools.partial(jax.jit, donate_argnums=0)
    def accumulate(total, params, batch):
        def weighted(params):
            losses = loss(params, batch, jax.random.key(0))
            return (losses * jnp.broadcast_to(batch["weights"], losses.shape)).sum()

        return jax.tree.map(jnp.add, total, jax.grad(weighted)(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def importance(total, params):
        return jax.tree.map(lambda g, p: jnp.abs(g * p), total, params)

    return accumulate, importance


def change(before: Params, after: Params) -> Importance:
    """`|after - before|` of each entry, NumPy float32 (arXiv 2310.14928)."""
    return jax.tree.map(
        lambda b, a: np.abs(np.subtract(a, b, dtype=np.float32)),
        *(jax.device_get(params) for params in (before, after)),
    )


def add(importances: Iterable[Importance]) -> Importance:
    """The sum over languages; holds one tree besides what the iterable holds.

    Raises:
      ValueError: there is none.
    """
    importances = iter(importances)
    first = next(importances, None)
    if first is None:
        raise ValueError("importances is empty")
    total = jax.tree.map(np.array, first)
    for importance in importances:
        jax.tree.map(lambda t, i: np.add(t, i, out=t), total, importance)
    return total


# ---- selection ----------------------------------------------------------------------------------


def count(share: float, size: int) -> int:
    """Entries that a share of a tensor has: the nearest integer, halves down.

    So the top and the bottom half never overlap.

    Raises:
      ValueError: `share` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], not {share}")
    return max(0, math.ceil(share * size - 0.5))


def select(importance: Importance, share: float, end: str, table: tree.Table = CORE) -> Mask:
    """The `count(share, size)` entries of each tensor at the top or the bottom of its importance.

    Of equal entries the earlier stands higher: the top takes it first and the bottom last.

    Args:
      importance: arrays like the parameters.
      share: of each tensor, in [0, 1].
      end: "top" or "bottom".
      table: which leaves take part, by path pattern; of the others nothing is selected.

    Raises:
      ValueError: an argument out of range, or an importance that is not a number.
    """
    if end not in ENDS:
        raise ValueError(f"end must be one of {ENDS}, not {end!r}")

    def of_leaf(name, leaf):
        values = np.asarray(leaf)
        if not tree.lookup(table, name):
            return np.zeros(values.shape, bool)
        if np.isnan(values).any():
            raise ValueError(f"the importance of {name} has entries that are not a number")
        return _highest(values, count(share, values.size), bottom=end == "bottom")

    return tree.map_named(of_leaf, importance)


def random(key: jax.Array, like: Any, share: float, table: tree.Table = CORE) -> Mask:
    """As many entries of each tensor as `select` takes, drawn without replacement.

    The draw depends on the key and the leaf's name alone; a larger share contains a smaller one.
    """

    def of_leaf(name, leaf):
        if not tree.lookup(table, name):
            return np.zeros(leaf.shape, bool)
        bits = jax.random.bits(keys.fold(key, "region", name), leaf.shape, jnp.uint32)
        return _highest(np.asarray(bits), count(share, bits.size), bottom=False)

    return tree.map_named(of_leaf, like)


def _highest(values: np.ndarray, entries: int, *, bottom: bool) -> np.ndarray:
    """The first, or the last, entries in the order of falling values, then of position."""
    flat = values.reshape(-1)
    if entries in (0, flat.size):
        return np.full(values.shape, entries > 0)
    rank = entries - 1 if bottom else flat.size - entries
    limit = np.partition(flat, rank)[rank]
    chosen = flat < limit if bottom else flat > limit
    ties = np.flatnonzero(flat == limit)
    missing = entries - np.count_nonzero(chosen)
    chosen[ties[len(ties) - missing :] if bottom else ties[:missing]] = True
    return chosen.reshape(values.shape)


def minus(mask: Mask, other: Mask) -> Mask:
    """Entries of `mask` that `other` lacks."""
    return jax.tree.map(lambda a, b: a & ~b, mask, other)


def union(*masks: Mask) -> Mask:
    """Entries that any of the masks has."""
    return jax.tree.map(lambda *leaves: np.logical_or.reduce(leaves), *masks)


def monolingual(cores: Mapping[str, Mask], language: str) -> Mask:
    """The core of one language without the cores of all the others (arXiv 2402.14700).

    Args:
      cores: of at least two languages, by name, each selected by its own importance.
      language: one of them.
    """
    return minus(cores[language], union(*(c for name, c in cores.items() if name != language)))


# ---- overlap and concentration ------------------------------------------------------------------


class Overlap(NamedTuple):
    """Entries that both masks have over those that either has; nan if neither has any.

    `expected` is that of two independent random masks with as many entries in each tensor: the
    ratio of the two expectations, which is exact for large tensors.
    """

    jaccard: float
    expected: float


def jaccard(mask: Mask, other: Mask) -> tuple[Overlap, dict[str, Overlap]]:
    """The overlap over all tensors, and that of each tensor in which either mask has an entry."""
    both, either, chance = {}, {}, {}
    for (name, a), b in zip(tree.named_leaves(mask), jax.tree.leaves(other), strict=True):
        entries, others = np.count_nonzero(a), np.count_nonzero(b)
        if entries or others:
            both[name] = np.count_nonzero(a & b)
            either[name] = entries + others - both[name]
            chance[name] = entries * others / a.size

    def overlap(names):
        shared, seen, by_chance = (sum(d[n] for n in names) for d in (both, either, chance))
        if not seen:
            return Overlap(math.nan, math.nan)
        return Overlap(float(shared / seen), float(by_chance / (seen + shared - by_chance)))

    return overlap(both), {name: overlap([name]) for name in both}


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of non-negative counts (n,): 0 if all are equal, (n-1)/n if one has all.

    nan if all are zero.
    """
    counts = np.sort(np.asarray(counts, np.float64))
    size, total = len(counts), counts.sum()
    if total == 0:
        return math.nan
    return float((2 * np.arange(1, size + 1) - size - 1) @ counts / (size * total))


def random_gini(rows: int, columns: int, entries: int) -> float:
    """Expected Gini coefficient of the counts per row if the entries are drawn at random.

    Of `rows * columns` places `entries` are drawn without replacement. Exactly, the coefficient is
    then `(rows - 1) E|a - b| / (2 entries)` for the counts a, b of two rows. Given their sum t,
    a is hypergeometric around t/2, and its mean deviation follows from the probability p of the
    next integer m above t/2 alone: `E|a - b| = 2 m (columns - t + m) p / columns`.
    """
    if entries == 0:
        return math.nan
    if rows == 1:
        return 0.0
    share = entries / (rows * columns)
    centre, spread = 2 * columns * share, math.sqrt(2 * columns * share * (1 - share))
    # What lies further out has no weight, in the long tail of small numbers neither.
    reach = math.ceil(12 * spread) + 40
    largest = min(2 * columns, entries, math.ceil(centre) + reach)
    sum_T = np.arange(max(0, math.floor(centre) - reach), largest + 1)
    next_T = sum_T // 2 + 1
    mass_T = stats.hypergeom.pmf(next_T, 2 * columns, columns, sum_T)
    deviation_T = 2 * next_T * (columns - sum_T + next_T) / columns * mass_T
    chance_T = stats.hypergeom.pmf(sum_T, rows * columns, 2 * columns, entries)
    return float((rows - 1) * (chance_T @ deviation_T) / (2 * entries))


class Concentration(NamedTuple):
    """How a region's entries spread over one dimension of a tensor.

    `counts` (n,) int64, their Gini coefficient, and the one to expect of as many random entries.
    """

    counts: np.ndarray
    gini: float
    expected: float


def concentration(mask: Mask) -> dict[str, dict[str, Concentration]]:
    """By name of each two-dimensional tensor with an entry: `row` and `column`.

    Kernels are (in, out): a row is an input dimension and a column an output dimension. (In
    PyTorch, and so in figures of the papers, it is the other way round.)
    """
    found = {}
    for name, leaf in tree.named_leaves(mask):
        entries = np.count_nonzero(leaf)
        if leaf.ndim == 2 and entries:
            rows, columns = leaf.shape
            found[name] = {
                "row": _spread(leaf.sum(1), columns, entries),
                "column": _spread(leaf.sum(0), rows, entries),
            }
    return found


def _spread(counts: np.ndarray, places: int, entries: int) -> Concentration:
    return Concentration(counts, gini(counts), random_gini(len(counts), places, entries))
