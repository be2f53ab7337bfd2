"""The store of points: what a kill leaves, what is computed again, what is refused."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lmnoise import points
from lmnoise.errors import UserError

ROOT = Path(__file__).parent.parent

SETTINGS = [{"n": n, "rate": 0.1 * n, "seed": 7} for n in range(6)]


def work(setting):
    value = math.sin(setting["n"] + setting["seed"]) / 3
    return {"mean": value, "parts": (value, math.inf), "name": "é"}


class Counted:
    """`work` that remembers what it was called with and can die at a call."""

    def __init__(self, dies_at=None):
        self.calls, self.dies_at = [], dies_at

    def __call__(self, setting):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(setting)
        return work(setting)


@pytest.fixture
def whole(tmp_path):
    return points.compute(tmp_path / "whole", SETTINGS, work, "whole")


def test_results_come_in_the_order_of_the_settings(whole):
    assert [result["mean"] for result in whole] == [work(s)["mean"] for s in SETTINGS]
    assert whole[0]["parts"] == [work(SETTINGS[0])["mean"], math.inf]


def test_a_stopped_study_goes_on_to_the_same_numbers(tmp_path, whole):
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        points.compute(folder, SETTINGS, Counted(dies_at=4), "stopped")
    rest = Counted()
    assert points.compute(folder, SETTINGS, rest, "stopped") == whole
    assert rest.calls == SETTINGS[4:]
    assert (folder / points.FILE).read_bytes() == (tmp_path / "whole" / points.FILE).read_bytes()


def test_what_was_computed_outlives_a_kill(tmp_path, whole):
    program = (
        "import os, pathlib, json, math\nfrom lmnoise import points\n"
        f"settings = json.loads({json.dumps(json.dumps(SETTINGS))})\n"
        "def work(setting):\n"
        "    if setting['n'] == 3: os.kill(os.getpid(), 9)\n"
        "    value = math.sin(setting['n'] + setting['seed']) / 3\n"
        "    return {'mean': value, 'parts': (value, math.inf), 'name': 'é'}\n"
        f"points.compute(pathlib.Path({str(tmp_path / 'killed')!r}), settings, work, 'killed')\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == -9
    rest = Counted()
    assert points.compute(tmp_path / "killed", SETTINGS, rest, "killed") == whole
    assert rest.calls == SETTINGS[3:]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_last_line_is_computed_again(tmp_path, whole, kept):
    path = tmp_path / "whole" / points.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    again = Counted()
    assert points.compute(tmp_path / "whole", SETTINGS, again, "torn") == whole
    assert again.calls == SETTINGS[-1:]
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("change", [{"rate": 0.25}, {"seed": 8}, {"more": 1}])
def test_a_changed_setting_is_computed_and_the_old_one_kept(tmp_path, whole, change):
    changed = [SETTINGS[0] | change, *SETTINGS[1:]]
    again = Counted()
    points.compute(tmp_path / "whole", changed, again, "changed")
    assert again.calls == changed[:1]
    assert points.compute(tmp_path / "whole", SETTINGS, again, "old") == whole
    assert len(again.calls) == 1


def test_equal_settings_are_computed_once_whatever_the_order_of_their_keys(tmp_path):
    setting, counted = SETTINGS[1], Counted()
    turned = dict(reversed(setting.items()))
    first, second = points.compute(tmp_path, [setting, turned], counted, "equal")
    assert first == second
    assert len(counted.calls) == 1


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"setting": {}}', b"\xff"])
def test_a_bad_line_that_no_kill_leaves_is_one_sentence(tmp_path, whole, line):
    path = tmp_path / "whole" / points.FILE
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(UserError, match="line 1, is no point"):
        points.compute(tmp_path / "whole", SETTINGS, work, "bad")


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file"):
            points.compute(folder, SETTINGS, work, "file")


def test_progress_says_what_is_done_and_how_fast(tmp_path, capsys):
    points.compute(tmp_path, SETTINGS[:2], work, "first")
    points.compute(tmp_path, SETTINGS, work, "second")
    last = capsys.readouterr().err.split("\r")[-1]
    assert "second" in last
    assert "6/6" in last
    assert "point/s" in last
