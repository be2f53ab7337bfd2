"""The line between processes: the roll, where all stop, and what is said of a lost one."""

import contextlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lmnoise.errors import UserError
from lmnoise.training import peers, processes, roll


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# ---- the roll -----------------------------------------------------------------------------------


def test_all_answer_and_the_port_is_free_for_jax(address):
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(roll.answer, address, n, 4, 10) for n in (3, 1, 2)]
        members = roll.call(address, address, 4, 10)
        assert sorted(members) == [1, 2, 3]
        with socket.create_server(roll.split(address)):  # as jax does, the lines being open
            pass
        for connection in (*members.values(), *(f.result() for f in others)):
            connection.close()


def test_strangers_and_those_who_come_again_do_no_harm(address):
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(roll.call, address, address, 3, 10)
        with contextlib.closing(_connected(address)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
        for words in (["here", "x", 3], ["here", True, 3], ["hello", 1, 2], ["here", 1], {}):
            with contextlib.closing(_connected(address)) as stranger:
                peers.send(stranger, words)
                assert stranger.recv(100) == b""
        with contextlib.closing(_connected(address)) as died:
            peers.send(died, ["here", 1, 3])
            time.sleep(0.1)
        others = [threading.Thread(target=roll.answer, args=(address, n, 3, 10)) for n in (1, 2)]
        for other in others:
            other.start()
        assert sorted(called.result()) == [1, 2]


def test_a_stranger_who_never_ends_a_line_does_not_keep_the_roll(address):
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(roll.call, address, address, 2, 1)
        with contextlib.closing(_connected(address)) as stranger:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    stranger.send(b"[")
                if called.done():
                    break
                time.sleep(0.1)
            with pytest.raises(UserError, match="numbers 1 did not come"):
                called.result(0)


def _connected(address):
    for _ in range(100):
        with contextlib.suppress(ConnectionError):
            return socket.create_connection(roll.split(address))
        time.sleep(0.05)
    raise AssertionError("nobody listens")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([(1, 3), (1, 3)], "two processes of 3 have the number 1"),
        ([(3, 3)], "two processes of 3 have the number 3"),
        ([(1, 2)], "process 1 was told of 2 processes and process 0 of 3"),
    ],
)
def test_a_roll_that_cannot_be_right_is_refused_on_both_sides(address, numbers, words):
    with ThreadPoolExecutor(3) as pool:
        called = pool.submit(roll.call, address, address, 3, 10)
        others = [pool.submit(roll.answer, address, *who, 10) for who in numbers]
        for future in (called, *others):
            with pytest.raises(UserError, match=words):
                future.result()


def test_who_is_missing_is_named(address):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(roll.answer, address, 2, 4, 10)
        words = rf"numbers 1, 3 did not come to {address} within 1 s"
        with pytest.raises(UserError, match=words):
            roll.call(address, address, 4, 1)
        with pytest.raises(UserError, match=words):
            other.result()


def test_a_coordinator_that_never_answers_is_named(address):
    with pytest.raises(UserError, match=f"process 1 of 2 found no process 0 at {address}"):
        roll.answer(address, 1, 2, 0.3)
    silent = socket.create_server(roll.split(address))
    with silent, pytest.raises(UserError, match=f"process 0 at {address} did not see all 2"):
        roll.answer(address, 1, 2, 0.3)


def test_a_port_that_is_taken_is_named(address):
    taken = socket.create_server(roll.split(address))
    with taken, pytest.raises(UserError, match=f"cannot listen on {address}.*another port"):
        roll.call(address, address, 2, 5)


# ---- where all stop -----------------------------------------------------------------------------


@pytest.fixture
def members():
    """Three processes' ends of the line, in threads of this one."""
    pairs = [socket.socketpair() for _ in range(3)]
    hub = peers.Hub({n: its for n, (_, its) in enumerate(pairs)}, 60)
    ends = [peers.Member(mine, n, 3, 60) for n, (mine, _) in enumerate(pairs)]
    for thread in (hub, *ends):
        thread.start()
    yield ends
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda end: end.leave(10), ends))
    for thread in ends:
        thread.join(10)
    for mine, _ in pairs:
        mine.close()
    hub.join(10)
    for _, its in pairs:
        its.close()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def agreed(end):
    return end._stop_after is not None


