"""Servers that are not there or misbehave, options that can't be, ctrl-C: one message with a cure,
and what was measured is kept.

namespace of the servers                    namespace of the clients
10.77.0.1 threads of this test --- veth --- 10.77.0.2 ixnet bench
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ixnet.bench import outcome
from ixnet.bench.cli import app
from ixnet.bench.errors import BenchError, failure
from ixnet.control.errors import IxError
from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.bench.conftest import HOST, PATIENCE_S
from tests.bench.test_commands import SHORT, bench, client_words

Serve = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"e{os.getpid()}", queues=1)) as made:
        yield made


def close(sock: socket.socket) -> None:
    """In order: what has not been read when a socket is closed would make a reset of it."""
    sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def stall(sock: socket.socket) -> None:
    """Reads nothing, says nothing, and keeps the connection."""


def answer_wrongly(sock: socket.socket) -> None:
    while sock.recv(65536):
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n")


def stop_after_a_while(sock: socket.socket) -> None:
    for _ in range(20):
        sock.sendall(sock.recv(65536))
    close(sock)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


@pytest.fixture
def serve(lab: Lab) -> Iterator[Callable[[Serve], str]]:
    """Starts a server of one's own; returns its address and port."""
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []

        def each(how: Serve, sock: socket.socket) -> None:
            with contextlib.suppress(OSError):
                how(sock)

        def accept(listener: socket.socket, how: Serve) -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    held.append(sock)
                    threading.Thread(target=each, args=(how, sock), daemon=True).start()

        def start(how: Serve) -> str:
            with in_netns(lab.cfg.server_netns):
                listener = socket.create_server((HOST, 0), backlog=1024)
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=accept, args=(listener, how), daemon=True).start()
            return f"{HOST}:{listener.getsockname()[1]}"

        yield start
        for sock in held:
            sock.close()


LESS_PATIENT = (*SHORT, "--timeout", "2")
PATIENT = (*SHORT, "--timeout", "60")  # for what is found out at once, on however slow a machine
CASES = [
    (close, "the server closed it"),
    (reset, "reset by peer"),
    (stall, "nothing moved for 2 s; 16 of 16 connections are open"),
    (answer_wrongly, "differs from what it should be"),
    (stop_after_a_while, "the server closed it"),
]


@pytest.mark.parametrize(("how", "part"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_server_that_misbehaves_is_an_error_that_says_how(
    lab: Lab, serve: Callable[[Serve], str], how: Serve, part: str
) -> None:
    target = serve(how)
    words = LESS_PATIENT if how is stall else PATIENT
    done = bench("echo", *client_words(lab, "kernel"), target, *words)
    assert done.returncode == 2, done.stdout
    assert part in done.stderr and target in done.stderr
    assert "cure: " in done.stderr


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        (close, ("closed", "reset")),
        (stall, ("did not answer",)),
        (answer_wrongly, ("differs from what was sent",)),
    ],
    ids=["close", "stall", "answer_wrongly"],
)
@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_latency_to_a_server_that_misbehaves_is_an_error(
    lab: Lab, serve: Callable[[Serve], str], client: str, how: Serve, parts: tuple[str, ...]
) -> None:
    patience = "1" if how is stall else "30"
    words = ("--protocol", "tcp", "--repeat", "1", "--seconds", "0.2", "--timeout", patience)
    done = bench("latency", *client_words(lab, client), serve(how), *words)
    assert done.returncode == 2, done.stdout
    assert any(part in done.stderr for part in parts), done.stderr
    assert "cure: " in done.stderr


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_latency_to_a_server_of_one_protocol_names_the_option(
    lab: Lab, serve: Callable[[Serve], str], client: str
) -> None:
    words = ("--repeat", "1", "--seconds", "0.2", "--timeout", "1")
    tcp = serve(echo)
    done = bench("latency", *client_words(lab, client), tcp, *words)
    assert done.returncode == 2, done.stdout
    assert f"udp ping to {tcp}" in done.stderr
    assert "--protocol tcp" in done.stderr
    with in_netns(lab.cfg.server_netns):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.bind((HOST, 0))
        target = f"{HOST}:{udp.getsockname()[1]}"
        done = bench("latency", *client_words(lab, client), target, "--protocol", "tcp", *words)
    assert done.returncode == 2, done.stdout
    assert "--protocol udp" in done.stderr


