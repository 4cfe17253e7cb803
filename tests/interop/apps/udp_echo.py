"""UDP echo on ixnet.shard: UDP_RECV -> UDP_SENDV of a copy -> UDP_SENT. Arguments: PORT [IP].

A datagram that finds the arena empty is given up, as UDP may.
"""

from __future__ import annotations

import sys

from ixnet.shard import EV_UDP_RECV, EV_UDP_SENT, Shard


def main() -> None:
    shard = Shard()
    shard.udp_bind(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    calls, arena, shift = shard.calls, shard.arena, shard.frame_shift
    while (batch := shard.poll(100_000_000)) is not None:
        for i, (kind, handle, _, frame, offset, length) in enumerate(batch.columns()):
            address = (frame << shift) + offset
            if kind == EV_UDP_SENT:
                arena.give(address)
            elif kind == EV_UDP_RECV:
                if len(arena) and calls.room >= 2:
                    copy = arena.take()
                    arena.write(copy, batch.payload(i))
                    peer, port = batch.event(i).peer
                    calls.udp_send(handle, copy, length, peer, port)
                calls.udp_recv_done(handle, address)


main()
