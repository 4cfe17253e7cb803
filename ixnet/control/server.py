"""The control plane of one instance: sets everything up, starts the workers, and serves them.

The order of things, which `ControlPlane.run` follows:

1. facts of the interface, and every check that needs no change to anything
2. the instance's directory, memory for each worker, sockets in the best mode, shards on them
3. what the kernel knows of neighbours, routes and addresses, into each shard
4. one process a worker
5. the loop: requests of workers, news of the kernel, requests of shards, deaths, signals
6. in reverse: connections aborted, workers ended, program detached, memory given back

One thread, one selector. Nothing here is in the way of a packet.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ixnet import __version__
from ixnet._core import ffi, lib
from ixnet.control.claims import Claims
from ixnet.control.config import OWN_PORTS, SHARED_PORTS, RunConfig, require_mode
from ixnet.control.cores import allowed_cores, assign_cores, spare_cores
from ixnet.control.errors import IxError
from ixnet.control.express import Express, open_express
from ixnet.control.express import text as express_text
from ixnet.control.express import why_not as express_why_not
from ixnet.control.groups import joined
from ixnet.control.guest import SharedPage, require_fit
from ixnet.control.instance import (
    CONTROL_SOCKET,
    InstanceDirectory,
    create_instance,
    find_instances,
    shard_path,
)
from ixnet.control.neigh import NeighbourMirror
from ixnet.control.news import NewsBoard, control_message, message_ip
from ixnet.control.nic import Mode, Nic, OpenedQueues, open_queues
from ixnet.control.recorder import open_recorders
from ixnet.control.report import StartReport, link_facts, report_line
from ixnet.control.requests import (
    BadRequest,
    ClaimTable,
    Endpoint,
    Request,
    decode,
    encode_reply,
    exit_text,
)
from ixnet.control.rights import require_capabilities, require_locked_memory
from ixnet.control.shards import Shard, ShardPlan
from ixnet.control.stamps import open_stamping, transmit_text
from ixnet.control.workers import RESTART_DELAY_S, State, Worker, WorkerPlan, monotonic_s
from ixnet.control.xdp import IpAddress, Proto, Steering
from ixnet.control.xsk import QueueConfig, QueueSocket

# How long the loop sleeps at most: shards' requests are looked at this often even without a nudge.
TICK_S = 0.1
# ... and while messages wait for room in a shard's ring.
BACKLOG_TICK_S = 0.001
# How often guests are told the time.
CLOCK_INTERVAL_S = 0.5
# How long workers may take to end in order.
STOP_GRACE_S = 5.0
PARTIAL_CSUM_WARNING = (
    "a peer sends frames with unfinished checksums, which are dropped "
    "(cure: at the peer, ethtool -K PEER tx off; ixnet lab does so by itself)"
)

Say = Callable[[str], None]


class InterfaceTaken(IxError):
    """Another running instance has the interface."""


class ControlPlane:
    """One instance. say: prints a line for the operator; complain: prints a line about trouble."""

    def __init__(self, config: RunConfig, say: Say, complain: Say) -> None:
        self.config = config
        self._say = say
        self._complain = complain
        self._workers: list[Worker] = []
        self._warnings: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._stopping_since: float | None = None
        self._exit_status = 0
        self._announced = False
        self._clocks_due = 0.0
        self._express: Express | None = None
        self._kicker: Any = None

    # ---- setting up ------------------------------------------------------------------------

    def run(self) -> int:
        """Runs the instance to its end; returns the exit status.

        Errors: IxError for everything that keeps it from starting; all is as before then.
        """
        with ExitStack() as stack:
            self._stack = stack
            self._check()
            self._claim_signals()
            self._prepare_instance()
            self._open_queues()
            self._make_shards()
            self._follow_express()
            self._watch_kernel()
            self._open_control_socket()
            self._describe()
            stack.callback(self._end_workers)
            for worker in self._workers:
                self._start(worker)
            self._loop()
        return self._exit_status

    def _check(self) -> None:
        config = self.config
        config.program.check()
        if config.placement == "dune":
            require_fit()
        require_capabilities()
        config.privileges.check()
        self.nic = Nic.find(config.interface)
        self._refuse_second_instance()
        require_mode(config, self.nic)
        self._queues = config.choose_queues(self.nic)
        self._frame_shift = config.choose_frame_shift(self.nic)
        for own in config.own_addresses:
            if own.ip in self.nic.ips:
                raise IxError(
                    f"{own.ip} is the kernel's address on {self.nic.name}",
                    "give an address that nobody has, or leave --own-address out to share it",
                )
        allowed = allowed_cores()
        self._spread = config.spread(len(self._queues))
        self._cores = assign_cores(len(self._spread), config.cores, allowed)
        # Off the cores where workers poll. Restored for callers that go on after the run.
        os.sched_setaffinity(0, spare_cores(self._cores, allowed))
        self._stack.callback(os.sched_setaffinity, 0, allowed)

    def _refuse_second_instance(self) -> None:
        netns = os.stat("/proc/self/ns/net").st_ino
        for other in find_instances():
            # By number: interfaces can be renamed while an instance runs.
            if (other.facts.get("ifindex"), other.facts.get("netns")) == (self.nic.ifindex, netns):
                raise InterfaceTaken(
                    f"{self.nic.name} is run by the instance {other.name} (process {other.pid})",
                    f"stop it (kill {other.pid}), or use another interface",
                    errno.EBUSY,
                )

    def _claim_signals(self) -> None:
        """Signals arrive as bytes in the loop, and never in the middle of something."""
        hears, tells = socket.socketpair()
        hears.setblocking(False)
        tells.setblocking(False)
        old_fd = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
        self._stack.callback(hears.close)
        self._stack.callback(tells.close)
        self._stack.callback(signal.set_wakeup_fd, old_fd)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            old = signal.signal(number, lambda *_: None)
            self._stack.callback(signal.signal, number, old)
        self._selector.register(hears, selectors.EVENT_READ, lambda: self._on_signal(hears))
        self._stack.callback(self._selector.close)

    def _prepare_instance(self) -> None:
        config, nic = self.config, self.nic
        self._directory = create_instance(
            config.name,
            nic.name,
            {
                "version": __version__,
                "state": "starting",
                "started": time.time(),
                "netns": os.stat("/proc/self/ns/net").st_ino,
                "interface": nic.name,
                "ifindex": nic.ifindex,
                "driver": nic.driver,
                "app": [str(config.program.path), *config.program.arguments],
                "placement": config.placement,
            },
        )
        self._stack.callback(self._directory.remove)
        self._stop_page = SharedPage("ixnet-stop")
        self._stack.callback(self._stop_page.close)
        self._stop = self._stop_page.words
        recorders = open_recorders(config, len(self._queues), self._stack)
        self._steering = self._stack.enter_context(self._open_steering())
        self._start_kicker()
        self._claims = Claims(self._steering, nic, [own.ip for own in config.own_addresses])
        self._stack.callback(self._claims.close)
        self._table = ClaimTable(self._make_claim, self._end_claim)
        ports = self._outgoing_ports(len(self._queues))
        shared = {core for core in self._cores if self._cores.count(core) > 1}
        plans = [self._plan_shard(i, ports) for i in range(len(self._queues))]
        for number, (core, mine) in enumerate(zip(self._cores, self._spread, strict=True)):
            spin_ns = config.choose_spin_ns(core in shared)
            plan = WorkerPlan(number, core, spin_ns, tuple(plans[i] for i in mine))
            worker = Worker(plan, config, nic, [recorders[i] for i in mine])
            self._workers.append(worker)
            self._stack.callback(worker.close)
        require_locked_memory(sum(shard.umem.nbytes for shard in self._shards()))

    def _plan_shard(self, i: int, ports: Sequence[tuple[int, int]]) -> ShardPlan:
        return ShardPlan(
            shard_id=i,
            shard_count=len(self._queues),
            queue=self._queues[i],
            frame_shift=self._frame_shift,
            busy_poll_us=self.config.busy_poll_us(self.nic),
            ports=ports[i],
            all_ports=(ports[0][0], ports[-1][1]),
            stats_path=shard_path(self._directory.path, i),
        )

    def _shards(self) -> list[Shard]:
        """Of all workers, by their numbers."""
        return [shard for worker in self._workers for shard in worker.shards]

    def _open_steering(self) -> Steering:
        if not self.config.timestamps:
            return self._express_steering() or Steering.open()
        steering, self._receive_stamps = open_stamping(self.nic, self.config.wanted_mode())
        return steering

    def _express_steering(self) -> Steering | None:
        config = self.config
        if config.placement != "inline" or express_why_not(self.nic, config.wanted_mode()):
            return None
        return open_express()

    def _follow_express(self) -> None:
        """Sending without skbs, where it can be had: not with a program that doesn't send."""
        if self._opened.mode is not Mode.NATIVE_COPY:
            return
        with contextlib.suppress(IxError):
            self._express = Express(self.nic, self._steering, self._shards()[0])
            self._stack.callback(self._express.close)
            self._selector.register(self._express, selectors.EVENT_READ, self._express.on_news)

    def _stamp_texts(self) -> list[str]:
        if not self.config.timestamps:
            return []
        sent = transmit_text(self.nic, self._opened)
        return [f"received: {self._receive_stamps}", f"sent: {sent}"]

    def _start_kicker(self) -> None:
        """The thread that makes guests' wakeups, where they don't exit for them."""
        if self.config.kick != "thread":
            return
        self._kicker = lib.ix_kicker_start(len(self._queues), -1)
        if self._kicker == ffi.NULL:
            raise IxError("no thread for the guests' wakeups", "use --kick exit", errno.EAGAIN)
        self._stack.callback(lib.ix_kicker_stop, self._kicker)

    def _set_kicker(self, worker: Worker, on: bool) -> None:
        if self._kicker is None or worker.guest is None:
            return
        gate = worker.guest.gate if on else ffi.NULL
        for i, shard in enumerate(worker.shards):
            fd = shard.socket.fileno() if on and shard.socket is not None else -1
            lib.ix_kicker_set(self._kicker, shard.plan.shard_id, gate, i, fd)

    def _outgoing_ports(self, shards: int) -> list[tuple[int, int]]:
        """Each shard's outgoing ports, (0, 0) where there are none. An own address has all ports to
        itself; on a shared one they must be none that the kernel would choose from."""
        config = self.config
        if config.own_addresses:
            ports = config.ports if config.ports != SHARED_PORTS else OWN_PORTS
            for own in config.own_addresses:
                ranges = self._claims.reserve_outgoing(Proto.TCP, shards, own.ip, *ports)
        else:
            try:
                ranges = self._claims.reserve_outgoing(Proto.TCP, shards, None, *config.ports)
            except IxError as error:
                if config.ports != SHARED_PORTS:
                    raise
                self._outgoing_text = f"off: {error}"
                return [(0, 0)] * shards
        self._outgoing_text = f"from ports {ranges[0].lo}-{ranges[-1].hi}"
        return [(part.lo, part.hi) for part in ranges]

    def _open_queues(self) -> None:
        configs = [shard.queue_config() for shard in self._shards()]
        self._opened: OpenedQueues = open_queues(
            self.nic, self._steering, configs, self.config.wanted_mode()
        )
        self._stack.callback(self._close_queues)
        own_ips = [own.ip for own in self.config.own_addresses]
        self._group_problems = self._stack.enter_context(joined(self.nic.ifindex, own_ips))
        for ip in own_ips:
            self._steering.add_own(ip)
        if not self.config.own_addresses:
            self._steering.sync_local(self.nic.ips)

    def _close_queues(self) -> None:
        if self._steering.ifindex is not None:
            self._steering.detach()
        for worker in self._workers:
            self._set_kicker(worker, False)
            worker.close_sockets()

    def _make_shards(self) -> None:
        sockets = iter(self._opened.sockets)
        for worker in self._workers:
            worker.make_shards([next(sockets) for _ in worker.shards])

    def _watch_kernel(self) -> None:
        self._board = NewsBoard(self._tell_all, self.config.own_addresses, self._kernel_changed)
        self._mirror = NeighbourMirror(self.nic.ifindex, self._board)
        self._stack.callback(self._mirror.close)
        if self.config.own_addresses:
            self._tell_all(self._board.snapshot())
        self._mirror.start()
        for shard in self._shards():
            shard.flush_before_fork()
        self._selector.register(self._mirror, selectors.EVENT_READ, self._on_kernel_news)

    def _open_control_socket(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stack.callback(listener.close)
        listener.setblocking(False)
        listener.bind(str(self._directory.path / CONTROL_SOCKET))
        listener.listen(8)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._on_question(listener))

    # ---- what it says of itself ----------------------------------------------------------------

    def _describe(self) -> None:
        report = StartReport(
            self.config, self.nic, self._opened, self._workers, self._cores, self._outgoing_text,
            self._stamp_texts(), express_text(self.nic, self._opened.mode, self._express),
        )  # fmt: skip
        self._warnings = [*report.notes(), *self.nic.warnings(), *self._group_problems]
        self._say(f"ixnet {__version__}, instance {self._directory.name}")
        for line in report.lines():
            self._say(line)
        for warning in self._warnings:
            self._say(report_line("note", warning))
        self._directory.update(**report.facts())

    def _announce_when_ready(self) -> None:
        if self._announced or any(w.state is State.STARTING for w in self._workers):
            return
        if not any(w.state is State.READY for w in self._workers):
            return
        self._announced = True
        self._directory.update(state="serving")
        n, queues = len(self._workers), len(self._queues)
        where = f"{queues} queues of {self.nic.name}" if queues > n else self.nic.name
        self._say(
            f"ready {self._directory.name}: {n} worker{'s' if n > 1 else ''} "
            f"on {where}, {self._opened.mode.value}, {self.config.placement}"
        )

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            self._complain(f"ixnet: {text}")

    # ---- the loop ------------------------------------------------------------------------------

    def _loop(self) -> None:
        while any(w.is_running or w.state is State.WAITING for w in self._workers):
            backlog = [w for w in self._workers if not w.flush()]
            for key, _ in self._selector.select(BACKLOG_TICK_S if backlog else TICK_S):
                key.data()
            for worker in self._workers:
                self._serve_shards(worker)
                self._listen_to_heart(worker)
            self._restart_due()
            self._enforce_stop()
            self._set_clocks()

    def _listen_to_heart(self, worker: Worker) -> None:
        news = worker.listen_to_heart()
        if news and self._stopping_since is None:
            self._complain(f"ixnet: {worker} {news}")

    def _set_clocks(self) -> None:
        """Ring 0 can't ask Linux for the time."""
        if monotonic_s() < self._clocks_due:
            return
        self._clocks_due = monotonic_s() + CLOCK_INTERVAL_S
        for worker in self._workers:
            if worker.guest is not None:
                worker.guest.set_clock()

    def _start(self, worker: Worker) -> None:
        worker.fork(self.config.program, self._stop_page.readable, lambda: self._let_go(worker))
        self._set_kicker(worker, True)
        assert worker.requests is not None
        self._selector.register(
            worker.requests, selectors.EVENT_READ, lambda: self._on_request(worker)
        )
        self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._on_death(worker))

    def _unregister(self, source: int | socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def _let_go(self, worker: Worker) -> None:
        """In a new worker: what only the control plane, or another worker, may hold."""
        self._steering.forget()
        self._claims.forget()
        self._stop_page.forget_in_child()
        for other in self._workers:
            if other is not worker:
                other.forget_in_child()

    def _tell_all(self, messages: Sequence[Any]) -> None:
        for worker in self._workers:
            worker.tell(messages)

    def _serve_shards(self, worker: Worker) -> None:
        for shard in worker.shards:
            self._serve_shard(shard)

    def _serve_shard(self, shard: Shard) -> None:
        for message in shard.take_requests():
            if message.type == lib.IX_CTL_NEIGH_MISS:
                self._mirror.resolve(message_ip(message))
            elif message.type == lib.IX_CTL_PARTIAL_CSUM:
                self._warn(PARTIAL_CSUM_WARNING)
            elif message.type == lib.IX_CTL_DUPLICATE:
                self._on_duplicate(message)
        if shard.recorder is not None and (problem := shard.recorder.problem()):
            self._warn(problem)

    def _on_duplicate(self, message: Any) -> None:
        """Another one has an own address: no reason to end for one who serves already."""
        ip, mac = message_ip(message), bytes(message.mac).hex(":")
        text = f"{mac} has the address {ip}, too"
        cure = f"give {ip} up there, or another --own-address here"
        if not message.value or self._stopping_since is not None:
            self._warn(f"{text} (cure: {cure})")
            return
        self._complain(f"ixnet: {text}: stopping\n  cure: {cure}")
        self._exit_status = 2
        self._stop_all()

    def _on_request(self, worker: Worker) -> None:
        if worker.requests is None:  # its process has ended in this very round
            return
        for _ in range(64):
            try:
                message = worker.requests.recv(4096)
            except (BlockingIOError, ConnectionError):
                return
            if not message:  # its process is ending; the pidfd tells when it has
                self._unregister(worker.requests)
                return
            try:
                reply = self._answer(worker, decode(message, len(worker.shards)))
            except BadRequest as error:
                self._complain(f"ixnet: worker {worker.plan.number} sent {error}: ignored")
                continue
            if reply is not None:
                with contextlib.suppress(OSError):
                    worker.requests.send(reply)

    def _answer(self, worker: Worker, request: Request) -> bytes | None:
        if request.op == lib.IX_REQUEST_READY:
            worker.state = State.READY
            if worker.guest is not None:
                worker.guest.note_maps(worker.pid)
            self._announce_when_ready()
            return None
        if request.op == lib.IX_REQUEST_NUDGE:
            self._serve_shards(worker)
            return None
        error: IxError | None = None
        shard = worker.shards[request.shard]
        number = shard.plan.shard_id
        try:
            if request.op == lib.IX_REQUEST_LEAVE:
                self._table.drop(number)
                worker.tell([control_message(lib.IX_CTL_ABORT_ALL)], [shard])
            elif request.endpoint is not None:
                act = (
                    self._table.claim if request.op == lib.IX_REQUEST_CLAIM else self._table.unclaim
                )
                act(number, request.endpoint)
                self._directory.update(claims=[str(e) for e in self._table.endpoints()])
        except IxError as refused:
            error = refused
        return encode_reply(request.sequence, error)

    def _make_claim(self, endpoint: Endpoint) -> None:
        claimed: list[IpAddress | None] = []
        try:
            for ip in self._claimed_ips(endpoint):
                self._check_address(ip)
                self._claims.claim(endpoint.proto, ip, endpoint.port, endpoint.family)
                claimed.append(ip)
        except BaseException:
            for ip in claimed:
                self._claims.unclaim(endpoint.proto, ip, endpoint.port, endpoint.family)
            raise

    def _end_claim(self, endpoint: Endpoint) -> None:
        for ip in self._claimed_ips(endpoint):
            self._claims.unclaim(endpoint.proto, ip, endpoint.port, endpoint.family)

    def _check_address(self, ip: IpAddress | None) -> None:
        """What comes to an address of another interface's would be taken here and dropped."""
        ips = sorted(str(address.ip) for address in self._board.addresses)
        if ip is None or self.config.own_addresses or str(ip) in ips:
            return
        raise IxError(
            f"{ip} is not an address of {self.nic.name}",
            f"listen on {' or '.join([*ips, 'every address'])}",
            errno.EADDRNOTAVAIL,
        )

    def _claimed_ips(self, endpoint: Endpoint) -> Sequence[IpAddress | None]:
        """Every address means those that the dataplane has, if it has some of its own."""
        own: list[IpAddress | None] = [address.ip for address in self.config.own_addresses]
        if not own or endpoint.ip in own:
            return [endpoint.ip]
        fitting = [ip for ip in own if ip and endpoint.family in (0, ip.version)]
        if endpoint.ip is None and fitting:
            return fitting
        raise IxError(
            f"{endpoint.ip or f'IPv{endpoint.family}'} is not of the dataplane's addresses",
            f"listen on {own[0]}, or on every address",
            errno.EADDRNOTAVAIL,
        )

    def _on_kernel_news(self) -> None:
        self._mirror.process()

    def _kernel_changed(self) -> None:
        """Addresses or the link's state changed."""
        link = self._board.link
        if link is not None and not link.present and self._stopping_since is None:
            self._complain(
                f"ixnet: {self.nic.name} was removed: stopping\n"
                "  cure: start again when the interface is back"
            )
            self._exit_status = 2
            self._stop_all()
        elif link is not None and link.present and not self.config.own_addresses:
            most = self.nic.largest_mtu(1 << self._frame_shift)
            if link.mtu > most:
                self._warn(
                    f"the MTU of {self.nic.name} is {link.mtu} now: frames above "
                    f"{most} bytes are dropped (cure: start again)"
                )
            with contextlib.suppress(IxError):
                addresses = [address.ip for address in self._board.addresses]
                self._steering.sync_local(addresses)
                for error in self._claims.follow(addresses):
                    self._warn(f"{error}: it gets nothing while the port is claimed here")

    def _on_question(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            asker, _ = listener.accept()
            with asker:
                asker.settimeout(0.2)
                asker.sendall(json.dumps(self._live_facts()).encode())

    def _live_facts(self) -> dict[str, Any]:
        """What only this process can see."""
        facts: dict[str, Any] = {
            "claims": [str(endpoint) for endpoint in self._table.endpoints()],
            "warnings": [
                *self._warnings,
                *(f"{w} {text}" for w in self._workers if (text := w.heartbeat.text())),
            ],
            "link": link_facts(self._board.link),
            "workers": [
                {
                    "id": w.plan.number,
                    "pid": w.pid,
                    "state": w.state.value,
                    "stalled_s": round(w.heartbeat.stalled_s, 1),
                    "guest": w.guest.facts() if w.guest else {},
                }
                for w in self._workers
            ],
            "shards": [shard.facts() for shard in self._shards()],
        }
        with contextlib.suppress(IxError):
            facts["verdicts"] = self._steering.verdicts()
        return facts

    # ---- deaths and the end ----------------------------------------------------------------------

    def _on_death(self, worker: Worker) -> None:
        self._unregister(worker.pidfd)
        self._on_request(worker)
        if worker.requests is not None:
            self._unregister(worker.requests)
        was_ready = worker.state is State.READY
        self._serve_shards(worker)
        status = worker.reap()
        for shard in worker.shards:
            if self.config.program.on_death is not None:
                self.config.program.on_death(shard.plan.shard_id)
            self._table.drop(shard.plan.shard_id)
        self._set_kicker(worker, False)
        # Its queues' frames go to the kernel from here on, right for all but claimed ones.
        worker.close_sockets()
        told = sum(shard.reset_peers() for shard in worker.shards)
        if status == 0:
            worker.state = State.ENDED
            self._announce_when_ready()
            return
        text = exit_text(status)
        if told:
            text += f", {told} connection{'s' if told > 1 else ''} reset"
        self._on_bad_end(worker, status, text, was_ready)

    def _on_bad_end(self, worker: Worker, status: int, text: str, was_ready: bool) -> None:
        number = worker.plan.number
        worker.state = State.FAILED
        for line in worker.guest.crash() if worker.guest is not None else ():
            self._complain(f"ixnet: worker {number}: {line}")
        if self._stopping_since is not None:
            return
        if not was_ready:
            self._complain(f"ixnet: worker {number} ended before it served ({text}): stopping")
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
            self._exit_status = self._exit_status or code
            self._stop_all()
            return
        if not self.config.restart_workers:
            self._complain(f"ixnet: {worker} ended: {text}; others go on")
            self._exit_status = 1
        elif worker.may_restart(monotonic_s()):
            self._complain(
                f"ixnet: {worker} ended: {text}; starting it again in {RESTART_DELAY_S:g} s"
            )
            worker.restart_at = monotonic_s() + RESTART_DELAY_S
            worker.state = State.WAITING
        else:
            self._complain(f"ixnet: {worker} keeps ending: {text}; given up")
            self._exit_status = 1

    def _restart_due(self) -> None:
        for worker in self._workers:
            if worker.state is State.WAITING and monotonic_s() >= (worker.restart_at or 0):
                try:
                    self._restart(worker)
                except IxError as error:
                    number = worker.plan.number
                    self._complain(f"ixnet: worker {number} can't be started: {error}")
                    worker.close_sockets()
                    worker.state = State.FAILED
                    self._exit_status = 1

    def _restart(self, worker: Worker) -> None:
        worker.renew(self._reopen)
        worker.tell(self._board.snapshot())
        for shard in worker.shards:
            shard.flush_before_fork()
            assert shard.socket is not None
            self._steering.set_socket(shard.plan.queue, shard.socket.fileno())
        if self._express is not None:
            self._express.follow()
        self._start(worker)
        self._complain(f"ixnet: worker {worker.plan.number} was started again")

    def _reopen(self, config: QueueConfig) -> QueueSocket:
        return QueueSocket.open(self.nic.ifindex, config, self._opened.mode is Mode.NATIVE_ZEROCOPY)

    def _on_signal(self, hears: socket.socket) -> None:
        numbers = hears.recv(64)
        for number in numbers:
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if self._stopping_since is None:
                    self._stop_all()
                else:
                    self._kill_all()

    def _stop_all(self) -> None:
        """Asks every worker to end; those that wait to be started again are not."""
        if self._stopping_since is not None:
            return
        self._stopping_since = monotonic_s()
        self._directory.update(state="stopping")
        self._stop[0] = 1
        for worker in self._workers:
            worker.kick()
            if worker.state is State.WAITING:
                worker.state = State.FAILED

    def _end_workers(self) -> None:
        """Whatever ended the loop, no worker outlives it."""
        for worker in self._workers:
            if worker.is_running:
                worker.kill()
                worker.reap()
                worker.state = State.ENDED

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _enforce_stop(self) -> None:
        since = self._stopping_since
        if since is not None and monotonic_s() - since > STOP_GRACE_S:
            for worker in self._workers:
                if worker.is_running:
                    self._complain(
                        f"ixnet: worker {worker.plan.number} does not end by itself: killed"
                    )
                    worker.kill()
            self._stopping_since = monotonic_s()


def run_instance(config: RunConfig, say: Say, complain: Say) -> int:
    """Runs an instance in this process to its end; see ControlPlane."""
    return ControlPlane(config, say, complain).run()


__all__ = ["ControlPlane", "InstanceDirectory", "run_instance"]
