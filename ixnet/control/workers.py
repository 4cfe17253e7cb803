"""One worker from the control plane's side: its memory, socket, shard and process.

    new -> starting -> ready -> ended (its application returned)
                  \\        \\-> waiting -> starting      (it died; started again after a while)
                   \\-> failed (it died before it served)

Memory is mapped once, before any fork, and stays at its address: a worker that is started again
gets the same memory, zeroed, with a new shard in it and a new socket on its queue.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.congestion import CONGESTION, ECN
from ixnet.control.config import RING_ENTRIES, SYN_COOKIES, RunConfig
from ixnet.control.errors import IxError, from_errno
from ixnet.control.guest import FRAMES_UNIT, Guest, PlacedRegion, PlacedUmem
from ixnet.control.heartbeat import Heartbeat
from ixnet.control.nic import Nic
from ixnet.control.recorder import Recorder
from ixnet.control.stamps import TX_METADATA_BYTES
from ixnet.control.stats import stats_bytes
from ixnet.control.xdp import IpAddress
from ixnet.control.xsk import QueueConfig, QueueSocket, Umem, UmemKind, place_bytes
from ixnet.runtime import Program, WorkerIdentity, run_worker

RESTART_DELAY_S = 1.0
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
XDP_HEADROOM_BYTES = 256


class State(enum.Enum):
    """Where a worker is in its life; see the module's picture."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True)
class WorkerPlan:
    """What one worker is to be. ports: first and last outgoing port; all_ports: those of all."""

    shard_id: int
    shard_count: int
    queue: int
    core: int
    spin_ns: int
    frame_shift: int
    busy_poll_us: int
    ports: tuple[int, int]
    all_ports: tuple[int, int]
    stats_path: Path


