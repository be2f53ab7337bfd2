"""Single parameters: what changing one number of a model does to its loss.

A scalar is one entry of one leaf. It is scaled, zeroed or drawn anew, and so are matched controls:
other entries of the same leaf with about the same magnitude, without which a large effect says
nothing about the candidate. All changes are members of one program, `new = factor * old + offset`
at an entry that is an argument of the program, so that one compilation serves every candidate,
every control and the scan over all norm weights.

Measured for norm weights on LLaMA-2 (arXiv 2402.14700) and for entries of a down projection
(arXiv 2411.07191); candidates come from `lmnoise.evaluation.activations`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmnoise import keys, tree
from lmnoise.evaluation import variants
from lmnoise.evaluation.language import Source, Sums, paired, summarise
from lmnoise.training.step import Loss

type Row = dict[str, Any]
type Measure = Callable[[Any, Sequence["Operation"]], list[Row]]


@dataclasses.dataclass(frozen=True)
class Scalar:
    """One entry of a leaf, such as `blocks/2/mlp/down/kernel` at (7, 12)."""

    leaf: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.leaf}[{','.join(map(str, self.index))}]"

    def value(self, params: Any) -> float:
        """What the entry is."""
        return float(np.asarray(_leaf(params, self.leaf))[self.index])


@dataclasses.dataclass(frozen=True)
class Operation:
    """One change of one scalar: `new = factor * old + offset`; `role` is for the reader."""

    scalar: Scalar
    kind: str
    factor: float
    offset: float = 0.0
    role: str = "candidate"


def scaled(scalar: Scalar, factor: float, role: str = "candidate") -> Operation:
    """The scalar times `factor`; 0 is called "zero"."""
    return Operation(scalar, f"scale {factor:g}" if factor else "zero", factor, role=role)


def operations(
    key: jax.Array,
    params: Any,
    scalar: Scalar,
    *,
    scales: Sequence[float] = (0.0, 0.1, 2.0, 10.0),
    draws: int = 3,
    role: str = "candidate",
) -> list[Operation]:
    """The changes of one scalar: each of `scales`, and `draws` normal draws.

    A draw has the mean and the standard deviation of the scalar's leaf and depends on the key,
    the scalar and its number alone.
    """
    leaf = np.asarray(_leaf(params, scalar.leaf), np.float64)
    own = keys.fold(key, "randomise", scalar.leaf, *scalar.index)
    normal = jax.vmap(jax.random.normal)(keys.row_keys(own, jnp.arange(draws)))
    values = leaf.mean() + leaf.std() * np.asarray(normal, np.float64)
    return [scaled(scalar, factor, role) for factor in scales] + [
        Operation(scalar, f"randomise {number}", 0.0, float(value), role)
        for number, value in enumerate(values)
    ]


def controls(
    key: jax.Array,
    params: Any,
    scalar: Scalar,
    count: int,
    *,
    share: float = 0.01,
    exclude: Collection[Scalar] = (),
) -> list[Scalar]:
    """Other entries of the same leaf with about the same magnitude, without repetition.

    Args:
      key: a draw depends on it and on the scalar.
      params: the parameters.
      scalar: never among its controls.
      count: how many.
      share: of the leaf's entries, the share that is nearest in rank of magnitude, from which
        controls are drawn (never fewer than `count` entries); 1 draws from the whole leaf. The
        largest entry of a leaf has only smaller ones, so the share should be small.
      exclude: more scalars that are no controls, such as the other candidates.

    Raises:
      ValueError: the leaf has too few entries.
    """
    leaf = np.asarray(_leaf(params, scalar.leaf))
    flat = _flat(scalar, leaf.shape)
    others = {_flat(other, leaf.shape) for other in exclude if other.leaf == scalar.leaf}
    order = np.argsort(np.abs(leaf), axis=None, kind="stable")
    rank = int(np.flatnonzero(order == flat)[0])
    kept = ~np.isin(order, [flat, *others])
    rank, order = int(kept[:rank].sum()), order[kept]
    if count > len(order):
        raise ValueError(f"count {count} exceeds the {len(order)} other entries of {scalar.leaf}")
    size = min(len(order), max(count, round(share * leaf.size)))
    start = min(max(0, rank - size // 2), len(order) - size)
    own = keys.fold(key, "controls", scalar.leaf, *scalar.index)
    drawn = np.asarray(jax.random.choice(own, size, (count,), replace=False))
    return [_scalar(scalar.leaf, order[start + d], leaf.shape) for d in drawn]


def trial(
    key: jax.Array,
    params: Any,
    scalar: Scalar,
    *,
    matched: int = 4,
    random: int = 2,
    exclude: Collection[Scalar] = (),
    **options: Any,
) -> list[Operation]:
    """All operations that confirm one candidate: on itself, on `matched` controls of its
    magnitude and on `random` entries of its leaf.

    Args:
      key, params, scalar, exclude: see `controls`.
      matched, random: how many of each; their operations have these words as `role`.
      **options: `scales` and `draws` of `operations`.
    """
    near = controls(key, params, scalar, matched, exclude=exclude)
    far = controls(
        keys.fold(key, "random"), params, scalar, random, share=1.0, exclude=[*exclude, *near]
    )
    roles = [("candidate", scalar), *(("matched", s) for s in near), *(("random", s) for s in far)]
    return [
        operation
        for role, one in roles
        for operation in operations(key, params, one, role=role, **options)
    ]


def change(leaves: Sequence[str]) -> Callable[[Any, Mapping[str, jax.Array], Any], Any]:
    """`change(params, member, extra)` for `variants.evaluator`: sets one entry of one leaf.

    A member is `leaf`, a number in `leaves`, `index`, flat in that leaf, both int32, and `factor`
    and `offset`, float32. Factor 1 and offset 0 change nothing, exactly.
    """
    numbers = {name: number for number, name in enumerate(leaves)}

    def apply(params, member, extra):
        del extra

        def set_entry(name, leaf):
            if name not in numbers:
                return leaf
            index = jnp.unravel_index(member["index"], leaf.shape)
            new = member["factor"] * leaf[index] + member["offset"]
            # In the other leaves the entry lies outside, where it is dropped.
            first = jnp.where(member["leaf"] == numbers[name], index[0], leaf.shape[0])
            return leaf.at[(first, *index[1:])].set(new, mode="drop")

        return tree.map_named(set_entry, params)

    return apply


def measurer(
    leaves: Sequence[str],
    loss: Loss,
    sources: Sequence[Source],
    *,
    mesh: Mesh,
    group: int = 0,
) -> Measure:
    """Builds `measure(params, operations) -> rows`, one program for any number of operations.

    Each call also scores the unchanged model, so that a call is complete in itself; make the
    operations of one candidate or of one layer a call. Place `params` on the devices before.

    A row has `scalar`, `leaf`, `index`, `operation`, `role`, `value`, `new`, `difference` (mean
    over the sources) and, for each source, `<source>/` with `loss` in nats per token, `baseline`
    (that of the unchanged model), `difference`, `standard_error` (of the difference, over
    documents) and `perplexity_ratio` (exp of the difference; inf where that overflows).

    Args:
      leaves: names of all leaves whose scalars will be measured; each is copied once a variant,
        so name no more than needed.
      loss, sources, mesh, group: see `variants.evaluator`.
    """
    leaves = tuple(dict.fromkeys(leaves))
    evaluate = variants.evaluator(change(leaves), loss, sources, mesh=mesh, group=group)

    def measure(params: Any, operations: Sequence[Operation]) -> list[Row]:
        by_name = dict(tree.named_leaves(params))
        shown = [_shown(by_name[one.scalar.leaf], one) for one in operations]
        # A broken model may have infinite losses, or finite ones whose exponential overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            sums = evaluate(params, members(leaves, params, operations))
            return [row | _effects(sums, number) for number, row in enumerate(shown, 1)]

    return measure


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows, largest rise of the loss first; a loss that is not a number comes before all."""
    return sorted(rows, key=lambda row: -np.nan_to_num(row["difference"], nan=np.inf))


