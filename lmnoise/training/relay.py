"""Stands between jax and the coordination service of process 0, as a process of its own.

    python relay.py PARENT_PID HOST PORT

jax aborts a process, with a page of C++, in the moment in which the service's connection breaks.
Here it does not break: when process 0 is gone jax hears nothing, and `lmnoise.training.peers`
ends this process with a sentence. A process of its own, because jax may wait for the service
while it holds Python's lock. Prints the port it listens on; ends with its parent.
"""

import os
import signal
import socket
import sys
import threading
import time


def copy(source: socket.socket, target: socket.socket, close: bool) -> None:
    """Copies until the source ends; closes the target then, or leaves it open and silent."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass
    if close:
        target.close()


def connect(client: socket.socket, host: str, port: int) -> None:
    """Connects one client of jax, however long the service takes to be there."""
    while True:
        try:
            service = socket.create_connection((host, port), timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    service.settimeout(None)
    for end in (client, service):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=copy, args=(service, client, False), daemon=True).start()
    copy(client, service, True)


def accept(listener: socket.socket, host: str, port: int) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=connect, args=(client, host, port), daemon=True).start()


def main() -> None:
    # Whoever asks all processes of a job to stop asks this one too; it is needed to the end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener, host, port), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    while os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
