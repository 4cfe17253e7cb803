"""One AF_XDP socket on one NIC queue, and memory for its UMEM."""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ixnet.control.errors import NotBuilt, QueueBusy, errno_text, from_errno

try:
    from ixnet._core import ffi, lib
except ImportError as error:
    raise NotBuilt(f"ixnet's C module can't be loaded: {error}", "run make build") from error

_ERR_BYTES = 512
_ZEROCOPY = 1  # IX_XSK_OPEN_ZEROCOPY
_NO_NEED_WAKEUP = 2  # IX_XSK_OPEN_NO_NEED_WAKEUP


class UmemKind(enum.Enum):
    """What pages a UMEM lies on."""

    HUGETLB = "2 MiB pages of the hugetlb pool"
    THP = "transparent huge pages"
    PAGES = "4 KiB pages"


class Umem:
    """Memory for a UMEM, shared with forked children. Given back by close(), or the process's end.

    `address` is its first byte as an integer, `nbytes` its length (a multiple of 2 MiB).
    """

    def __init__(self, address: int, nbytes: int, kind: UmemKind) -> None:
        self.address = address
        self.nbytes = nbytes
        self.kind = kind

    @classmethod
    def allocate(cls, nbytes: int, huge_pages: bool = True) -> Umem:
        """Takes at least `nbytes` bytes of zeroed memory, on huge pages where they can be had."""
        mem = ffi.new("void **")
        got = ffi.new("uint64_t *")
        kind = ffi.new("uint32_t *")
        result = lib.ix_umem_alloc(nbytes, int(huge_pages), mem, got, kind)
        if result < 0:
            raise from_errno(result, f"allocate {nbytes} bytes of UMEM")
        kinds = {1: UmemKind.HUGETLB, 2: UmemKind.THP, 3: UmemKind.PAGES}
        return cls(int(ffi.cast("uintptr_t", mem[0])), int(got[0]), kinds[kind[0]])

    def close(self) -> None:
        """Unmaps it. Every socket over it must be closed."""
        if self.nbytes:
            lib.ix_umem_free(ffi.cast("void *", self.address), self.nbytes)
            self.nbytes = 0


@dataclass(frozen=True)
class QueueConfig:
    """How one queue's socket is to be.

    queue: the NIC's queue number. umem: address of MAP_SHARED memory, page-aligned, which stays
    the caller's and must outlive the socket. umem_bytes: its length. frame_shift: 11 or 12. fill:
    chunk addresses to receive into, put on the FILL ring before the socket is bound, and the
    link's from then on. headroom: bytes kept free before a received frame besides the kernel's
    256. *_entries: ring sizes, powers of two. need_wakeup: use the rings' wake-up flags.
    busy_poll_us: SO_BUSY_POLL, 0 for none. busy_poll_budget: frames a busy poll, 0 for the
    kernel's own. retry_ms: how long to wait for a queue that is just being released. place: address
    where the rings are to lie (place_bytes()), 0 for anywhere. tx_metadata_bytes: before each frame
    sent, the driver's, where the kernel can (QueueSocket.tx_metadata_bytes); 0 for none.
    """

    queue: int
    umem: int
    umem_bytes: int
    frame_shift: int = 11
    fill: Sequence[int] = ()
    headroom: int = 0
    fill_entries: int = 2048
    completion_entries: int = 2048
    rx_entries: int = 2048
    tx_entries: int = 2048
    need_wakeup: bool = True
    busy_poll_us: int = 0
    busy_poll_budget: int = 64
    retry_ms: int = 2000
    place: int = 0
    tx_metadata_bytes: int = 0


def place_bytes(ring_entries: int) -> int:
    """What a QueueConfig.place must have, for four rings of so many entries."""
    c = ffi.new("struct ix_xsk_config *")
    c.fill_entries = c.completion_entries = c.rx_entries = c.tx_entries = ring_entries
    return int(lib.ix_xsk_place_bytes(c))


