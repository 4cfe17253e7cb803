"""Which capabilities this process has, of those that a dataplane needs."""

from __future__ import annotations

import errno
from pathlib import Path

from ixnet.control.errors import NotPermitted

# linux/capability.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21


def effective_capabilities() -> int:
    """The effective set, a bit each (capabilities(7))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing_capabilities() -> tuple[str, ...]:
    """Those needed and not there. CAP_SYS_ADMIN stands in for CAP_BPF, as in the kernel."""
    have = effective_capabilities()
    if have >> _CAP_SYS_ADMIN & 1:
        have |= 1 << CAPABILITIES["CAP_BPF"]
    return tuple(name for name, bit in CAPABILITIES.items() if not have >> bit & 1)


def require_rights() -> None:
    """Raises NotPermitted, naming what is missing, unless everything needed is there."""
    missing = missing_capabilities()
    if missing:
        raise NotPermitted(
            f"this process lacks {', '.join(missing)}",
            f"run as root, or with {', '.join(CAPABILITIES)}",
            errno.EPERM,
        )
