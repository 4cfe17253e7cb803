#!/usr/bin/env python3
"""A virtual machine with real NIC drivers and a KVM that is fit for libdune, on a machine that has
neither: what `make lab` and tests/lab/test_dune.py run in.

    lab.py setup [--refresh] [--tracing]  fetch QEMU, a kernel and a small Debian, make images
    lab.py run [options] -- COMMAND       boot, run the command in the project's tree, power off
    lab.py list                           kernels at hand

`run` does what `setup` would where something is missing or its recipe changed (images.py). It
passes the command's output through and returns its exit status; 124: it took too long; 125: the lab
itself failed; 69 (EX_UNAVAILABLE): it is not at hand and can't be fetched from here. With
--out DIR the guest's command finds DIR as $IX_LAB_OUT: what it writes there is here at once, and
stays when the guest breaks down. With --tracing the guest has bcc and its kernel's headers (`ixnet
trace`), and $IX_LAB_TRACING is 1. Everything is emulated (no KVM needed), so it is 10 to 20 times
slower than the machine: time nothing here. Needs no root. All lies in
${XDG_CACHE_HOME:-~/.cache}/ixnet-lab; a fresh start is to remove that.

NICs appear as dut0, peer0, dut1 ...: dutN is of the model asked for, peerN a virtio-net. The wire
between them is a QEMU hub, which gives a virtio-net one queue. With --nic virtio:QUEUES it is two
taps on a bridge, in a network namespace of the emulator's alone, without a name: whatever ends the
emulator, the namespace goes with it. That needs /dev/net/tun and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import dataclass
from pathlib import Path

from images import CACHE, HERE, HOST, TRIPLET, choose_kernel, kernels, say, setup
from kernel import Cpio
from packages import LabError, Unavailable

ROOT = HERE.parents[1]
# Not for the guest: what only builders and checkers use.
LEFT_OUT = (
    r"^\.git$", r"^\.hypothesis", r"^\.mypy_cache", r"^\.ruff_cache",
    r"^build/(san|core|hosted|cffi|dune/(shim|lib))",
    r"^\.venv/lib/[^/]*/site-packages/(mypy|mypyc|pip|setuptools|ruff)", r"^\.venv/bin/ruff",
)  # fmt: skip

MEMORY = "3G"
GUEST_CPUS = 2
TIMEOUT_S = 1500.0
LAB_FAILED = 125
TIMED_OUT = 124
CONSOLE_LINES = 40
UNAVAILABLE = os.EX_UNAVAILABLE
GUEST_OUT = "/run/lab-out"
SIDES = ("dut", "peer")
TUN = "/dev/net/tun"
MODELS = {
    "igb": "igb",
    # Zero-copy needs the kernel's DMA API, which a virtio device uses with an IOMMU platform.
    "virtio": "virtio-net-pci,iommu_platform=on,disable-legacy=on",
}
# Before a command: it ends with us, even if we are killed. (Another user id would undo it.)
WITH_US = ("setpriv", "--pdeathsig", "KILL")
OVER_TAPS = ("virtio",)


# ---- one boot --------------------------------------------------------------------------------


def _mac(pair: int, side: int) -> str:
    return f"52:54:00:00:{pair:02x}:{side:02x}"  # locally administered


@dataclass(frozen=True)
class Pair:
    """A NIC under test, its peer, and the wire. queues: of each, over taps; 0: a hub."""

    number: int
    model: str
    queues: int

    @classmethod
    def parse(cls, number: int, text: str) -> Pair:
        """MODEL or MODEL:QUEUES. Errors: LabError."""
        model, _, queues = text.partition(":")
        fine = model in MODELS and (not queues or (model in OVER_TAPS and queues.isdecimal()))
        if not fine or (queues and int(queues) < 1):
            raise LabError(f"there is no NIC {text}", f"{', '.join(MODELS)}, or virtio:QUEUES")
        return cls(number, model, int(queues or 0))

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps that it needs."""
        return (f"dut{self.number}", f"peer{self.number}") if self.queues else ()

    def names(self) -> list[str]:
        """NAME=MAC of both."""
        return [f"{side}{self.number}={_mac(self.number, i)}" for i, side in enumerate(SIDES, 1)]

    def options(self) -> list[str]:
        """QEMU's options for it."""
        options: list[str] = []
        n, queues = self.number, self.queues
        for i, side in enumerate(SIDES, 1):
            name = f"{side}{n}"
            device = MODELS[self.model] if side == "dut" else "virtio-net-pci"
            wire = f"hubport,id={name},hubid={n}"
            if queues:
                wire = f"tap,id={name},ifname={name},script=no,downscript=no,vhost=off"
                wire += f",queues={queues}"
                device += f",mq=on,vectors={2 * queues + 2}"  # RX and TX each; control, config
            options += ["-netdev", wire]
            options += ["-device", f"{device},netdev={name},mac={_mac(n, i)},romfile="]
        return options


