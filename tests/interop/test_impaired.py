"""A bad wire between the two stacks: frames lost, doubled, out of order, with a bit turned.

the server's lab                       impair.py                       the client's lab
ixs0 10.77.0.1 --- veth --- ixc0  <- decides from one seed ->  ixs0 --- veth --- ixc0 10.77.0.2
ixnet run commands.py       the two inner ends have other addresses       the kernel's sockets

``make interop`` is the long form of the streams each way: 100 MiB over every wire.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import (
    MIB,
    Flow,
    Service,
    connect,
    digest,
    echo_streams,
    lab_config,
    listening,
    payload,
    pump,
    receive,
    send_and_sink,
    take_source,
)

IMPAIR = Path(__file__).parent / "impair.py"
SERVER_IP, CLIENT_IP = "10.77.0.1", "10.77.0.2"
SERVER_IP6 = "fd77:6978::1"
BAD = ["--loss", "0.01", "--reorder", "0.02", "--duplicate", "0.005", "--corrupt", "0.005"]
WORSE = ["--loss", "0.03", "--reorder", "0.1", "--duplicate", "0.02", "--corrupt", "0.01"]

DOES = {
    "--loss": "lost",
    "--reorder": "reordered",
    "--duplicate": "doubled",
    "--corrupt": "corrupted",
}
LONG = os.environ.get("IX_INTEROP") == "long"
# The short form has what no other test here has.
ALL_AT_ONCE = "--loss 0.01 --reorder 0.01 --duplicate 0.005 --corrupt 0.005 --delay-ms 5"
WIRES = {
    "delay 20 ms, jitter": "--delay-ms 20 --jitter-ms 5",
    "20 Mbit/s": "--rate-mbit 20 --delay-ms 5",
    "all at once": f"{ALL_AT_ONCE} --jitter-ms 2 --rate-mbit 50",
}
LONG_WIRES = WIRES | {
    "loss 0.1%": "--loss 0.001",
    "loss 1%": "--loss 0.01",
    "loss 5%": "--loss 0.05",
    "reordering": "--reorder 0.02",
    "duplication": "--duplicate 0.02",
    "corruption": "--corrupt 0.01",
    "loss 1%, delay 20 ms": "--loss 0.01 --delay-ms 20",
    "loss and reordering": "--loss 0.01 --reorder 0.02",
}


@pytest.fixture(scope="module")
def near() -> Iterator[Lab]:
    """The server's end; the far end of its link is one of the wire's."""
    with Lab(
        lab_config(
            queues=1,
            client_ip="10.99.1.2/24",
            client_ip6="fd99:1::2/64",
            client_mac="02:69:78:00:00:03",
        )
    ) as made:
        yield made


@pytest.fixture(scope="module")
def far() -> Iterator[Lab]:
    """The client's end."""
    with Lab(
        lab_config(
            queues=1,
            server_ip="10.99.2.1/24",
            server_ip6="fd99:2::1/64",
            server_mac="02:69:78:00:00:04",
        )
    ) as made:
        yield made


