"""What can go wrong with an instance, and what must be as before afterwards.

In each case: the operator is told in one message with the cure, nobody else's program or port is
touched, the host's interface is as it was, and an instance can be started at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from ixnet.control.xdp import Steering, XdpMode
from ixnet.control.xsk import QueueConfig, QueueSocket, Umem
from tests.runtime.conftest import Start, started
from tests.runtime.lab import (
    APPS,
    ECHO_PORT,
    PATIENCE_S,
    ROOT,
    Run,
    connect,
    echo_once,
    receive,
    run_to_end,
    serves,
    until,
)

ECHO = APPS / "echo.py"


def attached(lab: Lab) -> int:
    """The id of the XDP program on the server's interface; 0: none."""
    with in_netns(lab.cfg.server_netns):
        program = Nic.find(lab.cfg.server_if).program
    return program.prog_id if program else 0


def refused(lab: Lab, *options: str, app: Path = ECHO, **more: object) -> str:
    """Starts an instance that must refuse, and checks how; returns its standard error."""
    status, said, err = run_to_end(lab, app, str(ECHO_PORT), options=options, **more)
    assert status == 2, (status, said, err)
    assert not any(line.startswith("ready") for line in said)
    assert "Traceback" not in err
    assert "cure: " in err
    return err


@contextmanager
def kernel_service(lab: Lab, port: int) -> Iterator[socket.socket]:
    """A listener of the server's own kernel."""
    with in_netns(lab.cfg.server_netns):
        listener = socket.create_server((lab.facts.server.ip, port))
    with listener:
        yield listener


def kernel_answers(lab: Lab, listener: socket.socket) -> bool:
    """Whether a service of the kernel's stack at the same address is still reached."""
    port = listener.getsockname()[1]
    with connect(lab, port) as client, listener.accept()[0] as served:
        client.sendall(b"kernel")
        return receive(served, 6) == b"kernel"


# ---- refusing to start ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nobody() -> list[str]:
    """Words before a command that make it another user's."""
    words = ["setpriv", "--reuid", "65534", "--clear-groups"]
    tried = subprocess.run([*words, sys.executable, "-c", "import ixnet._core"], cwd=ROOT,
                           capture_output=True, check=False)  # fmt: skip
    if tried.returncode != 0:
        pytest.skip("another user can't read this tree")
    return words


def with_capabilities(*names: str) -> list[str]:
    """More such words: capabilities that survive the change of user."""
    wanted = ",".join(f"+{name}" for name in names)
    return ["--inh-caps", wanted, "--ambient-caps", wanted]


NEEDED = ("net_admin", "net_raw", "perfmon", "bpf")


def test_start_as_another_user_is_refused(lab: Lab, nobody: list[str]) -> None:
    err = refused(lab, prefix=nobody)
    assert "CAP_NET_ADMIN" in err and "run as root" in err
    assert attached(lab) == 0


def test_start_as_another_user_with_the_capabilities_serves(lab: Lab, nobody: list[str]) -> None:
    prefix = [*nobody, *with_capabilities(*NEEDED, "ipc_lock")]
    run = Run(lab, ECHO, [str(ECHO_PORT)], prefix=prefix)
    try:
        run.wait_ready()
        assert serves(lab)
        assert run.end() == 0
    finally:
        run.process.kill()


def test_start_with_too_little_locked_memory_names_the_limit(lab: Lab, nobody: list[str]) -> None:
    # The limit is lowered first: a user with capabilities can't raise it again.
    prefix = ["prlimit", "--memlock=1048576:1048576", *nobody, *with_capabilities(*NEEDED)]
    err = refused(lab, prefix=prefix)
    assert "1 MiB that may be locked" in err and "ulimit -l" in err


def test_start_without_a_capability_names_it(lab: Lab) -> None:
    prefix = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]
    err = refused(lab, prefix=prefix)
    assert "lacks CAP_NET_RAW" in err


