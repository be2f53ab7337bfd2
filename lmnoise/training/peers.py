"""A line between the processes of a run: who failed, who is gone, and where all stop.

The connections are those of the `roll`: the kernel closes those of a process that is killed at
once. Of one that is stopped, or whose machine is gone, its silence tells: process 0 pings all of
them, and they answer. jax's own service would abort the others instead.

A message is a JSON list on a line. To process 0: ["ping"], ["failed", reason], ["stop"],
["at", fit, call], ["done"]; from it: ["ping"], ["failed", process, reason],
["lost", process, why], ["where"], ["stop", fit, call], ["bye"].
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from lmnoise.errors import UserError

AGAIN = "the same command on all of them resumes the run from the last checkpoint"
FOLLOWED = 75  # exit status of a process that ends because another did: EX_TEMPFAIL of sysexits.h
_LINGER = 5.0  # seconds for the others to hear why this process ends
# Silence is counted in tenths of its bound, by timers of the process that counts: one that was
# itself stopped, together with the others or alone, has counted one when it goes on.
_TENTHS, _PATIENCE = 10, 9
_ENDED = "is gone without a word (killed, out of memory, or its machine or network failed)"


def send(connection: socket.socket, message: list[Any]) -> None:
    """Sends one line, in one call: a signal's handler may send too. A lost peer is no error."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def _silence(seconds: float) -> str:
    return f"has said nothing for {seconds:g} s (stopped, or its machine or network failed)"


class Hub(threading.Thread):
    """In process 0: hears all processes, itself included, and tells all what concerns them.

    Args:
      connections: by the numbers of the processes.
      seconds: of silence after which a process is lost.
    """

    def __init__(self, connections: dict[int, socket.socket], seconds: float):
        super().__init__(name="lmnoise-hub", daemon=True)
        self.connections = connections
        self._seconds = seconds
        self._silent = dict.fromkeys(connections, 0)
        self._over = False  # All are to end: nobody must answer any more.
        self._positions: dict[int, list[int]] = {}
        self._done: set[int] = set()
        self._asked = False

    def run(self) -> None:
        pieces = dict.fromkeys(self.connections, b"")
        every = self._seconds / _TENTHS
        due = time.monotonic() + every
        with selectors.DefaultSelector() as ready:
            for number, connection in self.connections.items():
                ready.register(connection, selectors.EVENT_READ, number)
            while ready.get_map().keys() - {self.connections[0].fileno()}:
                for key, _ in ready.select(max(0, due - time.monotonic())):
                    number = key.data
                    try:
                        data = key.fileobj.recv(1 << 16)
                    except OSError:
                        data = b""
                    if not data:
                        ready.unregister(key.fileobj)
                        self._ended(number)
                        continue
                    self._silent[number] = 0
                    *lines, pieces[number] = (pieces[number] + data).split(b"\n")
                    for line in lines:
                        self._hear(number, *json.loads(line))
                if time.monotonic() >= due:
                    due = time.monotonic() + every
                    for number in self._count_silence():
                        ready.unregister(self.connections[number])

    def _count_silence(self) -> list[int]:
        """Asks all for an answer; those who are lost because they gave none."""
        if self._over:
            return []
        for number in self._silent:
            self._silent[number] += 1
        lost = [n for n, tenths in self._silent.items() if tenths > _PATIENCE]
        for number in lost:
            self._tell(["lost", number, _silence(self._seconds)])
        self._over = bool(lost)
        self._tell(["ping"])
        return lost

    def _hear(self, number: int, kind: str, *rest: Any) -> None:
        everyone = len(self.connections)
        if kind == "failed":
            self._done.add(number)  # It has said why it ends.
            self._over = True
            self._tell(["failed", number, *rest])
        elif kind == "stop" and not self._asked:
            self._asked = True
            self._tell(["where"])
        elif kind == "at":
            self._positions[number] = list(rest)
            if len(self._positions) == everyone:
                self._tell(["stop", *max(self._positions.values())])
        elif kind == "done":
            self._done.add(number)
            if len(self._done) == everyone:
                self._over = True
                self._tell(["bye"])

    def _ended(self, number: int) -> None:
        if number not in self._done:
            self._over = True
            self._tell(["lost", number, _ENDED])

    def _tell(self, message: list[Any]) -> None:
        # Process 0 itself last: it may end at once.
        for number in sorted(self.connections, reverse=True):
            send(self.connections[number], message)


