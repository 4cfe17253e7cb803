"""The control plane's parts that need no network: cores, configuration, requests, news, files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ixnet._core import ffi, lib
from ixnet.address import ip_text
from ixnet.control import instance as instances
from ixnet.control.config import ConfigError, RunConfig, default_frames
from ixnet.control.cores import CoreError, assign_cores, format_cores, parse_cores, spare_cores
from ixnet.control.doctor import FAIL, OK, WARN, Finding, instance_findings, worst
from ixnet.control.errors import IxError, ModeUnavailable, PortTaken
from ixnet.control.instance import (
    Instance,
    InstanceError,
    _locked,
    create_instance,
    find_instance,
    find_instances,
    process_start_ticks,
)
from ixnet.control.neigh import LinkState, Route
from ixnet.control.news import NewsBoard
from ixnet.control.nic import IpInterface
from ixnet.control.requests import (
    REQUEST_BYTES,
    BadRequest,
    ClaimTable,
    Endpoint,
    decode,
    encode_reply,
    exit_text,
)
from ixnet.control.stats import (
    STATS_MAGIC,
    ShardFile,
    StatsError,
    busy_ratio,
    counter_names,
    mean_batch,
    meanings,
    stats_bytes,
    total,
)
from ixnet.control.xdp import Proto
from ixnet.runtime import NotInWorker, Program, current_app

# ---- cores -----------------------------------------------------------------------------------


def test_list_of_cores_keeps_its_order() -> None:
    assert parse_cores("3,0-2, 7") == (3, 0, 1, 2, 7)
    assert format_cores(parse_cores("3,0-2")) == "3,0,1,2"


@pytest.mark.parametrize("text", ["", "a", "1,", "2-1", "1-", "-1", "0-99999999999", "1.5"])
def test_nonsense_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(CoreError) as caught:
        parse_cores(text)
    assert caught.value.cure


def test_cores_without_a_wish_leave_the_first_for_last() -> None:
    assert assign_cores(3, None, (0, 1, 2, 3)) == (1, 2, 3)
    assert assign_cores(4, None, (0, 1)) == (1, 0, 1, 0)


def test_cores_as_wished_are_shared_in_turn() -> None:
    assert assign_cores(3, (1,), (0, 1)) == (1, 1, 1)
    with pytest.raises(CoreError, match="core 5"):
        assign_cores(1, (5,), (0, 1))


def test_control_plane_stays_off_the_workers_cores_if_it_can() -> None:
    assert spare_cores((1,), (0, 1)) == (0,)
    assert spare_cores((0, 1), (0, 1)) == (0, 1)


# ---- configuration -----------------------------------------------------------------------------


def config(**changes: Any) -> RunConfig:
    return RunConfig(interface="eth9", program=Program(Path("app.py")), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "fast"}, {"huge_pages": "maybe"}, {"placement": "elsewhere"},
        {"kick": "exit"}, {"placement": "dune", "kick": "foot"},
        {"placement": "dune", "pcap": Path("t.pcap")}, {"batch": 0}, {"batch": 257},
        {"frames": 1023}, {"max_flows": 1},
        {"queues": 0}, {"workers": 0}, {"workers": 257}, {"spin_us": -1},
        {"spin_us": 5, "busy_poll": True}, {"ports": (1, 2000)},
        {"ports": (3000, 2000)},
    ],
)  # fmt: skip
def test_option_that_can_not_be_is_refused_with_its_cure(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("gib", "queues", "shift", "frames"),
    [(64, 1, 11, 32_768), (64, 16, 11, 32_768), (3, 2, 11, 32_768), (3, 2, 12, 16_384),
     (1, 1, 11, 21_845), (1, 8, 11, 8192)],
)  # fmt: skip
def test_frames_are_as_many_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch, gib: int, queues: int, shift: int, frames: int
) -> None:
    pages = {"SC_PHYS_PAGES": gib << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert default_frames(queues, shift) == frames


def test_workers_that_share_a_core_do_not_spin() -> None:
    assert config().choose_spin_ns(shares_core=True) == 0
    assert config().choose_spin_ns(shares_core=False) == 50_000
    assert config(spin_us=7).choose_spin_ns(shares_core=True) == 7_000
    assert config(busy_poll=True).choose_spin_ns(shares_core=True) == -1


@pytest.mark.parametrize(
    ("queues", "workers", "shares"),
    [
        (4, None, [[0], [1], [2], [3]]), (4, 2, [[0, 1], [2, 3]]), (4, 1, [[0, 1, 2, 3]]),
        (5, 2, [[0, 1], [2, 3, 4]]), (7, 3, [[0, 1], [2, 3], [4, 5, 6]]),
    ],
)  # fmt: skip
def test_queues_are_spread_evenly_and_as_neighbours(
    queues: int, workers: int | None, shares: list[list[int]]
) -> None:
    assert [list(share) for share in config(workers=workers).spread(queues)] == shares


def test_a_guest_gets_no_more_queues_than_its_gate_has_entries() -> None:
    most = int(lib.IX_GATE_SHARDS)
    assert len(config(placement="dune", workers=1).spread(most)) == 1
    with pytest.raises(ConfigError) as caught:
        config(placement="dune", workers=2).spread(2 * most + 1)
    assert "at least 3 workers" in caught.value.cure
    assert len(config(workers=1).spread(most + 1)) == 1


# ---- requests ----------------------------------------------------------------------------------


def request(**fields: Any) -> bytes:
    raw = ffi.new("struct ix_request *")
    values = {"magic": lib.IX_REQUEST_MAGIC, "sequence": 9, "op": lib.IX_REQUEST_CLAIM}
    for name, value in {**values, "family": 4, "proto": 6, "port": 80, **fields}.items():
        setattr(raw, name, value)
    return bytes(ffi.buffer(raw))


def test_claim_is_decoded() -> None:
    ip = bytes([10, 0, 0, 1]) + bytes(12)
    got = decode(request(ip=ip))
    assert (got.op, got.sequence) == (lib.IX_REQUEST_CLAIM, 9)
    assert got.endpoint == Endpoint(Proto.TCP, IPv4Address("10.0.0.1"), 80, 4)
    six = IPv6Address("2001:db8::1")
    got = decode(request(ip=six.packed, family=6))
    assert got.endpoint == Endpoint(Proto.TCP, six, 80, 6)
    assert str(got.endpoint) == "tcp [2001:db8::1]:80"


@pytest.mark.parametrize(("family", "text"), [(0, "*"), (4, "0.0.0.0"), (6, "[::]")])
def test_claim_of_every_address_says_of_which_family(family: int, text: str) -> None:
    everywhere = decode(request(proto=17, family=family)).endpoint
    assert everywhere is not None and everywhere.ip is None
    assert str(everywhere) == f"udp {text}:80"


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": 1}, {"op": 0}, {"op": 99}, {"family": 5}, {"proto": 1}, {"port": 0},
        {"family": 0, "ip": bytes([10]) + bytes(15)}, {"ip": bytes(15) + b"1"}, {"shard": 1},
    ],
)  # fmt: skip
def test_request_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        decode(request(**fields))


def test_request_says_which_of_the_workers_shards_asks() -> None:
    assert decode(request(shard=2), 3).shard == 2
    with pytest.raises(BadRequest, match="shard 3"):
        decode(request(shard=3), 3)


@given(st.binary(max_size=2 * REQUEST_BYTES) | st.binary(min_size=12, max_size=12))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    message = data
    if len(data) == 12:  # bytes 4 to 16 behind a good magic: most of what is checked
        message = request()[:4] + data + request()[16:]
    try:
        got = decode(message)
    except BadRequest:
        return
    assert len(message) == REQUEST_BYTES
    assert (got.endpoint is None) == (got.op not in (1, 2))


def test_reply_carries_errno_reason_and_cure() -> None:
    reply = ffi.from_buffer("struct ix_reply *", encode_reply(7))
    assert (reply.sequence, reply.error, ffi.string(reply.text)) == (7, 0, b"")
    error = PortTaken("port 80 is taken", "use another", errno.EADDRINUSE)
    reply = ffi.from_buffer("struct ix_reply *", encode_reply(8, error))
    assert (reply.sequence, reply.error) == (8, -errno.EADDRINUSE)
    assert ffi.string(reply.text) == b"port 80 is taken (cure: use another)"


def test_reply_without_errno_is_an_error_and_long_text_is_cut() -> None:
    reply = ffi.from_buffer("struct ix_reply *", encode_reply(1, IxError("x" * 1000)))
    assert reply.error == -errno.EIO
    assert 0 < len(ffi.string(reply.text)) < 248


class Log:
    """Counts what a ClaimTable makes and ends; refuses port 13."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.ended: list[int] = []

    def make(self, endpoint: Endpoint) -> None:
        if endpoint.port == 13:
            raise PortTaken("13 is taken")
        self.made.append(endpoint.port)

    def end(self, endpoint: Endpoint) -> None:
        self.ended.append(endpoint.port)