class QueueSocket:
    """An open AF_XDP socket. Its rings are run by whoever holds `link`, in this process or a
    forked child, one at a time; close() is for the process that opened it."""

    def __init__(self, socket: Any, config: QueueConfig) -> None:
        self._socket = socket
        self.config = config
        self.queue = config.queue

    @classmethod
    def open(cls, ifindex: int, config: QueueConfig, zerocopy: bool) -> QueueSocket:
        """Opens and binds, with XDP_ZEROCOPY or XDP_COPY.

        Errors: QueueBusy; else what from_errno() makes of the kernel's (EOPNOTSUPP and EINVAL
        where the driver can't do the mode).
        """
        fill = ffi.new("uint64_t[]", list(config.fill))
        c = ffi.new("struct ix_xsk_config *")
        c.ifindex, c.queue = ifindex, config.queue
        c.umem, c.umem_bytes = ffi.cast("void *", config.umem), config.umem_bytes
        c.frame_shift, c.headroom = config.frame_shift, config.headroom
        c.fill_entries, c.completion_entries = config.fill_entries, config.completion_entries
        c.rx_entries, c.tx_entries = config.rx_entries, config.tx_entries
        c.flags = (_ZEROCOPY if zerocopy else 0) | (0 if config.need_wakeup else _NO_NEED_WAKEUP)
        c.busy_poll_us, c.busy_poll_budget = config.busy_poll_us, config.busy_poll_budget
        c.retry_ms = config.retry_ms
        c.place = ffi.cast("void *", config.place)
        c.tx_metadata_bytes = config.tx_metadata_bytes
        c.initial_fill, c.n_initial_fill = fill, len(config.fill)
        out = ffi.new("struct ix_xsk_socket **")
        err = ffi.new("char[]", _ERR_BYTES)
        result = lib.ix_xsk_open(c, out, err, _ERR_BYTES)
        if result == -errno.EBUSY:
            raise QueueBusy(
                f"queue {config.queue} of interface {ifindex} has an AF_XDP socket already",
                "stop the program that has it, or use other queues",
                errno.EBUSY,
            )
        if result < 0:
            raise from_errno(result, ffi.string(err).decode(errors="replace"))
        return cls(out[0], config)

    def close(self) -> None:
        """Closes the socket; every frame of the UMEM is the caller's again. Safe to repeat."""
        if self._socket is not None:
            lib.ix_xsk_close(self._socket)
            self._socket = None

    def fileno(self) -> int:
        """The descriptor: to poll() on, and for the XSKMAP."""
        return int(lib.ix_xsk_fd(self._socket))

    @property
    def raw(self) -> Any:
        """`struct ix_xsk_socket *`, valid until close()."""
        return self._socket

    @property
    def link(self) -> Any:
        """`struct ix_link *` for the shard, valid until close()."""
        return lib.ix_xsk_link(self._socket)

    @property
    def tx_metadata_bytes(self) -> int:
        """Before each frame sent, the driver's; 0: none, as asked or because the kernel can't."""
        return int(lib.ix_xsk_tx_metadata_bytes(self._socket))

    @property
    def zerocopy(self) -> bool:
        """What the kernel says of this socket."""
        return int(lib.ix_xsk_is_zerocopy(self._socket)) > 0

    @property
    def busy_poll_problem(self) -> str | None:
        """Why busy polling, though asked for, is off; None if it is on or wasn't asked for."""
        status = int(lib.ix_xsk_busy_poll_status(self._socket))
        return None if status in (0, -errno.ENODATA) else errno_text(status)

    @property
    def tx_budget(self) -> int:
        """Frames that one copy-mode system call sends at most."""
        return int(lib.ix_xsk_tx_budget(self._socket))

    def kernel_stats(self) -> dict[str, int]:
        """The kernel's counters (XDP_STATISTICS), frames. InterfaceGone after its removal."""
        out = ffi.new("struct ix_xsk_kernel_stats *")
        result = lib.ix_xsk_kernel_stats(self._socket, out)
        if result < 0:
            raise from_errno(result, f"read statistics of queue {self.queue}")
        return {name: int(getattr(out, name)) for name in _KERNEL_STATS}

    def stats(self) -> dict[str, int]:
        """The link's own counters; a forked child's are seen too."""
        n = lib.ix_xsk_stats(self._socket, ffi.NULL, 0)
        values = ffi.new("uint64_t[]", n)
        lib.ix_xsk_stats(self._socket, values, n)
        return {ffi.string(lib.ix_xsk_stat_name(i)).decode(): int(values[i]) for i in range(n)}


_KERNEL_STATS = (
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty_descs",
    "tx_ring_empty_descs",
)
