"""A run as `--pcap` recorded it: what crossed the link, judged by another parser (scapy).

the kernel's client ==== echo ==== the dataplane ----> one file a shard
"""

from __future__ import annotations

import socket
from pathlib import Path

from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from ixnet.control.lab import Lab
from tests.interop.kit import PORT, Flow, Service, connect, digest, payload, pump, receive

Segment = tuple[int, int, bytes]  # seq, flags, payload


def checksums_hold(packet: IP) -> bool:
    """Makes them anew and compares."""
    found = packet.chksum, packet[TCP].chksum
    again = packet.copy()
    del again.chksum, again[TCP].chksum
    again = IP(bytes(again))
    return found == (again.chksum, again[TCP].chksum)


def payload_of(packet: IP) -> bytes:
    """Without the padding of a short frame."""
    length = packet.len - packet.ihl * 4 - packet[TCP].dataofs * 4
    return bytes(packet[TCP].payload)[:length]


def stream(segments: list[Segment]) -> bytes:
    """The payload in the order of sequence numbers, from the SYN on; each byte once."""
    (first,) = {seq for seq, flags, _ in segments if flags & 2}
    # Of those that were sent again, in other portions, the longest.
    pieces: dict[int, bytes] = {}
    for seq, _, data in segments:
        at = (seq - first - 1) % 2**32
        if len(data) > len(pieces.get(at, b"")):
            pieces[at] = data
    whole = bytearray()
    for at in sorted(pieces):
        assert at <= len(whole), f"nothing was recorded at {len(whole)}"
        whole += pieces[at][len(whole) - at :]
    return bytes(whole)


def test_recording_holds_both_streams_in_order(lab: Lab, tmp_path: Path) -> None:
    options = ["--pcap", str(tmp_path / "trace.pcap")]
    with Service(lab, tmp_path, options=options) as service:
        flows = [Flow(connect(lab, "echo"), payload(100_000, i), i) for i in range(6)]
        ports = [flow.sock.getsockname()[1] for flow in flows]
        pump(flows)
        for flow in flows:
            assert digest(flow.got) == digest(flow.data)
            flow.sock.close()
        service.wait_quiet()
    files = sorted(tmp_path.glob("trace*.pcap"))
    assert len(files) == 2
    in_file = [[p[IP] for p in rdpcap(str(file)) if TCP in p] for file in files]
    for packet in (p for packets in in_file for p in packets):
        assert len(packet) <= lab.cfg.mtu
        assert checksums_hold(packet)
    for port, flow in zip(ports, flows, strict=True):
        holding = [p for p in in_file if any(port in (q.sport, q.dport) for q in p)]
        assert len(holding) == 1, "a flow is one shard's"
        towards: list[Segment] = []
        back: list[Segment] = []
        for packet in holding[0]:
            tcp = packet[TCP]
            segment = (tcp.seq, int(tcp.flags), payload_of(packet))
            if tcp.sport == port:
                towards.append(segment)
            elif tcp.dport == port:
                assert packet.src == lab.facts.server.ip and tcp.sport == PORT
                back.append(segment)
        assert stream(towards) == b"echo\n" + flow.data
        assert stream(back) == flow.data
        assert any(flags & 1 for _, flags, _ in towards) and any(flags & 1 for _, flags, _ in back)


def test_recording_of_a_half_close_ends_with_both_fins_acknowledged(
    lab: Lab, tmp_path: Path
) -> None:
    options = ["--pcap", str(tmp_path / "trace.pcap"), "--queues", "2"]
    with Service(lab, tmp_path, options=options) as service:
        with connect(lab, "sink") as sock:
            port = sock.getsockname()[1]
            sock.sendall(b"all of it")
            sock.shutdown(socket.SHUT_WR)
            assert receive(sock, 200).decode() == digest(b"all of it") + "\n"
        service.wait_quiet()
    packets = [
        p[IP]
        for file in tmp_path.glob("trace*.pcap")
        for p in rdpcap(str(file))
        if TCP in p and port in (p[TCP].sport, p[TCP].dport)
    ]
    ends = {p.src: p for p in packets if p[TCP].flags.F}
    assert set(ends) == {lab.facts.server.ip, lab.facts.client.ip}
    for ip, fin in ends.items():
        last = max(p[TCP].ack for p in packets if p.src != ip and p[TCP].flags.A)
        assert last == (fin[TCP].seq + len(payload_of(fin)) + 1) % 2**32
    assert packets[0][TCP].flags == "S"
    assert not any(p[TCP].flags.R for p in packets)
