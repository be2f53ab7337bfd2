"""Candidates for single parameters that matter, from the activations of a few batches.

Massive activations (arXiv 2402.17762) are entries of the residual stream thousands of times
larger than the rest, in the same few dimensions for any text. Super weights (arXiv 2411.07191)
are single entries of a down projection that make them: the input channel and the output channel
of the projection both spike. Thresholds in magnitude belong to one model, so everything here is
ranked by ratios. `lmnoise.evaluation.parameters` tests the candidates.

Letters: L layers, D width, F MLP width, B rows, S positions, N = B*S.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmnoise import tree
from lmnoise.evaluation.parameters import Scalar, norm_leaves
from lmnoise.models.transformer import LanguageModel

type Batches = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Massive:
    """The residual stream after each block.

    Attributes:
      largest_LD: the largest magnitude of each dimension over all tokens, float32.
      position_LD: the position in its window of the token that has it, int.
      median_L: the median magnitude over tokens and dimensions; over several batches, the mean of
        their medians.
    """

    largest_LD: np.ndarray
    position_LD: np.ndarray
    median_L: np.ndarray

    @property
    def ratio_LD(self) -> np.ndarray:
        """Largest magnitude over the layer's median; arXiv 2402.17762 calls 1,000 massive."""
        return self.largest_LD / self.median_L[:, None]

    def dimensions(self, count: int) -> list[dict[str, Any]]:
        """The `count` dimensions of the largest ratio in any layer, largest first.

        Each has `dimension`, `ratio` and, where that is largest, `layer`, `largest`, `median` and
        `position`; `first_layer` and `last_layer` are those with half its largest magnitude.
        """
        ratio_LD, rows = self.ratio_LD, []
        for d in np.argsort(-ratio_LD.max(0), kind="stable")[:count]:
            layer = int(ratio_LD[:, d].argmax())
            high = np.flatnonzero(self.largest_LD[:, d] >= self.largest_LD[:, d].max() / 2)
            rows.append(
                {
                    "dimension": int(d),
                    "ratio": float(ratio_LD[layer, d]),
                    "layer": layer,
                    "largest": float(self.largest_LD[layer, d]),
                    "median": float(self.median_L[layer]),
                    "position": int(self.position_LD[layer, d]),
                    "first_layer": int(high[0]),
                    "last_layer": int(high[-1]),
                }
            )
        return rows


def massive(model: LanguageModel, params: Any, batches: Batches) -> Massive:
    """Measures the residual stream after each block.

    Args:
      model: the decoder.
      params: its parameters.
      batches: `tokens` (B, S+1) int32; the last token of a row is a target and not read.

    Raises:
      ValueError: no batch.
    """
    params = jax.tree.map(jnp.asarray, params)
    found = []
    for batch in batches:
        tokens_BS = batch["tokens"][:, :-1]
        largest, token, median = jax.device_get(_residual(model, params, tokens_BS)["output"])
        found.append((largest, token % tokens_BS.shape[1], median))
    if not found:
        raise ValueError("batches must hold at least one batch")
    largest_KLD, position_KLD, median_KL = (np.stack(values) for values in zip(*found, strict=True))
    best_1LD = largest_KLD.argmax(0)[None]
    return Massive(
        largest_LD=np.take_along_axis(largest_KLD, best_1LD, 0)[0],
        position_LD=np.take_along_axis(position_KLD, best_1LD, 0)[0],
        median_L=median_KL.mean(0),
    )


def norm_candidates(params: Any, dimensions: Iterable[int]) -> list[Scalar]:
    """The norm weights that multiply these dimensions of the residual stream, in every layer.

    The scales of each block's norms and of the final one: those before the layer where a
    dimension grows take part in making it, those behind it keep it small.
    """
    return [Scalar(name, (int(d),)) for d in dimensions for name in norm_leaves(params)]


