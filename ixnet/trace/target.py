"""What is traced: an interface, and the instance on it, with its workers and their cores."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from ixnet.control.errors import UnknownInterface
from ixnet.control.instance import Instance, InstanceError, find_instance, find_instances
from ixnet.control.namespaces import in_netns_of
from ixnet.control.xdp import query_attached


@dataclass(frozen=True)
class WorkerPlace:
    """A worker's process, the core that it is pinned to, the queues of its shards."""

    number: int
    pid: int
    core: int
    queues: tuple[int, ...]

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"worker {self.number}"


@dataclass(frozen=True)
class Target:
    """netns: inode number of the interface's network namespace. program_id: the XDP program there,
    0 if there is none. instance: None if the interface alone was named and nobody runs it."""

    interface: str
    ifindex: int
    netns: int
    program_id: int
    workers: tuple[WorkerPlace, ...] = ()
    instance: Instance | None = None

    def worker_of(self, pid: int) -> WorkerPlace | None:
        """The worker with this process."""
        return next((worker for worker in self.workers if worker.pid == pid), None)

    @property
    def pid(self) -> int:
        """A process in the interface's namespace."""
        return self.instance.pid if self.instance is not None else os.getpid()

    def title(self) -> str:
        """For headings."""
        if self.instance is None:
            return self.interface
        facts = self.instance.facts
        return f"{self.instance.name}: {self.interface}, {facts.get('mode')}"


def find_target(name: str | None, interface: str | None) -> Target:
    """The instance of that name, or the one on that interface, or the only one; without any, the
    interface alone. Errors: InstanceError, UnknownInterface."""
    if name is None and interface is not None:
        here = os.stat("/proc/self/ns/net").st_ino
        for instance in find_instances():
            facts = instance.facts
            if (facts.get("interface"), facts.get("netns")) == (interface, here):
                return target_of(instance)
        return _bare(interface, here)
    target = target_of(find_instance(name))
    if interface not in (None, target.interface):
        raise InstanceError(
            f"the instance {name} runs on {target.interface}, not on {interface}",
            "leave one of --name and --interface out",
        )
    return target


def _bare(interface: str, netns: int) -> Target:
    try:
        ifindex = socket.if_nametoindex(interface)
    except OSError as error:
        raise UnknownInterface(
            f"there is no interface {interface}", "ip link shows those that there are"
        ) from error
    attached = query_attached(ifindex)
    return Target(interface, ifindex, netns, attached.prog_id if attached else 0)


def target_of(instance: Instance) -> Target:
    """A running instance, its interface looked up in its own network namespace."""
    facts, live = instance.facts, instance.ask()
    with in_netns_of(instance.pid):
        bare = _bare(str(facts["interface"]), int(facts["netns"]))
    workers = workers_of(facts, live)
    if not workers:
        raise InstanceError(
            f"the instance {instance.name} has no workers that serve",
            "is it starting or ending? ixnet stat shows",
        )
    return Target(bare.interface, bare.ifindex, bare.netns, bare.program_id, workers, instance)


def workers_of(facts: dict[str, Any], live: dict[str, Any]) -> tuple[WorkerPlace, ...]:
    """The workers that have processes, with what their shards say of them."""
    found = []
    for worker in live.get("workers", []):
        own = [s for s in facts.get("shards", []) if s.get("worker", s["id"]) == worker["id"]]
        if own and worker.get("pid"):
            queues = tuple(int(shard["queue"]) for shard in own)
            core = int(own[0]["core"])
            found.append(WorkerPlace(int(worker["id"]), int(worker["pid"]), core, queues))
    return tuple(found)


def new_workers(target: Target) -> tuple[WorkerPlace, ...]:
    """Workers of the instance that the target doesn't know yet."""
    if target.instance is None:
        return ()
    now = workers_of(target.instance.facts, target.instance.ask())
    return tuple(worker for worker in now if target.worker_of(worker.pid) is None)
