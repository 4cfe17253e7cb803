"""What a figure depends on besides the code."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ixnet import __version__


@dataclass(frozen=True)
class Machine:
    """memory_gib: of the whole machine; load_average: over the last minute."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    hypervisor: bool
    load_average: float
    time: str

    def as_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return asdict(self)


def machine() -> Machine:
    """Looks at the machine as it is now."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=model.group(1) if model else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(pages / 2**30, 1),
        kernel=platform.release(),
        hypervisor=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        load_average=os.getloadavg()[0],
        time=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


def versions() -> dict[str, str]:
    """Of what made the figures."""
    return {
        "ixnet": __version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }
