"""net/tables: local addresses, routes, neighbours, and what becomes of a flow when they change."""

from __future__ import annotations

import random
import socket
from typing import Any

from tests.unit.peer import (
    EHOSTUNREACH,
    EINVAL,
    ENOSPC,
    LOCAL,
    REMOTE,
    REMOTE_MAC,
    ROUTER,
    Peer,
    Stack,
    opened,
)
from tests.unit.san import ffi, lib

ROUTER_MAC = bytes.fromhex("02000000cc03")


def raw(dotted: str) -> int:
    return int.from_bytes(socket.inet_aton(dotted), "little")


def text(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "little"))


def v4(address: int) -> Any:
    return ffi.new("struct ix_ip *", {"q": [address, 0]})


def mac_of(number: int) -> Any:
    mac = ffi.new("struct ix_mac *")
    mac.b = list(number.to_bytes(6, "big"))
    return mac


class Net:
    """A struct ix_net of a shard, and its tables."""

    def __init__(self) -> None:
        self.stack = Stack(address=None, route=False, neighbour=False)
        self.net = ffi.addressof(self.stack.shard.net)

    def route_set(self, cidr: str, gateway: str = "0.0.0.0", source: str = "0.0.0.0") -> int:
        dst, prefix = cidr.split("/")
        return int(
            lib.ix_net_route_set(
                self.net, 4, ix_ip(dst), int(prefix), ix_ip(gateway), ix_ip(source)
            )
        )

    def route_del(self, cidr: str) -> None:
        dst, prefix = cidr.split("/")
        lib.ix_net_route_del(self.net, 4, ix_ip(dst), int(prefix))

    def route(self, dst: str) -> str | None:
        found = lib.ix_net_route(self.net, 4, ix_ip(dst))
        return None if found == ffi.NULL else f"{text(found.dst.v4)}/{found.prefix}"

    def neigh_set(self, ip: int, mac: int) -> None:
        lib.ix_net_neigh_set(self.net, 4, v4(ip), mac_of(mac))

    def neigh(self, ip: int) -> int | None:
        found = lib.ix_net_neigh(self.net, 4, v4(ip))
        return None if found == ffi.NULL else int.from_bytes(bytes(found.mac.b), "big")


# ---- routes ---------------------------------------------------------------------------


def test_longest_prefix_wins_whatever_the_order() -> None:
    cidrs = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
    for seed in range(5):
        net = Net()
        for cidr in random.Random(seed).sample(cidrs, len(cidrs)):
            assert net.route_set(cidr) == 0
        hits = ["10.1.2.3", "10.1.2.4", "10.1.3.1", "10.2.0.0", "192.0.2.1"]
        assert [net.route(dst) for dst in hits] == cidrs[::-1]


def test_route_is_masked_replaced_and_deleted() -> None:
    net = Net()
    net.route_set("10.1.2.3/8")
    assert net.route("10.9.9.9") == "10.0.0.0/8"
    epoch = net.net.epoch
    net.route_set("10.0.0.0/8", gateway=ROUTER)
    assert net.net.route_count == 1
    assert net.net.routes[0].gateway.v4 == raw(ROUTER)
    assert net.net.epoch == epoch + 1
    net.route_del("10.0.0.0/9")
    net.route_del("10.0.0.0/33")
    assert net.route("10.9.9.9") == "10.0.0.0/8"
    net.route_del("10.200.0.0/8")
    assert net.route("10.9.9.9") is None


def test_addresses_of_many_hosts_are_told_from_those_of_one() -> None:
    net = Net()
    for cidr in ["9.0.0.0/8", *(f"10.0.{prefix}.0/{prefix}" for prefix in (22, 30, 31, 32))]:
        net.route_set(cidr)
    net.route_set("10.1.0.0/24", gateway="10.0.22.1")
    many = ["9.255.255.255", "10.0.23.255", "10.0.30.3", "224.0.0.1", "255.255.255.255"]
    one = ["9.255.255.254", "9.0.0.255", "10.0.22.255", "10.0.31.1", "10.0.32.0", "10.1.0.255"]
    assert [ip for ip in many + one if lib.ix_net_is_many(net.net, 4, ix_ip(ip))] == many
    assert lib.ix_net_is_many(net.net, 6, ffi.new("struct ix_ip *", {"b": [0xFF, 2]}))


