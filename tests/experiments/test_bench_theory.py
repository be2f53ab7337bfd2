"""The benchmark of the closed forms end to end, small: what it compares must agree."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments):
    command = [sys.executable, str(ROOT / "experiments" / "bench" / "theory.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_every_contender_is_measured_and_agrees_with_its_peer(tmp_path):
    small = ["--settings=300", "--loop=40", "--dimension=24", "--repetitions=2", "--rounds=2"]
    done = bench(*small, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert all(float(row["a second"]) > 0 for row in rows)
    gaps = [float(gap) for gap in re.findall(r"largest relative difference (\S+)\.", done.stdout)]
    assert len(gaps) == 4
    assert max(gaps) < 1e-7


def test_bad_flags_are_one_sentence():
    done = bench("--settings=10", "--loop=20")
    assert done.returncode == 2
    assert "--loop=20 is more than --settings=10" in done.stderr
    assert "Traceback" not in done.stderr
