"""The dune placement's memory: what a worker's ring 0 works on, and what of it its ring 3 may see.

A worker's closed range (libdune_shim/dune.h) holds, from the start of its data windows on::

    struct dune_shared    counters and crash record, written by libdune
    the gate              dataplane/gate/gate_hosted.h
    of each shard:
    socket and rings      struct ix_xsk, and the AF_XDP rings moved there
    the shard             its first page, the statistics, and its end, the arrays, are memfds
    the UMEM              a memfd, on huge pages where there are any

All of it is mapped by the control process before the fork, so that pointers mean the same to it and
to ring 0. Ring 3 has mappings of its own outside: the UMEM's pool read-only, its send arena, the
arrays, the statistics read-only. Linux's own tables keep it to these: what is only read is a memfd
sealed against writing, and of the others no descriptor stays open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet import dune, dune_shared
from ixnet._core import ffi, lib
from ixnet.control.crash import Ring3, crash_report, guest_facts
from ixnet.control.errors import IxError, NotBuilt, from_errno
from ixnet.control.stats import stats_bytes
from ixnet.control.xsk import QueueSocket, UmemKind

PAGE_BYTES = 4096
HUGE_BYTES = 2 << 20
# The arena must begin where a huge page does, so that rights can differ.
FRAMES_UNIT = HUGE_BYTES >> 11
MODULE_PATH = Path(__file__).resolve().parents[1] / "ring0.bin"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; not in Python 3.11


def require_fit() -> dune.Report:
    """Raises dune.Unfit unless this machine's KVM can hold a guest; its message is the reason."""
    report = dune.probe()
    if not report.fit:
        raise dune.Unfit(
            f"--placement dune can't be had here: this machine's KVM is unfit: {report.reason}",
            report.cure or "use --placement inline",
            errno.EOPNOTSUPP,
        )
    if not MODULE_PATH.exists():
        raise NotBuilt(f"there is no {MODULE_PATH}", "run make build")
    return report


def _up(nbytes: int, unit: int) -> int:
    return (nbytes + unit - 1) // unit * unit


def _check(result: int, doing: str, cure: str = "") -> None:
    if result < 0:
        raise from_errno(result, doing, cure)


