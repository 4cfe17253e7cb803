"""A link to try things on: two network namespaces joined by a multi-queue veth pair.

    ixlab-srv                                   ixlab-cli
    ixs0  10.77.0.1/24  ------- veth -------  ixc0  10.77.0.2/24
          fd77:6978::1/64   (N queues each)         fd77:6978::2/64

Neither end ever exists in the host's namespace. Each namespace carries the lab's name as the alias
of its loopback interface, set before the namespace has a name: that mark is what makes it the lab's
own, so nothing that somebody else made under the same name is ever touched, and a run that was
killed half-way leaves only what the next `lab_up` or `lab_down` recognizes and clears.

Spreading over queues. A veth has no receive hashing of its own: frames sent on transmit queue k of
one end arrive on receive queue k of the other. The kernel picks the transmit queue from the flow's
hash, and a TCP socket draws that hash at random; so flows, not frames, are spread. But by default a
socket draws anew after a retransmission time-out, and its flow then moves to another queue, where
an AF_XDP socket can't follow. The lab switches that off (`net.core.txrehash`). Both ends have the
same number of queues: frames of a queue that the far end lacks would be folded on to another.

Offloads. A veth hands unfinished checksums and segments of up to 64 KiB to its peer, which a
dataplane would see as corrupt or oversized frames: checksum and segmentation offload are off at
both ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool

from ixnet.control.namespaces import (
    NetnsError,
    end_processes,
    in_netns,
    is_netns,
    netns_path,
    processes_in_netns,
    run_in_netns,
)

LOCK_PATH = Path("/run/lock/ixnet-lab.lock")
MARK_PREFIX = "ixnet-lab "

_THREAD_PATIENCE_S = 60.0
_CLONE_NEWNET = 0x40000000
_IFA_F_NODAD = 0x02
_NUD_PERMANENT = 0x80
_MAX_QUEUES = 64
_NETNS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_TAG_LENGTH = 64

# Off at both ends, by their kernel names; names that this kernel lacks are skipped.
_OFFLOADS_OFF = (
    "tx-checksum-ip-generic",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-accecn-segmentation",
    "tx-udp-segmentation",
    "tx-generic-segmentation",
    "tx-gso-list",
    "rx-gro",
    "rx-gro-list",
)

# Per namespace. tw_reuse and the port range: a client that opens 20,000 connections a second must
# not run out of ports. Reserved: the outgoing ports of a dataplane. Frames of address
# autoconfiguration would be noise on the link.
_SYSCTLS: Mapping[str, str] = {
    "net/core/txrehash": "0",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/ip_local_port_range": "10000\t65535",
    "net/ipv4/ip_local_reserved_ports": "61000-65535",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
}


class LabError(NetnsError):
    """The lab can't be had as asked; the message names the cause and the cure."""


