"""Peers of many kinds: options that a kernel lacks, small buffers and segments, Nagle, offloads.

the client's kernel, its sysctls, routes and offloads changed ---- the dataplane's commands.py
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ixnet.control.lab import Lab, switch_offloads
from ixnet.control.namespaces import in_netns
from tests.interop.kit import (
    MIB,
    PORT,
    Service,
    answers,
    connect,
    echo_streams,
    iproute,
    lab_config,
    receive,
    send_and_sink,
    sysctls,
    take_source,
    tcp_info,
    until,
)

ETH_P_ALL = 3  # both directions, which ETH_P_IP is not
ETHERNET, IPV4, TCP = 14, 20, 20
TIMESTAMP_OPTION = 12


def both_ways(lab: Lab, n: int, **how: int) -> None:
    """n bytes to the dataplane, n from it, and n there and back."""
    with connect(lab, "sink", **how) as sock:
        send_and_sink(sock, n, 1)
    with connect(lab, f"source {n} 2", **how) as sock:
        take_source(sock, n, 2)
    echo_streams(lab, 1, n, **how)


# ---- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamps, sack, scaling",
    list(itertools.product("01", repeat=3)),
)
def test_peer_without_some_options(
    lab: Lab, service: Service, timestamps: str, sack: str, scaling: str
) -> None:
    values = {
        "net/ipv4/tcp_timestamps": timestamps,
        "net/ipv4/tcp_sack": sack,
        "net/ipv4/tcp_window_scaling": scaling,
    }
    with sysctls(lab.cfg.client_netns, values):
        with connect(lab, "echo") as sock:
            info = tcp_info(sock)
            assert info.timestamps == (timestamps == "1")
            assert info.sack == (sack == "1")
            assert info.window_scaling == (scaling == "1")
            assert answers(sock)
        both_ways(lab, MIB)
    service.wait_quiet()


def test_other_congestion_control_of_the_peer(lab: Lab, service: Service) -> None:
    with in_netns(lab.cfg.client_netns):
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    for name in known:
        with connect(lab, "sink") as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            send_and_sink(sock, 2 * MIB, 1)
    service.wait_quiet()


def test_ecn_is_offered_and_not_taken(lab: Lab, service: Service) -> None:
    """RFC 3168 6.1.1: a host without ECN answers an ECN-setup SYN with a plain SYN-ACK."""
    with sysctls(lab.cfg.client_netns, {"net/ipv4/tcp_ecn": "1"}):
        both_ways(lab, MIB // 4)
    service.wait_quiet()


# ---- segments --------------------------------------------------------------------------------


class Tap:
    """Sees what crosses the client's interface while the block runs."""

    def __init__(self, lab: Lab) -> None:
        with in_netns(lab.cfg.client_netns):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._sock.bind((lab.cfg.client_if, ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 * MIB)  # SO_RCVBUFFORCE
        self._sock.settimeout(0.05)
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.largest_payload = 0  # from the dataplane
        self.largest_towards = 0  # to it
        self.with_options: set[int] = set()  # lengths of the options of segments with payload

    def _run(self) -> None:
        while True:
            try:
                frame = self._sock.recv(65536)
            except TimeoutError:
                if self._halt.is_set():
                    return
                continue
            if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
                continue
            source, target, header = struct.unpack_from("!HH8xB", frame, ETHERNET + IPV4)
            (total,) = struct.unpack_from("!H", frame, 16)
            payload = total - IPV4 - (header >> 4) * 4
            if source == PORT and payload:
                self.largest_payload = max(self.largest_payload, payload)
                self.with_options.add((header >> 4) * 4 - TCP)
            elif target == PORT:
                self.largest_towards = max(self.largest_towards, payload)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._thread.join()
        self._sock.close()


def test_segments_are_as_large_as_the_link_lets_them(lab: Lab, service: Service) -> None:
    with Tap(lab) as tap:
        both_ways(lab, MIB // 2)
    assert tap.largest_payload == lab.cfg.mtu - IPV4 - TCP - TIMESTAMP_OPTION
    assert tap.largest_towards == tap.largest_payload
    assert tap.with_options == {TIMESTAMP_OPTION}


@pytest.mark.parametrize("mss", [88, 536, 1000])
def test_small_mss_of_the_peer_is_kept(lab: Lab, service: Service, mss: int) -> None:
    """RFC 6691: the MSS option leaves room for no options; the payload is that much smaller."""
    with Tap(lab) as tap:
        both_ways(lab, MIB // 4, mss=mss)
    assert tap.largest_payload == mss - TIMESTAMP_OPTION
    service.wait_quiet()


def test_route_with_a_small_advmss_is_kept(lab: Lab, service: Service) -> None:
    with iproute(lab.cfg.client_netns) as ipr:
        index = ipr.link_lookup(ifname=lab.cfg.client_if)[0]
        route = {"dst": f"{lab.facts.server.ip}/32", "oif": index, "scope": 253}
        ipr.route("add", metrics={"advmss": 700}, **route)
        try:
            with Tap(lab) as tap:
                both_ways(lab, MIB // 4)
        finally:
            ipr.route("del", **route)
    assert tap.largest_payload == 700 - TIMESTAMP_OPTION
    service.wait_quiet()


def test_large_mtu_carries_large_segments(tmp_path: Path) -> None:
    """3,400 bytes: frames of 4 KiB."""
    with Lab(lab_config(mtu=3400)) as own, Service(own, tmp_path) as service:
        with Tap(own) as tap:
            both_ways(own, 2 * MIB)
        assert tap.largest_payload == 3400 - IPV4 - TCP - TIMESTAMP_OPTION
        assert tap.largest_towards == tap.largest_payload
        service.wait_quiet()


# ---- buffers and small messages ----------------------------------------------------------------


@pytest.mark.parametrize("rcvbuf", [2304, 8192, 65536])
def test_small_receive_buffer_of_the_peer(lab: Lab, service: Service, rcvbuf: int) -> None:
    both_ways(lab, MIB // 4, rcvbuf=rcvbuf)
    service.wait_quiet()


def test_client_with_nagle_sends_small_messages(lab: Lab, service: Service) -> None:
    """Each message of two writes: the second waits for the ACK of the first, which the dataplane
    may delay. It takes its time, but it goes on."""
    with connect(lab, "echo", nodelay=False) as sock:
        for _ in range(20):
            sock.sendall(b"head")
            sock.sendall(b"body")
            assert receive(sock, 8) == b"headbody"
    echo_streams(lab, 4, 100_000, nodelay=False)
    service.wait_quiet()


def test_dataplane_with_nagle_sends_small_messages(lab: Lab, service: Service) -> None:
    with connect(lab, "lazy") as sock:
        for i in range(200):
            assert answers(sock, b"%d" % i)
    echo_streams(lab, 4, 100_000, command="lazy")
    service.wait_quiet()


def test_one_byte_at_a_time(lab: Lab, service: Service) -> None:
    with connect(lab, "echo") as sock:
        data = bytes(range(256)) * 8
        for value in data:
            sock.sendall(bytes([value]))
        assert receive(sock, len(data)) == data


def test_urgent_data_is_data(lab: Lab, service: Service) -> None:
    """The urgent pointer is not looked at; the byte is in the stream, as with SO_OOBINLINE."""
    with connect(lab, "echo") as sock:
        sock.sendall(b"before")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"after")
        assert receive(sock, 12) == b"before!after"


# ---- silence ---------------------------------------------------------------------------------


def test_kernels_keepalive_is_answered(lab: Lab, service: Service) -> None:
    """Idle for 1 s, one probe a second, one unanswered ends the connection: it must not end."""
    with connect(lab, "echo") as sock:
        assert answers(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
        before = sum(s["tcp_in"] for s in service.shards())
        until("two probes", lambda: sum(s["tcp_in"] for s in service.shards()) >= before + 2)
        assert answers(sock)


def test_dataplanes_keepalive_is_answered(lab: Lab, service: Service) -> None:
    def sent() -> int:
        return sum(s["tcp_keepalives"] for s in service.shards())

    with connect(lab, "keep 100") as sock:
        assert answers(sock)
        before = sent()
        until("four probes", lambda: sent() >= before + 4)
        assert answers(sock)
        assert tcp_info(sock).state == 1


@contextmanager
def struck_dumb(lab: Lab) -> Iterator[None]:
    """The client's kernel does not know its address any more: it neither answers nor resets."""
    with iproute(lab.cfg.client_netns) as ipr:
        index = ipr.link_lookup(ifname=lab.cfg.client_if)[0]
        address = {"address": lab.facts.client.ip, "prefixlen": 24}
        ipr.addr("del", index=index, **address)
        try:
            yield
        finally:
            ipr.addr("add", index=index, **address)


def test_peer_vanishes_idle_keepalive_notices(lab: Lab, service: Service) -> None:
    """Nine unanswered probes (RFC 9293 3.8.4: not at the first)."""
    with connect(lab, "keep 100") as sock:
        assert answers(sock)
        with struck_dumb(lab):
            service.wait_report("keep ETIMEDOUT")
    service.wait_quiet()


def test_peer_vanishes_with_data_waiting_user_timeout_ends_it(lab: Lab, service: Service) -> None:
    """The client does not read, so the dataplane probes its window. While the peer answers, that
    may go on for ever; when it no longer does, the user timeout runs."""
    before = sum(s["tcp_probes"] for s in service.shards())
    with connect(lab, "patience 800", rcvbuf=4096) as sock:
        sock.sendall(bytes(50_000))
        until("probes", lambda: sum(s["tcp_probes"] for s in service.shards()) >= before + 3)
        assert service.reports() == []
        with struck_dumb(lab):
            service.wait_report("patience ETIMEDOUT")
    service.wait_quiet()


# ---- offloads --------------------------------------------------------------------------------


@contextmanager
def offload_on(lab: Lab, *names: str) -> Iterator[None]:
    """Turns offloads of the client's interface on for a while."""
    switch_offloads(lab.cfg.client_netns, lab.cfg.client_if, True, *names)
    try:
        yield
    finally:
        switch_offloads(lab.cfg.client_netns, lab.cfg.client_if, False, *names)


def test_peer_with_segmentation_offload_left_on(lab: Lab, service: Service) -> None:
    """GSO without checksum offload: the kernel cuts segments before the wire."""
    with offload_on(lab, "tx-generic-segmentation"):
        both_ways(lab, 2 * MIB)
    service.wait_quiet()


def test_peer_with_checksum_offload_streams_go_on_afterwards(lab: Lab, service: Service) -> None:
    """What came with unfinished checksums is lost, not the connection."""
    before = sum(s["drop_partial_csum"] for s in service.shards())
    with connect(lab, "echo") as sock:
        assert answers(sock)
        with offload_on(lab, "tx-checksum-ip-generic"):
            sock.sendall(b"unfinished")
            until(
                "the counter",
                lambda: sum(s["drop_partial_csum"] for s in service.shards()) > before,
            )
        assert receive(sock, 10) == b"unfinished", "sent again, by software this time"
    until("the cure", lambda: any("ethtool -K" in w for w in service.live()["warnings"]))
    service.may_say = ("ethtool -K",)
    service.wait_quiet()