def test_start_on_an_unknown_interface_names_those_there_are(lab: Lab) -> None:
    err = refused(lab, "-i", "nope0")
    assert "nope0" in err and lab.cfg.server_if in err


def test_start_without_application_is_refused(lab: Lab, tmp_path: Path) -> None:
    assert "no application" in refused(lab, app=tmp_path / "nothing.py")


def test_start_with_too_many_queues_is_refused(lab: Lab) -> None:
    assert "has 2 queues" in refused(lab, "--queues", "3")


def test_start_in_a_mode_the_device_lacks_is_refused(lab: Lab) -> None:
    assert "zero-copy" in refused(lab, "--mode", "zerocopy")


def test_start_without_the_huge_pages_asked_for_is_refused(lab: Lab) -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if free.exists() and int(free.read_text()) > 0:
        pytest.skip("this machine has free huge pages")
    assert "vm.nr_hugepages" in refused(lab, "--huge-pages", "yes")


def test_start_on_a_queue_in_use_is_refused(lab: Lab) -> None:
    with in_netns(lab.cfg.server_netns):
        umem = Umem.allocate(1 << 21, huge_pages=False)
        config = QueueConfig(queue=1, umem=umem.address, umem_bytes=umem.nbytes)
        other = QueueSocket.open(Nic.find(lab.cfg.server_if).ifindex, config, zerocopy=False)
    try:
        err = refused(lab)
        assert "queue 1" in err and "AF_XDP socket already" in err
        assert attached(lab) == 0
        # The queue that is free can be used.
        run = Run(lab, ECHO, [str(ECHO_PORT)], ["--queues", "1"]).wait_ready()
        assert run.end() == 0
    finally:
        other.close()
        umem.close()


def test_start_under_another_xdp_program_leaves_it_alone(lab: Lab) -> None:
    with in_netns(lab.cfg.server_netns), Steering.open() as other:
        other.attach(Nic.find(lab.cfg.server_if).ifindex, XdpMode.NATIVE)
        theirs = attached(lab)
        assert theirs == other.prog_id
        err = refused(lab)
        assert str(theirs) in err and "bpftool" in err
        assert attached(lab) == theirs


def test_start_beside_an_instance_on_the_interface_is_refused(lab: Lab, start: Start) -> None:
    first = start().wait_ready()
    err = refused(lab)
    assert first.name in err
    assert serves(lab)


def test_start_with_a_name_in_use_is_refused(lab: Lab, start: Start) -> None:
    first = start().wait_ready()
    with Lab(LabConfig.named(f"rx{os.getpid()}")) as other:
        err = refused(other, "--name", first.name)
    assert f"'{first.name}' is running" in err


def test_claim_of_a_kernel_listeners_port_is_refused(lab: Lab) -> None:
    with kernel_service(lab, ECHO_PORT) as listener:
        err = refused(lab)
        assert f"port {ECHO_PORT}" in err and "choose another port" in err
        assert attached(lab) == 0
        assert kernel_answers(lab, listener)


def test_claim_of_another_dataplanes_port_is_refused(lab: Lab, tmp_path: Path) -> None:
    app = tmp_path / "twice.py"
    app.write_text(
        "from ixnet.shard import Shard\n"
        "shard = Shard()\n"
        "shard.listen(7)\n"
        f"shard.listen(7, '{lab.facts.server.ip}')\n"
    )
    err = refused(lab, app=app)
    assert "port 7 is claimed by this dataplane" in err


def test_start_with_an_mtu_beyond_the_frame_is_refused(lab: Lab) -> None:
    with Lab(LabConfig.named(f"rm{os.getpid()}", mtu=9000)) as jumbo:
        err = refused(jumbo)
        assert "MTU" in err and "ip link set" in err
        assert attached(jumbo) == 0


