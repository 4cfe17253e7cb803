"""What a boot of the lab is made of: QEMU and other tools, a small Debian, kernels.

Each is made of Debian's packages by a recipe, and is made again when the recipe changes: a stamp
beside it has the recipe's digest. All lies in ${XDG_CACHE_HOME:-~/.cache}/ixnet-lab.

    host/                  TOOLS, unpacked, run from there with their own libraries
    debian.erofs           GUEST, the guest's system
    kernel-RELEASE/        vmlinux, and an initrd with kernel.py's MODULES
        tracing.erofs      made if asked for: a layer over debian.erofs, TRACING and the HEADERS of
                           this kernel
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel import MODULES, ModuleTree, initramfs, release_key, vmlinux
from packages import Archive, LabError, codename, run, unpack

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ixnet-lab"
TRIPLET = "x86_64-linux-gnu"

# Run here, from a directory of their own with every library they need.
TOOLS = ("qemu-system-x86", "seabios", "erofs-utils", "zstd", "busybox-static")
# The guest's system. The project's .venv comes with its tree and runs on this Python. All that
# these depend on comes too. A package is for: (base) a system that works; (net) the tests on NIC
# drivers; (dune) programs that tests/dune runs in ring 3, and CPython's own tests; (look) finding
# out what went wrong, by hand.
GUEST = (
    *("bash", "coreutils", "dash", "debianutils", "kmod", "libc-bin", "mount"),  # base
    *("procps", "util-linux"),  # base
    *("python3", "python3-distutils", "libbpf1", "libxdp1"),  # base: ixnet's own needs
    *("ethtool", "iproute2", "iputils-ping"),  # net
    *("busybox-static", "diffutils", "findutils", "grep", "mawk", "perl", "sed", "tar"),  # dune
    *("bzip2", "gzip", "pigz", "sqlite3", "xz-utils", "zstd"),  # dune
    *("libpython3.11-testsuite", "netbase"),  # dune
    "strace",  # look
)
GUEST_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
}
# What `ixnet trace` needs beyond it: a third of a gigabyte, so only boots that trace have it.
TRACING = ("python3-bpfcc",)
# And of each tree of the kernel's headers (source, build) what bcc's programs include.
HEADERS = (
    *("include/asm-generic", "include/generated", "include/linux", "include/uapi", "include/vdso"),
    "arch/x86/include",
)
# What the packages' scripts would have done, as far as it matters here.
GUEST_LINKS = {
    "usr/bin/sh": "dash",
    "usr/bin/awk": "mawk",
    "etc/mtab": "/proc/self/mounts",
}
# Kernels: 7.x comes as binary + modules, those before as one image.
KERNEL_NAME = r"linux-(?:image|binary)-(\d+\.\d+\.\d+\+deb\d+)-amd64"
KERNEL_ATTEMPTS = 3
# AF_XDP zero-copy of igb came with 6.14.
KERNEL_LEAST = (6, 14)


def say(text: str) -> None:
    """A line about the lab itself, apart from the guest's output."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


# ---- recipes -------------------------------------------------------------------------------


class Made:
    """Something in the cache, and its stamp: the recipe that it was made by."""

    def __init__(self, place: Path, stamp: Path, *recipe: object) -> None:
        self.place = place
        self.stamp = stamp
        self.digest = hashlib.sha256(repr(recipe).encode()).hexdigest()

    def current(self) -> bool:
        """Whether it is there, made by the recipe as it is now."""
        return self.place.exists() and self.stamp.exists() and self.stamp.read_text() == self.digest

    def done(self) -> None:
        """It was made."""
        self.stamp.write_text(self.digest)


def made_host() -> Made:
    """The tools."""
    place = CACHE / "host"
    return Made(place, place / "recipe", codename(), TOOLS)


def made_guest() -> Made:
    """The guest's system."""
    how = inspect.getsource(_make_guest)
    recipe = (codename(), GUEST, GUEST_FILES, GUEST_LINKS, how)
    return Made(CACHE / "debian.erofs", CACHE / "debian.recipe", *recipe)


def made_kernel(release: str) -> Made:
    """A kernel and its initramfs: kernel.py makes it, MODULES are in it."""
    how = (HERE / "kernel.py").read_text()
    place = CACHE / f"kernel-{release}"
    return Made(place, place / "recipe", MODULES, how)


