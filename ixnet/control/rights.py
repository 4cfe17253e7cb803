"""Which rights this process has, of those that a dataplane needs."""

from __future__ import annotations

import contextlib
import errno
import resource
from pathlib import Path

from ixnet.control.errors import IxError, NotPermitted

# capabilities(7): name and number. CAP_PERFMON: without it the verifier refuses the comparison of
# packet pointers that every XDP program makes.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_IPC_LOCK = 14
_CAP_SYS_ADMIN = 21


def _effective() -> int:
    """The effective set, a bit each."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing_capabilities() -> tuple[str, ...]:
    """Those needed and not there. CAP_SYS_ADMIN stands in for the two newest, as in the kernel."""
    have = _effective()
    if have >> _CAP_SYS_ADMIN & 1:
        have |= 1 << CAPABILITIES["CAP_BPF"] | 1 << CAPABILITIES["CAP_PERFMON"]
    return tuple(name for name, bit in CAPABILITIES.items() if not have >> bit & 1)


def require_capabilities() -> None:
    """Raises NotPermitted, with their names, if capabilities are missing."""
    missing = missing_capabilities()
    if missing:
        raise NotPermitted(
            f"this process lacks {', '.join(missing)}",
            f"run as root, or with {', '.join(CAPABILITIES)}",
            errno.EPERM,
        )


def require_locked_memory(nbytes: int) -> None:
    """Raises the limit of locked memory, or raises IxError if `nbytes` of UMEM do not fit it.

    UMEM pages are pinned, which counts against the user's limit unless CAP_IPC_LOCK is there.
    """
    if _effective() >> _CAP_IPC_LOCK & 1:
        return
    unlimited = resource.RLIM_INFINITY
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        soft = hard
    if soft != unlimited and soft < nbytes:
        raise IxError(
            f"{nbytes >> 20} MiB of UMEM are more than the {soft >> 20} MiB that may be locked",
            "ulimit -l unlimited, or CAP_IPC_LOCK, or fewer --frames",
            errno.ENOMEM,
        )
