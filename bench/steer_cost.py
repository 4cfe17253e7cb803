"""What the steering program costs each frame of an interface, claimed or not.

    .venv/bin/python bench/steer_cost.py [--rounds N] [--json]

Nanoseconds of the program over frames of each kind by BPF_PROG_TEST_RUN, the medians of alternating
rounds; what the kernel does around each run is measured by a frame of which the program reads no
more than the type, and taken off. Caches are warm, as in a burst. Needs root.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from ixnet.control.errors import IxError
from ixnet.control.xdp import Proto, Steering

AF_XDP = 44  # linux/socket.h
HOST, HOST6 = ip_address("10.0.0.1"), ip_address("fd00::1")
EVERYWHERE, EXACT, RANGE, UNCLAIMED = 7000, 7001, 61000, 22
RUNS = 200_000
FLOOR = "neither IP nor ARP"


def frames() -> dict[str, bytes]:
    """By what they are."""

    def tcp(port: int) -> Packet:
        return TCP(sport=40000, dport=port) / Raw(bytes(64))

    ether = Ether(src="02:00:00:00:00:99", dst="02:00:00:00:00:01")
    ip4, ip6 = ether / IP(dst=str(HOST)), ether / IPv6(dst=str(HOST6))
    made = {
        FLOOR: Ether(dst=ether.dst, type=0x88CC) / Raw(bytes(64)),
        "claimed on every address, IPv4": ip4 / tcp(EVERYWHERE),
        "claimed on every address, IPv6": ip6 / tcp(EVERYWHERE),
        "claimed on this address": ip4 / tcp(EXACT),
        "in a range of outgoing ports": ip4 / tcp(RANGE),
        "not claimed": ip4 / tcp(UNCLAIMED),
    }
    return {name: bytes(frame) for name, frame in made.items()}


@contextmanager
def steering() -> Iterator[Steering]:
    """With claims of all kinds, and a socket on the queue where test frames arrive."""
    with Steering.open() as s, socket.socket(AF_XDP, socket.SOCK_RAW) as xsk:
        s.set_socket(0, xsk.fileno())
        s.sync_local([HOST, HOST6])
        for family in (4, 6):
            s.claim(Proto.TCP, None, EVERYWHERE, family)
        s.claim(Proto.TCP, HOST, EXACT)
        s.add_range(Proto.TCP, None, RANGE, RANGE + 999)
        yield s


def measure(rounds: int) -> dict[str, int]:
    """Nanoseconds a frame, by kind; the floor with what the kernel does, the others without."""
    with steering() as s:
        runs: dict[str, list[int]] = {name: [] for name in frames()}
        for _ in range(rounds):
            for name, frame in frames().items():
                runs[name].append(s.run_ns(frame, RUNS))
    floor = round(statistics.median(runs.pop(FLOOR)))
    found = {name: round(statistics.median(ns)) - floor for name, ns in runs.items()}
    return {FLOOR: floor, **found}


def main() -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description="what the steering program costs a frame")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        found = measure(args.rounds)
    except IxError as e:
        print(f"steer_cost: {e}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found))
        return 0
    floor = found.pop(FLOOR)
    print(f"ns a frame, beside the {floor} ns that the kernel takes around each run:")
    for name, ns in found.items():
        print(f"  {name:32} {ns:4}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