@pytest.fixture(scope="module")
def service(near: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(near, tmp_path_factory.mktemp("impaired")) as running:
        yield running


@contextmanager
def wire(near: Lab, far: Lab, *options: str) -> Iterator[None]:
    """Bridges the two labs for the length of the block; what the wire did is printed, and it must
    have done all that it was asked for."""
    ends = [near.cfg.client_netns, near.cfg.client_if, far.cfg.server_netns, far.cfg.server_if]
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, str(IMPAIR), *ends, *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=IMPAIR.parents[2],
            env={"PYTHONPATH": str(IMPAIR.parents[2])},
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.terminate()
        did = json.loads(process.stdout.read())
        print(f"the wire: {did}")
        assert did.pop("no room", 0) == 0 or LONG  # one more reason to lose some, in an hour
        assert all(did.get(what) for option, what in DOES.items() if option in options), did


@pytest.mark.parametrize(("seed", "ip"), [(1, SERVER_IP), (2, SERVER_IP), (6, SERVER_IP6)])
def test_streams_over_a_bad_wire_are_whole(
    near: Lab, far: Lab, service: Service, seed: int, ip: str
) -> None:
    with wire(near, far, *BAD, "--seed", str(seed)):
        with connect(far, "sink", ip=ip) as sock:
            send_and_sink(sock, 2 * MIB, seed)
        with connect(far, f"source {2 * MIB} {seed}", ip=ip) as sock:
            take_source(sock, 2 * MIB, seed)
        echo_streams(far, 4, MIB // 2, ip=ip)
        service.wait_quiet()
    counters = service.counters()
    # Both senders had something to repair, and what was corrupt was noticed.
    assert counters["tcp_fast_rexmit"] > 0
    assert counters["tcp_ooo"] > 0
    assert counters["drop_tcp_csum"] + counters["drop_ip_csum"] > 0


@pytest.mark.timeout(7200 if LONG else 600)
@pytest.mark.parametrize("ip", [SERVER_IP, SERVER_IP6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", LONG_WIRES if LONG else WIRES)
def test_stream_each_way_is_whole(
    near: Lab, far: Lab, service: Service, name: str, ip: str
) -> None:
    size, before = 100 * MIB if LONG else MIB // 2, service.counters()
    with wire(near, far, *LONG_WIRES[name].split(), "--seed", "11"):
        begin = time.monotonic()
        with connect(far, "sink", ip=ip) as sock:
            send_and_sink(sock, size, 12)
        middle = time.monotonic()
        with connect(far, f"source {size} 13", ip=ip) as sock:
            take_source(sock, size, 13)
        end = time.monotonic()
        service.wait_quiet()
    after = service.counters()
    what = "tcp_in tcp_out tcp_rexmit tcp_rto tcp_fast_rexmit tcp_tlp tcp_undo tcp_ooo tcp_dup_data"
    counted = {n: after[n] - before[n] for n in f"{what} drop_tcp_csum drop_ip_csum".split()}
    print(f"{name}, {ip}: in {middle - begin:.1f} s, out {end - middle:.1f} s: {counted}")


def test_connections_over_a_worse_wire_all_come_to_their_end(
    near: Lab, far: Lab, service: Service
) -> None:
    """Handshakes and closes are lost as often as data are. The last of them waits for a time-out
    that has doubled a few times, so patience is needed."""
    with wire(near, far, *WORSE, "--seed", "3"):
        echo_streams(far, 24, 20_000, ip=SERVER_IP)
        service.wait_quiet()


def test_connects_over_a_bad_wire_carry_streams(near: Lab, far: Lab, service: Service) -> None:
    with wire(near, far, *BAD, "--seed", "4"), listening(far.cfg.client_netns) as target:
        command = f"proxy {CLIENT_IP} {target.getsockname()[1]}"
        with connect(far, command, ip=SERVER_IP) as outer:
            inner, _ = target.accept()
            with inner:
                flows = [Flow(outer, payload(MIB, 5), 5), Flow(inner, payload(MIB, 6), 6)]
                pump(flows)
                assert digest(flows[1].got) == digest(flows[0].data)
                assert digest(flows[0].got) == digest(flows[1].data)
        service.wait_quiet()


def test_wire_with_reordering_alone_needs_few_retransmissions(
    near: Lab, far: Lab, service: Service
) -> None:
    before = service.counters()
    with wire(near, far, "--reorder", "0.01", "--seed", "5"):
        with connect(far, f"source {2 * MIB} 7", ip=SERVER_IP) as sock:
            take_source(sock, 2 * MIB, 7)
        service.wait_quiet()
    after = service.counters()
    sent = after["tcp_out"] - before["tcp_out"]
    assert after["tcp_rexmit"] - before["tcp_rexmit"] < sent * 0.2
    assert after["tcp_rto"] - before["tcp_rto"] <= 2


def test_long_wire_fills_its_window(near: Lab, far: Lab, service: Service) -> None:
    """10 ms each way: the window's 256 KiB a round trip, 12 MiB/s, not a segment a round trip."""
    with wire(near, far, "--delay-ms", "10"):
        begin = time.monotonic()
        with connect(far, "sink", ip=SERVER_IP) as sock:
            send_and_sink(sock, 2 * MIB, 8)
        with connect(far, f"source {2 * MIB} 9", ip=SERVER_IP) as sock:
            take_source(sock, 2 * MIB, 9)
        assert time.monotonic() - begin < 40, "a segment a round trip would take 60 s"
        with connect(far, "echo", ip=SERVER_IP) as sock:
            sock.sendall(b"far away")
            assert receive(sock, 8) == b"far away"
        service.wait_quiet()


def test_wire_that_is_cut_and_mended_streams_go_on(near: Lab, far: Lab, service: Service) -> None:
    with connect_over_nothing(near, far) as sock:
        flow = Flow(sock, payload(4 * MIB, 10), 10)
        with wire(near, far):
            while len(flow.got) < MIB:
                step(flow)
        with wire(near, far):
            pump([flow])
            assert digest(flow.got) == digest(flow.data)
            service.wait_quiet()


@contextmanager
def connect_over_nothing(near: Lab, far: Lab) -> Iterator[socket.socket]:
    """A connection that is open while the wire is not there any more."""
    with wire(near, far):
        sock = connect(far, "echo", ip=SERVER_IP)
    with sock:
        yield sock


def step(flow: Flow) -> None:
    for act in (flow.write, flow.read):
        try:
            act()
        except BlockingIOError:
            continue
