"""The client and the yardstick against each other, and the client against faulty servers."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ixnet.bench import session
from ixnet.bench.client import load_file
from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.bench.conftest import HOST, PATIENCE_S, Loader
from tests.runtime.lab import until

Kecho = Callable[..., subprocess.Popen[str]]

# More than load's own buffer of 256 KiB, kecho's of 64, and what a new socket holds.
LARGE = 3_000_000
BIG = ("--bytes", str(LARGE), "--seconds", "0.3")
FEW = ("--connections", "4", "--seconds", "0.3")


@contextlib.contextmanager
def server(lab: Lab, serve: Callable[[socket.socket], None], port: int = 7000) -> Iterator[None]:
    """Hands each accepted connection to serve(), in a thread, until the end of the block."""
    with in_netns(lab.cfg.server_netns):
        listener = socket.create_server((HOST, port), backlog=64)
    ended = threading.Event()

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE_S)
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection, _ = listener.accept()
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


# ---- all well ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kecho_options", [(), ("--edge",), ("--spin",)])
def test_rr_counts_and_verifies(
    start_kecho: Kecho, load: Loader, kecho_options: tuple[str]
) -> None:
    kecho = start_kecho(*kecho_options)
    status, report = load.run("echo", "--connections", "20", "--seconds", "0.5", "--warmup", "0.1")
    assert status == 0, report
    assert report["opened"] == 20
    assert report["completed"] > 0
    assert report["per_second"] == pytest.approx(report["completed"] / report["seconds"], rel=0.01)
    # Warm-up and the replies after the end are verified, but not counted.
    assert report["verified_bytes"] > report["completed"] * 64
    assert report["verified_bytes"] % 64 == 0
    us = report["us"]
    assert 0 < us["p50"] <= us["p90"] <= us["p99"] <= us["p999"] <= us["max"]
    assert set(report["errors"].values()) == {0}
    kecho.terminate()
    assert kecho.stdout is not None
    accepted, messages, echoed = kecho.stdout.readline().split()[1::2]
    assert int(accepted) == 20
    assert int(echoed) == report["verified_bytes"]
    assert int(messages) >= report["completed"]


@pytest.mark.parametrize("kecho_options", [(), ("--edge",)])
def test_rr_with_messages_beyond_every_buffer(
    start_kecho: Kecho, load: Loader, kecho_options: tuple[str]
) -> None:
    start_kecho(*kecho_options)
    status, report = load.run("echo", "--connections", "3", *BIG)
    assert status == 0, report
    assert report["verified_bytes"] % LARGE == 0
    assert report["verified_bytes"] >= 3 * LARGE


@pytest.mark.parametrize("size", [1, 64, LARGE])
def test_crc_opens_a_connection_for_each(start_kecho: Kecho, load: Loader, size: int) -> None:
    kecho = start_kecho()
    status, report = load.run("connrate", "--bytes", str(size), *FEW)
    assert status == 0, report
    assert report["completed"] > 0
    assert report["opened"] >= report["completed"]
    assert report["verified_bytes"] == report["opened"] * size
    kecho.terminate()
    assert kecho.stdout is not None
    assert int(kecho.stdout.readline().split()[1]) == report["opened"]


@pytest.mark.parametrize("kecho_options", [(), ("--edge",)])
def test_many_verifies_every_message(
    start_kecho: Kecho, load: Loader, kecho_options: tuple[str]
) -> None:
    start_kecho(*kecho_options)
    options = ("--connections", "100", "--messages", "20", "--max-bytes", "9000")
    status, report = load.run("many", *options)
    assert status == 0, report
    assert report["completed"] == 2000
    # Sizes are drawn evenly from 1 to 9,000.
    assert 2000 * 4000 < report["verified_bytes"] < 2000 * 5000
    again = load.run("many", *options)[1]
    assert again["verified_bytes"] == report["verified_bytes"]
    other = load.run("many", *options, "--seed", "2")[1]
    assert other["verified_bytes"] != report["verified_bytes"]


@pytest.mark.parametrize("kecho_options", [(), ("--edge",)])
@pytest.mark.parametrize("connections", [1, 5])
def test_stream_comes_back_whole_and_closes_in_order(
    start_kecho: Kecho, load: Loader, kecho_options: tuple[str], connections: int
) -> None:
    start_kecho(*kecho_options)
    status, report = load.run("stream", "--bytes", "6815744", "--connections", str(connections))
    assert status == 0, report
    assert report["verified_bytes"] == connections * 6.5 * 1048576


def test_ipv6(start_kecho: Kecho, load: Loader) -> None:
    start_kecho("--address", "::", "--port", "7003")
    status, report = load.run(
        "many", "--port", "7003", "--messages", "5", "--connections", "9", host="fd77:6978::1"
    )
    assert status == 0, report
    assert report["target"] == "[fd77:6978::1]:7003"


def test_more_connections_than_the_backlog_all_open(
    lab: Lab, start_kecho: Kecho, load: Loader
) -> None:
    start_kecho()
    status, report = load.run("echo", "--connections", "3000", "--seconds", "0.1")
    assert status == 0, report
    assert report["opened"] == 3000


def test_kecho_keeps_what_a_peer_does_not_read_yet(lab: Lab, start_kecho: Kecho) -> None:
    start_kecho()
    sent = 0
    with (
        in_netns(lab.cfg.client_netns),
        socket.create_connection((HOST, 7000), PATIENCE_S) as slow,
        socket.create_connection((HOST, 7000), PATIENCE_S) as other,
    ):
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 28:
                sent += slow.send(b"%016d" % (sent // 16) * 4096)
                time.sleep(0.0001)
        # It reads no more from one that doesn't listen, and goes on serving the others.
        assert sent < 1 << 28
        other.sendall(b"still there?")
        assert other.recv(100) == b"still there?"
        slow.settimeout(PATIENCE_S)
        left = sent
        while left:
            left -= len(slow.recv(left))
        slow.shutdown(socket.SHUT_WR)
        assert slow.recv(1) == b""


# ---- servers that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["echo", "connrate", "many", "stream"])
def test_nobody_listens(lab: Lab, load: Loader, mode: str) -> None:
    """It is found out at once: not by waiting for an answer."""
    options = ("--connections", "3", "--timeout", "100")
    status, report = load.run(mode, "--port", "7999", *options)
    assert status == 1
    assert report["errors"]["timeout"] == 0
    assert report["errors"]["refused"] >= 1
    assert f"{HOST}:7999" in report["first_error"]
    assert "refused" in report["first_error"]


@pytest.mark.parametrize("mode", ["echo", "connrate", "stream"])
def test_server_killed_in_the_middle(start_kecho: Kecho, load: Loader, mode: str) -> None:
    kecho = start_kecho()
    client = load.start(mode, "--connections", "8", "--seconds", "600", "--timeout", "100")
    load.wait_busy()
    kecho.kill()
    status, report = load.finish(client)
    assert status == 1
    errors = report["errors"]
    assert errors["reset"] + errors["closed_early"] + errors["refused"] >= 8
    assert errors["mismatch"] == errors["timeout"] == errors["other"] == 0


@pytest.mark.parametrize("mode", ["echo", "connrate", "many", "stream"])
def test_server_stops_answering(start_kecho: Kecho, load: Loader, mode: str) -> None:
    kecho = start_kecho()
    client = load.start(
        mode, "--connections", "4", "--seconds", "600", "--timeout", "2",
        *(("--messages", "1000000") if mode == "many" else ()),
    )  # fmt: skip
    load.wait_busy()
    kecho.send_signal(signal.SIGSTOP)
    try:
        status, report = load.finish(client)
    finally:
        kecho.send_signal(signal.SIGCONT)
    assert status == 1
    assert report["errors"]["timeout"] >= 1
    assert "nothing moved for 2 s" in report["first_error"]


def echo_with_an_error_at(offset: int) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        seen = 0
        while data := connection.recv(65536):
            if seen <= offset < seen + len(data):
                altered = bytearray(data)
                altered[offset - seen] ^= 0x10
                data = bytes(altered)
            seen += len(data)
            connection.sendall(data)

    return serve


@pytest.mark.parametrize("mode", ["echo", "many", "stream"])
def test_one_wrong_bit_is_found(lab: Lab, load: Loader, mode: str) -> None:
    with server(lab, echo_with_an_error_at(777_777 if mode == "stream" else 7_777)):
        size = ("--bytes", "1048576") if mode == "stream" else ()
        status, report = load.run(mode, "--connections", "2", "--seconds", "20", *size)
    assert status == 1
    assert report["errors"]["mismatch"] == 2
    assert "the reply differs" in report["first_error"]


def test_bytes_of_another_connection_are_found(lab: Lab, load: Loader) -> None:
    gate = threading.Barrier(2, timeout=PATIENCE_S)
    pool: dict[int, bytes] = {}

    def swap(connection: socket.socket) -> None:
        pool[connection.fileno()] = connection.recv(64)
        gate.wait()
        [other] = set(pool) - {connection.fileno()}
        connection.sendall(pool[other])
        connection.recv(64)

    with server(lab, swap):
        status, report = load.run("echo", "--connections", "2", "--seconds", "1")
    assert status == 1
    assert report["errors"]["mismatch"] == 2


def test_more_than_was_sent_is_found(lab: Lab, load: Loader) -> None:
    def generous(connection: socket.socket) -> None:
        connection.sendall(connection.recv(64) + b"more")
        connection.recv(64)

    with server(lab, generous):
        status, report = load.run("echo", "--seconds", "1")
    assert status == 1
    assert "more came back than was asked for" in report["first_error"]


def test_an_early_close_is_found(lab: Lab, load: Loader) -> None:
    def brief(connection: socket.socket) -> None:
        connection.sendall(connection.recv(64)[:30])

    with server(lab, brief):
        status, report = load.run("echo", "--seconds", "1")
    assert status == 1
    assert report["errors"]["closed_early"] == 1
    assert "after 30 bytes of a reply to 1 request" in report["first_error"]


def test_a_missing_fin_is_found(lab: Lab, load: Loader) -> None:
    is_over = threading.Event()

    def clinging(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)
        is_over.wait(PATIENCE_S)

    with server(lab, clinging):
        status, report = load.run("many", "--messages", "3", "--timeout", "2")
        is_over.set()
    assert status == 1
    assert report["completed"] == 3
    assert report["errors"]["timeout"] == 1


def test_waits_for_a_server_that_starts_later(start_kecho: Kecho, load: Loader) -> None:
    client = load.start("echo", "--wait", "100", "--seconds", "0.1", "--port", "7004")
    time.sleep(0.3)
    start_kecho("--port", "7004")
    status, report = load.finish(client)
    assert status == 0, report


def test_interrupted_it_still_reports(start_kecho: Kecho, load: Loader) -> None:
    start_kecho()
    client = load.start("echo", "--connections", "4", "--seconds", "600", "--warmup", "0")
    load.wait_busy()
    client.terminate()
    status, report = load.finish(client)
    assert status == 1
    assert report["first_error"] == "interrupted"
    assert report["completed"] > 0


@pytest.fixture
def page(tmp_path: Path) -> Iterator[session.ControlPage]:
    made = session.ControlPage(tmp_path / "control", 1)
    yield made
    made.close()


def test_only_the_next_number_is_a_command(
    start_kecho: Kecho, load: Loader, page: session.ControlPage
) -> None:
    """Python writes a number byte by byte, over zeroes."""
    start_kecho()
    client = load.start("echo", "--control", str(page.path))
    until("the worker", lambda: page.worker(0).ready, PATIENCE_S)
    page._number = 8
    page.command(session._QUIT)
    page._number = 0
    page.command(session._OPEN, connections=1)
    until("the connection", lambda: page.worker(0).done == 1, PATIENCE_S)
    assert page.worker(0).open == 1
    page.command(session._QUIT)
    assert client.wait(PATIENCE_S) == 0


def test_connections_that_ended_before_get_no_requests(
    lab: Lab, load: Loader, page: session.ControlPage
) -> None:
    """What was asked on one of them would be waited for to the end of the time limit."""
    numbers, halve = itertools.count(), threading.Event()

    def serve(connection: socket.socket) -> None:
        if next(numbers) % 2:
            halve.wait(PATIENCE_S)
            return
        while data := connection.recv(65536):
            connection.sendall(data)

    def carry_out(op: int, **fields: int) -> None:
        number = page.command(op, **fields)
        until("the command", lambda: page.worker(0).done == number, PATIENCE_S)

    with server(lab, serve):
        options = ("--control", str(page.path), "--connections", "4", "--timeout", "10")
        client = load.start("echo", *options)
        carry_out(session._OPEN, connections=4)
        halve.set()
        until("two to end", lambda: page.worker(0).open == 2, PATIENCE_S)
        carry_out(session._RUN, measure_ns=500_000_000)
        errors = json.loads(page.result_path(0).read_text())["errors"]
        page.command(session._QUIT)
        assert client.wait(PATIENCE_S) == 0
    assert (errors["closed_early"], errors["timeout"]) == (2, 0)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["echo"],
        ["walk", "--host", HOST],
        ["echo", "--host", "a name"],
        ["echo", "--host", HOST, "--connections", "0"],
        ["echo", "--host", HOST, "--seconds", "soon"],
        ["echo", "--host", HOST, "--seconds", "nan"],
        ["echo", "--host", HOST, "--bytes", "12x"],
        ["echo", "--host", HOST, "--unknown"],
        ["echo", "connrate", "--host", HOST],
        ["echo", "--host", HOST, "--connections", "3000000"],
    ],
)
def test_wrong_options_are_refused(words: list[str]) -> None:
    # The last: more connections than a process may have files.
    argv = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", str(load_file("ixload")), *words]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 2
    assert run.stderr.startswith("ixload: ")
    assert run.stdout == ""


def test_kecho_says_why_it_cannot_start(lab: Lab, start_kecho: Kecho, programs: Path) -> None:
    start_kecho()
    for words, cause in (([], "Address already in use"), (["--address", "x"], "x port 7000")):
        second = lab.start_server(
            [str(programs / "kecho"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, err = second.communicate(timeout=PATIENCE_S)
        assert second.returncode != 0
        assert cause in err
