"""`python -m lmnoise.train` as users meet it: killed, stopped, misused, on full disks."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from lmnoise.checkpoints import open_checkpoint

ROOT = Path(__file__).parent.parent
CONFIG = f"--config={ROOT}/configs/lm.py:laptop"

# Importing takes longer than training here, so one process imports and forks for each command.
SERVER = """
import json, os, sys
import lmnoise.train
from lmnoise import cli
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        sys.argv = ["train", *job["arguments"]]
        cli.run(lmnoise.train.main)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Runs `lmnoise.train.main` in forks of a process that has imported everything."""

    def __init__(self, folder):
        self.folder, self.count, self.running = folder, 0, 0
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            env=os.environ | cache,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def start(self, *arguments, devices=1, **env):
        """Starts a command and returns its process id."""
        if self.running:  # a test failed before it waited
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.running, signal.SIGKILL)
            self.finish()
        self.count += 1
        self.files = [self.folder / f"{self.count}.{name}" for name in ("out", "err")]
        flags = f"--xla_force_host_platform_device_count={devices}"
        job = {
            "arguments": [str(a) for a in arguments],
            "out": str(self.files[0]),
            "err": str(self.files[1]),
            "env": {"XLA_FLAGS": flags} | env,
            "cwd": str(ROOT),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def finish(self):
        """Waits: (exit status, standard output, standard error)."""
        status, self.running = int(self.process.stdout.readline()), 0
        return status, *(file.read_text() for file in self.files)

    def run(self, *arguments, **options):
        self.start(*arguments, **options)
        return self.finish()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.process.stdin.close()
    server.process.wait(30)


def flags(values):
    return [f"--config.{key}={value}" for key, value in values.items()]


SHORT = flags({"train.steps": 4, "train.log_every": 2})
LONG = flags(
    {
        "train.steps": 160,
        "train.log_every": 10,
        "train.evaluate_every": 40,
        "train.checkpoint_every": 20,
        "train.steps_per_dispatch": 4,
    }
)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def arrays(workdir, step):
    with ocp.StandardCheckpointer() as checkpointer:
        path = workdir / "checkpoints" / str(step) / "states"
        restored = checkpointer.restore(path.absolute())
    found = {}

    def walk(node, name):
        if isinstance(node, dict | list):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, child in items:
                walk(child, f"{name}/{key}")
        elif node is not None:
            found[name] = np.asarray(node)

    walk(restored, "")
    return found


def assert_same_run(workdir, expected):
    ours, theirs = arrays(workdir, 160), arrays(expected, 160)
    assert ours.keys() == theirs.keys()
    assert any("params" in name for name in ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (workdir / name).read_bytes() == (expected / name).read_bytes()


def assert_one_sentence(result, *words):
    status, out, err = result
    assert status == 2, err
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    for word in words:
        assert word in errors[0], errors[0]


@pytest.fixture(scope="module")
def whole(server, tiny_lm, tmp_path_factory):
    """The work directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    status, out, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *LONG)
    assert status == 0, err
    assert "trained 2 members" in out
    return workdir


# ---- killed and stopped -------------------------------------------------------------------------


def logged(workdir):
    return [row["step"] for row in rows(workdir) if "loss" in row]


def saving(workdir):
    return any(p.name.endswith("tmp") for p in (workdir / "checkpoints").glob("*"))


def evaluating(workdir):
    last = (rows(workdir) or [{"step": 1}])[-1]
    return last["step"] % 40 == 0 and "loss" in last


MOMENTS = {
    "before the first checkpoint": lambda w: logged(w) and not checkpoints(w),
    "during saving": saving,
    "during evaluation": evaluating,
    "between checkpoints": lambda w: checkpoints(w) and max(logged(w), default=0) % 20 == 10,
}


def test_kill_9_at_any_moment(server, tiny_lm, whole, tmp_path):
    command = [CONFIG, f"--workdir={tmp_path / 'run'}", *tiny_lm, *LONG]
    for moment, reached in MOMENTS.items():
        pid = server.start(*command)
        deadline = time.monotonic() + 120
        while not reached(tmp_path / "run"):
            assert time.monotonic() < deadline, moment
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        status, _, err = server.finish()
        assert status == -signal.SIGKILL, f"the run ended before it was killed {moment}: {err}"
    status, _, err = server.run(*command)
    assert status == 0, err
    assert_same_run(tmp_path / "run", whole)
    assert not saving(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_says_how_to_resume(server, tiny_lm, whole, tmp_path, number):
    workdir = tmp_path / "run"
    command = [CONFIG, f"--workdir={workdir}", *tiny_lm, *LONG]
    pid = server.start(*command)
    while not logged(workdir):
        time.sleep(0.001)
    os.kill(pid, number)
    status, out, err = server.finish()
    assert status == 0, err
    assert f"stopped and saved in {workdir}; the same command resumes the run" in out
    stopped = checkpoints(workdir)[-1]
    assert stopped < 160
    assert max(row["step"] for row in rows(workdir)) <= stopped
    if number == signal.SIGINT:
        return
    # Resumed through the front door.
    command = [sys.executable, "-m", "lmnoise.train", *command]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Item" not in done.stderr  # Orbax's warnings about what it restores
    assert_same_run(workdir, whole)


def test_a_damaged_checkpoint_is_passed_over(server, tiny_lm, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for file in (workdir / "checkpoints" / "160" / "states").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    status, _, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *LONG)
    assert status == 0, err
    assert "the checkpoint of step 160 cannot be read" in err
    assert "Traceback" not in err
    assert_same_run(workdir, whole)
    for step in (140, 160):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "states")
    result = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *LONG)
    assert_one_sentence(result, "none of the 2 checkpoints", "another --workdir")


