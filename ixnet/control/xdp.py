"""The steering program in Python's hands: load, attach, claim, count."""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from ixnet.control.errors import IxError, NotBuilt, ProgramAttached, from_errno
from ixnet.control.rights import require_capabilities as require_capabilities

try:
    from ixnet._core import ffi, lib
except ImportError as error:
    raise NotBuilt(f"ixnet's C module can't be loaded: {error}", "run make build") from error

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

OBJECT_PATH = Path(__file__).resolve().parent.parent / "xdp_objects" / "steer.bpf.o"
STAMP_PATH = OBJECT_PATH.with_name("steer_stamp.bpf.o")
HARDWARE_STAMP_PATH = OBJECT_PATH.with_name("steer_hwstamp.bpf.o")
EXPRESS_PATH = OBJECT_PATH.with_name("steer_express.bpf.o")
_ERR_BYTES = 4096


class Proto(enum.IntEnum):
    """Transport protocols that can be claimed, by their IP protocol numbers."""

    TCP = 6
    UDP = 17


class XdpMode(enum.Enum):
    """How an XDP program is attached."""

    NATIVE = "native"
    GENERIC = "generic"
    OFFLOAD = "offload"

    @classmethod
    def from_c(cls, mode: int) -> XdpMode | None:
        return {1: cls.NATIVE, 2: cls.GENERIC, 3: cls.OFFLOAD}.get(mode)


@dataclass(frozen=True)
class AttachedProgram:
    """An XDP program on an interface. name is "" if the kernel doesn't tell."""

    mode: XdpMode
    prog_id: int
    name: str


def query_attached(ifindex: int) -> AttachedProgram | None:
    """What holds an interface's XDP hook, whoever attached it; None if it is free."""
    out = ffi.new("struct ix_steer_attached *")
    result = lib.ix_steer_query(ifindex, out)
    if result < 0:
        raise from_errno(result, f"query XDP program of interface {ifindex}")
    mode = XdpMode.from_c(out.mode)
    if mode is None or not out.prog_id:
        return None
    return AttachedProgram(mode, int(out.prog_id), ffi.string(out.name).decode(errors="replace"))


def verdict_names() -> dict[str, str]:
    """Every verdict's name, in the program's order, with what it says."""
    names: dict[str, str] = {}
    while (name := lib.ix_steer_verdict_name(len(names))) != ffi.NULL:
        text = ffi.string(lib.ix_steer_verdict_text(len(names))).decode()
        names[ffi.string(name).decode()] = text
    return names


def _key(ip: IpAddress | None, family: int = 4) -> tuple[int, bytes]:
    """(family, 16 bytes) as the maps have it; None is every local address."""
    if ip is None:
        return family, bytes(16)
    return ip.version, ip.packed.ljust(16, b"\0")


