"""The dune placement's proof, in the lab's virtual machine (`make lab`): the application in ring 3,
the stack in ring 0, on igb and virtio-net in zero-copy mode and on a veth, against the kernel's
sockets. wires.py has the picture; tests/dune/ has what attacks it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs real NIC drivers: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from bench.common import run_load
from ixnet.control.lab import Lab, LabConfig
from tests.interop.kit import MIB, NATIVE_ECHO, PYTHON_ECHO, lab_config
from tests.lab.conftest import EXITS
from tests.lab.wires import (
    IGB,
    PORT,
    VIRTIO,
    Service,
    Wire,
    command,
    conversations,
    expect_counters,
    half_close,
    note,
    set_up_wires,
    stream,
    veth,
)

STREAM_BYTES = int(os.environ.get("IX_STREAM_MIB", "16")) * MIB
CONNECTIONS = 500
MESSAGES = 2
OUTSTANDING = (1, 8, 64)
SECONDS = 2
SHARES = ("ring0", "ring3", "linux")
DUNE = ("--placement", "dune")
AWAKE = ("--spin-us", "10000000")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def wires() -> Iterator[dict[str, Wire]]:
    """By driver."""
    set_up_wires()
    with Lab(lab_config(queues=2)) as lab:
        yield {wire.driver: wire for wire in (IGB, VIRTIO, veth(lab))}


@pytest.fixture(scope="module")
def lone_wires() -> Iterator[dict[str, Wire]]:
    """The same with one queue each: a worker that never sleeps has a CPU to itself then."""
    set_up_wires()
    nics = (IGB, VIRTIO)
    for nic in nics:
        command("ethtool", "-L", nic.dut, "combined", "1")
    try:
        with Lab(lab_config(queues=1)) as lab:
            alone = (*(replace(nic, queues=1) for nic in nics), veth(lab))
            yield {wire.driver: wire for wire in alone}
    finally:
        for nic in nics:
            command("ethtool", "-L", nic.dut, "combined", str(nic.queues))


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a row to the table of the closing report (conftest.py)."""
    return request.config.stash[EXITS].append


DRIVERS = ("igb", "virtio_net", "veth")
Wires = dict[str, Wire]


def sum_of(stat: dict[str, Any], name: str) -> int:
    """A counter of all guests."""
    return int(sum(worker["guest"][name] for worker in stat["workers"]))


@pytest.mark.parametrize("kick", ["exit", "thread"])
@pytest.mark.parametrize("app", [NATIVE_ECHO, PYTHON_ECHO], ids=["native", "python"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_streams_and_connections(wires: Wires, driver: str, app: Any, kick: str) -> None:
    wire = wires[driver]
    began = time.monotonic()
    with Service(wire, app, *DUNE, "--kick", kick) as service:
        note(f"ready after {time.monotonic() - began:.1f} s; {service.said[-1]}")
        assert (service.mode, len(wire.find().queues)) == (wire.mode, wire.queues)
        wire.wait_carrier()
        seconds = stream(wire, STREAM_BYTES)
        note(f"{STREAM_BYTES >> 20} MiB each way, SHA-256 equal: {seconds:.1f} s")
        seconds = conversations(wire, CONNECTIONS, MESSAGES)
        note(f"{CONNECTIONS} connections x {MESSAGES} messages: {seconds:.1f} s")
        half_close(wire)
        stat = service.stat()
        assert (stat["placement"], stat["kick"]) == ("dune", kick)
        expect_counters(stat, wire, CONNECTIONS)
        for worker in stat["workers"]:
            note(f"guest: { {n: v for n, v in worker['guest'].items() if 'cycles' not in n} }")
        assert sum_of(stat, "gate_refused") == sum_of(stat, "refused") == 0
        assert service.end(signal.SIGTERM) == (0, "")


def measure(service: Service, wire: Wire, outstanding: int) -> dict[str, int]:
    """What the guests' counters went up by, and how many messages were echoed."""
    before = service.live()
    report = run_load(
        LabConfig(client_netns=wire.far), "echo", wire.ip, PORT, cpu=None, connections=outstanding,
        bytes=64, seconds=SECONDS, warmup=0,
    )  # fmt: skip
    after = service.live()
    assert report["ok"], report
    names = ("exits", "kicks", "module_calls", *(f"cycles_{share}" for share in SHARES))
    return {name: sum_of(after, name) - sum_of(before, name) for name in names} | {
        "messages": report["completed"]
    }


@pytest.mark.parametrize("kick", ["exit", "thread"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_exits_and_cycles(
    lone_wires: Wires, driver: str, kick: str, table: Callable[[str], None]
) -> None:
    """Sleeping would be exits, so it never does; and without the kernel's busy polling, which would
    be a kick a cycle: the driver works by interrupts. Emulation gives Linux more than its share."""
    wire = lone_wires[driver]
    with Service(wire, NATIVE_ECHO, *DUNE, *AWAKE, "--kick", kick) as service:
        note(f"{service.said[-1]}; carrier {wire.wait_carrier():.1f} s later")
        for outstanding in OUTSTANDING:
            began = time.monotonic()
            found = measure(service, wire, outstanding)
            note(f"{outstanding} outstanding: {time.monotonic() - began:.1f} s")
            messages, cycles = found["messages"], sum(found[f"cycles_{s}"] for s in SHARES)
            rates = [1000 * found[name] / messages for name in ("exits", "kicks")]
            shares = [f"{100 * found[f'cycles_{s}'] / cycles:5.0f}%" for s in SHARES]
            row = f"{driver:10} {kick:6} {outstanding:11} {rates[0]:8.1f} {rates[1]:8.1f}"
            table(f"{row} {' '.join(shares)} {messages:9}")
            assert found["kicks"] <= found["module_calls"], "more than one kick a cycle"
            assert messages > outstanding
            if kick == "thread":
                assert found["kicks"] == 0
        assert service.end(signal.SIGTERM) == (0, "")