def test_routes_have_a_limit() -> None:
    net = Net()
    assert net.route_set("10.0.0.0/33") == -EINVAL
    for i in range(lib.IX_ROUTES_MAX):
        assert net.route_set(f"10.{i}.0.0/16") == 0
    assert net.route_set("11.0.0.0/16") == -ENOSPC
    assert net.route_set("10.5.0.0/16", gateway=ROUTER) == 0
    net.route_del("10.0.0.0/16")
    assert net.route_set("11.0.0.0/16") == 0


def test_routes_match_a_model() -> None:
    rng, net = random.Random(5), Net()
    model: dict[tuple[int, int], bool] = {}
    for _ in range(300):
        prefix = rng.choice([0, 1, 8, 15, 16, 24, 31, 32])
        mask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
        dst = rng.randrange(8) << 29 | rng.randrange(4) << 8 | rng.randrange(4)
        cidr = f"{socket.inet_ntoa((dst & mask).to_bytes(4, 'big'))}/{prefix}"
        if rng.random() < 0.6:
            net.route_set(cidr)
            model[(dst & mask, prefix)] = True
        else:
            net.route_del(cidr)
            model.pop((dst & mask, prefix), None)
        probe = rng.randrange(8) << 29 | rng.randrange(4) << 8 | rng.randrange(4)
        hits = [(p, d) for d, p in model if probe & ((0xFFFFFFFF << (32 - p)) & 0xFFFFFFFF) == d]
        wanted = None
        if hits:
            p, d = max(hits)
            wanted = f"{socket.inet_ntoa(d.to_bytes(4, 'big'))}/{p}"
        assert net.route(socket.inet_ntoa(probe.to_bytes(4, "big"))) == wanted


# ---- addresses ------------------------------------------------------------------------


def test_addresses_are_added_once_and_have_a_limit() -> None:
    net = Net()
    for i in range(lib.IX_ADDRS_MAX):
        for _ in range(2):
            assert lib.ix_net_addr_add(net.net, 4, ix_ip(f"10.0.0.{i}"), False) == 0
    assert lib.ix_net_addr_add(net.net, 4, ix_ip("10.0.1.0"), False) == -ENOSPC
    lib.ix_net_addr_del(net.net, 4, ix_ip("10.0.0.3"))
    lib.ix_net_addr_del(net.net, 4, ix_ip("10.0.0.3"))
    assert not lib.ix_net_is_local(net.net, 4, ix_ip("10.0.0.3"))
    assert lib.ix_net_is_local(net.net, 4, ix_ip("10.0.0.15"))
    assert not lib.ix_net_is_local(net.net, 6, ix_ip("10.0.0.15"))
    assert lib.ix_net_addr_add(net.net, 4, ix_ip("10.0.1.0"), False) == 0


def ix_ip(dotted: str) -> Any:
    ip = ffi.new("struct ix_ip *")
    ffi.memmove(ip.b, socket.inet_aton(dotted), 4)
    return ip


def test_source_is_the_routes_or_the_first_address() -> None:
    net = Net()
    assert lib.ix_net_source_for(net.net, 4, ix_ip(REMOTE)).v4 == 0
    lib.ix_net_addr_add(net.net, 4, ix_ip("10.0.0.7"), False)
    lib.ix_net_addr_add(net.net, 4, ix_ip("10.0.0.8"), False)
    net.route_set("0.0.0.0/0")
    net.route_set("10.0.0.0/8", source="10.0.0.8")
    assert text(lib.ix_net_source_for(net.net, 4, ix_ip("192.0.2.1")).v4) == "10.0.0.7"
    assert text(lib.ix_net_source_for(net.net, 4, ix_ip(REMOTE)).v4) == "10.0.0.8"


