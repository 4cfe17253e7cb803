"""The directory in which a running instance shows itself.

    /run/ixnet/NAME/instance.json   what it is: pid, interface, queues, cores, mode, claims, workers
                    shard-N         the statistics of shard N (struct ix_stats), mapped by `ixnet
                    stat` control         a socket: whoever connects is sent what only the control
                    plane knows

Without the right to write /run it is $XDG_RUNTIME_DIR/ixnet or /tmp/ixnet-UID. A directory whose
process is gone (by pid and start time: pids come again) is stale, and removed by whoever finds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet.control.errors import IxError

INSTANCE_FILE = "instance.json"
CONTROL_SOCKET = "control"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class InstanceError(IxError):
    """An instance can't be named, found or read so; the message says why."""


def run_directories() -> tuple[Path, ...]:
    """Where instances may be, best first."""
    places = [Path("/run/ixnet")]
    if os.environ.get("XDG_RUNTIME_DIR"):
        places.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "ixnet")
    places.append(Path(f"/tmp/ixnet-{os.getuid()}"))
    return tuple(places)


def process_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Instance:
    """A directory as found. facts: the contents of instance.json."""

    directory: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """What `--name` says."""
        return self.directory.name

    @property
    def pid(self) -> int:
        """The control plane's process."""
        return int(self.facts["pid"])

    def is_alive(self) -> bool:
        """Whether the very process that made the directory still runs."""
        return process_start_ticks(self.pid) == int(self.facts["start_ticks"])

    def shard_path(self, shard_id: int) -> Path:
        """The file that holds a shard's statistics."""
        return shard_path(self.directory, shard_id)

    def ask(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """What the control plane says of itself right now; {} if it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout_s)
                sock.connect(str(self.directory / CONTROL_SOCKET))
                with sock.makefile("rb") as answer:
                    return dict(json.loads(answer.read()))
        except (OSError, ValueError):
            return {}


def shard_path(directory: Path, shard_id: int) -> Path:
    """The file that holds a shard's statistics."""
    return directory / f"shard-{shard_id}"


def _read(directory: Path) -> Instance | None:
    try:
        facts = json.loads((directory / INSTANCE_FILE).read_text())
        if isinstance(facts["pid"], int) and isinstance(facts["start_ticks"], int):
            return Instance(directory, facts)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def find_instances() -> list[Instance]:
    """All running instances; stale directories are removed on the way where that is allowed."""
    found: list[Instance] = []
    for place in run_directories():
        try:
            directories = sorted(entry for entry in place.iterdir() if entry.is_dir())
        except OSError:
            continue
        for directory in directories:
            instance = _read(directory)
            if instance is not None and instance.is_alive():
                found.append(instance)
            elif instance is not None:
                _remove_stale(directory)
    return found


def _remove_stale(directory: Path) -> None:
    """Unless someone makes an instance now: it may have this very name."""
    with suppress(OSError), open(directory.parent / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        instance = _read(directory)
        if instance is not None and not instance.is_alive():
            shutil.rmtree(directory, ignore_errors=True)


def find_instance(name: str | None) -> Instance:
    """The running instance of that name, or the only one. Errors: InstanceError."""
    instances = find_instances()
    names = ", ".join(i.name for i in instances)
    if name is not None:
        for instance in instances:
            if instance.name == name:
                return instance
        raise InstanceError(
            f"no instance is called '{name}'",
            f"choose one that runs: {names}" if names else "start one with ixnet run",
        )
    if not instances:
        raise InstanceError("no instance is running", "start one with ixnet run")
    if len(instances) > 1:
        raise InstanceError(f"several instances are running: {names}", "choose one with --name")
    return instances[0]


class InstanceDirectory:
    """The directory of the instance that this process runs. Removed by `remove()`."""

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self.path = directory
        self.facts = facts

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.path.name

    def update(self, **facts: Any) -> None:
        """Changes what instance.json says; readers see the old text or the new."""
        self.facts.update(facts)
        draft = self.path / f".{INSTANCE_FILE}"
        draft.write_text(json.dumps(self.facts, indent=1))
        draft.replace(self.path / INSTANCE_FILE)

    def remove(self) -> None:
        """Takes the directory away."""
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with open(place / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _writable_place() -> Path:
    for place in run_directories():
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            # /tmp is everybody's: a directory that another user made there is not to be trusted.
            if place.stat().st_uid == os.getuid() and os.access(place, os.W_OK):
                return place
        except OSError:
            continue
    tried = ", ".join(str(place) for place in run_directories())
    raise InstanceError(
        f"no directory to put the instance's state in (tried {tried})", "make one of them writable"
    )


def _as_name(interface: str) -> str:
    """An interface's name may have every letter but / and blanks, and begin with any."""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", interface)
    return text if _NAME.match(text) else f"if{text}"


def create_instance(name: str | None, default: str, facts: dict[str, Any]) -> InstanceDirectory:
    """Makes the directory of an instance called `name`, or `default`, or default-2 and so on.

    Errors: InstanceError if `name` is no name or is taken by a running instance.
    """
    default = _as_name(default)
    wanted = name if name is not None else default
    if not _NAME.match(wanted):
        raise InstanceError(
            f"'{wanted}' is no name for an instance", "use letters, digits and . _ - (at most 64)"
        )
    place = _writable_place()
    with _locked(place):
        taken = {instance.name for instance in find_instances()}
        if name is not None and name in taken:
            raise InstanceError(f"an instance called '{name}' is running", "choose another --name")
        number = 2
        while wanted in taken:
            wanted = f"{default}-{number}"
            number += 1
        directory = place / wanted
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o755)
        made = InstanceDirectory(directory, {"name": wanted, **facts})
        made.update(pid=os.getpid(), start_ticks=process_start_ticks(os.getpid()))
        return made
