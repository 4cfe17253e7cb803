"""`ixnet bench latency` on a NIC with a clock, in the lab's virtual machine (`make lab`).

wires.py has the picture; the echo server is the far kernel's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs a NIC with a clock: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from ixnet.bench.nicclock import find_clock
from ixnet.control.ethtool import metadata_features, stamp_config, timestamp_info
from ixnet.control.namespaces import in_netns
from tests.lab.wires import FAR, IGB, VIRTIO, Wire, command, note, set_up_wires

ECHO_PORT = 7090
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def echo() -> Iterator[None]:
    """Sends datagrams and TCP's bytes back, at every address of the far side."""
    set_up_wires()
    with in_netns(FAR):
        listener = socket.create_server(("0.0.0.0", ECHO_PORT))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("0.0.0.0", ECHO_PORT))

    def serve_datagrams() -> None:
        while True:
            data, peer = datagrams.recvfrom(2000)
            datagrams.sendto(data, peer)

    def serve(sock: socket.socket) -> None:
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(65536):
                sock.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    for loop in (serve_datagrams, accept):
        threading.Thread(target=loop, daemon=True).start()
    yield


def far_ip(wire: Wire) -> str:
    return f"{wire.ip[:-1]}2"


def latency(wire: Wire, tmp_path: Path, *words: str) -> dict[str, Any]:
    path = tmp_path / "latency.json"
    argv = [sys.executable, "-m", "ixnet", "bench", "latency", f"{far_ip(wire)}:{ECHO_PORT}"]
    argv += ["--interface", wire.dut, "--repeat", "1", "--timeout", "10", "--warmup", "2"]
    note(command(*argv, "--seconds", "3", "--json", str(path), *words))
    made: dict[str, Any] = json.loads(path.read_text())
    for probe in made["targets"][0]["probes"]:
        assert probe["incomplete"] == 0, probe
        *stages, whole = [stage["latency"]["us"]["mean"] for stage in probe["stages"]]
        assert sum(stages) == pytest.approx(whole, rel=0.05)
    return made


def test_kernel_client_uses_the_nics_clock_and_gives_its_stamping_back(tmp_path: Path) -> None:
    """The 82576 that QEMU plays stamps every frame that it sends, and of those that come in
    only PTP's."""
    info = timestamp_info(IGB.dut)
    note(f"{IGB.dut}: {info}, {metadata_features(IGB.find().ifindex)}")
    assert info.phc is not None and info.transmit
    before = stamp_config(IGB.dut)
    made = latency(IGB, tmp_path)
    assert stamp_config(IGB.dut) == before
    for probe in made["targets"][0]["probes"]:
        assert probe["transmitted"]["source"] == "hardware", probe["transmitted"]
        assert 0 < probe["clock_error_ns"] < 10_000_000
        clocks = {stage["name"]: stage["clock"] for stage in probe["stages"]}
        assert clocks["stack to wire"] == "software; hardware, NIC"
        received = "hardware" if info.receive_all else "software"
        assert probe["received"]["source"] == received, probe["received"]
        assert info.receive_all or "every frame" in probe["received"]["why"]


def test_kernel_client_without_a_clock_says_that_there_is_none(tmp_path: Path) -> None:
    assert find_clock(VIRTIO.dut).path is None
    made = latency(VIRTIO, tmp_path)
    for probe in made["targets"][0]["probes"]:
        assert probe["received"]["source"] == probe["transmitted"]["source"] == "software"
        assert VIRTIO.dut in probe["received"]["why"]
