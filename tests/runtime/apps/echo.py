"""Echo on ixnet.shard: each received buffer is sent back as it is. Arguments: PORT [IP].

What RECV lends is sent with SENDV and given back when SENT covers it. What SENDV did not take
waits.
"""

from __future__ import annotations

import sys
from collections import deque

from ixnet.shard import EV_DEAD, EV_KNOCK, EV_RECV, EV_SENT, Shard


class Connection:
    """lent: buffers to give back, oldest first, [address, bytes]; unsent: those still to send."""

    def __init__(self) -> None:
        self.lent: deque[list[int]] = deque()
        self.unsent: deque[list[int]] = deque()
        self.closing = False


def main() -> None:
    shard = Shard()
    shard.listen(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    calls, shift = shard.calls, shard.frame_shift
    connections: dict[int, Connection] = {}
    sent: list[tuple[int, Connection]] = []  # (index of the call, whose)
    waiting: dict[int, Connection] = {}  # connections with something left to send

    def push(handle: int, connection: Connection) -> None:
        if connection.unsent and calls.room:
            sent.append((calls.send(handle, *connection.unsent[0]), connection))
        elif connection.closing and not connection.unsent:
            calls.close(handle)
            connection.closing = False

    def give_back(handle: int, connection: Connection, length: int) -> None:
        while length:
            address, n = connection.lent[0]
            part = min(n, length)
            calls.recv_done(handle, address, part)
            length -= part
            if part == n:
                connection.lent.popleft()
            else:
                connection.lent[0] = [address + part, n - part]

    while (batch := shard.poll(100_000_000)) is not None:
        for index, connection in sent:
            taken = calls.results[index]
            if taken <= 0 or not connection.unsent:
                continue
            address, n = connection.unsent[0]
            if taken == n:
                connection.unsent.popleft()
            else:
                connection.unsent[0] = [address + taken, n - taken]
        sent.clear()
        for kind, handle, _, frame, offset, length in batch.columns():
            if kind == EV_KNOCK:
                calls.accept(handle)
                connections[handle] = Connection()
            elif kind == EV_RECV and length:
                connection = connections[handle]
                buffer = [(frame << shift) + offset, length]
                connection.lent.append(buffer)
                connection.unsent.append(list(buffer))
                waiting[handle] = connection
            elif kind == EV_RECV:
                connections[handle].closing = True
                waiting[handle] = connections[handle]
            elif kind == EV_SENT:
                give_back(handle, connections[handle], length)
            elif kind == EV_DEAD:
                connection = connections.pop(handle)
                waiting.pop(handle, None)
                for address, n in connection.lent:
                    calls.recv_done(handle, address, n)
        for handle, connection in list(waiting.items()):
            push(handle, connection)
            if not connection.unsent and not connection.closing:
                del waiting[handle]


main()
