"""Metrics on disk: JSONL (the record), CSV (long form) and TensorBoard, one writer.

Every row of `metrics.jsonl` is an object with `step` and, unless it is an event, `member` and
named numbers; losses are in nats per token. `metrics.csv` has a line a number:
step,member,name,value. Object stores cannot append: for a work directory there the files grow in
a temporary folder of this machine, and are uploaded whole.
"""

import csv
import json
import math
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lmnoise import storage
from lmnoise.errors import UserError

JSONL, CSV, BOARDS = "metrics.jsonl", "metrics.csv", "tensorboard"
UPLOAD_EVERY = 30  # seconds


class MetricsWriter:
    """Appends rows to the files of a work directory.

    Args:
      folder: the work directory, local or in an object store.
      step: the step that the run starts from; rows of later steps, written before a kill or a
        rollback, are dropped, so that a resumed run leaves the files of an uninterrupted one.
    """

    def __init__(self, folder: epath.PathLike, step: int):
        self._upload = _Upload(epath.Path(folder)) if storage.is_remote(folder) else None
        self._folder = self._upload.local if self._upload else Path(folder)
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Drops the rows after `step` (events stay) and continues from there."""
        self.close()
        kept = [r for r in read_rows(self._folder) if "event" in r or r["step"] <= step]
        _replace(self._folder / JSONL, "".join(json.dumps(row) + "\n" for row in kept))
        _replace(self._folder / CSV, "step,member,name,value\n")
        self._jsonl = (self._folder / JSONL).open("a", encoding="utf-8")
        self._csv = (self._folder / CSV).open("a", encoding="utf-8", newline="")
        self._boards: dict[int, _Board] = {}
        self._purge = step + 1
        for row in kept:
            self._write_csv(row)

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row; a number that is not finite is written as null."""
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self._jsonl.write(json.dumps(row) + "\n")
        self._write_csv(row)
        for name, value in _numbers(row):
            self._board(row["member"]).add(name, value, row["step"])

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        for file in (self._jsonl, self._csv, *self._boards.values()):
            file.flush()
        if self._upload and time.monotonic() >= self._upload.done + UPLOAD_EVERY:
            self._upload()

    def sync(self) -> None:
        """Makes what was written outlive this machine: call it before a checkpoint is saved.

        A run that resumes there then misses no row. `flush` uploads only now and then.
        """
        self.flush()
        if self._upload:
            self._upload()

    def close(self) -> None:
        """Flushes and closes the files, all of them even if one cannot be flushed."""
        if hasattr(self, "_jsonl"):
            with ExitStack() as stack:
                if self._upload:
                    stack.callback(self._upload)
                for file in (self._jsonl, self._csv, *self._boards.values()):
                    stack.callback(file.close)

    def _write_csv(self, row: dict[str, Any]) -> None:
        writer = csv.writer(self._csv, lineterminator="\n")
        writer.writerows([row["step"], row["member"], n, repr(v)] for n, v in _numbers(row))

    def _board(self, member: int) -> "_Board":
        if member not in self._boards:
            folder = self._folder / BOARDS / f"member-{member:03d}"
            self._boards[member] = _Board(folder, self._purge)
        return self._boards[member]


class _Upload:
    """Metrics of a work directory in an object store: a copy here, uploaded when it is called.

    Whole files, those that changed; each is replaced at once, so readers see no half of one.
    """

    def __init__(self, remote: epath.Path):
        self._remote, self.done = remote, -math.inf
        self._temporary = tempfile.TemporaryDirectory(prefix="lmnoise-metrics-")
        self.local = Path(self._temporary.name)
        for file in (remote / JSONL, *(remote / BOARDS).glob("*/*")):
            if file.exists():
                copy = self.local / file.relative_to(remote)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        self._uploaded = self._versions()

    def __call__(self) -> None:
        versions = self._versions()
        for file, version in versions.items():
            if version != self._uploaded.get(file):
                (self._remote / file.relative_to(self.local)).write_bytes(file.read_bytes())
        self._uploaded, self.done = versions, time.monotonic()

    def _versions(self) -> dict[Path, tuple[int, int]]:
        files = {file: file.stat() for file in self.local.rglob("*") if file.is_file()}
        return {file: (status.st_size, status.st_mtime_ns) for file, status in files.items()}


class _Board:
    """A TensorBoard event file, written where it is called.

    The library's own `SummaryWriter` hands the events to a thread, which dies of a full disk
    and then blocks the run for ever.
    """

    def __init__(self, folder: Path, purge: int):
        folder.mkdir(parents=True, exist_ok=True)
        # The name ends in the time in seconds; a number keeps two of one second apart.
        suffix = f".{len(list(folder.iterdir()))}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        # TensorBoard forgets what earlier files say of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge, session_log=start))
        self.flush, self.close = self._writer.flush, self._writer.close

    def add(self, name: str, value: float, step: int) -> None:
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self._writer.write_event(event)


def read_rows(folder: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, oldest first; a last line cut short by a kill is left out.

    Raises:
      UserError: another line is not JSON.
    """
    path = epath.Path(folder) / JSONL
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}, is not JSON: mend or remove that line"
            ) from None
    return rows


def _numbers(row: dict[str, Any]) -> list[tuple[str, float]]:
    if "member" not in row:
        return []
    return [(k, v) for k, v in row.items() if isinstance(v, float)]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
