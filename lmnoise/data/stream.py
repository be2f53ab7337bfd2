"""Batches by index: windows of a packed corpus, shuffled by a keyed permutation.

Batch k depends on the windows, the seed, the batch size and k, on any number of hosts, so a
run resumes with `batches(...)[step]`. Letters: R streams, B rows, S positions, T flat tokens.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from lmnoise.data.packing import Packed
from lmnoise.errors import UserError

Batch = dict[str, np.ndarray]


class Windows(grain.sources.RandomAccessDataSource):
    """The windows of `length` + 1 tokens of a packed split, `length` tokens apart.

    The last token of a window is the first of the next: every token but the split's first is a
    target once, except the up to `length` - 1 tokens left over at the end. Item i holds `tokens`
    and `document` (which document of the split each token belongs to), int32, (S + 1,).
    Raises UserError if the split is shorter than one window.
    """

    def __init__(self, packed: Packed, length: int):
        if length < 1:
            raise UserError(f"the window length must be at least 1, but it is {length}")
        self.packed = packed
        self.length = length
        self._count = (len(packed.tokens) - 1) // length
        if self._count < 1:
            raise UserError(
                f"the {packed.split} split of {packed.name} has {len(packed.tokens)} tokens, fewer "
                f"than one window of {length + 1}: shorten the window or take a larger corpus"
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._count:
            raise IndexError(f"window {index} of {self._count}")
        return {name: value[0] for name, value in self.gather(np.array([index])).items()}

    def __repr__(self) -> str:
        return f"Windows({self.packed.name!r}, {self.packed.split!r}, length={self.length})"

    def gather(self, index_B: np.ndarray) -> Batch:
        """The windows `index_B` (int, any order): `tokens` and `document`, int32, (B, S + 1)."""
        start_B = index_B.astype(np.int64) * self.length
        position_BS = start_B[:, None] + np.arange(self.length + 1)
        tokens_BS = np.asarray(self.packed.tokens)[position_BS].astype(np.int32)
        if self.packed.bos_id is not None:
            tokens_BS[:, 0] = self.packed.bos_id
        document_BS = np.searchsorted(self.packed.ends, position_BS, side="right")
        return {"tokens": tokens_BS, "document": document_BS.astype(np.int32)}


class _Batches(grain.MapDataset):
    """Rows [first, first + rows) of each global batch, one stream of window numbers a seed."""

    def __init__(
        self,
        streams: Sequence[grain.MapDataset],
        sources: Sequence[Windows],
        *,
        batch_size: int,
        first: int,
        rows: int,
    ):
        super().__init__(streams)
        self._sources = sources
        self._starts = np.cumsum([0] + [len(source) for source in sources])
        self._batch_size = batch_size
        self._first = first
        self._rows = rows

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        begin = index * self._batch_size + self._first
        window_N = np.array(
            [stream[i] for stream in self.parents for i in range(begin, begin + self._rows)]
        )
        source_N = np.searchsorted(self._starts, window_N, side="right") - 1
        window_N -= self._starts[source_N]
        shape = (len(self.parents), self._rows)
        batch = self._gather(source_N, window_N)
        batch = {name: value.reshape(*shape, -1) for name, value in batch.items()}
        return batch | {"source": source_N.astype(np.int32).reshape(shape)}

    def _gather(self, source_N: np.ndarray, window_N: np.ndarray) -> Batch:
        if len(self._sources) == 1:
            return self._sources[0].gather(window_N)
        shape = (len(window_N), self._sources[0].length + 1)
        batch = {name: np.empty(shape, np.int32) for name in ("tokens", "document")}
        for s in np.unique(source_N):
            chosen_N = source_N == s
            for name, value in self._sources[s].gather(window_N[chosen_N]).items():
                batch[name][chosen_N] = value
        return batch


def batches(
    sources: Windows | Sequence[Windows],
    *,
    seeds: Sequence[int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    weights: Sequence[float] | None = None,
) -> grain.MapDataset:
    """An endless, randomly accessible sequence of batches: one shuffled stream for each seed.

    Element k holds `tokens` and `document` (see `Windows`), int32, (R, b, S + 1), and `source`
    (which of `sources` a row comes from), int32, (R, b), with R = len(seeds) and
    b = batch_size / process_count: this process gets rows [process_index * b, ... + b) of the
    global batch, so joining the processes' rows gives the same batch for any process_count.
    Each stream permutes the windows anew every epoch, keyed by its seed.

    Several sources are interleaved in the proportions `weights` (by default their numbers of
    windows), each with its own permutation and epochs; a source of weight 0 is never drawn.

    Raises UserError if the batch does not divide over the processes, or if the sources differ
    in window length or tokenizer.
    """
    sources = [sources] if isinstance(sources, Windows) else list(sources)
    weights = [len(source) for source in sources] if weights is None else list(weights)
    _check(sources, seeds, batch_size, process_count, weights)
    rows = batch_size // process_count
    return _Batches(
        [_stream(sources, weights, seed) for seed in seeds],
        sources,
        batch_size=batch_size,
        first=process_index * rows,
        rows=rows,
    )


def keyed_order(start: int, stop: int, name: str) -> grain.MapDataset:
    """The numbers from `start` up to `stop`, again and again, each epoch in an order of its own.

    Args:
      name: the orders depend on it alone.
    """
    # Hashed because grain permutes epoch e with seed + e: seeds 0 and 1 would share their epochs
    # 1 and 0.
    key = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return grain.MapDataset.range(start, stop).shuffle(seed=int.from_bytes(key, "little")).repeat()


class Beginnings:
    """Runs of `size` tokens from inside the documents of a split, in a keyed order.

    They do not overlap, and none holds a separator; all come once before one comes again. Called
    with numbers (B,), it gives the runs of these numbers, int32, (B, size), the same for any
    other numbers beside them. The order depends on `name` alone. Raises UserError if no document
    is long enough.
    """

    def __init__(self, packed: Packed, size: int, name: str):
        whole = np.ones(len(packed.tokens) // size, bool)
        ended = (packed.ends - 1) // size  # the runs with a separator
        whole[ended[ended < len(whole)]] = False
        self._starts = size * np.flatnonzero(whole)
        if not self._starts.size:
            raise UserError(
                f"no document of {packed.name} has {size} tokens in a row to begin with: take fewer"
            )
        self._tokens, self._size = packed.tokens, size
        self._order = keyed_order(0, len(self._starts), name)

    def __call__(self, number_B: np.ndarray) -> np.ndarray:
        start_B = self._starts[[self._order[int(number)] for number in number_B]]
        position_BK = start_B[:, None] + np.arange(self._size)
        return np.asarray(self._tokens)[position_BK].astype(np.int32)


def _stream(sources: Sequence[Windows], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Window numbers, counted over all sources one after the other, without end."""
    parts, start = [], 0
    for i, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        if weight > 0:
            parts.append(keyed_order(start, start + len(source), f"{seed}/{i}"))
        start += len(source)
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, [weight for weight in weights if weight > 0])


