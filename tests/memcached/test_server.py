"""The server over a veth link, by kernel clients."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.memcached.kit import (
    PATIENCE_S,
    PORT,
    Server,
    connect,
    in_client,
    read_until,
    stats,
    talk,
)


@pytest.mark.parametrize("protocol", ["-a", "-b"])
def test_memccapable_all_tests_pass(lab: Lab, server: Server, protocol: str) -> None:
    run = in_client(lab, ["memccapable", "-h", lab.facts.server.ip, "-p", str(PORT), protocol])
    assert run.stdout.count("[pass]") == 27 and run.stdout.endswith("All tests passed\n"), run


def test_store_is_shared_by_all_workers(lab: Lab, server: Server) -> None:
    socks = [connect(lab) for _ in range(16)]  # on both queues, by their ports
    for i, sock in enumerate(socks):
        assert talk(sock, b"set shared%d 0 0 1\r\n%d\r\n" % (i, i % 10)) == b"STORED\r\n"
    for sock in socks:
        for i in range(16):
            got = talk(sock, b"get shared%d\r\n" % i, b"END\r\n")
            assert got == b"VALUE shared%d 0 1\r\n%d\r\nEND\r\n" % (i, i % 10)
    assert int(stats(socks[0])["threads"]) == 2


def test_slow_reader_of_large_values_gets_them_whole_and_holds_nobody_up(
    lab: Lab, server: Server
) -> None:
    slow, quick = connect(lab), connect(lab)
    value = os.urandom(1_000_000)
    assert talk(slow, b"set large 0 0 %d\r\n%s\r\n" % (len(value), value)) == b"STORED\r\n"
    slow.sendall(b"get large\r\n" * 20)
    for i in range(200):
        assert talk(quick, b"set q 0 0 3\r\n%03d\r\n" % i) == b"STORED\r\n"
    # Replaced meanwhile: what is being sent stays what it was.
    assert talk(quick, b"set large 0 0 1\r\nx\r\n") == b"STORED\r\n"
    whole = b"VALUE large 0 %d\r\n%s\r\nEND\r\n" % (len(value), value)
    small = b"VALUE large 0 1\r\nx\r\nEND\r\n"
    slow.sendall(b"mn\r\n")
    got = read_until(slow, b"MN\r\n")
    n = got.count(whole)
    assert n >= 1 and got == whole * n + small * (20 - n) + b"MN\r\n"


def test_pipeline_of_10000(lab: Lab, server: Server) -> None:
    sock = connect(lab)
    data = b"".join(
        b"set p%d 0 0 4 noreply\r\n%04d\r\nget p%d\r\n" % (i % 7, i, i % 7) for i in range(10_000)
    )
    expected = b"".join(b"VALUE p%d 0 4\r\n%04d\r\nEND\r\n" % (i % 7, i) for i in range(10_000))
    pid = os.fork()
    if pid == 0:
        sock.sendall(data + b"quit\r\n")
        os._exit(0)
    got = read_until(sock, b"\0")
    os.waitpid(pid, 0)
    assert got == expected


def test_stats_conns_tell_both_ends_of_each_family(lab: Lab, server: Server) -> None:
    for address in (lab.cfg.server_ip, lab.cfg.server_ip6):
        ip = address.split("/")[0]
        with in_netns(lab.cfg.client_netns):
            sock = socket.create_connection((ip, PORT), timeout=PATIENCE_S)
        kind, form = ("tcp6", "[{}]") if ":" in ip else ("tcp", "{}")
        found = stats(sock, "conns")
        own = f"{kind}:{form.format(sock.getsockname()[0])}:{sock.getsockname()[1]}"
        numbers = [name.split(":")[0] for name, value in found.items() if value == own]
        assert len(numbers) == 1, found
        assert found[f"{numbers[0]}:listen_addr"] == f"{kind}:{form.format(ip)}:{PORT}"
        assert found[f"{numbers[0]}:state"] == "conn_parse_cmd"


def test_udp_request_is_answered_in_datagrams(lab: Lab, server: Server) -> None:
    sock = connect(lab)
    value = os.urandom(5000)
    assert talk(sock, b"set u 0 0 5000\r\n%s\r\n" % value) == b"STORED\r\n"
    with in_netns(lab.cfg.client_netns):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(PATIENCE_S)
    udp.sendto(struct.pack("!HHHH", 77, 0, 1, 0) + b"get u\r\n", (lab.facts.server.ip, PORT))
    parts: dict[int, bytes] = {}
    total = 1
    while len(parts) < total:
        datagram = udp.recv(2000)
        identity, sequence, total, reserved = struct.unpack("!HHHH", datagram[:8])
        assert (identity, reserved) == (77, 0) and len(datagram) <= 1400
        parts[sequence] = datagram[8:]
    assert b"".join(parts[i] for i in range(total)) == b"VALUE u 0 5000\r\n%s\r\nEND\r\n" % value
