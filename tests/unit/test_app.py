"""native/app.c: the loop's turn, its sleep, and its talk with the control plane; sanitized.

A real shard on a simulated wire that leads nowhere; the control plane is the other end of a
socketpair.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.san import ffi, lib
from tests.unit.simwire import Wire, aligned

REQUEST = ffi.sizeof("struct ix_request")
REPLY = ffi.sizeof("struct ix_reply")


class Worker:
    """A shard, its `struct ix_app`, and the control plane's ends."""

    def __init__(self) -> None:
        self.wire = Wire(frames=2048, ring=1024, wire_frames=64)
        cfg = ffi.new("struct ix_config *")
        cfg.pool_frames, cfg.arena_frames, cfg.max_flows = 1024, 64, 64
        cfg.now_ns = lib.ix_process_now_ns()
        nbytes = lib.ix_shard_bytes(cfg)
        self.memory = aligned(nbytes + 4096)
        base = self.memory + -int(ffi.cast("uintptr_t", self.memory)) % 4096
        link = ffi.addressof(self.wire.w.end[0], "link")
        self.shard = lib.ix_shard_create(base, nbytes, cfg, link, ffi.NULL)
        assert self.shard != ffi.NULL
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.link_read, self.link_write = os.pipe()
        self.stop = ffi.new("uint32_t *")
        self.app = app = ffi.new("struct ix_app *")
        app.shard, app.io = self.shard, lib.ix_shard_io(self.shard)
        app.ops = lib.ix_app_inline_ops()
        app.request_fd, app.kick_fd, app.link_fd = theirs.fileno(), self.kick, self.link_read
        app.stop = self.stop
        app.stats = lib.ix_shard_stats(self.shard)
        self.siblings: Any = None
        self.why = ffi.new("char[]", 300)

    def poll(self, max_wait_ns: int = 0) -> int:
        return int(lib.ix_app_poll(self.app, max_wait_ns))

    def listen(self, ip: str | None, port: int) -> tuple[int, str]:
        address = ffi.NULL if ip is None else ip.encode()
        result = lib.ix_app_listen(self.app, address, port, 1, 0, self.why, 300)
        return result, ffi.string(self.why).decode()

    def said(self) -> list[int]:
        """The operations of all requests that wait."""
        found = []
        while True:
            try:
                message = self.control.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.append(ffi.from_buffer("struct ix_request *", message).op)

    @contextmanager
    def control_plane(self, answer: Callable[[Any], list[Any]]) -> Iterator[list[Any]]:
        """Answers requests in a thread; gives copies of what was asked."""
        asked: list[Any] = []

        def serve() -> None:
            while message := self.control.recv(4096):
                request = ffi.new("struct ix_request *")
                ffi.memmove(request, message, REQUEST)
                asked.append(request)
                for reply in answer(request):
                    self.control.send(bytes(ffi.buffer(reply)))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            self.control.shutdown(socket.SHUT_RD)
            thread.join()

    def close(self) -> None:
        self.control.close()
        self.theirs.close()
        for fd in (self.kick, self.link_read, self.link_write):
            os.close(fd)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def reply(request: Any, error: int = 0, text: str = "") -> Any:
    made = ffi.new("struct ix_reply *")
    made.sequence, made.error, made.text = request.sequence, error, text.encode()
    return made


# ---- the loop --------------------------------------------------------------------------------


def test_first_poll_says_ready_once(worker: Worker) -> None:
    assert worker.poll() == 0
    assert worker.poll() == 0
    assert worker.said() == [lib.IX_REQUEST_READY]


def test_stop_flag_ends_the_loop_before_a_cycle(worker: Worker) -> None:
    worker.poll()
    cycles = worker.app.stats.batch_hist[0]
    worker.stop[0] = 1
    assert worker.poll() == -1
    assert worker.app.stats.batch_hist[0] == cycles


def test_idle_without_leave_to_wait_returns_at_once(worker: Worker) -> None:
    begin = time.monotonic()
    for _ in range(100):
        worker.poll(0)
    assert time.monotonic() - begin < 5, "100 sleeps would have taken 10 s"


def test_idle_worker_that_busy_polls_never_sleeps(worker: Worker) -> None:
    worker.app.spin_ns = -1
    begin = time.monotonic()
    for _ in range(100):
        worker.poll(10_000_000_000)
    assert time.monotonic() - begin < 5, "100 sleeps would have taken 10 s"


def test_idle_worker_sleeps_as_long_as_it_may(worker: Worker) -> None:
    worker.poll()
    begin = time.monotonic()
    assert worker.poll(30_000_000) == 0
    assert time.monotonic() - begin >= 0.03


def test_idle_worker_spins_before_it_sleeps(worker: Worker) -> None:
    worker.app.spin_ns = 100_000_000_000
    begin = time.monotonic()
    for _ in range(100):
        worker.poll(1_000_000_000)
    assert time.monotonic() - begin < 5, "100 sleeps would have taken 10 s"
    worker.app.idle_since_ns = 1
    begin = time.monotonic()
    worker.poll(20_000_000)
    assert time.monotonic() - begin >= 0.02


