"""The roll call: process 0 waits for the other processes of a run, on the coordinator's own port.

It does so before jax takes the port, and the connections stay open (see `peers`).

The port is for a trusted network only, as jax's own is: who can reach it can refuse the run, take
a process's place before that one comes, or hold the roll up.

A message is a JSON list on a line: ["here", process, count] to process 0, and ["go"] or
["refused", reason] from it.
"""

import json
import socket
import time
from collections.abc import Iterable
from typing import Any

from lmnoise.errors import UserError
from lmnoise.training import peers


def call(address: str, bind: str, count: int, seconds: float) -> dict[int, socket.socket]:
    """Process 0: waits for the other processes; their connections by number.

    A stranger's connection is closed; it can hold the roll up for 5 s, not beyond its end.

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
                raise _refusal(
                    members.values(),
                    f"of {count} processes those with the numbers {_some(missing)} did not come "
                    f"to {address} within {seconds:g} s: start the same command on all of them",
                ) from None
            fault = _admit(connection, members, count, min(deadline, time.monotonic() + 5))
            if fault:
                raise _refusal([connection, *members.values()], fault)
    for connection in members.values():
        peers.send(connection, ["go"])
    return members


def _refusal(connections: Iterable[socket.socket], reason: str) -> UserError:
    """Tells those who have come why there is no run, too."""
    for connection in connections:
        peers.send(connection, ["refused", reason])
    return UserError(reason)


def answer(address: str, number: int, count: int, seconds: float) -> socket.socket:
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
        except OSError:
            time.sleep(0.1)
            continue
        try:
            peers.send(connection, ["here", number, count])
            word, *reason = _read_line(connection, deadline)
            if word not in ("go", "refused"):
                raise ValueError("none of ours")
        except (OSError, ValueError) as error:
            met = met or isinstance(error, TimeoutError)
            connection.close()
            time.sleep(0.1)
            continue
        if word == "refused":
            raise UserError(*reason)
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


def _admit(
    connection: socket.socket, members: dict[int, socket.socket], count: int, deadline: float
) -> str | None:
    """Notes who has come; a sentence if that cannot be, None also for a stranger."""
    try:
        word, number, of = _read_line(connection, deadline)
        if word != "here" or type(number) is not int or type(of) is not int:
            raise ValueError("none of ours")
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


def _read_line(connection: socket.socket, deadline: float) -> list[Any]:
    """The first message; what follows it stays in the connection.

    Raises:
      ValueError: it is none of ours. OSError: it ends or is not there by the deadline.
    """
    text = b""
    while not text.endswith(b"\n"):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError("no message")
        connection.settimeout(left)
        if not (byte := connection.recv(1)):
            raise ConnectionError("the connection ended")
        text += byte
        if len(text) > 1000:
            raise ValueError("no message")
    message = json.loads(text)
    if not isinstance(message, list) or not message:
        raise ValueError("no message")
    return message


def split(address: str) -> tuple[str, int]:
    """(host, port); ValueError if there is no port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
