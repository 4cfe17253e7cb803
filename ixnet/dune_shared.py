"""What libdune tells another process of a guest: counters, cycles, and why it ended.

shared = read(address)           # of struct dune_shared, while the guest runs or afterwards
shared.counts.exits, shared.shares()
if shared.crash:
    print("\\n".join(shared.crash.lines(names)))
"""

from __future__ import annotations

import bisect
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet.dune import Stats, library, stats_from

PACKAGE = Path(__file__).parent
# shim/layout.h: blocks of vCPUs in the vault, each of which begins with a copy of the entry stubs.
BLOCKS, BLOCKS_END, BLOCK, STUB = 0x10000000, 0x20000000, 0x20000, 0x1000
REGISTERS = (
    ("rip", "rsp", "rflags", "rbp"),
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "r8", "r9"),
    ("r10", "r11", "r12", "r13"),
    ("r14", "r15", "cs", "ss"),
    ("vector", "error", "cr2"),
)


class Symbols:
    """Functions of an image that is linked at 0, from what `nm -n` says of its ELF file."""

    def __init__(self, lines: Iterable[str]) -> None:
        words = [line.split() for line in lines]
        known = sorted((int(w[0], 16), w[2]) for w in words if len(w) == 3 and w[1] in "tTwW")
        self._offsets = [offset for offset, _ in known]
        # gcc calls what it made of a function NAME.part.0 and the like.
        self._names = [name.partition(".")[0] for _, name in known]

    @classmethod
    def load(cls, path: Path) -> Symbols:
        """Of a file; without names where there is none."""
        return cls(path.read_text().splitlines() if path.exists() else ())

    def name(self, offset: int) -> str:
        """FUNCTION+0xOFFSET; "" if no function begins below."""
        i = bisect.bisect_right(self._offsets, offset) - 1
        return f"{self._names[i]}+{offset - self._offsets[i]:#x}" if i >= 0 else ""

    def offset(self, name: str) -> int | None:
        """Where a function begins."""
        return self._offsets[self._names.index(name)] if name in self._names else None


def _unknown(_: int) -> str:
    return ""


@dataclass(frozen=True)
class Names:
    """For addresses: the shim's functions and the module's; and what ring 3 has there."""

    shim: Symbols
    module: Symbols
    ring3: Callable[[int], str] = _unknown

    @classmethod
    def load(cls, module: Path, ring3: Callable[[int], str] = _unknown) -> Names:
        """module: NAME.sym of the module. The shim's lie in the package."""
        return cls(Symbols.load(PACKAGE / "dune_shim.sym"), Symbols.load(module), ring3)


@dataclass(frozen=True)
class Crash:
    """Why a guest ended (struct dune_crash in dune.h)."""

    what: str
    value: int  # the words' number
    signal: int  # that the process ended by
    tid: int
    ring: int  # 0 or 3: whose registers these are
    registers: dict[str, int]
    shim: tuple[int, int]  # address and size in bytes
    module: tuple[int, int]
    stack: tuple[int, ...]  # words from rsp up
    trace: tuple[int, ...]  # rip and return addresses

    def place(self, address: int, names: Names | None = None) -> str:
        """An address in words: the image that it lies in and, with names, the function."""
        for title, (start, size) in (("module", self.module), ("shim", self.shim)):
            if start <= address < start + size:
                offset = address - start
                known = getattr(names, title).name(offset) if names else ""
                return f"{title}: {known or hex(offset)}"
        offset = address - self.shim[0]
        if BLOCKS <= offset < BLOCKS_END and offset % BLOCK < STUB:
            start = (names.shim.offset("dune_stub_start") if names else None) or 0
            known = names.shim.name(start + offset % BLOCK) if names else ""
            return f"stub: {known or hex(offset % BLOCK)}"
        known = names.ring3(address) if names else ""
        return f"ring 3: {known}" if known else "ring 3"

    def lines(self, names: Names | None = None) -> Iterator[str]:
        """For people: what happened, the registers, the trace, and what on the stack may be
        return addresses of functions without a frame."""
        end = f"; ends by {signal.Signals(self.signal).name}" if self.signal else ""
        yield f"{self.what} ({self.value:#x}), in ring {self.ring}, thread {self.tid}{end}"
        for row in REGISTERS:
            yield "  " + "  ".join(f"{name:>6} {self.registers[name]:016x}" for name in row)
        for number, address in enumerate(self.trace):
            yield f"  #{number:<2} {address:016x} {self.place(address, names)}"
        for number, word in enumerate(self.stack):
            if any(start <= word < start + size for start, size in (self.module, self.shim)):
                yield f"  rsp+{8 * number:<#5x} {word:016x} {self.place(word, names)}?"


@dataclass(frozen=True)
class Shared:
    """One look at struct dune_shared (dune.h). Cycles are RDTSC's."""

    counts: Stats  # kvm_exits and vcpus are 0
    began: int  # 0: nobody has entered yet
    now: int  # when this was read
    cycles_ring0: int
    cycles_kick: int
    cycles_host: int
    crash: Crash | None

    def shares(self, since: Shared | None = None) -> dict[str, float]:
        """Of the time since `since` (None: since the guest began) the part that each had: ring 3,
        ring 0, kicks, and the host side of other exits. {} if there was none."""
        whole = self.now - (since.now if since else self.began)
        if self.began == 0 or whole <= 0:
            return {}
        parts = {
            name: getattr(self, f"cycles_{name}")
            - (getattr(since, f"cycles_{name}") if since else 0)
            for name in ("ring0", "kick", "host")
        }
        parts["ring3"] = max(0, whole - sum(parts.values()))
        return {name: cycles / whole for name, cycles in parts.items()}


def size() -> int:
    """Bytes of struct dune_shared."""
    found: int = library().ffi.sizeof("struct dune_shared")
    return found


def _crash(c: Any, raw: Any) -> Crash | None:
    if raw.state != c.lib.DUNE_CRASH_WHOLE:
        return None
    return Crash(
        what=c.ffi.string(raw.what).decode(errors="replace"),
        value=raw.value,
        signal=raw.signal,
        tid=raw.tid,
        ring=raw.ring,
        registers={name: getattr(raw.tf, name) for row in REGISTERS for name in row},
        shim=(raw.shim, raw.shim_bytes),
        module=(raw.module, raw.module_bytes),
        stack=tuple(raw.stack[0 : min(raw.n_stack, len(raw.stack))]),
        trace=tuple(raw.trace[0 : min(raw.n_trace, len(raw.trace))]),
    )


def read(address: int) -> Shared:
    """Reads the struct dune_shared at this address of this process."""
    c = library()
    raw = c.ffi.cast("struct dune_shared *", address)
    return Shared(
        counts=stats_from(raw.counts),
        began=raw.began,
        now=c.lib.dune_now(),
        cycles_ring0=raw.cycles_ring0,
        cycles_kick=raw.cycles_kick,
        cycles_host=raw.cycles_host,
        crash=_crash(c, raw.crash),
    )
