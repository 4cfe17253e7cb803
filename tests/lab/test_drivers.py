"""ixnet on real NIC drivers, in the lab's virtual machine (`make lab`): igb and virtio-net.

wires.py has the picture. The dune placement's turn is in test_protected.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs real NIC drivers: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from tests.interop.kit import MIB, NATIVE_ECHO, PYTHON_ECHO, payload
from tests.lab.wires import (
    IGB,
    KERNEL_PORT,
    PATIENCE_S,
    VIRTIO,
    ZEROCOPY,
    Service,
    Wire,
    command,
    conversations,
    echoes,
    expect_counters,
    half_close,
    kernel_echo,
    note,
    set_up_wires,
    stream,
)
from tests.runtime.lab import until

STREAM_BYTES = 4 * MIB
CONNECTIONS = 100
MESSAGES = 10
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Case:
    """One way to run the echo server."""

    wire: Wire
    app: Path
    mode: str  # as the option has it
    expected: str  # as the instance says it
    options: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        kind = "native" if self.app is NATIVE_ECHO else "python"
        return "-".join([self.wire.driver, self.mode, kind, *(o.strip("-") for o in self.options)])

    def run(self) -> Service:
        """It, once it is ready."""
        return Service(self.wire, self.app, "--mode", self.mode, *self.options)


CASES = (
    Case(IGB, NATIVE_ECHO, "auto", ZEROCOPY),
    Case(IGB, PYTHON_ECHO, "auto", ZEROCOPY),
    Case(IGB, NATIVE_ECHO, "zerocopy", ZEROCOPY, ("--busy-poll",)),
    Case(IGB, NATIVE_ECHO, "copy", "native copy"),
    Case(IGB, NATIVE_ECHO, "generic", "generic copy"),
    Case(VIRTIO, NATIVE_ECHO, "auto", ZEROCOPY),
    Case(VIRTIO, PYTHON_ECHO, "auto", ZEROCOPY),
    Case(VIRTIO, NATIVE_ECHO, "copy", "native copy"),
    Case(VIRTIO, NATIVE_ECHO, "zerocopy", ZEROCOPY, ("--busy-poll",)),
)


@pytest.fixture(scope="module", autouse=True)
def wires() -> Iterator[None]:
    """Both wires, and the kernel's service."""
    set_up_wires()
    with kernel_echo():
        yield


def expect_clean(wire: Wire) -> None:
    """The NIC is the kernel's again: no program, no instance, and its services answer."""
    until("the program to be gone", lambda: wire.find().program is None, PATIENCE_S)
    wire.wait_carrier()
    with wire.connect(KERNEL_PORT) as sock:
        assert echoes(sock, payload(100_000, 5))
    assert "xdp" not in command("ip", "link", "show", wire.dut)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_echo(case: Case) -> None:
    wire = case.wire
    assert wire.find().driver == wire.driver
    assert len(wire.find().queues) == wire.queues
    with wire.connect(KERNEL_PORT) as held:
        assert echoes(held)
        began = time.monotonic()
        with case.run() as service:
            note(f"ready after {time.monotonic() - began:.1f} s; {' | '.join(service.said[:6])}")
            assert service.mode == case.expected
            assert case.mode != "auto" or not any(" not " in line for line in service.said)
            # igb takes its link down for seconds when a program or a socket comes.
            note(f"carrier {wire.wait_carrier():.1f} s later")
            began = time.monotonic()
            with wire.connect() as sock:
                assert echoes(sock)
            note(f"first answer {time.monotonic() - began:.1f} s later")
            seconds = stream(wire, STREAM_BYTES)
            note(f"{STREAM_BYTES >> 20} MiB each way, SHA-256 equal: {seconds:.1f} s")
            seconds = conversations(wire, CONNECTIONS, MESSAGES)
            note(f"{CONNECTIONS} connections x {MESSAGES} messages: {seconds:.1f} s")
            half_close(wire)
            assert echoes(held, payload(50_000, 2))  # from before the program came
            with wire.connect(KERNEL_PORT) as sock:
                assert echoes(sock, payload(50_000, 4))
            expect_counters(service.stat(), wire, CONNECTIONS)
            assert service.end(signal.SIGTERM) == (0, "")
            expect_clean(wire)
            assert echoes(held)


@pytest.mark.parametrize("wire", [IGB, VIRTIO], ids=lambda wire: wire.driver)
def test_killed_in_traffic(wire: Wire) -> None:
    case = Case(wire, NATIVE_ECHO, "auto", ZEROCOPY)
    stop = threading.Event()

    def talk() -> None:
        with wire.connect() as sock:
            sock.settimeout(2.0)
            while not stop.is_set():
                try:
                    if not echoes(sock, bytes(5000)):
                        return
                except OSError:
                    return

    talkers = [threading.Thread(target=talk) for _ in range(4)]
    with case.run() as service:
        for talker in talkers:
            talker.start()
        time.sleep(3.0)
        began = time.monotonic()
        assert service.end(signal.SIGKILL)[0] == -signal.SIGKILL
    stop.set()
    for talker in talkers:
        talker.join()
    expect_clean(wire)
    note(f"clean {time.monotonic() - began:.1f} s after the kill")
    # The next one starts at once, in the same mode.
    with case.run() as again:
        assert again.mode == ZEROCOPY
        with wire.connect() as sock:
            assert echoes(sock)
        assert again.end(signal.SIGTERM) == (0, "")
    expect_clean(wire)
