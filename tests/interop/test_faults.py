"""Faults in the middle of streams. What concerns the instance alone (start, claims, signals) is
tested in tests/runtime; here are the peers of what breaks.

the kernel's client, streams on both queues ---- a link that goes, a worker that dies, an end
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import (
    MIB,
    PATIENCE_S,
    Flow,
    Service,
    answers,
    connect,
    digest,
    echo_streams,
    iproute,
    lab_config,
    payload,
    ping,
    pump,
    receive,
    until,
)
from tests.interop.test_close import reset_on_close


@pytest.fixture
def lab() -> Iterator[Lab]:
    """These tests leave nothing as it was: a lab each."""
    with Lab(lab_config()) as made:
        yield made


def run_a_while(flows: list[Flow], until_each_got: int) -> None:
    """Pumps until every flow has received so much; none of them comes to its end."""
    with selectors.DefaultSelector() as selector:
        for flow in flows:
            selector.register(flow.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, flow)
        while any(len(flow.got) < until_each_got for flow in flows):
            ready = selector.select(PATIENCE_S)
            assert ready, "all stand still"
            for key, mask in ready:
                flow = key.data
                try:
                    if mask & selectors.EVENT_READ:
                        flow.read()
                    if mask & selectors.EVENT_WRITE and len(flow.got) < until_each_got:
                        flow.write()
                except BlockingIOError:
                    continue


def echo_flows(lab: Lab, count: int, n: int) -> list[Flow]:
    return [Flow(connect(lab, "echo"), payload(n, i), i) for i in range(count)]


@pytest.mark.parametrize("end", ["client", "server"])
def test_link_down_and_up_in_mid_stream(lab: Lab, tmp_path: Path, end: str) -> None:
    facts = lab.facts.client if end == "client" else lab.facts.server
    with Service(lab, tmp_path) as service:
        flows = echo_flows(lab, 8, 2 * MIB)
        run_a_while(flows, MIB // 4)
        with iproute(facts.netns) as ipr:
            ipr.link("set", index=facts.index, state="down")
            until("the news", lambda: not service.live()["link"]["carrier"])
            ipr.link("set", index=facts.index, state="up")
        pump(flows)
        for flow in flows:
            assert digest(flow.got) == digest(flow.data)
            flow.sock.close()
        service.wait_quiet()


def test_worker_killed_in_mid_stream_the_others_streams_are_whole(lab: Lab, tmp_path: Path) -> None:
    with Service(lab, tmp_path) as service, ExitStack() as stack:
        flows: dict[int, list[Flow]] = {0: [], 1: []}
        while min(map(len, flows.values())) < 3:
            sock = stack.enter_context(connect(lab, "shard"))
            shard = int(receive(sock, 2))
            flows[shard].append(Flow(sock, payload(2 * MIB, len(flows[shard])), 1))
        run_a_while(flows[0] + flows[1], MIB // 4)
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        pump(flows[1])
        for flow in flows[1]:
            assert digest(flow.got) == digest(flow.data)
        # The replaced worker knows nothing of the old streams, and says so to their peers.
        until("the new worker", lambda: service.states() == ["ready", "ready"])
        for flow in flows[0]:
            flow.sock.settimeout(PATIENCE_S)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:
                    flow.sock.send(bytes(1000))
                    flow.sock.recv(1 << 20)
        echo_streams(lab, 16, 100_000)
        assert ping(lab.cfg.client_netns, lab.facts.server.ip)
        service.wait_quiet()
        service.may_say = ("worker 0 (queue 0) ended: killed by SIGKILL", "was started again")


def test_stop_in_mid_stream_every_peer_is_told(lab: Lab, tmp_path: Path) -> None:
    with Service(lab, tmp_path) as service, ExitStack() as stack:
        flows = echo_flows(lab, 50, MIB)
        for flow in flows:
            stack.enter_context(flow.sock)
        run_a_while(flows, MIB // 50)
        assert service.end() == 0
        for flow in flows:
            flow.sock.settimeout(PATIENCE_S)
            with pytest.raises(ConnectionResetError):
                while flow.sock.recv(1 << 20):
                    pass
    # The port is the kernel's again.
    with pytest.raises(ConnectionRefusedError):
        connect(lab)


def test_control_plane_killed_in_mid_stream_peers_are_reset_and_served_again(
    lab: Lab, tmp_path: Path
) -> None:
    with Service(lab, tmp_path) as service, ExitStack() as stack:
        flows = echo_flows(lab, 50, MIB)
        for flow in flows:
            stack.enter_context(flow.sock)
        run_a_while(flows, MIB // 50)
        os.kill(service.control_pid(), signal.SIGKILL)
        service.process.wait(PATIENCE_S)
        service.ended, service.status = True, -signal.SIGKILL
        # The kernel has the port now, and no such connections.
        for flow in flows:
            flow.sock.settimeout(PATIENCE_S)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:
                    flow.sock.send(bytes(1000))
                    flow.sock.recv(1 << 20)
    assert ping(lab.cfg.client_netns, lab.facts.server.ip)
    again_directory = tmp_path / "again"
    again_directory.mkdir()
    with Service(lab, again_directory) as again:
        echo_streams(lab, 8, 100_000)
        again.wait_quiet()


@pytest.mark.parametrize("how", ["reset", "close"])
def test_clients_die_in_mid_stream_nothing_is_left(tmp_path: Path, how: str) -> None:
    """A hundred peers that leave at whatever moment. With one queue: resets that a kernel sends for
    a socket that is gone leave by another queue of a veth than what the socket sent."""
    with Lab(lab_config(queues=1)) as own, Service(own, tmp_path) as service:
        for _ in range(5):
            flows = echo_flows(own, 20, MIB)
            run_a_while(flows, 10_000)
            for flow in flows:
                if how == "reset":
                    reset_on_close(flow.sock)
                flow.sock.close()
            service.wait_quiet()
        with connect(own, "echo") as sock:
            assert answers(sock)
        service.wait_quiet()
        assert how == "close" or service.counters()["tcp_aborted"] >= 100