@dataclasses.dataclass(frozen=True)
class Spikes:
    """The down projection of each layer, arrays (L,).

    Attributes:
      row, column: its input and output channel of the largest magnitude over all tokens.
      largest_input, largest_output: that magnitude.
      input_ratio, output_ratio: over the median of the largest magnitudes of all channels.
    """

    row: np.ndarray
    column: np.ndarray
    largest_input: np.ndarray
    largest_output: np.ndarray
    input_ratio: np.ndarray
    output_ratio: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """The lower of both ratios: high where input and output spike."""
        return np.minimum(self.input_ratio, self.output_ratio)


def spikes(model: LanguageModel, params: Any, batches: Batches) -> Spikes:
    """Measures the input and output of every down projection; arguments as of `massive`."""
    params = jax.tree.map(jnp.asarray, params)
    found = [
        jax.device_get(_projection(model, params, batch["tokens"][:, :-1])) for batch in batches
    ]
    if not found:
        raise ValueError("batches must hold at least one batch")
    input_LF, output_LD = (
        np.max([one[point] for one in found], 0) for point in ("mlp/hidden", "mlp/output")
    )
    return Spikes(
        row=input_LF.argmax(1),
        column=output_LD.argmax(1),
        largest_input=input_LF.max(1),
        largest_output=output_LD.max(1),
        input_ratio=input_LF.max(1) / np.median(input_LF, 1),
        output_ratio=output_LD.max(1) / np.median(output_LD, 1),
    )


def super_weights(
    model: LanguageModel, params: Any, batches: Batches, count: int
) -> list[dict[str, Any]]:
    """Candidates for super weights, in the order in which they were found.

    The entry of the down projection, at the row and the column that spike, of the layer with the
    highest `Spikes.score`; it is set to zero and the next one is sought in what remains, as a
    later spike may only follow from the first (arXiv 2411.07191).

    Args:
      model, params, batches: see `massive`; `count` forwards of all batches.
      count: how many.

    Returns:
      Dicts of `scalar`, `layer`, `value`, `score`, `largest_input`, `input_ratio`,
      `largest_output`, `output_ratio` and `share`: |value| times the largest input over the
      largest output, which is 1 where this entry alone makes the spike. Fewer than `count` if
      every layer's entry was found before.
    """
    params = jax.tree.map(jnp.asarray, params)
    found = {}
    for _ in range(count):
        seen = spikes(model, params, batches)
        new = [
            (layer, scalar)
            for layer in np.argsort(-seen.score, kind="stable")
            if (scalar := _entry(seen, int(layer))) not in found
        ]
        if not new:
            break
        layer, scalar = new[0]
        value = scalar.value(params)
        found[scalar] = {
            "scalar": scalar,
            "layer": int(layer),
            "value": value,
            "score": float(seen.score[layer]),
            "largest_input": float(seen.largest_input[layer]),
            "input_ratio": float(seen.input_ratio[layer]),
            "largest_output": float(seen.largest_output[layer]),
            "output_ratio": float(seen.output_ratio[layer]),
            "share": abs(value) * float(seen.largest_input[layer] / seen.largest_output[layer]),
        }
        params = _without(params, scalar)
    return list(found.values())


def _entry(seen: Spikes, layer: int) -> Scalar:
    index = int(seen.row[layer]), int(seen.column[layer])
    return Scalar(f"blocks/{layer}/mlp/down/kernel", index)


def _without(params: Any, scalar: Scalar) -> Any:
    """The parameters with the scalar at zero."""
    return tree.map_named(
        lambda name, leaf: leaf.at[scalar.index].set(0.0) if name == scalar.leaf else leaf, params
    )


@functools.partial(jax.jit, static_argnums=0)
def _residual(model, params, tokens_BS):
    def keep(point, value_ND):
        if point != "output":
            return ()
        size_ND = jnp.abs(value_ND)
        return size_ND.max(0), size_ND.argmax(0), jnp.median(size_ND)

    return model.observe(params, tokens_BS, keep)


@functools.partial(jax.jit, static_argnums=0)
def _projection(model, params, tokens_BS):
    def keep(point, value_ND):
        return jnp.abs(value_ND).max(0) if point in ("mlp/hidden", "mlp/output") else ()

    return model.observe(params, tokens_BS, keep)