def test_a_work_directory_has_one_config(server, tiny_lm, whole, tmp_path):
    command = [CONFIG, f"--workdir={whole}", *tiny_lm, *LONG]
    result = server.run(*command, "--config.optimizer.b2=0.9")
    assert_one_sentence(result, "config.optimizer.b2 = 0.95", "0.9")
    # Where the data lie, and on how many devices it runs, may change.
    moved = tmp_path / "moved"
    shutil.copytree(next(f.split("=")[1] for f in tiny_lm if "data_dir" in f), moved)
    changed = [f"--config.data.data_dir={moved}", "--config.mesh.data=2", "--config.train.keep=1"]
    status, _, err = server.run(*command, *changed, devices=2)
    assert status == 0, err
    (whole / "config.json").rename(tmp_path / "config.json")
    try:
        result = server.run(*command, "--config.model.mlp_width=48")
    finally:
        shutil.move(tmp_path / "config.json", whole / "config.json")
    assert_one_sentence(result, "another model or population", "(2, 32, 16) there")


# ---- misused ------------------------------------------------------------------------------------


def test_values_of_overrides(server, tiny_lm, tmp_path):
    """A value for a tuple is a tuple of one, and of several values for a key the last counts."""
    workdir = tmp_path / "run"
    values = ["members.rate=0.1", "optimizer.algorithm=sgd", "optimizer.decay_to=start"]
    overrides = [f"--config.{value}" for value in [*values, "optimizer.momentum=0.9"]]
    status, _, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *SHORT, *overrides)
    assert status == 0, err
    config = json.loads((workdir / "config.json").read_text())
    assert config["members"]["rate"] == [0.1]
    assert config["optimizer"]["algorithm"] == "sgd"
    assert config["train"]["steps"] == 4


def test_budgets_in_one_population(server, tiny_lm, tmp_path):
    """A member of half the duration ends early, annealed, and its checkpoint says so."""
    workdir = tmp_path / "run"
    values = ["members.rate=0.0", "members.duration=(0.5,1.0)", "optimizer.final_fraction=0.0"]
    overrides = [f"--config.{value}" for value in values]
    status, _, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *SHORT, *overrides)
    assert status == 0, err
    rates = {(r["step"], r["member"]): r["learning_rate"] for r in rows(workdir) if "loss" in r}
    assert rates[2, 0] < rates[2, 1]
    assert rates[4, 0] is None
    assert rates[4, 1] > 0
    tokens = [open_checkpoint(f"{workdir}#{member}", tmp_path).tokens for member in (0, 1)]
    assert tokens == [2 * 4 * 16, 4 * 4 * 16]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--config.train.stepss=3"], ["config.train.stepss", "did you mean config.train.steps"]),
        (["--config.train.steps=abc"], ["config.train.steps", "abc"]),
        (["--config.train.steps=0"], ["config.train.steps is 0"]),
        (["--config.train.accumulate=0"], ["config.train.accumulate is 0"]),
        (["--config.train.accumulate=3"], ["config.train.accumulate 3"]),
        (["--config.train.keep=0"], ["config.train.keep is 0"]),
        (["--config.data.length=0"], ["config.data.length is 0"]),
        (["--config.data.length=100000"], ["shorten the window"]),
        (["--config.data.source=imdb"], ["python -m lmnoise.data prepare imdb"]),
        (["--config.data.tokenizer=gpt2"], ["prepare", "--tokenizer=gpt2"]),
        (["--config.model.vocab_size=7"], ["config.model.vocab_size is 7", "at least"]),
        (["--config.model.family=rnn"], ["config.model.family", "llama"]),
        (["--config.model.heads=3"], ["config.model", "heads 3"]),
        (["--config.model.dtype=float99"], ["config.model.dtype"]),
        (["--config.model.attention=none"], ["config.model", "attention"]),
        (["--config.optimizer.schedule=linear"], ["config.optimizer", "schedule"]),
        (["--config.optimizer.clip_norm=0.0"], ["config.optimizer", "clip_norm"]),
        (["--config.optimizer.algorithm=lion"], ["config.optimizer", "algorithm", "sgd"]),
        (["--config.optimizer.momentum=0.9"], ["config.optimizer", "momentum", "adamw"]),
        (["--config.optimizer.decay_to=mean"], ["config.optimizer", "decay_to", "start"]),
        (["--config.members.rate=(1.0,)"], ["config.members.rate", "[0, 1)"]),
        (["--config.members.rate=(-0.1,)"], ["config.members.rate", "[0, 1)"]),
        (["--config.members.rate=('a',)"], ["config.members.rate", "'a'"]),
        (["--config.members.rate=()"], ["config.members.rate"]),
        (["--config.members.seed=(-1,)"], ["config.members.seed"]),
        (["--config.members.seed=(4294967296,)"], ["config.members.seed"]),
        (["--config.members.duration=(0.0,)"], ["config.members.duration", "at least one step"]),
        (["--config.members.duration=(1.5,)"], ["config.members.duration", "at most 1"]),
        (["--config.members.kind=('pink',)"], ["pink", "uniform"]),
        (["--config.members.kind=('stream',)"], ["config.noise.source"]),
        (["--config.noise.budget=both"], ["config.noise", "budget"]),
        (["--config.mesh.member=2"], ["config.mesh", "product is 1"]),
        (["--config.mesh.member=-1"], ["config.mesh.member is -1"]),
        (["--config=configs/lm.py:desktop"], ["desktop", "laptop"]),
        (["--config=configs/no.py:laptop"], ["configs/no.py"]),
        (["--no_such_flag=1"], ["no_such_flag"]),
        (["surplus"], ["surplus"]),
    ],
    ids=lambda value: " ".join(value) if value and "-" in value[0] else "",
)
def test_misuse_is_one_sentence(server, tiny_lm, tmp_path, wrong, words):
    result = server.run(CONFIG, f"--workdir={tmp_path / 'run'}", *tiny_lm, *SHORT, *wrong)
    assert_one_sentence(result, *words)
    assert not (tmp_path / "run").exists()


