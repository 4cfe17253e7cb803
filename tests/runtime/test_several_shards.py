"""Workers that run several shards: four queues on two workers, and on one.

ixs0 (queues 0-3) ------ veth ------ ixc0
worker 0: shards 0, 1                the kernel's own sockets
worker 1: shards 2, 3
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.runtime.conftest import Start, started
from tests.runtime.lab import PATIENCE_S, ROOT, Run, connect, receive, run_to_end, serves, until
from tests.runtime.test_faults import doctor_findings, stat_text
from tests.runtime.test_pcap import recorded

PYTHON, NATIVE = ROOT / "apps/echo.py", ROOT / "build/apps/echo.so"
PORT = 7007
ARGS = ("--port", str(PORT))
QUEUES = 4
# Connections until each of four queues has some: one has none of 128 once in 10^16 times.
MANY = 128
apps = pytest.mark.parametrize("app", [PYTHON, NATIVE], ids=["python", "native"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Four queues at each end."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"sv{os.getpid()}", queues=QUEUES)) as made:
        yield made


@pytest.fixture(scope="module")
def two(lab: Lab) -> Iterator[Lab]:
    """Two queues, for connections that are opened here: veth doesn't say how it spreads flows, so
    ports are tried until the answer comes to the right queue."""
    with Lab(LabConfig.named(f"sw{os.getpid()}", queues=2)) as made:
        yield made


def workers(n: int, *more: str) -> list[str]:
    """The options for four queues on n workers."""
    return ["--queues", str(QUEUES), "--workers", str(n), *more]


@contextlib.contextmanager
def connections(lab: Lab, n: int = MANY) -> Iterator[list[socket.socket]]:
    """So many, open."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(lab, PORT)) for _ in range(n)]


def echo(sock: socket.socket, message: bytes) -> None:
    """A message comes back."""
    sock.sendall(message)
    assert receive(sock, len(message)) == message


def by_shard(run: Run, name: str) -> list[int]:
    """A counter of each shard."""
    return [reading.values.get(name, 0) for reading in run.readings()]


