"""The benchmark of perturbation sweeps end to end on a tiny model, and its arithmetic."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from lmnoise.errors import UserError
from lmnoise.models.pretrained import write_folder
from lmnoise.models.transformer import LanguageModel, llama

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"
sys.path.insert(0, str(BENCH))

import bench_report  # noqa: E402

_spec = importlib.util.spec_from_file_location("bench_perturb", BENCH / "perturb.py")
bench_perturb = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench_perturb)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    config = llama(vocab_size=50, context=32, layers=1, width=16, heads=2, kv_heads=1, mlp_width=24)
    write_folder(folder, config, LanguageModel(config).init(jax.random.key(0)))
    return folder


def bench(*arguments, expect=0):
    command = [sys.executable, str(BENCH / "perturb.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == expect, done.stderr
    return done


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_sweep_is_measured_and_a_peer_without_torch_is_left_out(tmp_path, checkpoint):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    small = ["--windows=2", "--batch=2", "--length=16", "--strengths=0.01,0.02,0.04", "--rounds=2"]
    done = bench(
        f"--checkpoint={checkpoint}", f"--peer_python={bare}", f"--out={tmp_path / 'out'}", *small
    )
    assert "PyTorch and transformers with f32 left out: its interpreter" in done.stderr
    (speed,) = rows_of(tmp_path / "out" / "speed.csv")
    rate, tokens = (float(speed[n].replace(",", "")) for n in ("evaluations/s", "tokens/s"))
    assert tokens == pytest.approx(rate * 64, rel=0.02)
    assert float(speed["compile, s"]) > 0
    rounds = rows_of(tmp_path / "out" / "rounds.csv")
    assert [row["evaluations"] for row in rounds] == ["6", "6"]
    # Of uniform tokens the loss stays near log 50.
    assert all(float(row["last loss"]) == pytest.approx(3.9, abs=0.2) for row in rounds)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "left out" in report
    assert "strengths 0.01, 0.02, 0.04 times" in report


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--strengths=0.1,much", "--strengths must be numbers, not 0.1,much"),
        ("--peer_python=/no/python", "/no/python is no program"),
        ("--checkpoint=/no/model", "/no/model is not a folder"),
    ],
)
def test_flags_that_do_not_fit(checkpoint, argument, sentence):
    error = bench(f"--checkpoint={checkpoint}", argument, expect=2).stderr.strip()
    assert sentence in error
    assert "Traceback" not in error


def result(kind, seconds, unperturbed=4.0):
    contender = bench_report.Contender(kind, "f32", 1, 1, 2)
    facts = {"parameters": 10, "device": "chip", "versions": {}, "unperturbed": unperturbed}
    done = SimpleNamespace(facts=facts, memory=2**20, compile=1.0, first_step=2.0, idle_cpu=0.0)
    turns = [{"seconds": s, "cpu": 2 * s, "others": 0.0, "loss": 4.0} for s in seconds]
    return bench_report.Result(contender, done, 1, turns=turns)


def test_ratios_are_of_the_same_round():
    """Twice as fast in both rounds, with the machine at a tenth of its speed in the second."""
    table = bench_perturb.speed_table(
        [result("sweep", [1.0, 10.0, 1.0]), result("transformers", [2.0, 20.0, 3.0])], tokens=100
    )
    ours, peer = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    ratio = "speed, times PyTorch and transformers"
    assert [ours[ratio], peer[ratio]] == ["2.00 (2.00 to 3.00)", "1.00 (1.00 to 1.00)"]
    assert [ours["evaluations/s"], ours["tokens/s"]] == ["2.000", "200"]
    assert ours["core-s an evaluation"] == "1.00"


def test_another_model_is_no_peer():
    assert bench_perturb.check_agreement([result("sweep", [1], 4.0)]) == 0
    same = [result("sweep", [1], 4.0), result("transformers", [1], 4.0001)]
    assert bench_perturb.check_agreement(same) == pytest.approx(1e-4)
    for other in (4.1, float("nan")):
        with pytest.raises(UserError, match="do not compute the same model"):
            bench_perturb.check_agreement([same[0], result("transformers", [1], other)])
