"""tcp/open: listeners, both opens, and what they negotiate."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    ECONNABORTED,
    EINVAL,
    ENETUNREACH,
    ENOBUFS,
    ENOENT,
    ENOSPC,
    LOCAL,
    MSS,
    REMOTE,
    Peer,
    Stack,
    opened,
)
from tests.unit.san import ffi, lib

SECOND_LOCAL = "10.0.0.9"

# ---- options --------------------------------------------------------------------------


def test_listen_backlog_can_be_changed() -> None:
    stack = Stack(listen=80, syn_cookies=lib.IX_COOKIES_NEVER)
    assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, 80, lib.IX_OPT_BACKLOG, 1) == 0
    first, second = Peer(stack), Peer(stack, sport=50001)
    first.send("S")
    first.expect("SA")
    second.send("S")
    second.expect_nothing()
    assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, 80, lib.IX_OPT_BACKLOG, 2) == 0
    second.send("S", seq=-1)
    second.expect("SA")


def test_listener_limits_window_and_mss_of_its_connections() -> None:
    stack = Stack(listen=80, rcvbuf_bytes=1 << 20)
    for option, value in ((lib.IX_OPT_RCVBUF, 20_000), (lib.IX_OPT_MSS, 1000)):
        assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, 80, option, value) == 0
    peer = Peer(stack, wscale=7)
    peer.send("S")
    answer = peer.take()
    assert (answer.mss, answer.wscale, answer.window) == (1000, 0, 20_000)
    for option, value in ((lib.IX_OPT_RCVBUF, 500), (lib.IX_OPT_MSS, 1), (lib.IX_OPT_MSS, 1 << 16)):
        assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, 80, option, value) == -EINVAL


def connect_with(stack: Stack, **limits: int) -> Any:
    """A CONNECT with what its SYN must know."""
    call = stack.queue("CONNECT", family=4, peer=REMOTE, peer_port=80)
    for name, value in limits.items():
        setattr(call.open, name, value)
    stack.poll()
    return call


def test_connect_limits_window_and_mss_from_its_syn_on() -> None:
    stack = Stack(rcvbuf_bytes=1 << 20)
    call = connect_with(stack, rcvbuf_bytes=30_000, mss=900)
    peer = Peer(stack, port=call.local_port, sport=80)
    syn = peer.take()
    assert (syn.mss, syn.wscale, syn.window) == (900, 0, 30_000)
    stack.sleep(1000)
    assert peer.take().mss == 900, "and when it comes again"
    for bad in ({"mss": 1}, {"rcvbuf_bytes": 100}, {"zero": 1}):
        assert connect_with(stack, **bad).result == -EINVAL


@pytest.mark.parametrize("without", ["TIMESTAMPS", "SACK", "WINDOW_SCALING"])
def test_what_the_shard_is_without_is_not_offered_nor_taken(without: str) -> None:
    stack = Stack(listen=80, without=getattr(lib, f"IX_WITHOUT_{without}"))
    peer = Peer(stack, ts=True, wscale=7, sack_ok=True)
    peer.send("S")
    answer = peer.take()
    offered = {
        "TIMESTAMPS": answer.ts is not None,
        "SACK": answer.sack_ok,
        "WINDOW_SCALING": answer.wscale is not None,
    }
    assert [name for name, there in offered.items() if not there] == [without]


@pytest.mark.parametrize("wscale", [None, 0, 7])
@pytest.mark.parametrize("sack_ok", [False, True])
@pytest.mark.parametrize("ts", [False, True])
def test_syn_ack_offers_only_what_the_syn_offered(
    wscale: int | None, sack_ok: bool, ts: bool
) -> None:
    stack = Stack(listen=80)
    peer = Peer(stack, wscale=wscale, sack_ok=sack_ok, ts=ts)
    syn_ack = peer.knock()
    assert syn_ack.mss == MSS
    assert syn_ack.sack_ok == sack_ok
    assert (syn_ack.wscale is not None) == (wscale is not None)
    assert (syn_ack.ts is not None) == ts
    if ts:
        assert syn_ack.ts and syn_ack.ts[1] == peer.ts_clock


def test_syn_offers_everything() -> None:
    stack = Stack()
    peer = Peer(stack, port=int(stack.connect_call().local_port), sport=80)
    syn = peer.expect("S")
    assert (syn.mss, syn.wscale, syn.sack_ok) == (MSS, 3, True)
    assert syn.ts and syn.ts[1] == 0
    assert syn.window == 65535


@pytest.mark.parametrize(
    "offered, used", [(None, 536), (10, 88), (88, 88), (536, 536), (1460, 1460), (9000, 1460)]
)
def test_mss_is_the_lesser_of_both_sides(offered: int | None, used: int) -> None:
    # RFC 9293 3.7.1; a very small one would be an attack.
    stack, peer, handle = opened(mss=offered)
    assert stack.info(handle).mss == used
    stack.stream(handle, 0, 3 * used)
    assert {len(s.payload) for s in peer.take_all()} == {used}


def test_mss_follows_the_mtu() -> None:
    stack = Stack(listen=80, mtu=1000)
    peer = Peer(stack)
    assert peer.knock().mss == 960
    assert stack.info(peer.handle).mss == 960


def test_timestamps_take_twelve_bytes_of_each_segment() -> None:
    stack, peer, handle = opened(ts=True)
    stack.stream(handle, 0, 3000)
    assert [len(s.payload) for s in peer.take_all()] == [1448, 1448, 104]


def test_peers_window_is_scaled_but_for_the_syn() -> None:
    stack, peer, handle = opened(wscale=4, window=1000)
    assert stack.info(handle).snd_wnd == 16000
    stack = Stack(listen=80)
    peer = Peer(stack, wscale=4, window=1000)
    peer.send("S")
    assert stack.tcb(1 << 32).snd_wnd == 1000
    assert stack.tcb(1 << 32).snd_wscale == 4


def test_window_scale_beyond_14_counts_as_14() -> None:
    stack, _peer, handle = opened(wscale=15, window=1)
    assert stack.info(handle).snd_wnd == 1 << 14


@pytest.mark.parametrize("rcvbuf, shift", [(65535, None), (65536, 1), (1 << 20, 5), (1 << 30, 14)])
def test_own_window_scale_is_the_least_that_fits(rcvbuf: int, shift: int | None) -> None:
    stack = Stack(listen=80, rcvbuf_bytes=rcvbuf)
    syn_ack = Peer(stack, wscale=0).knock()
    if shift is None:
        assert syn_ack.wscale in (None, 0)
    else:
        assert syn_ack.wscale == shift


# ---- listeners ------------------------------------------------------------------------


def test_exact_listener_comes_before_the_wildcard() -> None:
    stack = Stack()
    stack.ctl("ADDR_ADD", ip=SECOND_LOCAL)
    assert stack.listen(80, cookie=1) == 0
    assert stack.listen(80, SECOND_LOCAL, cookie=2) == 0
    Peer(stack).send("S")
    for local, cookie in ((LOCAL, 1), (SECOND_LOCAL, 2)):
        peer = Peer(stack, local=local, sport=50005)
        stack.sent.clear()
        peer.send("S")
        peer.expect("SA")
        peer.send("A")
        stack.expect("KNOCK", cookie=cookie, local=(local, 80))


def test_exact_listener_leaves_other_addresses_alone() -> None:
    stack = Stack()
    stack.ctl("ADDR_ADD", ip=SECOND_LOCAL)
    stack.listen(80, SECOND_LOCAL)
    peer = Peer(stack)
    peer.send("S")
    peer.expect("RA")


def test_listen_twice_is_refused_and_unlisten_frees() -> None:
    stack = Stack(listen=80)
    assert stack.listen(80) == -EADDRINUSE
    assert stack.listen(80, LOCAL) == 0
    assert stack.listen(81) == 0
    assert stack.listen(0) == -EINVAL
    assert stack.unlisten(82) == -ENOENT
    assert stack.unlisten(80) == 0
    assert stack.unlisten(80) == -ENOENT
    assert stack.unlisten(80, LOCAL) == 0
    peer = Peer(stack)
    peer.send("S")
    peer.expect("RA")
    assert stack.listen(80) == 0
    Peer(stack).connect()


def test_listener_of_an_unknown_family_is_refused() -> None:
    stack = Stack()
    null = Stack.listen.__globals__["ffi"].NULL
    assert lib.ix_shard_listen(stack.shard, null, 5, 80, 0, 0) == -EINVAL


def test_listeners_have_a_limit() -> None:
    stack = Stack()
    for i in range(lib.IX_LISTENERS_MAX):
        assert stack.listen(1000 + i) == 0
    assert stack.listen(999) == -ENOSPC


def test_unlisten_lets_handshakes_under_way_finish() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    stack.unlisten(80)
    assert stack.listen(80, cookie=1234) == 0  # must not take the slot that still counts
    peer.send("A")
    handle = stack.expect("KNOCK", cookie=77).handle
    assert stack.accept(handle) == 0
    Peer(stack, sport=50001).knock()


def test_port_0_is_nobodys_even_after_unlisten() -> None:
    # A free slot has port 0.
    stack = Stack(listen=80)
    stack.unlisten(80)
    peer = Peer(stack, port=0)
    peer.send("S")
    peer.expect("RA")
    assert stack.stats.flows == 0


def test_backlog_full_drops_syns_until_accept() -> None:
    # Those that wait for ACCEPT take its places; half-open ones have cookies (test_tcp_cookie).
    stack = Stack(listen=80, backlog=2)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    peers[0].knock()
    peers[1].knock()
    peers[2].send("S")
    assert not stack.sent
    assert stack.counter("drop_tcp_accept_full") == 1
    stack.accept(peers[0].handle)
    peers[2].send("S", seq=-1)
    peers[2].expect("SA")


@pytest.mark.parametrize("how", ["REJECT", "ABORT", "RST"])
def test_backlog_is_freed_when_a_knock_ends(how: str) -> None:
    stack = Stack(listen=80, backlog=1)
    peer = Peer(stack)
    peer.knock()
    if how == "RST":
        peer.send("R")
    else:
        assert stack.call(how, handle=peer.handle) == 0
    stack.events.clear()
    stack.sent.clear()
    Peer(stack, sport=50001).knock()


# ---- the flow table -------------------------------------------------------------------


def test_flow_table_full_drops_syns_and_counts() -> None:
    stack = Stack(listen=80, max_flows=4)
    for i in range(4):
        Peer(stack, sport=50000 + i).connect()
    peer = Peer(stack, sport=50009)
    peer.send("S")
    peer.expect_nothing()
    assert stack.counter("drop_tcp_flows") == 1
    call = stack.connect_call()
    assert call.result == -ENOBUFS


def to_time_wait(stack: Stack, peer: Peer, handle: int) -> None:
    """Closes a connection from this side first, in order."""
    stack.close(handle)
    peer.expect("FA")
    peer.send("FA")
    peer.expect("A")


def test_flow_table_full_gives_up_the_oldest_time_wait() -> None:
    stack = Stack(listen=80, max_flows=4)
    waiting = []
    for i in range(4):
        peer = Peer(stack, sport=50000 + i)
        handle = peer.connect()
        if i in (1, 2):
            to_time_wait(stack, peer, handle)
            waiting.append(peer)
            stack.events.clear()
    Peer(stack, sport=50009).connect()
    assert stack.stats.flows_time_wait == 1
    waiting[1].send("FA", seq=0)  # still there
    waiting[1].expect("A")
    waiting[0].send("FA", seq=0)  # gone
    waiting[0].expect("R")


def test_time_wait_that_has_something_to_say_is_passed_over_once() -> None:
    """It leaves the list until it has said it: a flood of SYNs doesn't look at it each time."""
    stack = Stack(listen=80, max_flows=3, max_half_open=3)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    for peer in peers:
        to_time_wait(stack, peer, peer.connect())
        stack.expect("DEAD")
    tcp = stack.shard.tcp
    assert tcp.time_wait == 3 and tcp.tw.head == peers[0].handle & 0xFFFFFFF
    for peer in peers[:2]:
        peer.put("A", b"late", seq=1)  # has to be acknowledged in this very cycle
    Peer(stack, sport=60000).send("S")
    assert stack.counters("drop_tcp_flows", "tcp_passive_opens")[0] == 0
    assert tcp.time_wait == 2
    listed, i = [], tcp.tw.head
    while i != 0xFFFFFFFF:
        listed.append(i)
        i = tcp.flows[i].tw_next
    assert listed == [p.handle & 0xFFFFFFF for p in peers[:2]], "they are back"
    stack.sent.clear()
    Peer(stack, sport=60001).send("S")
    assert tcp.time_wait == 1 and stack.counter("drop_tcp_flows") == 0


