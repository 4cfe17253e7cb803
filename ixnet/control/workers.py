"""One worker from the control plane's side: the process that runs one or more shards in turn.

    new -> starting -> ready -> ended (its application returned)
                  \\        \\-> waiting -> starting      (it died; started again after a while)
                   \\-> failed (it died before it served)

A worker is what IX calls an elastic thread: one process, one core and, in the dune placement, one
vCPU. What is of a shard, and outlives its worker, is in control/shards.py.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.config import RunConfig
from ixnet.control.guest import Guest
from ixnet.control.heartbeat import Heartbeat
from ixnet.control.nic import Nic
from ixnet.control.recorder import Recorder
from ixnet.control.shards import Shard, ShardPlan
from ixnet.control.xsk import QueueConfig, QueueSocket
from ixnet.runtime import Program, WorkerIdentity, run_worker

RESTART_DELAY_S = 1.0
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
# Answers to requests of one worker's shards come on one socket; one that was given up on is nobody
# else's.
_SEQUENCE_SHIFT = 24


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
    """What one worker is to be. shards: those that it runs."""

    number: int
    core: int
    spin_ns: int
    shards: tuple[ShardPlan, ...]


class Worker:
    """One worker and everything it owns, as the control plane holds it."""

    def __init__(
        self,
        plan: WorkerPlan,
        config: RunConfig,
        nic: Nic,
        recorders: Sequence[Recorder | None],
    ) -> None:
        """recorders: one a shard of the plan."""
        self.plan = plan
        self.state = State.NEW
        self.pid = 0
        self.pidfd = -1
        self.requests: socket.socket | None = None
        self.restart_at: float | None = None
        self.exit_status: int | None = None
        self.heartbeat = Heartbeat()
        self._config = config
        self._kick_fd = -1
        self._deaths: deque[float] = deque()
        self._apps: tuple[Any, ...] = ()
        self._siblings: Any = None
        self.guest: Guest | None = None
        self.shards = tuple(
            Shard(p, config, nic, r) for p, r in zip(plan.shards, recorders, strict=True)
        )
        try:
            self._take_memory()
        except BaseException:
            self._free_memory()
            raise

    def _take_memory(self) -> None:
        config = self._config
        if config.placement != "dune":
            for shard in self.shards:
                shard.allocate()
            return
        sizes = [shard.size() for shard in self.shards]
        self.guest = Guest(sizes, config.huge_pages, config.kick == "thread")
        for shard, placed in zip(self.shards, self.guest.shards, strict=True):
            shard.place_in(placed)

    def make_shards(self, sockets: Sequence[QueueSocket]) -> None:
        """Builds its shards on open sockets, one for each queue_config()."""
        for shard, sock in zip(self.shards, sockets, strict=True):
            shard.make(sock)
        if self.guest is not None:
            pairs = zip((shard.pointer for shard in self.shards), sockets, strict=True)
            self.guest.make_gate(list(pairs))

    def renew(self, open_socket: Callable[[QueueConfig], QueueSocket]) -> None:
        """After a death, the old sockets closed: new shards in the same memory. On an error the
        new sockets are closed."""
        opened: list[QueueSocket] = []
        try:
            for shard in self.shards:
                opened.append(open_socket(shard.renew()))
            self.make_shards(opened)
        except BaseException:
            for shard in self.shards:
                shard.socket = None
            for sock in opened:
                sock.close()
            raise

    def close(self) -> None:
        """Gives memory and descriptors back; the process is gone."""
        self._close_process()
        self._free_memory()

    def _free_memory(self) -> None:
        for shard in self.shards:
            shard.close()
        if self.guest is not None:
            self.guest.close()

    # ---- the process -------------------------------------------------------------------

    def fork(self, program: Program, stop: Any, let_go: Callable[[], None]) -> None:
        """Starts the process. let_go: run in it first, drops what only the parent may hold."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._apps = tuple(shard.make_app() for shard in self.shards)
        self._siblings = ffi.new("struct ix_app *[]", list(self._apps))
        for number, app in enumerate(self._apps):
            app.gate_shard, app.sequence = number, number << _SEQUENCE_SHIFT
            app.n_siblings, app.siblings = len(self._apps), self._siblings
            app.request_fd, app.kick_fd = theirs.fileno(), kick_fd
            app.spin_ns, app.stop = self.plan.spin_ns, stop
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
            self._become(program, parent, [theirs.fileno(), kick_fd])
        theirs.close()
        ours.setblocking(False)
        self.pid, self.requests, self._kick_fd = pid, ours, kick_fd
        self.pidfd = os.pidfd_open(pid)
        self.exit_status = None
        self.state = State.STARTING

    def _become(self, program: Program, parent: int, keep: list[int]) -> None:
        """In the new process: does not return."""
        for shard in self.shards:
            keep += shard.descriptors()
        privileges = self._config.privileges
        enter = partial(privileges.drop, False)
        if self.guest is not None:
            sockets = [shard.socket.fileno() for shard in self.shards if shard.socket is not None]
            enter = partial(self.guest.enter, sockets, partial(privileges.drop, True))
        identity = WorkerIdentity(
            self._apps, self.plan.number, self.plan.core, parent, tuple(keep), enter
        )
        run_worker(identity, program)

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self.state in (State.STARTING, State.READY)

    def listen_to_heart(self) -> str:
        """Looks whether all its shards run cycles; returns what there is to tell of that, or ""."""
        if self.state is not State.READY:
            self.heartbeat.stalled_s = 0.0
            return ""
        oldest_ns = min(shard.cycle_ns() for shard in self.shards)
        return self.heartbeat.look(self.pid, oldest_ns, lib.ix_process_now_ns())

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
        for shard in self.shards:
            if shard.recorder is not None:
                shard.recorder.trim()
        self._close_process()
        return status

    def _close_process(self) -> None:
        if self.requests is not None:
            self.requests.close()
            self.requests = None
        for shard in self.shards:
            shard.close_epoll()
        for fd in (self.pidfd, self._kick_fd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._kick_fd = -1

    def close_sockets(self) -> None:
        """Gives its shards' queues back."""
        for shard in self.shards:
            shard.close_socket()

    def may_restart(self, now_s: float) -> bool:
        """Notes a death; whether there were not too many of late."""
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - RESTARTS_WINDOW_S:
            self._deaths.popleft()
        return len(self._deaths) <= RESTARTS_MAX

    # ---- news for its shards -------------------------------------------------------------

    def tell(self, messages: Iterable[Any], to: Sequence[Shard] | None = None) -> None:
        """Queues `struct ix_ctl_msg *` for all its shards, or for `to`, and sends what their rings
        take."""
        messages = list(messages)
        for shard in self.shards if to is None else to:
            shard.tell(messages)
        self.flush()

    def flush(self) -> bool:
        """Sends what waits; False if some must wait on."""
        sent = [shard.flush() for shard in self.shards]
        if any(sent) and self.is_running:
            self.kick()
        return not any(shard.has_backlog for shard in self.shards)

    def forget_in_child(self) -> None:
        """In another worker's process: lets go of this one's sockets, rings and memory."""
        for shard in self.shards:
            shard.forget_in_child()
        if self.guest is not None:
            self.guest.close()

    # ---- how it is called ------------------------------------------------------------------

    @property
    def queues_text(self) -> str:
        """Its queues, for a message."""
        queues = [str(shard.plan.queue) for shard in self.shards]
        return f"queue{'s' if len(queues) > 1 else ''} {', '.join(queues)}"

    def __str__(self) -> str:
        return f"worker {self.plan.number} ({self.queues_text})"


def monotonic_s() -> float:
    """CLOCK_MONOTONIC, s."""
    return time.monotonic()