TRIES = 20  # on a busy machine anything takes long now and then


def is_quick(act: Callable[[], object]) -> bool:
    """Whether it takes less than a sleep, which is 100 ms."""
    for _ in range(TRIES):
        begin = time.monotonic()
        act()
        if time.monotonic() - begin < 0.08:
            return True
    return False


def wakes(worker: Worker, act: Callable[[], object], undo: Callable[[], object]) -> bool:
    """Whether a sleep of 100 ms ends early when `act` is done 20 ms into it. undo: for when it was
    done too late."""
    for _ in range(TRIES):
        worker.poll()
        timer = threading.Timer(0.02, act)
        begin = time.monotonic()
        timer.start()
        worker.poll(10_000_000_000)
        took = time.monotonic() - begin
        timer.join()
        if took < 0.08:
            return True
        undo()
    return False


def test_sleeper_wakes_for_the_link(worker: Worker) -> None:
    assert wakes(
        worker,
        lambda: os.write(worker.link_write, b"x"),
        lambda: os.read(worker.link_read, 1),
    )


def test_sleeper_wakes_for_a_kick_and_takes_it(worker: Worker) -> None:
    assert wakes(worker, lambda: os.eventfd_write(worker.kick, 1), worker.poll)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(worker.kick)


def test_sleeper_that_is_stopped_ends(worker: Worker) -> None:
    def stop() -> None:
        worker.stop[0] = 1
        os.eventfd_write(worker.kick, 1)

    worker.poll()
    timer = threading.Timer(0.02, stop)
    timer.start()
    assert worker.poll(10_000_000_000) == -1
    timer.join()


def test_sleep_ends_with_the_shards_deadline(worker: Worker) -> None:
    def sleep_with_a_timer() -> None:
        call = worker.app.io.calls
        ffi.memmove(call, bytes(64), 64)
        call.op, call.value = lib.IX_CALL_TIMER_SET, 20_000_000
        worker.app.io.n_calls = 1
        events = worker.poll()
        while not events:
            events = worker.poll(10_000_000_000)
        assert events == 1 and worker.app.io.events[0].type == lib.IX_EV_TIMER

    assert is_quick(sleep_with_a_timer)


def test_call_run_is_not_idleness(worker: Worker) -> None:
    worker.poll()
    assert worker.app.idle_since_ns > 0
    worker.app.io.calls[0].op = lib.IX_CALL_NONE
    worker.app.io.n_calls = 1
    worker.poll()
    assert worker.app.idle_since_ns == 0


def test_neighbour_missed_nudges_the_control_plane(worker: Worker) -> None:
    worker.poll()
    worker.said()
    for kind in (lib.IX_CTL_ADDR_ADD, lib.IX_CTL_ROUTE_SET):
        message = ffi.new("struct ix_ctl_msg *")
        message.type, message.family, message.prefix = kind, 4, 24
        message.ip = bytes([10, 0, 0, 1]) + bytes(12)
        assert lib.ix_ctl_send(worker.shard, message) == 0
    call = worker.app.io.calls
    ffi.memmove(call, bytes(64), 64)
    call.op, call.family, call.peer_port = lib.IX_CALL_CONNECT, 4, 80
    call.local_port, call.peer = 1234, bytes([10, 0, 0, 2]) + bytes(12)
    worker.poll()
    worker.app.io.n_calls = 1
    worker.poll()
    assert call.result == 0
    end = time.monotonic() + 60
    said: list[int] = []
    while lib.IX_REQUEST_NUDGE not in said and time.monotonic() < end:
        worker.poll(1_000_000)
        said += worker.said()
    assert lib.IX_REQUEST_NUDGE in said
    request = ffi.new("struct ix_ctl_msg *")
    assert lib.ix_ctl_recv(worker.shard, request) == 1
    assert request.type == lib.IX_CTL_NEIGH_MISS


# ---- claims ----------------------------------------------------------------------------------


def test_listen_claims_first(worker: Worker) -> None:
    with worker.control_plane(lambda request: [reply(request)]) as asked:
        assert worker.listen("10.0.0.1", 80) == (0, "")
    (request,) = asked
    assert (request.op, request.proto, request.port) == (lib.IX_REQUEST_CLAIM, 6, 80)
    assert bytes(request.ip)[:4] == bytes([10, 0, 0, 1])
    assert request.magic == lib.IX_REQUEST_MAGIC


def test_listen_that_is_refused_gives_the_reason(worker: Worker) -> None:
    answer = [(-errno.EADDRINUSE, "taken (cure: another)")]
    with worker.control_plane(lambda request: [reply(request, *answer[0])]):
        assert worker.listen(None, 80) == answer[0]
    # The shard does not listen: it takes the port without complaint.
    worker.app.request_fd = -1
    assert worker.listen(None, 80)[0] == 0


def test_listen_twice_in_a_shard_gives_the_second_claim_back(worker: Worker) -> None:
    with worker.control_plane(lambda request: [reply(request)]) as asked:
        assert worker.listen(None, 80)[0] == 0
        result, why = worker.listen(None, 80)
    assert result == -errno.EADDRINUSE and "already" in why
    ops = [request.op for request in asked]
    assert ops == [lib.IX_REQUEST_CLAIM, lib.IX_REQUEST_CLAIM, lib.IX_REQUEST_UNCLAIM]


