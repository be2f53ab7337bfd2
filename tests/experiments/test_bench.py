"""The benchmark end to end at a tiny shape, its protocol against small workers, its arithmetic."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"
sys.path.insert(0, str(BENCH))

import bench_report  # noqa: E402
import protocol  # noqa: E402

from lmnoise.errors import UserError  # noqa: E402

_spec = importlib.util.spec_from_file_location("bench_train", BENCH / "train.py")
bench_train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench_train)


def bench(*arguments, expect=0):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, str(BENCH / "train.py"), "--shapes=tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == expect, done.stderr
    return done


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_without_a_peer(tmp_path):
    contenders = "--contenders=run-bf16,population-f32"
    bench("--rounds=2", "--members=2", f"--out={tmp_path}", contenders)
    speed = rows_of(tmp_path / "tiny-speed.csv")
    assert [(row["contender"], row["operands"]) for row in speed] == [
        ("lmnoise, one run", "bf16"),
        ("lmnoise, 2 members", "f32"),
    ]
    assert {row["MFU"] for row in speed} == {"unknown"}
    rounds = rows_of(tmp_path / "rounds.csv")
    assert [int(row["round"]) for row in rounds] == [0, 1, 0, 1]
    for row in rounds:
        members = 2 if "members" in row["contender"] else 1
        tokens = int(row["steps"]) * members * 4 * 16
        assert float(row["tokens/s"]) == pytest.approx(tokens / float(row["seconds"]))
        # Of uniform tokens the loss stays near log 65.
        assert float(row["last loss"]) == pytest.approx(4.17, abs=0.2)
    assert "| lmnoise, 2 members | f32 |" in (tmp_path / "report.md").read_text()


def test_a_peer_without_torch_is_left_out(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = bench(
        "--rounds=1",
        f"--out={tmp_path}",
        f"--peer_python={bare}",
        f"--peer_model={BENCH / 'nanogpt_worker.py'}",
        "--contenders=product-f32,nanogpt-f32",
    )
    assert "nanoGPT (PyTorch) with f32 left out: its interpreter" in done.stderr
    assert "lacks torch." in (tmp_path / "report.md").read_text()
    (product,) = rows_of(tmp_path / "tiny-speed.csv")
    assert product["contender"] == "matrix product (XLA)"
    assert float(product["TFLOP/s"]) > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shapes": ["huge"]}, "--shapes: 'huge' is not one of tiny, small, large"),
        ({"shapes": []}, "--shapes is empty"),
        ({"contenders": ["run"]}, "--contenders: 'run' is not one of product-f32"),
        ({"contenders": ["nanogpt-f32"]}, "needs --peer_python and --peer_model"),
        ({"peer_model": "model.py"}, "--peer_python and --peer_model go together"),
        ({"peer_python": "/no/python", "peer_model": "x"}, "/no/python is no program"),
        ({"peer_python": "/", "peer_model": "x"}, "/ is no program"),
        ({"peer_python": sys.executable, "peer_model": "no.py"}, "there is no file no.py"),
    ],
)
def test_flags_that_do_not_fit(changes, sentence):
    flags = dict(shapes=["tiny"], contenders=[], members=2, peer_python=None, peer_model=None)
    with pytest.raises(UserError, match=re.escape(sentence)):
        bench_train.check(SimpleNamespace(**(flags | changes)))


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("--rounds=0", "rounds"), ("--rouns=1", "rouns"), ("tiny", "--name=value")],
)
def test_a_command_line_that_cannot_be_read(argument, sentence):
    error = bench(argument, expect=2).stderr.strip()
    assert error.startswith("error: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


WORKER = """
import sys
sys.path.insert(0, {bench!r})
import protocol

class Contender:
    facts = {{"parameters": 3}}
    def __init__(self, spec):
        print("a model that talks")
        self.steps = 0
        {build}
    def advance(self, steps):
        self.steps += steps
        return float(self.steps)
    def memory(self):
        return protocol.resident_peak()

