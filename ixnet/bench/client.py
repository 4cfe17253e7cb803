"""Where load comes from: worker processes on kernel sockets, or on queues of an ixnet dataplane."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from ixnet.bench.errors import BenchError
from ixnet.control.namespaces import in_netns, netns_path, run_in_netns

TRANSPORTS = ("kernel", "ixnet")
# Of an IPv4 or IPv6 header and a TCP header with timestamps.
_HEADERS_BYTES = {4: 52, 6: 72}


def load_file(name: str) -> Path:
    """A built part of the load generator. Errors: BenchError."""
    path = Path(__file__).parent / name
    if not path.exists():
        raise BenchError(f"{path} is not there", "run make build, or install the package again")
    return path


def interface_to(host: str) -> str | None:
    """The interface that leads to an IP address from here; None without a route."""
    with IPRoute() as ipr, suppress(Exception):
        for route in ipr.route("get", dst=host):
            for link in ipr.get_links(route.get_attr("RTA_OIF")):
                return str(link.get_attr("IFLA_IFNAME"))
    return None


@dataclass(frozen=True)
class Client:
    """How the client's side is made; the options of `ixnet run` have their names from there.

    netns: a named network namespace, None: this one. processes: of the kernel's client; over ixnet
    there is a worker a queue. cores: one a worker, in turn. sources: local addresses, used in turn.
    """

    transport: str = "kernel"
    netns: str | None = None
    interface: str | None = None
    cores: tuple[int, ...] = ()
    processes: int = 1
    queues: int = 1
    mode: str = "auto"
    busy_poll: bool = True
    spin: bool = False
    frames: int | None = None
    max_flows: int | None = None
    ports: str | None = None
    own_address: str | None = None
    placement: str = "inline"
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise BenchError(
                f"there is no client {self.transport}", f"use one of: {', '.join(TRANSPORTS)}"
            )
        if self.transport == "ixnet" and self.interface is None:
            raise BenchError(
                "over ixnet the client needs an interface", "say which: --interface IF"
            )

        if self.netns and not netns_path(self.netns).exists():
            raise BenchError(
                f"there is no network namespace {self.netns}", "ip netns list shows those there are"
            )
        if missing := set(self.cores) - os.sched_getaffinity(0):
            raise BenchError(
                f"this process may not run on core {min(missing)}",
                f"use some of {', '.join(map(str, sorted(os.sched_getaffinity(0))))}",
            )
        for source in self.sources:
            try:
                ipaddress.ip_address(source)
            except ValueError as error:
                raise BenchError(f"--source {source} is no IP address") from error

    @property
    def workers(self) -> int:
        """How many there will be."""
        return self.queues if self.transport == "ixnet" else self.processes

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Puts the calling thread into the client's namespace."""
        with in_netns(self.netns) if self.netns else nullcontext():
            yield

    def start(self, argv: Sequence[str], cpu: int | None = None) -> subprocess.Popen[str]:
        """Starts a program on the client's side, pinned if a core is given; one pipe for both
        outputs."""
        how: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        if self.netns:
            return run_in_netns(self.netns, argv, cpu, **how)
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        return subprocess.Popen([*pin, *argv], text=True, **how)

    def start_workers(
        self, words: Sequence[str], connections: int, under_way: int, name: str
    ) -> list[subprocess.Popen[str]]:
        """Starts all workers with these words of the load generator's command line.

        connections, and requests under_way: of each worker, for the sizes of its dataplane.
        name: the instance's.
        """
        count = str(self.workers)
        more = ["--workers", count]
        if self.sources:
            more += ["--source", ",".join(self.sources)]
        if self.transport == "ixnet":
            return [self.start(self._run_argv(words, more, connections, under_way, name))]
        program = str(load_file("ixload"))
        if self.spin:
            more.append("--spin")
        return [
            self.start([program, *words, *more, "--worker", str(i)], self._core(i))
            for i in range(self.processes)
        ]

    def _core(self, worker: int) -> int | None:
        return self.cores[worker % len(self.cores)] if self.cores else None

    def _run_argv(
        self, words: Sequence[str], more: Sequence[str], connections: int, under_way: int, name: str
    ) -> list[str]:
        assert self.interface is not None
        # Half a frame of the arena for each request that can be under way, and room for replies.
        frames = self.frames or min(1 << 17, max(8192, 1 << (4 * under_way).bit_length()))
        flows = self.max_flows or max(65_536, connections + connections // 4)
        sizes = ("--frames", str(frames), "--max-flows", str(flows))
        return self.run_argv("ixload.so", [*words, *more], name, *sizes)

    def run_argv(self, app: str, words: Sequence[str], name: str, *options: str) -> list[str]:
        """`ixnet run` of one of this package's applications, with options more than the client's
        own."""
        assert self.interface is not None
        argv = [sys.executable, "-m", "ixnet", "run", "--interface", self.interface]
        argv += ["--queues", str(self.queues), "--mode", self.mode, "--placement", self.placement]
        argv += ["--busy-poll" if self.busy_poll else "--block", "--no-restart-workers"]
        argv += ["--name", name, *options]
        if self.cores:
            argv += ["--cores", ",".join(map(str, self.cores))]
        if self.ports:
            argv += ["--ports", self.ports]
        if self.own_address:
            argv += ["--own-address", self.own_address]
        return [*argv, str(load_file(app)), "--", *words]

    def segment_bytes(self, family: int) -> int:
        """Payload of a full segment on the client's interface."""
        from ixnet.control.nic import Nic

        if self.interface is None:
            return 1448
        with self.inside():
            return min(Nic.find(self.interface).mtu, 1500) - _HEADERS_BYTES[family]

    def towards(self, host: str) -> Client:
        """The same with the interface that leads to a host, where none was named."""
        if self.interface is not None:
            return self
        with self.inside():
            return replace(self, interface=interface_to(host))

    def describe(self) -> dict[str, Any]:
        """For the result: transport, place, and what the interface is."""
        facts: dict[str, Any] = {
            "transport": self.transport,
            "workers": self.workers,
            "cores": list(self.cores) or sorted(os.sched_getaffinity(0)),
            "netns": self.netns,
            "interface": self.interface,
        }
        if self.interface is not None:
            from ixnet.control.nic import Nic

            with self.inside():
                nic = Nic.find(self.interface)
            facts |= {"driver": nic.driver, "mtu": nic.mtu}
        if self.transport == "kernel":
            facts |= {"mode": "kernel sockets", "placement": "kernel", "spin": self.spin}
        else:
            facts |= {"busy_poll": self.busy_poll, "placement": self.placement}
        return facts