def test_flags_that_are_required(server, tiny_lm, tmp_path):
    assert_one_sentence(server.run(CONFIG, *tiny_lm), "workdir")
    assert_one_sentence(server.run(f"--workdir={tmp_path / 'run'}"), "config")


def test_a_batch_that_the_devices_do_not_divide(server, tiny_lm, tmp_path):
    flags = [*tiny_lm, *SHORT, "--config.mesh.data=8"]
    result = server.run(CONFIG, f"--workdir={tmp_path / 'run'}", *flags, devices=8)
    assert_one_sentence(result, "config.train.batch_size", "4 rows", "8 devices")


def test_half_a_coordinator(server, tiny_lm, tmp_path):
    result = server.run(
        CONFIG, f"--workdir={tmp_path}", *tiny_lm, *SHORT, JAX_COORDINATOR_ADDRESS="localhost:1"
    )
    assert_one_sentence(result, "JAX_NUM_PROCESSES")


def test_every_kind_and_budget_trains_in_one_population(server, tiny_lm, tmp_path):
    name = next(f.split("=")[1] for f in tiny_lm if "data.source" in f)
    kinds = "('uniform','gaussian','shuffled','repeated','dropped','stream')"
    varied = {
        "members.kind": kinds,
        "members.rate": "(0.0, 0.9)",
        "members.seed": "(0, 1)",
        "noise.budget": "clean",
        "noise.source": name,
        "train.accumulate": 2,
        "train.steps": 2,
        "train.log_every": 1,
    }
    workdir = tmp_path / "run"
    status, out, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *flags(varied))
    assert status == 0, err
    assert "trained 14 members" in out
    assert {row["member"] for row in rows(workdir)} == set(range(14))
    assert all(row["loss"] > 0 for row in rows(workdir) if "loss" in row)


def test_a_batch_whose_rows_were_all_dropped_is_no_failure(server, tiny_lm, tmp_path):
    varied = {"members.kind": "('dropped',)", "members.rate": "(0.95,)", "train.steps": 8}
    workdir = tmp_path / "run"
    varied["train.log_every"] = 1
    status, _, err = server.run(CONFIG, f"--workdir={workdir}", *tiny_lm, *flags(varied))
    assert status == 0, err
    found = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert None in found
    assert not (workdir / "skipped.json").exists()


# ---- full disks ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs privileges")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_sentence_and_the_run_resumes(server, tiny_lm, whole, small_disk):
    workdir = small_disk / "run"
    command = [CONFIG, f"--workdir={workdir}", *tiny_lm, *LONG]
    server.start(*command)
    while not checkpoints(workdir):
        time.sleep(0.001)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert_one_sentence(server.finish(), "free some space", "the same command again")
    filler.unlink(missing_ok=True)
    assert checkpoints(workdir)
    status, _, err = server.run(*command)
    assert status == 0, err
    assert_same_run(workdir, whole)