class Steering:
    """One loaded steering program: a context manager, used by one thread.

    Closing it, and the end of the process in any way, detaches it; a forked child must call
    `forget()`.
    """

    def __init__(self, steer: Any) -> None:
        self._steer = steer
        self._local: set[IpAddress] = set()
        self.ifindex: int | None = None
        self.mode: XdpMode | None = None

    @classmethod
    def open(cls, path: Path = OBJECT_PATH, bound_to: int = 0) -> Self:
        """Loads the BPF object into the kernel, not yet attached.

        bound_to: index of the only interface that it will be attached to, whose driver's functions
        it may call, or 0.
        Errors: NotBuilt if the object file is missing, NotPermitted, IxError with the verifier's
        words.
        """
        if not path.exists():
            raise NotBuilt(f"no BPF object at {path}", "run make build")
        out = ffi.new("struct ix_steer **")
        err = ffi.new("char[]", _ERR_BYTES)
        name = os.fsencode(path)
        result = lib.ix_steer_open_bound(name, bound_to, out, err, _ERR_BYTES)
        if result < 0:
            raise from_errno(result, _text(err) or f"load {path}")
        return cls(out[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detaches and unloads. Safe to repeat."""
        if self._steer is not None:
            lib.ix_steer_close(self._steer)
            self._steer, self.ifindex, self.mode = None, None, None

    def forget(self) -> None:
        """For a forked child: drops this process's hold on the program; the parent's stays."""
        if self._steer is not None:
            lib.ix_steer_forget(self._steer)
            self._steer, self.ifindex, self.mode = None, None, None

    @property
    def _open(self) -> Any:
        if self._steer is None:
            raise IxError("this Steering is closed")
        return self._steer

    # ---- attaching -----------------------------------------------------------------

    def attach(self, ifindex: int, mode: XdpMode) -> None:
        """Attaches to an interface in native or generic mode.

        Errors: ProgramAttached if another program is there (it stays), ModeUnavailable if the
        driver can't, UnknownInterface, NotPermitted.
        """
        err = ffi.new("char[]", _ERR_BYTES)
        number = {XdpMode.NATIVE: 1, XdpMode.GENERIC: 2}[mode]
        result = lib.ix_steer_attach(self._open, ifindex, number, err, _ERR_BYTES)
        if result == -errno.EBUSY:
            there = query_attached(ifindex)
            raise ProgramAttached(
                _text(err), there.prog_id if there else 0, there.name if there else ""
            )
        if result < 0:
            raise from_errno(result, _text(err) or f"attach to interface {ifindex}")
        self.ifindex, self.mode = ifindex, mode

    def detach(self) -> None:
        """Takes the program off its interface; the maps stay as they are."""
        result = lib.ix_steer_detach(self._open)
        self.ifindex, self.mode = None, None
        if result < 0 and result != -errno.ENOENT:
            raise from_errno(result, "detach XDP program")

    @property
    def prog_id(self) -> int:
        """The kernel's id of the program."""
        out = ffi.new("uint32_t *")
        self._check(lib.ix_steer_prog_id(self._open, out), "read program id")
        return int(out[0])

    @property
    def raw(self) -> Any:
        """`struct ix_steer *`, valid until close()."""
        return self._open

    def map_fd(self, name: str) -> int:
        """A map's descriptor, which stays this object's. KeyError if there is no such map."""
        fd = int(lib.ix_steer_map_fd(self._open, name.encode()))
        if fd < 0:
            raise KeyError(name)
        return fd

    # ---- what is steered -------------------------------------------------------------

    def set_socket(self, queue: int, fd: int | None) -> None:
        """Gives a queue's claimed frames to an AF_XDP socket; None: to the kernel again."""
        result = lib.ix_steer_set_socket(self._open, queue, -1 if fd is None else fd)
        if fd is None and result == -errno.ENOENT:
            return
        self._check(result, f"enter socket of queue {queue}")

    def claim(self, proto: Proto, ip: IpAddress | None, port: int, family: int = 4) -> None:
        """Redirects proto/ip/port. ip None: every local address of `family` (see sync_local).

        Errors: PortTaken if it is claimed already, TableFull.
        """
        key_family, addr = _key(ip, family)
        result = lib.ix_steer_add_claim(self._open, key_family, proto, addr, port)
        if result == -errno.EEXIST:
            result = -errno.EADDRINUSE
        self._check(result, f"claim {proto.name} {ip or 'any address'} port {port}")

    def unclaim(self, proto: Proto, ip: IpAddress | None, port: int, family: int = 4) -> None:
        """Ends a claim; there being none is no error."""
        key_family, addr = _key(ip, family)
        self._forgive(
            lib.ix_steer_del_claim(self._open, key_family, proto, addr, port),
            f"unclaim {proto.name} port {port}",
        )

    def add_range(
        self, proto: Proto, ip: IpAddress | None, lo: int, hi: int, family: int = 4
    ) -> None:
        """Redirects frames to local ports lo..hi, both included. At most 16 ranges (TableFull)."""
        key_family, addr = _key(ip, family)
        self._check(
            lib.ix_steer_add_range(self._open, key_family, proto, addr, lo, hi),
            f"claim {proto.name} ports {lo}-{hi}",
        )

    def del_range(
        self, proto: Proto, ip: IpAddress | None, lo: int, hi: int, family: int = 4
    ) -> None:
        """Ends a range's claim; there being none is no error."""
        key_family, addr = _key(ip, family)
        self._forgive(
            lib.ix_steer_del_range(self._open, key_family, proto, addr, lo, hi),
            f"unclaim {proto.name} ports {lo}-{hi}",
        )

    def sync_local(self, addresses: Iterable[IpAddress]) -> None:
        """Makes `addresses` the host's addresses, which claims of every address cover."""
        wanted = set(addresses)
        for ip in wanted - self._local:
            result = lib.ix_steer_add_local_addr(self._open, *_key(ip))
            if result != -errno.EEXIST:
                self._check(result, f"add local address {ip}")
        for ip in self._local - wanted:
            self._forgive(
                lib.ix_steer_del_local_addr(self._open, *_key(ip)), f"remove local address {ip}"
            )
        self._local = wanted

    def add_own(self, ip: IpAddress) -> None:
        """Redirects everything to `ip`, ARP or neighbour discovery of it too: an address that only
        the dataplane has."""
        self._check(lib.ix_steer_add_own_addr(self._open, *_key(ip)), f"take own address {ip}")

    def del_own(self, ip: IpAddress) -> None:
        """Gives an own address up."""
        self._forgive(lib.ix_steer_del_own_addr(self._open, *_key(ip)), f"give up own address {ip}")

    # ---- counters ------------------------------------------------------------------

    def verdicts(self) -> dict[str, int]:
        """Frames by verdict since the program was loaded, summed over the CPUs."""
        names = verdict_names()
        frames = ffi.new("uint64_t[]", len(names))
        self._check(lib.ix_steer_verdicts(self._open, frames, len(names)), "read verdict counters")
        return dict(zip(names, map(int, frames), strict=True))

    def test_run(self, frame: bytes) -> int:
        """Runs the program over a frame without a NIC; the XDP action (2 pass, 4 redirect)."""
        return self._test_run(frame, 1)[0]

    def run_ns(self, frame: bytes, times: int) -> int:
        """Nanoseconds that the program takes for a frame, the mean of `times` runs in a row; what
        the kernel does around each is in it."""
        return self._test_run(frame, times)[1]

    def _test_run(self, frame: bytes, times: int) -> tuple[int, int]:
        ns = ffi.new("uint32_t *")
        result = int(lib.ix_steer_test_run(self._open, frame, len(frame), times, ns))
        self._check(result, "BPF_PROG_TEST_RUN")
        return result, int(ns[0])

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            raise from_errno(result, what)

    @classmethod
    def _forgive(cls, result: int, what: str) -> None:
        """Like _check, but what is gone already is fine."""
        if result != -errno.ENOENT:
            cls._check(result, what)


def _text(err: Any) -> str:
    return str(ffi.string(err).decode(errors="replace")).strip()
