"""tcp/isn: numbers that a stranger must not guess."""

from __future__ import annotations

import socket
from typing import Any

from tests.unit.peer import LOCAL, MS, REMOTE, Stack
from tests.unit.san import ffi, lib

# Microsoft, "Verifying the RSS hash calculation"
RSS_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)


def key_of(
    peer: str = REMOTE, local: str = LOCAL, peer_port: int = 80, local_port: int = 40000
) -> Any:
    key = ffi.new("struct ix_flow_key *")
    ffi.memmove(key.peer.b, socket.inet_aton(peer), 4)
    ffi.memmove(key.local.b, socket.inet_aton(local), 4)
    key.peer_port, key.local_port, key.family = peer_port, local_port, 4
    return key


def isn(stack: Stack, **fields: Any) -> int:
    return int(lib.ix_tcp_isn(ffi.addressof(stack.shard.tcp), key_of(**fields)))


def ts_offset(stack: Stack, **fields: Any) -> int:
    return int(lib.ix_tcp_ts_offset(ffi.addressof(stack.shard.tcp), key_of(**fields)))


def toeplitz(data: bytes) -> int:
    """The NIC's hash, in plain Python."""
    key = int.from_bytes(RSS_KEY, "big")
    bits = int.from_bytes(data, "big")
    size, result = 8 * len(data), 0
    for i in range(size):
        if bits >> (size - 1 - i) & 1:
            result ^= key >> (8 * len(RSS_KEY) - 32 - i) & 0xFFFFFFFF
    return result


def test_isn_differs_between_connections_and_secrets() -> None:
    # RFC 6528 section 3
    stack = Stack()
    seen = {isn(stack, peer_port=port) for port in range(1000, 1100)}
    seen |= {isn(stack, local_port=port) for port in range(1000, 1100)}
    seen |= {isn(stack, peer=f"10.0.1.{i}") for i in range(100)}
    assert len(seen) == 300
    assert isn(stack) == isn(Stack()) != isn(Stack(secret=2))


def test_isn_of_one_connection_rises_with_a_clock_of_4_us() -> None:
    stack = Stack()
    first = isn(stack)
    stack.poll(ms=1000)
    assert (isn(stack) - first) % 2**32 == 10**9 // 4096


def test_timestamp_offset_belongs_to_the_pair_of_hosts() -> None:
    # RFC 7323 7.1; the same for all ports, or TIME_WAIT could not be reused by timestamps.
    stack = Stack()
    assert ts_offset(stack, peer_port=1) == ts_offset(stack, local_port=2)
    assert len({ts_offset(stack, peer=f"10.0.1.{i}") for i in range(100)}) == 100
    assert ts_offset(stack) != ts_offset(Stack(secret=2))


def test_toeplitz_model_gives_microsofts_value() -> None:
    data = socket.inet_aton("66.9.149.187") + socket.inet_aton("161.142.100.80")
    data += (2794).to_bytes(2, "big") + (1766).to_bytes(2, "big")
    assert toeplitz(data) == 0x51CCC178


def rss_stack(queue: int, **config: Any) -> Stack:
    return Stack(
        shard_count=4,
        shard_id=queue,
        rss_key=list(RSS_KEY) + [0] * (64 - len(RSS_KEY)),
        rss_key_bytes=len(RSS_KEY),
        rss_table=[i % 4 for i in range(128)] + [0] * 384,
        rss_table_len=128,
        queue=queue,
        **config,
    )


def test_chosen_port_brings_replies_to_the_shards_queue() -> None:
    for queue in range(4):
        stack = rss_stack(queue)
        for _ in range(10):
            port = int(stack.connect_call().local_port)
            reply = socket.inet_aton(REMOTE) + socket.inet_aton(LOCAL)
            reply += (80).to_bytes(2, "big") + port.to_bytes(2, "big")
            assert toeplitz(reply) % 128 % 4 == queue


def test_ports_run_out_only_when_all_are_taken() -> None:
    stack = Stack(port_lo=40000, port_hi=40009, all_port_hi=40009)
    ports = [int(stack.connect_call().local_port) for _ in range(10)]
    assert sorted(ports) == list(range(40000, 40010))
    assert stack.connect_call().result == -99
    assert stack.connect_call(port=81).result == 0  # another peer port, another 4-tuple


def test_ports_of_a_secret_are_no_sequence() -> None:
    # RFC 6056 algorithm 4: where the sequence starts depends on peer and secret.
    starts = {
        int(Stack(secret=s).connect_call(port=p).local_port) for s in (1, 2, 3) for p in (80, 81)
    }
    assert len(starts) >= 5


def test_ports_to_one_host_do_not_tell_of_those_to_another() -> None:
    # RFC 6056 3.3.4: the counter of algorithm 3 would.
    def ports(others: int) -> list[int]:
        stack = Stack(max_flows=64)
        first = int(stack.connect_call(port=80).local_port)
        for i in range(others):
            stack.connect_call(port=1000 + i)
        return [first, int(stack.connect_call(port=80).local_port)]

    assert sum(ports(0) == ports(n) for n in (1, 2, 3, 4)) >= 3


def test_isn_follows_rfc_6528_after_time_wait() -> None:
    stack = Stack()
    a = isn(stack)
    stack.now_ns += 60_000 * MS
    stack.poll()
    assert 0 < (isn(stack) - a) % 2**32 < 2**31
