"""Contenders of a benchmark, each a process of its own, asked in turn."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench_report import Result
from contenders import Contender
from protocol import Missing, Refused, Worker
from tqdm import tqdm

from lmnoise.errors import UserError

ENVIRONMENT = {
    # Room for all on one accelerator.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # A traceback's last line is then the error.
    "JAX_TRACEBACK_FILTERING": "off",
    # PyTorch's threads sleep while they wait: between its turns they would take time from the
    # others, and on a machine that is not quiet spinning makes it many times slower itself.
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
}
OURS = "lmnoise_worker.py"


class Entry(NamedTuple):
    """A contender and how its process starts.

    Attributes:
      peer_python: None for our own interpreter.
      cache: an empty folder for compiled programs, with which a second start is measured; None
        to compile anew whatever was compiled before, and start once.
    """

    contender: Contender
    script: str
    specification: dict[str, Any]
    peer_python: str | None = None
    cache: Path | None = None


def check_peer_python(program: str) -> None:
    """Raises a UserError unless the flag --peer_python names a program."""
    if not os.access(program, os.X_OK) or Path(program).is_dir():
        raise UserError(f"--peer_python: {program} is no program: name a Python")


def check_peer(program: str | None, model: str | None) -> None:
    """Raises a UserError unless --peer_python and --peer_model name files, or neither is given."""
    if bool(program) != bool(model):
        raise UserError("--peer_python and --peer_model go together: name both or neither")
    if program:
        check_peer_python(program)
        if not Path(model).is_file():
            raise UserError(f"--peer_model: there is no file {model}: name nanoGPT's model.py")


def backend() -> str:
    """JAX's default backend, asked of a process that lets go of the devices at once."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"JAX finds no device: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()[-1]


def measure(
    entries: Sequence[Entry],
    rounds: int,
    title: str,
    *,
    turn_seconds: float = 0.0,
    alone: bool = False,
) -> tuple[list[Result], list[str]]:
    """Rounds of all contenders: results, and a sentence for each one left out.

    A machine that drifts drifts for all of them.

    Args:
      entries: the contenders in the order of their turns.
      rounds: turns of each.
      title: of the progress bars.
      turn_seconds: of a contender that does not say its steps; at least one dispatch.
      alone: a process ends before the next one starts, and starts anew for each of its turns.

    Raises:
      UserError: a peer cannot take part.
    """
    results, left_out = [], []
    with ExitStack() as stack:
        for entry in tqdm(entries, desc=f"{title}: start", unit="contender"):
            try:
                result = _first(entry, turn_seconds)
            except Missing as error:
                contender = entry.contender
                left_out.append(f"{contender.name} with {contender.operands} left out: {error}.")
                tqdm.write(left_out[-1], file=sys.stderr)
                continue
            stack.callback(result.worker.close)
            results.append((entry, result))
            if alone:
                result.worker.close()
            elif entry.cache:
                result.second_start = _start(entry, first_only=True).first_step
        turns = [pair for _ in range(rounds) for pair in results]
        for entry, result in tqdm(turns, desc=f"{title}: measure", unit="turn"):
            if alone:
                _turn_alone(entry, result)
            else:
                result.take_turn(result.worker)
    if not results:
        raise UserError(f"nothing was measured: {left_out[0]}")
    return [result for _, result in results], left_out


def _first(entry: Entry, turn_seconds: float) -> Result:
    """The started contender, and how many steps its turns have."""
    worker, contender = _start(entry), entry.contender
    dispatches = max(1, round(turn_seconds / worker.warm))
    return Result(contender, worker, contender.steps or contender.dispatch * dispatches)


def _turn_alone(entry: Entry, result: Result) -> None:
    worker = _start(entry)
    try:
        result.take_turn(worker)
    finally:
        worker.close()
    if entry.cache and result.second_start is None:
        result.second_start = worker.first_step


def _start(entry: Entry, first_only: bool = False) -> Worker:
    command = [entry.peer_python or sys.executable, str(Path(__file__).parent / entry.script)]
    try:
        environment = ENVIRONMENT | _caches(entry.cache)
        return Worker(command, entry.specification, environment, first_only)
    except Missing:
        raise
    except Refused as error:
        if entry.script == OURS:
            raise  # A bug of ours, with the worker's own traceback.
        # The first line says what happened, and the last one of a traceback why.
        lines = str(error).splitlines()
        reason = ": ".join(dict.fromkeys([lines[0], lines[-1]]))
        raise UserError(f"{entry.contender.name} cannot be measured: {reason}") from error


def _caches(folder: Path | None) -> dict[str, str]:
    """Where JAX and PyTorch keep what they compile."""
    if folder is None:
        return {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        # Of programs however small and quick to compile.
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
