"""Corpora as flat token files: tokenised once, read through memory maps ever after.

A prepared corpus is the folder `<data_dir>/packed/<corpus>/<tokenizer>/` with, for each split,
`<split>.tokens` (little-endian uint16, or uint32 for more than 65,536 tokens; every document
followed by the separator), `<split>.ends.npy` (int64, where each document ends, separator
included), `<split>.bytes.npy` (int64, UTF-8 bytes of each document), `<split>.ids.jsonl` (one
JSON string a document), and `meta.json`, written last, with the SHA-256 of each of the others. In
a data directory of an object store they are the same, and each machine maps its own copy, see
`lmnoise.data.mirror`.
"""

import array
import contextlib
import dataclasses
import datetime
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath
from tqdm import tqdm

from lmnoise import storage
from lmnoise.data import mirror, user_files
from lmnoise.data.corpora import Corpus, open_corpus, require_known
from lmnoise.data.files import atomic_folder, locked, sha256_file
from lmnoise.data.names import CorpusName, Document
from lmnoise.data.splits import SPLITS
from lmnoise.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_slug
from lmnoise.errors import UserError

FORMAT = 1
META = "meta.json"
_CHUNK_CHARACTERS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Packed:
    """One split of a prepared corpus.

    tokens: (T,) uint16 or uint32 memory map. ends: (documents,) int64, the offset in `tokens`
    one past each document's separator. bytes: (documents,) int64, UTF-8 bytes of the text.
    bos_id: a token that every window begins with, in place of its own first; None for none.
    """

    name: str
    split: str
    tokens: np.ndarray
    ends: np.ndarray
    bytes: np.ndarray
    vocab_size: int
    eos_id: int
    tokenizer_fingerprint: str
    meta: dict[str, Any]
    folder: Path | None = None
    bos_id: int | None = None

    def __reduce__(self):
        # A worker process maps the file again; pickling the map would copy the whole corpus.
        if self.folder is None:
            return super().__reduce__()
        return _open_folder, (self.folder, self.split, self.bos_id)

    def ids(self) -> list[str]:
        """The document ids, in the order of `ends`."""
        lines = (self.folder / f"{self.split}.ids.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in lines.splitlines()]


def packed_folder(name: str, *, data_dir: epath.PathLike, tokenizer: str) -> Path:
    """Where the prepared corpus `name` under the tokenizer `tokenizer` lies."""
    data_dir = epath.Path(data_dir) if storage.is_remote(data_dir) else Path(data_dir)
    return data_dir / "packed" / CorpusName.parse(name).slug / tokenizer_slug(tokenizer)


def open_packed(
    name: str, split: str, *, data_dir: epath.PathLike, tokenizer: str, bos_id: int | None = None
) -> Packed:
    """One split of a corpus that `prepare` has packed; `bos_id` as in `Packed`.

    What lies in an object store is fetched to this machine on its first use, and verified.
    Raises UserError if the corpus is not prepared, half-prepared, or damaged.
    """
    folder = packed_folder(name, data_dir=data_dir, tokenizer=tokenizer)
    command = f"python -m lmnoise.data prepare {name} --data_dir={data_dir} --tokenizer={tokenizer}"
    if not folder.exists():
        raise UserError(f"{name} is not prepared with the tokenizer {tokenizer}: run `{command}`")
    if not (folder / META).exists():
        raise UserError(f"{folder} is half-prepared (it has no meta.json): run `{command}`")
    if storage.is_remote(folder):
        local_dir = mirror.local_data_dir(data_dir)
        local = packed_folder(name, data_dir=local_dir, tokenizer=tokenizer)
        meta = read_meta(folder)
        digests = {f"{s}.tokens": e["sha256"] for s, e in meta["splits"].items()}
        kinds = ("tokens", "ends.npy", "bytes.npy", "ids.jsonl")
        names = [f"{split}.{kind}" for kind in kinds] if f"{split}.tokens" in digests else []
        # Corpora that an earlier version prepared have no digests of the other files.
        mirror.fetch(folder, local, META, names, digests | meta.get("sha256", {}))
        folder = local
    return _open_folder(folder, split, bos_id)


def _open_folder(folder: Path, split: str, bos_id: int | None) -> Packed:
    meta = read_meta(folder)
    if split not in meta["splits"]:
        raise UserError(f"{meta['corpus']} has no split {split!r}: choose {', '.join(SPLITS)}")
    expected = meta["splits"][split]
    file = folder / f"{split}.tokens"
    dtype = np.dtype(meta["dtype"])
    size = file.stat().st_size if file.exists() else 0
    if size != expected["tokens"] * dtype.itemsize:
        raise UserError(
            f"{file} has {size} bytes where meta.json says {expected['tokens'] * dtype.itemsize}: "
            f"remove {folder} and prepare {meta['corpus']} again"
        )
    if expected["largest_token"] >= meta["vocab_size"]:
        raise UserError(
            f"{file} holds the token {expected['largest_token']}, but the vocabulary has "
            f"{meta['vocab_size']}: remove {folder} and prepare {meta['corpus']} again"
        )
    return Packed(
        name=meta["corpus"],
        split=split,
        tokens=np.memmap(file, dtype, mode="r"),
        ends=_load_array(folder / f"{split}.ends.npy", expected["documents"]),
        bytes=_load_array(folder / f"{split}.bytes.npy", expected["documents"]),
        vocab_size=meta["vocab_size"],
        eos_id=meta["eos_id"],
        tokenizer_fingerprint=meta["tokenizer"]["fingerprint"],
        meta=meta,
        folder=folder,
        bos_id=bos_id,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """The `meta.json` of a prepared folder; UserError if it cannot be read."""
    file = folder / META
    remedy = f"remove {folder} and prepare the corpus again"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({error}): {remedy}") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{file} is of another version of lmnoise: {remedy}")
    return meta


def _load_array(file: Path, documents: int) -> np.ndarray:
    try:
        loaded = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        loaded = np.zeros(0)
    if loaded.shape != (documents,):
        raise UserError(
            f"{file} is damaged (meta.json says {documents} documents): "
            f"remove {file.parent} and prepare the corpus again"
        )
    return loaded


def prepare(
    name: str, *, data_dir: epath.PathLike, tokenizer: str, on_decode_error: str = "error"
) -> dict[str, Any]:
    """Tokenises every split of a corpus and returns its `meta.json`; a second call does nothing.

    `name` may end in a text corruption (`sotu+markup`): the same documents in the same splits,
    corrupted before they are tokenised. `on_decode_error` says what to do with a user's file that
    is not UTF-8: 'error', 'skip' (the document) or 'replace' (the bytes, by U+FFFD).
    Raises UserError for an unknown or empty corpus, an unreadable file, or a corpus that was
    prepared from other files or with other options; nothing is left behind then.
    """
    if storage.is_remote(data_dir):
        return _prepare_remote(name, data_dir, tokenizer, on_decode_error)
    data_dir = Path(data_dir)
    corpus_name = CorpusName.parse(name)
    require_known(corpus_name.base)
    folder = packed_folder(name, data_dir=data_dir, tokenizer=tokenizer)
    with locked(folder):
        encoder = load_tokenizer(tokenizer, data_dir)
        head = {
            "format": FORMAT,
            "corpus": name,
            "tokenizer": {"spec": tokenizer, "fingerprint": encoder.fingerprint},
            "vocab_size": encoder.vocab_size,
            "eos_id": encoder.eos_id,
            "dtype": _dtype(encoder.vocab_size).str,
            "on_decode_error": on_decode_error,
        }
        if (folder / META).exists():
            return _already_prepared(folder, corpus_name, head)
        corpus = open_corpus(corpus_name.base, data_dir, on_decode_error)
        with atomic_folder(folder) as temporary:
            splits = _write_splits(temporary, corpus, corpus_name, encoder)
            others = [file for file in sorted(temporary.iterdir()) if file.suffix != ".tokens"]
            meta = head | {
                "source": corpus.provenance,
                "counts": dict(corpus.counts),
                "splits": splits,
                "sha256": {file.name: sha256_file(file) for file in others},
                "prepared": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            (temporary / META).write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def _prepare_remote(
    name: str, data_dir: epath.PathLike, tokenizer: str, on_decode_error: str
) -> dict[str, Any]:
    """Prepares a corpus on this machine and publishes it, unless it is prepared there already."""
    local_dir = mirror.local_data_dir(data_dir)
    remote = packed_folder(name, data_dir=data_dir, tokenizer=tokenizer)
    local = packed_folder(name, data_dir=local_dir, tokenizer=tokenizer)
    # One at a time on this machine, until it is published: a second one drops no files under it.
    with locked(local.with_name(f"{local.name}.published")):
        if (remote / META).exists():
            mirror.fetch(remote, local, META)
        else:
            with locked(local):
                shutil.rmtree(local, ignore_errors=True)
        load_tokenizer(tokenizer, data_dir)  # published too, or taken from there
        meta = prepare(
            name, data_dir=local_dir, tokenizer=tokenizer, on_decode_error=on_decode_error
        )
        mirror.publish(local, remote, META)
    return meta


def _already_prepared(folder: Path, name: CorpusName, head: dict[str, Any]) -> dict[str, Any]:
    meta = read_meta(folder)
    changed = [key for key in ("tokenizer", "on_decode_error") if meta[key] != head[key]]
    if name.is_path and _other_files(name.base, meta["source"]):
        changed.append("files")
    if changed:
        raise UserError(
            f"{folder} was prepared with another {' and other '.join(changed)}: "
            "remove that folder to prepare it again"
        )
    print(f"{meta['corpus']} is already prepared in {folder}")
    return meta


def _other_files(base: str, source: dict[str, Any]) -> bool:
    """Whether the files of a path hold something else; copied or touched ones are read to tell."""
    if user_files.fingerprint(base) == source["fingerprint"]:
        return False
    return user_files.UserFiles(base).sha256() != source["sha256"]


class _Writer:
    """Appends documents to the files of one split."""

    def __init__(self, tokens: IO[bytes], ids: IO[str], encoder: Tokenizer):
        self._tokens, self._ids, self._encoder = tokens, ids, encoder
        self._dtype = _dtype(encoder.vocab_size)
        self._digest = hashlib.sha256()
        self._ends, self._bytes = array.array("q"), array.array("q")
        self._largest = encoder.eos_id

    def write(self, document: Document, token_ids: list[int]) -> None:
        token_ids.append(self._encoder.eos_id)
        self._largest = max(self._largest, max(token_ids))
        content = np.array(token_ids, self._dtype).tobytes()
        self._tokens.write(content)
        self._digest.update(content)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(token_ids))
        self._bytes.append(len(document.text.encode()))
        self._ids.write(json.dumps(document.id) + "\n")

    def finish(self, folder: Path, split: str) -> dict[str, Any]:
        """Writes the arrays and returns the split's entry of `meta.json`."""
        for kind, values in (("ends", self._ends), ("bytes", self._bytes)):
            np.save(folder / f"{split}.{kind}.npy", np.array(values, np.int64))
        return {
            "documents": len(self._ends),
            "tokens": self._ends[-1] if self._ends else 0,
            "bytes": sum(self._bytes),
            "largest_token": self._largest,
            "sha256": self._digest.hexdigest(),
        }


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _write_splits(
    folder: Path, corpus: Corpus, name: CorpusName, encoder: Tokenizer
) -> dict[str, Any]:
    progress = tqdm(desc=f"prepare {name}", unit="B", unit_scale=True, disable=None)
    with contextlib.ExitStack() as stack, progress:
        writers = {}
        for split in SPLITS:
            tokens = stack.enter_context(open(folder / f"{split}.tokens", "wb"))
            ids = stack.enter_context(open(folder / f"{split}.ids.jsonl", "w", encoding="utf-8"))
            writers[split] = _Writer(tokens, ids, encoder)
        for chunk in _chunks(corpus.documents(), name):
            encoded = encoder.encode_batch([document.text for _, document in chunk])
            for (split, document), token_ids in zip(chunk, encoded, strict=True):
                writers[split].write(document, token_ids)
                progress.update(len(document.text))
        entries = {split: writer.finish(folder, split) for split, writer in writers.items()}
    for split, entry in entries.items():
        if not entry["documents"]:
            raise UserError(
                f"the {split} split of {name} is empty: the corpus needs more documents"
            )
    return entries


def _chunks(
    documents: Iterator[tuple[str, Document]], name: CorpusName
) -> Iterator[list[tuple[str, Document]]]:
    """Groups of documents of about `_CHUNK_CHARACTERS`, corrupted as `name` says."""
    chunk, characters = [], 0
    for split, document in documents:
        chunk.append((split, document._replace(text=name.corrupt(document))))
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
