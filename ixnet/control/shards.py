"""One shard from the control plane's side: its memory, its socket, what it is told and asks for.

Memory is mapped once, before any fork, and stays at its address: the shard of a worker that is
started again is a new one in the same memory, zeroed, with a new socket on its queue.
"""

from __future__ import annotations

import secrets
import select
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.congestion import CONGESTION, ECN
from ixnet.control.config import (
    FILL_FRAMES,
    RING_ENTRIES,
    SYN_COOKIES,
    RunConfig,
    default_frames,
)
from ixnet.control.errors import IxError, from_errno
from ixnet.control.guest import FRAMES_UNIT, GuestShard, PlacedRegion, PlacedUmem, ShardSize
from ixnet.control.nic import Nic
from ixnet.control.recorder import Recorder
from ixnet.control.region import Region, huge_pages_cure
from ixnet.control.stamps import TX_METADATA_BYTES
from ixnet.control.xsk import QueueConfig, QueueSocket, Umem, UmemKind, place_bytes

XDP_HEADROOM_BYTES = 256


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is to be. ports: first and last outgoing port; all_ports: those of all."""

    shard_id: int
    shard_count: int
    queue: int
    frame_shift: int
    busy_poll_us: int
    ports: tuple[int, int]
    all_ports: tuple[int, int]
    stats_path: Path


def fill_config(plan: ShardPlan, config: RunConfig, nic: Nic) -> Any:
    """A `struct ix_config *` for one shard, with fresh secrets."""
    c = ffi.new("struct ix_config *")
    c.now_ns = lib.ix_process_now_ns()
    for i in range(8):
        c.secret[i] = secrets.randbits(64)
    c.shard_id, c.shard_count, c.queue = plan.shard_id, plan.shard_count, plan.queue
    c.max_flows, c.batch = config.max_flows, config.batch
    frames = config.frames or default_frames(plan.shard_count, plan.frame_shift)
    c.pool_frames, c.arena_frames = frames, frames // 2
    if config.placement == "dune":  # so that the arena begins at a huge page
        c.pool_frames = -(-frames // FRAMES_UNIT) * FRAMES_UNIT
    c.fill_target = min(frames // 2, FILL_FRAMES)
    c.fill_max = min(frames // 2, RING_ENTRIES)
    c.mtu = nic.mtu
    c.mac = nic.mac
    c.port_lo, c.port_hi = plan.ports
    c.all_port_lo, c.all_port_hi = plan.all_ports
    c.own_address = 1 if config.own_addresses else 0
    c.sg_inplace = 1 if config.placement == "inline" else 0
    c.syn_cookies, c.mss_max = SYN_COOKIES.index(config.syn_cookies), config.mss_max or 0
    c.congestion, c.ecn = CONGESTION[config.congestion], ECN[config.ecn]
    c.pacing = config.pacing
    if nic.rss and nic.rss.function == "toeplitz" and len(nic.rss.indirection) <= 512:
        c.rss_key_bytes = min(len(nic.rss.key), 64)
        ffi.memmove(c.rss_key, nic.rss.key, c.rss_key_bytes)
        c.rss_table_len = len(nic.rss.indirection)
        for i, queue in enumerate(nic.rss.indirection):
            c.rss_table[i] = queue
    return c


class Shard:
    """One shard and everything that is its own. memory, umem: from allocate() or place_in() on;
    pointer: `struct ix_shard *`, while there is one. extra_fds: that its worker needs besides."""

    memory: Region | PlacedRegion
    umem: Umem | PlacedUmem

    def __init__(
        self, plan: ShardPlan, config: RunConfig, nic: Nic, recorder: Recorder | None = None
    ) -> None:
        self.plan = plan
        self.recorder = recorder
        self.socket: QueueSocket | None = None
        self.pointer: Any = None
        self.extra_fds: list[int] = []
        self._config = config
        self._nic = nic
        self._news: deque[Any] = deque()
        self._epoll: select.epoll | None = None
        self._placed: GuestShard | None = None
        self._cfg = fill_config(plan, config, nic)
        self._bytes = int(lib.ix_shard_bytes(self._cfg))
        if not self._bytes:
            raise IxError("the core can't be sized like this", "use the defaults of ixnet run")

    # ---- memory, socket, shard ---------------------------------------------------------

    def allocate(self) -> None:
        """Takes memory of its own, for the inline placement."""
        config = self._config
        frames = int(self._cfg.pool_frames) + int(self._cfg.arena_frames)
        umem = Umem.allocate(frames << self.plan.frame_shift, config.huge_pages != "no")
        try:
            if config.huge_pages == "yes" and umem.kind is UmemKind.PAGES:
                raise IxError(
                    f"no huge pages for {umem.nbytes >> 20} MiB of UMEM",
                    huge_pages_cure(umem.nbytes),
                )
            self.memory = Region(self._bytes, config.huge_pages, self.plan.stats_path)
        except BaseException:
            umem.close()
            raise
        self.umem = umem

    def size(self) -> ShardSize:
        """What a guest must have room for."""
        return ShardSize(
            self._cfg, self._bytes, self.plan.frame_shift, place_bytes(RING_ENTRIES),
            self.plan.stats_path,
        )  # fmt: skip

    def place_in(self, placed: GuestShard) -> None:
        """Uses a guest's memory, for the dune placement."""
        self._placed = placed
        self.umem, self.memory = placed.umem, placed.memory

    def queue_config(self) -> QueueConfig:
        """How its socket is to be, with the frames that it receives into first."""
        fill = ffi.new("uint64_t[]", int(self._cfg.fill_target))
        umem = ffi.cast("void *", self.umem.address)
        planned = lib.ix_plan_fill(
            self.memory.base, self._bytes, self._cfg, umem, self.umem.nbytes,
            self.plan.frame_shift, XDP_HEADROOM_BYTES, fill,
        )  # fmt: skip
        if planned < 0:
            raise from_errno(planned, f"make shard {self.plan.shard_id}")
        return QueueConfig(
            queue=self.plan.queue,
            umem=self.umem.address,
            umem_bytes=self.umem.nbytes,
            frame_shift=self.plan.frame_shift,
            fill=ffi.unpack(fill, planned),
            fill_entries=RING_ENTRIES,
            completion_entries=RING_ENTRIES,
            rx_entries=RING_ENTRIES,
            tx_entries=RING_ENTRIES,
            busy_poll_us=self.plan.busy_poll_us,
            place=self._placed.xsk_place if self._placed is not None else 0,
            tx_metadata_bytes=TX_METADATA_BYTES if self._config.timestamps else 0,
        )

    def make(self, sock: QueueSocket) -> None:
        """Builds the shard on an open socket, whose FILL ring holds queue_config()'s frames. The
        socket is its own from then on."""
        fill = ffi.new("uint64_t[]", int(self._cfg.fill_target))
        link = sock.link if self.recorder is None else self.recorder.attach(sock.link)
        shard = lib.ix_shard_create(self.memory.base, self._bytes, self._cfg, link, fill)
        if shard == ffi.NULL:
            raise IxError(f"the core refused to make shard {self.plan.shard_id}")
        if list(sock.config.fill) != ffi.unpack(fill, len(fill)):
            raise IxError("the shard gave other frames away than planned: this is a bug of ixnet")
        self.socket = sock
        self.pointer = shard

    def renew(self) -> QueueConfig:
        """After a death: zeroes the memory, with fresh secrets. The old socket must be closed."""
        self.pointer = None
        self._news.clear()
        self.memory.zero()
        views = self._cfg.app_io, self._cfg.app_umem
        self._cfg = fill_config(self.plan, self._config, self._nic)
        lib.ix_shard_bytes(self._cfg)
        self._cfg.app_io, self._cfg.app_umem = views
        return self.queue_config()

    def close_socket(self) -> None:
        """Closes its AF_XDP socket: the queue is free, its frames go to the kernel."""
        self.close_epoll()
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def close_epoll(self) -> None:
        """When its process has ended."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def reset_peers(self) -> int:
        """After its process's end, its socket closed: tells the peers of its connections by RSTs
        that there is nobody any more; returns how many. Its memory may be in any state."""
        self.pointer = None
        told = int(lib.ix_farewell(self.memory.base, self._cfg, self._nic.ifindex))
        return max(told, 0)

    def close(self) -> None:
        """Gives memory and socket back; of memory in a guest only the guest knows."""
        self.close_socket()
        if hasattr(self, "memory"):
            self.memory.close()
            self.umem.close()

    def forget_in_child(self) -> None:
        """In another worker's process: lets go of its socket, rings and memory."""
        self.close()
        if self.recorder is not None:
            self.recorder.close()

    # ---- what its worker gets ------------------------------------------------------------

    def make_app(self) -> Any:
        """`struct ix_app *`, but for what is the worker's."""
        assert self.socket is not None
        app = ffi.new("struct ix_app *")
        app.shard_id, app.shard_count = self.plan.shard_id, self.plan.shard_count
        if self.recorder is not None:
            app.recorder = self.recorder.pointer
        if self._placed is None:
            app.shard = self.pointer
            app.io = lib.ix_shard_io(self.pointer)
            app.ops = lib.ix_app_inline_ops()
            app.stats = lib.ix_shard_stats(self.pointer)
            app.link_fd = self.socket.fileno()
            return app
        # Ring 3 has its own mappings, and sleeps on an epoll descriptor: the socket itself is
        # ring 0's.
        self._epoll = select.epoll()
        self._epoll.register(self.socket.fileno(), select.EPOLLIN)
        app.shard, app.ops = ffi.NULL, lib.ix_app_gate_ops()
        app.io = ffi.cast("struct ix_io *", self._placed.app_io)
        app.stats = ffi.cast("struct ix_stats *", self._placed.app_stats)
        app.link_fd = self._epoll.fileno()
        return app

    def descriptors(self) -> list[int]:
        """Those that its worker's process keeps."""
        assert self.socket is not None
        keep = [self.socket.fileno(), *self.extra_fds]
        if self._epoll is not None:
            keep.append(self._epoll.fileno())
        if self.recorder is not None:
            keep.append(self.recorder.fileno())
        return keep

    def cycle_ns(self) -> int:
        """When its last cycle was, CLOCK_MONOTONIC; 0: none yet."""
        return int(ffi.cast("struct ix_stats *", self.memory.base).now_ns)

    # ---- news and requests -----------------------------------------------------------------

    def tell(self, messages: Iterable[Any]) -> None:
        """Queues `struct ix_ctl_msg *`; flush() sends them."""
        self._news.extend(messages)

    def flush(self) -> bool:
        """Sends what its ring takes of what waits, in order; whether it sent anything."""
        sent = False
        if self.pointer is None:
            self._news.clear()
        while self._news and lib.ix_ctl_send(self.pointer, self._news[0]) >= 0:
            self._news.popleft()
            sent = True
        return sent

    @property
    def has_backlog(self) -> bool:
        """Whether messages wait for room in its ring."""
        return bool(self._news)

    def flush_before_fork(self) -> None:
        """Sends everything, running the shard here where its ring is full."""
        self.flush()
        while self.has_backlog:
            lib.ix_shard_poll(self.pointer, lib.ix_process_now_ns())
            self.flush()

    def take_requests(self) -> list[Any]:
        """What it asks for (`struct ix_ctl_msg *`)."""
        found: list[Any] = []
        if self.pointer is None:
            return found
        while len(found) < 256:
            message = ffi.new("struct ix_ctl_msg *")
            if not lib.ix_ctl_recv(self.pointer, message):
                break
            found.append(message)
        return found

    def facts(self) -> dict[str, Any]:
        """What only the control process can see of it."""
        sock = self.socket
        return {
            "id": self.plan.shard_id,
            "socket": sock.kernel_stats() | sock.stats() if sock else {},
            "pcap": self.recorder.stats() if self.recorder else {},
        }
