"""Streams that one end, or both, send without skbs arrive whole.

ixs0 10.77.0.1 ------ veth, 1 queue, GRO on ------ ixc0 10.77.0.2
commands.py                                        the kernel's sockets, or commands.py
the kernel's sockets                               (then a proxy, for those of the other end)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ixnet.control.lab import Lab, switch_offloads
from tests.interop.kit import (
    MIB,
    PORT,
    Flow,
    Service,
    connect,
    digest,
    lab_config,
    payload,
    pump,
    receive,
    send_and_sink,
    take_source,
)

N = 8 * MIB


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(lab_config(queues=1)) as made:
        made.set_gro(True)
        yield made


def express_frames(service: Service) -> int:
    (shard,) = service.live()["shards"]
    assert shard["socket"]["express_errors"] == 0
    return int(shard["socket"]["express_frames"])


def test_streams_to_and_from_a_kernel_are_whole(lab: Lab, service: Service) -> None:
    with connect(lab, f"source {N} 2") as sock:
        take_source(sock, N, 2)
    assert express_frames(service) > N // 1500 // 4
    with connect(lab, "sink") as sock:
        send_and_sink(sock, N, 1)
    service.wait_quiet()


def test_streams_of_both_directions_at_once_are_whole(lab: Lab, service: Service) -> None:
    before = express_frames(service)
    flows = [
        Flow(connect(lab, f"both {2 * MIB} {seed}"), payload(2 * MIB, seed + 100), seed)
        for seed in range(4)
    ]
    pump(flows)
    for flow in flows:
        assert digest(bytes(flow.got[: 2 * MIB])) == digest(payload(2 * MIB, flow.seed))
        assert flow.got[2 * MIB :].decode() == digest(flow.data) + "\n"
        flow.sock.close()
    assert express_frames(service) > before
    service.wait_quiet()


def test_peer_turns_gro_off_and_on_in_the_middle_stream_is_whole(
    lab: Lab, service: Service
) -> None:
    """What goes by express until the news is taken is lost, and sent again."""
    before = express_frames(service)
    want = payload(N, 3)
    with connect(lab, f"source {N} 3") as sock:
        for at in range(0, N, MIB):
            assert receive(sock, MIB) == want[at : at + MIB]
            on = at // MIB % 2 == 1
            switch_offloads(lab.cfg.client_netns, lab.cfg.client_if, on, "rx-gro")
        assert receive(sock, 1) == b""
    assert on
    assert express_frames(service) > before
    service.wait_quiet()


def mirrored(lab: Lab) -> Lab:
    """The lab with its ends changed, for what runs in the server's."""
    cfg = lab.cfg
    swapped = replace(
        cfg,
        server_netns=cfg.client_netns, client_netns=cfg.server_netns,
        server_if=cfg.client_if, client_if=cfg.server_if,
    )  # fmt: skip
    facts = SimpleNamespace(server=lab.facts.client, client=lab.facts.server)
    made = SimpleNamespace(cfg=swapped, facts=facts, start_server=lab.start_client, stop=lab.stop)
    return cast(Lab, made)


def test_streams_between_two_dataplanes_are_whole(
    lab: Lab, service: Service, tmp_path: Path
) -> None:
    other_end = mirrored(lab)
    before = express_frames(service)
    with Service(other_end, tmp_path) as other:
        proxy = f"proxy {lab.facts.server.ip} {PORT}\n"
        with connect(other_end, f"{proxy}source {N} 4") as sock:
            take_source(sock, N, 4)
        with connect(other_end, f"{proxy}sink") as sock:
            send_and_sink(sock, N, 5)
        assert express_frames(other) > 0
        other.wait_quiet()
    assert express_frames(service) > before
    service.wait_quiet()
