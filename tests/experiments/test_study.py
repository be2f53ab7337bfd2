"""The command that studies share: where results and report go, and what a stop says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import study
from lmnoise import cli
from lmnoise.errors import Stopped

def run(config, workdir, folder, command):
    if config.checkpoint == "stop":
        raise Stopped
    folder.mkdir(parents=True)
    (folder / "report.md").write_text(command)
    return folder / "report.md"

cli.run(lambda: study.main("some", run, ("checkpoint",)))
"""


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", STUDY, str(ROOT / "experiments"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_the_report_and_the_stop(tmp_path):
    flags = [f"--config={ROOT}/configs/regions.py:laptop", f"--workdir={tmp_path}/work"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    report = tmp_path / "work" / "report" / "report.md"
    assert done.stdout == f"report: {report} and {report.with_suffix('.html')}\n"
    assert report.read_text() == f"python experiments/some.py {' '.join(flags)}"

    stopped = command(*flags, "--config.checkpoint=stop", f"--report={tmp_path}/elsewhere")
    assert stopped.returncode == 0
    assert "the same command resumes the study" in stopped.stdout
    assert not (tmp_path / "elsewhere").exists()


def test_a_config_of_another_program():
    wrong = command(f"--config={ROOT}/configs/lm.py:laptop", "--workdir=unused")
    assert wrong.returncode == 2
    assert "it belongs to another program" in wrong.stderr
    assert "Traceback" not in wrong.stderr
