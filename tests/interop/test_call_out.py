"""Connections that the dataplane opens: CONNECT to services of a kernel.

ixs0 10.77.0.1                                      ixc0 10.77.0.2
commands.py `proxy`  <---- the test's own socket ---- kernel
                     ----- CONNECT ----------------> kernel's listener

The proxy passes both streams and their ends on, so the test holds both outer ends in its hand.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import (
    MIB,
    PATIENCE_S,
    Flow,
    Service,
    connect,
    digest,
    iproute,
    listening,
    payload,
    pump,
    receive,
    until,
)
from tests.interop.test_close import reset_on_close


@pytest.fixture(scope="module")
def target(lab: Lab) -> Iterator[socket.socket]:
    """Where the client's kernel listens."""
    with listening(lab.cfg.client_netns) as sock:
        yield sock


def open_pair(lab: Lab, target: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both outer ends of a proxied connection."""
    near = connect(lab, f"proxy {lab.facts.client.ip} {target.getsockname()[1]}")
    far, _ = target.accept()
    return near, far


def test_connect_carries_streams_both_ways(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    near, far = open_pair(lab, target)
    with near, far:
        flows = [Flow(near, payload(2 * MIB, 1), 1), Flow(far, payload(2 * MIB, 2), 2)]
        pump(flows)
        assert digest(flows[1].got) == digest(flows[0].data)
        assert digest(flows[0].got) == digest(flows[1].data)
    service.wait_quiet()


def test_many_connects_at_once_each_finds_its_peer(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    """Both shards open connections; a veth's hash is unknown, so ports are tried until the answer
    comes to the shard that asked."""
    near = [
        connect(lab, f"proxy {lab.facts.client.ip} {target.getsockname()[1]}") for _ in range(24)
    ]
    far = [target.accept()[0] for _ in near]
    for i, sock in enumerate(near):
        sock.sendall(b"%05d" % i)
    by_number = {int(receive(sock, 5)): sock for sock in far}
    assert sorted(by_number) == list(range(len(near)))
    for i, sock in by_number.items():
        sock.sendall(b"answer to %05d" % i)
    for i, sock in enumerate(near):
        assert receive(sock, 15) == b"answer to %05d" % i
    assert all(s["tcp_active_opens"] > 0 for s in service.shards())
    for sock in near + far:
        sock.close()
    service.wait_quiet()


def test_outgoing_port_is_one_the_kernel_leaves_out(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    near, far = open_pair(lab, target)
    with near, far:
        ip, port = far.getpeername()
        reserved = lab.facts.server.sysctls["net/ipv4/ip_local_reserved_ports"]
        low, high = map(int, reserved.split("-"))
        assert ip == lab.facts.server.ip
        assert low <= port <= high


def test_closed_port_connect_is_refused(lab: Lab, service: Service) -> None:
    with connect(lab, f"proxy {lab.facts.client.ip} 9") as sock:
        assert receive(sock, 100) == b"failed ECONNREFUSED\n"
    service.wait_report("proxy ECONNREFUSED")
    service.wait_quiet()


def test_no_route_connect_fails_at_once(lab: Lab, service: Service) -> None:
    with connect(lab, "proxy 192.0.2.1 9") as sock:
        assert receive(sock, 100) == b"failed ENETUNREACH\n"
    service.wait_report("proxy ENETUNREACH")


def test_nobody_has_the_address_connect_fails(lab: Lab, service: Service) -> None:
    """The kernel asks for the neighbour, three times, a second each."""
    with connect(lab, "proxy 10.77.0.200 9") as sock:
        assert receive(sock, 100) == b"failed EHOSTUNREACH\n"
    service.wait_report("proxy EHOSTUNREACH")


def test_route_appears_connect_uses_it(lab: Lab, service: Service) -> None:
    with iproute(lab.cfg.client_netns) as client, iproute(lab.cfg.server_netns) as server:
        lo = client.link_lookup(ifname="lo")[0]
        client.addr("add", index=lo, address="198.51.100.7", prefixlen=32)
        server.route("add", dst="198.51.100.0/24", gateway=lab.facts.client.ip)
        try:
            with listening(lab.cfg.client_netns) as behind:
                until("the new route", lambda: reaches(lab, "198.51.100.7", behind))
                service.wait_quiet()
        finally:
            client.addr("del", index=lo, address="198.51.100.7", prefixlen=32)
            server.route("del", dst="198.51.100.0/24", gateway=lab.facts.client.ip)
    (service.directory / "reports").unlink(missing_ok=True)


def reaches(lab: Lab, ip: str, listener: socket.socket) -> bool:
    """Whether a proxied connection arrives at the listener; False: there is no route."""
    with connect(lab, f"proxy {ip} {listener.getsockname()[1]}") as near:
        ready, _, _ = select.select([near, listener], [], [], PATIENCE_S)
        if near in ready:
            assert receive(near, 100) == b"failed ENETUNREACH\n"
            return False
        far, _ = listener.accept()
        with far:
            near.sendall(b"via a gateway")
            return receive(far, 13) == b"via a gateway"


def test_server_ends_first_half_close_is_passed_on(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    near, far = open_pair(lab, target)
    with near, far:
        far.sendall(b"first")
        far.shutdown(socket.SHUT_WR)
        assert receive(near, 100) == b"first", "to the end of the stream"
        near.sendall(b"second")
        near.shutdown(socket.SHUT_WR)
        assert receive(far, 100) == b"second"
    service.wait_quiet()


def test_server_resets_application_is_told(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    near, far = open_pair(lab, target)
    reset_on_close(far)
    far.close()
    with near:
        assert receive(near, 100) == b"failed ECONNRESET\n"
    service.wait_report("proxy ECONNRESET")
    service.wait_quiet()


def test_application_resets_server_is_told(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    near, far = open_pair(lab, target)
    reset_on_close(near)
    near.close()
    far.settimeout(PATIENCE_S)
    with far, pytest.raises(ConnectionResetError):
        far.recv(1)
    service.wait_quiet()


def test_server_that_does_not_read_stops_the_client(
    lab: Lab, service: Service, target: socket.socket
) -> None:
    """Back-pressure through both connections, and recovery."""
    near, far = open_pair(lab, target)
    with near, far:
        flow = Flow(near, payload(24 * MIB, 5), 5)
        stuck_since = time.monotonic()
        while time.monotonic() - stuck_since < 0.4:
            try:
                flow.write()
                stuck_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert flow.sent < 20 * MIB
        other = Flow(far, end_after_sending=False)
        flow.done = True
        pump([flow, other])
        assert digest(other.got) == digest(flow.data)
    service.wait_quiet()
