"""Packets that no honest host sends, built with scapy: counted, answered by the book, survived."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.unit.peer import (
    COUNTERS,
    FLAGS,
    LOCAL,
    LOCAL_MAC,
    REMOTE,
    REMOTE_MAC,
    Peer,
    Stack,
    ethernet,
    ipv4,
    opened,
    tcp_segment,
)

HEAD = Ether(dst=LOCAL_MAC.hex(":"), src=REMOTE_MAC.hex(":"))
ADDRESSES = IP(src=REMOTE, dst=LOCAL)


def frame(packet: Packet) -> bytes:
    return bytes(HEAD / packet).ljust(60, b"\0")


def drops(stack: Stack) -> dict[str, int]:
    return {name: n for name in COUNTERS if name.startswith("drop_") and (n := stack.counter(name))}


def answers(stack: Stack) -> list[str]:
    """The flags of the segments that the shard sent."""
    out = [str(Ether(raw)[TCP].flags) for raw in stack.sent]
    stack.sent.clear()
    return out


def established() -> tuple[Stack, Peer, TCP]:
    """A connection, and scapy's TCP header for its next segment."""
    stack, peer, _handle = opened()
    header = TCP(
        sport=peer.sport,
        dport=peer.port,
        seq=(peer.iss + 1) % 2**32,
        ack=(peer.irs + 1) % 2**32,
        flags="PA",
    )
    return stack, peer, header


# ---- checksums ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 0xFFFF, 0x1234])
def test_tcp_checksum_bad(value: int) -> None:
    stack, _peer, header = established()
    header.chksum = value
    stack.inject(frame(ADDRESSES / header / b"data"))
    stack.expect_no_event()
    assert drops(stack) == {"drop_tcp_csum": 1}
    assert answers(stack) == []


def test_tcp_checksum_bad_for_every_bit() -> None:
    stack, _peer, header = established()
    good = frame(ADDRESSES / header / b"some data")
    for bit in range(34 * 8, len(frame(ADDRESSES / header / b"some data")) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        stack.inject(bytes(bad))
    stack.expect_no_event()
    found = drops(stack)
    assert set(found) <= {"drop_tcp_csum", "drop_tcp_short", "drop_tcp_header"}
    assert sum(found.values()) == (len(good) - 34) * 8


def test_tcp_checksum_partial_is_named() -> None:
    # What a virtual NIC sends whose checksum offload was left on: the pseudo header's sum.
    stack, _peer, header = established()
    whole = ADDRESSES / header / b"data"
    size = len(bytes(whole)) - 20
    pseudo = bytes(IP(src=REMOTE, dst=LOCAL))[12:20] + bytes([0, 6]) + size.to_bytes(2, "big")
    total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, 12, 2))
    header.chksum = (total & 0xFFFF) + (total >> 16)
    stack.inject(frame(ADDRESSES / header / b"data"))
    stack.expect_no_event()
    assert drops(stack) == {"drop_partial_csum": 1}


@pytest.mark.parametrize(
    "packet, counter",
    [
        (IP(src=REMOTE, dst=LOCAL, chksum=0x1111) / TCP(), "drop_ip_csum"),
        (ADDRESSES / UDP(dport=9, chksum=0x1111) / b"x", "drop_udp_csum"),
        (ADDRESSES / ICMP(chksum=0x1111) / b"x", "drop_icmp_bad"),
    ],
)
def test_other_checksums_bad(packet: Packet, counter: str) -> None:
    stack = Stack()
    stack.inject(frame(packet))
    assert drops(stack) == {counter: 1}
    assert not stack.sent


# ---- lengths --------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(20))
def test_tcp_header_truncated_by_the_ip_length(size: int) -> None:
    stack, _peer, header = established()
    packet = IP(src=REMOTE, dst=LOCAL, len=20 + size) / header
    stack.inject(frame(packet))
    assert drops(stack) == {"drop_tcp_short": 1}


@pytest.mark.parametrize("offset", [*range(5), *range(6, 16)])
def test_tcp_data_offset_wrong(offset: int) -> None:
    stack, _peer, header = established()
    header.dataofs = offset
    stack.inject(frame(ADDRESSES / header))
    found = drops(stack)
    assert sum(found.values()) == 1
    assert set(found) <= {"drop_tcp_header", "drop_tcp_short"}


