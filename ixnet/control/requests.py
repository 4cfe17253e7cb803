"""What workers ask of the control plane (native/request.h), and which claims they hold.

A claim is the instance's, whichever shard asked first: it is made with the first request and given
up with the last, and when a worker dies its shards' share is given up.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ixnet._core import ffi, lib
from ixnet.control.errors import IxError
from ixnet.control.xdp import IpAddress, Proto

REQUEST_BYTES = int(ffi.sizeof("struct ix_request"))
_TEXT_BYTES = int(ffi.sizeof("struct ix_reply")) - 8


class BadRequest(Exception):
    """A worker sent something that is no request; it gets no answer."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """What is claimed. ip None: every local address of `family`, which is 4, 6 or 0 for both."""

    proto: Proto
    ip: IpAddress | None
    port: int
    family: int = 0

    def __str__(self) -> str:
        text = {0: "*", 4: "0.0.0.0", 6: "[::]"}[self.family] if self.ip is None else str(self.ip)
        if self.ip is not None and self.ip.version == 6:
            text = f"[{text}]"
        return f"{self.proto.name.lower()} {text}:{self.port}"


@dataclass(frozen=True)
class Request:
    """A request that passed the checks. shard: whose, by its number in the worker. endpoint: of
    CLAIM and UNCLAIM."""

    op: int
    shard: int
    sequence: int
    endpoint: Endpoint | None


def decode(message: bytes, shards: int = 1) -> Request:
    """shards: how many the worker has. Errors: BadRequest."""
    if len(message) != REQUEST_BYTES:
        raise BadRequest(f"a request of {len(message)} bytes")
    raw = ffi.from_buffer("struct ix_request *", message)
    if raw.magic != lib.IX_REQUEST_MAGIC:
        raise BadRequest("a request without its magic")
    if raw.shard >= shards:
        raise BadRequest(f"a request of shard {raw.shard}")
    endpoint = None
    if raw.op in (lib.IX_REQUEST_CLAIM, lib.IX_REQUEST_UNCLAIM):
        packed = bytes(ffi.buffer(raw.ip, 16))
        bad_ip = any(packed) if raw.family == 0 else raw.family == 4 and any(packed[4:])
        if raw.family not in (0, 4, 6) or bad_ip or raw.proto not in tuple(Proto) or not raw.port:
            raise BadRequest(f"family {raw.family}, protocol {raw.proto}, port {raw.port}")
        ip: IpAddress | None = None
        if any(packed):
            ip = IPv6Address(packed) if raw.family == 6 else IPv4Address(packed[:4])
        endpoint = Endpoint(Proto(raw.proto), ip, int(raw.port), int(raw.family))
    elif raw.op not in (lib.IX_REQUEST_READY, lib.IX_REQUEST_NUDGE, lib.IX_REQUEST_LEAVE):
        raise BadRequest(f"request number {raw.op}")
    return Request(int(raw.op), int(raw.shard), int(raw.sequence), endpoint)


def encode_reply(sequence: int, error: IxError | None = None) -> bytes:
    """A struct ix_reply: success, or the error's errno and text."""
    reply = ffi.new("struct ix_reply *")
    reply.sequence = sequence
    if error is not None:
        reply.error = -(error.errnum or errno.EIO)
        reply.text = str(error).encode()[: _TEXT_BYTES - 1]
    return bytes(ffi.buffer(reply))


class ClaimTable:
    """Counts who holds which claim, and makes and ends claims as the counts begin and end.

    make, end: called with an endpoint; `make` may raise IxError, and then nothing is held.
    """

    def __init__(self, make: Callable[[Endpoint], None], end: Callable[[Endpoint], None]) -> None:
        self._make = make
        self._end = end
        self._held: dict[int, Counter[Endpoint]] = {}

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that is claimed."""
        every = {endpoint for held in self._held.values() for endpoint in held}
        return tuple(sorted(every, key=lambda e: (e.proto, str(e.ip), e.port, e.family)))

    def claim(self, shard: int, endpoint: Endpoint) -> None:
        """One claim more for a shard. Errors: IxError of `make`, if it is the first."""
        if endpoint not in self.endpoints():
            self._make(endpoint)
        self._held.setdefault(shard, Counter())[endpoint] += 1

    def unclaim(self, shard: int, endpoint: Endpoint) -> None:
        """One claim less. Errors: IxError if the shard holds none."""
        held = self._held.get(shard, Counter())
        if endpoint not in held:
            raise IxError(f"{endpoint} is not claimed by this worker", "", errno.ENOENT)
        held[endpoint] -= 1
        if not held[endpoint]:
            del held[endpoint]
            if endpoint not in self.endpoints():
                self._end(endpoint)

    def drop(self, shard: int) -> None:
        """Gives up everything that a shard holds."""
        for endpoint in self._held.pop(shard, Counter()):
            if endpoint not in self.endpoints():
                self._end(endpoint)


def exit_text(status: int) -> str:
    """How a process ended, from its wait status: 'exit status 1', 'killed by SIGKILL'."""
    import signal

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"
