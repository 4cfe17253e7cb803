"""A server whose clients say, in the first line of each connection, what it shall do.

    ixnet run -i IF commands.py -- PORT DIRECTORY [ADDRESS]

    echo                sends back what comes; at the end of the stream closes
    lazy                the same with Nagle's algorithm on
    sink                reads to the end, answers "BYTES SHA256\n", closes
    source N SEED       sends N bytes of random.Random(SEED), ends its half; closes when the peer
                        has ended its own, before or after
    both N SEED         source and sink at once; the sink's answer follows the bytes
    first N SEED        sends, ends its half, reads to the end and reports "BYTES SHA256"
    hold NAME           reads nothing until DIRECTORY/NAME exists, then as sink
    abort N             resets when N bytes have come
    keep MS             keepalive after MS without a sign; then as echo
    patience MS         user timeout; then as echo
    proxy IP PORT       connects there, and passes both streams and their ends on
    shard               answers its shard's number

A connection that fails says so: "COMMAND ERRNO" among the reports. Reports are lines of
DIRECTORY/reports, which all workers append to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from ixnet.event import (
    BEV_EVENT_CONNECTED,
    BEV_EVENT_EOF,
    BEV_EVENT_ERROR,
    EV_READ,
    BufferEvent,
    Event,
    EventBase,
    Listener,
)
from ixnet.runtime import current_app

PORT, DIRECTORY = int(sys.argv[1]), Path(sys.argv[2])
ADDRESS = sys.argv[3] if len(sys.argv) > 3 else ""
CHUNK_MAX = 60_000
LOOK_S = 0.02

base = EventBase()


def report(text: str) -> None:
    fd = os.open(DIRECTORY / "reports", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


class Session:
    """One connection, before and after its command."""

    def __init__(self, bev: BufferEvent) -> None:
        self.bev = bev
        self.words: list[str] = ["none"]
        self.digest = hashlib.sha256()
        self.count = 0
        self.left = memoryview(b"")  # still to be sent
        self.ended = False  # the peer's stream is at its end
        self.on_data: Callable[[], None] = self.command
        self.on_end: Callable[[], None] = self.close
        self.on_drained: Callable[[], None] = lambda: None
        bev.setcb(lambda _: self.on_data(), lambda _: self.on_drained(), self.on_event)
        bev.enable(EV_READ)

    # ---- events ----

    def command(self) -> None:
        data = self.bev.read()
        line, newline, rest = data.partition(b"\n")
        if not newline:
            raise ValueError(f"the first line came in parts: {data[:80]!r}")
        if rest:
            self.bev.input.prepend(rest)
        self.words = line.decode().split()
        self.on_data = self.echo
        getattr(self, "do_" + self.words[0])(*self.words[1:])
        if self.bev.input:
            self.on_data()

    def on_event(self, _: BufferEvent, events: int) -> None:
        if events & BEV_EVENT_ERROR:
            report(f"{self.words[0]} {errno.errorcode.get(self.bev.error, self.bev.error)}")
            self.bev.close()
        elif events & BEV_EVENT_EOF:
            self.on_end()

    def close(self) -> None:
        self.bev.close()

    # ---- what to do with data ----

    def echo(self) -> None:
        self.bev.output.add_buffer(self.bev.input)

    def swallow(self) -> None:
        data = self.bev.read()
        self.digest.update(data)
        self.count += len(data)

    def summary(self) -> str:
        return f"{self.count} {self.digest.hexdigest()}"

    def answer(self) -> None:
        """At the end of the peer's stream: the sink's answer, behind what is still to be sent."""
        self.ended = True
        if not self.left:
            self.bev.write(f"{self.summary()}\n".encode())
            self.bev.close()

    def feed(self) -> None:
        """Sends in pieces of random size, a few at a time."""
        for _ in range(4):
            size = self.sizes.randint(1, CHUNK_MAX)
            self.bev.write(self.left[:size])
            self.left = self.left[size:]
            if not self.left:
                break

    def start_source(self, n: str, seed: str) -> None:
        self.left = memoryview(random.Random(int(seed)).randbytes(int(n)))
        self.sizes = random.Random(int(seed) + 1)

    # ---- commands ----

    def do_echo(self) -> None:
        pass

    def do_lazy(self) -> None:
        self.bev.set_nodelay(False)

    def do_sink(self) -> None:
        self.on_data, self.on_end = self.swallow, self.answer

    def do_source(self, n: str, seed: str) -> None:
        self.start_source(n, seed)
        self.on_data, self.on_end = self.swallow, self.end_of_sink
        self.on_drained = self.feed_to_end
        self.feed_to_end()

    def feed_to_end(self) -> None:
        if self.left:
            self.feed()
            if not self.left:
                self.bev.close() if self.ended else self.bev.shutdown()

    def end_of_sink(self) -> None:
        self.ended = True
        if not self.left:
            self.bev.close()

    def do_both(self, n: str, seed: str) -> None:
        self.start_source(n, seed)
        self.on_data, self.on_end = self.swallow, self.answer
        self.on_drained = self.feed_and_answer
        self.feed()

    def feed_and_answer(self) -> None:
        if self.left:
            self.feed()
            if self.ended:
                self.answer()

    def do_first(self, n: str, seed: str) -> None:
        self.do_source(n, seed)

        def end() -> None:
            report(f"first {self.summary()}")
            self.close()

        self.on_end = end

    def do_hold(self, name: str) -> None:
        self.bev.disable(EV_READ)
        self.do_sink()

        def look(timer: Event) -> None:
            if self.bev.closed:
                timer.delete()
            elif (DIRECTORY / name).exists():
                timer.delete()
                self.bev.enable(EV_READ)
                if self.bev.input:
                    self.swallow()

        base.timer(LOOK_S, look, persist=True)

    def do_abort(self, n: str) -> None:
        def count() -> None:
            self.swallow()
            if self.count >= int(n):
                self.bev.abort()

        self.on_data = count
        if int(n) == 0:
            self.bev.abort()

    def do_keep(self, ms: str) -> None:
        self.bev.set_keepalive(int(ms) / 1000)

    def do_patience(self, ms: str) -> None:
        self.bev.set_user_timeout(int(ms) / 1000)

    def do_shard(self) -> None:
        self.bev.write(f"{current_app().shard_id}\n".encode())

    def do_proxy(self, ip: str, port: str) -> None:
        Proxy(self, (ip, int(port)))


class Proxy:
    """Passes on what comes from one connection to the other, ends included."""

    def __init__(self, session: Session, address: tuple[str, int]) -> None:
        self.near, self.far = session.bev, BufferEvent(base)
        self.ended = 0
        self.near.setcb(self.pass_on, None, self.on_event)
        self.far.setcb(self.pass_on, None, self.on_event)
        session.on_data = lambda: None
        self.far.enable(EV_READ)
        try:
            self.far.connect(address)
        except OSError as error:
            self.fail(error.errno or 0)
            return
        self.pass_on(self.near)

    def pass_on(self, bev: BufferEvent) -> None:
        (self.far if bev is self.near else self.near).output.add_buffer(bev.input)

    def on_event(self, bev: BufferEvent, events: int) -> None:
        if events & BEV_EVENT_CONNECTED:
            return
        if events & BEV_EVENT_ERROR:
            if bev is self.far:
                self.fail(bev.error)
            else:
                self.far.abort()
                self.near.close()
        elif events & BEV_EVENT_EOF:
            self.ended += 1
            if self.ended == 2:
                self.near.close()
                self.far.close()
            else:
                (self.far if bev is self.near else self.near).shutdown()

    def fail(self, number: int) -> None:
        name = errno.errorcode.get(number, str(number))
        report(f"proxy {name}")
        self.far.close()
        self.near.write(f"failed {name}\n".encode())
        self.near.close()


listener = Listener(base, (ADDRESS, PORT), lambda _, bev: Session(bev))
base.dispatch()
