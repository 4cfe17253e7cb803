"""Ends of connections: either half first, resets of either side, and windows that stay shut.

the kernel's client ---- FIN, RST, window 0 ---- the dataplane's commands.py
"""

from __future__ import annotations

import errno
import socket
import struct
import time

import pytest

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.interop.kit import (
    MIB,
    PATIENCE_S,
    PORT,
    Flow,
    Service,
    answers,
    connect,
    digest,
    echo_streams,
    payload,
    pump,
    receive,
    send_and_sink,
    tcp_info,
    until,
)

ESTABLISHED, TIME_WAIT, CLOSE = 1, 6, 7
FREE_PORT = 7099  # nobody listens there


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---- in order ----------------------------------------------------------------------------------


def test_client_ends_its_half_first_answer_still_comes(lab: Lab, service: Service) -> None:
    with connect(lab, "sink") as sock:
        sock.sendall(b"abc")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 1000).decode() == digest(b"abc") + "\n"
    service.wait_quiet()


def test_client_ends_its_half_first_megabytes_still_come(lab: Lab, service: Service) -> None:
    with connect(lab, f"source {4 * MIB} 1") as sock:
        sock.shutdown(socket.SHUT_WR)
        got = receive(sock, 5 * MIB)
    assert digest(got) == digest(payload(4 * MIB, 1))
    service.wait_quiet()


def test_dataplane_ends_its_half_first_and_reads_on(lab: Lab, service: Service) -> None:
    with connect(lab, "first 1000 2") as sock:
        assert digest(receive(sock, 2000)) == digest(payload(1000, 2))
        assert sock.recv(1) == b"", "the stream of the dataplane has ended"
        flow = Flow(sock, payload(2 * MIB, 3), 3)
        flow.done = True
        pump([flow])
        service.wait_report(f"first {digest(flow.data)}")
    service.wait_quiet()


def test_both_end_at_once_nothing_is_left(lab: Lab, service: Service) -> None:
    for seed in range(20):
        with connect(lab, f"source 10 {seed}") as sock:
            sock.shutdown(socket.SHUT_WR)
            assert receive(sock, 11) == payload(10, seed)
    service.wait_quiet()


def test_connection_without_a_byte_ends(lab: Lab, service: Service) -> None:
    for _ in range(10):
        connect(lab).close()
    service.wait_quiet()


def test_dataplane_that_ends_first_waits_in_time_wait(lab: Lab, service: Service) -> None:
    before = sum(s["tcp_time_wait"] for s in service.shards())
    with connect(lab, "source 5 5") as sock:
        assert receive(sock, 6) == payload(5, 5)
    until("TIME_WAIT", lambda: sum(s["tcp_time_wait"] for s in service.shards()) == before + 1)


def bind_when_free(sock: socket.socket, address: tuple[str, int]) -> bool:
    """The kernel's old socket may wait for the last ACK still."""
    try:
        sock.bind(address)
        return True
    except OSError as error:
        assert error.errno == errno.EADDRINUSE
        return False


def test_port_in_time_wait_is_used_again_at_once(lab: Lab, service: Service) -> None:
    """RFC 6191: a SYN with a newer timestamp takes the place of the old connection. The kernel may
    send it to another queue than before, where nothing is in its way: so again, until it did not.
    """

    def reused() -> int:
        return sum(s["tcp_time_wait_reused"] for s in service.shards())

    def use_again() -> bool:
        with connect(lab, "source 5 5") as sock:
            address = sock.getsockname()
            assert receive(sock, 6) == payload(5, 5)
        with in_netns(lab.cfg.client_netns):
            again = socket.socket()
        with again:
            again.settimeout(PATIENCE_S)
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            until("the client's port", lambda: bind_when_free(again, address))
            again.connect((lab.facts.server.ip, PORT))
            again.sendall(b"echo\n")
            assert answers(again)
        return reused() > before

    before = reused()
    until("a port used again on its queue", use_again)


# ---- resets ------------------------------------------------------------------------------------


def test_client_resets_application_is_told(lab: Lab, service: Service) -> None:
    sock = connect(lab, "echo")
    assert answers(sock)
    reset_on_close(sock)
    sock.close()
    service.wait_report("echo ECONNRESET")
    service.wait_quiet()


def test_client_resets_in_the_middle_of_both_streams(lab: Lab, service: Service) -> None:
    sock = connect(lab, f"both {16 * MIB} 1")
    assert len(receive(sock, MIB)) == MIB
    sock.sendall(bytes(100_000))
    reset_on_close(sock)
    sock.close()
    service.wait_report("both ECONNRESET")
    service.wait_quiet()


