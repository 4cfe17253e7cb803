"""libdune_shim/shim/pagetable.c and pagewalk.c: trees of page tables, without a guest."""

from __future__ import annotations

import errno
import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit import san  # skips where the sanitizers' runtime is missing

assert san
TREE = Path(__file__).resolve().parents[2]
SHIM = TREE / "libdune_shim"
KIB4, MIB2, GIB1 = 1 << 12, 1 << 21, 1 << 30
USER_END = 0x7FFFFFFFF000
READ, WRITE, EXEC, USER = 8, 1, 2, 4
ACCESSED, DIRTY, SMALL = 16, 32, 64
PCID, GIGABYTES = 2, 4  # vault.features
PRESENT, PTE_USER, GLOBAL, OWN, HELD, NX = 1, 4, 0x100, 0x200, 0x400, 1 << 63
ADDRESS = 0x000FFFFFFFFFF000
STUB_PAGES = 3  # a root: its struct, the top, the vault's pointers

CDEF = """
struct dune_vault; struct dune_root;
struct dune_entry { uint64_t va, source, bytes; uint32_t flags; };
struct api {
    struct dune_root *(*create)(struct dune_vault *);
    int (*clone)(struct dune_vault *, const struct dune_root *, struct dune_root **);
    int (*free)(struct dune_vault *, struct dune_root *);
    uint64_t (*cr3)(const struct dune_vault *, const struct dune_root *);
    uint64_t (*switch_cr3)(const struct dune_vault *, struct dune_root *, uint32_t);
    int (*open_window)(struct dune_vault *, struct dune_root *, uint64_t);
    int (*vault_pages)(struct dune_vault *, uint64_t, uint64_t, uint32_t);
    int (*block_stub)(struct dune_vault *, struct dune_root *, uint64_t);
    int (*map)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t, uint64_t, uint32_t);
    int (*protect)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t, uint32_t);
    int (*unmap)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*follow)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*lookup)(struct dune_vault *, struct dune_root *, uint64_t, struct dune_entry *);
    int (*walk)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t,
                int (*)(const struct dune_entry *, void *), void *, bool);
    int (*set_exec)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*clear_exec)(struct dune_vault *, uint64_t, uint64_t);
};
const struct api *test_api(void);
void test_open(struct dune_vault *, uint64_t);
struct dune_vault *test_vault(uint32_t);
void test_vault_free(struct dune_vault *);
uint64_t test_base(const struct dune_vault *);
uint32_t test_taken(const struct dune_vault *);
void test_leave(struct dune_vault *, uint32_t);
void test_use(struct dune_vault *, struct dune_root *);
uint64_t test_access(const struct dune_vault *, uint64_t, uint64_t, uint64_t, uint64_t *, bool *);
"""


def _build() -> tuple[Any, Any]:
    """Compiles the page tables with the sanitizers, and loads them."""
    made = TREE / "build" / "tests" / "unit" / "dune_pagetable.so"
    made.parent.mkdir(parents=True, exist_ok=True)
    sources = [
        Path(__file__).with_name("dune_pagetable.c"),
        SHIM / "shim" / "pagetable.c",
        SHIM / "shim" / "pagewalk.c",
    ]
    flags = "-std=gnu11 -O1 -g -shared -fPIC -Wall -Werror -fsanitize=address,undefined"
    command = ["gcc", *flags.split(), "-fno-sanitize-recover=all", f"-I{SHIM}", "-o", made]
    subprocess.run([*map(str, command), *map(str, sources)], check=True)
    ffi = cffi.FFI()
    ffi.cdef(CDEF)
    return ffi, ffi.dlopen(str(made))


ffi, lib = _build()
api = lib.test_api()


@dataclass(frozen=True)
class Leaf:
    """What the CPU finds for an address."""

    value: int
    bytes: int
    user: bool

    @property
    def gpa(self) -> int:
        return self.value & ADDRESS & ~(self.bytes - 1)


