"""A user's own text: a .txt, .jsonl or .parquet file, or a folder of them.

In a folder every .txt file is one document; a .txt file named by itself is cut at blank lines
into documents of 2,000 characters or more. A .jsonl line is an object whose key `text` holds the
document, a .parquet file has a string column `text`; `PATH#KEY` reads another key or column. The
key `label` of a .jsonl line, a string or a whole number, is the document's class.
Files are streamed; nothing is copied.
"""

import collections
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from lmnoise.data.names import Document
from lmnoise.errors import UserError

ON_DECODE_ERROR = ("error", "skip", "replace")
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_MIN_CHARACTERS = 2_000


class _Undecodable(Exception):
    """A document that is to be skipped."""


class UserFiles:
    """The documents of a path, in the order of the sorted file names.

    `path` is the file or folder. `counts` says how many documents the latest pass skipped or
    mended because of bytes that are not UTF-8 (see `on_decode_error`), and how many were blank.
    """

    def __init__(self, base: str, on_decode_error: str = "error"):
        if on_decode_error not in ON_DECODE_ERROR:
            raise UserError(
                f"on_decode_error must be one of {', '.join(ON_DECODE_ERROR)}, "
                f"not {on_decode_error!r}"
            )
        self.path, self._key = _parse(base)
        self._files = _files(self.path)
        self._on_decode_error = on_decode_error
        self.counts = collections.Counter()

    def sha256(self) -> str:
        """SHA-256 over the contents of all files, in order."""
        digest = hashlib.sha256()
        size = sum(file.stat().st_size for file in self._files)
        with tqdm(total=size, desc="sha256", unit="B", unit_scale=True, disable=None) as progress:
            for file in self._files:
                with open(file, "rb") as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
                        progress.update(len(chunk))
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Every document that is not blank; ids are `file`, `file#block` or `file#line`."""
        self.counts.clear()
        for file in self._files:
            readers = {".jsonl": self._read_jsonl, ".parquet": self._read_parquet}
            whole = self._read_whole if self.path.is_dir() else self._read_blocks
            name = file.relative_to(self.path) if self.path.is_dir() else Path(file.name)
            for suffix, text, *label in readers.get(file.suffix, whole)(file):
                if text.strip():
                    yield Document(f"{name.as_posix()}{suffix}", text, *label)
                else:
                    self.counts["blank"] += 1

    def _read_whole(self, file: Path) -> Iterator[tuple[str, str]]:
        try:
            text = self._decode(file.read_bytes(), file, 0)
        except _Undecodable:
            return
        yield "", text.removeprefix("\ufeff").replace("\r\n", "\n")

    def _read_blocks(self, file: Path) -> Iterator[tuple[str, str]]:
        lines, block, offset, skip = [], 0, 0, False
        with open(file, "rb") as stream:
            for raw in stream:
                try:
                    line = self._decode(raw, file, offset).replace("\r\n", "\n")
                except _Undecodable:
                    line, skip = "\n", True
                line = line.removeprefix("\ufeff") if offset == 0 else line
                offset += len(raw)
                lines.append(line)
                if not line.strip() and sum(map(len, lines)) >= _MIN_CHARACTERS:
                    if not skip:
                        yield f"#{block}", "".join(lines)
                    lines, block, skip = [], block + 1, False
        if lines and not skip:
            yield f"#{block}", "".join(lines)

    def _read_jsonl(self, file: Path) -> Iterator[tuple[str, str, str]]:
        offset = 0
        with open(file, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    yield f"#{number}", *self._json_fields(raw, file, number, offset)
                except _Undecodable:
                    pass
                offset += len(raw)

    def _json_fields(self, raw: bytes, file: Path, number: int, offset: int) -> tuple[str, str]:
        line = self._decode(raw, file, offset).removeprefix("\ufeff")
        if not line.strip():
            return "", ""
        try:
            fields = json.loads(line)
            text, label = fields[self._key], fields.get("label")
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}); mend the line") from None
        except (KeyError, TypeError, IndexError):
            text = None
        if not isinstance(text, str):
            raise UserError(
                f"{file}, line {number}: no string under the key {self._key!r}; "
                f"name the key of the text as {file.name}#KEY"
            )
        # A lone surrogate, "\ud800", is valid JSON but not text.
        text = self._decode(text.encode("utf-8", "surrogatepass"), file, offset)
        return text, str(label) if isinstance(label, str | int) else ""

    def _read_parquet(self, file: Path) -> Iterator[tuple[str, str]]:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            kind = table.schema_arrow.field(self._key).type
        except (pyarrow.ArrowInvalid, KeyError) as error:
            raise UserError(
                f"{file} has no column {self._key!r} or is no parquet file ({error}); "
                f"name the column of the text as {file.name}#KEY"
            ) from None
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{file}: the column {self._key!r} holds {kind}, not strings")
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[self._key]):
            # As bytes: pyarrow does not check that strings are UTF-8 before it converts them.
            column = batch.column(0).cast(pyarrow.large_binary())
            for value in column:
                try:
                    yield f"#{row}", self._decode(value.as_py() or b"", file, None, f"row {row}")
                except _Undecodable:
                    pass
                row += 1

    def _decode(self, raw: bytes, file: Path, offset: int | None, where: str = "") -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self._on_decode_error == "error":
                where = where or f"byte {offset + error.start}"
                raise UserError(
                    f"{file} is not UTF-8 at {where}: convert it, or choose "
                    "--on_decode_error=skip or =replace"
                ) from None
            if self._on_decode_error == "skip":
                self.counts["skipped"] += 1
                raise _Undecodable from None
            self.counts["replaced"] += 1
            return raw.decode(errors="replace")


def fingerprint(base: str) -> str:
    """SHA-256 over names, sizes and modification times: whether the files have changed since."""
    path, _ = _parse(base)
    digest = hashlib.sha256()
    for file in _files(path):
        status = file.stat()
        name = os.path.relpath(file, path)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _parse(base: str) -> tuple[Path, str]:
    path, _, key = base.partition("#")
    return Path(path).expanduser(), key or "text"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a .txt, .jsonl or .parquet file or a folder")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(f"{path} holds no .txt, .jsonl or .parquet file")
    return files