def test_time_wait_with_a_repeated_fin_is_no_longer_the_oldest() -> None:
    stack = Stack(listen=80, max_flows=2)
    peers = [Peer(stack, sport=50000 + i) for i in range(2)]
    for peer in peers:
        to_time_wait(stack, peer, peer.connect())
        stack.events.clear()
    peers[0].send("FA", seq=0)
    peers[0].expect("A")
    Peer(stack, sport=50009).connect()
    peers[0].send("FA", seq=0)
    peers[0].expect("A")
    peers[1].send("FA", seq=0)
    peers[1].expect("R")


# ---- CONNECT --------------------------------------------------------------------------


def test_connect_gives_a_handle_and_a_port_of_its_own() -> None:
    stack = Stack()
    ports = set()
    for _ in range(8):
        call = stack.connect_call()
        assert call.result == 0 and call.handle != 0
        ports.add(int(call.local_port))
    assert len(ports) == 8
    assert all(40000 <= port <= 40999 for port in ports)


def test_connect_from_a_port_of_the_applications_choice() -> None:
    stack = Stack()
    assert stack.connect_call(local_port=1234).local_port == 1234
    assert stack.connect_call(local_port=1234).result == -EADDRINUSE
    assert stack.connect_call(port=81, local_port=1234).result == 0


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"family": 5}, EINVAL),
        ({"family": 0}, EINVAL),
        ({"peer_port": 0}, EINVAL),
        ({"peer": "0.0.0.0"}, EINVAL),
        ({"peer": "224.0.0.1"}, ENETUNREACH),
        ({"peer": "255.255.255.255"}, ENETUNREACH),
        ({"peer": LOCAL}, EINVAL),
        ({"local": "10.9.9.9"}, EADDRNOTAVAIL),
    ],
)
def test_connect_refuses_what_makes_no_sense(fields: dict[str, object], error: int) -> None:
    stack = Stack()
    assert stack.connect_call(**fields).result == -error  # type: ignore[arg-type]
    assert stack.is_idle()
    assert not stack.sent
    assert stack.counter("call_errors") == 1


