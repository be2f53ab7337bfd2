"""The benchmark of fine-tuning end to end at a tiny shape, and its arithmetic."""

import csv
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmnoise.errors import UserError
from lmnoise.training.optimizer import OptimizerConfig, schedule

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"
sys.path.insert(0, str(BENCH))

import bench_report  # noqa: E402
import finetune_nanogpt_worker  # noqa: E402
import finetune_worker  # noqa: E402
from contenders import SHAPES  # noqa: E402

_spec = importlib.util.spec_from_file_location("bench_finetune", BENCH / "finetune.py")
bench_finetune = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench_finetune)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_end_to_end(tmp_path):
    """With a peer whose interpreter lacks torch."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    flags = ["--shapes=tiny", "--steps=3", "--rates=2", "--rounds=2", "--heldout_batches=1"]
    flags += [f"--peer_python={bare}", f"--peer_model={BENCH / 'nanogpt_worker.py'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, str(BENCH / "finetune.py"), *flags, f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "nanoGPT (PyTorch) with f32 left out: its interpreter" in done.stderr
    speed = rows_of(tmp_path / "tiny-speed.csv")
    assert [(row["contender"], row["rates"]) for row in speed] == [
        ("lmnoise, one population", "2"),
        ("lmnoise, one rate after the other", "2"),
        ("lmnoise, one rate alone", "1"),
    ]
    assert all(float(row["compile, s"]) > 0 for row in speed)
    rounds = rows_of(tmp_path / "rounds.csv")
    assert [int(row["round"]) for row in rounds] == [0, 1] * 3
    # Of uniform tokens the loss stays near log 65, and the same work comes to the same loss.
    losses = [float(row["last loss"]) for row in rounds]
    assert losses[0] == pytest.approx(4.17, abs=0.3)
    assert losses[:4] == pytest.approx([losses[0]] * 4, abs=1e-5)
    waiting = rows_of(tmp_path / "tiny-waiting.csv")
    assert [row["how"] for row in waiting] == ["one process"] * 2 + ["2 processes, one rate each"]
    assert "lacks torch." in (tmp_path / "report.md").read_text()


FLAGS = dict(shapes=["tiny"], operands=["f32"], peer_python=None, peer_model=None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shapes": ["huge"]}, "--shapes: name some of dispatch, tiny, small, large"),
        ({"operands": []}, "--operands: name some of f32, bf16"),
        ({"peer_model": "model.py"}, "--peer_python and --peer_model go together"),
        ({"peer_python": "/no/python", "peer_model": "x"}, "/no/python is no program"),
        ({"peer_python": sys.executable, "peer_model": "no.py"}, "there is no file no.py"),
    ],
)
def test_flags_that_do_not_fit(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        bench_finetune.check(SimpleNamespace(**(FLAGS | changes)))


def result(kind, members, seconds, first, again=None):
    contender = bench_report.Contender(kind, "f32", members, 1, 1)
    done = SimpleNamespace(memory=2**20, compile=1.0, first_step=first)
    turns = [{"seconds": s, "cpu": 2 * s, "others": 0.0, "loss": 4.0} for s in seconds]
    return bench_report.Result(contender, done, 1, again, turns=turns)


def test_the_arithmetic_of_both_tables():
    results = [
        result("grid", 4, [2.0, 20.0], first=10.0, again=4.0),
        result("runs", 4, [4.0, 40.0], first=11.0, again=5.0),
        result("one", 1, [2.0, 20.0], first=8.0, again=3.0),
        result("nanogpt", 4, [1.0, 10.0], first=6.0),
    ]
    work = bench_finetune.Work(SHAPES["tiny"], 5)
    speed = bench_finetune.speed_table("tiny", work, results)
    speed = [dict(zip(speed.header, row, strict=True)) for row in speed.rows]
    ratios = [row["times the speed of one rate after the other"] for row in speed]
    assert [ratio.split()[0] for ratio in ratios] == ["2.00", "1.00", "0.50", "4.00"]
    assert speed[0]["ms a step of one rate, all told"] == "550.00"
    assert speed[0]["core-s a rate"] == "5.50"
    waiting = bench_finetune.waiting_table("tiny", results)
    waiting = [dict(zip(waiting.header, row, strict=True)) for row in waiting.rows]
    cold, warm = "nothing compiled before, s", "compiled programs on disk, s"
    assert [row[cold] for row in waiting] == ["10.0", "11.0", "17.0", "6.0"]
    assert [row[warm] for row in waiting] == ["4.0", "5.0", "12.0", "6.0"]
    assert [row["times the population"] for row in waiting] == ["1.00", "1.10", "1.70", "0.60"]
    assert waiting[2]["times the population with these"] == "3.00"


def test_both_sides_read_the_same_work(tmp_path):
    """Rows by text in the order of the file; the peer's schedule is ours."""
    shape = SHAPES["tiny"]
    batches = {"train": 3, "validation": 1, "test": 1, "pretraining": 2}
    tokens = np.arange(7 * shape.batch * (shape.length + 1), dtype=np.int32)
    tokens.tofile(tmp_path / "tokens")
    found = finetune_worker._texts({"tokens": tmp_path / "tokens", "batches": batches}, shape)
    rows = tokens.reshape(-1, shape.length + 1)
    np.testing.assert_array_equal(found["train"].tokens, rows[:12])
    np.testing.assert_array_equal(found["test"].tokens, rows[16:20])
    packed = finetune_worker._packed(found["pretraining"], shape)
    assert len(packed.tokens) == 8 * shape.length + 1
    for steps in (4, 20):
        fraction = schedule(OptimizerConfig(steps))
        for number in range(1, steps + 1):
            ours = float(fraction(number - 1))
            assert finetune_nanogpt_worker._cosine(number, steps) == pytest.approx(ours, abs=1e-6)
    assert math.isclose(finetune_nanogpt_worker._cosine(20, 20), 0.1)