def test_claim_is_made_with_the_first_and_ended_with_the_last() -> None:
    log = Log()
    table = ClaimTable(log.make, log.end)
    http = Endpoint(Proto.TCP, None, 80)
    for worker in (0, 1, 1):
        table.claim(worker, http)
    assert log.made == [80] and table.endpoints() == (http,)
    table.unclaim(1, http)
    table.unclaim(0, http)
    assert log.ended == []
    table.unclaim(1, http)
    assert log.ended == [80] and table.endpoints() == ()


def test_worker_that_dies_gives_up_its_share_only() -> None:
    log = Log()
    table = ClaimTable(log.make, log.end)
    shared, alone = Endpoint(Proto.TCP, None, 80), Endpoint(Proto.UDP, None, 53)
    table.claim(0, shared)
    table.claim(1, shared)
    table.claim(0, alone)
    table.drop(0)
    assert log.ended == [53]
    table.drop(0)
    assert log.ended == [53]
    table.drop(1)
    assert log.ended == [53, 80]


def test_claim_that_is_refused_is_not_held() -> None:
    log = Log()
    table = ClaimTable(log.make, log.end)
    with pytest.raises(PortTaken):
        table.claim(0, Endpoint(Proto.TCP, None, 13))
    assert table.endpoints() == ()
    table.drop(0)
    assert log.ended == []
    with pytest.raises(IxError):
        table.unclaim(0, Endpoint(Proto.TCP, None, 13))


