"""Streams arrive whole, both ways, whoever ends first.

the kernel's client ==== random pieces, SHA-256 ==== the dataplane's commands.py, echo.py, echo.so
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import (
    MIB,
    NATIVE_ECHO,
    PORT,
    PYTHON_ECHO,
    Flow,
    Service,
    answers,
    connect,
    digest,
    echo_streams,
    lab_config,
    payload,
    pump,
    send_and_sink,
    take_source,
    until,
)


def test_one_connection_echoes_megabytes(lab: Lab, service: Service) -> None:
    echo_streams(lab, 1, 8 * MIB)
    service.wait_quiet()


def test_many_connections_echo_at_once(lab: Lab, service: Service) -> None:
    echo_streams(lab, 40, 256 * 1024)
    service.wait_quiet()


def test_stream_to_the_dataplane_is_whole(lab: Lab, service: Service) -> None:
    with connect(lab, "sink") as sock:
        send_and_sink(sock, 8 * MIB, 1)
    service.wait_quiet()


def test_stream_from_the_dataplane_is_whole(lab: Lab, service: Service) -> None:
    with connect(lab, f"source {8 * MIB} 2") as sock:
        take_source(sock, 8 * MIB, 2)
    service.wait_quiet()


def test_streams_of_both_directions_do_not_mix(lab: Lab, service: Service) -> None:
    flows = [
        Flow(connect(lab, f"both {2 * MIB} {seed}"), payload(2 * MIB, seed + 100), seed)
        for seed in range(4)
    ]
    pump(flows)
    for flow in flows:
        expected = payload(2 * MIB, flow.seed)
        assert digest(flow.got[: 2 * MIB]) == digest(expected)
        assert flow.got[2 * MIB :].decode() == digest(flow.data) + "\n"
        flow.sock.close()
    service.wait_quiet()


@pytest.mark.parametrize("n", [0, 1, 1447, 1448, 1449, 2896, 65535, 65536])
def test_streams_of_every_awkward_length_are_whole(lab: Lab, service: Service, n: int) -> None:
    with connect(lab, "sink") as sock:
        send_and_sink(sock, n, n)
    with connect(lab, f"source {n} {n}") as sock:
        take_source(sock, n, n)


def test_messages_back_and_forth_keep_their_order(lab: Lab, service: Service) -> None:
    sizes = random.Random(3)
    with connect(lab, "echo") as sock:
        for _ in range(2000):
            message = sizes.randbytes(sizes.choice([1, 2, 64, 500, 1448, 4000]))
            sock.sendall(message)
            got = bytearray()
            while len(got) < len(message):
                part = sock.recv(65536)
                assert part
                got += part
            assert got == message


def test_messages_are_echoed_from_where_they_lie(lab: Lab, service: Service) -> None:
    before = sum(s["tx_inplace"] for s in service.shards())
    with connect(lab, "echo") as sock:
        for _ in range(100):
            assert answers(sock, bytes(1000))
    # The first one came behind the command's line, and was copied.
    until("the count", lambda: sum(s["tx_inplace"] for s in service.shards()) - before >= 99)


@pytest.mark.parametrize("app", [PYTHON_ECHO, NATIVE_ECHO], ids=["echo.py", "echo.so"])
def test_the_apps_echo_streams_whole(lab: Lab, service: Service, app: Path, tmp_path: Path) -> None:
    """Beside the module's service, in a lab of its own."""
    with Lab(lab_config()) as own, Service(own, tmp_path, app, ["--port", str(PORT)]) as running:
        echo_streams(own, 1, 4 * MIB, command="")
        echo_streams(own, 50, 64 * 1024, command="")
        running.wait_quiet()