def norm_leaves(params: Any) -> list[str]:
    """Names of the scales of all norms of the residual stream.

    The norms of queries and keys, which some classes have, are of other dimensions.
    """
    pattern = re.compile(r"(blocks/\d+/(attention|mlp)(_post)?_norm|final_norm)/scale")
    return [name for name, _ in tree.named_leaves(params) if pattern.fullmatch(name)]


def norm_scan(
    measure: Measure, params: Any, leaf: str, dimensions: Iterable[int], factor: float
) -> list[Row]:
    """The effect of weights of a norm, each alone multiplied by `factor`; a row a dimension.

    It costs an evaluation a weight, each a forward of all sources: .25 s for 256 tokens of a 135M
    model on two cores, so 2.5 minutes for the 576 weights of a norm.

    Args:
      measure: of a `measurer` for `norm_leaves(params)`: one program for all norms.
      params: the parameters.
      leaf: the norm's scale.
      dimensions: which of its weights, so that a long scan can be stored in parts.
      factor: 10 is what showed in arXiv 2402.14700; a weight at 0 stays there.
    """
    return measure(params, [scaled(Scalar(leaf, (d,)), factor) for d in dimensions])


def _leaf(params: Any, name: str) -> Any:
    for other, leaf in tree.named_leaves(params):
        if other == name:
            return leaf
    raise ValueError(f"the parameters have no leaf {name!r}")