def test_all_stop_after_what_the_furthest_has_begun(members):
    for end, calls in zip(members, (5, 3, 4), strict=True):
        end.start_fit()
        assert not any(end.reached() for _ in range(calls))
    members[1].request_stop()
    wait_until(lambda: all(map(agreed, members)))
    left = [0, 0, 0]
    for number, end in enumerate(members):
        while not end.reached():
            left[number] += 1
    assert left == [0, 2, 1]


def test_nobody_runs_ahead_while_they_agree(members):
    """Calls race with the agreement; still all stop at one call."""
    counts = [0, 0, 0]

    def work(number):
        end = members[number]
        end.start_fit()
        while not end.reached():
            counts[number] += 1
            time.sleep(0.0005 * (number + 1))
            if counts[number] == 40:
                end.request_stop()  # all of them ask

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert len(set(counts)) == 1
    assert counts[0] >= 40


def test_a_signal_when_others_are_past_their_last_step_stops_nobody_in_this_run(members):
    for end, calls in zip(members, (4, 4, 3), strict=True):
        end.start_fit()
        for _ in range(calls):
            end.reached()
    members[2].request_stop()
    wait_until(lambda: agreed(members[2]))
    assert not members[2].reached()  # its last, as the others'
    for end in members:  # the next run of a study does not begin
        end.start_fit()
        assert end.reached()


def test_a_stop_before_the_first_step(members):
    members[0].request_stop()
    wait_until(lambda: all(map(agreed, members)))
    for end in members:
        end.start_fit()
        assert end.reached()


# ---- silence ------------------------------------------------------------------------------------


def lines_of(connection):
    """Messages as they come, to the end of the connection."""
    with connection.makefile("r") as lines:
        yield from map(json.loads, lines)


def test_who_answers_stays_and_who_is_silent_is_lost():
    pairs = [socket.socketpair() for _ in range(3)]
    hub = peers.Hub({n: its for n, (_, its) in enumerate(pairs)}, 2)
    hub.start()

    def answer(mine):
        for pings, (kind, *rest) in enumerate(lines_of(mine)):
            if kind != "ping":
                return pings, kind, rest
            peers.send(mine, ["ping"])

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(answer, pairs[n][0]) for n in (0, 1)]
        for future in answers:
            pings, kind, (number, why) = future.result()
            assert pings > 3
            assert (kind, number) == ("lost", 2)
            assert "said nothing for 2 s" in why
    told = [kind for kind, *_ in lines_of_what_came(pairs[2][0])]
    assert "lost" in told  # for when it goes on
    for mine, _ in pairs:
        mine.close()
    hub.join(10)
    assert not hub.is_alive()
    for _, its in pairs:
        its.close()


def lines_of_what_came(connection):
    connection.setblocking(False)
    return [json.loads(line) for line in connection.recv(1 << 16).splitlines()]


def test_a_hub_that_is_silent_is_lost(monkeypatch, capfd):
    mine, its = socket.socketpair()
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    member = peers.Member(mine, 1, 2, 0.5)
    member.start()
    member.join(10)
    assert ends == [75]
    assert "error: process 0 of 2 has said nothing for 0.5 s" in capfd.readouterr().err
    mine.close()
    its.close()


# ---- what the environment says ------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


def test_a_laptop_is_alone(environment):
    assert processes._place() is None
    environment(KUBERNETES_SERVICE_HOST="10.0.0.1")  # a notebook in a cluster
    assert processes._place() is None
    with processes.joined():
        assert processes._member is None


def test_slurm_is_found(environment):
    environment(**SLURM)
    place = processes._place()
    assert (place.address, place.count, place.number) == ("node003:61441", 2, 1)
    environment(SLURM_NTASKS="1")
    assert processes._place() is None


def test_one_process_alone_in_a_cluster(environment):
    environment(**SLURM, JAX_NUM_PROCESSES="1")
    assert processes._place() is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "JAX_NUM_PROCESSES must be a number"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID must be a number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "LMNOISE_JOIN_TIMEOUT": "0"},
            "LMNOISE_JOIN_TIMEOUT is '0'",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "host"},
            "JAX_COORDINATOR_ADDRESS is 'host'",
        ),
    ],
)
def test_an_environment_that_is_not_whole_is_named(environment, values, words):
    environment(**({"JAX_COORDINATOR_ADDRESS": "localhost:1"} | values))
    with pytest.raises(UserError, match=words), processes.joined():
        pass
