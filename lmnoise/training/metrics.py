"""Metrics on disk: JSONL (the record), CSV (long form) and TensorBoard, one writer.

Every row of `metrics.jsonl` is an object with `step` and, unless it is an event, `member` and
named numbers; losses are in nats per token. `metrics.csv` has a line a number:
step,member,name,value.
"""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import tensorboardX

JSONL, CSV = "metrics.jsonl", "metrics.csv"


class MetricsWriter:
    """Appends rows to the files of a work directory.

    Args:
      folder: the work directory.
      step: the step that the run starts from; rows of later steps, written before a kill or a
        rollback, are dropped, so that a resumed run leaves the files of an uninterrupted one.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Drops the rows after `step` (events stay) and continues from there."""
        self.close()
        kept = [r for r in read_rows(self._folder) if "event" in r or r["step"] <= step]
        _replace(self._folder / JSONL, "".join(json.dumps(row) + "\n" for row in kept))
        _replace(self._folder / CSV, "step,member,name,value\n")
        self._jsonl = open(self._folder / JSONL, "a", encoding="utf-8")
        self._csv = open(self._folder / CSV, "a", encoding="utf-8", newline="")
        self._tensorboard: dict[int, tensorboardX.SummaryWriter] = {}
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
            self._board(row["member"]).add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        for file in (self._jsonl, self._csv, *self._tensorboard.values()):
            file.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if hasattr(self, "_jsonl"):
            for file in (self._jsonl, self._csv, *self._tensorboard.values()):
                file.close()

    def _write_csv(self, row: dict[str, Any]) -> None:
        writer = csv.writer(self._csv, lineterminator="\n")
        writer.writerows([row["step"], row["member"], n, repr(v)] for n, v in _numbers(row))

    def _board(self, member: int) -> tensorboardX.SummaryWriter:
        if member not in self._tensorboard:
            path = self._folder / "tensorboard" / f"member-{member:03d}"
            self._tensorboard[member] = tensorboardX.SummaryWriter(
                str(path), purge_step=self._purge
            )
        return self._tensorboard[member]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, oldest first; a last line cut short by a kill is left out."""
    path = Path(folder) / JSONL
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows


def _numbers(row: dict[str, Any]) -> list[tuple[str, float]]:
    if "member" not in row:
        return []
    return [(k, v) for k, v in row.items() if isinstance(v, float)]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