def test_memcached_asked_of_another_server_says_what_came(
    lab: Lab, serve: Callable[[Serve], str]
) -> None:
    words = ("--items", "100", *PATIENT)
    done = bench("memcached", *client_words(lab, "kernel"), serve(answer_wrongly), *words)
    assert done.returncode == 2
    assert "HTTP/1.1 400" in done.stderr and "is this a memcached server?" in done.stderr


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_nobody_at_that_address_is_an_error(lab: Lab, client: str) -> None:
    done = bench("echo", *client_words(lab, client), "10.77.0.99:7", *LESS_PATIENT)
    assert done.returncode == 2
    assert "10.77.0.99:7" in done.stderr
    assert "address, route and firewall" in done.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["echo", "no.such.host.invalid:7"], "no.such.host.invalid does not resolve"),
        (["echo", "10.0.0.1:7", "-c", "0"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "-c", "99999999"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--rate", "1e15"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--seconds", "-1"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--repeat", "0"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--processes", "500"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--bytes", "0"], "Invalid value for"),
        (["echo", "10.0.0.1:7", "--cores", "9999"], "may not run on core 9999"),
        (["echo", "10.0.0.1:7", "--source", "here"], "--source here is no IP address"),
        (["echo", "10.0.0.1:7", "--netns", "nope"], "no network namespace nope"),
        (["echo", "10.0.0.1:7", "--json", "/nowhere/a.json"], "/nowhere/a.json can't be written"),
        (["memcached", "127.0.0.1:7", "--workload", "x"], "--workload takes etc, usr, or"),
        (["memcached", "127.0.0.1:7", "--gets", "2"], "Invalid value for"),
        (["latency", "10.0.0.1:7", "--received", "any"], "auto, hardware, software"),
        (["latency", "10.0.0.1:7", "--bytes", "1"], "Invalid value for"),
    ],
)
def test_option_that_can_not_be_is_one_message(words: list[str], part: str) -> None:
    done = CliRunner().invoke(app, words)
    said = str(done.exception) if isinstance(done.exception, IxError) else done.output
    assert done.exit_code != 0
    assert part in said
    assert "Traceback" not in said and len(said.splitlines()) < 8


def test_descriptors_that_are_not_there_are_an_error_with_its_cure(lab: Lab) -> None:
    """A hard limit that this process may not raise."""
    argv = ["prlimit", "--nofile=64:64", "setpriv", "--bounding-set", "-sys_resource"]
    argv += ["--inh-caps", "-sys_resource", sys.executable, "-m", "ixnet", "bench", "echo"]
    argv += [*client_words(lab, "kernel"), f"{HOST}:7", "-c", "500"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "more file descriptors than 64" in done.stderr and "ulimit -Hn" in done.stderr


def test_interrupted_what_was_measured_is_kept(
    lab: Lab, serve: Callable[[Serve], str], tmp_path: Path
) -> None:
    path = tmp_path / "part.json"
    argv = [sys.executable, "-m", "ixnet", "bench", "echo", *client_words(lab, "kernel")]
    argv += [serve(echo), "--repeat", "100", "-t", "0.2", "--warmup", "0", "--json", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # The workers of the second round: the first one is over.
        seen: set[bytes] = set()
        deadline = time.monotonic() + PATIENCE_S
        while len(seen) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            with contextlib.suppress(OSError):
                seen |= set(children.read_bytes().split())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == outcome.INTERRUPTED, err
    assert "only a part: interrupted" in out
    made = json.loads(path.read_text())
    assert made["stopped"] == "interrupted"
    assert 1 <= len(made["targets"][0]["runs"]) < 100


def test_error_after_something_was_measured_keeps_that() -> None:
    made = outcome.Outcome([{"label": "a", "runs": [1]}, {"label": "b", "runs": []}])
    with made.gathering():
        raise BenchError("it broke")
    assert [entry["label"] for entry in made.entries] == ["a"]
    assert (made.stopped, made.status) == ("it broke", outcome.FAILED)
    nothing = outcome.Outcome([{"label": "a", "runs": []}])
    with pytest.raises(BenchError, match="it broke"), nothing.gathering():
        raise BenchError("it broke")


def test_cure_that_a_client_names_is_the_one() -> None:
    assert failure("it broke (cure: mend it)").cure == "mend it"
    assert "start the server" in failure("10.0.0.1:7: Connection refused").cure
    assert failure("it broke").cure == ""
