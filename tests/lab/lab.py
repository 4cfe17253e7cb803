#!/usr/bin/env python3
"""A virtual machine with real NIC drivers, on a machine that has none: what `make lab` runs.

    lab.py setup [--refresh]              fetch QEMU, a kernel and a small Debian, make images
    lab.py run [options] -- COMMAND       boot, run the command in the project's tree, power off
    lab.py list                           kernels at hand

`run` passes the command's output through and returns its exit status; 124: it took too long;
125: the lab itself failed. Everything is emulated (no KVM needed), so it is 10 to 20 times slower
than the machine: time nothing here. Needs no root. All lies in
${XDG_CACHE_HOME:-~/.cache}/ixnet-lab;
a fresh start is to remove that.

The wire between a NIC under test and its peer is a QEMU hub. NICs appear as dut0, peer0, dut1 ...:
dutN is of the model asked for, peerN a virtio-net.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kernel import Cpio, ModuleTree, initramfs, release_key, vmlinux
from packages import Archive, LabError, run, unpack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ixnet-lab"
TRIPLET = "x86_64-linux-gnu"

# Run here, from a directory of their own with every library they need.
TOOLS = ("qemu-system-x86", "seabios", "erofs-utils", "zstd", "busybox-static")
# The guest's system. The project's .venv comes with its tree and runs on this Python.
GUEST = (
    "bash", "coreutils", "dash", "ethtool", "grep", "iproute2", "iputils-ping", "kmod",
    "libbpf1", "libc-bin", "libxdp1", "procps", "python3", "python3-distutils", "sed", "util-linux",
    # Programs that dune-sandbox is tried on, and CPython's own tests.
    "busybox", "diffutils", "findutils", "gzip", "libpython3.11-testsuite", "perl", "pigz",
    "sqlite3", "tar", "xz-utils",
)  # fmt: skip
# Kernels: 7.x comes as binary + modules, those before as one image.
KERNEL_NAME = r"linux-(?:image|binary)-(\d+\.\d+\.\d+\+deb\d+)-amd64"
KERNEL_ATTEMPTS = 3
# AF_XDP zero-copy of igb came with 6.14.
KERNEL_LEAST = (6, 14)
# Not for the guest: what only builders and checkers use.
LEFT_OUT = (
    r"^\.git$", r"^\.hypothesis", r"^\.mypy_cache", r"^\.ruff_cache",
    r"^build/(san|core|hosted|cffi)",
    r"^\.venv/lib/[^/]*/site-packages/(mypy|mypyc|pip|setuptools|ruff)", r"^\.venv/bin/ruff",
    r"__pycache__",
)  # fmt: skip

MEMORY = "3G"
GUEST_CPUS = 2
TIMEOUT_S = 1500.0
LAB_FAILED = 125
TIMED_OUT = 124
MODELS = {
    "igb": "igb",
    # Zero-copy needs the kernel's DMA API, which a virtio device uses with an IOMMU platform.
    "virtio": "virtio-net-pci,iommu_platform=on,disable-legacy=on",
}


def say(text: str) -> None:
    """A line about the lab itself, apart from the guest's output."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


# ---- set-up --------------------------------------------------------------------------------


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
        """Makes a read-only image of a directory."""
        patterns = [f"--exclude-regex={pattern}" for pattern in left_out]
        run(
            [*self.command("mkfs.erofs"), "--quiet", "--all-root", *patterns, target, source],
            f"make an image of {source}",
            "free some disk space",
        )


HOST = Host(CACHE / "host")


