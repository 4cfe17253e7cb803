"""What tracing needs of a machine, and the cure for what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ixnet.control.errors import IxError
from ixnet.control.rights import missing_capabilities

# Where Debian's python3-bpfcc is: outside of every virtual environment.
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")
# bcc looks for events here (and nowhere else, until its version 0.27).
TRACEFS = Path("/sys/kernel/debug/tracing/events")
BTF = Path("/sys/kernel/btf/vmlinux")


class TraceError(IxError):
    """Something can't be traced on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Machine:
    """What decides a cure."""

    release: str = field(default_factory=platform.release)
    modules: Path = Path("/lib/modules")
    kheaders: Path = Path("/sys/kernel/kheaders.tar.xz")
    distribution: frozenset[str] = field(default_factory=lambda: _distribution())


def _distribution(path: Path = Path("/etc/os-release")) -> frozenset[str]:
    """ID and ID_LIKE: {"ubuntu", "debian"}."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    words = f"{pairs.get('ID', '')} {pairs.get('ID_LIKE', '')}".replace('"', " ")
    return frozenset(words.split())


# ---- bcc -------------------------------------------------------------------------------------


def load_bcc() -> ModuleType:
    """The module: of this environment, or of the system. Errors: TraceError."""
    for find in (_own_bcc, _system_bcc):
        module = find()
        # On the Python Package Index `bcc` is something else.
        if module is not None and hasattr(module, "BPF"):
            return module
    raise TraceError("bcc is not installed", bcc_cure())


def _own_bcc() -> ModuleType | None:
    try:
        return importlib.import_module("bcc")
    except ImportError:
        return None


def _system_bcc() -> ModuleType | None:
    """Only this package: with all of dist-packages on the path, others' versions would come in."""
    place = DIST_PACKAGES / "bcc"
    spec = importlib.util.spec_from_file_location(
        "bcc", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    if spec is None or spec.loader is None or not (place / "__init__.py").exists():
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError):  # OSError: libbcc itself is missing
        del sys.modules["bcc"]
        return None
    return module


def bcc_cure(machine: Machine | None = None) -> str:
    """How to get bcc here, with the kernel's headers if they are missing too."""
    machine = machine or Machine()
    words = ["python3-bpfcc"]
    if not has_headers(machine) and (package := headers_package(machine)):
        words.append(package)
    if "debian" in machine.distribution:
        return f"apt-get install {' '.join(words)}"
    if "fedora" in machine.distribution:
        return f"dnf install python3-bcc kernel-devel-{machine.release}"
    return "install bcc with its Python 3 module (Debian's package: python3-bpfcc)"


# ---- headers ---------------------------------------------------------------------------------


def has_headers(machine: Machine) -> bool:
    """Whether bcc finds the running kernel's headers."""
    place = machine.modules / machine.release
    known = (place / kind / "include/linux/kconfig.h" for kind in ("source", "build"))
    return machine.kheaders.exists() or any(path.exists() for path in known)


def headers_package(machine: Machine) -> str | None:
    """The package of Debian or Ubuntu that has them; None: the kernel is nobody's package."""
    # 6.1.0-18-amd64, 7.3.4+deb13-cloud-amd64; 6.8.0-45-generic.
    debian = (
        r"\d+\.\d+(\.\d+)?(-\d+|\+deb\d+)[\w.+]*-([a-z]+-)*(amd64|generic|lowlatency|aws|azure)"
    )
    if "debian" in machine.distribution and re.fullmatch(debian, machine.release):
        return f"linux-headers-{machine.release}"
    return None


def headers_cure(machine: Machine) -> str:
    """How to get the running kernel's headers."""
    if package := headers_package(machine):
        return f"apt-get install {package}"
    if "fedora" in machine.distribution:
        return f"dnf install kernel-devel-{machine.release}"
    return (
        f"modprobe kheaders (CONFIG_IKHEADERS), or put the headers of this kernel where "
        f"{machine.modules / machine.release}/build leads: no package has them"
    )


# ---- all of it -------------------------------------------------------------------------------


def problem(machine: Machine | None = None) -> TraceError | None:
    """What keeps this machine from tracing; None if nothing does."""
    machine = machine or Machine()
    if os.geteuid() != 0 or missing_capabilities():
        return TraceError("tracing needs root's rights", "run as root")
    try:
        load_bcc()
    except TraceError as error:
        return error
    if not has_headers(machine):
        text = f"no headers of the running kernel ({machine.release}), which bcc needs"
        return TraceError(text, headers_cure(machine))
    if not TRACEFS.exists():
        text = f"the kernel's events are not to be seen ({TRACEFS})"
        return TraceError(text, "mount -t debugfs debugfs /sys/kernel/debug")
    if not BTF.exists():
        cure = "use a kernel with CONFIG_DEBUG_INFO_BTF=y"
        return TraceError("the kernel doesn't describe its structures (no BTF)", cure)
    return None


def require(machine: Machine | None = None) -> None:
    """Raises what problem() finds."""
    if (found := problem(machine)) is not None:
        raise found
