"""The demo's checks: is what comes back right, and does the rest of the host notice nothing."""

from __future__ import annotations

import hashlib
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyroute2.ethtool.ioctl import IoctlEthtool

from bench.common import patience, run_load
from ixnet.control.lab import LabConfig
from ixnet.control.namespaces import in_netns

CHUNK_BYTES = 1 << 20
PATIENCE_S = 15.0


@dataclass(frozen=True)
class Check:
    """One thing that was checked. facts: numbers that belong to it."""

    name: str
    ok: bool
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return asdict(self)


# ---- one connection, SHA-256 ------------------------------------------------------------------


def check_stream(lab: LabConfig, host: str, port: int, mib: int, seed: int = 1) -> Check:
    """Sends mib MiB of random bytes over one connection and compares digests of both directions."""
    name = f"{mib} MiB echoed over one connection, SHA-256 equal"
    sent, received = hashlib.sha256(), hashlib.sha256()
    failures: list[str] = []
    total = mib * CHUNK_BYTES
    got = 0
    started = time.monotonic()
    try:
        with in_netns(lab.client_netns):
            connection = socket.create_connection((host, port), timeout=patience(PATIENCE_S))
        with connection:
            sender = threading.Thread(
                target=_send_random, args=(connection, mib, seed, sent, failures), daemon=True
            )
            sender.start()
            while got < total and (chunk := connection.recv(min(CHUNK_BYTES, total - got))):
                received.update(chunk)
                got += len(chunk)
            sender.join(patience(PATIENCE_S))
            if got == total and connection.recv(1):
                failures.append("more came back than was sent")
    except OSError as error:
        failures.append(f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - started
    if got != total:
        failures.append(f"only {got:,} of {total:,} bytes came back")
    elif sent.digest() != received.digest():
        failures.append(f"sent {sent.hexdigest()}, received {received.hexdigest()}")
    facts = {"bytes": got, "seconds": seconds, "sha256": received.hexdigest()}
    detail = f"{received.hexdigest()[:16]}..., {got / seconds / 2**20:.0f} MiB/s each way"
    return Check(name, not failures, "; ".join(failures) or detail, facts)


def _send_random(
    connection: socket.socket, mib: int, seed: int, digest: Any, failures: list[str]
) -> None:
    """Sends and digests, then closes this half; the echo must end with the server's FIN."""
    source = random.Random(seed)
    try:
        for _ in range(mib):
            chunk = source.randbytes(CHUNK_BYTES)
            digest.update(chunk)
            connection.sendall(chunk)
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        failures.append(f"sending: {error}")


# ---- many connections -------------------------------------------------------------------------


def check_many(lab: LabConfig, host: str, port: int, connections: int, messages: int) -> Check:
    """Messages of random size on all connections at once, every byte compared, orderly closes."""
    name = f"{connections:,} concurrent connections of {messages} random messages, all verified"
    report = run_load(
        lab,
        "transfer",
        host,
        port,
        connections=connections,
        messages=messages,
        max_bytes=4096,
        timeout_s=PATIENCE_S,
    )
    wanted = connections * messages
    ok = report["ok"] and report["completed"] == wanted and report["opened"] == connections
    detail = (
        f"{report['completed']:,} messages, {report['verified_bytes'] / 2**20:.0f} MiB compared, "
        f"{report['seconds']:.1f} s"
    )
    if not ok:
        detail += f"; {report['first_error']}; errors {_nonzero(report['errors'])}"
    return Check(name, ok, detail, report)


def _nonzero(errors: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in errors.items() if count}


# ---- the second service -----------------------------------------------------------------------


class Prober:
    """Asks a second service of the same host every interval_s seconds, on a new connection each.

    A probe fails if the connection is refused or lost, if the answer differs, or if it takes longer
    than patience_s, more on a slow machine. Runs in a thread of its own between start() and stop().
    """

    def __init__(
        self,
        lab: LabConfig,
        host: str,
        port: int,
        interval_s: float = 0.05,
        patience_s: float = 2.0,
    ) -> None:
        self.latencies_s: list[float] = []
        self.failures: list[str] = []
        self.connected = 0
        self._lab = lab
        self._target = (host, port)
        self._interval_s = interval_s
        self._patience_s = patience(patience_s)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)

    def start(self) -> None:
        """Starts probing."""
        self._thread.start()

    def stop(self) -> None:
        """Ends probing; the probe under way is finished first."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with in_netns(self._lab.client_netns):
                due = time.monotonic()
                while not self._ending.is_set():
                    self._probe()
                    due = max(due + self._interval_s, time.monotonic())
                    self._ending.wait(due - time.monotonic())
        except Exception as error:
            self.failures.append(f"the prober itself: {error}")

    def _probe(self) -> None:
        started = time.monotonic()
        message = random.randbytes(64)
        try:
            with socket.create_connection(self._target, timeout=self._patience_s) as connection:
                self.connected += 1
                connection.sendall(message)
                answer = b""
                while len(answer) < len(message) and (more := connection.recv(64)):
                    answer += more
        except OSError as error:
            self.failures.append(str(error))
            return
        seconds = time.monotonic() - started
        if answer != message:
            self.failures.append("the answer differs from the question")
        elif seconds > self._patience_s:
            self.failures.append(f"the answer took {seconds:.1f} s")
        else:
            self.latencies_s.append(seconds)

    def check(self) -> Check:
        """The result so far: every probe answered, and there was at least one."""
        name = "a second service on the kernel's stack, same address, answered all the while"
        answered = len(self.latencies_s)
        detail = f"{answered} probes answered, {len(self.failures)} not"
        facts: dict[str, Any] = {"answered": answered, "failed": len(self.failures)}
        if answered:
            facts["p50_ms"] = statistics.median(self.latencies_s) * 1e3
            facts["max_ms"] = max(self.latencies_s) * 1e3
            detail += f"; p50 {facts['p50_ms']:.1f} ms, slowest {facts['max_ms']:.1f} ms"
        if self.failures:
            detail += f"; {self.failures[0]}"
        return Check(name, answered > 0 and not self.failures, detail, facts)


# ---- who carried it ---------------------------------------------------------------------------


def tcp_counters(netns: str) -> dict[str, int]:
    """The kernel's own TCP counters of a namespace (RFC 4022 names)."""
    with in_netns(netns):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return {name: int(value) for name, value in zip(names, values, strict=True)}


