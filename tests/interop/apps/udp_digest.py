"""Answers each UDP datagram with its length and SHA-256; one in fragments comes in several events.
Argument: PORT."""

from __future__ import annotations

import hashlib
import sys

from ixnet.shard import EV_UDP_RECV, EV_UDP_SENT, Shard

shard = Shard()
shard.udp_bind(int(sys.argv[1]))
calls, arena, shift = shard.calls, shard.arena, shard.frame_shift
message = b""  # the parts of a datagram come one after the other
while (batch := shard.poll(100_000_000)) is not None:
    for i, (kind, handle, _, frame, offset, length) in enumerate(batch.columns()):
        address = (frame << shift) + offset
        if kind == EV_UDP_SENT:
            arena.give(address)
        elif kind == EV_UDP_RECV:
            event = batch.event(i)
            message += bytes(batch.payload(i))
            if length:
                calls.udp_recv_done(handle, address, length)
            if event.more:
                continue
            answer = f"{len(message)} {hashlib.sha256(message).hexdigest()}".encode()
            copy, message = arena.take(), b""
            arena.write(copy, answer)
            calls.udp_send(handle, copy, len(answer), *event.peer)
