"""libdune for Python: is this machine's KVM fit, and this thread's way into guest ring 3.

    report = probe()
    if report.fit:
        init()
        enter_user()  # from here on this Python runs in ring 3 of a guest
        ...
        leave()

The library itself is in C (``libdune_shim/dune.h``, which documents every call). Exceptions, page
tables and code in ring 0 are for C programs: an interpreter is no place to handle a page fault in.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import asdict, dataclass
from typing import Any

from ixnet.control.errors import IxError, NotBuilt


class Fitness(enum.IntEnum):
    """Why a KVM is fit or unfit, in the order in which the self-test looks."""

    FIT = 0
    NO_KVM = 1
    KVM_TOO_OLD = 2
    NO_NESTED_PAGING = 3
    SYSCALL_UNSOUND = 4
    PAGES_UNSOUND = 5
    RING0_EMULATED = 6
    CPUID_MISMATCH = 7
    TRAPS_UNSOUND = 8


@dataclass(frozen=True)
class Report:
    """What the self-test found. Times are medians; 0: not measured."""

    fitness: Fitness
    reason: str  # "" when fit
    cure: str
    vendor: str  # as CPUID has it
    kernel: str
    physical_bits: int  # of guest-physical addresses
    syscall_raises_privilege: bool
    supervisor_pages_closed: bool
    ring0_native: bool
    traps_sound: bool
    fsgsbase: bool
    pcid: bool
    gigabyte_pages: bool
    xsave: bool
    smep: bool
    smap: bool
    protection_keys: bool  # of the host side: the vault's second wall can be used
    memory_fault_info: bool  # KVM_CAP_MEMORY_FAULT_INFO
    xcr0: int  # state components that a guest may enable
    exit_ns: int  # one exit to user space and back
    ring_switch_ns: int  # ring 3 to ring 0 and back
    ring0_ps_per_instruction: int  # of a plain loop

    @property
    def fit(self) -> bool:
        """True where libdune can be used."""
        return self.fitness is Fitness.FIT

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what a guest can have, and what makes it better."""
        names = (
            "xsave", "fsgsbase", "pcid", "gigabyte_pages", "smep", "smap", "protection_keys",
            "memory_fault_info",
        )  # fmt: skip
        return tuple(name for name in names if getattr(self, name))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"fitness": self.fitness.name}


@dataclass(frozen=True)
class Stats:
    """Sums over all vCPUs since init(). exits are returns of KVM_RUN to user space; the next eight
    say what they were for."""

    exits: int
    syscalls: int  # forwarded system calls
    windows: int  # first touches of a GiB
    executable: int  # first fetches from executable memory
    faults: int  # memory that Linux doesn't map
    traps: int  # exceptions that nobody in ring 0 handled
    interrupted: int  # signals
    others: int
    kicks: int  # a module's
    kvm_exits: int  # all, those that KVM handled itself included; 0: not told
    refused: int  # system calls refused to protect the vault, or by policy
    module_calls: int  # ring 3's calls of the module; no exits
    vcpus: int  # in use


@dataclass(frozen=True)
class Place:
    """A closed range of addresses, which ring 3 can't name: the vault and, behind it, the data
    windows. What is mapped into these before init() a module in ring 0 can use."""

    base: int  # of the vault
    data: int  # of the data windows
    data_bytes: int  # whole GiB


@dataclass(frozen=True)
class Module:
    """Code for ring 0 (``libdune_shim/module/module.h``)."""

    image: bytes  # as the build makes it: NAME.bin
    context: int = 0  # what the module gets: an address in the data windows
    descriptors: tuple[int, ...] = ()  # that it may kick; closed here by init()
    shared: int = 0  # address of a zeroed struct dune_shared in the data windows; 0: none


class DuneError(IxError):
    """A call of libdune failed; message and cure are its own words."""


class Unfit(DuneError):
    """This machine's KVM can't be used, for the reason that it says."""


def library() -> Any:
    """The cffi module. Raises NotBuilt."""
    try:
        import ixnet._dune
    except ImportError as error:
        raise NotBuilt(f"libdune is not built: {error}", "make build") from error
    return ixnet._dune


def _split(text: str) -> tuple[str, str]:
    """libdune ends its texts in "(cure: ...)" where it knows one."""
    message, found, cure = text.partition(" (cure: ")
    return (message, cure.removesuffix(")")) if found else (text, "")


def _check(module: Any, result: int) -> None:
    if result == 0:
        return
    text = module.ffi.string(module.lib.dune_error()).decode(errors="replace")
    kind = Unfit if result == -errno.EOPNOTSUPP else DuneError
    raise kind(*_split(text), -result)