class Member(threading.Thread):
    """One process's end of the line; its thread ends the process when another one is lost.

    Args:
      connection: to the hub.
      number, count: of this process, and of all.
      seconds: of silence after which the hub is lost.
      hub: in process 0.
    """

    def __init__(
        self,
        connection: socket.socket,
        number: int,
        count: int,
        seconds: float,
        hub: Hub | None = None,
    ):
        super().__init__(name="lmnoise-member", daemon=True)
        self._seconds = seconds
        connection.settimeout(seconds / _TENTHS)
        self.number, self.count = number, count
        self._connection, self._hub = connection, hub
        self._changed = threading.Condition()
        # (fit, call of `reached`): the same sequence in every process.
        self._position = (0, 0)
        self._stop_after: tuple[int, int] | None = None
        self._held = False
        self._ending = threading.Lock()
        self._bye = threading.Event()

    def start_fit(self) -> None:
        """Positions count from here."""
        with self._changed:
            self._position = (self._position[0] + 1, 0)

    def reached(self) -> bool:
        """Whether all processes stop before what follows this call; each must call it alike.

        It waits only while a stop is agreed on: every process says how far it is and may not go
        on until the furthest is known, which is where all stop.
        """
        with self._changed:
            while self._held:
                self._changed.wait()
            following = (self._position[0], self._position[1] + 1)
            if self._stop_after is not None and following > self._stop_after:
                return True
            self._position = following
            return False

    def request_stop(self) -> None:
        """Asks for a stop of all; a signal's handler may call it."""
        send(self._connection, ["stop"])

    def run(self) -> None:
        piece, silent = b"", 0
        while silent < _PATIENCE:
            try:
                data = self._connection.recv(1 << 16)
            except TimeoutError:
                silent += 1
                continue
            except OSError:
                data = b""
            if not data:
                self._hear("lost", 0, _ENDED)
                return
            silent = 0
            *lines, piece = (piece + data).split(b"\n")
            for line in lines:
                if self._hear(*json.loads(line)):
                    return
        self._hear("lost", 0, _silence(self._seconds))

    def _hear(self, kind: str, *rest: Any) -> bool:
        """Acts on a message; whether it was the last."""
        if kind == "ping":
            send(self._connection, ["ping"])
        elif kind == "where":
            with self._changed:
                self._held = True
                send(self._connection, ["at", *self._position])
        elif kind == "stop":
            with self._changed:
                self._stop_after, self._held = tuple(rest), False
                self._changed.notify_all()
        elif kind == "failed" and rest[0] != self.number:
            self._follow(f"process {rest[0]} of {self.count} failed ({rest[1]})")
        elif kind == "lost":
            number, why = rest
            this = ", which is this one," if number == self.number else ""
            self._follow(f"process {number} of {self.count}{this} {why}")
        elif kind == "bye":
            self._bye.set()
        return kind == "bye"

    def _follow(self, what: str) -> None:
        if self._ending.acquire(blocking=False):
            sentence = f"error: {what}, so this one ends too; {AGAIN}"
            self._end(FOLLOWED, lambda: print(sentence, file=sys.stderr))

    def fail(self, status: int, reason: str, say: Callable[[], None]) -> NoReturn:
        """Ends this process, and tells the others why."""
        if not self._ending.acquire(blocking=False):
            self.join()  # The thread is ending the process.
        send(self._connection, ["failed", reason])
        self._end(status, say)

    def _end(self, status: int, say: Callable[[], None]) -> NoReturn:
        """Without jax's exit, which waits for the others and aborts if they do not come."""
        if self._hub is not None:
            print(file=sys.stderr)  # The progress bar of process 0 has left the line open.
        say()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass
        if self._hub is not None:
            self._hub.join(_LINGER)  # It ends with the last of the others.
        os._exit(status)

    def leave(self, seconds: float) -> None:
        """Returns when all processes have come here.

        Raises:
          UserError: some did not within `seconds`.
        """
        send(self._connection, ["done"])
        if not self._bye.wait(seconds):
            raise UserError(
                f"the run is done, but not all {self.count} processes came to its end within "
                f"{seconds:g} s: look at their output"
            )