@contextmanager
def kernel_tcp_counted(netns: str, delta: dict[str, int]) -> Iterator[None]:
    """Fills delta with how far the kernel's TCP counters moved within the block."""
    before = tcp_counters(netns)
    yield
    after = tcp_counters(netns)
    delta.update({name: after[name] - before[name] for name in after})


def check_bypass(delta: dict[str, int], second_service_connections: int) -> Check:
    """The server's kernel accepted the second service's connections and no other."""
    accepted = delta["PassiveOpens"]
    return Check(
        "the kernel's TCP saw the second service's connections and no others",
        accepted == second_service_connections,
        f"{accepted} connections accepted by the kernel, {second_service_connections} probes",
        {"passive_opens": accepted, "segments_in": delta["InSegs"]},
    )


def queue_packets(netns: str, interface: str) -> list[int]:
    """Frames that XDP saw on each receive queue of a veth, since it exists."""
    with in_netns(netns):
        tool = IoctlEthtool(interface)
        try:
            statistics_ = dict(tool.get_statistics())
        finally:
            tool.close()
    counts: list[int] = []
    while (count := statistics_.get(f"rx_queue_{len(counts)}_xdp_packets")) is not None:
        counts.append(int(count))
    return counts


def check_spread(counts: list[int], queues: int) -> Check:
    """Flows arrived on every queue, each with a worker of its own."""
    return Check(
        f"flows spread over {queues} queues",
        len(counts) >= queues and all(count > 0 for count in counts[:queues]),
        "frames by queue: " + ", ".join(f"{count:,}" for count in counts),
        {"frames": counts},
    )
