"""base/assert: a broken invariant stops the process where it broke, with its story in registers."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys

import pytest

from tests.unit.released import ROOT, load_library

# Run in a child: call the function, and print from the signal handler what a debugger would see.
# ucontext_t on x86-64: 40 bytes, then the general registers; RDI, RSI, RDX are numbers 8, 9, 12.
CHILD = """
import ctypes, os, sys
core = ctypes.CDLL(sys.argv[1])
libc = ctypes.CDLL(None)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
@HANDLER
def handler(number, info, context):
    registers = ctypes.cast(context + 40, ctypes.POINTER(ctypes.c_uint64))
    what, file = (ctypes.string_at(registers[i]).decode() for i in (8, 9))
    print(what, file, registers[12] & 0xffffffff, flush=True)
    os._exit(0)
class Action(ctypes.Structure):
    _fields_ = [("handler", HANDLER), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]
if sys.argv[2] == "look":
    action = Action(handler, flags=4)  # SA_SIGINFO
    assert libc.sigaction(4, ctypes.byref(action), None) == 0
core.ix_assert_failed(b"balance==0", b"mem/frame.c", 42)
print("went on")
"""


def run_child(mode: str) -> subprocess.CompletedProcess[str]:
    load_library("")  # skips where there is none
    command = [sys.executable, "-c", CHILD, str(ROOT / "ixnet/libixnet.so"), mode]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_failed_assert_ends_the_process_with_a_trap() -> None:
    run = run_child("die")
    assert -run.returncode in (signal.SIGILL, signal.SIGTRAP)
    assert "went on" not in run.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 registers")
def test_failed_assert_arguments_are_in_registers_at_the_trap() -> None:
    run = run_child("look")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["balance==0", "mem/frame.c", "42"]
