"""Looks at a machine and an interface, and says what stands in a dataplane's way.

Each finding carries its cure. Nothing is changed: what can only be known by trying (an AF_XDP mode)
is said as the driver tells it.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import resource
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ixnet.control.errors import IxError
from ixnet.control.rights import CAPABILITIES, missing_capabilities

if TYPE_CHECKING:
    from ixnet.dune import Report

OK, WARN, FAIL, INFO = "ok", "warn", "fail", "info"
_AF_XDP = 44
# Bytes of UMEM and shard that the defaults take a queue, for advice.
_HUGE_PAGES_WANTED = 64


@dataclass(frozen=True)
class Finding:
    """One thing looked at. level: ok, warn (works, but worse), fail (does not work), info."""

    area: str
    what: str
    level: str
    value: str
    cure: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


# ---- the machine -----------------------------------------------------------------------------


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < (5, 11):
        yield Finding("kernel", "version", FAIL, release, "use Linux 5.11 or later; 6.1 is tested")
    elif version < (6, 1):
        cure = "use Linux 6.1 or later, for which ixnet is tested"
        yield Finding("kernel", "version", WARN, release, cure)
    else:
        yield Finding("kernel", "version", OK, release)
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
        yield Finding("kernel", "AF_XDP sockets", OK, "there")
    except PermissionError:
        yield Finding("kernel", "AF_XDP sockets", OK, "there, but not for this user")
    except OSError as error:
        cure = "use a kernel with CONFIG_XDP_SOCKETS=y"
        yield Finding("kernel", "AF_XDP sockets", FAIL, error.strerror or "", cure)
    yield _kernel_config()
    jit = _read("/proc/sys/net/core/bpf_jit_enable")
    if jit == "0":
        cure = "sysctl net.core.bpf_jit_enable=1"
        yield Finding("kernel", "BPF JIT", WARN, "off: the XDP program is interpreted", cure)
    else:
        yield Finding("kernel", "BPF JIT", OK, "on" if jit else "always on")
    btf = Path("/sys/kernel/btf/vmlinux").exists()
    cure = "" if btf else "use a kernel with CONFIG_DEBUG_INFO_BTF=y if you want to trace it"
    value = "there" if btf else "none: tracing tools can't follow the kernel"
    yield Finding("kernel", "BTF", OK if btf else WARN, value, cure)


def _kernel_config() -> Finding:
    """What the kernel was built with, where it tells."""
    text = _read(f"/boot/config-{platform.release()}")
    if not text and Path("/proc/config.gz").exists():
        try:
            text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
        except OSError:
            text = ""
    if not text:
        return Finding("kernel", "configuration", INFO, "not to be seen (no /proc/config.gz)")
    wanted = ("CONFIG_XDP_SOCKETS", "CONFIG_BPF_SYSCALL", "CONFIG_NET_RX_BUSY_POLL")
    missing = [name for name in wanted if f"{name}=y" not in text]
    if missing:
        cure = f"use a kernel with {'=y, '.join(missing)}=y"
        return Finding("kernel", "configuration", WARN, f"lacks {', '.join(missing)}", cure)
    return Finding("kernel", "configuration", OK, ", ".join(wanted))


def _rights() -> Iterator[Finding]:
    missing = missing_capabilities()
    if missing:
        cure = f"run as root, or with {', '.join(CAPABILITIES)}"
        yield Finding("rights", "capabilities", FAIL, f"lacks {', '.join(missing)}", cure)
    else:
        yield Finding("rights", "capabilities", OK, ", ".join(CAPABILITIES))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    locked = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0 and soft < 256 << 20:
        yield Finding("rights", "locked memory", WARN, locked, "ulimit -l unlimited")
    else:
        yield Finding("rights", "locked memory", OK, locked)


def _memory() -> Iterator[Finding]:
    try:
        from ixnet.control.xsk import Umem, UmemKind

        umem = Umem.allocate(1)
    except IxError as error:
        yield Finding("memory", "huge pages", FAIL, error.message, error.cure)
        return
    kind = umem.kind
    umem.close()
    if kind is UmemKind.PAGES:
        cure = f"sysctl vm.nr_hugepages={_HUGE_PAGES_WANTED} (fewer TLB misses; not needed)"
        yield Finding("memory", "huge pages", WARN, "none of 2 MiB for shared memory", cure)
    else:
        yield Finding("memory", "huge pages", OK, kind.value)


def _cpu() -> Iterator[Finding]:
    cores = sorted(os.sched_getaffinity(0))
    value = f"{len(cores)} of {os.cpu_count()} allowed"
    if len(cores) < 2:
        cure = "allow a second core: workers share this one with everything else"
        yield Finding("cpu", "cores", WARN, value, cure)
    else:
        yield Finding("cpu", "cores", OK, value)


def _dune() -> Iterator[Finding]:
    """libdune's self-test. Nothing but the dune placement and dune-sandbox needs KVM."""
    from ixnet import dune

    try:
        report = dune.probe()
    except IxError as error:
        yield Finding("dune", "KVM", WARN, error.message, error.cure)
        return
    yield from dune_findings(report)


