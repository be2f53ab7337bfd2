"""A simulated pod: the same run on any number of processes, whatever becomes of one of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parent.parent
SIMULATE = ROOT / "tpu" / "simulate.sh"
RUN = {
    "train.batch_size": 8,
    "train.steps": 60,
    "train.log_every": 10,
    "train.evaluate_every": 30,
    "train.checkpoint_every": 10,
    "train.steps_per_dispatch": 2,
}


class Pod:
    """A command on N processes with D devices each."""

    def __init__(self, folder, processes, devices, *command, **env):
        self.said = folder / f"{uuid.uuid4().hex}.txt"
        self.mark = f"LMNOISE_TEST_POD={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        with self.said.open("w") as file:
            self.process = subprocess.Popen(
                [SIMULATE, str(processes), str(devices), *map(str, command)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), name: value} | env,
                cwd=ROOT,
            )

    def lines(self, number):
        """What a process has printed, without its number and its progress bar."""
        text = self.said.read_text().replace("\r", "\n")
        bar = re.compile(r"(\[\d+\] )?\w+: +\d+%")
        found = [line for line in text.splitlines() if not bar.match(line)]
        return [line[4:] for line in found if line.startswith(f"[{number}] ")]

    def errors(self, number):
        return [line for line in self.lines(number) if line.startswith("error: ")]

    def kill(self, number, what):
        (line,) = [line for line in self.lines(number) if line.startswith("is process")]
        os.kill(int(line.split()[-1]), what)

    def wait_for(self, condition):
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, self.said.read_text()
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.01)

    def finish(self, seconds=300):
        """The exit status; no process may be left."""
        try:
            status = self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.end()
        assert self.left() == []
        return status

    def end(self):
        for _ in range(2):  # the second signal is not polite
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        self.process.wait(30)

    def left(self):
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_bytes())
            except OSError:  # not ours, or just gone
                pass
        return found


@pytest.fixture
def pod(tmp_path):
    """Starts pods; ends what a failed test leaves."""
    pods = []

    def start(*arguments, **env):
        pods.append(Pod(tmp_path, *arguments, **env))
        return pods[-1]

    yield start
    for each in pods:
        if each.process.poll() is None:
            each.end()


def steps_saved(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "event" not in row]
    return [
        (row["step"], row["member"], name, value)
        for row in rows
        for name, value in row.items()
        if name not in ("step", "member") and value is not None
    ]


def parameters(workdir, step):
    with ocp.StandardCheckpointer() as checkpointer:
        path = workdir / "checkpoints" / str(step) / "states"
        restored = checkpointer.restore(path.absolute())["params"]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


# ---- training -----------------------------------------------------------------------------------


# One process stands still, and with it all, until what it has begun to save is on disk; then it
# signals itself. Of a signal that asks for a stop it waits for the others' answer.
CULPRIT = """
import os, runpy, signal, sys, time
from pathlib import Path
from lmnoise.training import peers

_, number, name, folder, began, *sys.argv[1:] = sys.argv
reached, calls = peers.Member.reached, 0

def saved():
    return [int(path.name) for path in Path(folder).glob("*") if path.name.isdigit()]

def reached_by_the_culprit(member):
    global calls
    calls += 1
    if calls == 6 and member.number == int(number):  # after 10 steps
        while max(saved(), default=0) <= int(began):
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, name))
        while not member._held and member._stop_after is None:
            time.sleep(0.01)
    return reached(member)