@apps
@pytest.mark.parametrize("count", [1, 2])
def test_flows_on_each_queue_are_served_and_counted_by_its_shard(
    lab: Lab, start: Start, app: Path, count: int
) -> None:
    run = start(app, *ARGS, options=workers(count)).wait_ready()
    assert f"{count} worker" in run.said[-1] and "on 4 queues of" in run.said[-1]
    with connections(lab) as socks:
        for i, sock in enumerate(socks):
            echo(sock, bytes([i]) * 3000)
        opened = by_shard(run, "tcp_passive_opens")
        flows = by_shard(run, "flows")
    assert sum(opened) == MANY and all(opened), opened
    assert flows == opened
    shards = run.instance().facts["shards"]
    assert [shard["worker"] for shard in shards] == [i * count // QUEUES for i in range(QUEUES)]
    live = run.live()
    assert [worker["id"] for worker in live["workers"]] == list(range(count))
    assert [shard["id"] for shard in live["shards"]] == list(range(QUEUES))
    assert all("rx_dropped" in shard["socket"] for shard in live["shards"])
    assert run.end() == 0
    assert run.errors() == ""


@apps
def test_many_connections_with_streams_at_once(lab: Lab, start: Start, app: Path) -> None:
    run = start(app, *ARGS, options=workers(2)).wait_ready()
    with connections(lab, 500) as socks:
        for i, sock in enumerate(socks):
            sock.sendall(bytes([i % 251]) * 20_000)
        for i, sock in enumerate(socks):
            assert receive(sock, 20_000) == bytes([i % 251]) * 20_000
        assert sum(by_shard(run, "flows")) == 500
    until("their end", lambda: sum(by_shard(run, "flows")) == 0)
    assert run.end() == 0


def reset(socks: list[socket.socket], n: int) -> list[socket.socket]:
    """Those of the connections that were reset, once they are n."""
    look = select.poll()
    for sock in socks:
        look.register(sock, 0)

    def broken() -> set[int]:
        return {fd for fd, events in look.poll(0) if events & select.POLLERR}

    until(f"{n} resets", lambda: len(broken()) >= n)
    return [sock for sock in socks if sock.fileno() in broken()]


@apps
def test_worker_killed_resets_the_flows_of_all_its_shards_and_serves_them_again(
    lab: Lab, start: Start, app: Path
) -> None:
    run = start(app, *ARGS, options=workers(2)).wait_ready()
    with connections(lab) as socks:
        for sock in socks:
            echo(sock, b"before")
        flows = by_shard(run, "flows")
        assert all(flows), flows
        killed, other = run.worker_pids()
        os.kill(killed, signal.SIGKILL)
        gone = reset(socks, flows[0] + flows[1])
        assert len(gone) == flows[0] + flows[1]
        for sock in set(socks) - set(gone):
            echo(sock, b"after")
    until("the worker", lambda: run.states() == ["ready", "ready"])
    assert run.worker_pids()[0] != killed and run.worker_pids()[1] == other
    with connections(lab) as socks:
        for sock in socks:
            echo(sock, b"again")
        assert all(by_shard(run, "flows"))
    assert run.end() == 0
    told = run.errors()
    assert "worker 0 (queues 0, 1) ended: killed by SIGKILL" in told
    assert f"{len(gone)} connections reset" in told


def test_each_shard_records_its_own_traffic(lab: Lab, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "t.pcap"
    run = start(PYTHON, *ARGS, options=workers(2, "--pcap", str(path))).wait_ready()
    with connections(lab) as socks:
        ports = {sock.getsockname()[1] for sock in socks}
        for sock in socks:
            echo(sock, b"recorded")
        opened = by_shard(run, "tcp_passive_opens")
    assert run.end() == 0
    seen: set[int] = set()
    for i in range(QUEUES):
        found = {p["TCP"].sport for p in recorded(tmp_path / f"t.{i}.pcap") if "TCP" in p} & ports
        assert len(found) == opened[i] and not found & seen
        seen |= found
    assert seen == ports


CALLER = """
import sys
from ixnet.event import BEV_EVENT_CONNECTED, EV_READ, BufferEvent, EventBase
from ixnet.runtime import current_apps

base, up = EventBase(), []

def on_event(bev, events):
    if not events & BEV_EVENT_CONNECTED:
        print("lost", events, bev.error, flush=True)
        base.loopbreak()

def on_read(bev):
    up.append(bev)
    if len(up) == 12:
        print("up", *(app.ops.stats(app).flows for app in current_apps()), flush=True)
        base.loopexit()

for i in range(12):
    bev = BufferEvent(base)
    bev.setcb(on_read, None, on_event)
    bev.enable(EV_READ)
    bev.connect((sys.argv[1], int(sys.argv[2])))
base.dispatch()
"""


def test_outgoing_connections_are_on_the_workers_shards_in_turn(two: Lab, tmp_path: Path) -> None:
    app = tmp_path / "caller.py"
    app.write_text(CALLER)
    with in_netns(two.cfg.client_netns):
        listener = socket.create_server((two.facts.client.ip, 0), backlog=64)

    def serve() -> None:
        served = []
        with contextlib.suppress(OSError):
            while True:
                served.append(listener.accept()[0])
                served[-1].sendall(b"y")

    server = threading.Thread(target=serve)
    server.start()
    address = two.facts.client.ip, str(listener.getsockname()[1])
    options = ["--queues", "2", "--workers", "1"]
    try:
        status, said, err = run_to_end(two, app, *address, options=options, patience_s=90.0)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        listener.close()
    assert (status, said[-1]) == (0, "up 6 6"), (said, err)


PROXY = """
import sys
from ixnet.event import BEV_EVENT_CONNECTED, EV_READ, BufferEvent, EventBase, Listener

base = EventBase()

def forward(bev):
    bev.ctx.output.add_buffer(bev.input)

def end(bev, events):
    if not events & BEV_EVENT_CONNECTED:
        bev.ctx.close()
        bev.close()

def on_accept(listener, bev):
    out = BufferEvent(base)
    bev.ctx, out.ctx = out, bev
    for one in bev, out:
        one.setcb(forward, None, end)
        one.enable(EV_READ)
    out.connect((sys.argv[1], int(sys.argv[2])))

Listener(base, ("", int(sys.argv[3])), on_accept)
base.dispatch()
"""


def test_a_proxy_opens_its_connections_where_it_took_them(two: Lab, tmp_path: Path) -> None:
    app = tmp_path / "proxy.py"
    app.write_text(PROXY)
    with in_netns(two.cfg.client_netns):
        listener = socket.create_server((two.facts.client.ip, 0), backlog=64)
    args = two.facts.client.ip, str(listener.getsockname()[1]), str(PORT)
    with listener, started(two) as start, contextlib.ExitStack() as stack:
        run = start(app, *args, options=["--workers", "1"]).wait_ready()
        near = {i: stack.enter_context(connect(two, PORT, PATIENCE_S)) for i in range(8)}
        for i, sock in near.items():
            sock.sendall(bytes([i]) * 5000)
        listener.settimeout(PATIENCE_S)
        for _ in near:
            far = stack.enter_context(listener.accept()[0])
            far.settimeout(PATIENCE_S)
            message = receive(far, 5000)
            assert message == message[:1] * 5000
            far.sendall(message[:1])
            assert receive(near[message[0]], 1) == message[:1]
        passive = by_shard(run, "tcp_passive_opens")
        assert sum(passive) == 8 and by_shard(run, "tcp_active_opens") == passive
        # What came on one left on the other from where it lay.
        assert sum(by_shard(run, "tx_inplace")) and not sum(by_shard(run, "tx_copied"))
        assert run.end() == 0
        assert run.errors() == ""


def test_a_worker_sleeps_while_none_of_its_shards_has_work(lab: Lab, start: Start) -> None:
    run = start(NATIVE, *ARGS, options=workers(1)).wait_ready()
    assert serves(lab, PORT)

    def cycles_of_a_second() -> list[int]:
        before = by_shard(run, "cycles")
        time.sleep(1.0)
        return [now - old for now, old in zip(by_shard(run, "cycles"), before, strict=True)]

    # One that spins runs a hundred thousand; one that sleeps is woken ten times.
    until("sleep", lambda: max(cycles_of_a_second()) < 2000)
    assert serves(lab, PORT)
    assert run.end() == 0


SHARDS = """
import sys
from ixnet.shard import EV_KNOCK, EV_RECV, Shard, shards

mine = shards()
for shard in mine:
    shard.listen(int(sys.argv[1]))
going = True
while going:
    for shard in mine:
        batch = shard.poll(50_000_000)
        if batch is None:
            going = False
            break
        for kind, handle, cookie, frame, offset, length in batch.columns():
            if kind == EV_KNOCK:
                shard.calls.accept(handle)
            elif kind == EV_RECV and length:
                address = (frame << shard.frame_shift) + offset
                shard.arena.write(to := shard.arena.take(), b"%d" % shard.shard_id)
                shard.calls.send(handle, to, 1)
                shard.calls.recv_done(handle, address, length)
"""


def test_batches_of_several_shards_are_polled_in_turn(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    app = tmp_path / "shards.py"
    app.write_text(SHARDS)
    run = start(app, str(PORT), options=workers(2)).wait_ready()
    with connections(lab) as socks:
        said = []
        for sock in socks:
            sock.sendall(b"who?")
            said.append(int(receive(sock, 1)))
        assert [said.count(i) for i in range(QUEUES)] == by_shard(run, "tcp_passive_opens")
    assert run.end() == 0


def test_a_program_for_one_shard_is_told_that_it_has_several(lab: Lab, tmp_path: Path) -> None:
    app = tmp_path / "one.py"
    app.write_text("from ixnet.shard import Shard\nShard()\n")
    status, _, err = run_to_end(lab, app, options=workers(2))
    assert status == 2
    assert "this worker has 2 shards" in err and "cure: use ixnet.event" in err


@pytest.mark.parametrize("options", [("--workers", "5"), ("--queues", "2", "--workers", "3")])
def test_more_workers_than_queues_are_refused(lab: Lab, options: tuple[str, ...]) -> None:
    status, _, err = run_to_end(lab, PYTHON, options=options)
    assert status == 2
    assert "can't run" in err and "no more workers than queues" in err


def test_stat_and_doctor_say_which_worker_runs_which_shard(lab: Lab, start: Start) -> None:
    run = start(PYTHON, *ARGS, options=workers(2)).wait_ready()
    assert any("0 on core" in line and "queues 0, 1" in line for line in run.said), run.said
    shown = stat_text(run)
    for part in ("(q0, w0, c", "(q1, w0, c", "(q2, w1, c", "(q3, w1, c", "0 ready, 1 ready"):
        assert part in shown, shown
    found = [f["value"] for f in doctor_findings() if f["what"] == run.name]
    assert any("worker 0: shards 0, 1; worker 1: shards 2, 3" in text for text in found), found
    assert run.end() == 0