def test_connect_to_a_networks_broadcast_address_is_refused_as_by_linux() -> None:
    """RFC 1122 4.2.3.10."""
    stack = Stack()
    stack.ctl("ROUTE_SET", ip="10.0.0.0", prefix=24)
    stack.ctl("ROUTE_SET", ip="10.1.0.0", prefix=24, gateway=REMOTE)
    stack.poll()
    assert stack.connect_call(peer="10.0.0.255").result == -ENETUNREACH
    stack.expect_no_event()
    assert not stack.sent
    assert stack.connect_call(peer="10.0.0.254").result == 0
    assert stack.connect_call(peer="10.1.0.255").result == 0, "a router knows better"


def test_syn_from_or_to_a_broadcast_address_is_dropped() -> None:
    stack = Stack(listen=80)
    stack.ctl("ROUTE_SET", ip="10.0.0.0", prefix=24)
    stack.poll()
    Peer(stack, ip="10.0.0.255").send("S")
    syn = Peer(stack).segment("S")
    stack.inject(b"\xff" * 6 + syn[6:])
    assert not stack.sent
    assert stack.counter("drop_tcp_many") == 2
    Peer(stack, ip="10.0.0.254").send("S")
    assert stack.counter("drop_tcp_many") == 2


def test_connect_without_route_or_address_is_refused() -> None:
    assert Stack(route=False).connect_call().result == -ENETUNREACH
    assert Stack(address=None).connect_call().result == -EADDRNOTAVAIL