def dune_findings(report: Report) -> Iterator[Finding]:
    """What the self-test's report says."""
    if report.fitness is report.fitness.NO_KVM:
        cure = f"only dune-sandbox and the dune placement need it: {report.cure}"
        yield Finding("dune", "KVM", INFO, f"none: {report.reason}", cure)
        return
    if report.fit:
        yield Finding("dune", "KVM", OK, f"fit ({report.vendor}, {report.physical_bits} bits)")
    else:
        cure = f"only dune-sandbox and the dune placement need it: {report.cure}"
        yield Finding("dune", "KVM", INFO, f"unfit: {report.reason}", cure)
    experiments = {
        "SYSCALL raises the privilege level": report.syscall_raises_privilege,
        "supervisor pages are closed": report.supervisor_pages_closed,
        "ring 0 runs natively": report.ring0_native,
        "exceptions arrive as they should": report.traps_sound,
    }
    told = ", ".join(f"{name}: {'yes' if is_so else 'no'}" for name, is_so in experiments.items())
    yield Finding("dune", "self-test", INFO, told)
    costs = {
        "an exit": report.exit_ns,
        "ring 3 to ring 0 and back": report.ring_switch_ns,
        "1,000 instructions in ring 0": report.ring0_ps_per_instruction,
    }
    told = ", ".join(f"{name} {_duration(ns)}" for name, ns in costs.items() if ns)
    yield Finding("dune", "costs", INFO, told or "not measured")
    yield Finding("dune", "guest's features", INFO, ", ".join(report.features) or "none")


def _duration(ns: int) -> str:
    return f"{ns} ns" if ns < 10_000 else f"{ns / 1000:.1f} us"


def _tracing() -> Iterator[Finding]:
    """Nothing but `ixnet trace` needs bcc."""
    from ixnet.trace.needs import problem

    yield trace_finding(problem())


def trace_finding(problem: IxError | None) -> Finding:
    """What keeps `ixnet trace` from working, if anything does."""
    if problem is None:
        return Finding("trace", "bcc", OK, "ixnet trace works here")
    cure = f"only ixnet trace needs it: {problem.cure}"
    return Finding("trace", "bcc", INFO, problem.message, cure)


def _network_settings() -> Iterator[Finding]:
    if not Path("/proc/sys/net/core/busy_poll").exists():
        cure = "use a kernel with CONFIG_NET_RX_BUSY_POLL=y for busy polling"
        yield Finding("network", "busy polling", WARN, "not in this kernel", cure)
    else:
        value = f"net.core.busy_read={_read('/proc/sys/net/core/busy_read')}"
        yield Finding("network", "busy polling", OK, f"in this kernel ({value})")


