"""The dune placement's memory: what a worker's ring 0 works on, and what of it its ring 3 may see.

A worker's closed range (libdune_shim/dune.h) holds, from the start of its data windows on::

    struct dune_shared    counters and crash record, written by libdune
    the gate              dataplane/gate/gate_hosted.h
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
from collections.abc import Callable, Iterator
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


class Guest:
    """One worker's memory, and its gate. Made before any fork.

    cfg: `struct ix_config *` after ix_shard_bytes(); its fields app_io and app_umem are filled in.
    by_word: wakeups are left to the kicker's thread.
    """

    def __init__(
        self, cfg: Any, shard_bytes: int, frame_shift: int, xsk_bytes: int, stats_path: Path,
        huge_pages: str, by_word: bool,
    ) -> None:  # fmt: skip
        self._by_word = by_word
        self._gate: Any = None
        self._ring3: Ring3 | None = None
        self._stats_fd = -1
        self._alias: list[tuple[int, int]] = []
        frame_bytes = 1 << frame_shift
        self._pool_bytes = int(cfg.pool_frames) * frame_bytes
        self._umem_bytes = _up(self._pool_bytes + int(cfg.arena_frames) * frame_bytes, HUGE_BYTES)
        self._lay_out(shard_bytes, xsk_bytes)
        self.place: dune.Place | None = dune.reserve(self._end)
        data = self._data = self.place.data
        try:
            self._map_small(data)
            self._map_shard(data + self._shard_at, shard_bytes, cfg, stats_path)
            kind = self._map_umem(data + self._umem_at, cfg, huge_pages)
        except BaseException:
            self.close()
            raise
        self.umem = PlacedUmem(data + self._umem_at, self._umem_bytes, kind)
        self.memory = PlacedRegion(data + self._shard_at, shard_bytes)
        self.xsk_place = data + self._xsk_at
        self.xsk_bytes = xsk_bytes

    def _lay_out(self, shard_bytes: int, xsk_bytes: int) -> None:
        self._shared_bytes = _up(dune_shared.size(), PAGE_BYTES)
        self._gate_at = self._shared_bytes
        self._xsk_at = self._gate_at + _up(int(lib.ix_gate_host_bytes()), PAGE_BYTES)
        self._shard_at = self._xsk_at + _up(xsk_bytes, PAGE_BYTES)
        self._umem_at = _up(self._shard_at + shard_bytes, HUGE_BYTES)
        self._end = self._umem_at + self._umem_bytes

    def _reserve_alias(self, nbytes: int, align: int) -> int:
        at = ffi.new("uint64_t *")
        _check(lib.ix_placed_reserve(nbytes, align, at), "reserve addresses for a guest")
        self._alias.append((int(at[0]), nbytes))
        return int(at[0])

    def _map_small(self, data: int) -> None:
        _map(data, self._xsk_at, -1, lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL)

    def _map_shard(self, at: int, nbytes: int, cfg: Any, stats_path: Path) -> None:
        write = lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL
        head, shared = stats_bytes(), int(lib.ix_shard_shared_bytes(cfg))
        body = nbytes - head - shared
        # A file of the directory could be opened for writing by an application that runs as root.
        self._stats_fd = fd = os.memfd_create("ixnet-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, head)
        _map(at, head, fd, write)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
        self.app_stats = self._reserve_alias(head, PAGE_BYTES)
        _map(self.app_stats, head, fd, 0)
        stats_path.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        _map(at + head, body, -1, write | lib.IX_PLACED_HUGE)
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

    def _map_umem(self, at: int, cfg: Any, huge_pages: str) -> UmemKind:
        """hugetlb pages if there are any, else what the kernel makes of ordinary ones."""
        if huge_pages != "no":
            with contextlib.suppress(IxError, OSError):
                self._map_umem_of(at, cfg, os.MFD_HUGETLB, 0)
                return UmemKind.HUGETLB
        if huge_pages == "yes":
            pages = self._umem_bytes // HUGE_BYTES
            raise IxError(
                f"no huge pages for {self._umem_bytes >> 20} MiB of UMEM",
                f"set more aside: sysctl vm.nr_hugepages (at least {pages} free for this)",
            )
        self._map_umem_of(at, cfg, 0, lib.IX_PLACED_HUGE if huge_pages == "auto" else 0)
        return UmemKind.PAGES

    def _map_umem_of(self, at: int, cfg: Any, memfd_flags: int, map_flags: int) -> None:
        write = lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL | map_flags
        pool, arena = self._pool_bytes, self._umem_bytes - self._pool_bytes
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | memfd_flags
        fd = os.memfd_create("ixnet-umem", flags)
        try:
            os.ftruncate(fd, self._umem_bytes)
            _map(at, self._umem_bytes, fd, write)
            alias = self._reserve_alias(self._umem_bytes, HUGE_BYTES)
            if arena:
                _map(alias + pool, arena, fd, write, pool)
            # From here on there is no new writable mapping of it, by whatever name it is opened.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
            _map(alias, pool, fd, lib.IX_PLACED_FILL | map_flags)
        finally:
            os.close(fd)
        cfg.app_umem = self.app_umem = alias

    # ---- the gate --------------------------------------------------------------------------

    def make_gate(self, shard: Any, sock: QueueSocket) -> None:
        """For a new shard on a new socket."""
        data = self._data
        ffi.memmove(ffi.cast("uint8_t *", data), bytes(self._gate_at), self._gate_at)
        memory = ffi.cast("void *", data + self._gate_at)
        self._gate = lib.ix_gate_host_make(memory, shard, sock.raw, int(self._by_word))

    @property
    def gate(self) -> Any:
        """`struct ix_gate_host *`."""
        return self._gate

    def set_clock(self) -> None:
        """Tells the gate the time; every second or so."""
        if self._gate is not None:
            lib.ix_gate_host_set_clock(self._gate)

    def enter(self, sock_fd: int, drop: Callable[[], None]) -> None:
        """In the worker: this process goes on in ring 3. There is no way back. drop: lets go of
        privileges; in between, as the VM is made with them."""
        module = dune.Module(
            MODULE_PATH.read_bytes(),
            context=self._data + self._gate_at,
            descriptors=(sock_fd,),
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
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
        for at, nbytes in self._alias:
            lib.ix_placed_release(at, nbytes)
        self._alias.clear()
        if self.place is not None:
            dune.unreserve(self.place)
            self.place = None
