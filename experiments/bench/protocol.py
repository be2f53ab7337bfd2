"""Contenders as processes of their own, asked in turn over pipes: one line of JSON a message.

Both ends are here. Standard library only, and nothing newer than Python 3.10, because the peer's
interpreter reads it too.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Refused(Exception):
    """A contender cannot take part; the message is a clause that says why."""


class Missing(Refused):
    """It lacks a library, a compiler or memory here: the others go on without this contender."""


def serve(build: Callable[[dict[str, Any]], Any]) -> None:
    """A worker's whole life: build, run the first steps, then answer requests until the end.

    Args:
      build: from the specification (the first line of standard input) to an object with `facts`
        (JSON), `advance(steps)`, which ends only when the device is done and returns the last
        loss, and `memory()`, the peak in bytes. It may raise `Refused`, and so may the first
        steps, which compile.
    """
    # Whatever a model file prints must not mix with the answers.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message):
        print(json.dumps(message), file=channel, flush=True)

    specification = json.loads(sys.stdin.readline())
    dispatch = specification["dispatch"]
    try:
        contender = build(specification)
        first, _ = _timed(contender.advance, dispatch)
    except Refused as error:
        answer(refused=str(error), missing=isinstance(error, Missing))
        return
    answer(first=first)
    # Some programs are compiled once more, for what the first call returned.
    second, _ = _timed(contender.advance, dispatch)
    warm, _ = _timed(contender.advance, dispatch)
    answer(
        compile=max(0.0, first + second - 2 * warm),
        warm=warm,
        facts=contender.facts,
        memory=contender.memory(),
    )
    resting = time.process_time()
    for line in sys.stdin:
        woken = time.process_time()
        seconds, loss = _timed(contender.advance, json.loads(line)["steps"])
        rested, resting = resting, time.process_time()
        answer(
            seconds=seconds,
            loss=loss,
            cpu=resting - woken,
            idle_cpu=woken - rested,
            memory=contender.memory(),
        )


def _timed(advance: Callable[[int], float], steps: int) -> tuple[float, float]:
    start = time.perf_counter()
    loss = advance(steps)
    return time.perf_counter() - start, loss


def fingerprint(path: Path) -> str:
    """What a copied file is known by: the start of its SHA-256."""
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def resident_peak() -> int:
    """The most resident memory that this process ever had, in bytes."""
    try:
        # On Linux the high-water mark of getrusage starts at that of the parent process.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def busy_seconds() -> float:
    """CPU seconds that this machine has spent on anything since its start; nan if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return math.nan
    user, nice, system, _, _, *interrupts_and_steal = map(int, fields)
    return sum([user, nice, system, *interrupts_and_steal]) / os.sysconf("SC_CLK_TCK")


class Worker:
    """The other end: a started and warmed-up contender.

    Attributes:
      first_step: seconds from the start of the process to the end of its first dispatch.
      compile: seconds that the first two dispatches took longer than warm ones.
      warm: seconds of a warm dispatch.
      facts: what the contender says about itself.
      memory: peak in bytes so far.
      idle_cpu: the most CPU seconds that it used between two of its turns.
    """

    def __init__(
        self,
        command: list[str],
        specification: dict[str, Any],
        env: dict[str, str],
        first_only: bool = False,
    ):
        """Starts the worker and waits until it is warm.

        Args:
          command, specification, env: of the process.
          first_only: end it after its first dispatch, for `first_step` alone.

        Raises:
          Missing, Refused: it cannot take part.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        start = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=os.environ | env,
            )
        except OSError as error:
            raise Refused(f"{command[0]} does not start ({error.strerror})") from error
        try:
            self._ask(specification)
            self.first_step = time.perf_counter() - start
            if first_only:
                self.close()
                return
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.compile, self.warm = ready["compile"], ready["warm"]
        self.facts, self.memory = ready["facts"], ready["memory"]
        self.idle_cpu = 0.0

    def run(self, steps: int) -> dict[str, float]:
        """Runs the steps.

        Returns:
          `seconds`, `cpu` (CPU seconds of the worker), `others` (those of all other processes
          meanwhile; nan where the system does not tell) and the last `loss`.
        """
        before = busy_seconds()
        answer = self._ask({"steps": steps})
        others = max(0.0, busy_seconds() - before - answer["cpu"])
        self.memory = answer["memory"]
        self.idle_cpu = max(self.idle_cpu, answer["idle_cpu"])
        return {name: answer[name] for name in ("seconds", "cpu", "loss")} | {"others": others}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # It has ended: the missing answer says so.
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            self._errors.seek(0)
            said = (line or self._errors.read()).strip() or "nothing"
            raise Refused(f"instead of an answer its process said\n{said}") from None
        if "refused" in answer:
            raise (Missing if answer["missing"] else Refused)(answer["refused"])
        return answer