@dataclass(frozen=True)
class LabConfig:
    """What the lab should be. The two namespace names are its identity.

    queues: receive and transmit queues at each end, 1..64. mtu: bytes, 1280..65535.
    static_neighbours: permanent neighbour entries at both ends instead of ARP and ND.
    """

    server_netns: str = "ixlab-srv"
    client_netns: str = "ixlab-cli"
    server_if: str = "ixs0"
    client_if: str = "ixc0"
    queues: int = 2
    mtu: int = 1500
    server_ip: str = "10.77.0.1/24"
    client_ip: str = "10.77.0.2/24"
    server_ip6: str = "fd77:6978::1/64"
    client_ip6: str = "fd77:6978::2/64"
    server_mac: str = "02:69:78:00:00:01"
    client_mac: str = "02:69:78:00:00:02"
    static_neighbours: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.queues <= _MAX_QUEUES:
            raise LabError(f"queues must be 1 to {_MAX_QUEUES}, not {self.queues}")
        if not 1280 <= self.mtu <= 65535:
            raise LabError(f"mtu must be 1280 (IPv6's least) to 65535 bytes, not {self.mtu}")
        for name in (self.server_netns, self.client_netns):
            if not _NETNS_NAME.match(name):
                raise LabError(f"{name!r} is no name for a network namespace")
        if self.server_netns == self.client_netns:
            raise LabError("the two namespaces need different names")
        for ifname in (self.server_if, self.client_if):
            if not 0 < len(ifname) < 16 or "/" in ifname or ifname == "lo":
                raise LabError(f"{ifname!r} is no name for an interface (1 to 15 characters)")

    @classmethod
    def named(cls, tag: str, **changes: Any) -> LabConfig:
        """A lab whose namespaces are ixlab-TAG-srv and -cli, beside any other lab. Errors: LabError
        if tag is no name."""
        if not _NETNS_NAME.match(tag) or len(tag) > _TAG_LENGTH:
            raise LabError(
                f"{tag!r} is no name for a lab: use letters, digits and . _ - "
                f"(at most {_TAG_LENGTH})"
            )
        return cls(server_netns=f"ixlab-{tag}-srv", client_netns=f"ixlab-{tag}-cli", **changes)

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Namespace and interface, of the server's end and of the client's."""
        return (self.server_netns, self.server_if), (self.client_netns, self.client_if)

    @property
    def mark(self) -> str:
        """The alias that the loopback interface of both namespaces carries."""
        return f"{MARK_PREFIX}{self.server_netns}+{self.client_netns}"


@dataclass(frozen=True)
class EndFacts:
    """One end of the link as the kernel reports it. offloads: the ones the lab cares about."""

    netns: str
    interface: str
    index: int
    mac: str
    up: bool
    mtu: int
    rx_queues: int
    tx_queues: int
    addresses: tuple[str, ...]
    offloads: Mapping[str, bool]
    xdp_attached: bool
    sysctls: Mapping[str, str]
    processes: Mapping[int, str]

    @property
    def ip(self) -> str:
        """The first IPv4 address, without its prefix length."""
        return next(a.split("/")[0] for a in self.addresses if "." in a)


@dataclass(frozen=True)
class LabFacts:
    """A whole lab. created: whether this call built it, or found it as asked."""

    server: EndFacts
    client: EndFacts
    neighbours: str
    created: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LabStatus:
    """state: "absent", "up" (as configured) or "partial" (the lab's own, but not as configured),
    or "foreign" (a namespace of that name that is not a lab's). problems: why it isn't "up"."""

    state: str
    problems: tuple[str, ...] = ()
    facts: LabFacts | None = field(default=None)


# ---- making and unmaking ----------------------------------------------------------------------


@contextmanager
def _locked() -> Iterator[None]:
    """One change of labs at a time on this machine."""
    LOCK_PATH.parent.mkdir(parents=True, exist_ok=True)
    with LOCK_PATH.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _iproute(name: str) -> Iterator[IPRoute]:
    """Netlink in a namespace. Not IPRoute(netns=...), which forks: the child would run this
    process's signal handlers, and hold its locks."""
    with in_netns(name), IPRoute() as ipr:
        yield ipr


def _run_in_thread(work: Callable[[], None]) -> None:
    """Runs work in a thread of its own, so that a namespace change ends with it."""
    failures: list[BaseException] = []
    done = threading.Event()

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=guarded, name="ixnet-lab")
    try:
        thread.start()
        thread.join()
    except BaseException:
        # A signal, perhaps before start() knew that the thread runs: nothing is to go on behind the
        # back of the cleaning up.
        done.wait(_THREAD_PATIENCE_S)
        raise
    if failures:
        raise failures[0]


def _create_netns(name: str, mark: str) -> None:
    """Makes a namespace that carries the mark before it can be seen under its name."""

    def create() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        with IPRoute() as ipr:
            ipr.link("set", index=1, state="up", IFLA_IFALIAS=mark)
        netns.attach(name, threading.get_native_id())

    _run_in_thread(create)


def _mark_of(name: str) -> str | None:
    with _iproute(name) as ipr:
        alias: str | None = next(iter(ipr.get_links(1))).get("IFLA_IFALIAS")
        return alias


def _ownership(cfg: LabConfig, name: str) -> str:
    """ "absent", "own", "foreign", or "leftover": the empty file of a creation that was killed
    before anything was mounted on it."""
    path = netns_path(name)
    if not path.exists():
        return "absent"
    if not is_netns(path):
        return "leftover" if path.is_file() and path.stat().st_size == 0 else "foreign"
    return "own" if _mark_of(name) == cfg.mark else "foreign"


def _require_own(cfg: LabConfig) -> dict[str, str]:
    if os.geteuid() != 0:
        raise LabError("network namespaces need root: run this with sudo")
    states = {name: _ownership(cfg, name) for name in (cfg.server_netns, cfg.client_netns)}
    for name, state in states.items():
        if state == "foreign":
            raise LabError(
                f"the network namespace {name} exists and is not this lab's; choose another name, "
                f"or delete it yourself if nobody needs it (ip netns delete {name})"
            )
    return states


def _build(cfg: LabConfig) -> None:
    _create_netns(cfg.server_netns, cfg.mark)
    _create_netns(cfg.client_netns, cfg.mark)
    for name in (cfg.server_netns, cfg.client_netns):
        _set_sysctls(name)
    with _iproute(cfg.server_netns) as ipr:
        _link_namespaces(cfg, ipr)
        _configure_end(ipr, cfg.server_netns, cfg.server_if, (cfg.server_ip, cfg.server_ip6))
        if cfg.static_neighbours:
            _pin_neighbours(ipr, cfg.server_if, (cfg.client_ip, cfg.client_ip6), cfg.client_mac)
    with _iproute(cfg.client_netns) as ipr:
        _configure_end(ipr, cfg.client_netns, cfg.client_if, (cfg.client_ip, cfg.client_ip6))
        if cfg.static_neighbours:
            _pin_neighbours(ipr, cfg.client_if, (cfg.server_ip, cfg.server_ip6), cfg.server_mac)


def _configure_end(ipr: IPRoute, name: str, ifname: str, addresses: Sequence[str]) -> None:
    index = ipr.link_lookup(ifname=ifname)[0]
    _offloads_off(name, ifname)
    for text in addresses:
        address = ip_interface(text)
        ipr.addr(
            "add",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            flags=_IFA_F_NODAD if address.version == 6 else 0,
        )
    ipr.link("set", index=index, state="up")


def _link_namespaces(cfg: LabConfig, server: IPRoute) -> None:
    queues = {"num_rx_queues": cfg.queues, "num_tx_queues": cfg.queues}
    client_ns = os.open(netns_path(cfg.client_netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": cfg.client_if, "net_ns_fd": client_ns, "address": cfg.client_mac}
        server.link(
            "add",
            ifname=cfg.server_if,
            kind="veth",
            address=cfg.server_mac,
            mtu=cfg.mtu,
            peer={**peer, "mtu": cfg.mtu, **queues},
            **queues,
        )
    finally:
        os.close(client_ns)


def _pin_neighbours(ipr: IPRoute, ifname: str, others: Sequence[str], mac: str) -> None:
    index = ipr.link_lookup(ifname=ifname)[0]
    for text in others:
        address = str(ip_interface(text).ip)
        ipr.neigh("replace", dst=address, lladdr=mac, ifindex=index, state=_NUD_PERMANENT)


def switch_offloads(name: str, ifname: str, on: bool, *offloads: str) -> None:
    """Turns offloads of an interface in a namespace on or off, by the kernel's names for them.
    Errors: LabError."""
    with in_netns(name):
        tool = IoctlEthtool(ifname)
        try:
            features = tool.get_features()
            for offload in offloads:
                features[offload] = on
            tool.set_features(features)
        except (EthtoolError, OSError) as error:
            raise LabError(f"can't set the offloads of {ifname} in {name}: {error}") from error
        finally:
            tool.close()


def _offloads_off(name: str, ifname: str) -> None:
    """Errors: LabError naming the offload that stayed on."""
    switch_offloads(name, ifname, False, *_offloads(name, ifname))
    left_on = [offload for offload, on in _offloads(name, ifname).items() if on]
    if left_on:
        raise LabError(f"{ifname} in {name} does not let go of {', '.join(left_on)}")


def _offloads(name: str, ifname: str) -> dict[str, bool]:
    with in_netns(name):
        tool = IoctlEthtool(ifname)
        try:
            features = tool.get_features()
            return {o: bool(features[o]) for o in _OFFLOADS_OFF if o in features}
        finally:
            tool.close()


def _set_sysctls(name: str) -> None:
    with in_netns(name):
        for key, value in _SYSCTLS.items():
            path = Path("/proc/sys") / key
            if path.exists():  # txrehash came with Linux 5.18
                path.write_text(value)


def _read_sysctls(name: str) -> dict[str, str]:
    with in_netns(name):
        paths = {key: Path("/proc/sys") / key for key in _SYSCTLS}
        return {key: path.read_text().strip() for key, path in paths.items() if path.exists()}


def _remove(cfg: LabConfig, states: Mapping[str, str]) -> bool:
    """Deletes what _ownership called ours. The link goes first: a process that still sits in a
    namespace keeps it alive, nameless, and would keep its interfaces too."""
    removed = False
    for name, ifname in cfg.ends:
        if states[name] == "own":
            with _iproute(name) as ipr:
                for index in ipr.link_lookup(ifname=ifname):
                    ipr.link("del", index=index)
    for name, _ in cfg.ends:
        if states[name] == "own":
            netns.remove(name)
            removed = True
        elif states[name] == "leftover":
            netns_path(name).unlink()
            removed = True
    return removed


def _clear(cfg: LabConfig, states: Mapping[str, str], kill: bool) -> bool:
    pids: dict[int, str] = {}
    for name, state in states.items():
        if state == "own":
            pids |= processes_in_netns(name)
    if pids and kill:
        end_processes(list(pids))
    elif pids:
        running = ", ".join(f"{comm} ({pid})" for pid, comm in sorted(pids.items()))
        raise LabError(f"still running in the lab's namespaces: {running}; end that first")
    return _remove(cfg, states)


# ---- what callers use -------------------------------------------------------------------------


def lab_up(cfg: LabConfig | None = None, kill: bool = False) -> LabFacts:
    """Brings the lab up as configured, or finds that it is. Whatever fails, nothing stays behind.

    A lab of the same names that differs from cfg is replaced. kill: end what runs in it, rather
    than refuse. Errors: LabError (not root, a name taken by somebody else, processes in the way).
    """
    cfg = cfg or LabConfig()
    with _locked():
        states = _require_own(cfg)
        if set(states.values()) == {"own"} and not _problems(cfg):
            return _facts(cfg, created=False)
        _clear(cfg, states, kill)
        try:
            _build(cfg)
            problems = _problems(cfg)
            if problems:
                raise LabError(f"the lab came up wrong: {'; '.join(problems)}")
        except BaseException as error:
            _remove(cfg, _require_own(cfg))
            if isinstance(error, NetnsError) or not isinstance(error, Exception):
                raise
            raise LabError(f"can't build the lab: {error}") from error
        return _facts(cfg, created=True)


def lab_down(cfg: LabConfig | None = None, kill: bool = False) -> bool:
    """Takes the lab down. Returns whether there was anything to take down.

    kill: end what runs in its namespaces, rather than refuse. Errors: LabError as for lab_up.
    """
    cfg = cfg or LabConfig()
    with _locked():
        return _clear(cfg, _require_own(cfg), kill)


def lab_status(cfg: LabConfig | None = None) -> LabStatus:
    """Looks, and changes nothing. Errors: LabError if not root."""
    cfg = cfg or LabConfig()
    if os.geteuid() != 0:
        raise LabError("network namespaces need root: run this with sudo")
    states = {name: _ownership(cfg, name) for name in (cfg.server_netns, cfg.client_netns)}
    if set(states.values()) == {"absent"}:
        return LabStatus("absent")
    foreign = [name for name, state in states.items() if state == "foreign"]
    if foreign:
        return LabStatus("foreign", tuple(f"{name} is not this lab's" for name in foreign))
    missing = [f"{name} is {state}" for name, state in states.items() if state != "own"]
    problems = tuple(missing) or _problems(cfg)
    if problems:
        return LabStatus("partial", problems)
    return LabStatus("up", (), _facts(cfg, created=False))


def _problems(cfg: LabConfig) -> tuple[str, ...]:
    """How the two namespaces, which exist, differ from cfg."""
    found: list[str] = []
    ends = (
        (cfg.server_netns, cfg.server_if, cfg.server_mac, (cfg.server_ip, cfg.server_ip6)),
        (cfg.client_netns, cfg.client_if, cfg.client_mac, (cfg.client_ip, cfg.client_ip6)),
    )
    for name, ifname, mac, addresses in ends:
        try:
            end = _end_facts(name, ifname)
        except LabError as error:
            found.append(str(error))
            continue
        wanted = {
            "mac": (end.mac, mac),
            "mtu": (end.mtu, cfg.mtu),
            "receive queues": (end.rx_queues, cfg.queues),
            "transmit queues": (end.tx_queues, cfg.queues),
            "up": (end.up, True),
            "offloads on": (_unwanted_offloads(end), []),
        }
        found += [
            f"{ifname} in {name}: {what} is {got}, not {want}"
            for what, (got, want) in wanted.items()
            if got != want
        ]
        found += [f"{ifname} in {name} lacks {a}" for a in addresses if a not in end.addresses]
        found += [
            f"{name}: {key} is {value!r}"
            for key, value in end.sysctls.items()
            if value != _SYSCTLS[key]
        ]
        if _has_static_neighbours(name) != cfg.static_neighbours:
            found.append(f"{name}: neighbours are not {_neighbour_word(cfg)}")
    return tuple(found)


def _unwanted_offloads(end: EndFacts) -> list[str]:
    """A veth turns GRO on by itself while it has an XDP program."""
    expected = {"rx-gro"} if end.xdp_attached else set()
    return [name for name, on in end.offloads.items() if on and name not in expected]


def _has_static_neighbours(name: str) -> bool:
    with _iproute(name) as ipr:
        return any(n["state"] & _NUD_PERMANENT for n in ipr.get_neighbours())


def _neighbour_word(cfg: LabConfig) -> str:
    return "static" if cfg.static_neighbours else "kernel"


def _facts(cfg: LabConfig, created: bool) -> LabFacts:
    return LabFacts(
        server=_end_facts(cfg.server_netns, cfg.server_if),
        client=_end_facts(cfg.client_netns, cfg.client_if),
        neighbours=_neighbour_word(cfg),
        created=created,
    )


def _end_facts(name: str, ifname: str) -> EndFacts:
    with _iproute(name) as ipr:
        indexes = ipr.link_lookup(ifname=ifname)
        if not indexes:
            raise LabError(f"no interface {ifname} in {name}")
        link = next(iter(ipr.get_links(indexes[0])))
        addresses = tuple(
            f"{a.get('IFA_ADDRESS')}/{a['prefixlen']}" for a in ipr.get_addr(index=indexes[0])
        )
    xdp = link.get("IFLA_XDP")
    return EndFacts(
        netns=name,
        interface=ifname,
        index=indexes[0],
        mac=link.get("IFLA_ADDRESS"),
        up=link.get("IFLA_OPERSTATE") == "UP",
        mtu=link.get("IFLA_MTU"),
        rx_queues=link.get("IFLA_NUM_RX_QUEUES"),
        tx_queues=link.get("IFLA_NUM_TX_QUEUES"),
        addresses=addresses,
        offloads=_offloads(name, ifname),
        xdp_attached=bool(xdp is not None and xdp.get("IFLA_XDP_ATTACHED")),
        sysctls=_read_sysctls(name),
        processes=processes_in_netns(name),
    )


class Lab:
    """A lab for the length of a with block; what was started in it ends with it.

        with Lab(LabConfig.named("t1", queues=4)) as lab:
            server = lab.start_server(["./echo"], cpu=1)

    Errors: LabError on entry, as lab_up.
    """

    facts: LabFacts

    def __init__(self, cfg: LabConfig | None = None) -> None:
        self.cfg = cfg or LabConfig()
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Lab:
        self.facts = lab_up(self.cfg, kill=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(*self._started)
        lab_down(self.cfg, kill=True)

    def set_gro(self, on: bool) -> None:
        """GRO at both ends, off in a new lab. On, each end takes XDP frames whatever runs there, so
        that a dataplane at the other can send without skbs (control/express.py); what a dataplane
        receives stays as it is. Errors: LabError."""
        for name, ifname in self.cfg.ends:
            switch_offloads(name, ifname, on, "rx-gro")

    def start_server(
        self, argv: Sequence[str], cpu: int | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        """Starts a program in the server's namespace, as run_in_netns."""
        return self._start(self.cfg.server_netns, argv, cpu, popen)

    def start_client(
        self, argv: Sequence[str], cpu: int | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        """Starts a program in the client's namespace, as run_in_netns."""
        return self._start(self.cfg.client_netns, argv, cpu, popen)

    def _start(
        self, name: str, argv: Sequence[str], cpu: int | None, popen: Mapping[str, Any]
    ) -> subprocess.Popen[str]:
        process = run_in_netns(name, argv, cpu, **popen)
        self._started.append(process)
        return process

    def stop(self, *processes: subprocess.Popen[str], patience_s: float = 10.0) -> None:
        """Ends programs of this lab: SIGTERM, and SIGKILL after patience_s seconds."""
        alive = [p for p in processes if p.poll() is None]
        end_processes([p.pid for p in alive], patience_s)
        for process in processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._started = [p for p in self._started if p not in processes]
