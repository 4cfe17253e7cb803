"""Groups of own IPv6 addresses: joined in the kernel, which reports them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from pathlib import Path

from ixnet.control.groups import group_mac, joined, solicited_node
from ixnet.control.namespaces import in_netns
from tests.control.conftest import FAR_IP, Pair

OWN = ipaddress.IPv6Address("fd77::12:3456")
GROUP = ipaddress.IPv6Address("ff02::1:ff12:3456")
REPORT_V2, ETH_P_IPV6 = 143, 0x86DD


def filter_has(interface: str, mac: bytes) -> bool:
    """Whether the device's filter was told of a group's MAC address."""
    text = Path("/proc/net/dev_mcast").read_text()
    return any(
        line.split()[1] == interface and line.split()[4] == mac.hex() for line in text.splitlines()
    )


def is_member(interface: str) -> bool:
    lines = (line.split() for line in Path("/proc/net/igmp6").read_text().splitlines())
    return any(line[1] == interface and line[2] == GROUP.packed.hex() for line in lines)


def test_group_is_the_addresss_last_three_bytes() -> None:
    assert solicited_node(OWN) == GROUP
    assert group_mac(GROUP) == bytes.fromhex("3333ff123456")


def test_joined_group_is_in_the_filter_and_reported_by_mld(pair: Pair) -> None:
    with in_netns(pair.far_ns):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6))
        ear.bind((pair.far, ETH_P_IPV6))
    ear.settimeout(60)
    with ear:
        with joined(pair.near_index, [OWN, FAR_IP]) as problems:
            assert problems == [] and is_member(pair.near)
            assert filter_has(pair.near, group_mac(GROUP))
            deadline = time.monotonic() + 60
            while not is_report(ear.recv(2000)):
                assert time.monotonic() < deadline
        assert not is_member(pair.near)


def is_report(frame: bytes) -> bool:
    """An MLDv2 report (RFC 3810 5.2) that says that GROUP has listeners. It follows a hop-by-hop
    header of 8 bytes with a router alert."""
    icmp = frame[14 + 40 + 8 :]
    if frame[20] != 0 or icmp[:1] != bytes([REPORT_V2]):
        return False
    (records,) = struct.unpack("!H", icmp[6:8])
    return records > 0 and GROUP.packed in icmp[8:]


def test_without_ipv6_the_filter_is_told_all_the_same(pair: Pair) -> None:
    Path(f"/proc/sys/net/ipv6/conf/{pair.near}/disable_ipv6").write_text("1")
    with joined(pair.near_index, [OWN]) as problems:
        assert filter_has(pair.near, group_mac(GROUP))
        assert is_member(pair.near) or len(problems) == 1
    assert not filter_has(pair.near, group_mac(GROUP))
