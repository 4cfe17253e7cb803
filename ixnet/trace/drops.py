"""`ixnet trace drops`: where an interface's frames end before a shard has them, and why."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from rich.console import Group, RenderableType
from rich.text import Text

from ixnet.control.namespaces import in_netns_of
from ixnet.trace.needs import TRACEFS
from ixnet.trace.program import Member
from ixnet.trace.session import Tool
from ixnet.trace.tables import Sample, grid, rate
from ixnet.trace.target import Target

MEMBERS = (Member("sk_buff", "dev"), Member("sk_buff", "skb_iif"))
KFREE_FORMAT = TRACEFS / "skb/kfree_skb/format"
_ACTIONS = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")

# What net/xdp/xsk.c answers for a frame, and the map's own error.
REDIRECT_ERRORS = {
    errno.ENOMEM: "FILL ring empty: the shard gave no frame to receive into (more --frames?)",
    errno.ENOBUFS: "RX ring full: the worker doesn't keep up, or lost its core (trace preempt)",
    errno.ENOSPC: "frame larger than a UMEM frame; before Linux 6.6 also: FILL ring empty",
    errno.ENXIO: "no AF_XDP socket bound: the socket is being closed or set up",
    errno.EINVAL: "the socket is of another interface or queue; or no such queue in the map",
    errno.ENETDOWN: "the interface is down",
    errno.EOPNOTSUPP: "the driver can't redirect to this target",
}
# Sums of these, of the sockets, are frames that the kernel dropped.
SOCKET_COUNTERS = {
    "rx_dropped": "no frame on FILL (copy mode), or the frame was too large",
    "rx_ring_full": "RX was full",
    "rx_fill_ring_empty_descs": "times that FILL was found empty",
    "rx_invalid_descs": "FILL held an address that is none",
    "tx_invalid_descs": "TX held a descriptor that is none",
}
NIC_COUNTERS = {
    "rx_missed_errors": "the NIC had no buffer (zero-copy: FILL empty) or no room",
    "rx_dropped": "the driver or the stack dropped it",
    "rx_errors": "damaged",
    "rx_fifo_errors": "the NIC's memory was full",
    "rx_nohandler": "nobody took it",
    "tx_dropped": "not sent: the driver or the queueing discipline dropped it",
    "tx_errors": "not sent: an error",
}


def drop_reasons(text: str) -> dict[int, str]:
    """Names of the kernel's reasons, from the event's format."""
    listed = text[text.find("__print_symbolic") :]
    return {int(n, 0): name for n, name in re.findall(r'\{\s*(\w+),\s*"(\w+)"\s*\}', listed)}


def redirect_error(error: int) -> tuple[str, str]:
    """The name of an error, and what it says of AF_XDP."""
    number = abs(error)
    return errno.errorcode.get(number, str(number)), REDIRECT_ERRORS.get(number, "")


@dataclass(frozen=True)
class DropsReport:
    """What was seen in some seconds. redirects: by queue and errno; exceptions: by XDP action;
    frees: by reason, function and protocol; the others: what counters of these names grew by."""

    target: Target
    seconds: float
    redirects: dict[tuple[int, int], int]
    exceptions: dict[str, int]
    frees: dict[tuple[str, str, int], int]
    sockets: dict[int, dict[str, int]]
    nic: dict[str, int]
    verdicts: dict[str, int]
    shards: dict[str, int]

    @property
    def total(self) -> int:
        """Frames that a socket refused, and packets freed as dropped."""
        return sum(self.redirects.values()) + sum(self.frees.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        redirects = [
            {"queue": queue, "errno": redirect_error(e)[0], "frames": count}
            for (queue, e), count in sorted(self.redirects.items())
        ]
        frees = [
            {"reason": reason, "function": function, "protocol": protocol, "packets": count}
            for (reason, function, protocol), count in _most(self.frees)
        ]
        return {
            "redirect_errors": redirects,
            "exceptions": self.exceptions,
            "kfree_skb": frees,
            "sockets": {str(shard): counters for shard, counters in self.sockets.items()},
            "nic": self.nic,
            "verdicts": self.verdicts,
            "shards": self.shards,
        }

    def render(self) -> RenderableType:
        """For people."""
        parts: list[RenderableType] = []
        table = grid("refused by the AF_XDP socket", "frames", "a second", "meaning")
        for (queue, error), count in sorted(self.redirects.items()):
            name, said = redirect_error(error)
            cells = (f"{count:,}", rate(count, self.seconds), said)
            table.add_row(f"queue {queue}: {name}", *cells, style="yellow")
        parts.append(table)
        for action, count in self.exceptions.items():
            text = f"XDP_{action}: the driver gave up {count:,} frames (refused ones may count)"
            parts.append(Text(text, style="yellow"))
        parts += [Text(), self._freed(), *self._counters()]
        for counted in parts:
            if hasattr(counted, "columns") and len(counted.columns) > 3:
                counted.columns[3].justify = "left"
        return Group(*parts)

    def _freed(self) -> RenderableType:
        table = grid("packets freed as dropped: reason", "packets", "a second", "in")
        for (reason, function, protocol), count in _most(self.frees):
            where = f"{function} (ethertype {protocol:#06x})"
            table.add_row(reason, f"{count:,}", rate(count, self.seconds), where)
        return table

    def _counters(self) -> list[RenderableType]:
        parts: list[RenderableType] = []
        sources: list[tuple[str, Mapping[str, int], Mapping[str, str]]] = [
            (f"AF_XDP socket of shard {shard}", counters, SOCKET_COUNTERS)
            for shard, counters in self.sockets.items()
        ]
        sources.append((f"counters of {self.target.interface}", self.nic, NIC_COUNTERS))
        if self.target.instance is not None:
            from ixnet.control.stats import meanings
            from ixnet.control.xdp import verdict_names

            sources.append(("passed on to the kernel", self.verdicts, verdict_names()))
            sources.append(("dropped by the shards", self.shards, meanings()))
        for title, counters, said in sources:
            table = grid(title, "frames", "a second", "meaning")
            for name, count in counters.items():
                if count:
                    cells = (f"{count:,}", rate(count, self.seconds), said.get(name, ""))
                    table.add_row(name, *cells)
            if table.rows:
                parts += [Text(), table]
        return parts


def _most(frees: dict[tuple[str, str, int], int]) -> list[tuple[tuple[str, str, int], int]]:
    return sorted(frees.items(), key=lambda item: (-item[1], item[0]))


# ---- counters of others ------------------------------------------------------------------------


def nic_counters(target: Target) -> dict[str, int]:
    """The interface's own, as the kernel has them."""
    with in_netns_of(target.pid), IPRoute() as route:
        (link,) = route.get_links(target.ifindex)
    found = link.get_attr("IFLA_STATS64") or {}
    return {name: int(found[name]) for name in NIC_COUNTERS if name in found}