def _flat(scalar: Scalar, shape: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(scalar.index, shape))


def _scalar(leaf: str, flat: int, shape: tuple[int, ...]) -> Scalar:
    return Scalar(leaf, tuple(int(i) for i in np.unravel_index(flat, shape)))


def members(
    leaves: Sequence[str], params: Any, operations: Sequence[Operation]
) -> dict[str, np.ndarray]:
    """The members of `change(leaves)`: number 0 changes nothing, the others are the operations.

    Raises:
      ValueError: a leaf that the parameters lack, or an operation on another leaf.
    """
    leaves, by_name = tuple(leaves), dict(tree.named_leaves(params))
    if missing := set(leaves) - by_name.keys():
        raise ValueError(f"the parameters have no leaf {min(missing)!r}")
    if unknown := {op.scalar.leaf for op in operations} - set(leaves):
        raise ValueError(f"the measurer was made for other leaves than {sorted(unknown)}")
    rows = [(0, 0, 1.0, 0.0)] + [
        (
            leaves.index(op.scalar.leaf),
            _flat(op.scalar, by_name[op.scalar.leaf].shape),
            op.factor,
            op.offset,
        )
        for op in operations
    ]
    types = {"leaf": np.int32, "index": np.int32, "factor": np.float32, "offset": np.float32}
    columns = zip(types.items(), zip(*rows, strict=True), strict=True)
    return {name: np.array(column, dtype) for (name, dtype), column in columns}


def _shown(leaf: Any, operation: Operation) -> Row:
    """The columns that say what was done."""
    scalar = operation.scalar
    value = float(np.asarray(leaf)[scalar.index])
    return {
        "scalar": str(scalar),
        "leaf": scalar.leaf,
        "index": scalar.index,
        "operation": operation.kind,
        "role": operation.role,
        "value": value,
        "new": operation.factor * value + operation.offset,
    }


def _effects(sums: Mapping[str, Sums], number: int) -> Row:
    """The columns of one member, against member 0."""
    row = {"difference": 0.0}
    for source, (losses_MD, counts_D, _) in sums.items():
        both = losses_MD[[0, number]]
        baseline, loss = summarise(both, counts_D, np.ones_like(counts_D))["loss"]
        difference, error = paired(both[1], both[0], counts_D)
        row["difference"] += difference / len(sums)
        row |= {
            f"{source}/loss": float(loss),
            f"{source}/baseline": float(baseline),
            f"{source}/difference": difference,
            f"{source}/standard_error": error,
            f"{source}/perplexity_ratio": float(np.exp(difference)),
        }
    return row
