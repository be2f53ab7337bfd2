"""A line between the processes of a run: who failed, who is gone, and where all stop.

Process 0 calls the roll on the coordinator's own port before jax takes it, and the connections
stay open: the kernel closes those of a process that is killed at once, and finds out about a
machine that is gone by TCP keep-alive. jax's own service would abort the others instead.

A message is a JSON list on a line. To process 0: ["failed", reason], ["stop"], ["at", fit, call],
["done"]; from it: ["failed", process, reason], ["lost", process], ["where"],
["stop", fit, call], ["bye"].
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
_LINGER = 5.0  # seconds for the others to hear why this process ends


def call_roll(address: str, bind: str, count: int, seconds: float) -> dict[int, socket.socket]:
    """Process 0: waits for the other processes; their connections by number.

    Args:
      address: host:port as the others know it, for messages.
      bind: host:port to listen on.

    Raises:
      UserError: the port is taken, two processes have one number, or some did not come.
    """
    members: dict[int, socket.socket] = {}
    deadline = time.monotonic() + seconds
    try:
        listener = _listen(bind)
    except (OSError, ValueError) as error:
        raise UserError(
            f"process 0 cannot listen on {address} ({error}): choose another port for "
            "JAX_COORDINATOR_ADDRESS, or end the process that has it"
        ) from error
    with listener:
        while len(members) < count - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted({*range(1, count)} - members.keys())
                raise UserError(
                    f"of {count} processes those with the numbers {_some(missing)} did not come "
                    f"to {address} within {seconds:g} s: start the same command on all of them"
                ) from None
            fault = _admit(connection, members, count)
            if fault:
                for other in (connection, *members.values()):
                    send(other, ["refused", fault])
                raise UserError(fault)
    for connection in members.values():
        send(connection, ["go"])
    return members


def answer_roll(address: str, number: int, count: int, seconds: float) -> socket.socket:
    """Another process: its connection to process 0, once all are there.

    Raises:
      UserError: nobody answers at the address, or not all came; the message names the address.
    """
    host, port = split(address)
    deadline = time.monotonic() + seconds
    met = False
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=min(5.0, left))
            connection.settimeout(left)
            send(connection, ["here", number, count])
            reply = _read_line(connection)
        except (OSError, ValueError) as error:
            met = met or isinstance(error, TimeoutError)
            time.sleep(0.1)
            continue
        if reply[0] == "refused":
            raise UserError(reply[1])
        connection.settimeout(None)
        return connection
    if met:
        raise UserError(
            f"process 0 at {address} did not see all {count} processes within {seconds:g} s: "
            "start the same command on all of them"
        )
    raise UserError(
        f"process {number} of {count} found no process 0 at {address} within {seconds:g} s: start "
        "the same command on all of them, and check the address and the firewall"
    )


def _listen(bind: str) -> socket.socket:
    host, port = split(bind)
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # SO_REUSEADDR, which this sets, lets jax listen on the port while the connections are open.
    return socket.create_server(
        (host, port), family=family, backlog=1024, dualstack_ipv6=host == "::"
    )


def _admit(connection: socket.socket, members: dict[int, socket.socket], count: int) -> str | None:
    """Notes who has come; a sentence if that cannot be, None also for a stranger."""
    connection.settimeout(5)
    try:
        _, number, of = _read_line(connection)
    except (OSError, ValueError):
        connection.close()
        return None
    connection.settimeout(None)
    if of != count:
        return f"process {number} was told of {of} processes and process 0 of {count}"
    if number in members and _has_ended(members[number]):
        members.pop(number).close()  # Somebody starts those anew that end.
    if number in members or not 0 < number < count:
        return f"two processes of {count} have the number {number}: number them from 0 on"
    members[number] = connection
    return None


def _has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _read_line(connection: socket.socket) -> list[Any]:
    """The first message; what follows it stays in the connection.

    Raises:
      ValueError: it is none of ours. OSError: it ends or does not come.
    """
    text = b""
    while not text.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            raise ConnectionError("the connection ended")
        text += byte
        if len(text) > 1000:
            break
    message = json.loads(text)
    if not isinstance(message, list) or not message:
        raise ValueError("no message")
    return message


def send(connection: socket.socket, message: list[Any]) -> None:
    """Sends one line, in one call: a signal's handler may send too. A lost peer is no error."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def split(address: str) -> tuple[str, int]:
    """(host, port); ValueError if there is no port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def watch_machine(connection: socket.socket, seconds: float) -> None:
    """Makes the connection fail within `seconds` if the machine at its other end is gone."""
    every = max(1, int(seconds / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", every),
        ("TCP_KEEPINTVL", every),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(seconds * 1000)),
    ):
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


class Hub(threading.Thread):
    """In process 0: hears all processes, itself included, and tells all what concerns them."""

    def __init__(self, connections: dict[int, socket.socket]):
        super().__init__(name="lmnoise-hub", daemon=True)
        self.connections = connections
        self._positions: dict[int, list[int]] = {}
        self._done: set[int] = set()
        self._asked = False

    def run(self) -> None:
        pieces = dict.fromkeys(self.connections, b"")
        with selectors.DefaultSelector() as ready:
            for number, connection in self.connections.items():
                ready.register(connection, selectors.EVENT_READ, number)
            while ready.get_map().keys() - {self.connections[0].fileno()}:
                for key, _ in ready.select():
                    number = key.data
                    try:
                        data = key.fileobj.recv(1 << 16)
                    except OSError:
                        data = b""
                    if not data:
                        ready.unregister(key.fileobj)
                        self._ended(number)
                        continue
                    *lines, pieces[number] = (pieces[number] + data).split(b"\n")
                    for line in lines:
                        self._hear(number, *json.loads(line))

    def _hear(self, number: int, kind: str, *rest: Any) -> None:
        everyone = len(self.connections)
        if kind == "failed":
            self._done.add(number)  # It has said why it ends.
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
                self._tell(["bye"])

    def _ended(self, number: int) -> None:
        if number not in self._done:
            self._tell(["lost", number])

    def _tell(self, message: list[Any]) -> None:
        # Process 0 itself last: it may end at once.
        for number in sorted(self.connections, reverse=True):
            send(self.connections[number], message)


class Member(threading.Thread):
    """One process's end of the line; its thread ends the process when another one is lost.

    Args:
      connection: to the hub.
      number, count: of this process, and of all.
      hub: in process 0.
    """

    def __init__(self, connection: socket.socket, number: int, count: int, hub: Hub | None = None):
        super().__init__(name="lmnoise-member", daemon=True)
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
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    if self._hear(*json.loads(line)):
                        return
        except OSError:
            pass
        self._hear("lost", 0)

    def _hear(self, kind: str, *rest: Any) -> bool:
        """Acts on a message; whether it was the last."""
        if kind == "where":
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
            self._follow(
                f"process {rest[0]} of {self.count} is gone without a word (killed, out of "
                "memory, or its machine or network failed)"
            )
        elif kind == "bye":
            self._bye.set()
        return kind == "bye"

    def _follow(self, what: str) -> None:
        if self._ending.acquire(blocking=False):
            # The progress bar of process 0 has left the line open.
            start = "" if self._hub is None else "\n"
            self._end(2, f"{start}error: {what}, so this one ends too; {AGAIN}")

    def fail(self, status: int, reason: str, say: Callable[[], None]) -> NoReturn:
        """Ends this process, and tells the others why."""
        if not self._ending.acquire(blocking=False):
            self.join()  # The thread is ending the process.
        say()
        send(self._connection, ["failed", reason])
        self._end(status, "")

    def _end(self, status: int, sentence: str) -> NoReturn:
        """Without jax's exit, which waits for the others and aborts if they do not come."""
        if sentence:
            print(sentence, file=sys.stderr)
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
