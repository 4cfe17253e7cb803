"""Sending without skbs, on a veth in native copy mode: whether it can be had, and while it can.

xdp/express_bpf.h has how it works. A veth takes XDP frames only while its peer has a native XDP
program or GRO on, and drops them at other times: so the peer's doings are followed, and in between
short bursts, retransmissions among them, go as they always can.
"""

from __future__ import annotations

import errno
from contextlib import suppress

from ixnet._core import ffi, lib
from ixnet.control import ethtool
from ixnet.control.errors import IxError, from_errno
from ixnet.control.nic import Mode, Nic
from ixnet.control.shards import Shard
from ixnet.control.xdp import EXPRESS_PATH, Steering

# A call costs as much as some five frames sent one by one, and nothing of a burst arrives before
# all of it is made; while bursts are shorter than this there is time to send frame by frame.
FROM_FRAMES = 16
# xdp/steer.h: IX_STEER_EXPRESS_BYTES, less an Ethernet header.
MTU_MAX = 2047 - 14

PEER_TEXT = "the peer has GRO off"
# A kernel's sockets at the peer gain nothing by it.
PEER_CURE = "if a dataplane is at the peer, too: ethtool -K PEER gro on, there"


def why_not(nic: Nic, mode: Mode | None) -> str:
    """Why it can't be had there in this mode (None: the one chosen), whatever the peer; or ""."""
    if nic.kind != "veth":
        return "a NIC whose ring is full would drop frames without telling"
    if len(nic.queues) != 1:
        return "a veth would choose the peer's queue by core, not by connection"
    if nic.mtu > MTU_MAX:
        return f"not with an MTU above {MTU_MAX} bytes"
    if mode not in (None, Mode.NATIVE_COPY):
        return f"not in {mode.value}"
    return ""


def text(nic: Nic, mode: Mode | None, express: Express | None) -> str:
    """How a veth's frames leave, and what would make it faster; "" for other interfaces. mode: that
    it runs in, or may (None)."""
    if nic.kind != "veth":
        return ""
    if express is not None and express.on:
        return "bursts without skbs"
    why = why_not(nic, mode)
    if len(nic.queues) == 1 and not nic.takes_xdp_frames:
        again = "" if mode is Mode.NATIVE_COPY else "; then start again"
        why = f"{PEER_TEXT} (cure: {PEER_CURE}{again})"
    return f"frame by frame: {why or 'not allowed by this kernel or these rights'}"


def open_express() -> Steering | None:
    """The steering program that also sends, or None if this kernel or these rights don't allow it
    (CAP_PERFMON, to read a process's memory)."""
    with suppress(IxError):
        return Steering.open(EXPRESS_PATH)
    return None


class Express:
    """Switches an interface's only shard as the peer allows. For a selector: readable when there is
    news."""

    def __init__(self, nic: Nic, steering: Steering, shard: Shard) -> None:
        """steering: attached. Errors: IxError where it can't be had: steering is not of
        open_express(), say."""
        self._nic = nic
        self._shard = shard
        out = ffi.new("struct ix_express **")
        result = lib.ix_express_open(steering.raw, nic.ifindex, out)
        if result < 0:
            raise from_errno(result, "prepare sending by the steering program")
        self._express = out[0]
        try:
            self._news = ethtool.FeatureNews()
        except Exception as error:
            lib.ix_express_close(self._express)
            raise IxError(f"no news of XDP features: {error}", "", errno.EOPNOTSUPP) from error
        shard.extra_fds.append(int(lib.ix_express_fd(self._express)))
        self.follow()

    def fileno(self) -> int:
        """The news' descriptor."""
        return self._news.fileno()

    def on_news(self) -> None:
        """There is news."""
        self._news.drain()
        self.follow()

    def follow(self) -> None:
        """Looks what the driver can do now; also after the shard got another socket, which nobody
        runs yet."""
        self.on = "ndo-xmit" in (ethtool.xdp_features(self._nic.ifindex) or ())
        if self._shard.socket is not None:
            frames = FROM_FRAMES if self.on else 0
            lib.ix_express_use(self._express, self._shard.socket.raw, frames)

    def close(self) -> None:
        """After the worker's end."""
        self._news.close()
        lib.ix_express_close(self._express)