def probe() -> Report:
    """Runs the self-test: a tiny guest of its own, about a millisecond natively.

    Works without any rights: what is missing is the report's reason. Never hangs: each group of
    experiments has a time limit. Raises NotBuilt; DuneError when there is no memory.
    """
    module = library()
    raw = module.ffi.new("struct dune_report *")
    result = module.lib.dune_probe(raw)
    if result != 0:
        raise DuneError("the self-test could not run", "free memory", -result)
    reason, cure = _split(module.ffi.string(raw.reason).decode(errors="replace"))
    values = {name: getattr(raw, name) for name in Report.__dataclass_fields__ if name != "cure"}
    values["fitness"] = Fitness(raw.fitness)
    for name in ("vendor", "kernel"):
        values[name] = module.ffi.string(values[name]).decode(errors="replace")
    return Report(**(values | {"reason": reason, "cure": cure}))


def reserve(data_bytes: int) -> Place:
    """Reserves a closed range (PROT_NONE), to be filled before init() by mmap() with MAP_FIXED.

    data_bytes is rounded up to GiB. A process forked since may give it to init(). Raises DuneError:
    no room in the address space.
    """
    module = library()
    raw = module.ffi.new("struct dune_place *")
    _check(module, module.lib.dune_reserve(data_bytes, raw))
    return Place(raw.base, raw.data, raw.data_bytes)


def unreserve(place: Place) -> None:
    """Unmaps the range and all that was mapped into it. Not where init() took it."""
    module = library()
    module.lib.dune_unreserve(module.ffi.new("struct dune_place *", asdict(place)))


def init(
    *,
    sealed: bool = False,
    protection_key: bool = True,
    self_test: bool = True,
    physical_bits: int = 0,
    place: Place | None = None,
    module: Module | None = None,
) -> None:
    """Makes the vault and the VM; once a process.

    sealed: ring 0 is the shim's alone, and there is no way back out of ring 3. protection_key: the
    vault's second wall, where the CPU has it. self_test=False: for who just saw probe() say fit.
    physical_bits: 0 for what the CPU has, less to try a narrow machine (30 to 52). place: where,
    with data windows (reserve()). module: code for ring 0, which call() reaches; sealed only.
    Raises Unfit; DuneError (EALREADY: a second time, EBUSY: sealed, and other threads run);
    NotBuilt.
    """
    c = library()
    flags = 0
    if sealed:
        flags |= c.lib.DUNE_SEALED
    if not protection_key:
        flags |= c.lib.DUNE_NO_PKEY
    if not self_test:
        flags |= c.lib.DUNE_SKIP_SELF_TEST
    config = c.ffi.new("struct dune_config *", {"flags": flags, "physical_bits": physical_bits})
    kept = []  # until dune_init() is through
    if place is not None:
        kept.append(c.ffi.new("struct dune_place *", asdict(place)))
        config.place = kept[-1]
    if module is not None:
        image = c.ffi.from_buffer(module.image)
        raw = {
            "image": image,
            "bytes": len(module.image),
            "context": module.context,
            "descriptor": module.descriptors,
            "n_descriptors": len(module.descriptors),
            "shared": c.ffi.cast("struct dune_shared *", module.shared),
        }
        kept += [image, c.ffi.new("struct dune_module *", raw)]
        config.module = kept[-1]
    _check(c, c.lib.dune_init(config))


def call(n: int, *arguments: int) -> int:
    """Ring 3's call number n of the module in ring 0, with up to five arguments; its result.

    -EPERM: this is not the thread that entered first, or a forked child. -ENOSYS: no module, or
    not in the guest.
    """
    result: int = library().lib.dune_module_call(n, *arguments, *(0,) * (5 - len(arguments)))
    return result


def enter_user() -> None:
    """This thread, and this Python with it, goes on in guest ring 3 behind this call.

    Sealed, there is no way back. Raises DuneError: before init(), or in the guest already.
    """
    module = library()
    _check(module, module.lib.dune_enter_user())


def leave() -> None:
    """This thread is an ordinary one again. Raises DuneError: it was none other, or it is sealed
    in."""
    module = library()
    _check(module, module.lib.dune_leave())


def ring() -> int | None:
    """The ring that this thread runs in (0 or 3); None: it is not in a guest."""
    found: int = library().lib.dune_ring()
    return None if found < 0 else found


def stats_from(raw: Any) -> Stats:
    """Of a struct dune_stats."""
    return Stats(**{name: getattr(raw, name) for name in Stats.__dataclass_fields__})


def stats() -> Stats:
    """The counters. Not in ring 3, which can't see them. Raises DuneError."""
    module = library()
    raw = module.ffi.new("struct dune_stats *")
    _check(module, module.lib.dune_stats(raw))
    return stats_from(raw)