def instance_counters(live: Mapping[str, Any]) -> dict[str, int]:
    """Of the sockets ("socket/SHARD/NAME") and the steering program ("verdict/NAME")."""
    flat: dict[str, int] = {}
    for shard in live.get("shards", live.get("workers", [])):
        for name, value in shard.get("socket", {}).items():
            if name in SOCKET_COUNTERS:
                flat[f"socket/{shard['id']}/{name}"] = int(value)
    for name, value in live.get("verdicts", {}).items():
        if name.startswith("pass_"):
            flat[f"verdict/{name}"] = int(value)
    return flat


class DropsTool(Tool):
    """See Tool."""

    def __init__(self, target: Target) -> None:
        program = {"IX_PROGRAM_ID": target.program_id}
        super().__init__(target, "drops", MEMBERS, constants=program, tells_workers=False)
        self._reasons = drop_reasons(Path(KFREE_FORMAT).read_text())

    def sample(self) -> Sample:
        """The program's tables, and in `counters` everything that others count."""
        found = {name: self._program.read(name) for name in ("redirects", "exceptions", "frees")}
        counters = {f"nic/{name}": value for name, value in nic_counters(self._target).items()}
        instance = self._target.instance
        if instance is not None and instance.is_alive():
            counters |= instance_counters(instance.ask())
            counters |= self._shard_counters()
        found["counters"] = {(name,): (value,) for name, value in counters.items()}
        return found

    def _shard_counters(self) -> dict[str, int]:
        from ixnet.control.stats import read_instance, total

        assert self._target.instance is not None
        values = total(read_instance(self._target.instance))
        return {f"shard/{n}": v for n, v in values.items() if n.startswith("drop_")}

    def report(self, change: Sample, seconds: float) -> DropsReport:
        """What they say."""
        return drops_report(self._target, change, seconds, self._reasons, self._program.symbol)


def drops_report(
    target: Target, change: Sample, seconds: float, reasons: Mapping[int, str], symbol: Any
) -> DropsReport:
    """From the tables. symbol: the function at an address of the kernel."""
    redirects: dict[tuple[int, int], int] = {}
    for (queue, error, _), (count,) in change["redirects"].items():
        redirects[queue, error] = redirects.get((queue, error), 0) + count
    exceptions: dict[str, int] = {}
    for (action, _), (count,) in change["exceptions"].items():
        name = _ACTIONS[action] if action < len(_ACTIONS) else str(action)
        exceptions[name] = exceptions.get(name, 0) + count
    frees: dict[tuple[str, str, int], int] = {}
    for (location, reason, protocol), (count,) in change["frees"].items():
        key = (reasons.get(reason, f"reason {reason}"), symbol(location), protocol)
        frees[key] = frees.get(key, 0) + count
    parts: dict[str, dict[str, int]] = {"nic": {}, "verdict": {}, "shard": {}}
    sockets: dict[int, dict[str, int]] = {}
    for (path,), (count,) in change["counters"].items():
        source, _, name = path.partition("/")
        if source == "socket":
            shard, _, name = name.partition("/")
            sockets.setdefault(int(shard), {})[name] = count
        else:
            parts[source][name] = count
    return DropsReport(
        target, seconds, redirects, exceptions, frees, sockets, parts["nic"], parts["verdict"],
        parts["shard"],
    )  # fmt: skip
