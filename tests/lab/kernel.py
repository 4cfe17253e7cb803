"""A Debian kernel made ready to boot under emulation: the plain ELF image and an initramfs."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packages import LabError

# What a boot needs, then the directory shared with the host, the NIC drivers under test, and what
# makes the guest a host of KVM. Some are built in, depending on the kernel.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "overlay",
    "erofs",
    "9pnet_virtio",
    "9p",
    "igb",
    "virtio_net",
    "veth",
    "xsk_diag",
    "kvm_amd",
)

Decompress = Callable[[bytes], bytes]


def vmlinux(bzimage: bytes, unzstd: Decompress) -> bytes:
    """The ELF kernel inside a bzImage. It boots by PVH, so nothing is decompressed emulated.

    The setup header (Documentation/arch/x86/boot.rst): setup_sects at 0x1f1, payload_offset and
    payload_length at 0x248, counted from the protected-mode part. The payload's last 4 bytes are
    its size when decompressed.
    """
    start = ((bzimage[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    payload = bzimage[start + offset : start + offset + length - 4]
    image = _decompress(payload, unzstd)
    if image[:4] != b"\x7fELF":
        raise LabError("the kernel's image is of an unknown kind", "name another: lab.py --kernel")
    return image


def _decompress(data: bytes, unzstd: Decompress) -> bytes:
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return unzstd(data)
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(data)
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    return data


@dataclass
class ModuleTree:
    """A kernel's modules, /lib/modules/RELEASE of its package."""

    place: Path
    unzstd: Decompress
    _files: dict[str, Path] = field(default_factory=dict)
    _loaded: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.place.rglob("*.ko*"):
            self._files[_plain(path.name.split(".ko")[0])] = path

    def needed(self, names: Sequence[str]) -> dict[str, bytes]:
        """These modules and what they depend on, each after its dependencies; those that are built
        in are left out."""
        found: dict[str, bytes] = {}
        for name in names:
            self._add(_plain(name), found)
        return found

    def _add(self, name: str, found: dict[str, bytes]) -> None:
        if name in found or name not in self._files:
            return
        image = self._image(name)
        for listed in re.findall(rb"\0depends=([^\0]*)\0", image):
            for other in listed.decode().split(","):
                self._add(_plain(other), found)
        for other in re.findall(rb"\0softdep=pre: ([^\0]*)\0", image):
            for word in other.decode().split():
                self._add(_plain(word), found)
        found[name] = image

    def _image(self, name: str) -> bytes:
        path = self._files[name]
        data = path.read_bytes()
        return self.unzstd(data) if path.suffix == ".zst" else _decompress(data, self.unzstd)


def _plain(name: str) -> str:
    """The kernel takes - and _ in a module's name as the same."""
    return name.replace("-", "_")


class Cpio:
    """An initramfs in the "newc" format (Documentation/driver-api/early-userspace/buffer-format).

    Several archives, one after the other, are one initramfs to the kernel.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o755) -> None:
        """A file; or, by its mode, a directory."""
        self._inode += 1
        path = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers)
        self._parts += [_padded(header + path), _padded(data)]

    def directory(self, name: str) -> None:
        """An empty directory."""
        self.add(name, mode=stat.S_IFDIR | 0o755)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link."""
        self.add(name, target.encode(), stat.S_IFLNK | 0o777)

    def finish(self) -> bytes:
        """The archive."""
        self.add("TRAILER!!!", mode=0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def initramfs(modules: ModuleTree, busybox: Path) -> bytes:
    """What every boot has: busybox, and the modules in the order to load them."""
    archive = Cpio()
    for name in ("bin", "proc", "sys", "dev", "guest", "modules"):
        archive.directory(name)
    archive.add("bin/busybox", busybox.read_bytes())
    archive.symlink("bin/sh", "busybox")
    order = []
    for name, image in modules.needed(MODULES).items():
        archive.add(f"modules/{name}.ko", image)
        order.append(name)
    archive.add("modules/order", ("\n".join(order) + "\n").encode())
    return archive.finish()


def release_key(release: str) -> tuple[int, ...]:
    """Sorts kernel releases by age: 6.18.15+deb13 before 7.3.4+deb13."""
    return tuple(int(number) for number in re.findall(r"\d+", os.path.basename(release)))