def _libraries() -> Iterator[Finding]:
    try:
        import ixnet._core
    except ImportError as error:
        yield Finding("ixnet", "C module", FAIL, str(error), "make build")
        return
    yield Finding("ixnet", "C module", OK, Path(ixnet._core.__file__ or "").name)
    from ixnet.control.xdp import OBJECT_PATH

    if OBJECT_PATH.exists():
        yield Finding("ixnet", "BPF object", OK, OBJECT_PATH.name)
    else:
        yield Finding("ixnet", "BPF object", FAIL, f"no {OBJECT_PATH.name}", "make build")
    maps = _read("/proc/self/maps")
    for name in ("libbpf", "libxdp"):
        path = re.search(rf"(/\S*{name}\.so\S*)", maps)
        version = Path(path[1]).resolve().name if path else "not loaded"
        cure = "" if path else f"apt-get install {name}-dev"
        yield Finding("ixnet", name, OK if path else WARN, version, cure)


def _instances() -> Iterator[Finding]:
    """What running instances complain about."""
    from ixnet.control.instance import find_instances
    from ixnet.control.stats import StatsError, read_instance, total

    for instance in find_instances():
        name = instance.name
        interface = instance.facts.get("interface", "?")
        text = f"runs on {interface}, {instance.facts.get('mode')}"
        yield Finding("instance", name, INFO, text + workers_text(instance.facts.get("shards", [])))
        try:
            values = total(read_instance(instance))
        except StatsError as error:
            yield Finding("instance", name, WARN, error.message, error.cure)
            continue
        yield from instance_findings(name, values)
        yield from stall_findings(name, instance.ask().get("workers", []))


def workers_text(shards: Sequence[dict[str, Any]]) -> str:
    """Which worker runs which shards, where one runs several."""
    by_worker: dict[int, list[str]] = {}
    for shard in shards:
        by_worker.setdefault(shard.get("worker", shard["id"]), []).append(str(shard["id"]))
    if len(by_worker) == len(shards):
        return ""
    return "".join(f"; worker {w}: shards {', '.join(s)}" for w, s in sorted(by_worker.items()))


def instance_findings(name: str, values: dict[str, int]) -> Iterator[Finding]:
    """What a running instance's counters say of its surroundings."""
    partial = values.get("drop_partial_csum", 0)
    if partial:
        yield Finding(
            "instance", name, WARN, f"{partial} frames with unfinished checksums were dropped",
            "at the peer: ethtool -K PEER tx off",
        )  # fmt: skip
    starved = values.get("fill_starved", 0)
    if starved:
        yield Finding(
            "instance", name, WARN, f"{starved} cycles found no free frame to receive into",
            "start it with more --frames, or let the application give frames back sooner",
        )  # fmt: skip
    full = values.get("drop_tcp_flows", 0)
    if full:
        yield Finding(
            "instance", name, WARN, f"{full} SYNs were dropped because the flow table is full",
            "start it with more --max-flows",
        )  # fmt: skip