peers.Member.reached = reached_by_the_culprit
runpy.run_module("lmnoise.train", run_name="__main__", alter_sys=True)
"""


def test_one_run_on_four_two_and_one_processes_that_are_killed_and_stopped(pod, tiny_lm, tmp_path):
    """Every part begins where another topology, however it ended, has saved."""
    flags = [*tiny_lm, *(f"--config.{key}={value}" for key, value in RUN.items())]
    whole, run = tmp_path / "whole", tmp_path / "run"
    settings = {
        "LMNOISE_LOST_TIMEOUT": "20",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(processes, devices, workdir, *command):
        command = command or ["-m", "lmnoise.train"]
        flags_of = [f"--config={ROOT}/configs/lm.py:laptop", f"--workdir={workdir}", *flags]
        return pod(processes, devices, sys.executable, *command, *flags_of, **settings)

    def run_and_signal(processes, devices, number, name):
        """Signals one process as soon as it has saved again."""
        began = max(steps_saved(run), default=0)
        culprit = ["-c", CULPRIT, str(number), name, str(run / "checkpoints"), str(began)]
        return start(processes, devices, run, *culprit)

    alone = start(1, 8, whole)
    assert alone.finish() == 0, alone.said.read_text()
    assert steps_saved(whole) == [50, 60]

    four = run_and_signal(4, 2, 2, "SIGKILL")
    assert four.finish() == 128 + signal.SIGKILL
    for number in (0, 1, 3):
        (error,) = four.errors(number)
        assert "process 2 of 4 is gone" in error
        assert "the same command on all of them resumes the run" in error
    assert "Traceback" not in four.said.read_text()
    assert 10 <= steps_saved(run)[-1] < 60

    two = run_and_signal(2, 4, 0, "SIGKILL")
    assert two.finish() == 128 + signal.SIGKILL
    (error,) = two.errors(1)
    assert "process 0 of 2 is gone" in error
    assert "***" not in two.said.read_text()  # jax's own way to abort

    two = run_and_signal(2, 4, 1, "SIGTERM")
    assert two.finish() == 0, two.said.read_text()
    assert f"stopped and saved in {run}; the same command resumes the run" in two.lines(0)
    assert not [line for line in two.lines(1) if "saved" in line]
    stopped = steps_saved(run)[-1]
    assert 30 <= stopped < 60
    assert max(step for step, *_ in losses(run)) <= stopped

    one = start(1, 8, run)
    assert one.finish() == 0, one.said.read_text()
    assert steps_saved(run)[-1] == 60
    ours, theirs = losses(run), losses(whole)
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert {row[2] for row in ours} > {"loss", "grad_norm"}
    np.testing.assert_allclose([r[3] for r in ours], [r[3] for r in theirs], rtol=1e-5)
    for mine, other in zip(parameters(run, 60), parameters(whole, 60), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


def test_a_disk_that_fails_under_one_process(pod, tiny_lm, tmp_path):
    """Process 1 may write no file of more than 512 bytes."""
    flags = [*tiny_lm, "--config.train.steps=2", "--config.data.evaluate=()"]
    train = [sys.executable, "-m", "lmnoise.train", f"--config={ROOT}/configs/lm.py:laptop"]
    limit = 'if [ "$JAX_PROCESS_ID" = 1 ]; then ulimit -f 1; fi; exec "$@"'
    command = ["sh", "-c", limit, "sh", *train, f"--workdir={tmp_path / 'run'}", *flags]
    two = pod(2, 1, *command, LMNOISE_LOST_TIMEOUT="20")
    assert two.finish() != 0
    (error,) = two.errors(0)
    assert "process 1 of 2 failed" in error
    assert "File too large" in error


SPIKE = """
import sys
import jax
import numpy as np
from conftest import Toy
from lmnoise import cli
from lmnoise.training import processes
from lmnoise.training.loop import LoopConfig
from lmnoise.training.mesh import make_mesh
from lmnoise.training.spikes import SpikeConfig

class Halves(Toy):
    def batches(self, index):
        rows = slice(4 * jax.process_index(), 4 * jax.process_index() + 4)
        return {name: leaf[:, rows] for name, leaf in super().batches(index).items()}

def main():
    with processes.joined():
        toy = Halves(mesh=make_mesh(data=2))
        toy.poison = {6: np.nan}
        spikes = SpikeConfig(max_rollbacks=int(sys.argv[2]))
        config = LoopConfig(steps=8, checkpoint_every=4, steps_per_dispatch=2, spikes=spikes)
        toy.fit(config, sys.argv[1])
        print("read", toy.seen)

cli.run(main)
"""


def test_processes_roll_back_together(pod, tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "training")])
    two = pod(2, 1, sys.executable, "-c", SPIKE, tmp_path / "run", 3, PYTHONPATH=path)
    assert two.finish() == 0, two.said.read_text()
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert skipped[-1] == 6
    reads = [[line for line in two.lines(n) if line.startswith("read")] for n in (0, 1)]
    assert reads[0] == reads[1]
    assert steps_saved(tmp_path / "run")[-1] == 8


def test_what_all_fail_of_leaves_what_was_being_saved(pod, tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "training")])
    two = pod(2, 1, sys.executable, "-c", SPIKE, tmp_path / "run", 0, PYTHONPATH=path)
    assert two.finish() == 2, two.said.read_text()
    for number in (0, 1):  # the other may hear of it before it says so itself
        (error,) = two.errors(number)
        assert "failed again at step 6 after 0 rollbacks" in error
    assert steps_saved(tmp_path / "run") == [4]


# ---- the end of the processes -------------------------------------------------------------------

WORKER = """
import sys, time
from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.training import processes
import jax

def main():
    with processes.joined():
        print("joined", jax.process_count(), jax.device_count())
        if sys.argv[1] == "mistake" and jax.process_index() == 1:
            raise UserError("no such thing: name another")
        if sys.argv[1] == "bug" and jax.process_index() == 0:
            raise RuntimeError("a bug")
        if sys.argv[1] != "late" or jax.process_index() == 1:
            time.sleep(60)