class Region:
    """Memory shared with later children (native/region.h). head: file of its first pages."""

    def __init__(self, nbytes: int, huge: str, head: Path | None = None) -> None:
        self._region = ffi.new("struct ix_region *")
        fd, head_bytes = -1, 0
        if head is not None:
            head_bytes = stats_bytes()
            fd = os.open(head, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if fd >= 0:
                os.ftruncate(fd, head_bytes)
            result = -1
            if huge != "no":
                result = lib.ix_region_map(self._region, nbytes, 1, fd, head_bytes)
            if result < 0 and huge != "yes":
                result = lib.ix_region_map(self._region, nbytes, 0, fd, head_bytes)
        finally:
            if fd >= 0:
                os.close(fd)
        if result < 0:
            cure = "free memory, or ask for fewer flows and frames"
            if huge == "yes":
                cure = huge_pages_cure(nbytes)
            raise from_errno(result, f"get {nbytes >> 20} MiB of memory for a shard", cure)

    @property
    def base(self) -> Any:
        """Its first byte, as a cffi pointer."""
        return self._region.base

    @property
    def nbytes(self) -> int:
        """Usable bytes."""
        return int(self._region.bytes)

    @property
    def is_huge(self) -> bool:
        """Whether it lies on huge pages."""
        return bool(self._region.huge)

    def zero(self) -> None:
        """Zeroes all of it."""
        chunk = bytes(1 << 20)
        for at in range(0, self.nbytes, len(chunk)):
            ffi.memmove(self.base + at, chunk, min(len(chunk), self.nbytes - at))

    def close(self) -> None:
        """Unmaps it. Safe to repeat."""
        lib.ix_region_unmap(self._region)


def huge_pages_cure(nbytes: int) -> str:
    """How to get huge pages for `nbytes` bytes more."""
    return f"set more aside: sysctl vm.nr_hugepages (at least {(nbytes >> 21) + 1} free for this)"


def fill_config(plan: WorkerPlan, config: RunConfig, nic: Nic) -> Any:
    """A `struct ix_config *` for one shard, with fresh secrets."""
    c = ffi.new("struct ix_config *")
    c.now_ns = lib.ix_process_now_ns()
    for i in range(8):
        c.secret[i] = secrets.randbits(64)
    c.shard_id, c.shard_count, c.queue = plan.shard_id, plan.shard_count, plan.queue
    c.max_flows, c.batch = config.max_flows, config.batch
    c.pool_frames, c.arena_frames = config.frames, config.frames // 2
    if config.placement == "dune":  # so that the arena begins at a huge page
        c.pool_frames = -(-config.frames // FRAMES_UNIT) * FRAMES_UNIT
    c.fill_target = min(config.frames // 2, RING_ENTRIES)
    c.mtu = nic.mtu
    c.mac = nic.mac
    c.port_lo, c.port_hi = plan.ports
    c.all_port_lo, c.all_port_hi = plan.all_ports
    c.own_address = 1 if config.own_addresses else 0
    c.sg_inplace = 1 if config.placement == "inline" else 0
    c.syn_cookies, c.mss_max = SYN_COOKIES.index(config.syn_cookies), config.mss_max or 0
    c.congestion, c.ecn = CONGESTION[config.congestion], ECN[config.ecn]
    if nic.rss and nic.rss.function == "toeplitz" and len(nic.rss.indirection) <= 512:
        c.rss_key_bytes = min(len(nic.rss.key), 64)
        ffi.memmove(c.rss_key, nic.rss.key, c.rss_key_bytes)
        c.rss_table_len = len(nic.rss.indirection)
        for i, queue in enumerate(nic.rss.indirection):
            c.rss_table[i] = queue
    return c


class Worker:
    """One worker and everything it owns, as the control plane holds it."""

    def __init__(
        self, plan: WorkerPlan, config: RunConfig, nic: Nic, recorder: Recorder | None = None
    ) -> None:
        self.plan = plan
        self.recorder = recorder
        self.state = State.NEW
        self.pid = 0
        self.pidfd = -1
        self.requests: socket.socket | None = None
        self.socket: QueueSocket | None = None
        self.shard: Any = None
        self.restart_at: float | None = None
        self.exit_status: int | None = None
        self.heartbeat = Heartbeat()
        self._config = config
        self._nic = nic
        self._kick_fd = -1
        self._news: deque[Any] = deque()
        self._deaths: deque[float] = deque()
        self._app: Any = None
        frame_bytes = 1 << plan.frame_shift
        self._cfg = fill_config(plan, config, nic)
        self._shard_bytes = int(lib.ix_shard_bytes(self._cfg))
        if not self._shard_bytes:
            raise IxError("the core can't be sized like this", "use the defaults of ixnet run")
        self.guest: Guest | None = None
        self._epoll: select.epoll | None = None
        self.umem: Umem | PlacedUmem
        self.memory: Region | PlacedRegion
        if config.placement == "dune":
            self.guest = Guest(
                self._cfg, self._shard_bytes, plan.frame_shift, place_bytes(RING_ENTRIES),
                plan.stats_path, config.huge_pages, config.kick == "thread",
            )  # fmt: skip
            self.umem, self.memory = self.guest.umem, self.guest.memory
            return
        frames = int(self._cfg.pool_frames) + int(self._cfg.arena_frames)
        self.umem = Umem.allocate(frames * frame_bytes, config.huge_pages != "no")
        if config.huge_pages == "yes" and self.umem.kind is UmemKind.PAGES:
            nbytes = self.umem.nbytes
            self.umem.close()
            raise IxError(f"no huge pages for {nbytes >> 20} MiB of UMEM", huge_pages_cure(nbytes))
        try:
            self.memory = Region(self._shard_bytes, config.huge_pages, plan.stats_path)
        except BaseException:
            self.umem.close()
            raise

    # ---- memory, socket, shard ---------------------------------------------------------

    def queue_config(self) -> QueueConfig:
        """How this worker's socket is to be, with the frames that it receives into first."""
        fill = ffi.new("uint64_t[]", int(self._cfg.fill_target))
        umem = ffi.cast("void *", self.umem.address)
        planned = lib.ix_plan_fill(
            self.memory.base, self._shard_bytes, self._cfg, umem, self.umem.nbytes,
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
            place=self.guest.xsk_place if self.guest is not None else 0,
            tx_metadata_bytes=TX_METADATA_BYTES if self._config.timestamps else 0,
        )

    def make_shard(self, sock: QueueSocket) -> None:
        """Builds the shard on an open socket, whose FILL ring holds queue_config()'s frames."""
        fill = ffi.new("uint64_t[]", int(self._cfg.fill_target))
        link = sock.link if self.recorder is None else self.recorder.attach(sock.link)
        shard = lib.ix_shard_create(self.memory.base, self._shard_bytes, self._cfg, link, fill)
        if shard == ffi.NULL:
            raise IxError(f"the core refused to make shard {self.plan.shard_id}")
        if list(sock.config.fill) != ffi.unpack(fill, len(fill)):
            raise IxError("the shard gave other frames away than planned: this is a bug of ixnet")
        if self.guest is not None:
            self.guest.make_gate(shard, sock)
        self.socket = sock
        self.shard = shard

    def renew(self) -> QueueConfig:
        """After a death: zeroes the memory, with fresh secrets. The old socket must be closed."""
        self.shard = None
        self._news.clear()
        self.memory.zero()
        views = self._cfg.app_io, self._cfg.app_umem
        self._cfg = fill_config(self.plan, self._config, self._nic)
        lib.ix_shard_bytes(self._cfg)
        self._cfg.app_io, self._cfg.app_umem = views
        return self.queue_config()

    def close(self) -> None:
        """Gives memory and descriptors back; the process is gone and the socket closed."""
        self._close_process()
        self._free_memory()

    def _free_memory(self) -> None:
        if self.guest is not None:
            self.guest.close()
        self.memory.close()
        self.umem.close()

    # ---- the process -------------------------------------------------------------------

    def fork(self, program: Program, stop: Any, let_go: Callable[[], None]) -> None:
        """Starts the process. let_go: run in it first, drops what only the parent may hold."""
        assert self.socket is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._app = app = self._make_app(theirs.fileno(), kick_fd, stop)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                let_go()
            except BaseException as error:
                os.write(2, f"ixnet: worker can't start: {error}\n".encode())
                os._exit(1)
            keep = [theirs.fileno(), kick_fd, self.socket.fileno()]
            if self.recorder is not None:
                keep.append(self.recorder.fileno())
            privileges = self._config.privileges
            enter = partial(privileges.drop, False)
            if self.guest is not None and self._epoll is not None:
                keep.append(self._epoll.fileno())
                drop = partial(privileges.drop, True)
                enter = partial(self.guest.enter, self.socket.fileno(), drop)
            identity = WorkerIdentity(
                app, self.plan.shard_id, self.plan.core, parent, tuple(keep), enter
            )
            run_worker(identity, program)
        theirs.close()
        ours.setblocking(False)
        self.pid, self.requests, self._kick_fd = pid, ours, kick_fd
        self.pidfd = os.pidfd_open(pid)
        self.exit_status = None
        self.state = State.STARTING

    def _make_app(self, request_fd: int, kick_fd: int, stop: Any) -> Any:
        assert self.socket is not None
        app = ffi.new("struct ix_app *")
        app.shard = self.shard
        app.io = lib.ix_shard_io(self.shard)
        app.ops = lib.ix_app_inline_ops()
        app.stats = lib.ix_shard_stats(self.shard)
        app.request_fd, app.kick_fd, app.link_fd = request_fd, kick_fd, self.socket.fileno()
        app.spin_ns = self.plan.spin_ns
        app.stop = stop
        app.shard_id, app.shard_count = self.plan.shard_id, self.plan.shard_count
        if self.guest is not None:
            self._make_guest_app(app)
        if self.recorder is not None:
            app.recorder = self.recorder.pointer
        return app

    def _make_guest_app(self, app: Any) -> None:
        """Ring 3 has its own mappings, and sleeps on an epoll descriptor: the socket itself is
        ring 0's."""
        assert self.guest is not None and self.socket is not None
        self._epoll = select.epoll()
        self._epoll.register(self.socket.fileno(), select.EPOLLIN)
        app.shard, app.ops = ffi.NULL, lib.ix_app_gate_ops()
        app.io = ffi.cast("struct ix_io *", self.guest.app_io)
        app.stats = ffi.cast("struct ix_stats *", self.guest.app_stats)
        app.link_fd = self._epoll.fileno()

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self.state in (State.STARTING, State.READY)

    def listen_to_heart(self) -> str:
        """Looks whether its shard runs cycles; returns what there is to tell of that, or ""."""
        if self.state is not State.READY:
            self.heartbeat.stalled_s = 0.0
            return ""
        stats = ffi.cast("struct ix_stats *", self.memory.base)
        return self.heartbeat.look(self.pid, int(stats.now_ns), lib.ix_process_now_ns())

    def kick(self) -> None:
        """Wakes it if it sleeps."""
        if self._kick_fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._kick_fd, 1)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends the process a signal."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int:
        """Waits for its end; returns the wait status. Its descriptors are closed then."""
        _, status = os.waitpid(self.pid, 0)
        self.exit_status = status
        if self.recorder is not None:
            self.recorder.trim()
        self._close_process()
        return status

    def _close_process(self) -> None:
        if self.requests is not None:
            self.requests.close()
            self.requests = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        for fd in (self.pidfd, self._kick_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._kick_fd = -1

    def close_socket(self) -> None:
        """Closes its AF_XDP socket: the queue is free, its frames go to the kernel."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def reset_peers(self) -> int:
        """After its end, its socket closed: tells the peers of its connections by RSTs that there
        is nobody any more; returns how many. Its memory may be in any state."""
        told = int(lib.ix_farewell(self.memory.base, self._cfg, self._nic.ifindex))
        return max(told, 0)

    def may_restart(self, now_s: float) -> bool:
        """Notes a death; whether there were not too many of late."""
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - RESTARTS_WINDOW_S:
            self._deaths.popleft()
        return len(self._deaths) <= RESTARTS_MAX

    # ---- news for the shard --------------------------------------------------------------

    def tell(self, messages: Iterable[Any]) -> None:
        """Queues `struct ix_ctl_msg *` for the shard, and sends what its ring takes."""
        self._news.extend(messages)
        self.flush()

    def flush(self) -> bool:
        """Sends what waits; False if some must wait on. Order is kept."""
        if self.shard is None:
            self._news.clear()
            return True
        sent = False
        while self._news:
            if lib.ix_ctl_send(self.shard, self._news[0]) < 0:
                break
            self._news.popleft()
            sent = True
        if sent and self.is_running:
            self.kick()
        return not self._news

    def flush_before_fork(self) -> None:
        """Sends everything, running the shard here where its ring is full."""
        while not self.flush():
            lib.ix_shard_poll(self.shard, lib.ix_process_now_ns())

    def take_requests(self) -> list[Any]:
        """What the shard asks for (`struct ix_ctl_msg *`)."""
        found: list[Any] = []
        if self.shard is None:
            return found
        while len(found) < 256:
            message = ffi.new("struct ix_ctl_msg *")
            if not lib.ix_ctl_recv(self.shard, message):
                break
            found.append(message)
        return found

    def forget_in_child(self) -> None:
        """In another worker's process: lets go of this one's socket, rings and memory."""
        self.close_socket()
        self._free_memory()
        if self.recorder is not None:
            self.recorder.close()


def control_message(
    kind: int,
    ip: IpAddress | None = None,
    *,
    prefix: int = 32,
    mac: bytes = bytes(6),
    gateway: IpAddress | None = None,
    source: IpAddress | None = None,
    value: int = 0,
) -> Any:
    """A `struct ix_ctl_msg *`; kind: IX_CTL_*. Its family is that of `ip`."""
    message = ffi.new("struct ix_ctl_msg *")
    message.type, message.prefix, message.value = kind, prefix, value
    message.family = ip.version if ip is not None else 4
    message.mac = mac
    for field, address in (("ip", ip), ("gateway", gateway), ("source", source)):
        if address is not None:
            ffi.memmove(getattr(message, field), address.packed, len(address.packed))
    return message


def message_ip(message: Any) -> IpAddress:
    """The address that a control message is about."""
    packed = bytes(ffi.buffer(message.ip, 16))
    return IPv6Address(packed) if message.family == 6 else IPv4Address(packed[:4])


def monotonic_s() -> float:
    """CLOCK_MONOTONIC, s."""
    return time.monotonic()