def test_end_of_a_process_is_told_in_words() -> None:
    assert exit_text(9) == "killed by SIGKILL"
    assert exit_text(2 << 8) == "exit status 2"


# ---- news --------------------------------------------------------------------------------------


class Told:
    """Collects control messages as (type, ip, gateway, source, value)."""

    def __init__(self, *own: IpInterface) -> None:
        self.messages: list[Any] = []
        self.changes = 0
        self.board = NewsBoard(self.messages.extend, own, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def take(self, messages: list[Any] | None = None) -> list[tuple[int, str, str, str, int]]:
        raw = self.messages if messages is None else messages
        taken = [
            (
                int(m.type),
                f"{ip_text(m.ip, m.family)}/{m.prefix}",
                ip_text(m.gateway, m.family),
                ip_text(m.source, m.family),
                int(m.value),
            )
            for m in raw
        ]
        self.messages.clear()
        return taken


def route(gateway: str | None, metric: int, to: str = "0.0.0.0/0") -> Route:
    return Route(IPv4Network(to), IPv4Address(gateway) if gateway else None, None, metric)


def test_shards_hear_of_the_route_of_least_metric_only() -> None:
    told = Told()
    told.board.on_route(route("10.0.0.1", 100), True)
    told.board.on_route(route("10.0.0.2", 200), True)
    none = "0.0.0.0"
    assert told.take() == [(lib.IX_CTL_ROUTE_SET, "0.0.0.0/0", "10.0.0.1", none, 0)]
    told.board.on_route(route("10.0.0.1", 100), False)
    assert told.take() == [(lib.IX_CTL_ROUTE_SET, "0.0.0.0/0", "10.0.0.2", none, 0)]
    told.board.on_route(route("10.0.0.2", 200), False)
    assert [m[0] for m in told.take()] == [lib.IX_CTL_ROUTE_DEL]
    told.board.on_route(route("10.0.0.2", 200), False)
    assert told.take() == []


def test_new_shard_hears_everything() -> None:
    told = Told()
    board = told.board
    board.on_link(LinkState(True, True, True, 1500, bytes(6)))
    board.on_address(IPv4Interface("10.0.0.5/24"), True)
    board.on_route(route(None, 0, "10.0.0.0/24"), True)
    board.on_route(route("10.0.0.1", 0), True)
    board.on_neigh(IPv4Address("10.0.0.1"), bytes(6))
    board.on_neigh(IPv4Address("10.0.0.2"), bytes(6))
    board.on_neigh(IPv4Address("10.0.0.2"), None)
    told.take()
    assert told.changes == 2
    got = told.take(board.snapshot())
    assert [m[0] for m in got] == [
        lib.IX_CTL_LINK,
        lib.IX_CTL_ADDR_ADD,
        lib.IX_CTL_ROUTE_SET,
        lib.IX_CTL_ROUTE_SET,
        lib.IX_CTL_NEIGH_SET,
    ]
    assert got[0][4] == 1
    assert got[4][1] == "10.0.0.1/32"


def test_own_address_is_the_only_one_and_the_source_of_all_routes() -> None:
    told = Told(IPv4Interface("10.0.0.50/24"))
    told.board.on_address(IPv4Interface("10.0.0.5/24"), True)
    assert told.take() == []
    told.board.on_route(route("10.0.0.1", 0), True)
    assert told.take()[0][3] == "10.0.0.50"
    got = told.take(told.board.snapshot())
    addresses = [m for m in got if m[0] == lib.IX_CTL_ADDR_ADD]
    assert [(m[1], m[4]) for m in addresses] == [("10.0.0.50/32", 1)]
    assert ("10.0.0.0/24", "10.0.0.50") in [(m[1], m[3]) for m in got]


def test_ipv6_is_told_as_it_is_and_own_addresses_are_of_either_family() -> None:
    gateway = IPv6Address("fe80::1")
    default = Route(IPv6Network("::/0"), gateway, None, 1024)
    told = Told()
    told.board.on_address(IPv6Interface("2001:db8::5/64"), True)
    told.board.on_route(default, True)
    told.board.on_neigh(gateway, bytes(6))
    assert told.take() == [
        (lib.IX_CTL_ADDR_ADD, "2001:db8::5/32", "::", "::", 0),
        (lib.IX_CTL_ROUTE_SET, "::/0", "fe80::1", "::", 0),
        (lib.IX_CTL_NEIGH_SET, "fe80::1/32", "::", "::", 0),
    ]
    told = Told(IPv4Interface("10.0.0.50/24"), IPv6Interface("2001:db8::50/64"))
    told.board.on_route(default, True)
    assert told.take() == [(lib.IX_CTL_ROUTE_SET, "::/0", "fe80::1", "2001:db8::50", 0)]
    got = told.take(told.board.snapshot())
    assert [m[1] for m in got if m[0] == lib.IX_CTL_ADDR_ADD] == [
        "10.0.0.50/32",
        "2001:db8::50/32",
    ]
    assert (lib.IX_CTL_ROUTE_SET, "2001:db8::/64", "::", "2001:db8::50", 0) in got


def test_more_routes_than_a_shard_holds_leaves_the_shortest_out() -> None:
    told = Told()
    for i in range(300):
        told.board.on_route(route(None, 0, f"10.{i // 256}.{i % 256}.0/24"), True)
    told.board.on_route(route("10.0.0.1", 0), True)
    told.take()
    got = told.take(told.board.snapshot())
    assert len(got) == 256 and all(m[1].endswith("/24") for m in got)


# ---- instances and statistics --------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(instances, "run_directories", lambda: (tmp_path / "run",))
    return tmp_path / "run"


def test_instance_is_found_while_its_process_lives(place: Path) -> None:
    made = create_instance(None, "eth9", {"interface": "eth9"})
    assert made.name == "eth9"
    made.update(state="serving")
    found = find_instance(None)
    assert (found.name, found.pid, found.facts["state"]) == ("eth9", os.getpid(), "serving")
    assert found.ask() == {}, "nobody answers, and that is no error"
    made.remove()
    assert find_instances() == []


def test_instance_without_a_name_gets_a_free_one(place: Path) -> None:
    first = create_instance(None, "eth9", {})
    second = create_instance(None, "eth9", {})
    assert (first.name, second.name) == ("eth9", "eth9-2")
    with pytest.raises(InstanceError, match="several") as caught:
        find_instance(None)
    assert caught.value.cure
    assert find_instance("eth9-2").name == "eth9-2"
    with pytest.raises(InstanceError, match="no instance is called 'x'"):
        find_instance("x")


def test_instance_on_an_interface_of_an_odd_name_has_one_that_can_be(place: Path) -> None:
    names = [create_instance(None, odd, {}).name for odd in ("_x", "eth0@lan", "\xe9th0", "-")]
    assert names == ["if_x", "eth0-lan", "if-th0", "if-"]


def test_instance_of_a_name_in_use_is_refused(place: Path) -> None:
    create_instance("web", "eth9", {})
    with pytest.raises(InstanceError, match="'web' is running"):
        create_instance("web", "eth9", {})


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "x" * 65, "a b", "a\n"])
def test_name_that_is_no_file_name_is_refused(place: Path, name: str) -> None:
    with pytest.raises(InstanceError, match="no name"):
        create_instance(name, "eth9", {})