def in_namespace(pairs: Sequence[Pair], command: Sequence[str]) -> list[str]:
    """The command, in a network namespace of its own with the pairs' taps and bridges, if any.
    Errors: LabError."""
    if not any(pair.queues for pair in pairs):
        return list(command)
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise LabError(f"several queues need {TUN}", "modprobe tun, be root; or --nic virtio")
    if not shutil.which("ip"):
        raise LabError("several queues need the command ip", "install iproute2")
    script = ["set -e", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"]
    for pair in pairs:
        if pair.queues:
            bridge = f"wire{pair.number}"
            script.append(f"ip link add {bridge} type bridge mcast_snooping 0")
            script.append(f"ip link set {bridge} up")
            for tap in pair.taps:
                script.append(f"ip tuntap add {tap} mode tap multi_queue vnet_hdr")
                script.append(f"ip link set {tap} master {bridge} up")
    script.append(f"exec {shlex.join(command)}")
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--net", *user, "sh", "-c", "\n".join(script)]


def run_settings(
    command: Sequence[str], names: Sequence[str], out: Path | None, tracing: bool
) -> bytes:
    """The part of the initramfs that each run has of its own."""
    archive = Cpio()
    archive.add("init", (HERE / "init.sh").read_bytes())
    settings = f"TREE={shlex.quote(str(ROOT))}\nNICS={shlex.quote(' '.join(names))}\n"
    settings += f"OUT={GUEST_OUT if out else ''}\nLAYERS={'tracing' if tracing else ''}\n"
    archive.add("settings", settings.encode())
    script = (
        "export PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8\n"
        # Python may write bytecode: what each start compiled anew would be most of its time here.
        f"export IX_LAB=1 IX_LAB_TRACING={int(tracing)} PYTHONUNBUFFERED=1\n"
        f"{f'export IX_LAB_OUT={GUEST_OUT}' if out else 'unset IX_LAB_OUT'}\n"
        f"cd {shlex.quote(str(ROOT))}\nexec {shlex.join(command)}\n"
    )
    archive.add("run.sh", script.encode())
    return archive.finish()


def qemu_command(
    kernel: Path, work: Path, devices: Sequence[str], output: str, tracing: bool
) -> list[str]:
    """The emulator's command line."""
    disks: list[str] = []
    images = {"debian": CACHE / "debian.erofs", "tree": work / "tree.erofs"}
    if tracing:
        images["tracing"] = kernel / "tracing.erofs"
    for serial, image in images.items():
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
        *("-M", "q35", "-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off"),
        *("-smp", str(GUEST_CPUS), "-m", MEMORY, "-device", "virtio-rng-pci"),
        *("-kernel", str(kernel / "vmlinux"), "-initrd", str(work / "initrd")),
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable "
        "no_timer_check random.trust_cpu=on nowatchdog audit=0 apparmor=0 net.ifnames=0 "
        # /proc/PID/mem writes to read-only memory: tests/dune/test_deaths.py breaks code with it.
        "proc_mem.force_override=always",
        *("-serial", f"file:{work / 'console'}"),
        *ports,
        *disks,
        *devices,
    ]