# ---- neighbours -----------------------------------------------------------------------


def test_neighbours_match_a_model() -> None:
    rng, net = random.Random(9), Net()
    model: dict[int, int] = {}
    for _ in range(20_000):
        ip = rng.randrange(1, 900)
        if rng.random() < 0.5:
            model[ip] = rng.randrange(2**48)
            net.neigh_set(ip, model[ip])
        else:
            lib.ix_net_neigh_del(net.net, 4, v4(ip))
            model.pop(ip, None)
        probe = rng.randrange(1, 1000)
        assert net.neigh(probe) == model.get(probe)


def test_neighbours_full_keeps_those_there_are() -> None:
    net = Net()
    for ip in range(1, lib.IX_NEIGH_MAX + 1):
        net.neigh_set(ip, ip)
    net.neigh_set(99999, 1)
    assert net.neigh(99999) is None
    assert all(net.neigh(ip) == ip for ip in range(1, lib.IX_NEIGH_MAX + 1))
    lib.ix_net_neigh_del(net.net, 4, v4(5))
    net.neigh_set(7, 700)
    assert net.neigh(7) == 700


def test_neighbours_that_come_and_go_for_ever_leave_room() -> None:
    # Each of them leaves a mark in the table that keeps searches going; the marks must not fill it.
    net = Net()
    for ip in range(1, 301):
        net.neigh_set(ip, ip)
    for ip in range(1000, 6000):
        net.neigh_set(ip, ip)
        assert net.neigh(ip) == ip
        lib.ix_net_neigh_del(net.net, 4, v4(ip))
        assert net.neigh(ip) is None
    assert all(net.neigh(ip) == ip for ip in range(1, 301))
    for ip in range(301, lib.IX_NEIGH_MAX + 1):
        net.neigh_set(ip, ip)
    assert all(net.neigh(ip) == ip for ip in range(1, lib.IX_NEIGH_MAX + 1))


def test_learned_neighbours_that_went_count_no_more() -> None:
    net = Net()
    for ip in range(1, 3000):
        lib.ix_net_neigh_learn(net.net, 4, v4(ip), mac_of(ip))
        assert net.neigh(ip) == ip
        lib.ix_net_neigh_del(net.net, 4, v4(ip))
    assert net.net.neigh_learned <= lib.IX_NEIGH_MAX // 2


def test_same_neighbour_again_changes_nothing() -> None:
    net = Net()
    net.neigh_set(5, 1)
    epoch = net.net.epoch
    net.neigh_set(5, 1)
    lib.ix_net_neigh_del(net.net, 4, v4(6))
    assert net.net.epoch == epoch


def test_epoch_never_becomes_zero() -> None:
    net = Net()
    net.net.epoch = 2**32 - 1
    net.neigh_set(5, 1)
    assert net.net.epoch == 1


# ---- flows and their way --------------------------------------------------------------


def misses(stack: Stack) -> list[str]:
    out = []
    while request := stack.request():
        assert request[0] == lib.IX_CTL_NEIGH_MISS
        out.append(request[1])
    return out


def test_syn_of_an_unknown_neighbour_is_answered_where_it_came_from() -> None:
    stack = Stack(listen=80, neighbour=False)
    peer = Peer(stack, mac=bytes.fromhex("020000000777"))
    peer.send("S")
    assert peer.expect("SA").to_mac == peer.mac
    assert misses(stack) == [REMOTE]
    peer.send("A")
    handle = stack.expect("KNOCK").handle
    stack.accept(handle)
    stack.ctl("NEIGH_SET", ip=REMOTE, mac=REMOTE_MAC)
    stack.sendv(handle, b"x")
    assert peer.expect("PA", b"x").to_mac == REMOTE_MAC


