"""Metrics on disk: what a kill, a rollback and a full disk leave behind."""

import csv
import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from lmnoise.errors import UserError
from lmnoise.training.metrics import MetricsWriter, read_rows


def row(step, member=0, **numbers):
    return {"step": step, "member": member} | (numbers or {"loss": float(step)})


def fill(folder, steps=range(1, 6)):
    writer = MetricsWriter(folder, 0)
    for step in steps:
        writer.write(row(step))
    return writer


def csv_rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.reader(file))


def events(folder, member=0):
    """(step, name, value) of all files of a member, what was purged left out."""
    found = []
    files = sorted((folder / "tensorboard" / f"member-{member:03d}").iterdir(), key=order)
    for file in files:
        content, offset = file.read_bytes(), 0
        while offset < len(content):
            size = int.from_bytes(content[offset : offset + 8], "little")
            event = Event.FromString(content[offset + 12 : offset + 12 + size])
            offset += 12 + size + 4
            if event.HasField("session_log"):
                found = [e for e in found if e[0] < event.step]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def order(file):
    return int(file.name.split(".")[-1])


def test_all_three_files_say_the_same(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    rows = [row(1, 0, loss=1.5, **{"eval/x/loss": 0.1}), row(1, 1, loss=0.25)]
    for r in rows:
        writer.write(r)
    writer.flush()
    assert read_rows(tmp_path) == rows
    assert csv_rows(tmp_path) == [
        ["step", "member", "name", "value"],
        ["1", "0", "loss", "1.5"],
        ["1", "0", "eval/x/loss", "0.1"],
        ["1", "1", "loss", "0.25"],
    ]
    assert [e[1:] for e in events(tmp_path, 1)] == [("loss", 0.25)]
    assert [e[1] for e in events(tmp_path, 0)] == ["loss", "eval/x/loss"]
    writer.close()


def test_numbers_that_are_not_finite_become_null(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(row(1, loss=float("nan"), other=2.0, more=float("inf")))
    writer.close()
    assert read_rows(tmp_path) == [row(1, loss=None, other=2.0, more=None)]
    assert csv_rows(tmp_path)[1:] == [["1", "0", "other", "2.0"]]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    fill(tmp_path).close()
    writer = MetricsWriter(tmp_path, 3)
    assert read_rows(tmp_path) == [row(1), row(2), row(3)]
    writer.write(row(4, loss=40.0))
    writer.close()
    assert read_rows(tmp_path)[3:] == [row(4, loss=40.0)]
    assert [line[3] for line in csv_rows(tmp_path)[1:]] == ["1.0", "2.0", "3.0", "40.0"]
    assert [e[2] for e in events(tmp_path)] == [1.0, 2.0, 3.0, 40.0]


def test_a_rollback_keeps_events(tmp_path):
    writer = fill(tmp_path)
    writer.write({"step": 4, "event": "rollback"})
    writer.rewind(2)
    writer.write(row(3))
    writer.close()
    assert read_rows(tmp_path) == [row(1), row(2), {"step": 4, "event": "rollback"}, row(3)]
    assert [e[0] for e in events(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 6, "mem', b'{"step": 6', b"\x00\x00\x00\n", b"\xff"])
def test_a_last_line_cut_short_is_forgotten(tmp_path, tail):
    fill(tmp_path).close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert len(read_rows(tmp_path)) == 5
    MetricsWriter(tmp_path, 9).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(step) for step in range(1, 6)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    fill(tmp_path).close()
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace('{"step": 2', '{"step; 2'))
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2, is not JSON"):
        MetricsWriter(tmp_path, 9)
    assert file.read_bytes() == before


def test_closing_closes_all_files_even_if_one_fails(tmp_path, monkeypatch):
    writer = fill(tmp_path)
    files = writer._jsonl, writer._csv

    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._boards[0], "close", fail)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert all(file.closed for file in files)