def test_connect_without_outgoing_ports_needs_a_local_port() -> None:
    stack = Stack(port_lo=0, port_hi=0)
    assert stack.connect_call().result == -EADDRNOTAVAIL
    assert stack.connect_call(local_port=5).result == 0


def test_connect_takes_the_routes_source() -> None:
    stack = Stack()
    stack.ctl("ADDR_ADD", ip=SECOND_LOCAL)
    stack.ctl("ROUTE_SET", ip="10.0.0.0", prefix=24, source=SECOND_LOCAL)
    stack.poll()
    peer = Peer(stack, local=SECOND_LOCAL, sport=80)
    peer.port = int(stack.connect_call().local_port)
    peer.expect("S")


@pytest.mark.parametrize("op", ["CLOSE", "ABORT"])
def test_syn_sent_close_ends_in_connected_with_an_error(op: str) -> None:
    stack = Stack()
    call = stack.connect_call()
    stack.sent.clear()
    handle = int(call.handle)
    assert stack.call(op, handle=handle) == 0
    stack.expect("CONNECTED", handle=handle, status=-ECONNABORTED)
    stack.expect_no_event()
    assert not stack.sent
    assert stack.is_idle()


def test_syn_rcvd_close_sends_the_fin_after_the_handshake() -> None:
    # RFC 9293 3.10.4, of a simultaneous open
    stack = Stack()
    call = stack.connect_call()
    peer = Peer(stack, port=int(call.local_port), sport=80, handle=int(call.handle))
    peer.expect("S")
    peer.send("S")
    peer.expect("SA")
    assert stack.close(peer.handle) == 0
    peer.expect_nothing()
    peer.send("A")
    peer.expect("FA", seq=0)
    stack.expect("CONNECTED", status=0)
    peer.send("FA")
    stack.expect("DEAD", status=0)


def test_active_connection_passes_data_both_ways() -> None:
    stack = Stack()
    peer = Peer(stack, ts=True, sack_ok=True, wscale=2)
    handle = peer.answer(cookie=9)
    assert stack.sendv(handle, b"request") == 7
    peer.expect("PA", b"request")
    peer.send("PA", b"response")
    stack.expect("SENT", bytes=7, cookie=9)
    assert stack.received() == b"response"


def test_reject_resets_and_says_no_more() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    assert stack.call("REJECT", handle=peer.handle) == 0
    peer.expect("RA", seq=0, ack=0)
    stack.expect_no_event()
    assert stack.call("ACCEPT", handle=peer.handle) == -ENOENT
    assert stack.is_idle()


def test_peers_addresses_are_told() -> None:
    stack, peer, handle = opened()
    info = stack.info(handle)
    assert (info.peer_port, info.local_port, info.family) == (50000, 80, 4)
    assert bytes(info.peer)[:4] == bytes([10, 0, 0, 2])
    assert peer.ip == REMOTE