def stall_findings(name: str, workers: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """What its control plane says of workers that don't come back to their loops."""
    for worker in workers:
        if stalled_s := worker.get("stalled_s"):
            yield Finding(
                "instance", name, WARN,
                f"worker {worker['id']} (process {worker['pid']}) has run no cycle for "
                f"{stalled_s:.0f} s: its application does not come back to its loop",
                f"see what it does (gdb -p, py-spy); kill {worker['pid']} starts it again",
            )  # fmt: skip


# ---- the interface -----------------------------------------------------------------------------


def interface_findings(interface: str) -> Iterator[Finding]:
    """What an interface can do. An interface that is not there is a finding, too."""
    from ixnet.control.nic import Nic

    area = interface
    try:
        nic = Nic.find(interface)
    except IxError as error:
        yield Finding(area, "interface", FAIL, error.message, error.cure)
        return
    yield Finding(area, "interface", OK, f"{nic.driver or 'no driver'}, {nic.mac_text}")
    yield Finding(area, "queues", OK if len(nic.queues) > 1 else INFO, str(len(nic.queues)))
    if nic.mtu <= nic.largest_mtu(4096):
        size = 2048 if nic.mtu <= nic.largest_mtu(2048) else 4096
        yield Finding(area, "MTU", OK, f"{nic.mtu}, fits frames of {size} bytes")
    else:
        cure = f"ip link set dev {nic.name} mtu {nic.largest_mtu(4096)}"
        yield Finding(area, "MTU", FAIL, f"{nic.mtu}, fits no frame", cure)
    yield from _interface_modes(area, nic.xdp_features)
    yield from _interface_program(area, nic)
    yield from _interface_sending(area, nic)
    if any(not address.is_link_local for address in nic.addresses):
        yield Finding(area, "addresses", OK, ", ".join(map(str, nic.addresses)))
    else:
        cure = f"ip address add IP/PREFIX dev {nic.name}, or ixnet run --own-address"
        yield Finding(area, "addresses", WARN, "none that others could use", cure)
    rss = f"{nic.rss.function}, {len(nic.rss.indirection)} entries" if nic.rss else "not told"
    yield Finding(area, "RSS", INFO, rss)
    for warning in nic.warnings():
        text, _, cure = warning.removesuffix(")").partition(" (cure")
        # A veth's hint is about its peer, which can't be seen from here.
        level = INFO if nic.kind == "veth" and text.startswith("veth:") else WARN
        yield Finding(area, "link", level, text, cure.partition(": ")[2])


def _interface_modes(area: str, features: frozenset[str] | None) -> Iterator[Finding]:
    if features is None:
        value = "not told by this kernel (6.3 or later tells): ixnet run finds out"
        yield Finding(area, "AF_XDP modes", INFO, value)
        return
    native = {"basic", "redirect"} <= features
    modes = ["generic copy"]
    if native:
        modes.insert(0, "native copy")
    if native and "xsk-zerocopy" in features:
        modes.insert(0, "native zero-copy")
    if native:
        yield Finding(area, "AF_XDP modes", OK, ", ".join(modes))
    else:
        cure = "use a NIC whose driver has native XDP: generic mode is no faster than the kernel"
        yield Finding(area, "AF_XDP modes", WARN, ", ".join(modes), cure)


def _interface_sending(area: str, nic: Any) -> Iterator[Finding]:
    """Of a veth: whether bursts could leave without skbs."""
    from ixnet.control.express import PEER_CURE, PEER_TEXT, why_not

    if nic.kind != "veth":
        return
    why = why_not(nic, None)
    if why:
        yield Finding(area, "sends", INFO, f"frame by frame: {why}")
    elif nic.takes_xdp_frames:
        yield Finding(area, "sends", OK, "bursts without skbs")
    else:
        yield Finding(area, "sends", INFO, f"frame by frame: {PEER_TEXT}", PEER_CURE)


def _interface_program(area: str, nic: Any) -> Iterator[Finding]:
    if nic.program is None:
        yield Finding(area, "XDP program", OK, "none attached")
        return
    from ixnet.control.instance import find_instances

    netns = os.stat("/proc/self/ns/net").st_ino
    for instance in find_instances():
        facts = instance.facts
        if (facts.get("interface"), facts.get("netns")) == (nic.name, netns):
            value = f"that of the running instance {instance.name}"
            yield Finding(area, "XDP program", OK, value)
            return
    prog_id = nic.program.prog_id
    cure = f"find its owner (bpftool prog show id {prog_id}) and stop it"
    value = f"program {prog_id} is attached ({nic.program.mode.value})"
    yield Finding(area, "XDP program", FAIL, value, cure)


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _kernel,
    _rights,
    _memory,
    _cpu,
    _dune,
    _network_settings,
    _tracing,
    _libraries,
    _instances,
)


def examine(interface: str | None = None) -> list[Finding]:
    """All findings about this machine, and about one interface if it is named."""
    findings = [finding for check in _CHECKS for finding in check()]
    if interface is not None:
        findings.extend(interface_findings(interface))
    return findings


def worst(findings: list[Finding]) -> str:
    """The worst level among findings."""
    levels = {finding.level for finding in findings}
    return FAIL if FAIL in levels else WARN if WARN in levels else OK
