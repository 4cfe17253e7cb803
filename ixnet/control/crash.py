"""What libdune tells another process of a guest (struct dune_shared): counters, cycles, and why it
ended, with names put to addresses."""

from __future__ import annotations

import bisect
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

PACKAGE = Path(__file__).resolve().parents[1]
# Names of ring 0's functions: the dataplane's beside its image, the shim's where the tree is built.
MODULE_ELF = PACKAGE / "ring0.elf"
SHIM_ELF = PACKAGE.parent / "build/dune/shim.elf"
COUNTS = (
    "exits", "syscalls", "windows", "executable", "faults", "traps", "interrupted", "others",
    "kicks", "refused", "module_calls",
)  # fmt: skip
REGISTERS = (
    "rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10",
    "r11", "r12", "r13", "r14", "r15", "cr2", "error", "cs", "ss",
)  # fmt: skip
_WHOLE = 2  # DUNE_CRASH_WHOLE


def _dune() -> Any:
    import ixnet._dune

    return ixnet._dune


def shared_bytes() -> int:
    """Bytes of a struct dune_shared."""
    return int(_dune().ffi.sizeof("struct dune_shared"))


def _shared(address: int) -> Any:
    return _dune().ffi.cast("struct dune_shared *", address)


def guest_facts(address: int, ticks_now: int) -> dict[str, int | float]:
    """Counters by name, and how the elastic thread's cycles were shared; of the struct at address.

    {} before the guest began. percent_linux: exits, Linux's own work and its sleep.
    """
    shared = _shared(address)
    if not shared.began:
        return {}
    facts: dict[str, int | float] = {name: int(getattr(shared.counts, name)) for name in COUNTS}
    total = max(1, ticks_now - int(shared.began))
    ring0 = int(shared.cycles_ring0)
    linux = int(shared.cycles_kick) + int(shared.cycles_host)
    for name, ticks in (("ring0", ring0), ("linux", linux), ("ring3", total - ring0 - linux)):
        facts[f"cycles_{name}"] = max(0, ticks)
        facts[f"percent_{name}"] = round(100 * max(0, ticks) / total, 1)
    return facts


@dataclass(frozen=True)
class Crash:
    """A guest's last words. trace: addresses, the innermost first. stack: words from rsp up."""

    what: str
    value: int
    signal: int
    ring: int
    registers: dict[str, int]
    shim: int
    shim_bytes: int
    module: int
    module_bytes: int
    trace: tuple[int, ...]
    stack: tuple[int, ...]

    def place(self, address: int) -> str:
        """An address in words: a function of ring 0, or where it lies in a file of ring 3."""
        if self.module <= address < self.module + self.module_bytes:
            return f"dataplane {_name(MODULE_ELF, address - self.module)}"
        if self.shim <= address < self.shim + self.shim_bytes:
            return f"shim {_name(SHIM_ELF, address - self.shim)}"
        return _mapped(address)

    def lines(self) -> Iterator[str]:
        """The report."""
        name = ""
        if self.signal:
            name = f", ends by {signal.Signals(self.signal).name}"
        yield f"guest: {self.what} ({self.value:#x}) in ring {self.ring}{name}"
        row: list[str] = []
        for register, value in self.registers.items():
            row.append(f"{register:>6} {value:016x}")
            if len(row) == 4:
                yield "  " + " ".join(row)
                row = []
        if row:
            yield "  " + " ".join(row)
        for address in self.trace:
            yield f"  at {address:#x} {self.place(address)}"


def read_crash(address: int) -> Crash | None:
    """Of the struct dune_shared at `address`; None where the guest left no words."""
    ffi, crash = _dune().ffi, _shared(address).crash
    if crash.state != _WHOLE:
        return None
    n_trace = min(int(crash.n_trace), len(crash.trace))
    n_stack = min(int(crash.n_stack), len(crash.stack))
    return Crash(
        what=ffi.string(crash.what, len(crash.what)).decode(errors="replace"),
        value=int(crash.value),
        signal=int(crash.signal),
        ring=int(crash.ring),
        registers={name: int(getattr(crash.tf, name)) for name in REGISTERS},
        shim=int(crash.shim),
        shim_bytes=int(crash.shim_bytes),
        module=int(crash.module),
        module_bytes=int(crash.module_bytes),
        trace=tuple(ffi.unpack(crash.trace, n_trace)) if n_trace else (),
        stack=tuple(ffi.unpack(crash.stack, n_stack)) if n_stack else (),
    )


# ---- names -------------------------------------------------------------------------------------


def _symbols(table: Any) -> Iterator[Any]:
    if table is not None:
        yield from table.iter_symbols()


@cache
def _functions(path: Path) -> Sequence[tuple[int, int, str]]:
    """(address, bytes, name) of an ELF file's functions, in order; none where it can't be read."""
    try:
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            found = [
                (int(s["st_value"]), int(s["st_size"]), str(s.name))
                for s in _symbols(table)
                if s["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE") and s.name
            ]
    except (OSError, ELFError):
        return ()
    return tuple(sorted(found))


def _name(path: Path, offset: int) -> str:
    functions = _functions(path)
    at = bisect.bisect_right(functions, offset, key=lambda f: f[0]) - 1
    if at < 0:
        return f"+{offset:#x}"
    start, _, name = functions[at]
    return f"{name}+{offset - start:#x}"


def _mapped(address: int) -> str:
    """Of ring 3: what a worker had mapped before it was forked lies here at the same address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(word, 16) for word in fields[0].split("-"))
        if low <= address < high and "x" in fields[1] and fields[5:] and fields[5][0] == "/":
            path, offset = Path(fields[5]), address - low + int(fields[2], 16)
            return f"{path.name} {_name_in_file(path, offset)}"
    return "?"


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
