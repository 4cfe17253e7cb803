"""One shard's pcap file, from the control plane's side (native/recorder.h does the recording)."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.config import SNAPLEN_DEFAULT, RunConfig
from ixnet.control.errors import IxError, errno_text, from_errno


class RecordError(IxError):
    """A pcap file can't be written; the message says which and why."""


def shard_paths(path: Path, shards: int) -> list[Path]:
    """The files of an instance: `path`, or with a number before its suffix where shards are several
    (trace.0.pcap). Errors: RecordError if `path` is a directory, or else no file."""
    if os.path.isdir(path):  # unlike Path.is_dir(), no error where that can't be looked at
        raise RecordError(f"--pcap {path} is a directory", "name a file in it")
    if shards == 1:
        return [path]
    with contextlib.suppress(OSError):  # /dev/null doesn't mean /dev/null.0
        _refuse_special(path)
    return [path.with_name(f"{path.stem}.{i}{path.suffix}") for i in range(shards)]


def _refuse_special(path: Path) -> None:
    """Errors: RecordError if something else than a regular file is there, OSError if nothing is."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise RecordError(
            f"--pcap {path} is there already, and is not a regular file",
            "name a new file, or a regular one to overwrite",
        )


def _open(path: Path) -> int:
    """A descriptor to write to `path` with, locked; its content stays for now."""
    try:
        with contextlib.suppress(FileNotFoundError):
            _refuse_special(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        cure = "name a file that this user can write, in a directory that exists"
        raise RecordError(
            f"--pcap {path} can't be written: {error.strerror}", cure, error.errno or 0
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise RecordError(f"--pcap {path} is being written", "name another file") from error
    return fd


class Recorder:
    """Records around one shard's link. Made before any fork; close() may be called in a child too.

    path: created with mode 0600, or a regular file to overwrite, which is emptied by the first
    attach(). snap_bytes: kept of each frame; 0: all. Errors: RecordError.
    """

    def __init__(self, path: Path, snap_bytes: int) -> None:
        self.path = path
        self._fd = _open(path)
        # Anonymous shared memory: the worker writes to it, and we read the counters.
        nbytes = int(lib.ix_recorder_bytes())
        self._map = mmap.mmap(-1, nbytes)
        self._memory = ffi.from_buffer(self._map, require_writable=True)
        #: `struct ix_recorder *`, for the worker's `struct ix_app`.
        self.pointer: Any = lib.ix_recorder_init(self._memory, nbytes, self._fd, snap_bytes)

    def attach(self, link: Any) -> Any:
        """The `struct ix_link *` that records around `link`, until the next attach."""
        result = lib.ix_recorder_attach(self.pointer, link)
        if result < 0:
            raise from_errno(result, f"record into {self.path}", "look after its disk")
        return lib.ix_recorder_link(self.pointer)

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def trim(self) -> None:
        """After the worker's death: cuts off a record that was written by half."""
        lib.ix_recorder_trim(self.pointer)

    def problem(self) -> str | None:
        """Why the recording has ended, with the cure; None while it goes on."""
        if not self.pointer.error:
            return None
        return (
            f"recording into {self.path} has ended, traffic goes on: "
            f"{errno_text(self.pointer.error)} (cure: make room and start again, or --snaplen 96)"
        )

    def stats(self) -> dict[str, int]:
        """Its counters."""
        names = ("frames_recorded", "frames_lost", "file_bytes")
        return {name: int(getattr(self.pointer, name)) for name in names}

    def close(self) -> None:
        """Closes the file and gives the memory back. Safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.pointer = None
            ffi.release(self._memory)
            self._map.close()


def open_recorders(config: RunConfig, shards: int, stack: ExitStack) -> Sequence[Recorder | None]:
    """A recorder a shard, or None for each where none was asked for; `stack` closes them."""
    if config.pcap is None:
        return [None] * shards
    snaplen = config.snaplen if config.snaplen is not None else SNAPLEN_DEFAULT
    recorders = []
    for path in shard_paths(config.pcap, shards):
        recorders.append(Recorder(path, snaplen))
        stack.callback(recorders[-1].close)
    return recorders
