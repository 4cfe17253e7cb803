"""Uses every call of ixnet.shard against a peer on the kernel's stack; prints JSON of what
happened.

Arguments: the peer's IP, its TCP echo port, its UDP echo port, the instance's own UDP port.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ixnet.control.errors import IxError, PortTaken
from ixnet.shard import (
    EV_CONNECTED,
    EV_DEAD,
    EV_RECV,
    EV_SENT,
    EV_TIMER,
    EV_UDP_RECV,
    EV_UDP_SENT,
    OPT_KEEPALIVE_NS,
    CallsFull,
    Event,
    EventBatch,
    Shard,
)

PATIENCE_NS = 5_000_000_000


def wait(shard: Shard, wanted: Callable[[EventBatch, int], bool]) -> tuple[EventBatch, int]:
    """Runs cycles until an event of the last batch is wanted; gives the batch and its index."""
    end = time.monotonic_ns() + PATIENCE_NS
    while time.monotonic_ns() < end:
        batch = shard.poll(10_000_000)
        assert batch is not None, "stopped"
        for index in range(len(batch)):
            if wanted(batch, index):
                return batch, index
    raise TimeoutError("the event did not come")


def of_type(kind: int, cookie: int | None = None) -> Callable[[EventBatch, int], bool]:
    return lambda batch, i: batch.types[i] == kind and cookie in (None, batch.cookies[i])


def tcp(shard: Shard, ip: str, port: int) -> dict[str, Any]:
    """Connects, sends from the arena, reads the echo, closes."""
    found: dict[str, Any] = {}
    calls = shard.calls
    call = shard.connect(ip, port, cookie=41)
    batch, index = wait(shard, of_type(EV_CONNECTED, 41))
    event = batch.event(index)
    found["connected"] = [event.status, event.handle != 0, event.cookie]
    handle = event.handle
    del call
    address = shard.arena.take()
    free = len(shard.arena)
    shard.arena.write(address, b"from the dataplane")
    option = calls.option(handle, OPT_KEEPALIVE_NS, 1_000_000_000)
    sent = calls.send(handle, address, 18)
    got = b""
    acknowledged = 0
    results: list[int] = []
    while len(got) < 18 or acknowledged < 18:
        batch = shard.poll(10_000_000)
        assert batch is not None
        if not results:
            results = [calls.results[option], calls.results[sent]]
        for i, kind in enumerate(batch.types):
            if kind == EV_RECV:
                with batch.borrow(i) as view:
                    assert view.readonly
                    got += bytes(view)
                try:
                    view[0]
                except ValueError:
                    found["released"] = True
            elif kind == EV_SENT:
                acknowledged += batch.lengths[i]
    shard.arena.give(address)
    found["results"] = results
    found["echo"] = got.decode()
    found["acknowledged"] = acknowledged
    found["arena"] = len(shard.arena) - free
    calls.close_write(handle)
    batch, index = wait(shard, of_type(EV_DEAD))
    found["dead"] = batch.event(index).status
    stale = calls.send(handle, address, 1)
    shard.poll()
    found["stale"] = errno.errorcode.get(-calls.results[stale], calls.results[stale])
    return found


def refused(shard: Shard, ip: str) -> str:
    """A connection to a port where nobody listens."""
    shard.connect(ip, 1, cookie=42)
    batch, index = wait(shard, of_type(EV_CONNECTED, 42))
    return errno.errorcode[-batch.statuses[index]]


def udp(shard: Shard, ip: str, port: int, own_port: int) -> dict[str, Any]:
    """A datagram to the peer's echo and back."""
    found: dict[str, Any] = {}
    handle = shard.udp_bind(own_port, cookie=77)
    address = shard.arena.take()
    shard.arena.write(address, b"datagram")
    shard.calls.udp_send(handle, address, 8, ip, port)
    events: list[Event] = []
    while {e.type for e in events} < {EV_UDP_SENT, EV_UDP_RECV}:
        batch, index = wait(shard, lambda b, i: b.types[i] in (EV_UDP_SENT, EV_UDP_RECV))
        event = batch.event(index)
        events.append(event)
        if event.type == EV_UDP_RECV:
            found["payload"] = bytes(batch.payload(index)).decode()
            found["peer"] = list(event.peer)
            found["cookie"] = event.cookie
            shard.calls.udp_recv_done(handle, event.address, event.bytes)
    shard.arena.give(address)
    shard.poll()
    shard.udp_unbind(handle, own_port)
    return found


def timers(shard: Shard) -> dict[str, Any]:
    """Two timers, one of them cancelled."""
    calls = shard.calls
    early = calls.timer(20_000_000, cookie=1)
    late = calls.timer(10_000_000, cookie=2)
    begin = time.monotonic_ns()
    shard.poll()
    handles = [calls.handles[early], calls.handles[late]]
    calls.timer_cancel(handles[1])
    batch, index = wait(shard, of_type(EV_TIMER))
    return {
        "cookie": batch.cookies[index],
        "same": batch.handles[index] == handles[0],
        "in_time": 20_000_000 <= time.monotonic_ns() - begin < 200_000_000,
    }


def errors(shard: Shard) -> dict[str, Any]:
    """What can't be, and how it is said."""
    found: dict[str, Any] = {}
    shard.listen(4000)
    try:
        shard.listen(4000)
    except PortTaken as error:
        found["twice"] = [error.message, error.cure]
    shard.unlisten(4000)
    for name, call in (
        ("ipv6", lambda: shard.listen(4001, "2001:db8::1")),
        ("text", lambda: shard.listen(4001, "localhost")),
        ("zero", lambda: shard.listen(0)),
        ("foreign", lambda: shard.listen(4001, "192.0.2.1")),
        ("elsewhere", lambda: shard.listen(4001, "127.0.0.1")),
        ("beyond", lambda: shard.listen(70_000)),
        ("unbound", lambda: shard.unlisten(4002)),
    ):
        try:
            call()
        except IxError as error:
            found[name] = [error.errnum, error.message, error.cure]
    calls = shard.calls
    try:
        while True:
            calls.recv_done(0, 0, 0)
    except CallsFull:
        found["calls"] = [calls.count, calls.room]
    shard.poll()
    found["stale"] = all(result < 0 for result in calls.results)
    return found


def main() -> None:
    peer, tcp_port, udp_port, own_port = sys.argv[1], *map(int, sys.argv[2:5])
    shard = Shard()
    found = {
        "shard": [shard.shard_id, shard.shard_count],
        "tcp": tcp(shard, peer, tcp_port),
        "refused": refused(shard, peer),
        "udp": udp(shard, peer, udp_port, own_port),
        "timers": timers(shard),
        "errors": errors(shard),
    }
    stats = shard.stats()
    found["stats"] = {
        name: stats[name] for name in ("tcp_active_opens", "udp_out", "flows", "frames_app")
    }
    print(json.dumps(found))


main()