def test_neighbour_is_asked_for_once_a_second() -> None:
    stack = Stack(listen=80, neighbour=False)
    peer = Peer(stack)
    handle = peer.connect()
    misses(stack)
    for _ in range(20):
        stack.poll(ms=100)
        stack.sendv(handle, b"x")
    assert misses(stack) == [REMOTE, REMOTE]
    assert stack.counter("neigh_misses") > 10


def test_connect_waits_for_the_neighbour() -> None:
    stack = Stack(neighbour=False)
    call = stack.connect_call()
    assert call.result == 0
    assert misses(stack) == [REMOTE]
    assert not stack.sent
    assert stack.counter("drop_neigh") == 1
    stack.sleep(ms=10)
    stack.ctl("NEIGH_SET", ip=REMOTE, mac=REMOTE_MAC)
    stack.sleep(ms=1000)
    peer = Peer(stack, port=int(call.local_port), sport=80)
    peer.expect("S")
    peer.send("SA")
    stack.expect("CONNECTED", status=0)


def test_connect_to_a_neighbour_that_does_not_answer_fails() -> None:
    stack = Stack(neighbour=False)
    stack.connect_call()
    stack.sleep(ms=100)
    stack.ctl("NEIGH_DEL", ip=REMOTE)
    stack.sleep(ms=8000)
    stack.expect("CONNECTED", status=-EHOSTUNREACH)
    assert not stack.sent


def test_route_change_moves_the_flow() -> None:
    stack, peer, handle = opened()
    stack.ctl("NEIGH_SET", ip=ROUTER, mac=ROUTER_MAC)
    stack.ctl("ROUTE_SET", ip=REMOTE, prefix=32, gateway=ROUTER)
    stack.sendv(handle, b"x")
    assert peer.expect("PA", b"x").to_mac == ROUTER_MAC
    stack.ctl("ROUTE_DEL", ip=REMOTE, prefix=32)
    stack.sendv(handle, b"y")
    assert peer.expect("PA", b"y").to_mac == REMOTE_MAC


def test_neighbour_that_moves_takes_its_flows_along() -> None:
    stack, peer, handle = opened()
    stack.ctl("NEIGH_SET", ip=REMOTE, mac=ROUTER_MAC)
    stack.sendv(handle, b"x")
    assert peer.expect("PA").to_mac == ROUTER_MAC


def test_neighbour_lost_is_asked_for_and_its_old_mac_serves_meanwhile() -> None:
    stack, peer, handle = opened()
    stack.ctl("NEIGH_DEL", ip=REMOTE)
    stack.sendv(handle, b"x")
    assert peer.expect("PA", b"x").to_mac == REMOTE_MAC
    assert misses(stack) == [REMOTE]
    stack.ctl("NEIGH_SET", ip=REMOTE, mac=ROUTER_MAC)
    stack.sendv(handle, b"y")
    assert peer.expect("PA", b"y").to_mac == ROUTER_MAC


def test_route_lost_counts_and_does_not_ask() -> None:
    stack, _peer, handle = opened()
    stack.ctl("ROUTE_DEL", ip="0.0.0.0", prefix=0)
    stack.sendv(handle, b"x")
    assert not stack.sent
    assert stack.counter("drop_no_route") > 0
    assert misses(stack) == []


def test_gateway_is_asked_for_not_the_destination() -> None:
    stack = Stack(neighbour=False)
    stack.ctl("ROUTE_SET", ip="192.0.2.0", prefix=24, gateway=ROUTER)
    stack.poll()
    stack.connect_call(peer="192.0.2.9")
    assert misses(stack) == [ROUTER]


def test_address_removed_is_deaf() -> None:
    stack, peer, _handle = opened()
    stack.ctl("ADDR_DEL", ip=LOCAL)
    peer.send("PA", b"x")
    stack.expect_no_event()
    assert stack.counter("drop_ip_dst") == 1