def test_listen_option_reaches_the_listener(worker: Worker) -> None:
    option = lib.IX_OPT_CONGESTION
    with worker.control_plane(lambda request: [reply(request)]):
        assert worker.listen(None, 80)[0] == 0
    for port, value, wanted in ((80, lib.IX_CC_DCTCP, 0), (80, 9, -errno.EINVAL)):
        assert lib.ix_app_listen_option(worker.app, ffi.NULL, port, option, value) == wanted
    assert lib.ix_app_listen_option(worker.app, ffi.NULL, 81, option, 1) == -errno.ENOENT
    assert lib.ix_app_listen_option(worker.app, b"x", 80, option, 1) == -errno.EINVAL


def test_unlisten_unclaims(worker: Worker) -> None:
    with worker.control_plane(lambda request: [reply(request)]) as asked:
        assert worker.listen(None, 80)[0] == 0
        assert lib.ix_app_unlisten(worker.app, ffi.NULL, 80) == 0
        assert lib.ix_app_unlisten(worker.app, ffi.NULL, 80) == -errno.ENOENT
    assert [request.op for request in asked] == [lib.IX_REQUEST_CLAIM, lib.IX_REQUEST_UNCLAIM]


def test_udp_endpoint_claims_and_unclaims(worker: Worker) -> None:
    handle = ffi.new("uint64_t *")
    with worker.control_plane(lambda request: [reply(request)]) as asked:
        result = lib.ix_app_udp_bind(worker.app, ffi.NULL, 53, 1, handle, worker.why, 300)
        assert result == 0 and handle[0]
        assert lib.ix_app_udp_unbind(worker.app, handle[0], ffi.NULL, 53) == 0
    assert [(r.op, r.proto) for r in asked] == [(1, 17), (2, 17)]


def test_answer_to_an_earlier_request_is_skipped(worker: Worker) -> None:
    def answer(request: Any) -> list[Any]:
        late = reply(request, -errno.EPERM, "late")
        late.sequence -= 1
        return [late, reply(request)]

    with worker.control_plane(answer):
        assert worker.listen(None, 80) == (0, "")


@pytest.mark.parametrize(
    ("ip", "family", "claimed"),
    [
        (None, 0, b""),
        ("", 0, b""),
        ("::", 0, b""),
        ("v6only", 6, b""),
        ("0.0.0.0", 4, b""),
        ("10.0.0.1", 4, bytes([10, 0, 0, 1])),
        ("::ffff:10.0.0.1", 4, bytes([10, 0, 0, 1])),
        ("2001:db8::1", 6, bytes.fromhex("20010db8") + bytes(11) + b"\1"),
    ],
)
def test_listen_claims_what_the_text_names(
    worker: Worker, ip: str | None, family: int, claimed: bytes
) -> None:
    asked = []

    def answer(request: Any) -> list[bytes]:
        asked.append((request.family, bytes(request.ip)))
        return [reply(request)]

    with worker.control_plane(answer):
        assert worker.listen(ip, 80) == (0, "")
    assert asked == [(family, claimed.ljust(16, b"\0"))]


@pytest.mark.parametrize(
    ("ip", "port", "error", "part"),
    [
        ("::1::", 80, errno.EINVAL, "not an address"),
        ("localhost", 80, errno.EINVAL, "'localhost' is not an address"),
        ("1.2.3", 80, errno.EINVAL, "not an address"),
        ("x" * 500, 80, errno.EINVAL, "not an address"),
        ("10.0.0.1", 0, errno.EINVAL, "port 0"),
    ],
)
def test_listen_on_nonsense_asks_nobody(
    worker: Worker, ip: str, port: int, error: int, part: str
) -> None:
    result, why = worker.listen(ip, port)
    assert result == -error and part in why
    assert worker.said() == []


def test_control_plane_that_is_gone_is_an_error(worker: Worker) -> None:
    worker.control.close()
    result, why = worker.listen(None, 80)
    assert result < 0 and "gone" in why
    worker.control = socket.socket()


def test_reason_is_cut_to_the_room_there_is(worker: Worker) -> None:
    why = ffi.new("char[]", b"0123456789")
    result = lib.ix_app_listen(worker.app, b"localhost", 80, 0, 0, why, 8)
    assert result == -errno.EINVAL
    assert len(ffi.string(why)) == 7


def test_leave_aborts_and_ends_early_when_nothing_is_left(worker: Worker) -> None:
    def answer(request: Any) -> list[Any]:
        message = ffi.new("struct ix_ctl_msg *")
        message.type = lib.IX_CTL_ABORT_ALL
        lib.ix_ctl_send(worker.shard, message)
        return [reply(request)]

    with worker.control_plane(answer) as asked:
        begin = time.monotonic()
        lib.ix_app_leave(worker.app, 60_000_000_000)
        assert time.monotonic() - begin < 30
    assert [request.op for request in asked] == [lib.IX_REQUEST_LEAVE]
