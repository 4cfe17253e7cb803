"""A wire that loses, doubles, corrupts and delays frames: a bridge between two interfaces.

    impair.py NETNS_A IF_A NETNS_B IF_B [--loss P] [--duplicate P] [--corrupt P]
              [--reorder P] [--delay-ms T] [--jitter-ms T] [--rate-mbit R] [--seed N]

Probabilities are a frame's, each direction. A reordered frame takes up to ten times as long as the
others. Jitter is up to so much more delay, and does not reorder; a rate has a queue of 250 frames
before it, and what does not fit is dropped. One bit of a corrupted frame is turned, behind its
Ethernet header. Prints "ready" when it bridges; at SIGTERM what it did, as JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import select
import signal
import socket
import time
from collections import Counter, deque

from ixnet.control.namespaces import in_netns

ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
ETHERNET_BYTES, QUEUE_FRAMES = 14, 250


class Port:
    """One interface; what comes in there goes out at the other one."""

    def __init__(self, netns: str, ifname: str) -> None:
        with in_netns(netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.sock.bind((ifname, ETH_P_ALL))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self.sock.setblocking(False)
        self.other: Port = self
        self.free = 0.0  # when what was sent before has left
        self.leaving: deque[float] = deque()  # when each frame that waits for the rate does
        self.last_due = 0.0


class Wire:
    """Decides what becomes of each frame, from one seed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.numbers = random.Random(options.seed)
        self.count: Counter[str] = Counter()
        self.under_way: list[tuple[float, int, Port, bytes]] = []

    def take(self, to: Port, frame: bytes, now: float) -> None:
        chance, o = self.numbers.random, self.options
        self.count["frames"] += 1
        if chance() < o.loss:
            self.count["lost"] += 1
            return
        if chance() < o.corrupt and len(frame) > ETHERNET_BYTES:
            self.count["corrupted"] += 1
            at = self.numbers.randrange(ETHERNET_BYTES, len(frame))
            frame = (
                frame[:at] + bytes([frame[at] ^ 1 << self.numbers.randrange(8)]) + frame[at + 1 :]
            )
        left = self.depart(to, len(frame), now)
        if left is None:
            self.count["overflow"] += 1
            return
        copies = 1
        if chance() < o.duplicate:
            self.count["doubled"] += 1
            copies = 2
        for _ in range(copies):
            due = left + (o.delay_ms + o.jitter_ms * chance()) / 1000
            due = to.last_due = max(due, to.last_due)
            if chance() < o.reorder:
                self.count["reordered"] += 1
                due += o.delay_ms / 1000 * self.numbers.uniform(1, 9)
            # The number keeps frames of the same moment in order.
            heapq.heappush(self.under_way, (due, self.count["frames"], to, frame))

    def depart(self, to: Port, size: int, now: float) -> float | None:
        """When the rate has let the frame go; None: the queue is full."""
        if not self.options.rate_mbit:
            return now
        while to.leaving and to.leaving[0] <= now:
            to.leaving.popleft()
        if len(to.leaving) >= QUEUE_FRAMES:
            return None
        to.free = max(now, to.free) + size * 8 / (self.options.rate_mbit * 1e6)
        to.leaving.append(to.free)
        return to.free

    def deliver(self, now: float) -> None:
        while self.under_way and self.under_way[0][0] <= now:
            _, _, to, frame = heapq.heappop(self.under_way)
            try:
                to.sock.send(frame)
            except BlockingIOError:
                self.count["no room"] += 1

    def wait_s(self, now: float) -> float:
        return max(0.0, self.under_way[0][0] - now) if self.under_way else 1.0


def receive(port: Port, wire: Wire) -> None:
    for _ in range(64):
        try:
            frame, origin = port.sock.recvfrom(65536)
        except BlockingIOError:
            return
        if origin[2] != socket.PACKET_OUTGOING:
            wire.take(port.other, frame, time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("netns_a", "if_a", "netns_b", "if_b"):
        parser.add_argument(name)
    for name in ("--loss", "--duplicate", "--corrupt", "--reorder"):
        parser.add_argument(name, type=float, default=0.0)
    parser.add_argument("--delay-ms", type=float, default=0.5)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--rate-mbit", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    near, far = Port(options.netns_a, options.if_a), Port(options.netns_b, options.if_b)
    near.other, far.other = far, near
    wire, halted = Wire(options), []
    signal.signal(signal.SIGTERM, lambda *_: halted.append(True))
    print("ready", flush=True)
    poll = select.poll()
    ports = {port.sock.fileno(): port for port in (near, far)}
    for fd in ports:
        poll.register(fd, select.POLLIN)
    while not halted:
        for fd, _ in poll.poll(wire.wait_s(time.monotonic()) * 1000):
            receive(ports[fd], wire)
        wire.deliver(time.monotonic())
    print(json.dumps(wire.count), flush=True)


main()