cli.run(main)
"""


@pytest.mark.parametrize(
    ("mode", "culprit", "status", "says", "others_say"),
    [
        (
            "mistake",
            1,
            2,
            "error: no such thing: name another",
            "failed (no such thing: name another)",
        ),
        ("bug", 0, 1, "RuntimeError: a bug", "failed (a bug)"),
        (
            "late",
            0,
            2,
            "error: the run is done, but not all",
            "process 0 of 2 failed (the run is done",
        ),
    ],
)
def test_what_one_process_fails_of_ends_the_other(pod, mode, culprit, status, says, others_say):
    two = pod(2, 2, sys.executable, "-c", WORKER, mode, LMNOISE_LOST_TIMEOUT="3")
    assert two.finish() == status
    assert "joined 2 4" in two.lines(0)
    assert any(line.startswith(says) for line in two.lines(culprit)), two.said.read_text()
    (error,) = two.errors(1 - culprit)
    assert others_say in error
    assert "***" not in two.said.read_text()


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_alive_but_answers_nothing_is_lost(pod, stopped):
    two = pod(2, 1, sys.executable, "-c", WORKER, "wait", LMNOISE_LOST_TIMEOUT="3")
    two.wait_for(lambda: all("joined 2 2" in two.lines(n) for n in (0, 1)))
    two.kill(stopped, signal.SIGSTOP)
    two.wait_for(lambda: two.errors(1 - stopped))
    (error,) = two.errors(1 - stopped)
    assert f"process {stopped} of 2 has said nothing for 3 s" in error
    two.kill(stopped, signal.SIGCONT)
    assert two.finish() == 75  # and so it ends when it goes on
    assert len(two.errors(stopped)) == 1
    assert "***" not in two.said.read_text()


# ---- the simulator ------------------------------------------------------------------------------


def simulate(*arguments):
    command = [SIMULATE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "N, D and a command"),
        (("2", "4"), "N, D and a command"),
        (("0", "4", "true"), "N must be a number from 1 to 64, not '0'"),
        (("65", "4", "true"), "N must be a number"),
        (("2", "4x", "true"), "D must be a number from 1 to 512, not '4x'"),
        (("2", "99999999999999999999", "true"), "D must be a number"),
        (("2", "4", "no_such_command"), "no command 'no_such_command'"),
        (("--dry-run", "2", "4", "true"), "unknown argument --dry-run"),
        (("--port=70000", "2", "4", "true"), "--port must be a number from 1 to 65535"),
        (("--port=", "2", "4", "true"), "--port must be a number"),
    ],
)
def test_misuse_of_the_simulator_is_one_sentence(arguments, words):
    status, out, err = simulate(*arguments)
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert words in err


def test_help_and_a_dry_run_start_nothing(tmp_path):
    status, out, _ = simulate("--help")
    assert status == 0
    assert "tpu/simulate.sh 2 4 python" in out
    assert "Stop: Ctrl-C" in out
    status, out, err = simulate(
        "--port=30001", "--dry_run", "2", "3", "touch", str(tmp_path / "a b")
    )
    assert status == 0, err
    first, second = out.splitlines()
    assert "JAX_PROCESS_ID=0" in first
    assert "JAX_PROCESS_ID=1" in second
    assert "JAX_COORDINATOR_ADDRESS=127.0.0.1:30001" in second
    assert "xla_force_host_platform_device_count=3" in first
    assert first.endswith("a\\ b")
    assert list(tmp_path.iterdir()) == []


def test_the_first_failure_is_the_status_and_all_output_arrives(pod):
    shell = 'echo "line of $JAX_PROCESS_ID of $JAX_NUM_PROCESSES"; shift $JAX_PROCESS_ID; exit $1'
    four = pod(4, 1, "sh", "-c", shell, "sh", 0, 75, 3, 6)
    assert four.finish() == 3
    for number in range(4):
        assert four.lines(number)[1:] == [f"line of {number} of 4"]


def test_signals_are_passed_on(pod):
    shell = 'trap "echo stopping; exit 0" {}; echo ready; while :; do sleep 0.1; done'
    for name in ("TERM", "INT"):
        two = pod(2, 1, "sh", "-c", shell.format(name))
        two.wait_for(lambda two=two: all("ready" in two.lines(n) for n in (0, 1)))
        two.process.send_signal(getattr(signal, f"SIG{name}"))
        assert two.finish() == 0
        assert all(two.lines(n)[-1] == "stopping" for n in (0, 1))
    deaf = pod(2, 1, "sh", "-c", 'trap "" TERM INT; echo ready; while :; do sleep 0.1; done')
    deaf.wait_for(lambda: all("ready" in deaf.lines(n) for n in (0, 1)))
    deaf.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    deaf.process.send_signal(signal.SIGTERM)
    assert deaf.finish() == 128 + signal.SIGKILL
