"""A module in ring 0: called, kicked, counted, and what is seen of its end."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable

import pytest

from ixnet import dune, dune_shared
from tests.dune import kit

Run = Callable[..., kit.Result]

USED = (
    "adds", "stores", "kicks", "registers", "counts", "threads", "leader_leaves", "forks",
    "signals",
)  # fmt: skip
ENDS = (
    "trap", "peek", "poke_text", "poke_table", "users", "deep", "hole", "triple", "segv",
    "into_text", "thread", "lost_stack", "none", "handled", "children", "killed",
)  # fmt: skip
KEYS = pytest.mark.parametrize("pkey", [True, False], ids=["pkey", "no-pkey"])
MAP_FIXED = 0x10
SMALL_ADD, SMALL_TRAP = 0, 9  # tests/dune/c/module/calls.h


def environment(pkey: bool) -> dict[str, str]:
    return {} if pkey else {"DUNE_TEST_NO_PKEY": "1"}


@KEYS
@pytest.mark.parametrize("case", USED)
def test_module(run_program: Run, case: str, pkey: bool) -> None:
    run_program("module", case, env=environment(pkey))


@KEYS
@pytest.mark.parametrize("case", ENDS)
def test_crash(run_program: Run, case: str, pkey: bool) -> None:
    run_program("crash", case, env=environment(pkey))


def test_cycles_have_their_shares(run_program: Run, note: Callable[[str], None]) -> None:
    output = run_program("module", "cycles").stdout
    for name, part, whole in re.findall(r"^(cycles_\w+) (\d+) of (\d+)$", output, flags=re.M):
        note(f"{name}: {int(part) / int(whole):.0%} of its time")


def mapped(place: dune.Place, length: int) -> int:
    """Shared memory at the beginning of the data windows."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
    at: int = libc.mmap(place.data, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert at == place.data
    return at


def worker(place: dune.Place, module: dune.Module) -> None:
    """Python goes on in ring 3, and its module fails."""
    dune.init(sealed=True, self_test=False, place=place, module=module)
    dune.enter_user()
    assert dune.ring() == 3
    assert dune.call(SMALL_ADD, 1, 2, 3) == 6
    assert dune.call(SMALL_ADD, 1, 2, 3, 4, 5) == 15
    dune.call(SMALL_TRAP)


def test_python_sees_a_worker_and_its_end() -> None:
    place = dune.reserve(1 << 20)
    assert place.data_bytes == 1 << 30 and place.data == place.base + (1 << 30)
    context = mapped(place, 1 << 21)
    shared = context + (1 << 20)
    assert dune_shared.size() <= 1 << 20
    assert dune_shared.read(shared).shares() == {}
    image = (kit.PROGRAMS / "small.bin").read_bytes()
    pid = os.fork()
    if pid == 0:
        try:
            worker(place, dune.Module(image, context, (), shared))
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 6
    seen = dune_shared.read(shared)
    assert seen.counts.module_calls == 2 and seen.counts.exits > 0
    shares = seen.shares()
    assert (
        set(shares) == {"ring0", "kick", "host", "ring3"} and abs(sum(shares.values()) - 1) < 1e-6
    )
    assert seen.crash is not None and seen.crash.ring == 0
    names = dune_shared.Names.load(kit.PROGRAMS / "small.sym")
    text = "\n".join(seen.crash.lines(names))
    assert text.startswith("an exception in the module (0x6), in ring 0, thread "), text
    assert re.search(r"#0 +\w+ module: trap\+0x", text), text
    assert re.search(r" \w+ shim: dune_ring0_module\+0x", text), text
    assert re.search(r"#\d+ +\w+ stub: \w+\+0x", text), text
    assert re.search(r"#\d+ +\w+ ring 3", text), text
    dune.unreserve(place)


def test_a_place_that_is_none_and_a_module_that_is_none_are_refused() -> None:
    place = dune.reserve(0)
    image = (kit.PROGRAMS / "small.bin").read_bytes()
    wrong: list[dict[str, object]] = [
        {"place": dune.Place(place.base + 4096, place.data + 4096, 0)},
        {"place": dune.Place(place.base, place.data + 4096, 0)},
        {"place": dune.Place(place.base, place.data, 1 << 48)},
        {"module": dune.Module(image[:100])},
        {"module": dune.Module(b"x" * 8192)},
        {"module": dune.Module(image, shared=place.data), "place": place},
        {"module": dune.Module(image, shared=4096)},
        {"module": dune.Module(image), "sealed": False},
    ]
    for words in wrong:
        with pytest.raises(dune.DuneError) as caught:
            dune.init(**{"sealed": True, "self_test": False} | words)  # type: ignore[arg-type]
        assert caught.value.errnum == 22, words
    dune.unreserve(place)
