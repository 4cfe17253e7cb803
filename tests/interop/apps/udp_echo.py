"""UDP echo on ixnet.shard: UDP_RECV -> UDP_SENDV of a copy -> UDP_SENT. Arguments: PORT [IP].

What can't be sent now (EAGAIN: the neighbour is being resolved, or there is no room) is tried
again.
A datagram that finds the arena empty is given up, as UDP may.
"""

from __future__ import annotations

import errno
import sys
from collections import deque

from ixnet.shard import EV_UDP_RECV, EV_UDP_SENT, Shard

Answer = tuple[int, int, int, str, int]  # handle, address, length, peer, port


def main() -> None:
    shard = Shard()
    shard.udp_bind(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    calls, arena, shift = shard.calls, shard.arena, shard.frame_shift
    waiting: deque[Answer] = deque()
    given_back: deque[tuple[int, int, int]] = deque()
    tried: list[tuple[int, Answer]] = []
    while (batch := shard.poll(1_000_000 if waiting else 100_000_000)) is not None:
        for index, answer in reversed(tried):
            result = calls.results[index]
            if result == -errno.EAGAIN:
                waiting.appendleft(answer)
            elif result < 0:
                arena.give(answer[1])
        tried.clear()
        for i, (kind, handle, _, frame, offset, length) in enumerate(batch.columns()):
            address = (frame << shift) + offset
            if kind == EV_UDP_SENT:
                arena.give(address)
            elif kind == EV_UDP_RECV:
                if len(arena):
                    copy = arena.take()
                    arena.write(copy, batch.payload(i))
                    waiting.append((handle, copy, length, *batch.event(i).peer))
                if length:
                    given_back.append((handle, address, length))
        while given_back and calls.room:
            calls.udp_recv_done(*given_back.popleft())
        while waiting and calls.room:
            answer = waiting.popleft()
            tried.append((calls.udp_send(*answer), answer))


main()
