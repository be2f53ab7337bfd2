"""Contenders of a benchmark, each a process of its own, asked in turn."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench_report import Contender, Result
from protocol import Missing, Refused, Worker
from tqdm import tqdm

from lmnoise.errors import UserError

ENVIRONMENT = {
    # Compiled anew, whatever was compiled before; room for all on one accelerator.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # PyTorch's threads sleep while they wait: between its turns they would take time from the
    # others, and on a machine that is not quiet spinning makes it many times slower itself.
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
}


class Entry(NamedTuple):
    """A contender and how its process starts; `peer_python` is None for one of ours."""

    contender: Contender
    script: str
    specification: dict[str, Any]
    peer_python: str | None = None


def check_peer_python(program: str) -> None:
    """Raises a UserError unless the flag --peer_python names a program."""
    if not os.access(program, os.X_OK) or Path(program).is_dir():
        raise UserError(f"--peer_python: {program} is no program: name a Python")


def measure(entries: Sequence[Entry], rounds: int, title: str) -> tuple[list[Result], list[str]]:
    """Rounds of all contenders: results, and a sentence for each one left out.

    A machine that drifts drifts for all of them.

    Raises:
      UserError: a peer cannot take part.
    """
    results, left_out = [], []
    with ExitStack() as stack:
        for entry in tqdm(entries, desc=f"{title}: start", unit="contender"):
            contender = entry.contender
            try:
                worker = _start(entry)
            except Missing as error:
                left_out.append(f"{contender.name} with {contender.operands} left out: {error}.")
                tqdm.write(left_out[-1], file=sys.stderr)
                continue
            stack.callback(worker.close)
            results.append(Result(contender, worker))
        turns = [result for _ in range(rounds) for result in results]
        for result in tqdm(turns, desc=f"{title}: measure", unit="turn"):
            result.turns.append(result.worker.run(result.contender.steps))
    if not results:
        raise UserError(f"nothing was measured: {left_out[0]}")
    return results, left_out


def _start(entry: Entry) -> Worker:
    command = [entry.peer_python or sys.executable, str(Path(__file__).parent / entry.script)]
    try:
        return Worker(command, entry.specification, ENVIRONMENT)
    except Missing:
        raise
    except Refused as error:
        if not entry.peer_python:
            raise  # A bug of ours, with the worker's own traceback.
        # The first line says what happened, and the last one of a traceback why.
        lines = str(error).splitlines()
        reason = ": ".join(dict.fromkeys([lines[0], lines[-1]]))
        raise UserError(f"{entry.contender.name} cannot be measured: {reason}") from error
