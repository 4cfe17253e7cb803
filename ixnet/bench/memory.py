"""How much memory processes hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def descendants(pids: Iterable[int]) -> set[int]:
    """These processes and all that they started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += parents.get(pid, [])
    return found


def held_mib(pids: Iterable[int]) -> float:
    """What these processes and their descendants hold, MiB; of shared pages their share (PSS).

    What the kernel holds for them (socket buffers, TCP state) is not in it.
    """
    kib = 0
    for pid in descendants(pids):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    # Huge pages count for nobody in PSS.
    return round((kib + sum(map(_hugetlb_kib, descendants(pids)))) / 1024, 1)


def _hugetlb_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("HugetlbPages:"):
            return int(line.split()[1])
    return 0


def available_mib() -> float:
    """What the machine could still give, MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return 0.0