def setup(refresh: bool, wanted: str | None) -> None:
    """Makes everything that a run needs, unless it is there. Errors: LabError."""
    stamp = CACHE / "done"
    parts = [(HERE / name).read_bytes() for name in ("lab.py", "packages.py", "kernel.py")]
    digest = hashlib.sha256(b"".join([*parts, (wanted or "").encode()])).hexdigest()
    if stamp.exists() and stamp.read_text() == digest and not refresh:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    archive = Archive(CACHE / "apt")
    say(f"fetching lists of packages from {archive.mirror}")
    archive.update()
    if refresh or not (HOST.root / "usr/bin/qemu-system-x86_64").exists():
        say(f"fetching {', '.join(TOOLS)}")
        _fresh(HOST.root)
        unpack(archive.closure(TOOLS, backports=True), HOST.root)
    if refresh or not (CACHE / "debian.erofs").exists():
        say(f"fetching the guest's system: {', '.join(GUEST)}")
        _make_guest(archive)
    _make_kernel(archive, wanted)
    shutil.rmtree(CACHE / "apt/cache/archives", ignore_errors=True)
    stamp.write_text(digest)
    say(f"ready: {CACHE}")


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _make_guest(archive: Archive) -> None:
    root = CACHE / "guest"
    _fresh(root)
    unpack(archive.closure(GUEST), root)
    # What the packages' scripts would have done, as far as it matters here.
    for link, target in {"usr/bin/sh": "dash", "etc/mtab": "/proc/self/mounts"}.items():
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost lab\n")
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
    for release in found[:KERNEL_ATTEMPTS]:
        try:
            _prepare_kernel(archive, release)
            return
        except LabError as error:
            say(f"the kernel {release} can't be had: {error}")
    raise LabError("no kernel can be had", "try again later, or lab.py setup --kernel VERSION")


def _prepare_kernel(archive: Archive, release: str) -> None:
    place = CACHE / f"kernel-{release}"
    if not (place / "vmlinux").exists():
        say(f"fetching the kernel {release}")
        _fresh(place)
        names = archive.names(rf"linux-(?:image|binary|modules)-{release.replace('+', '[+]')}")
        unpack(archive.download(names), place / "package")
        image = next((place / "package").glob("boot/vmlinuz*"), None) or next(
            (place / "package").rglob("vmlinuz*"), None
        )
        modules = next((place / "package/usr/lib/modules").glob("*"), None)
        if image is None or modules is None:
            raise LabError(f"its packages ({', '.join(names)}) hold no kernel", "try another")
        loaded = ModuleTree(modules, HOST.unzstd)
        _write(place / "initrd", initramfs(loaded, HOST.root / "bin/busybox"))
        _write(place / "vmlinux", vmlinux(image.read_bytes(), HOST.unzstd))
        shutil.rmtree(place / "package")


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(path)


def kernels() -> list[Path]:
    """Those that were made ready, the newest first."""
    ready = [path.parent for path in CACHE.glob("kernel-*/vmlinux")]
    return sorted(ready, key=lambda path: release_key(path.name), reverse=True)


def choose_kernel(wanted: str | None) -> Path:
    """The newest at hand that begins with `wanted`. Errors: LabError."""
    for place in kernels():
        if place.name.removeprefix("kernel-").startswith(wanted or ""):
            return place
    raise LabError(f"there is no kernel {wanted or ''} at hand", "lab.py setup [--kernel VERSION]")


# ---- one boot --------------------------------------------------------------------------------


def _mac(pair: int, side: int) -> str:
    return f"52:54:00:00:{pair:02x}:{side:02x}"  # locally administered


def nic_options(models: Sequence[str]) -> tuple[list[str], list[str]]:
    """QEMU's options for pairs of NICs, and NAME=MAC of each."""
    options: list[str] = []
    names: list[str] = []
    for n, model in enumerate(models):
        for side, name, device in ((1, "dut", MODELS[model]), (2, "peer", "virtio-net-pci")):
            options += ["-netdev", f"hubport,id={name}{n},hubid={n}"]
            options += ["-device", f"{device},netdev={name}{n},mac={_mac(n, side)},romfile="]
            names.append(f"{name}{n}={_mac(n, side)}")
    return options, names


def run_settings(command: Sequence[str], names: Sequence[str]) -> bytes:
    """The part of the initramfs that each run has of its own."""
    archive = Cpio()
    archive.add("init", (HERE / "init.sh").read_bytes())
    settings = f"TREE={shlex.quote(str(ROOT))}\nNICS={shlex.quote(' '.join(names))}\n"
    archive.add("settings", settings.encode())
    script = (
        "export PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8\n"
        "export IX_LAB=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1\n"
        f"cd {shlex.quote(str(ROOT))}\nexec {shlex.join(command)}\n"
    )
    archive.add("run.sh", script.encode())
    return archive.finish()


