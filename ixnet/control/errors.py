"""One hierarchy of exceptions, and the one place where C's -errno becomes one of them."""

from __future__ import annotations

import errno
import os


class IxError(Exception):
    """Something that the operator can act on.

    `message` says what failed, `cure` what to do about it ("" if nothing is known), `errnum` the
    errno behind it (0 if none). str() joins message and cure.
    """

    def __init__(self, message: str, cure: str = "", errnum: int = 0) -> None:
        super().__init__(message, cure, errnum)
        self.message = message
        self.cure = cure
        self.errnum = errnum

    def __str__(self) -> str:
        return f"{self.message} (cure: {self.cure})" if self.cure else self.message


class NotPermitted(IxError):
    """Not root, or a capability is missing."""


class NotBuilt(IxError):
    """A compiled part (the C module, the BPF object) is not there."""


class UnknownInterface(IxError):
    """No interface of that name or index in this network namespace."""


class InterfaceGone(IxError):
    """The interface was removed, or set down, while in use."""


class MtuTooLarge(IxError):
    """A frame of the interface's MTU does not fit a UMEM frame."""


class NoSuchQueue(IxError):
    """The interface has fewer queues."""


class QueueBusy(IxError):
    """The queue has an AF_XDP socket already."""


class ProgramAttached(IxError):
    """Another XDP program holds the interface; it was left alone."""

    def __init__(self, message: str, prog_id: int, name: str) -> None:
        cure = f"find its owner (bpftool prog show id {prog_id}) and stop it"
        if name == "xdp_dispatcher":
            cure = (
                "it is libxdp's dispatcher of several programs, and the steering program has to be "
                "alone: xdp-loader unload INTERFACE --all"
            )
        super().__init__(message, cure, errno.EBUSY)
        self.prog_id = prog_id
        self.name = name


class ModeUnavailable(IxError):
    """No AF_XDP mode, or not the one asked for, can be had."""


class PortTaken(IxError):
    """The kernel or another dataplane has the port."""


class RangeOverlap(IxError):
    """The range of outgoing ports overlaps with the kernel's own."""


class TableFull(IxError):
    """A table of the steering program has no room left."""


_BY_ERRNO: dict[int, tuple[type[IxError], str]] = {
    errno.EPERM: (NotPermitted, "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"),
    errno.EACCES: (NotPermitted, "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"),
    errno.ENODEV: (UnknownInterface, "name an interface of this network namespace"),
    errno.ENXIO: (InterfaceGone, "start again when the interface is back"),
    errno.ENETDOWN: (InterfaceGone, "set the interface up: ip link set dev NAME up"),
    errno.EADDRINUSE: (PortTaken, "stop what has the port, or choose another"),
    errno.E2BIG: (TableFull, "claim fewer ports, or a range"),
    errno.ENOSPC: (TableFull, "claim fewer ranges"),
    errno.ENOMEM: (IxError, "free memory, or use fewer frames; not as root: raise ulimit -l"),
    errno.ENOBUFS: (IxError, "free memory, or use fewer frames; not as root: raise ulimit -l"),
    errno.EOPNOTSUPP: (ModeUnavailable, "let the mode be chosen, or use a driver that has it"),
}


def errno_text(errnum: int) -> str:
    """ "EBUSY: Device or resource busy" for 16 or -16."""
    errnum = abs(errnum)
    return f"{errno.errorcode.get(errnum, errnum)}: {os.strerror(errnum)}"


def from_errno(result: int, what: str, cure: str = "") -> IxError:
    """The exception for a -errno that C returned.

    `what` says what was tried, or what C's error text said; `cure` is used where it is better than
    the general one. Returned, not raised, so that a caller can add to it.
    """
    errnum = abs(result)
    kind, general = _BY_ERRNO.get(errnum, (IxError, ""))
    text = what if os.strerror(errnum) in what else f"{what}: {errno_text(errnum)}"
    return kind(text, cure or general, errnum)
