"""The command line: keys are those of the file that was named, and mistakes are one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDY = """
from ml_collections import ConfigDict

def get_config(name="demo"):
    if name == "broken":
        return ConfigDict({}).nothing
    return ConfigDict({"errors": {"dimension": 200, "shares": (0.0, 0.1)}, "seed": 0}).lock()
"""
PROGRAM = """
import sys
from lmnoise import cli, config
config.define_config_flag()
cli.run(lambda: print(config.parse(sections={sections}).config.to_dict()))
"""


def run(*arguments, sections=()):
    """Status, output and errors of a program that does no more than read its config."""
    command = [sys.executable, "-c", PROGRAM.format(sections=sections), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    return f"--config={tmp_path / 'study.py'}"


@pytest.mark.parametrize("preset", ["", ":demo"])
def test_a_small_tree_of_its_own_is_read_and_changed(study, preset):
    changes = ("--config.errors.dimension=7", "--config.errors.shares=(0.5,)", "--config.seed=3")
    status, out, err = run(study + preset, *changes, sections=("errors", "seed"))
    assert status == 0, err
    assert out == "{'errors': {'dimension': 7, 'shares': (0.5,)}, 'seed': 3}\n"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--config.errors.dimensions=7", "did you mean config.errors.dimension?"),
        ("--config.error.dimension=7", "did you mean config.errors.dimension?"),
        ("--config.sed=7", "did you mean config.seed?"),
        ("--config.train.steps=7", "there is no config key config.train.steps\n"),
        ("--config.errors.dimension=big", "big"),
        ("--config.errors=7", "errors"),
    ],
)
def test_mistakes_are_judged_by_the_named_file(study, wrong, words):
    status, out, err = run(study, wrong)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_keys_that_only_one_preset_has_are_known():
    key = "--config.arms.clean_budget.noise.budgett=total"
    status, _, err = run("--config=configs/noise.py:laptop", key)
    assert status == 2
    assert "did you mean config.arms.clean_budget.noise.budget?" in err


def test_a_config_of_another_program_is_refused(study):
    status, _, err = run(study, sections=("errors", "model", "train"))
    assert status == 2
    assert "this config has no model, train: it belongs to another program" in err


def test_a_fault_of_the_file_itself_is_told(study):
    status, _, err = run(f"{study}:broken", "--config.seed=1")
    assert status == 2
    assert "nothing" in err