def made_tracing(release: str) -> Made:
    """The layer with bcc and a kernel's headers."""
    how = inspect.getsource(_make_tracing)
    place = CACHE / f"kernel-{release}"
    recipe = (codename(), GUEST, TRACING, HEADERS, how)
    return Made(place / "tracing.erofs", place / "tracing.recipe", *recipe)


# ---- tools of the host ---------------------------------------------------------------------


class Host:
    """Programs out of packages that are not installed, with their own libraries."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, program: str) -> list[str]:
        """How to start one of them."""
        libraries = self.root / "usr/lib" / TRIPLET
        # Some libraries lie a level deeper, found by a path in the program that starts at /.
        path = [libraries, *sorted({so.parent for so in libraries.glob("*/*.so*")})]
        return [
            str(self.root / "lib64/ld-linux-x86-64.so.2"),
            "--library-path",
            ":".join(map(str, path)),
            str(self.root / "usr/bin" / program),
        ]

    def unzstd(self, data: bytes) -> bytes:
        """Decompresses zstd."""
        done = subprocess.run(
            [*self.command("zstd"), "-dcq"], input=data, stdout=subprocess.PIPE, check=False
        )
        if done.returncode != 0 or not done.stdout:
            raise LabError("a compressed kernel file can't be read", "lab.py setup --refresh")
        return done.stdout

    def image(self, source: Path, target: Path, left_out: Sequence[str] = ()) -> None:
        """Makes a read-only image of a directory; who uses the old one keeps it."""
        patterns = [f"--exclude-regex={pattern}" for pattern in left_out]
        partial = target.with_suffix(".partial")
        run(
            [*self.command("mkfs.erofs"), "--quiet", "--all-root", *patterns, partial, source],
            f"make an image of {source}",
            "free some disk space",
        )
        partial.rename(target)


HOST = Host(CACHE / "host")


# ---- set-up --------------------------------------------------------------------------------


def setup(refresh: bool = False, wanted: str | None = None, tracing: bool = False) -> None:
    """Makes what a run needs and what a changed recipe calls for; tracing: the layer for that, too.
    Reaches for the mirror only if there is something to make. Errors: LabError; Unavailable where
    the mirror can't be reached."""
    with _alone():
        at_hand = [_release(path) for path in CACHE.glob("kernel-*")]
        stale = [release for release in at_hand if not made_kernel(release).current()]
        missing = not _at_hand(wanted) or (tracing and not _can_trace(wanted))
        ready = made_host().current() and made_guest().current() and not missing and not stale
        if ready and not refresh:
            return
        archive = Archive(CACHE / "apt")
        say(f"fetching lists of packages from {archive.mirror}")
        archive.update()
        if refresh or not made_host().current():
            _make_host(archive)
        if refresh or not made_guest().current():
            say(f"fetching the guest's system: {', '.join(GUEST)}")
            _make_guest(archive)
            made_guest().done()
        for release in stale:
            _remake_kernel(archive, release)
        if refresh or not _at_hand(wanted):
            _make_kernel(archive, wanted)
        if tracing and not _can_trace(wanted):
            _add_tracing(archive, wanted)
        for left in ("cache/archives", "debs"):
            shutil.rmtree(CACHE / "apt" / left, ignore_errors=True)
        say(f"ready: {CACHE}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two set-ups at once: one waits."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fresh(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _make_host(archive: Archive) -> None:
    say(f"fetching {', '.join(TOOLS)}")
    packages = archive.closure(TOOLS, backports=True)
    unpack(packages, _fresh(HOST.root))
    made_host().done()


def _make_guest(archive: Archive) -> None:
    root = _fresh(CACHE / "guest")
    unpack(archive.closure(GUEST), root)
    for link, target in GUEST_LINKS.items():
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    for name, text in GUEST_FILES.items():
        (root / name).write_text(text)
    for name in ("doc", "man", "locale", "info"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    HOST.image(root, CACHE / "debian.erofs")
    shutil.rmtree(root)


def _make_kernel(archive: Archive, wanted: str | None) -> None:
    """The newest kernel that there is, or one of the next newest where that can't be had."""
    names = {name.split("-", 2)[2] for name in archive.names(KERNEL_NAME)}
    found = [release for release in names if release_key(release)[:2] >= KERNEL_LEAST]
    found = [release for release in found if release.startswith(wanted or "")]
    found.sort(key=release_key, reverse=True)
    if not found:
        raise LabError(
            f"the mirror has no kernel {wanted or '.'.join(map(str, KERNEL_LEAST)) + ' or later'}",
            f"use a mirror with backports (there are: {', '.join(sorted(names)) or 'none'})",
        )
    last = LabError("no kernel can be had", "lab.py setup --kernel VERSION")
    for release in found[:KERNEL_ATTEMPTS]:
        try:
            _prepare_kernel(archive, release)
            return
        except LabError as error:
            say(f"the kernel {release} can't be had: {error}")
            last = error
    raise last


def _remake_kernel(archive: Archive, release: str) -> None:
    """One at hand that another recipe made. It goes if the mirror has it no more."""
    if archive.names(_kernel_packages(release)):
        _prepare_kernel(archive, release)
        return
    say(f"the kernel {release} was made otherwise, and the mirror has it no more: removed")
    shutil.rmtree(CACHE / f"kernel-{release}")


def _kernel_packages(release: str) -> str:
    return rf"linux-(?:image|binary|modules)-{release.replace('+', '[+]')}"


def _prepare_kernel(archive: Archive, release: str) -> None:
    made = made_kernel(release)
    if made.current():
        return
    say(f"fetching the kernel {release}")
    names = archive.names(_kernel_packages(release))
    package = _fresh(CACHE / "package")
    unpack(archive.download(names), package)
    image = next(package.glob("boot/vmlinuz*"), None) or next(package.rglob("vmlinuz*"), None)
    modules = next((package / "usr/lib/modules").glob("*"), None)
    if image is None or modules is None:
        raise LabError(f"its packages ({', '.join(names)}) hold no kernel", "try another")
    loaded = ModuleTree(modules, HOST.unzstd)
    made.place.mkdir(exist_ok=True)
    _write(made.place / "initrd", initramfs(loaded, HOST.root / "bin/busybox"))
    _write(made.place / "vmlinux", vmlinux(image.read_bytes(), HOST.unzstd))
    made.done()
    shutil.rmtree(package)


def _can_trace(wanted: str | None) -> bool:
    """Whether the kernel that a run would take has its layer."""
    return any(made_tracing(_release(place)).current() for place in _at_hand(wanted)[:1])


def _add_tracing(archive: Archive, wanted: str | None) -> None:
    """The layer of the kernel that a run would take. A kernel whose headers the mirror has no more
    makes way for the newest."""
    release = _release(choose_kernel(wanted))
    if not archive.names(f"linux-headers-{re.escape(release)}"):
        say(f"the mirror has no headers of the kernel {release} any more: removed")
        shutil.rmtree(CACHE / f"kernel-{release}")
        if not _at_hand(wanted):
            _make_kernel(archive, wanted)
        release = _release(choose_kernel(wanted))
    say(f"fetching {', '.join(TRACING)} and the headers of {release}")
    _make_tracing(archive, release)
    made_tracing(release).done()


def _make_tracing(archive: Archive, release: str) -> None:
    """As bcc looks for headers: `build` has those generated for this flavour, `source` the rest."""
    package = _fresh(CACHE / "package")
    names = [f"linux-headers-{release}", f"linux-headers-{release.rpartition('-')[0]}-common"]
    unpack(archive.download(names), package)
    root = _fresh(CACHE / "layer")
    unpack(archive.closure(TRACING, without=GUEST), root)
    for name, kind in zip(names, ("build", "source"), strict=True):
        for part in HEADERS:
            if (found := package / "usr/src" / name / part).exists():
                shutil.copytree(found, root / "usr/lib/modules" / release / kind / part)
    for name in ("doc", "man"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    HOST.image(root, CACHE / f"kernel-{release}" / "tracing.erofs")
    shutil.rmtree(root)
    shutil.rmtree(package)


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(path)


def _release(place: Path) -> str:
    return place.name.removeprefix("kernel-")


def kernels() -> list[Path]:
    """Those that are ready, the newest first."""
    places = [path.parent for path in CACHE.glob("kernel-*/vmlinux")]
    ready = [place for place in places if made_kernel(_release(place)).current()]
    return sorted(ready, key=lambda path: release_key(path.name), reverse=True)


def _at_hand(wanted: str | None) -> list[Path]:
    return [place for place in kernels() if place.name.startswith(f"kernel-{wanted or ''}")]


def choose_kernel(wanted: str | None) -> Path:
    """The newest at hand that begins with `wanted`. Errors: LabError."""
    for place in _at_hand(wanted):
        return place
    raise LabError(f"there is no kernel {wanted or ''} at hand", "lab.py setup [--kernel VERSION]")
