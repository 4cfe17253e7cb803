"""Two namespaces and a veth pair for each test that asks for it:

namespace near                      namespace far
near0 10.77.0.1/24  ----- veth ----- far0 10.77.0.2/24
2 queues each; the far end's offloads are off, so that what it sends is whole on the wire
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import IoctlEthtool

from ixnet.control.lab import switch_offloads
from ixnet.control.namespaces import in_netns

NEAR_IP = ipaddress.IPv4Address("10.77.0.1")
FAR_IP = ipaddress.IPv4Address("10.77.0.2")

_numbers = itertools.count()


@dataclass(frozen=True)
class Pair:
    """The two ends. The test runs in the near namespace; enter the far one with in_netns()."""

    near_ns: str
    far_ns: str
    near: str
    far: str
    near_index: int


def set_gro(pair: Pair, on: bool) -> None:
    """Of the far end: then it takes XDP frames, and the near end can send them."""
    switch_offloads(pair.far_ns, pair.far, on, "rx-gro")


def _offloads_off(ifname: str) -> None:
    tool = IoctlEthtool(ifname)
    try:
        features = tool.get_features()
        for name in ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-generic-segmentation",
                     "tx-vlan-hw-insert", "rx-gro"):  # fmt: skip
            if name in features:
                features[name] = False
        tool.set_features(features)
    finally:
        tool.close()


def _set_up(ifname: str, address: ipaddress.IPv4Address) -> int:
    with IPRoute() as ipr:
        for name in (ifname, "lo"):
            index = ipr.link_lookup(ifname=name)[0]
            ipr.link("set", index=index, state="up")
        index = ipr.link_lookup(ifname=ifname)[0]
        ipr.addr("add", index=index, address=str(address), prefixlen=24)
        return int(index)


@contextlib.contextmanager
def made_pair(count: int = 2) -> Iterator[Pair]:
    """Two namespaces and a veth pair of so many queues; this thread is in the near one then."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    tag = f"ixct{os.getpid()}-{next(_numbers)}"
    near_ns, far_ns = f"{tag}-near", f"{tag}-far"
    with contextlib.ExitStack() as undo:
        for name in (near_ns, far_ns):
            netns.create(name)
            undo.callback(netns.remove, name)
        with in_netns(near_ns):
            with IPRoute() as ipr:
                queues = {"num_rx_queues": count, "num_tx_queues": count}
                ipr.link(
                    "add",
                    ifname="near0",
                    kind="veth",
                    peer={"ifname": "far0", "net_ns_fd": far_ns, **queues},
                    **queues,
                )
            with in_netns(far_ns):
                _set_up("far0", FAR_IP)
                _offloads_off("far0")
            index = _set_up("near0", NEAR_IP)
            yield Pair(near_ns, far_ns, "near0", "far0", index)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with made_pair() as made:
        yield made