protocol.serve(Contender)
"""


def worker(tmp_path, build="pass"):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bench=str(BENCH), build=build))
    return protocol.Worker([sys.executable, "-S", str(script)], {"dispatch": 2}, {})


def test_protocol(tmp_path):
    started = worker(tmp_path)
    assert started.facts == {"parameters": 3}
    assert started.first_step > started.compile >= 0
    # Two dispatches of two steps come first.
    assert [started.run(5)["loss"], started.run(1)["loss"]] == [9.0, 10.0]
    assert 2**20 < started.memory < 2**30
    started.close()


@pytest.mark.parametrize(
    ("build", "kind", "sentence"),
    [
        ("raise protocol.Missing('no torch')", protocol.Missing, "no torch"),
        ("raise protocol.Refused('no GPT')", protocol.Refused, "no GPT"),
        ("raise ValueError('a bug')", protocol.Refused, "(?s)a model that talks.*a bug"),
        ("sys.exit()", protocol.Refused, "instead of an answer"),
    ],
)
def test_a_worker_that_cannot_take_part(tmp_path, build, kind, sentence):
    with pytest.raises(kind, match=sentence) as raised:
        worker(tmp_path, build)
    assert raised.type is kind


def test_a_program_that_is_no_worker():
    with pytest.raises(protocol.Refused, match="does not start"):
        protocol.Worker(["/no/program"], {}, {})
    with pytest.raises(protocol.Refused, match="said\nhello"):
        protocol.Worker(["echo", "hello"], {}, {})


def result(kind, members, steps, seconds, **facts):
    contender = bench_report.Contender(kind, "f32", members, 1, steps)
    facts = {"parameters": 10, "device": "chip", "versions": {}} | facts
    done = SimpleNamespace(facts=facts, memory=2**20, compile=1.0, first_step=2.0, idle_cpu=0.0)
    turns = [{"seconds": s, "cpu": s, "others": s / 2, "loss": 4.0} for s in seconds]
    return bench_report.Result(contender, done, turns)


SHAPE = bench_report.Shape(layers=1, width=8, heads=1, length=5, batch=2, dispatch=1, steps=1)


def test_ratios_are_of_the_same_round():
    """30 tokens a second of two members against 10, with the machine at half speed in round 2."""
    ours = result("lmnoise", 2, 3, [2.0, 4.0, 1.0], flops_per_token=1e12, peak_flops=60e12)
    peer = result("nanogpt", 1, 1, [1.0, 2.0, 1.0], flops_per_token=1e12)
    product = result("product", 0, 5, [1.0, 1.0, 1.0], flops_per_step=12e12, peak_flops=60e12)
    table = bench_report.speed_table(SHAPE, [product, ours, peer], "test")
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    ratios = [row["times nanoGPT f32 (min to max)"] for row in rows]
    assert ratios == ["", "3.00 (3.00 to 6.00)", "1.00 (1.00 to 1.00)"]
    assert [row["tokens/s"] for row in rows] == ["", "30", "10"]
    assert [row["tokens/s a member"] for row in rows] == ["", "15", "10"]
    assert [row["MFU"] for row in rows] == ["100.0%", "50.0%", "16.7%"]
    assert [row["of matrix product"] for row in rows] == ["", "50%", "17%"]


def test_crowding_is_a_share_of_all_cores():
    results = [result("lmnoise", 1, 1, [1.0, 3.0]), result("nanogpt", 1, 1, [4.0])]
    assert bench_report.crowding(results, cores=2) == 0.25


def test_another_model_is_no_peer(tmp_path):
    ours = result("lmnoise", 1, 1, [1.0], flops_per_token=1.0)
    peer = result("nanogpt", 1, 1, [1.0], flops_per_token=1.0, parameters=11)
    with pytest.raises(UserError, match="10 and 11 parameters"):
        bench_report.write(tmp_path, {"test": (SHAPE, [ours, peer])}, [], {}, {})


def test_messages_are_json(tmp_path):
    """What the worker prints itself goes to its log, not between the answers."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(bench=str(BENCH), build="pass"))
    lines = f"{json.dumps({'dispatch': 1})}\n{json.dumps({'steps': 1})}\n"
    done = subprocess.run(
        [sys.executable, str(script)], input=lines, capture_output=True, text=True
    )
    assert [sorted(json.loads(line)) for line in done.stdout.splitlines()] == [
        ["first"],
        ["compile", "facts", "memory"],
        ["cpu", "idle_cpu", "loss", "memory", "seconds"],
    ]
    assert "a model that talks" in done.stderr