def qemu_command(kernel: Path, work: Path, nics: Sequence[str], output: str) -> list[str]:
    """The emulator's command line."""
    disks: list[str] = []
    for serial, image in (("debian", CACHE / "debian.erofs"), ("tree", work / "tree.erofs")):
        disks += ["-drive", f"if=none,id={serial},file={image},format=raw,readonly=on"]
        disks += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    ports = ["-device", "virtio-serial-pci"]
    for name, path in (("output", output), ("status", str(work / "status"))):
        ports += ["-chardev", f"file,id={name},path={path},append=on"]
        ports += ["-device", f"virtserialport,chardev={name},name=lab.{name}"]
    share = HOST.root / "usr/share"
    return [
        *HOST.command("qemu-system-x86_64"),
        *("-L", str(share / "qemu"), "-L", str(share / "seabios")),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"),
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"),
        *("-smp", str(GUEST_CPUS), "-m", MEMORY, "-device", "virtio-rng-pci"),
        *("-kernel", str(kernel / "vmlinux"), "-initrd", str(work / "initrd")),
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable "
        "no_timer_check random.trust_cpu=on nowatchdog audit=0 apparmor=0 net.ifnames=0",
        *("-serial", f"file:{work / 'console'}"),
        *ports,
        *disks,
        *nics,
    ]


def boot(
    command: Sequence[str], models: Sequence[str], kernel: str | None, timeout_s: float
) -> int:
    """Runs a command in a guest; returns its exit status, or the lab's own."""
    place = choose_kernel(kernel)
    with tempfile.TemporaryDirectory(prefix="ixnet-lab-") as name:
        work = Path(name)
        options, names = nic_options(models)
        HOST.image(ROOT, work / "tree.erofs", LEFT_OUT)
        (work / "initrd").write_bytes(
            (place / "initrd").read_bytes() + run_settings(command, names)
        )
        say(f"booting {place.name.removeprefix('kernel-')} with {', '.join(models) or 'no NIC'}")
        began = time.monotonic()
        ended = _run_qemu(place, work, options, timeout_s)
        status = (work / "status").read_text().strip() if (work / "status").exists() else ""
        say(f"{time.monotonic() - began:.0f} s, exit status {status or 'none'}")
        if status:
            return int(status)
        for log in ("console", "emulator"):
            if (work / log).exists():
                for line in (work / log).read_text(errors="replace").splitlines()[-12:]:
                    say(f"{log}: {line}")
        if not ended:
            say(f"ended after {timeout_s:.0f} s (cure: --timeout, or a less busy machine)")
            return TIMED_OUT
        say("the guest ended without a status; what its console said last is above")
        return LAB_FAILED


def _run_qemu(kernel: Path, work: Path, options: Sequence[str], timeout_s: float) -> bool:
    """Whether it ended in time. The guest's output goes to our standard output as it comes."""
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        # Or it would load the modules of another QEMU that is installed.
        "QEMU_MODULE_DIR": str(HOST.root / "usr/lib" / TRIPLET / "qemu"),
    }
    with (work / "emulator").open("wb") as log:
        process = subprocess.Popen(
            qemu_command(kernel, work, options, f"/dev/fd/{writing}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            env=environment,
            preexec_fn=lambda: os.nice(10),
        )
    os.close(writing)
    copier = threading.Thread(target=_copy, args=(reading,))
    copier.start()
    try:
        process.wait(timeout_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        copier.join()


def _copy(source: int) -> None:
    with os.fdopen(source, "rb", buffering=0) as stream:
        while data := stream.read(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


# ---- command line ----------------------------------------------------------------------------


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    make = parts.add_parser("setup", help="fetch and make what a run needs")
    make.add_argument("--refresh", action="store_true", help="fetch everything anew, the newest")
    make.add_argument("--kernel", help="a version, or its beginning, rather than the newest")
    boots = parts.add_parser("run", help="boot and run a command")
    boots.add_argument("--kernel", help="a version at hand, or its beginning")
    boots.add_argument("--nic", action="append", default=[], choices=sorted(MODELS))
    boots.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, help="seconds, the boot included"
    )
    boots.add_argument("command", nargs="+")
    parts.add_parser("list", help="kernels at hand")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if given.part == "setup":
            setup(given.refresh, given.kernel)
        elif given.part == "list":
            print("\n".join(path.name.removeprefix("kernel-") for path in kernels()))
        else:
            return boot(given.command, given.nic, given.kernel, given.timeout)
    except LabError as error:
        say(f"FAILED: {error}")
        return LAB_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