@pytest.mark.parametrize("after", [0, 1, 100_000])
def test_dataplane_resets_client_is_told(lab: Lab, service: Service, after: int) -> None:
    with connect(lab, f"abort {after}") as sock, pytest.raises(OSError) as caught:
        sock.sendall(bytes(after))
        while True:
            assert sock.recv(1000) == b"never"
    assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)
    service.wait_quiet()


def test_application_closes_with_input_unread_resets(lab: Lab, service: Service) -> None:
    """RFC 1122 4.2.2.13: what arrives after a full close is answered with a reset."""
    with connect(lab, "proxy 192.0.2.1 9") as sock:
        assert receive(sock, 100) == b"failed ENETUNREACH\n"
        with pytest.raises(OSError) as caught:
            for _ in range(1000):
                sock.sendall(bytes(10_000))
        assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)
    service.wait_report("proxy ENETUNREACH")
    service.wait_quiet()


def test_port_that_nobody_claimed_is_refused_by_the_kernel(lab: Lab, service: Service) -> None:
    before = sum(s["drop_tcp_no_listener"] for s in service.shards())
    with pytest.raises(ConnectionRefusedError):
        connect(lab, port=FREE_PORT)
    assert sum(s["drop_tcp_no_listener"] for s in service.shards()) == before


# ---- windows -----------------------------------------------------------------------------------


def test_client_stops_reading_dataplane_probes_and_goes_on(lab: Lab, service: Service) -> None:
    before = sum(s["tcp_probes"] for s in service.shards())
    with connect(lab, f"source {4 * MIB} 9", rcvbuf=16_384) as sock:
        until("two probes", lambda: sum(s["tcp_probes"] for s in service.shards()) >= before + 2)
        assert answers_meanwhile(lab)
        assert digest(receive(sock, 5 * MIB)) == digest(payload(4 * MIB, 9))
    service.wait_quiet()


def test_application_stops_reading_kernel_probes_and_goes_on(lab: Lab, service: Service) -> None:
    with connect(lab, "hold stopped") as sock:
        flow = Flow(sock, payload(4 * MIB, 10), 10)
        until("probes of the kernel", lambda: fill(flow) or tcp_info(sock).backoff >= 1)
        assert answers_meanwhile(lab)
        # One window, and no more, was taken.
        until("it", lambda: any(s["frames_app"] * 1448 >= 200_000 for s in service.shards()))
        (service.directory / "stopped").touch()
        pump([flow])
        assert flow.got.decode() == digest(flow.data) + "\n"
    service.wait_quiet()


def test_application_reads_again_the_kernel_is_told_at_once(lab: Lab, service: Service) -> None:
    """By a window update: the kernel's next probe would come 6.4 s after the one that made its
    backoff 5 (200 ms, doubled five times)."""
    with connect(lab, "hold late") as sock:
        flow = Flow(sock, payload(4 * MIB, 12), 12)
        until("the fifth probe", lambda: fill(flow) or tcp_info(sock).backoff >= 5)
        sent = flow.sent
        begin = time.monotonic()
        (service.directory / "late").touch()
        until("progress", lambda: fill(flow) or flow.sent > sent)
        assert time.monotonic() - begin < 5
        pump([flow])
        assert flow.got.decode() == digest(flow.data) + "\n"
    service.wait_quiet()


def fill(flow: Flow) -> None:
    """Writes until the kernel takes no more."""
    try:
        while flow.writes:
            flow.write()
    except BlockingIOError:
        pass


def answers_meanwhile(lab: Lab) -> bool:
    with connect(lab, "echo") as other:
        return answers(other)


def test_window_that_shuts_again_and_again_keeps_the_stream_whole(
    lab: Lab, service: Service
) -> None:
    """A receive buffer of a few segments, read in small pieces."""
    with connect(lab, f"source {MIB // 2} 11", rcvbuf=4096) as sock:
        got = bytearray()
        while data := sock.recv(700):
            got += data
        assert digest(got) == digest(payload(MIB // 2, 11))
    service.wait_quiet()


def test_reader_that_leaves_during_window_zero_is_noticed(lab: Lab, service: Service) -> None:
    before = sum(s["tcp_probes"] for s in service.shards())
    sock = connect(lab, f"source {4 * MIB} 12", rcvbuf=16_384)
    until("a probe", lambda: sum(s["tcp_probes"] for s in service.shards()) > before)
    sock.close()  # with data unread: the kernel resets
    service.wait_report("source ECONNRESET")
    service.wait_quiet()


def test_service_is_unharmed(lab: Lab, service: Service) -> None:
    echo_streams(lab, 8, 100_000)
    with connect(lab, "sink") as sock:
        send_and_sink(sock, MIB, 1)
    service.wait_quiet()
    assert service.reports() == []
