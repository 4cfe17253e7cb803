"""What the control process shows of a guest: counters, and the report of its death, with names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ixnet.dune_shared import Crash, Names, Shared

MODULE_SYMBOLS = Path(__file__).resolve().parents[1] / "ring0.sym"
# Of the counters in struct dune_stats those that stay 0.
_NOT_COUNTED = ("kvm_exits", "vcpus")


def guest_facts(shared: Shared) -> dict[str, int | float]:
    """Counters by name, and how the elastic thread's cycles were shared; {} before it began.

    linux: exits, Linux's own work and its sleep.
    """
    if not shared.began:
        return {}
    facts: dict[str, int | float] = asdict(shared.counts)
    for name in _NOT_COUNTED:
        del facts[name]
    linux = shared.cycles_kick + shared.cycles_host
    total = max(1, shared.now - shared.began)
    ring3 = total - shared.cycles_ring0 - linux
    for name, ticks in (("ring0", shared.cycles_ring0), ("linux", linux), ("ring3", ring3)):
        facts[f"cycles_{name}"] = max(0, ticks)
        facts[f"percent_{name}"] = round(100 * max(0, ticks) / total, 1)
    return facts


class Ring3:
    """What a process has mapped where. maps: as /proc/PID/maps has it."""

    def __init__(self, maps: str) -> None:
        self._lines = maps.splitlines()

    @classmethod
    def of(cls, pid: int | str) -> Ring3:
        """Of a process as it is now; nothing where that is not for this one to see."""
        with contextlib.suppress(OSError):
            return cls(Path(f"/proc/{pid}/maps").read_text())
        return cls("")

    def name(self, address: int) -> str:
        """FILE FUNCTION+0xOFFSET, for code; else ""."""
        for line in self._lines:
            fields = line.split(maxsplit=5)
            low, high = (int(word, 16) for word in fields[0].split("-"))
            if low <= address < high and "x" in fields[1] and fields[5:] and fields[5][0] == "/":
                path, offset = Path(fields[5]), address - low + int(fields[2], 16)
                return f"{path.name} {_name_in_file(path, offset)}"
        return ""


def crash_report(crash: Crash, ring3: Ring3) -> Iterator[str]:
    """For the operator, line by line."""
    return crash.lines(Names.load(MODULE_SYMBOLS, ring3.name))


def _symbols(table: Any) -> Iterator[Any]:
    if table is not None:
        yield from table.iter_symbols()


@cache
def _name_in_file(path: Path, offset: int) -> str:
    """The function at a file offset, by the dynamic symbols where there are no others."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_LOAD"):
                begin, size = int(segment["p_offset"]), int(segment["p_filesz"])
                if begin <= offset < begin + size:
                    address = offset - begin + int(segment["p_vaddr"])
                    break
            else:
                return f"+{offset:#x}"
            table = elf.get_section_by_name(".symtab") or elf.get_section_by_name(".dynsym")
            best = (0, "")
            for symbol in _symbols(table):
                start, size = int(symbol["st_value"]), int(symbol["st_size"])
                if start <= address < start + max(size, 1) and start >= best[0]:
                    best = (start, str(symbol.name))
    except (OSError, ELFError):
        return f"+{offset:#x}"
    return f"{best[1]}+{address - best[0]:#x}" if best[1] else f"+{offset:#x}"