@pytest.mark.parametrize("kind", [0, *range(2, 9), 15, 19, 28, 29, 30, 34, 69, 253, 254, 255])
def test_tcp_option_of_every_length_is_survived(kind: int) -> None:
    # In a SYN and in data: refused where it makes no sense, else skipped or taken.
    stack = Stack(listen=80, max_flows=64, max_half_open=64)
    for size in range(39):
        option = (bytes([kind, size]) + bytes(range(size - 2))).ljust(40, b"\1")
        for flags, sport in ((2, 1000 + size), (16, 2000 + size)):
            segment = tcp_segment((sport, 80), 5, 6, flags, 1000, option[:40])
            stack.put(ethernet(ipv4(segment, 6)))
        stack.poll()
    found = drops(stack)
    refused = found.pop("drop_tcp_header", 0)
    # Lengths 0 and 1 lead nowhere, whatever the kind but for the end of options.
    assert refused == (0 if kind == 0 else 4)
    assert found == {"drop_tcp_no_listener": 39 - refused // 2}
    assert stack.stats.flows == 39 - refused // 2


@pytest.mark.parametrize("size", range(1, 41))
def test_ip_options_of_every_length(size: int) -> None:
    stack, _peer, header = established()
    packet = IP(src=REMOTE, dst=LOCAL, options=[IPOption(b"\x01" * size)]) / header / b"data"
    stack.inject(frame(packet))
    stack.expect("RECV", data=b"data")


def test_ip_source_route_is_not_followed() -> None:
    # RFC 7126 4.3: the option is skipped, the answer goes by the route.
    stack = Stack(listen=80)
    plain = ADDRESSES / TCP(dport=80, flags="S")  # or scapy sums with the route's last address
    lsrr = IPOption(b"\x83\x07\x04\xc0\x00\x02\x01")
    routed = IP(src=REMOTE, dst=LOCAL, proto=6, options=[lsrr]) / Raw(bytes(plain)[20:])
    stack.inject(frame(routed))
    assert drops(stack) == {}
    reply = Ether(stack.sent.popleft())
    assert reply[IP].dst == REMOTE and reply[IP].ihl == 5


# ---- flags ----------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["", "SF", "SFRPAU", "FPU", "SRA", "SR", "FSPU", "SRF"])
def test_scans_of_a_listener_open_nothing(flags: str) -> None:
    stack = Stack(listen=80)
    stack.inject(frame(ADDRESSES / TCP(dport=80, flags=flags)))
    assert stack.stats.flows == 0
    assert [f for f in answers(stack) if "S" in f] == []


@pytest.mark.parametrize("value", range(64))
def test_every_flag_combination_on_an_open_connection(value: int) -> None:
    # Only RST with the exact number ends it; SYN is challenged; without ACK nothing counts.
    flags = "".join(letter for i, letter in enumerate(FLAGS) if value >> i & 1)
    stack, peer, header = established()
    header.flags = flags
    stack.inject(frame(ADDRESSES / header / b"data"))
    if "R" in flags:
        stack.expect("DEAD")
        return
    if "S" in flags or "A" not in flags:
        stack.expect_no_event()
        assert peer.state == "ESTABLISHED"
        return
    stack.expect("RECV", data=b"data")
    assert peer.state == ("CLOSE_WAIT" if "F" in flags else "ESTABLISHED")


def test_urgent_data_is_data() -> None:
    # RFC 6093: the pointer is not acted on.
    stack, _peer, header = established()
    header.flags, header.urgptr = "PAU", 2
    stack.inject(frame(ADDRESSES / header / b"abcd"))
    stack.expect("RECV", data=b"abcd")


@pytest.mark.parametrize("flags", ["S", "SA", "A", "FA", "R"])
def test_land_attack_is_dropped(flags: str) -> None:
    stack = Stack(listen=80)
    for _ in range(3):
        stack.inject(frame(IP(src=LOCAL, dst=LOCAL) / TCP(sport=80, dport=80, flags=flags)))
    assert drops(stack) == {"drop_ip_src": 3}
    assert not stack.sent


def test_syn_from_port_zero_is_answered_by_the_book() -> None:
    stack = Stack(listen=80)
    stack.inject(frame(ADDRESSES / TCP(sport=0, dport=80, flags="S")))
    assert answers(stack) == ["SA"]


def test_tiny_fragment_attack_is_dropped() -> None:
    # RFC 1858: flags in the second fragment
    stack = Stack(listen=80)
    for part in fragment(ADDRESSES / TCP(dport=80, flags="S") / Raw(bytes(64)), fragsize=8):
        stack.inject(frame(part))
    assert stack.stats.flows == 0
    assert set(drops(stack)) == {"drop_ip_frag"}


# ---- a storm --------------------------------------------------------------------------


def random_segment(rng: random.Random, peer: Peer, stack: Stack) -> bytes:
    """A segment whose numbers lie near what the connection expects, or anywhere."""
    tcb = stack.tcb(peer.handle)
    near = rng.choice([-70000, -1500, -2, -1, 0, 0, 0, 0, 1, 2, 1000, 65535, rng.getrandbits(31)])
    ack_near = rng.choice([-70000, -2, -1, 0, 0, 0, 0, 1, 2, rng.getrandbits(31)])
    flags = rng.choice(["A", "A", "PA", "PA", "FA", "S", "SA", "R", "RA", "F", "", "SFRPAU"])
    if flags in ("R", "RA") and rng.random() < 0.9:
        flags = "A"
    options = []
    if rng.random() < 0.5:
        options.append(("Timestamp", (rng.getrandbits(32), rng.getrandbits(32))))
    if rng.random() < 0.3:
        una = tcb.snd_una
        start = (una + rng.randrange(-3000, 20000)) % 2**32
        options += [("SAck", (start, (start + rng.randrange(-10, 4000)) % 2**32))]
    header = TCP(
        sport=peer.sport,
        dport=peer.port,
        seq=(tcb.rcv_nxt + near) % 2**32,
        ack=(rng.choice([tcb.snd_una, tcb.snd_max, tcb.snd_max]) + ack_near) % 2**32,
        window=rng.choice([0, 1, 100, 5000, 65535]),
        flags=flags,
        options=options,
    )
    payload = bytes(rng.choice([0, 0, 1, 7, 1460]))
    return frame(ADDRESSES / header / Raw(payload)) if payload else frame(ADDRESSES / header)


@pytest.mark.parametrize("seed", range(12))
def test_storm_of_random_segments_breaks_no_invariant(seed: int) -> None:
    # After each cycle the shard's own checks run; the application acts at random as well.
    rng = random.Random(seed)
    stack = Stack(listen=80, max_flows=4, time_wait_ms=500)
    sport = 50000
    peer = Peer(stack, sport=sport, sack_ok=seed % 2 == 0, ts=seed % 3 == 0)
    peer.connect()
    held = []
    for _ in range(120):
        stack.put(*[random_segment(rng, peer, stack) for _ in range(rng.randrange(4))])
        action = rng.randrange(12)
        if action == 0:
            stack.sendv(peer.handle, bytes(rng.randrange(1, 9000)))
        elif action == 1:
            stack.close(peer.handle, write_only=rng.random() < 0.5)
        elif action < 5:
            stack.sleep(ms=rng.choice([1, 45, 300]))
        else:
            stack.poll()
        over = False
        while stack.events:
            event = stack.events.popleft()
            if event.type == "RECV" and event.bytes:
                held.append(event)
            over |= event.type == "DEAD" and event.handle == peer.handle
        rng.shuffle(held)
        while len(held) > 5:
            assert stack.done(held.pop()) == 0
        stack.sent.clear()
        if over:
            sport += 1
            stack.sleep(ms=600)
            stack.events.clear()
            stack.sent.clear()
            peer = Peer(stack, sport=sport, sack_ok=seed % 2 == 0, ts=seed % 3 == 0)
            peer.connect()
    stack.call("ABORT", handle=peer.handle)
    for event in held:
        assert stack.done(event) == 0
    stack.sleep(ms=700)
    assert stack.is_idle()
