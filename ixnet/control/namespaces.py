"""Network namespaces: going into them, running programs in them, seeing what runs in them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import netns

NETNS_DIR = Path("/run/netns")


class NetnsError(Exception):
    """A namespace is not there, or can't be entered; the message says which and why."""


def netns_path(name: str) -> Path:
    """Where the named namespace is found, whether or not it exists."""
    return NETNS_DIR / name


@contextmanager
def in_netns(name: str) -> Iterator[None]:
    """Puts the calling thread into a namespace. Sockets made inside stay there afterwards.

    Errors: NetnsError if there's no such namespace or no right to enter it.
    """
    with _inside(netns_path(name)):
        yield


@contextmanager
def in_netns_of(pid: int) -> Iterator[None]:
    """The same, for the namespace of a process."""
    with _inside(Path(f"/proc/{pid}/ns/net")):
        yield


@contextmanager
def _inside(path: Path) -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(path)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _setns(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsError(f"no network namespace {path.name}: {error.strerror}") from error
    try:
        netns.setns(fd)
    except OSError as error:
        raise NetnsError(f"can't enter namespace {path.name}: {error.strerror}") from error
    finally:
        os.close(fd)


def netns_argv(name: str, argv: Sequence[str], cpu: int | None = None) -> list[str]:
    """The command line that runs argv in a namespace, pinned to a core if one is given.

    Each step execs the next, so the process id is the program's own. /sys stays as it is, which
    `ip netns exec` would remount, hiding bpffs. The program gets SIGTERM when the thread
    that started it ends.
    """
    launcher = ["nsenter", f"--net={netns_path(name)}", "setpriv", "--pdeathsig", "TERM", "--"]
    if cpu is not None:
        launcher += ["taskset", "-c", str(cpu)]
    return [*launcher, *argv]


def run_in_netns(
    name: str, argv: Sequence[str], cpu: int | None = None, **popen: Any
) -> subprocess.Popen[str]:
    """Starts a program in a namespace; text pipes; other arguments are Popen's.

    Call it from a thread that outlives the program (see netns_argv). Errors: NetnsError if there's
    no such namespace; a program that can't be executed ends with status 127 or 126.
    """
    if not is_netns(netns_path(name)):
        raise NetnsError(f"no network namespace {name}: bring the lab up first")
    return subprocess.Popen(netns_argv(name, argv, cpu), text=True, **popen)


def is_netns(path: Path) -> bool:
    """A name in /run/netns is a namespace if something of nsfs is mounted on it."""
    try:
        return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def processes_in_netns(name: str) -> dict[int, str]:
    """Process ids and names of what runs in a namespace, the caller itself left out."""
    found: dict[int, str] = {}
    try:
        wanted = netns_path(name).stat()
    except OSError:
        return found
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if os.path.samestat((entry / "ns/net").stat(), wanted):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile
    return found


def end_processes(pids: Sequence[int], patience_s: float = 10.0) -> None:
    """SIGTERM, and SIGKILL for those that are still there after patience_s seconds."""
    for signum, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
        for pid in pids:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait_s
        while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        pids = [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
