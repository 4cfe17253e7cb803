"""The low-level batched interface against the kernel's own stack, call by call.

tests/dune/test_shard_api.py runs the same in the dune placement.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.runtime.lab import APPS, PATIENCE_S, run_to_end

TCP_PORT, UDP_PORT, OWN_UDP_PORT = 9001, 9002, 9003


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One queue: where the kernel's answer to a flow arrives is no question then."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rs{os.getpid()}", queues=1)) as made:
        yield made


@pytest.fixture(scope="module")
def peer(lab: Lab) -> Iterator[str]:
    """TCP and UDP echo on the client's kernel; its address."""
    with in_netns(lab.cfg.client_netns):
        listener = socket.create_server((lab.facts.client.ip, TCP_PORT))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((lab.facts.client.ip, UDP_PORT))

    def serve_tcp() -> None:
        while True:
            try:
                served, _ = listener.accept()
            except OSError:
                return
            with served, contextlib.suppress(ConnectionError):
                while data := served.recv(4096):
                    served.sendall(data)

    def serve_udp() -> None:
        while True:
            try:
                data, sender = datagrams.recvfrom(4096)
            except OSError:
                return
            datagrams.sendto(data, sender)

    threads = [threading.Thread(target=f, daemon=True) for f in (serve_tcp, serve_udp)]
    for thread in threads:
        thread.start()
    yield lab.facts.client.ip
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    datagrams.close()


def exercise(
    lab: Lab, peer: str, *options: str, patience_s: float = PATIENCE_S
) -> tuple[dict[str, Any], list[str]]:
    """What apps/exercise.py saw, and what the instance said when it started."""
    args = [peer, str(TCP_PORT), str(UDP_PORT), str(OWN_UDP_PORT)]
    words = ["--no-restart-workers", *options]
    status, said, err = run_to_end(
        lab, APPS / "exercise.py", *args, options=words, patience_s=patience_s
    )
    assert status == 0, err
    found: dict[str, Any] = json.loads(next(line for line in said if line.startswith("{")))
    return found, said


@pytest.fixture(scope="module")
def report(lab: Lab, peer: str) -> dict[str, Any]:
    """What apps/exercise.py saw, on one queue."""
    return exercise(lab, peer)[0]


def test_connect_ends_in_connected_with_its_cookie(report: dict[str, Any]) -> None:
    assert report["tcp"]["connected"] == [0, True, 41]


def test_send_from_the_arena_comes_back_and_is_acknowledged(report: dict[str, Any]) -> None:
    found = report["tcp"]
    assert found["results"] == [0, 18]
    assert found["echo"] == "from the dataplane"
    assert found["acknowledged"] == 18
    assert found["arena"] == 1, "the frame that was given back is free again"


def test_borrowed_payload_is_unusable_after_its_with(report: dict[str, Any]) -> None:
    assert report["tcp"]["released"] is True


def test_close_of_both_sides_ends_in_dead_without_error(report: dict[str, Any]) -> None:
    assert report["tcp"]["dead"] == 0


def test_call_with_a_void_handle_fails(report: dict[str, Any]) -> None:
    assert report["tcp"]["stale"] in ("ENOENT", "EBADF", "ESTALE")


def test_connect_to_a_closed_port_is_refused(report: dict[str, Any]) -> None:
    assert report["refused"] == "ECONNREFUSED"


def test_datagram_goes_out_and_comes_back(report: dict[str, Any], peer: str) -> None:
    assert report["udp"] == {"payload": "datagram", "peer": [peer, UDP_PORT], "cookie": 77}


def test_timer_fires_once_in_time_and_a_cancelled_one_does_not(report: dict[str, Any]) -> None:
    assert report["timers"] == {"cookie": 1, "same": True, "in_time": True}


def test_errors_carry_their_reason_and_cure(report: dict[str, Any]) -> None:
    found = report["errors"]
    assert found["twice"] == [
        "listen on port 4000: this worker uses this address and port already: EADDRINUSE: "
        "Address already in use",
        "close the other user first",
    ]
    assert found["ipv6"][0] == errno.EADDRNOTAVAIL
    assert found["text"][0] == errno.EINVAL
    assert "'localhost' is not an address" in found["text"][1]
    assert found["zero"][0] == errno.EINVAL
    assert found["foreign"][0] == errno.EADDRNOTAVAIL
    assert found["foreign"][2], "a cure"
    assert "127.0.0.1 is not an address of " in found["elsewhere"][1]
    assert "every address" in found["elsewhere"][2]
    assert found["beyond"] == [errno.EINVAL, "70000 is no port", "use 1 to 65535"]
    assert found["unbound"][0] == errno.ENOENT


def test_full_array_of_calls_refuses_more_and_runs_what_it_has(report: dict[str, Any]) -> None:
    assert report["errors"]["calls"] == [1024, 0]
    assert report["errors"]["stale"] is True


def test_stats_count_what_was_done(report: dict[str, Any]) -> None:
    assert report["stats"]["tcp_active_opens"] == 2, "the refused one, too"
    assert report["stats"]["udp_out"] == 1
    assert report["stats"]["frames_app"] == 0, "everything lent was given back"