def share_options(out: Path | None) -> list[str]:
    """QEMU's options for the directory that guest and host share."""
    if out is None:
        return []
    out.mkdir(parents=True, exist_ok=True)
    share = f"local,id=out,path={out.resolve()},security_model=none"
    return ["-fsdev", share, "-device", "virtio-9p-pci,fsdev=out,mount_tag=lab.out"]


def boot(
    command: Sequence[str],
    models: Sequence[str],
    kernel: str | None,
    timeout_s: float,
    out: Path | None,
    tracing: bool,
) -> int:
    """Runs a command in a guest; returns its exit status, or the lab's own."""
    place = choose_kernel(kernel)
    with tempfile.TemporaryDirectory(prefix="ixnet-lab-") as name:
        work = Path(name)
        pairs = [Pair.parse(n, model) for n, model in enumerate(models)]
        options = [word for pair in pairs for word in pair.options()]
        names = [name for pair in pairs for name in pair.names()]
        HOST.image(ROOT, work / "tree.erofs", LEFT_OUT)
        (work / "initrd").write_bytes(
            (place / "initrd").read_bytes() + run_settings(command, names, out, tracing)
        )
        say(f"booting {place.name.removeprefix('kernel-')} with {', '.join(models) or 'no NIC'}")
        began = time.monotonic()
        options += share_options(out)
        ended = _run_qemu(place, work, pairs, options, timeout_s, tracing)
        status = (work / "status").read_text().strip() if (work / "status").exists() else ""
        say(f"{time.monotonic() - began:.0f} s, exit status {status or 'none'}")
        if status:
            return int(status)
        for log in ("console", "emulator"):
            if (work / log).exists():
                for line in (work / log).read_text(errors="replace").splitlines()[-CONSOLE_LINES:]:
                    say(f"{log}: {line}")
        if not ended:
            say(f"ended after {timeout_s:.0f} s (cure: --timeout, or a less busy machine)")
            return TIMED_OUT
        say("the guest ended without a status; what its console said last is above")
        return LAB_FAILED


def _run_qemu(
    kernel: Path,
    work: Path,
    pairs: Sequence[Pair],
    options: Sequence[str],
    timeout_s: float,
    tracing: bool,
) -> bool:
    """Whether it ended in time. The guest's output goes to our standard output as it comes."""
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        # Or it would load the modules of another QEMU that is installed.
        "QEMU_MODULE_DIR": str(HOST.root / "usr/lib" / TRIPLET / "qemu"),
    }
    command = qemu_command(kernel, work, options, f"/dev/fd/{writing}", tracing)
    with (work / "emulator").open("wb") as log:
        process = subprocess.Popen(
            [*WITH_US, *in_namespace(pairs, [*WITH_US, *command])],
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
    boots.add_argument(
        "--nic",
        action="append",
        default=[],
        metavar="MODEL",
        help=f"{', '.join(sorted(MODELS))}, or virtio:QUEUES; may be repeated",
    )
    boots.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, help="seconds, the boot included"
    )
    boots.add_argument("--out", type=Path, help="directory for what the guest hands back")
    boots.add_argument("command", nargs="+")
    for part in (make, boots):
        part.add_argument("--tracing", action="store_true", help="with what ixnet trace needs")
    parts.add_parser("list", help="kernels at hand")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if given.part == "setup":
            setup(given.refresh, given.kernel, given.tracing)
        elif given.part == "list":
            print("\n".join(path.name.removeprefix("kernel-") for path in kernels()))
        else:
            setup(wanted=given.kernel, tracing=given.tracing)
            how = (given.timeout, given.out, given.tracing)
            return boot(given.command, given.nic, given.kernel, *how)
    except Unavailable as error:
        say(f"not available: {error}")
        return UNAVAILABLE
    except LabError as error:
        say(f"FAILED: {error}")
        return LAB_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