class SharedPage:
    """A page that this process writes and workers in ring 3 only read."""

    def __init__(self, name: str) -> None:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        at = ffi.new("uint64_t *")
        try:
            os.ftruncate(fd, PAGE_BYTES)
            _check(lib.ix_placed_reserve(2 * PAGE_BYTES, PAGE_BYTES, at), "reserve a page")
            self._at = int(at[0])
            _map(self._at, PAGE_BYTES, fd, lib.IX_PLACED_WRITE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
            _map(self._at + PAGE_BYTES, PAGE_BYTES, fd, 0)
        finally:
            os.close(fd)

    @property
    def words(self) -> Any:
        """`uint32_t *` to write to."""
        return ffi.cast("uint32_t *", self._at)

    @property
    def readable(self) -> Any:
        """The same words as workers have them."""
        return ffi.cast("uint32_t *", self._at + PAGE_BYTES)

    def forget_in_child(self) -> None:
        """In a worker: it can't write any more."""
        lib.ix_placed_clear(self._at, PAGE_BYTES)

    def close(self) -> None:
        """Gives both mappings back."""
        lib.ix_placed_release(self._at, 2 * PAGE_BYTES)


def _map(at: int, nbytes: int, fd: int, flags: int, offset: int = 0) -> None:
    cure = "free memory, or ask for fewer flows and frames"
    doing = f"map {nbytes >> 10} KiB for a guest"
    _check(lib.ix_placed_map(at, nbytes, fd, offset, flags), doing, cure)


class PlacedUmem:
    """The UMEM in the closed range; as control.xsk.Umem to its users."""

    def __init__(self, address: int, nbytes: int, kind: UmemKind) -> None:
        self.address = address
        self.nbytes = nbytes
        self.kind = kind

    def close(self) -> None:
        """It goes with the closed range."""


class PlacedRegion:
    """The shard's memory in the closed range; as control.workers.Region to its users."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.base = ffi.cast("uint8_t *", address)
        self.nbytes = nbytes
        self.is_huge = False

    def zero(self) -> None:
        """Zeroes all of it."""
        ffi.memmove(self.base, bytes(self.nbytes), self.nbytes)

    def close(self) -> None:
        """It goes with the closed range."""


@dataclass(frozen=True)
class ShardSize:
    """What a guest has to know of a shard. cfg: `struct ix_config *` after ix_shard_bytes(); its
    fields app_io and app_umem are filled in. xsk_bytes: for its socket's rings."""

    cfg: Any
    shard_bytes: int
    frame_shift: int
    xsk_bytes: int
    stats_path: Path

    @property
    def pool_bytes(self) -> int:
        """Of the UMEM, what is the dataplane's."""
        return int(self.cfg.pool_frames) << self.frame_shift

    @property
    def umem_bytes(self) -> int:
        """The pool and the send arena."""
        return _up(self.pool_bytes + (int(self.cfg.arena_frames) << self.frame_shift), HUGE_BYTES)


class GuestShard:
    """One shard's memory in a guest's closed range, and ring 3's mappings of it."""

    def __init__(self, size: ShardSize, at: int, huge_pages: str) -> None:
        """at: its first byte, on a huge page; `bytes_of(size)` are its own."""
        self._size = size
        self._stats_fd = -1
        self._alias: list[tuple[int, int]] = []
        self.xsk_place = at
        shard_at = at + _up(size.xsk_bytes, PAGE_BYTES)
        umem_at = _up(shard_at + size.shard_bytes, HUGE_BYTES)
        try:
            _map(at, shard_at - at, -1, lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL)
            self._map_shard(shard_at, lib.IX_PLACED_HUGE if huge_pages != "no" else 0)
            kind = self._map_umem(umem_at, huge_pages)
        except BaseException:
            self.close()
            raise
        self.umem = PlacedUmem(umem_at, size.umem_bytes, kind)
        self.memory = PlacedRegion(shard_at, size.shard_bytes)

    @staticmethod
    def bytes_of(size: ShardSize) -> int:
        """Of the closed range, from a huge page on."""
        shard_at = _up(size.xsk_bytes, PAGE_BYTES)
        return _up(shard_at + size.shard_bytes, HUGE_BYTES) + size.umem_bytes

    def _reserve_alias(self, nbytes: int, align: int) -> int:
        at = ffi.new("uint64_t *")
        _check(lib.ix_placed_reserve(nbytes, align, at), "reserve addresses for a guest")
        self._alias.append((int(at[0]), nbytes))
        return int(at[0])

    def _map_shard(self, at: int, huge: int) -> None:
        cfg = self._size.cfg
        write = lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL
        head, shared = stats_bytes(), int(lib.ix_shard_shared_bytes(cfg))
        body = self._size.shard_bytes - head - shared
        # A file of the directory could be opened for writing by an application that runs as root.
        self._stats_fd = fd = os.memfd_create("ixnet-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, head)
        _map(at, head, fd, write)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
        self.app_stats = self._reserve_alias(head, PAGE_BYTES)
        _map(self.app_stats, head, fd, 0)
        self._size.stats_path.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        _map(at + head, body, -1, write | huge)
        fd = os.memfd_create("ixnet-arrays", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, shared)
            _map(at + head + body, shared, fd, write)
            self.app_io = self._reserve_alias(shared, PAGE_BYTES)
            _map(self.app_io, shared, fd, write)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        finally:
            os.close(fd)
        cfg.app_io = self.app_io

    def _map_umem(self, at: int, huge_pages: str) -> UmemKind:
        """hugetlb pages if there are any, else what the kernel makes of ordinary ones."""
        if huge_pages != "no":
            with contextlib.suppress(IxError, OSError):
                self._map_umem_of(at, os.MFD_HUGETLB, 0)
                return UmemKind.HUGETLB
        if huge_pages == "yes":
            nbytes = self._size.umem_bytes
            raise IxError(
                f"no huge pages for {nbytes >> 20} MiB of UMEM",
                f"set more aside: sysctl vm.nr_hugepages (at least {nbytes // HUGE_BYTES} free "
                "for this)",
            )
        self._map_umem_of(at, 0, lib.IX_PLACED_HUGE if huge_pages == "auto" else 0)
        return UmemKind.PAGES

    def _map_umem_of(self, at: int, memfd_flags: int, map_flags: int) -> None:
        write = lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL | map_flags
        nbytes, pool = self._size.umem_bytes, self._size.pool_bytes
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | memfd_flags
        fd = os.memfd_create("ixnet-umem", flags)
        try:
            os.ftruncate(fd, nbytes)
            _map(at, nbytes, fd, write)
            alias = self._reserve_alias(nbytes, HUGE_BYTES)
            if nbytes > pool:
                _map(alias + pool, nbytes - pool, fd, write, pool)
            # From here on there is no new writable mapping of it, by whatever name it is opened.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
            _map(alias, pool, fd, lib.IX_PLACED_FILL | map_flags)
        finally:
            os.close(fd)
        self._size.cfg.app_umem = self.app_umem = alias

    def close(self) -> None:
        """Gives ring 3's mappings back; the rest goes with the closed range. Safe to repeat."""
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
        for at, nbytes in self._alias:
            lib.ix_placed_release(at, nbytes)
        self._alias.clear()


class Guest:
    """One worker's memory: its shards', and the gate to them. Made before any fork.

    by_word: wakeups are left to the kicker's thread.
    """

    def __init__(self, sizes: Sequence[ShardSize], huge_pages: str, by_word: bool) -> None:
        self._by_word = by_word
        self._gate: Any = None
        self._ring3: Ring3 | None = None
        self._gate_at = _up(dune_shared.size(), PAGE_BYTES)
        small = self._gate_at + _up(int(lib.ix_gate_host_bytes()), PAGE_BYTES)
        at = _up(small, HUGE_BYTES)
        end = at + sum(map(GuestShard.bytes_of, sizes))
        self.place: dune.Place | None = dune.reserve(end)
        data = self._data = self.place.data
        self.shards: list[GuestShard] = []
        try:
            _map(data, small, -1, lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL)
            for size in sizes:
                self.shards.append(GuestShard(size, data + at, huge_pages))
                at += GuestShard.bytes_of(size)
        except BaseException:
            self.close()
            raise

    # ---- the gate --------------------------------------------------------------------------

    def make_gate(self, shards: Sequence[tuple[Any, QueueSocket]]) -> None:
        """For new shards (`struct ix_shard *`) on new sockets."""
        data = self._data
        ffi.memmove(ffi.cast("uint8_t *", data), bytes(self._gate_at), self._gate_at)
        memory = ffi.cast("void *", data + self._gate_at)
        self._gate = lib.ix_gate_host_make(memory, int(self._by_word))
        for shard, sock in shards:
            _check(lib.ix_gate_host_add(self._gate, shard, sock.raw), "add a shard to a guest")

    @property
    def gate(self) -> Any:
        """`struct ix_gate_host *`."""
        return self._gate

    def set_clock(self) -> None:
        """Tells the gate the time; every second or so."""
        if self._gate is not None:
            lib.ix_gate_host_set_clock(self._gate)

    def enter(self, sock_fds: Sequence[int], drop: Callable[[], None]) -> None:
        """In the worker: this process goes on in ring 3. There is no way back. drop: lets go of
        privileges; in between, as the VM is made with them."""
        module = dune.Module(
            MODULE_PATH.read_bytes(),
            context=self._data + self._gate_at,
            descriptors=tuple(sock_fds),
            shared=self._data,
        )
        dune.init(sealed=True, self_test=False, place=self.place, module=module)
        drop()
        dune.enter_user()

    def facts(self) -> dict[str, int | float]:
        """The guest's counters so far, {} before it began."""
        if self._gate is None or self.place is None:
            return {}
        facts = guest_facts(dune_shared.read(self.place.data))
        if not facts:
            return {}
        return facts | {"gate_refused": int(lib.ix_gate_host_refused(self._gate))}

    def note_maps(self, pid: int) -> None:
        """For names in the report of its death: what it has mapped now that it serves."""
        self._ring3 = Ring3.of(pid)

    def crash(self) -> Iterator[str]:
        """Why the guest ended, if it could still say so, line by line."""
        if self._gate is not None and self.place is not None:
            crash = dune_shared.read(self.place.data).crash
            if crash is not None:
                yield from crash_report(crash, self._ring3 or Ring3.of("self"))

    def close(self) -> None:
        """Gives all of it back; also in the processes of other workers. Safe to repeat."""
        for shard in self.shards:
            shard.close()
        if self.place is not None:
            dune.unreserve(self.place)
            self.place = None
