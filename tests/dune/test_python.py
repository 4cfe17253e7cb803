"""ixnet.dune: this very Python continues in ring 3, the open and the sealed way."""

from __future__ import annotations

import sys

import pytest

from tests.dune import kit

OPEN = """
import json, math, os, threading
from ixnet import dune

pid = os.getpid()
dune.init()
dune.enter_user()
assert dune.ring() == 3 and os.getpid() == pid
assert json.loads(json.dumps({"a": [1, 2.5, None]})) == {"a": [1, 2.5, None]}
assert abs(math.sin(1.0) - 0.8414709848) < 1e-9
try:
    dune.stats()
except dune.DuneError as error:
    print("stats:", error.errnum)
dune.leave()
assert dune.ring() is None
dune.enter_user()
dune.leave()
stats = dune.stats()
assert stats.syscalls > 0 and stats.exits >= stats.syscalls, stats
assert stats.kvm_exits > stats.exits, stats
print("exits", stats.exits, "syscalls", stats.syscalls)
"""

SEALED = """
from ixnet import dune

dune.init(sealed=True, protection_key={key})
dune.enter_user()
assert dune.ring() == 3
try:
    dune.leave()
except dune.DuneError as error:
    print("leave:", error)
import asyncio, hashlib, tempfile
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 100000)
    file.seek(0)
    assert hashlib.sha256(file.read()).hexdigest().startswith("d69e68"), "digest"
async def one():
    await asyncio.sleep(0.01)
    return 5
assert asyncio.run(one()) == 5
print("ring", dune.ring())
"""

FAULT = """
import faulthandler, ctypes
from ixnet import dune

faulthandler.enable()
dune.init(sealed={sealed})
dune.enter_user()
ctypes.string_at(16)
"""


def python(code: str) -> kit.Result:
    return kit.run([sys.executable, "-c", code])


def test_python_in_ring_3_and_back() -> None:
    result = python(OPEN).expect()
    assert "stats: 1\n" in result.stdout


@pytest.mark.parametrize("key", [True, False])
def test_python_sealed_in_ring_3(key: bool) -> None:
    result = python(SEALED.format(key=key)).expect()
    assert "leave: there is no way back" in result.stdout
    assert "ring 3\n" in result.stdout


@pytest.mark.parametrize("sealed", [False, True])
def test_faulthandler_in_ring_3_shows_the_line(sealed: bool) -> None:
    result = python(FAULT.format(sealed=sealed)).expect(-11)
    assert "Fatal Python error: Segmentation fault" in result.stderr
    assert 'File "<string>", line 8 in <module>' in result.stderr