class Vault:
    """A vault with the pool of page tables in it, and the roots made there."""

    def __init__(self, features: int = PCID | GIGABYTES) -> None:
        self.raw = lib.test_vault(features)
        self.base = lib.test_base(self.raw)
        self.gpas = {self.base: 0}

    def open(self, *addresses: int) -> None:
        for address in addresses:
            window = address & ~(GIB1 - 1)
            if window not in self.gpas:
                self.gpas[window] = len(self.gpas) * GIB1
            lib.test_open(self.raw, address)

    def gpa(self, address: int) -> int:
        return self.gpas[address & ~(GIB1 - 1)] + address % GIB1

    def create(self) -> Any:
        root = api.create(self.raw)
        assert root
        return root

    def call(self, name: str, root: Any, *args: int) -> int:
        return int(getattr(api, name)(self.raw, root, *args))

    def do(self, name: str, root: Any, *args: int) -> None:
        assert self.call(name, root, *args) == 0

    def at(self, root: Any, va: int, bits: int = 0) -> Leaf:
        size, user = ffi.new("uint64_t *"), ffi.new("bool *")
        value = lib.test_access(self.raw, api.cr3(self.raw, root), va, bits, size, user)
        return Leaf(value, size[0], user[0])

    def lookup(self, root: Any, va: int) -> tuple[int, int, int, int] | None:
        entry = ffi.new("struct dune_entry *")
        error = api.lookup(self.raw, root, va, entry)
        assert error in (0, -errno.ENOENT)
        return None if error else (entry.va, entry.source, entry.bytes, entry.flags)

    def walk(
        self, root: Any, va: int, size: int, clear: bool = False
    ) -> list[tuple[int, int, int, int]]:
        found = []

        @ffi.callback("int(const struct dune_entry *, void *)")  # type: ignore[untyped-decorator]
        def visit(entry: Any, _: Any) -> int:
            found.append((entry.va, entry.source, entry.bytes, entry.flags))
            return 0

        assert api.walk(self.raw, root, va, size, visit, ffi.NULL, clear) == 0
        return found


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault()
    yield made
    lib.test_vault_free(made.raw)


A = 0x100000000000  # a window where no kernel puts anything by itself
B = A + GIB1  # and its neighbour, whose guest-physical window is another's
TOP = USER_END & ~(GIB1 - 1)
OWN_RW = READ | WRITE | USER


def test_fresh_root_has_the_vault_for_ring_0_alone(vault: Vault) -> None:
    root = vault.create()
    for offset, text in ((0, True), (0xFF000, True), (0x100000, False), (0x3FFFFFFF, False)):
        leaf = vault.at(root, vault.base + offset)
        assert leaf.value & PRESENT and leaf.value & GLOBAL and not leaf.user
        assert bool(leaf.value & 2) != text and bool(leaf.value & NX) != text
        assert leaf.gpa == offset & ~(leaf.bytes - 1)
    assert not vault.at(root, vault.base + GIB1).value
    assert not vault.at(root, A).value


def test_vault_text_is_shared_by_all_roots(vault: Vault) -> None:
    first = vault.create()
    block = vault.base + 0x10000000
    vault.do("block_stub", first, block + 0x20000)
    second = vault.create()
    vault.do("block_stub", second, block + 0x40000)
    for root in (first, second):
        for offset, text in ((0x20000, True), (0x40000, True), (0, False), (0x21000, False)):
            leaf = vault.at(root, block + offset)
            assert (leaf.value & (2 | NX) == 0) == text and leaf.bytes == KIB4 and not leaf.user
    assert api.vault_pages(vault.raw, block, 5, 1) == -errno.EINVAL
    assert api.vault_pages(vault.raw, vault.base + GIB1 - KIB4, 2 * KIB4, 1) == -errno.EINVAL


