"""Every preset of every config of an analysis, made small, by the program that it names."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from loading import load

from lmnoise.analyze.__main__ import ANALYSES, run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("compiled_once")
sys.path.insert(0, str(ROOT / "experiments"))


CONFIGS = {stem: load(ROOT / "configs" / f"{stem}.py") for stem in ("analyze", "regions")}


def figures(report):
    """The figures that a report shows, which must be all of its folder's, and real images."""
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", report.read_text()))
    assert drawn == {path.name for path in report.parent.glob("*.png")}
    assert all((report.parent / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    return drawn


@pytest.mark.parametrize("preset", CONFIGS["analyze"].PRESETS)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_every_analysis_reports_and_goes_on(analysis, preset, run_folder, small, tmp_path):
    config = small(CONFIGS["analyze"].get_config(preset), CONFIGS["analyze"].SMALL)
    specs = [f"{run_folder}/checkpoints/{step}" for step in (20, 40)]
    # A series compiles everything twice: once for each analysis is enough.
    series = preset == "laptop" or analysis == "language"
    specs = specs if series else specs[1:]
    arguments = (analysis, specs, config, tmp_path, tmp_path / "report", "the command")
    report = run(*arguments)
    text = report.read_text()
    assert "Made by `the command`." in text
    assert all(Path(spec).name in text for spec in specs)
    assert figures(report)
    tables = list(report.parent.glob("*.csv"))
    assert tables
    for table in tables:
        lines = table.read_text().splitlines()
        assert len(lines) > 1
    # What was measured is not measured again.
    stored = (tmp_path / "points.jsonl").read_bytes()
    run(*arguments)
    assert (tmp_path / "points.jsonl").read_bytes() == stored
    assert report.read_text().split("## How this")[0] == text.split("## How this")[0]


@pytest.mark.parametrize("preset", CONFIGS["regions"].PRESETS)
def test_the_study_of_regions(preset, run_folder, small, tmp_path):
    study = load(ROOT / "experiments" / "regions.py")
    config = small(CONFIGS["regions"].get_config(preset), CONFIGS["regions"].SMALL)
    config.checkpoint = str(run_folder)
    if preset != "laptop":
        config.rules = (config.recover.rule,)
    report = study.run(config, tmp_path / "work", tmp_path / "report", "the command")
    text = report.read_text()
    assert "What shows, and what does not" in text
    assert {"recover.png"} < figures(report)
    rows = np.genfromtxt(report.parent / "recover.csv", delimiter=",", names=True, dtype=None)
    assert len(rows) == 2 * 3
    stored = (tmp_path / "work" / "points.jsonl").read_bytes()
    study.run(config, tmp_path / "work", tmp_path / "report", "the command")
    assert (tmp_path / "work" / "points.jsonl").read_bytes() == stored
    assert not list((tmp_path / "work" / "continued").iterdir())
