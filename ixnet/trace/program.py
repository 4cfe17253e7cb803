"""One of xdp/trace/*.c in the kernel: its text made, its probes set, its tables read.

Everything that is set hangs on descriptors of this process: however it ends, all is gone with it.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.errors import from_errno
from ixnet.trace.needs import Machine, TraceError, headers_cure, load_bcc, require

TEXTS = Path(__file__).resolve().parent.parent / "xdp_objects"
KALLSYMS = Path("/proc/kallsyms")
KPROBES = Path("/sys/bus/event_source/devices/kprobe")

# A table as read: its keys and values as tuples of their members.
Table = dict[tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class Member:
    """Of one of the kernel's structures, whose offset a program uses."""

    type: str
    member: str

    @property
    def macro(self) -> str:
        """What the program calls it."""
        return f"IX_OFF_{self.type.upper()}_{self.member.upper()}"


@dataclass(frozen=True)
class Kprobe:
    """A probe on a function, where no event will do. Kernels differ in their functions, so each is
    optional: functions, the first that there is; lost: what is not told without any."""

    functions: tuple[str, ...]
    entry: str = ""
    exit: str = ""
    lost: str = ""


# xdp/trace/common.h finds an interface by these.
COMMON = (
    Member("net_device", "ifindex"),
    Member("net_device", "nd_net"),
    Member("net", "ns"),
    Member("ns_common", "inum"),
)


# ---- text ------------------------------------------------------------------------------------


def kernel_offsets(members: Sequence[Member]) -> dict[Member, int]:
    """Where they lie in the running kernel. Errors: TraceError if it has not all of them."""
    asked = ffi.new("struct ix_kernel_member[]", len(members))
    for one, member in zip(asked, members, strict=True):
        one.type, one.member = member.type.encode(), member.member.encode()
    result = lib.ix_kernel_offsets(asked, len(members))
    if result < 0:
        raise from_errno(result, "read the kernel's BTF", "use a kernel with CONFIG_DEBUG_INFO_BTF")
    for one, member in zip(asked, members, strict=True):
        if one.offset < 0:
            raise TraceError(
                f"this kernel's struct {member.type} has no member {member.member}",
                "use a newer ixnet, or a kernel between 6.1 and 7.3",
                errno.ENOENT,
            )
    return {member: int(one.offset) for one, member in zip(asked, members, strict=True)}


def program_text(name: str, constants: Mapping[str, int]) -> str:
    """The whole text of a program: constants, what all share, its own."""
    lines = [f"#define {key} {value}" for key, value in constants.items()]
    parts = [(TEXTS / part).read_text() for part in ("common.h", f"{name}.c")]
    return "\n".join([*lines, *parts])


def first_symbol(functions: Iterable[str], symbols: Iterable[str]) -> str | None:
    """The first of these functions that the kernel has (lines of /proc/kallsyms)."""
    wanted = list(functions)
    there = {line.split()[2] for line in symbols if line.split()[1] in "tT"}
    return next((name for name in wanted if name in there), None)


# ---- in the kernel ---------------------------------------------------------------------------


class Program:
    """A loaded program. lost: what this kernel can't tell. Errors: TraceError."""

    def __init__(
        self,
        name: str,
        constants: Mapping[str, int],
        members: Sequence[Member] = (),
        kprobes: Sequence[Kprobe] = (),
    ) -> None:
        require()
        wanted = (*COMMON, *members)
        offsets = {m.macro: at for m, at in kernel_offsets(wanted).items()}
        text = program_text(name, {**constants, **offsets})
        self.lost: list[str] = []
        try:
            # -w: the kernel's headers warn with compilers that they were not written for.
            self._bpf = load_bcc().BPF(text=text, cflags=["-w"])
        except Exception as error:
            raise TraceError(
                f"bcc can't load the program {name}: {error}",
                f"see what it says above; if headers don't fit: {headers_cure(Machine())}",
            ) from error
        try:
            for probe in kprobes:
                self._attach(probe)
        except BaseException:
            self.close()
            raise

    def _attach(self, probe: Kprobe) -> None:
        found = None
        if KPROBES.exists():
            with KALLSYMS.open() as symbols:
                found = first_symbol(probe.functions, symbols)
        if found is None:
            why = "no kprobes" if not KPROBES.exists() else f"no {' or '.join(probe.functions)}()"
            self.lost.append(f"{probe.lost} (this kernel has {why})")
            return
        try:
            if probe.entry:
                self._bpf.attach_kprobe(event=found, fn_name=probe.entry)
            if probe.exit:
                self._bpf.attach_kretprobe(event=found, fn_name=probe.exit)
        except Exception:
            self.lost.append(f"{probe.lost} ({found}() can't be probed)")

    def put(self, table: str, key: int, value: int) -> None:
        """Enters a number into a table of numbers."""
        place = self._bpf[table]
        place[place.Key(key)] = place.Leaf(value)

    def read(self, table: str) -> Table:
        """A table as it is now."""
        return {plain(key): plain(value) for key, value in self._bpf[table].items()}

    def symbol(self, address: int) -> str:
        """The kernel's function at an address."""
        return str(self._bpf.ksym(address).decode())

    def missed(self) -> int:
        """Events, whosesoever, that came while their CPU was in another's program, or in bpf(2) on
        a table: the kernel passes them over. Before Linux 6.7 it doesn't count them."""
        infos = (Path(f"/proc/self/fdinfo/{f.fd}").read_text() for f in self._bpf.funcs.values())
        return sum(fdinfo_number(text, "recursion_misses") for text in infos)

    def close(self) -> None:
        """Takes it out of the kernel."""
        with contextlib.suppress(Exception):
            self._bpf.cleanup()


def fdinfo_number(text: str, name: str) -> int:
    """A number of a /proc/PID/fdinfo file; 0 if it isn't there."""
    found = re.search(rf"^{name}:\s*(\d+)$", text, re.M)
    return int(found[1]) if found else 0


def plain(value: Any) -> tuple[Any, ...]:
    """A ctypes number or structure as a tuple; arrays of characters as text."""
    fields = getattr(value, "_fields_", None)
    if fields is None:
        return (int(getattr(value, "value", value)),)
    found = []
    for name, *_ in fields:
        member = getattr(value, name)
        if isinstance(member, bytes):
            found.append(member.decode(errors="replace"))
        elif not name.startswith("__pad"):
            found.append(member)
    return tuple(found)
