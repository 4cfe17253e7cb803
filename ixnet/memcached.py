"""`ixnet memcached`: memcached's options, its store, and the instance that serves it.

The store lies in memory that this process maps before it forks the workers; requests are handled by
`app_memcached.so` (apps/memcached/) in each worker. When a worker dies, what it left half done is
taken back here.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from ixnet._memcached import ffi, lib
from ixnet.control.config import FLOWS_DEFAULT, ConfigError, RunConfig
from ixnet.control.errors import IxError
from ixnet.control.nic import Nic
from ixnet.control.xdp import IpAddress
from ixnet.runtime import Program

LIBRARY = Path(__file__).parent / "app_memcached.so"
PROTOCOLS = ("auto", "ascii", "binary")
_WHY_BYTES = 320
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class MemcachedConfig:
    """memcached's options, by the letters of its command line.

    memory_mb: -m. item_size: -I, like 1m or 512k. port, udp_port: -p, -U; 0 is none. conns: -c, of
    all workers together. listen: -l, one address; None every one. growth_factor: -f. chunk_min: -n,
    bytes for key, value and flags of the smallest class. shutdown_command: -A. no_dump: -X.
    no_watch: -W. protocol: -B. options: -o.
    """

    memory_mb: int = 64
    item_size: str = "1m"
    port: int = 11211
    udp_port: int = 0
    conns: int = 1024
    listen: str | None = None
    growth_factor: float = 1.25
    chunk_min: int = 48
    backlog: int = 1024
    verbose: int = 0
    no_eviction: bool = False
    no_cas: bool = False
    no_flush: bool = False
    large_pages: bool = False
    shutdown_command: bool = False
    no_dump: bool = False
    no_watch: bool = False
    protocol: str = "auto"
    options: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, port in (("-p", self.port), ("-U", self.udp_port)):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{name} {port} is no port", "use 0 (none) to 65535")
        if not (self.port or self.udp_port):
            raise ConfigError("no port to serve", "give -p or -U")
        if self.protocol not in PROTOCOLS:
            raise ConfigError(
                f"-B {self.protocol} is not known", f"use one of: {', '.join(PROTOCOLS)}"
            )


def parse_size(text: str) -> int:
    """Bytes of a size like 1m, 512k or 1048576."""
    found = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not found:
        raise ConfigError(f"{text} is no size", "write it like 512k, 1m or 1048576")
    return int(found[1]) * _UNITS[found[2]]


def _number(name: str, text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise ConfigError(f"-o {name} needs a number", f"write it like -o {name}=1")
    return int(text)


def _percent(name: str, text: str | None) -> int:
    try:
        return round(float(text or "") * 100)
    except ValueError as error:
        raise ConfigError(f"-o {name} needs a number", f"write it like -o {name}=0.2") from error


def _set(attribute: str, value: int) -> Callable[[Any, str, str | None], None]:
    """An option without a value."""

    def apply(c: Any, name: str, text: str | None) -> None:
        if text is not None:
            raise ConfigError(f"-o {name} takes no value", f"write it like -o {name}")
        setattr(c, attribute, value)

    return apply


def _take(
    attribute: str, read: Callable[[str, str | None], int]
) -> Callable[[Any, str, str | None], None]:
    """An option with one."""
    return lambda c, name, text: setattr(c, attribute, read(name, text))


def _automove(c: Any, text: str | None) -> None:
    if text not in (None, "0", "1", "2"):
        raise ConfigError(f"-o slab_automove={text} is no mode", "use 0 (off), 1 or 2")
    c.automove = int(text or 1)


def _ignored(c: Any, name: str, text: str | None) -> None:
    """An option about something that is otherwise here: threads, buffers, the hash."""


# What -o knows, by memcached's names.
OPTIONS: dict[str, Callable[[Any, str, str | None], None]] = {
    "hashpower": _take("hash_power", _number),
    "slab_chunk_max": _take("chunk_max_bytes", lambda _, text: parse_size(text or "")),
    "idle_timeout": _take("idle_timeout_s", _number),
    "hot_lru_pct": _take("hot_percent", _number),
    "warm_lru_pct": _take("warm_percent", _number),
    "hot_max_factor": _take("hot_factor_percent", _percent),
    "warm_max_factor": _take("warm_factor_percent", _percent),
    "temporary_ttl": _take("temp_ttl_s", _number),
    "lru_crawler": _set("lru_crawler", 1),
    "no_lru_crawler": _set("lru_crawler", 0),
    "lru_maintainer": _set("maintainer", 1),
    "no_lru_maintainer": _set("maintainer", 0),
    "track_sizes": _set("track_sizes", 1),
    "slab_reassign": _set("no_reassign", 0),
    "no_slab_reassign": _set("no_reassign", 1),
    "slab_automove": lambda c, name, text: _automove(c, text),
    "no_slab_automove": _set("automove", 0),
    "slab_automove_ratio": _take("automove_percent", _percent),
    **dict.fromkeys(
        ("modern", "maxconns_fast", "hash_algorithm", "no_hashexpand", "tail_repair_time",
         "lru_crawler_sleep", "lru_crawler_tocrawl", "slab_automove_window",
         "watcher_logbuf_size", "worker_logbuf_size",
         "read_buf_mem_limit", "resp_obj_mem_limit", "inline_ascii_resp", "no_inline_ascii_resp"),
        _ignored,
    ),
}  # fmt: skip


def parse_options(text: str) -> dict[str, str | None]:
    """-o name,name=value,... Errors: ConfigError names the options that there are."""
    found: dict[str, str | None] = {}
    for word in filter(None, text.split(",")):
        name, given, value = word.partition("=")
        if name not in OPTIONS:
            raise ConfigError(f"-o {name} is not known", f"known are: {', '.join(OPTIONS)}")
        found[name] = value if given else None
    return found


@contextmanager
def _in_range(option: str, value: object) -> Iterator[None]:
    """Around what puts an option's value where a number of the store's size has to hold it."""
    try:
        yield
    except (OverflowError, ValueError) as error:
        raise ConfigError(
            f"{option} {value} is out of range", "see ixnet memcached --help"
        ) from error


class Store:
    """The items, in memory shared with workers that are forked later."""

    def __init__(self, config: MemcachedConfig, workers: int) -> None:
        c = ffi.new("struct ix_mc_config *")
        lib.ix_mc_config_init(c)
        c.now_ns, c.wall_s = time.monotonic_ns(), int(time.time())
        c.hash_key = secrets.randbits(64)
        with _in_range("-m", config.memory_mb):
            c.limit_bytes = config.memory_mb << 20
        with _in_range("-I", config.item_size):
            c.item_max_bytes = parse_size(config.item_size)
        with _in_range("-n", config.chunk_min):
            c.chunk_min_bytes = config.chunk_min
        c.chunk_max_bytes = min(c.chunk_max_bytes, c.item_max_bytes // 2 & ~7)
        with _in_range("-f", config.growth_factor):
            c.growth_percent = round(config.growth_factor * 100)
        with _in_range("-c", config.conns):
            c.conns_max = config.conns
        with _in_range("-t", workers):
            c.workers = workers
        with _in_range("-b", config.backlog):
            c.backlog = config.backlog
        c.tcp_port, c.udp_port, c.verbose = config.port, config.udp_port, config.verbose
        c.no_eviction, c.no_cas = config.no_eviction, config.no_cas
        c.no_flush, c.large_pages = config.no_flush, config.large_pages
        c.shutdown_command, c.no_dump = config.shutdown_command, config.no_dump
        c.no_watch = config.no_watch
        c.protocol = PROTOCOLS.index(config.protocol)
        if config.listen is not None:
            c.listen = config.listen.encode()[:47]
        for name, text in config.options.items():
            with _in_range("-o", f"{name}={text}"):
                OPTIONS[name](c, name, text)
        why = ffi.new("char[]", _WHY_BYTES)
        self._store = lib.ix_mc_new(c, why, _WHY_BYTES)
        if self._store == ffi.NULL:
            raise IxError(ffi.string(why).decode(), "see ixnet memcached --help")

    @property
    def address(self) -> int:
        """Where it lies, in this process and in those forked from it."""
        return int(ffi.cast("uintptr_t", self._store))

    @property
    def items(self) -> int:
        """How many items it has."""
        return int(lib.ix_mc_items(self._store))

    @property
    def nbytes(self) -> int:
        """Bytes of items, keys and headers included."""
        return int(lib.ix_mc_bytes(self._store))

    def recover(self, worker: int) -> None:
        """Takes back what a dead worker left, while others run."""
        lib.ix_mc_recover(self._store, worker)

    def check(self) -> str | None:
        """Which invariant does not hold; None: all do. For when no worker runs."""
        wrong = lib.ix_mc_check(self._store)
        return None if wrong == ffi.NULL else ffi.string(wrong).decode()

    def close(self) -> None:
        """Unmaps it. Safe to repeat."""
        lib.ix_mc_free(self._store)
        self._store = ffi.NULL


def program(store: Store) -> Program:
    """The application that serves the store."""
    return Program(LIBRARY, (f"{store.address:x}",), store.recover)


def check_listen(text: str, interface: str, ips: Collection[IpAddress]) -> None:
    """-l: is it one that the interface has? Errors: ConfigError names those there are."""
    cure = (
        f"give one of {', '.join(map(str, ips)) or 'its addresses'}; without -l every one is served"
    )
    try:
        ip = ip_address(text)
    except ValueError as error:
        raise ConfigError(f"-l {text} is not an address", cure) from error
    plain = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    if not ip.is_unspecified and (plain or ip) not in ips:
        raise ConfigError(f"-l {text} is not an address of {interface}", cure)


def serve(
    config: MemcachedConfig,
    interface: str,
    threads: int | None,
    cores: str | None,
    say: Callable[[str], None],
    complain: Callable[[str], None],
    **more: Any,
) -> int:
    """Runs a server to its end; returns the exit status.

    threads: how many NIC queues, None all. more: other fields of RunConfig.
    """
    from ixnet.control.cores import parse_cores
    from ixnet.control.server import run_instance

    nic = Nic.find(interface)
    if config.listen is not None:
        check_listen(config.listen, interface, nic.ips)
    workers = threads if threads is not None else len(nic.queues)
    store = Store(config, workers)
    try:
        run = RunConfig(
            interface=interface,
            program=program(store),
            queues=workers,
            cores=parse_cores(cores) if cores is not None else None,
            max_flows=max(FLOWS_DEFAULT, 2 * config.conns),
            **more,
        )
        status = run_instance(run, say, complain)
        if config.verbose:
            say(f"{store.items} items, {store.nbytes} bytes")
        return status
    finally:
        store.close()
