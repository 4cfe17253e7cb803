"""A worker: the process that runs shards and the application on them.

`ixnet run` forks them. `current_apps()` is how an application, or a layer between,
gets at a `struct ix_app` (native/app.h) a shard, and thereby at its shards.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ixnet._core import ffi, lib
from ixnet.control.errors import IxError, from_errno

# How long a worker that leaves goes on running cycles, to get its last segments out.
DRAIN_NS = 200_000_000
_WHY_BYTES = 512

# A `struct ix_app *` for each of the worker's shards; set once, in a process that is a worker.
_apps: tuple[Any, ...] = ()


class NotInWorker(IxError):
    """The program was not started by `ixnet run`, so it has no shard."""


def current_apps() -> tuple[Any, ...]:
    """A `struct ix_app *` (cffi) for each shard of this worker. Errors: NotInWorker."""
    if not _apps:
        program = Path(sys.argv[0] or "APP").name
        raise NotInWorker(
            "this program has no dataplane: it was not started by ixnet run",
            f"start it with: ixnet run --interface IF {program}",
        )
    return _apps


def current_app() -> Any:
    """The `struct ix_app *` (cffi) of this worker's only shard. Errors: NotInWorker; IxError if it
    has several."""
    apps = current_apps()
    if len(apps) > 1:
        raise IxError(
            f"this worker has {len(apps)} shards, the program is written for one",
            "use ixnet.event or ixnet.shard.shards(), or leave --workers out",
        )
    return apps[0]


def in_worker() -> bool:
    """Whether this process is a worker of a running instance."""
    return bool(_apps)


@dataclass(frozen=True)
class Program:
    """The application: a Python script, or a shared object with ix_app_main().

    on_death: called in the control process, with the number of each shard that it ran, when a
    worker's process has ended, before another takes its place.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    on_death: Callable[[int], None] | None = None

    @property
    def is_native(self) -> bool:
        """Whether it is a shared object."""
        with self.path.open("rb") as file:
            return file.read(4) == b"\x7fELF"

    def check(self) -> None:
        """Raises IxError unless there is something to run."""
        if self.path.is_dir():
            raise IxError(f"{self.path} is a directory", "name a Python script or a shared object")
        if not os.access(self.path, os.R_OK):
            raise IxError(
                f"there is no application {self.path} that this user can read",
                "name a Python script or a shared object",
            )


@dataclass(frozen=True)
class WorkerIdentity:
    """What a new worker needs to know of itself.

    apps: a complete `struct ix_app *` for each of its shards. parent_pid: the control plane. keep:
    descriptors that stay open besides 0, 1 and 2; everything else that the control plane has open
    is let go. enter: lets go of privileges, and in the dune placement makes this process go on in
    ring 3 of a guest.
    """

    apps: tuple[Any, ...]
    number: int
    core: int
    parent_pid: int
    keep: tuple[int, ...]
    enter: Callable[[], None]


def let_go_of_descriptors(keep: Iterable[int]) -> None:
    """Puts /dev/null in the place of every descriptor but 0, 1, 2 and `keep`.

    An inherited descriptor would keep the control plane's XDP link or another worker's socket
    alive. The numbers stay taken, because objects of the parent still hold them and would close
    whatever came to have the same number.
    """
    kept = {0, 1, 2, *keep}
    null = os.open("/dev/null", os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in kept and fd != null:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                os.dup2(null, fd, inheritable=False)


def become_worker(identity: WorkerIdentity) -> None:
    """The first thing that a forked worker does. Exits if the control plane is gone already."""
    global _apps
    _follow(identity)
    # Ctrl-C goes to the whole terminal: the control plane hears it and stops the workers in order.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What the parent registered is the parent's to run.
    atexit._clear()
    gc.freeze()
    let_go_of_descriptors(identity.keep)
    os.sched_setaffinity(0, {identity.core})
    # What an application prints is seen when it prints it, whatever standard output is.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    _apps = identity.apps


def _follow(identity: WorkerIdentity) -> None:
    name = f"ixnet/{identity.number}".encode()
    if lib.ix_process_follow(identity.parent_pid, name) < 0:
        os._exit(1)


def run_worker(identity: WorkerIdentity, program: Program) -> NoReturn:
    """Runs the application and ends the process with its exit status."""
    status = 1
    try:
        become_worker(identity)
        if not program.is_native:
            _load_api()
        identity.enter()
        _follow(identity)
        program.check()
        status = run_native(program) if program.is_native else run_script(program)
    except IxError as error:
        print_error(error)
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            lib.ix_app_leave(identity.apps[0], DRAIN_NS)
        _end_interpreter()
        os._exit(status & 0xFF)


def _load_api() -> None:
    """While its files can surely be read: the worker may become another user."""
    for name in ("ixnet.event", "ixnet.shard"):
        importlib.import_module(name)


def _end_interpreter() -> None:
    """What Python does at its end, as far as a forked child may."""
    for step in (threading._shutdown, atexit._run_exitfuncs, _flush):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def run_script(program: Program) -> int:
    """Runs a Python script as __main__; returns its exit status."""
    sys.argv = [str(program.path), *program.arguments]
    sys.path.insert(0, str(program.path.resolve().parent))
    try:
        runpy.run_path(str(program.path), run_name="__main__")
    except SystemExit as error:
        return _exit_status(error.code)
    except KeyboardInterrupt:
        return 130
    except IxError as error:
        if os.environ.get("IXNET_DEBUG"):
            traceback.print_exc()
        print_error(error)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)
    return 1


def run_native(program: Program) -> int:
    """Loads a shared object and runs its ix_app_main, without the GIL; returns its exit status."""
    words: Sequence[bytes] = [os.fsencode(w) for w in (str(program.path), *program.arguments)]
    strings = [ffi.new("char[]", word) for word in words]
    argv = ffi.new("char *[]", [*strings, ffi.NULL])
    ran = ffi.new("int *")
    why = ffi.new("char[]", _WHY_BYTES)
    path = os.fsencode(program.path.resolve())
    status = int(
        lib.ix_app_run_native(_apps[0], path, len(strings), argv, ran, why, _WHY_BYTES),
    )
    if ran[0]:
        return status
    reason = ffi.string(why).decode(errors="replace")
    cure = "name a Python script, or a shared object with ix_app_main() (ixnet/native/app.h)"
    print_error(from_errno(status, f"load {program.path}: {reason}", cure))
    return 2


def print_error(error: IxError) -> None:
    """The one message that the user sees of an error."""
    print(f"ixnet: {error.message}", file=sys.stderr)
    if error.cure:
        print(f"  cure: {error.cure}", file=sys.stderr)
    sys.stderr.flush()