def _check(
    sources: Sequence[Windows],
    seeds: Sequence[int],
    batch_size: int,
    process_count: int,
    weights: Sequence[float],
) -> None:
    if not sources or not seeds:
        raise UserError("batches need at least one source and one seed")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"the batch size {batch_size} does not divide over {process_count} processes: "
            f"choose a multiple of {process_count}"
        )
    if len(weights) != len(sources) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(
            f"{len(sources)} sources need as many weights, none negative and not all 0, "
            f"but the weights are {list(weights)}"
        )
    for source in sources[1:]:
        if source.length != sources[0].length:
            raise UserError("all sources of a mixture need the same window length")
        if source.packed.tokenizer_fingerprint != sources[0].packed.tokenizer_fingerprint:
            raise UserError(
                f"{sources[0].packed.name} and {source.packed.name} are packed with different "
                "tokenizers: prepare both with the same --tokenizer"
            )


def evaluation_batches(
    packed: Packed, length: int, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Every window of a split once, in order, in batches of one shape.

    Yields `tokens` and `document`, int32, (B, S + 1), and `weights`, float32, (B, S): 1 for a
    target to score, 0 in the rows that fill up the last batch. With a `limit`, only that many
    windows, evenly spread over the split, so that they come from all its documents.
    """
    windows = Windows(packed, length)
    count = len(windows) if limit is None else min(limit, len(windows))
    chosen_N = np.arange(count) * len(windows) // count
    for begin in range(0, count, batch_size):
        position_B = np.arange(begin, begin + batch_size)
        real_B = position_B < count
        batch = windows.gather(chosen_N[np.where(real_B, position_B, count - 1)])
        weights_BS = np.repeat(real_B.astype(np.float32)[:, None], length, axis=1)
        yield batch | {"weights": weights_BS}
