"""Several processes that train as one: they join, stop at one step, and end together.

If one is killed, fails, or loses its machine, the others end with a sentence and status 75
(EX_TEMPFAIL: start all again; 2 says: mend what the sentence names first). They do so at once if
the system could still close its connections, otherwise, or if it is stopped, when it has said
nothing for LMNOISE_LOST_TIMEOUT seconds (default 30). They wait LMNOISE_JOIN_TIMEOUT seconds
(default 300) for each other at the start.

A process that is only busy answers: a thread of its own does it, and XLA compiles, executes and
communicates without Python's lock. A C call that holds the lock for the whole time, such as the
loading of a large library from a slow disk, is taken for silence; so is a machine that swaps for
as long. Where that happens, raise LMNOISE_LOST_TIMEOUT.

jax has a preemption service that also agrees on a step. It is off: it hears SIGTERM only, takes
the signal from Python for the whole life of the process, looks once a second, and waits up to a
quarter of an hour for a process that does not answer. The line that tells of lost processes (see
`peers`) agrees as cheaply: nothing is exchanged until somebody asks for a stop.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv, K8sCluster

from lmnoise import cli
from lmnoise.errors import UserError, first_line
from lmnoise.training import peers, relay, roll

# This process's end of the line to the others; None if it is alone.
_member: peers.Member | None = None


class _Place(NamedTuple):
    """Where the processes meet, and which one this is."""

    address: str
    count: int
    number: int
    devices: Sequence[int] | None
    detected: bool


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes of one run; nothing for a process that is alone.

    The environment says so: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID; without the first, what jax finds by itself on a Cloud TPU slice, under
    SLURM, Open MPI or a Kubernetes indexed job. JAX_NUM_PROCESSES=1 keeps a process alone there.

    All processes leave the block together. If one leaves it by an exception, that process prints
    it and ends, and the others end with a sentence that quotes it. Enter it before anything
    that starts jax's devices.

    Raises:
      UserError: the environment is incomplete, or the others did not come; it names the address.
    """
    global _member
    place = _place()
    if place is None:
        yield
        return
    lost = _seconds("LMNOISE_LOST_TIMEOUT", 30)
    helper = None
    _member = _meet(place, _seconds("LMNOISE_JOIN_TIMEOUT", 300), lost)
    try:
        helper = _start_jax(place, lost)
        yield
        _member.leave(2 * lost)
        jax.distributed.shutdown()
    except BaseException as error:
        fail(error)
        raise
    finally:
        _member = None
        if helper is not None:
            helper.kill()
            helper.wait()


def fail(error: BaseException) -> None:
    """Ends a process of several because of an error; returns in a process that is alone.

    Call it before anything that waits for the other processes, such as closing checkpoints.
    """
    if _member is None:
        return
    known = cli.failure(error)
    if known is None:
        if isinstance(error, Exception):
            # If another process is gone, that is why this one failed, and its thread will say so.
            time.sleep(2)
        status, reason = 1, first_line(error)
        _member.fail(status, reason, lambda: traceback.print_exception(error))
    status, sentence = known
    _member.fail(status, sentence.removeprefix("error: "), lambda: print(sentence, file=sys.stderr))


class StopSignals:
    """Within it SIGTERM and the first SIGINT ask for a stop instead of ending the process.

    Of several processes one signal to one of them stops all, before the same dispatch.
    """

    def __enter__(self):
        self._requested = False
        if _member is not None:
            _member.start_fit()
        self._previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        for number in self._previous:
            signal.signal(number, self._handle)
        return self

    def reached(self) -> bool:
        """Whether to stop here. Every process asks once before each dispatch."""
        return self._requested if _member is None else _member.reached()

    def _handle(self, number, frame):
        self._requested = True
        if _member is not None:
            _member.request_stop()
        # A second signal acts as it would have without us.
        signal.signal(number, self._previous[number])

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _place() -> _Place | None:
    """None for a process that is alone."""
    if os.environ.get("JAX_NUM_PROCESSES") == "1":
        return None
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        return _detected()
    numbers = []
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        try:
            numbers.append(int(os.environ[name]))
        except (KeyError, ValueError):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, so {name} must be a number: set it, or unset "
                "JAX_COORDINATOR_ADDRESS to run one process"
            ) from None
    count, number = numbers
    if not 0 <= number < count:
        raise UserError(
            f"JAX_PROCESS_ID is {number} and JAX_NUM_PROCESSES {count}: number the processes "
            f"from 0 to {count - 1}"
        )
    try:
        roll.split(address)
    except ValueError:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}: it must be host:port") from None
    return _Place(address, count, number, None, detected=False)


def _detected() -> _Place | None:
    """What jax finds in the environment of a cluster."""
    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in os.environ:
        kinds.remove(K8sCluster)  # A pod that is no part of an indexed job is alone.
    try:
        cluster = next((kind for kind in kinds if kind.is_env_present()), None)
        if cluster is None or cluster.get_process_count() == 1:
            return None
        seconds = _seconds("LMNOISE_JOIN_TIMEOUT", 300)
        address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, seconds
        )
    except Exception as error:  # Whatever the metadata server and the cluster's tools raise.
        raise UserError(
            f"this looks like one process of several, but they cannot be found ({error}): set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each, or "
            "JAX_NUM_PROCESSES=1 to run this one alone"
        ) from error
    return _Place(address, count, number, devices, detected=True)


def _meet(place: _Place, patience: int, lost: int) -> peers.Member:
    """Calls or answers the roll; raises UserError if not all come."""
    if place.number > 0:
        line = roll.answer(place.address, place.number, place.count, patience)
        member = peers.Member(line, place.number, place.count, lost)
    else:
        port = roll.split(place.address)[1]
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{port}")
        others = roll.call(place.address, bind, place.count, patience)
        mine, its = socket.socketpair()
        hub = peers.Hub(others | {0: its}, lost)
        hub.start()
        member = peers.Member(mine, 0, place.count, lost, hub)
    member.start()
    return member


def _start_jax(place: _Place, lost: int) -> subprocess.Popen | None:
    """Starts jax's own service, of which process 0 has the server; returns the relay to it."""
    jax.config.update("jax_enable_preemption_service", False)
    address, helper = place.address, None
    if any(name.lower().endswith("_proxy") for name in os.environ):
        # Clusters set proxies for the world outside, which would not find the processes.
        os.environ.setdefault("no_grpc_proxy", f"127.0.0.1,{roll.split(address)[0]}")
        jax.config.update("jax_check_proxy_envs", False)
    if place.number > 0:
        host, port = roll.split(address)
        # In a session of its own, so that Ctrl-C in a terminal does not reach it.
        helper = subprocess.Popen(
            [sys.executable, "-I", "-S", relay.__file__, str(os.getpid()), host, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        address = f"127.0.0.1:{int(helper.stdout.readline())}"
    # All are there, so the time to join is short. Its heartbeats, which abort a process, are to
    # come long after our line, which ends it with a sentence.
    jax.distributed.initialize(
        address,
        place.count,
        place.number,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate" if place.detected else None,
        initialization_timeout=max(60, lost),
        heartbeat_timeout_seconds=max(3600, 10 * lost),
        shutdown_timeout_seconds=lost,
    )
    return helper


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name} is {text!r}: it must be a number of seconds, at least 1")
    return int(text)