def test_directory_of_a_dead_process_is_removed(place: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    for name, pid, ticks in (
        ("dead", int(ended.stdout), 1),
        ("reused", os.getpid(), (process_start_ticks(os.getpid()) or 0) - 1),
    ):
        (place / name).mkdir(parents=True)
        facts = {"pid": pid, "start_ticks": ticks}
        (place / name / "instance.json").write_text(json.dumps(facts))
    # Not ours to remove: it may be an instance in the making.
    (place / "strange").mkdir()
    with _locked(place):  # someone makes an instance: its name may be one of these
        assert find_instances() == []
        assert {entry.name for entry in place.iterdir()} == {"dead", "reused", "strange", ".lock"}
    assert find_instances() == []
    assert {entry.name for entry in place.iterdir()} == {"strange", ".lock"}


def test_zombie_is_no_running_process() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_start_ticks(pid) is None
    os.waitpid(pid, 0)


def stats_file(path: Path, **values: int) -> Path:
    """A shard's statistics as a shard would leave them."""
    data = bytearray(stats_bytes())
    stats = ffi.from_buffer("struct ix_stats *", data)
    stats.magic, stats.counter_count = STATS_MAGIC, len(counter_names())
    stats.batch_hist[0], stats.batch_hist[3] = 10, 2
    for name, value in values.items():
        if name in counter_names():
            stats.counters[counter_names().index(name)] = value
        else:
            setattr(stats, name, value)
    path.write_bytes(data)
    return path


def test_statistics_of_another_process_are_read_by_name(tmp_path: Path) -> None:
    file = ShardFile(stats_file(tmp_path / "s", flows=7, tcp_in=9, cycles=4, cycles_idle=3), 1)
    reading = file.read()
    assert (reading.shard_id, reading.values["flows"], reading.values["tcp_in"]) == (1, 7, 9)
    assert reading.batches == {0: 10, 3: 2}
    assert mean_batch(reading.batches) == 3.0
    assert busy_ratio(reading.values) == 0.25
    assert total([reading, reading])["tcp_in"] == 18
    assert set(reading.values) == set(meanings())


def test_file_that_holds_no_statistics_is_refused(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("short", b"x"), ("zero", bytes(stats_bytes()))):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(StatsError):
            ShardFile(path, 0)
    with pytest.raises(StatsError):
        ShardFile(tmp_path / "absent", 0)


def test_instance_with_trouble_is_named_by_doctor() -> None:
    values = {"drop_partial_csum": 5, "fill_starved": 1, "drop_tcp_flows": 2}
    found = list(instance_findings("web", values))
    assert len(found) == 3 and all(f.level == WARN and f.cure for f in found)
    assert "ethtool -K PEER tx off" in found[0].cure
    assert list(instance_findings("web", {})) == []


def test_worst_finding_decides() -> None:
    fine, odd, bad = (Finding("a", "b", level, "c") for level in (OK, WARN, FAIL))
    assert worst([fine]) == OK
    assert worst([fine, odd]) == WARN
    assert worst([odd, bad, fine]) == FAIL


def test_no_shard_outside_of_a_worker() -> None:
    with pytest.raises(NotInWorker) as caught:
        current_app()
    assert "ixnet run" in caught.value.cure


def test_mode_that_the_driver_denies_is_refused_early() -> None:
    from types import SimpleNamespace

    from ixnet.control.config import require_mode

    nic: Any = SimpleNamespace(name="eth9", driver="d", xdp_features=frozenset({"basic"}))
    with pytest.raises(ModeUnavailable):
        require_mode(config(mode="zerocopy"), nic)
    require_mode(config(mode="copy"), nic)
    nic.xdp_features = None
    require_mode(config(mode="zerocopy"), nic)


def test_instance_is_compared_by_what_its_file_says(tmp_path: Path) -> None:
    assert not Instance(tmp_path, {"pid": 1, "start_ticks": -1}).is_alive()