@pytest.mark.parametrize("features", [0, GIGABYTES])
def test_open_window_follows_by_the_largest_entries(features: int) -> None:
    vault = Vault(features)
    root = vault.create()
    assert vault.call("open_window", root, A) == -errno.ENXIO
    vault.open(A, TOP)
    vault.do("open_window", root, A + 12345)
    leaf = vault.at(root, A + 5 * MIB2)
    assert leaf.bytes == (GIB1 if features else MIB2)
    assert leaf.user and leaf.value & 2 and leaf.value & NX
    assert leaf.gpa == vault.gpa(A + 5 * MIB2) & ~(leaf.bytes - 1)
    vault.do("open_window", root, TOP)
    assert vault.at(root, USER_END - KIB4).bytes == KIB4
    assert vault.at(root, USER_END - MIB2).bytes == MIB2
    assert vault.at(root, USER_END).value == 0
    assert vault.call("open_window", root, vault.base) == -errno.EPERM
    lib.test_vault_free(vault.raw)


def test_open_window_leaves_what_the_program_set(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("unmap", root, A + KIB4, KIB4)
    vault.do("map", root, A + MIB2, A, MIB2, READ)
    vault.do("open_window", root, A)
    assert vault.at(root, A + KIB4).value == OWN
    assert vault.at(root, A + MIB2).gpa == vault.gpa(A)
    assert vault.at(root, A).value & (OWN | PRESENT) == PRESENT
    assert vault.at(root, A + 2 * MIB2).bytes == MIB2


@pytest.mark.parametrize(
    ("va", "source", "size", "flags", "largest"),
    [
        (B, A, GIB1, OWN_RW, GIB1),
        (B, A, GIB1, OWN_RW | SMALL, KIB4),
        (B + MIB2, A, MIB2, OWN_RW, MIB2),
        (B + MIB2, A + KIB4, MIB2, OWN_RW, KIB4),
        (B + KIB4, A + KIB4, 2 * MIB2, OWN_RW, MIB2),
        (B, A, KIB4, OWN_RW, KIB4),
    ],
)
def test_map_uses_the_largest_pages_that_alignment_allows(
    vault: Vault, va: int, source: int, size: int, flags: int, largest: int
) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("map", root, va, source, size, flags)
    entries = vault.walk(root, 0, USER_END)
    assert max(bytes_ for _, _, bytes_, _ in entries) == largest
    assert sum(bytes_ for _, _, bytes_, _ in entries) == size
    at = va
    for found_va, found_source, found_bytes, found_flags in entries:
        assert (found_va, found_source - source) == (at, at - va)
        assert found_flags == flags & ~SMALL
        at += found_bytes


def test_ranges_that_are_refused(vault: Vault) -> None:
    root = vault.create()
    vault.open(A, TOP)
    guard, base = vault.base - GIB1, vault.base
    for va, source, size, error in (
        (A + 1, A, KIB4, errno.EINVAL),
        (A, A + 1, KIB4, errno.EINVAL),
        (A, A, 1, errno.EINVAL),
        (A, base, KIB4, errno.EPERM),
        (base, A, KIB4, errno.EPERM),
        (guard, A, KIB4, errno.EPERM),
        (base + 2 * GIB1 - KIB4, A, KIB4, errno.EPERM),
        (A, B, KIB4, errno.ENXIO),
        (A, A + GIB1 - KIB4, 2 * KIB4, errno.ENXIO),
        (USER_END, A, KIB4, errno.EINVAL),
        (A, USER_END, KIB4, errno.EINVAL),
        (0xFFFFFFFFFFFFF000, A, 2 * KIB4, errno.EINVAL),
    ):
        assert vault.call("map", root, va, source, size, OWN_RW) == -error, hex(va)
    for name in ("unmap", "follow", "set_exec"):
        assert vault.call(name, root, base, KIB4) == -errno.EPERM
        assert vault.call(name, root, A, USER_END) == -errno.EINVAL
    assert vault.call("protect", root, base, KIB4, READ) == -errno.EPERM
    vault.do("unmap", root, A + KIB4, KIB4)
    assert vault.call("protect", root, A, MIB2, READ) == -errno.ENOENT
    assert vault.at(root, A).value == 0


def test_protect_without_read_faults_and_keeps_its_memory(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("map", root, B, A, MIB2, OWN_RW)
    vault.do("protect", root, B + KIB4, KIB4, WRITE | USER)
    assert not vault.at(root, B + KIB4).value & PRESENT
    assert vault.lookup(root, B + KIB4) == (B + KIB4, A + KIB4, KIB4, WRITE | USER)
    vault.do("protect", root, B, MIB2, READ | EXEC)
    assert vault.at(root, B + KIB4).gpa == vault.gpa(A) + KIB4
    assert not vault.at(root, B + KIB4).value & NX


def test_split_keeps_what_the_cpu_noted(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("open_window", root, A)
    vault.at(root, A, 0x60)
    vault.do("protect", root, A + KIB4, KIB4, READ | USER)
    for va in (A, A + KIB4, A + MIB2, A + GIB1 - KIB4):
        assert vault.at(root, va).value & 0x60 == 0x60
    assert vault.at(root, A + KIB4).value & 2 == 0


def test_walk_reads_and_clears_what_the_cpu_noted(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("protect", root, A, 4 * KIB4, OWN_RW | SMALL)
    vault.at(root, A, 0x20)
    vault.at(root, A + 2 * KIB4, 0x60)
    used = [0, 0, 0, 0]
    for clear in (False, True):
        entries = vault.walk(root, A, 4 * KIB4, clear)
        used = [flags & (ACCESSED | DIRTY) for _, _, _, flags in entries]
        assert used == [ACCESSED, 0, ACCESSED | DIRTY, 0]
    assert [flags for *_, flags in vault.walk(root, A, 4 * KIB4)] == [OWN_RW] * 4


def test_walk_stops_where_the_visitor_says(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("protect", root, A, 4 * KIB4, OWN_RW | SMALL)
    seen = []

    @ffi.callback("int(const struct dune_entry *, void *)")  # type: ignore[untyped-decorator]
    def visit(entry: Any, _: Any) -> int:
        seen.append(entry.va)
        return 7 if len(seen) == 2 else 0

    assert api.walk(vault.raw, root, A, GIB1, visit, ffi.NULL, False) == 7
    assert seen == [A, A + KIB4]


def test_exec_is_set_finely_and_cleared_without_splitting(vault: Vault) -> None:
    root, other = vault.create(), vault.create()
    vault.open(A)
    for each in (root, other):
        vault.do("open_window", each, A)
        vault.do("set_exec", each, A + MIB2 - KIB4, MIB2 + 2 * KIB4)
    for va, text in (
        (A + MIB2 - 2 * KIB4, False),
        (A + MIB2 - KIB4, True),
        (A + MIB2, True),
        (A + 2 * MIB2, True),
        (A + 2 * MIB2 + KIB4, False),
    ):
        assert (vault.at(root, va).value & NX == 0) == text
    assert vault.at(root, A + MIB2).bytes == MIB2
    taken = lib.test_taken(vault.raw)
    assert api.clear_exec(vault.raw, A + MIB2 + KIB4, KIB4) == 1
    assert lib.test_taken(vault.raw) == taken
    for each in (root, other):
        assert vault.at(each, A + MIB2).value & NX and vault.at(each, A + MIB2).bytes == MIB2
        assert not vault.at(each, A + MIB2 - KIB4).value & NX
    assert api.clear_exec(vault.raw, A + MIB2 + KIB4, KIB4) == 0
    assert api.clear_exec(vault.raw, A, GIB1) == 1
    assert vault.at(root, A + MIB2 - KIB4).value & NX


def test_exec_leaves_what_the_program_set(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    vault.do("protect", root, A, KIB4, READ | USER)
    vault.do("protect", root, A + KIB4, KIB4, READ | EXEC | USER)
    vault.do("set_exec", root, A, MIB2)
    assert vault.at(root, A).value & NX
    api.clear_exec(vault.raw, A, MIB2)
    assert not vault.at(root, A + KIB4).value & NX
    assert vault.at(root, A + 2 * KIB4).value & NX


def test_pool_used_up_is_an_error_and_freed_pages_are_used_again(vault: Vault) -> None:
    root = vault.create()
    vault.open(A)
    first = lib.test_taken(vault.raw)
    made = ffi.new("struct dune_root **")
    lib.test_leave(vault.raw, 4)
    before = lib.test_taken(vault.raw)
    vault.do(
        "map", root, B, A, KIB4, OWN_RW
    )  # a directory and a table; the pointers are the vault's
    assert vault.call("map", root, A - 512 * GIB1, A, KIB4, OWN_RW) == -errno.ENOMEM
    assert not api.create(vault.raw)
    assert vault.call("clone", root, made) == -errno.ENOMEM
    assert vault.at(root, B).gpa == vault.gpa(A)
    assert lib.test_taken(vault.raw) <= before + 4
    assert first < before


def test_root_in_use_is_not_freed(vault: Vault) -> None:
    root = vault.create()
    lib.test_use(vault.raw, root)
    assert vault.call("free", root) == -errno.EBUSY
    lib.test_use(vault.raw, ffi.NULL)
    taken = lib.test_taken(vault.raw)
    assert vault.call("free", root) == 0
    assert lib.test_taken(vault.raw) == taken - STUB_PAGES


def test_switch_flushes_only_what_changed() -> None:
    vault = Vault(PCID | GIGABYTES)
    vault.open(A)
    one, two = vault.create(), vault.create()
    noflush = 1 << 63

    def switch(root: Any, cpu: int) -> bool:
        cr3 = api.switch_cr3(vault.raw, root, cpu)
        assert cr3 & ~noflush == api.cr3(vault.raw, root)
        return bool(cr3 & noflush)

    assert api.cr3(vault.raw, one) & 0xFFF != api.cr3(vault.raw, two) & 0xFFF != 0
    assert not switch(one, 0) and not switch(two, 0) and switch(one, 0) and switch(two, 0)
    assert not switch(one, 1000)
    vault.do("open_window", one, A)  # was empty: nothing to flush
    assert switch(one, 0)
    vault.do("unmap", one, A, KIB4)
    assert not switch(one, 0) and switch(two, 0) and not switch(one, 1000) and switch(one, 0)
    vault.at(one, A + KIB4, 0x20)
    vault.walk(one, A, MIB2, clear=True)
    assert not switch(one, 0)
    vault.do("free", one)
    again = vault.create()  # gets the same PCID
    assert not switch(again, 0)
    lib.test_vault_free(vault.raw)
    plain = Vault(GIGABYTES)
    root = plain.create()
    assert [api.switch_cr3(plain.raw, root, 0) & (noflush | 0xFFF) for _ in range(2)] == [0, 0]
    lib.test_vault_free(plain.raw)


# ---- against a model ---------------------------------------------------------------------------
# Ranges begin and end at a few dozen addresses, so what lies between two neighbours is all alike:
# the model is a state for each of these stretches, looked at in its first, middle and last page.

WINDOWS = (0x0, A, B, TOP)
_OFFSETS = (
    0,
    KIB4,
    3 * KIB4,
    MIB2 - KIB4,
    MIB2,
    2 * MIB2,
    5 * MIB2 + 7 * KIB4,
    GIB1 - MIB2,
    GIB1 - KIB4,
)
CUTS = sorted(
    {w + o for w in WINDOWS for o in _OFFSETS if w + o < USER_END}
    | {w + GIB1 for w in WINDOWS[:3]}
    | {USER_END}
)


@dataclass(frozen=True)
class Empty:
    """Follows, and nothing filled it in yet."""


@dataclass(frozen=True)
class Follows:
    exec: bool | None  # None: either


@dataclass(frozen=True)
class Unmapped:
    pass


@dataclass(frozen=True)
class Owned:
    source: int  # of the stretch's start
    flags: int


State = Empty | Follows | Unmapped | Owned
Model = dict[int, State]  # by the stretch's start


class Tables(RuleBasedStateMachine):
    @initialize(gigabytes=st.booleans())
    def begin(self, gigabytes: bool) -> None:
        self.vault = Vault(GIGABYTES if gigabytes else 0)
        self.stretches = [(a, b) for a, b in itertools.pairwise(CUTS) if b - a <= GIB1]
        self.roots: list[tuple[Any, Model]] = []
        root = self.vault.create()
        self.roots.append((root, {a: Empty() for a, _ in self.stretches}))
        self.vault.open(A)

    def teardown(self) -> None:
        if not hasattr(self, "vault"):
            return
        taken = lib.test_taken(self.vault.raw)
        for root, _ in self.roots:
            self.vault.do("free", root)
        left = lib.test_taken(self.vault.raw)
        assert left < taken and left <= 1 + 2  # the header; the vault's directory and image
        lib.test_vault_free(self.vault.raw)

    ranges = st.tuples(st.sampled_from(CUTS), st.sampled_from(CUTS)).map(lambda r: tuple(sorted(r)))
    which = st.integers(0, 3)
    flags = st.integers(0, 15)
    small = st.sampled_from([0, 0, SMALL])

    def pick(self, which: int) -> tuple[Any, Model]:
        return self.roots[which % len(self.roots)]

    def within(self, low: int, high: int) -> list[int]:
        return [a for a, b in self.stretches if low <= a and b <= high]

    def known(self, low: int, high: int) -> bool:
        first = low & ~(GIB1 - 1)
        return all(w in self.vault.gpas for w in range(first, high, GIB1))

    def usable(self, low: int, high: int) -> bool:
        """Not so large that 4 KiB pages take minutes, and without the gaps of the model."""
        return (
            high > low
            and sum(b - a for a, b in self.stretches if low <= a and b <= high) == high - low
        )

    @rule(window=st.sampled_from(WINDOWS), which=which)
    def open(self, window: int, which: int) -> None:
        root, model = self.pick(which)
        self.vault.open(window)
        self.vault.do("open_window", root, window)
        for a in self.within(window, window + GIB1):
            if model[a] == Empty():
                model[a] = Follows(False)

    @rule(window=st.sampled_from(WINDOWS))
    def slot(self, window: int) -> None:
        self.vault.open(window)

    @rule(
        r=ranges,
        shift=st.sampled_from([0, KIB4, MIB2, -MIB2, GIB1, -GIB1]),
        flags=flags,
        which=which,
        small=small,
    )
    def map(self, r: tuple[int, int], shift: int, flags: int, which: int, small: int) -> None:
        root, model = self.pick(which)
        low, high = r
        source = low + shift
        if not self.usable(low, high) or ((small or shift % MIB2) and high - low > 64 * MIB2):
            return
        error = (
            self.vault.call("map", root, low, source, high - low, flags | small)
            if source >= 0
            else None
        )
        if source < 0:
            return
        if source + high - low > USER_END:
            assert error == -errno.EINVAL
        elif not self.known(source, source + high - low):
            assert error == -errno.ENXIO
        else:
            assert error == 0
            for a in self.within(low, high):
                model[a] = Owned(a + shift, flags)

    @rule(r=ranges, flags=flags, which=which, small=small)
    def protect(self, r: tuple[int, int], flags: int, which: int, small: int) -> None:
        root, model = self.pick(which)
        low, high = r
        if not self.usable(low, high) or (small and high - low > 64 * MIB2):
            return
        inside = self.within(low, high)
        error = self.vault.call("protect", root, low, high - low, flags | small)
        bad = [
            a
            for a in inside
            if isinstance(model[a], Unmapped)
            or (isinstance(model[a], Empty) and not self.known(a, a + 1))
        ]
        if bad:
            unmapped = isinstance(model[bad[0]], Unmapped)
            assert error == (-errno.ENOENT if unmapped else -errno.ENXIO)
            return
        assert error == 0
        for a in inside:
            state = model[a]
            source = state.source if isinstance(state, Owned) else a
            model[a] = Owned(source, flags)

    @rule(r=ranges, which=which)
    def unmap(self, r: tuple[int, int], which: int) -> None:
        root, model = self.pick(which)
        if self.usable(*r):
            self.vault.do("unmap", root, r[0], r[1] - r[0])
            model.update({a: Unmapped() for a in self.within(*r)})

    @rule(r=ranges, which=which)
    def follow(self, r: tuple[int, int], which: int) -> None:
        root, model = self.pick(which)
        if not self.usable(*r):
            return
        self.vault.do("follow", root, r[0], r[1] - r[0])
        for a in self.within(*r):
            if not isinstance(model[a], Follows):
                model[a] = Follows(False) if self.known(a, a + 1) else Empty()

    @rule(r=ranges, which=which)
    def set_exec(self, r: tuple[int, int], which: int) -> None:
        root, model = self.pick(which)
        if not self.usable(*r):
            return
        error = self.vault.call("set_exec", root, r[0], r[1] - r[0])
        if not self.known(*r):
            assert error == -errno.ENXIO
            return
        assert error == 0
        for a in self.within(*r):
            if isinstance(model[a], Empty | Follows):
                model[a] = Follows(True)

    @rule(r=ranges)
    def clear_exec(self, r: tuple[int, int]) -> None:
        low, high = r
        if not self.usable(low, high):
            return
        api.clear_exec(self.vault.raw, low, high - low)
        first, last = low & ~(GIB1 - 1), (high + GIB1 - 1) & ~(GIB1 - 1)
        for _, model in self.roots:
            for a, b in self.stretches:
                if not isinstance(model[a], Follows):
                    continue
                if low <= a and b <= high:
                    model[a] = Follows(False)
                elif first <= a < last and model[a] == Follows(True):
                    model[a] = Follows(None)  # it may share a large entry with the range

    @rule(which=which)
    def clone(self, which: int) -> None:
        if len(self.roots) > 3:
            return
        root, model = self.pick(which)
        made = ffi.new("struct dune_root **")
        self.vault.do("clone", root, made)
        self.roots.append((made[0], dict(model)))

    @rule(which=which)
    def free(self, which: int) -> None:
        if len(self.roots) > 1:
            root, _ = self.roots.pop(which % len(self.roots))
            self.vault.do("free", root)

    @rule(which=which)
    def walk(self, which: int) -> None:
        root, model = self.pick(which)
        entries = self.vault.walk(root, 0, USER_END)
        assert entries == sorted(entries)
        present = 0
        for a, b in self.stretches:
            state = model[a]
            there = isinstance(state, Follows) or (isinstance(state, Owned) and state.flags & READ)
            covering = [e for e in entries if e[0] < b and a < e[0] + e[2]]
            size = sum(min(b, e[0] + e[2]) - max(a, e[0]) for e in covering)
            for entry in covering:
                shift = state.source - a if isinstance(state, Owned) else 0
                assert entry[1] - entry[0] == shift
            assert size == (b - a if there else 0)
            present += size
        assert present == sum(e[2] for e in entries)

    @invariant()
    def agrees(self) -> None:
        for root, model in getattr(self, "roots", ()):
            for a, b in self.stretches:
                for va in {a, (a + b) // 2 & ~(KIB4 - 1), b - KIB4}:
                    self.check(root, model[a], a, va)
            assert not self.vault.at(root, USER_END).value

    def check(self, root: Any, state: State, start: int, va: int) -> None:
        leaf = self.vault.at(root, va)
        found = self.vault.lookup(root, va)
        if isinstance(state, Empty | Unmapped):
            assert leaf.value == (0 if isinstance(state, Empty) else OWN) and found is None
            return
        assert found is not None
        assert found[0] <= va < found[0] + found[2] and found[2] == leaf.bytes
        source = found[1] + va - found[0]
        if isinstance(state, Follows):
            assert source == va and leaf.value & (PRESENT | OWN) == PRESENT and leaf.user
            assert state.exec is None or state.exec == (leaf.value & NX == 0)
            assert found[3] & ~EXEC == OWN_RW
        else:
            assert source == state.source + va - start and found[3] == state.flags
            assert (
                leaf.user == bool(state.flags & USER and state.flags & READ) or not found[3] & READ
            )
        gpa = leaf.gpa + va % leaf.bytes
        assert gpa == self.vault.gpa(va if isinstance(state, Follows) else source)


Tables.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_tables_against_a_model = Tables.TestCase
