"""What an instance says of itself when it starts: to the operator, and in instance.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ixnet.control.config import RunConfig
from ixnet.control.cores import format_cores
from ixnet.control.neigh import LinkState
from ixnet.control.nic import Nic, OpenedQueues
from ixnet.control.shards import Shard
from ixnet.control.workers import Worker
from ixnet.control.xsk import UmemKind


def report_line(label: str, text: str) -> str:
    """One line of the report; the labels make a column."""
    return f"  {label:<11}{text}"


def link_facts(link: LinkState | None) -> dict[str, Any]:
    """The interface's state, for JSON."""
    if link is None:
        return {}
    return {"present": link.present, "up": link.up, "carrier": link.carrier, "mtu": link.mtu}


@dataclass(frozen=True)
class StartReport:
    """Everything that was decided or found out. outgoing: about ports of outgoing connections.
    stamps: of --timestamps, whose they are. sending: how a veth's frames leave, or ""."""

    config: RunConfig
    nic: Nic
    opened: OpenedQueues
    workers: Sequence[Worker]
    cores: Sequence[int]
    outgoing: str
    stamps: Sequence[str] = ()
    sending: str = ""

    @property
    def _shards(self) -> list[Shard]:
        return [shard for worker in self.workers for shard in worker.shards]

    @property
    def _queues(self) -> list[int]:
        return [shard.plan.queue for shard in self._shards]

    def lines(self) -> list[str]:
        """The report, line by line."""
        nic, opened, first = self.nic, self.opened, self._shards[0]
        shared = " (shared)" if len(set(self.cores)) < len(self.cores) else ""
        driver = nic.driver or "no driver"
        pairs = [
            ("interface", f"{nic.name} ({driver}), MTU {nic.mtu}, {nic.mac_text}"),
            ("queues", f"{format_cores(self._queues)} of {len(nic.queues)}"),
            *self._worker_pairs(),
            ("cores", format_cores(self.cores) + shared),
            ("mode", opened.mode.value),
            *(("", f"not {attempt}") for attempt in opened.attempts),
            *((("sends", self.sending),) if self.sending else ()),
            ("placement", self.placement_text()),
            ("runs as", self.config.privileges.text()),
            ("idle", self.idle_text()),
            ("batch", f"at most {self.config.batch} frames"),
            ("UMEM", f"{first.umem.nbytes >> 20} MiB a queue, {first.umem.kind.value}"),
            ("huge pages", self.huge_text()),
            ("address", self.address_text()),
            ("outgoing", self.outgoing),
            *(("stamps", text) for text in self.stamps),
            *(("records", f"{s.recorder.path}") for s in self._shards if s.recorder is not None),
        ]
        return [report_line(label, text) for label, text in pairs]

    def _worker_pairs(self) -> list[tuple[str, str]]:
        """Which worker runs which queues, where one runs several."""
        if len(self.workers) == len(self._shards):
            return []
        lines = [f"{w.plan.number} on core {w.plan.core}: {w.queues_text}" for w in self.workers]
        return [("workers" if i == 0 else "", line) for i, line in enumerate(lines)]

    def notes(self) -> list[str]:
        """What will not work as one might expect, each with its cure."""
        found = []
        used, there = len(self._shards), len(self.nic.queues)
        if used < there:
            found.append(
                f"{used} of {there} queues are taken: what the NIC puts on the others goes to the "
                f"kernel, claimed or not (cure: --queues all, or ethtool -L {self.nic.name} to "
                "have only as many)"
            )
        if self.config.busy_poll and len(set(self.cores)) < len(self.cores):
            found.append(
                "workers that never sleep share a core: each waits while another polls in vain "
                "(cure: as many --cores as workers, or --block)"
            )
        return found

    def placement_text(self) -> str:
        """Where the dataplane runs, and what that costs."""
        if self.config.placement == "inline":
            return "inline"
        kick = "a thread's" if self.config.kick == "thread" else "exits"
        return f"dune: application in ring 3, dataplane in ring 0 of a guest; wakeups are {kick}"

    def idle_text(self) -> str:
        """What a worker does when there is nothing to do."""
        spin_ns, first = self.workers[0].plan.spin_ns, self._shards[0]
        if spin_ns >= 0:
            return f"spins {spin_ns // 1000} us, then sleeps"
        if not first.plan.busy_poll_us:
            return f"never sleeps; no kernel busy polling, {self.nic.kind} has no interrupts"
        problem = first.socket.busy_poll_problem if first.socket is not None else None
        return f"never sleeps; kernel busy polling {f'refused: {problem}' if problem else 'on'}"

    def huge_text(self) -> str:
        """Which memory lies on huge pages."""
        if self.config.huge_pages == "no":
            return "no (as asked)"
        first = self._shards[0]
        umem = "no" if first.umem.kind is UmemKind.PAGES else "yes"
        return f"UMEM {umem}, shard {'yes' if first.memory.is_huge else 'no'}"

    def address_text(self) -> str:
        """Whose address the dataplane answers on."""
        if self.config.own_addresses:
            return f"{', '.join(map(str, self.config.own_addresses))}, the dataplane's own"
        ips = ", ".join(map(str, self.nic.ips)) or "none yet"
        return f"{ips}, shared with the kernel"

    def facts(self) -> dict[str, Any]:
        """The same for instance.json."""
        return {
            "queues": self._queues,
            "cores": list(self.cores),
            "mode": self.opened.mode.value,
            **({"kick": self.config.kick or "exit"} if self.config.placement == "dune" else {}),
            **({"sending": self.sending} if self.sending else {}),
            "mode_reasons": [str(attempt) for attempt in self.opened.attempts],
            "runs_as": self.config.privileges.text(),
            "busy_poll": self.config.busy_poll,
            "idle": self.idle_text(),
            "huge_pages": self.huge_text(),
            "batch": self.config.batch,
            "shards": [
                {
                    "id": shard.plan.shard_id,
                    "queue": shard.plan.queue,
                    "core": worker.plan.core,
                    "worker": worker.plan.number,
                }
                for worker in self.workers
                for shard in worker.shards
            ],
        }