def test_start_with_a_larger_mtu_takes_larger_frames(lab: Lab) -> None:
    with Lab(LabConfig.named(f"rm{os.getpid()}", mtu=3000)) as larger, started(larger) as begin:
        begin().wait_ready()
        message = bytes(range(256)) * 40
        assert echo_once(larger, message=message) == message


def test_application_that_fails_at_once_ends_the_instance(lab: Lab, tmp_path: Path) -> None:
    app = tmp_path / "broken.py"
    app.write_text("raise ValueError('as written')\n")
    status, said, err = run_to_end(lab, app)
    assert status == 1
    assert "as written" in err and "before it served" in err
    assert not any(line.startswith("ready") for line in said)


def test_application_without_ixnet_run_says_how_to_start_it(tmp_path: Path) -> None:
    app = tmp_path / "alone.py"
    app.write_text("from ixnet.shard import Shard\nShard()\n")
    run = subprocess.run([sys.executable, str(app)], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "ixnet run --interface IF alone.py" in run.stderr


def test_native_application_without_its_function_is_refused(lab: Lab) -> None:
    import ixnet._core

    err = refused(lab, app=Path(str(ixnet._core.__file__)))
    assert "ix_app_main" in err


# ---- while running -------------------------------------------------------------------------------


def test_worker_killed_others_serve_and_it_is_started_again(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    with kernel_service(lab, 7778) as listener:
        # Connections on both queues; the hash decides which is where.
        sockets = [connect(lab) for _ in range(16)]
        for sock in sockets:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
        victim = run.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        until("its end", lambda: run.is_over(victim))
        assert run.states()[1] == "ready"
        alive = 0
        for sock in sockets:
            try:
                sock.sendall(b"y")
                alive += receive(sock, 1) == b"y"
            except OSError:
                pass
        assert 0 < alive < len(sockets), "each queue had some of 16 flows, and one queue lives on"
        assert kernel_answers(lab, listener)
        until("its restart", lambda: run.states() == ["ready", "ready"])
        assert run.worker_pids()[0] != victim
        assert all(serves(lab) for _ in range(16))
        for sock in sockets:
            sock.close()
    assert run.end() == 0
    assert "killed by SIGKILL" in run.errors()


def test_worker_killed_without_restart_leaves_the_other(lab: Lab, start: Start) -> None:
    run = start(options=["--no-restart-workers"]).wait_ready()
    os.kill(run.worker_pids()[1], signal.SIGKILL)
    until("its end", lambda: run.states() == ["ready", "failed"])
    assert until("the other queue", lambda: serves(lab))
    assert run.end() == 1


def test_worker_killed_its_peers_are_reset_at_once(lab: Lab, start: Start) -> None:
    run = start(options=["--no-restart-workers"]).wait_ready()
    sockets = [connect(lab) for _ in range(48)]
    for sock in sockets:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
    flows = until("all flows", lambda: flows_by_shard(run, len(sockets)))
    os.kill(run.worker_pids()[0], signal.SIGKILL)
    until("its end", lambda: run.states() == ["failed", "ready"])
    # They are idle: nothing but the RST can tell them.
    gone = until("resets", lambda: have_news(sockets, flows[0]))
    for sock in sockets:
        if sock in gone:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            continue
        sock.sendall(b"y")
        assert receive(sock, 1) == b"y", "the other worker's"
    reset = len(gone)
    assert 0 < reset < len(sockets)
    for sock in sockets:
        sock.close()
    assert run.end() == 1
    assert f"killed by SIGKILL, {reset} connections reset" in run.errors()


def flows_by_shard(run: Run, count: int) -> list[int]:
    """How many each shard has; [] unless all are counted."""
    flows = [reading.values["flows"] for reading in run.readings()]
    return flows if sum(flows) == count else []


def have_news(sockets: list[socket.socket], count: int) -> list[socket.socket]:
    """Those that can be read from; [] while they are fewer than that."""
    found = select.select(sockets, [], [], 0)[0]
    return found if len(found) >= count else []


def test_worker_that_keeps_dying_is_given_up(lab: Lab, start: Start, tmp_path: Path) -> None:
    app = tmp_path / "dies.py"
    app.write_text(
        "import os, signal\n"
        "from ixnet.shard import Shard\n"
        "shard = Shard()\n"
        "shard.poll()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = start(app, options=["--queues", "1"])
    assert run.wait() == 1
    err = run.errors()
    assert err.count("starting it again") == 5
    assert "given up" in err
    assert attached(lab) == 0


@pytest.mark.parametrize("how", ["pass", "time.sleep(0.1)"], ids=["spins", "sleeps"])
def test_worker_that_does_not_come_back_is_told_of_and_the_other_goes_on(
    lab: Lab, start: Start, tmp_path: Path, how: str
) -> None:
    app = tmp_path / "holds.py"
    app.write_text(
        "import sys, os, time\n"
        "from ixnet.event import EV_READ, EventBase, Listener\n"
        "base = EventBase()\n"
        "def released(): return os.path.exists(sys.argv[2])\n"
        "def on_read(conn):\n"
        "    data = conn.read()\n"
        f"    while data == b'hold' and not released(): {how}\n"
        "    conn.write(data)\n"
        "def on_accept(listener, conn):\n"
        "    conn.setcb(on_read)\n"
        "    conn.enable(EV_READ)\n"
        "listener = Listener(base, ('', int(sys.argv[1])), on_accept)\n"
        "base.dispatch()\n"
    )
    run = start(app, str(ECHO_PORT), str(tmp_path / "release")).wait_ready()
    with connect(lab) as holds:
        holds.sendall(b"hold")
        worker = until("the stall", lambda: [w for w in run.live()["workers"] if w["stalled_s"]])
        assert len(worker) == 1
        assert "has run no cycle for" in run.live()["warnings"][-1]
        until("the other queue", lambda: answers_within(lab, 3))
        number = worker[0]["id"]
        assert f"{number} ready, no cycle for" in stat_text(run)
        findings = [f for f in doctor_findings() if f["what"] == run.name and f["level"] == "warn"]
        assert f"kill {worker[0]['pid']} starts it again" in findings[-1]["cure"]
        (tmp_path / "release").touch()
        holds.settimeout(PATIENCE_S)
        assert receive(holds, 4) == b"hold"
        until("its return", lambda: not any(w["stalled_s"] for w in run.live()["workers"]))
        assert not any("no cycle" in warning for warning in run.live()["warnings"])
    assert run.end() == 0
    told = run.errors().splitlines()
    assert len(told) == 2 and all(f"worker {number} (queue" in line for line in told), told
    assert "its application does not come back to its loop" in told[0]
    assert "runs cycles again, after" in told[1]


def answers_within(lab: Lab, seconds: float) -> bool:
    """As serves(), and soon: where one queue of two stands still many must be tried."""
    try:
        with connect(lab, timeout_s=seconds) as sock:
            sock.sendall(b"hello")
            return receive(sock, 5) == b"hello"
    except OSError:
        return False


def stat_text(run: Run) -> str:
    """What `ixnet stat` shows of it."""
    words = [sys.executable, "-m", "ixnet", "stat", "--name", run.name]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    return " ".join(done.stdout.split())


def doctor_findings() -> list[dict[str, str]]:
    """What `ixnet doctor` finds, whatever it thinks of the machine."""
    words = [sys.executable, "-m", "ixnet", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    return list(json.loads(done.stdout))


def test_control_plane_killed_in_traffic_leaves_nothing(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    workers, control = run.worker_pids(), run.control_pid()
    directory = run.instance().directory
    with kernel_service(lab, 7778) as listener, connect(lab) as sock:
        sock.settimeout(None)
        halt = threading.Event()

        def flood() -> None:
            try:
                while not halt.is_set():
                    sock.sendall(bytes(4096))
                    receive(sock, 4096)
            except OSError:
                pass

        traffic = threading.Thread(target=flood)
        traffic.start()
        time.sleep(0.2)
        os.kill(control, signal.SIGKILL)
        until("the workers' end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        until("the program's end", lambda: attached(lab) == 0)
        assert kernel_answers(lab, listener)
        # At once, on the same queues and the same port.
        again = start().wait_ready()
        until("the new instance", lambda: serves(lab))
        halt.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        traffic.join()
        assert not directory.exists(), "the new instance removes what the killed one left"
        assert again.end() == 0
    assert attached(lab) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_ends_in_order(lab: Lab, start: Start, number: int) -> None:
    run = start().wait_ready()
    directory = run.instance().directory
    with connect(lab) as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        assert run.end(number) == 0
        # The peer is told: a reset, not silence.
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert run.errors() == ""
    assert attached(lab) == 0
    assert not directory.exists()


def test_stop_of_an_application_that_does_not_listen_kills_it(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    app = tmp_path / "deaf.py"
    app.write_text("import time\nfrom ixnet.shard import Shard\nShard().poll()\ntime.sleep(600)\n")
    run = start(app).wait_ready()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert run.process.poll() is None
    assert run.end() == 0  # the second signal does not wait
    assert attached(lab) == 0


def test_link_down_and_up_again_goes_on(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    with IPRoute(netns=lab.cfg.client_netns, flags=0) as ipr, connect(lab) as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        index = ipr.link_lookup(ifname=lab.cfg.client_if)[0]
        ipr.link("set", index=index, state="down")
        until("loss of carrier", lambda: not run.live()["link"]["carrier"])
        ipr.link("set", index=index, state="up")
        until("carrier", lambda: run.live()["link"]["carrier"])
        assert run.states() == ["ready", "ready"]
        until("service", lambda: serves(lab))
        # The connection of before, too.
        sock.sendall(b"y")
        assert receive(sock, 1) == b"y"


def test_own_end_down_and_up_again_goes_on(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    assert serves(lab)
    with IPRoute(netns=lab.cfg.server_netns, flags=0) as ipr:
        index = ipr.link_lookup(ifname=lab.cfg.server_if)[0]
        ipr.link("set", index=index, state="down")
        until("the news", lambda: not run.live()["link"]["up"])
        ipr.link("set", index=index, state="up")
        until("carrier", lambda: run.live()["link"]["carrier"])
    assert run.states() == ["ready", "ready"]
    until("service", lambda: serves(lab))


def test_interface_removed_ends_with_a_clear_message() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rd{os.getpid()}")) as own, started(own) as begin:
        run = begin().wait_ready()
        directory = run.instance().directory
        with IPRoute(netns=own.cfg.server_netns, flags=0) as ipr, connect(own) as sock:
            sock.sendall(b"x")
            assert receive(sock, 1) == b"x"
            ipr.link("del", index=ipr.link_lookup(ifname=own.cfg.server_if)[0])
            assert run.wait() == 2
        err = run.errors()
        assert f"{own.cfg.server_if} was removed" in err and "cure: " in err
        assert "Traceback" not in err and "unexpected" not in err
        assert not directory.exists()


def test_address_added_while_running_is_served(lab: Lab, start: Start) -> None:
    start().wait_ready()
    with IPRoute(netns=lab.cfg.server_netns, flags=0) as ipr:
        index = ipr.link_lookup(ifname=lab.cfg.server_if)[0]
        ipr.addr("add", index=index, address="10.77.0.9", prefixlen=24)
        try:

            def answers() -> bool:
                try:
                    with in_netns(lab.cfg.client_netns):
                        sock = socket.create_connection(("10.77.0.9", ECHO_PORT), timeout=1)
                    with sock:
                        sock.sendall(b"x")
                        return receive(sock, 1) == b"x"
                except OSError:
                    return False

            until("service on the new address", answers)
        finally:
            ipr.addr("del", index=index, address="10.77.0.9", prefixlen=24)


def test_partial_checksums_are_counted_and_named(start: Start) -> None:
    from pyroute2.ethtool.ioctl import IoctlEthtool

    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rp{os.getpid()}")) as own, started(own) as begin:
        run = begin().wait_ready()
        assert serves(own)
        with in_netns(own.cfg.client_netns):
            tool = IoctlEthtool(own.cfg.client_if)
            features = tool.get_features()
            features["tx-checksum-ip-generic"] = True
            tool.set_features(features)
            tool.close()
        with pytest.raises(OSError):
            connect(own, timeout_s=1.5)
        until("the counter", lambda: run.counters()["drop_partial_csum"] > 0)
        until("the warning", lambda: any("ethtool -K" in w for w in run.live()["warnings"]))
        doctor = subprocess.run(
            [sys.executable, "-m", "ixnet", "doctor", "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "unfinished checksums" in doctor.stdout
        assert run.end() == 0
        assert "ethtool -K" in run.errors()


def test_flow_table_full_drops_and_counts_and_recovers(lab: Lab, start: Start) -> None:
    run = start(options=["--max-flows", "64"]).wait_ready()
    sockets: list[socket.socket] = []
    with in_netns(lab.cfg.client_netns):
        while run.counters()["drop_tcp_flows"] == 0:
            sockets.append(late := socket.socket())
            late.setblocking(False)
            late.connect_ex((lab.facts.server.ip, ECHO_PORT))
            until(
                "a connection, or a drop",
                lambda late=late: (
                    late in select.select([], [late], [], 0)[1]
                    or run.counters()["drop_tcp_flows"] > 0
                ),
            )
    sockets.pop().close()
    assert 64 <= len(sockets) <= 128, "each of two shards holds 64"
    for sock in sockets:  # those that are there are none the worse for it
        sock.settimeout(PATIENCE_S)
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        sock.close()
    until("service again", lambda: serves(lab))


def test_application_that_keeps_every_frame_holds_only_itself_up(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    app = tmp_path / "hoards.py"
    app.write_text(
        "from ixnet.shard import EV_KNOCK, EV_RECV, Shard\n"
        "shard = Shard()\n"
        f"shard.listen({ECHO_PORT})\n"
        "kept = []\n"
        "while (batch := shard.poll(10_000_000)) is not None:\n"
        "    for kind, handle, _, frame, offset, length in batch.columns():\n"
        "        if kind == EV_KNOCK:\n"
        "            shard.calls.accept(handle)\n"
        "        elif kind == EV_RECV:\n"
        "            kept.append((handle, (frame << shard.frame_shift) + offset, length))\n"
    )
    run = start(app, options=["--frames", "1024"]).wait_ready()
    sockets = [connect(lab) for _ in range(32)]
    for sock in sockets:
        sock.setblocking(False)

    def push() -> bool:
        for sock in sockets:
            with contextlib.suppress(BlockingIOError):
                sock.send(b"x" * 100)
        counters = run.counters()
        return counters["frames_app"] > 500 and counters["drop_tcp_lend_limit"] > 20

    # Small segments cost a frame each, so that the pool ends before the window does.
    until("frames to be used up", push)
    assert run.states() == ["ready", "ready"]
    # Frames for ACKs are held back: the connections stay alive, and new ones are made.
    with connect(lab):
        pass
    for sock in sockets:
        sock.close()
    assert run.end() == 0


def test_restart_many_times_at_once(lab: Lab) -> None:
    for _ in range(5):
        run = Run(lab, ECHO, [str(ECHO_PORT)])
        try:
            run.wait_ready()
            assert serves(lab)
            assert run.end() == 0
        finally:
            run.process.kill()
    assert attached(lab) == 0
