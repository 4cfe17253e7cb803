"""Programs' texts, and what is read of their tables, without a kernel that has them."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from ixnet.trace import drops, napi, preempt, program, wakeups
from ixnet.trace.needs import BTF, TraceError
from ixnet.trace.program import (
    COMMON,
    Member,
    fdinfo_number,
    first_symbol,
    kernel_offsets,
    plain,
    program_text,
)

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    "drops": (drops.MEMBERS, {"IX_PROGRAM_ID"}),
    "napi": (napi.MEMBERS, set[str]()),
    "preempt": ((), {"IX_HAVE_VECTORS"}),
    "wakeups": (wakeups.MEMBERS, set[str]()),
}
needs_btf = pytest.mark.skipif(not BTF.exists(), reason="needs a kernel with BTF")


def test_every_program_of_the_tree_has_a_tool_here() -> None:
    assert {path.stem for path in (ROOT / "xdp/trace").glob("*.c")} == TOOLS.keys()


@pytest.mark.parametrize("name", TOOLS)
def test_text_has_its_constants_first_and_uses_no_others(name: str) -> None:
    members, own = TOOLS[name]
    constants = {"IX_IFINDEX", "IX_NETNS", *own, *(m.macro for m in (*COMMON, *members))}
    text = program_text(name, {constant: 7 for constant in sorted(constants)})
    assert text.splitlines()[: len(constants)] == [f"#define {c} 7" for c in sorted(constants)]
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    used = set(re.findall(r"\bIX_(?:OFF_\w+|IFINDEX|NETNS|PROGRAM_ID|HAVE_\w+)", code))
    assert used == constants if name != "preempt" else used <= constants


@pytest.mark.parametrize("name", TOOLS)
def test_built_text_is_the_trees(name: str) -> None:
    assert (program.TEXTS / f"{name}.c").read_text() == (ROOT / f"xdp/trace/{name}.c").read_text()


@pytest.mark.parametrize(
    ("text", "enumeration"),
    [
        ("napi", napi.PollBy),
        ("wakeups", wakeups.Call),
        ("preempt", preempt.Cause),
    ],
)
def test_enumerations_are_the_same_on_both_sides(text: str, enumeration: type) -> None:
    names = [member.name for member in enumeration]  # type: ignore[attr-defined]
    found = re.findall(r"enum \{([^}]*)\}", (ROOT / f"xdp/trace/{text}.c").read_text())
    spelled = [[re.sub(r"^CALL_", "", n.strip()) for n in one.split(",")] for one in found]
    assert any([re.sub(r"^BY_", "", n) for n in one] == names or one == names for one in spelled)


def test_vectors_are_the_same_on_both_sides() -> None:
    text = (ROOT / "xdp/trace/preempt.c").read_text()
    found = re.search(r"enum \{ (TIMER[^}]*) \}", text)
    assert found is not None and len(found[1].split(",")) == len(preempt.VECTORS)
    assert f"IX_CORE_WORKERS {preempt.CORE_WORKERS}\n" in text


@needs_btf
def test_offsets_are_found_also_in_nameless_structures() -> None:
    members = (*COMMON, *drops.MEMBERS, *napi.MEMBERS, *wakeups.MEMBERS)
    found = kernel_offsets(members)
    assert found.keys() == set(members)
    # struct sk_buff begins with unions; dev is behind the two list pointers (linux/skbuff.h).
    assert found[Member("sk_buff", "dev")] == 16
    assert found[Member("sock_common", "skc_family")] == 16
    assert found[Member("sk_buff", "skb_iif")] > 16


@needs_btf
@pytest.mark.parametrize("member", [Member("net_device", "no_such"), Member("no_such_type", "dev")])
def test_a_member_that_the_kernel_lacks_is_an_error_with_its_name(member: Member) -> None:
    with pytest.raises(TraceError, match=f"struct {member.type} has no member {member.member}"):
        kernel_offsets((*COMMON, member))


def test_first_symbol_keeps_the_order_and_takes_functions_only() -> None:
    lines = ["0 t second", "0 d first", "0 T third\t[module]"]
    assert first_symbol(("first", "second", "third"), lines) == "second"
    assert first_symbol(("third",), lines) == "third"
    assert first_symbol(("first", "none"), lines) is None


def test_rows_are_read_as_plain_tuples() -> None:
    class Key(ctypes.Structure):
        _fields_ = [("queue", ctypes.c_uint), ("error", ctypes.c_int)]

    class Name(ctypes.Structure):
        _fields_ = [("text", ctypes.c_char * 16)]

    assert plain(Key(3, -105)) == (3, -105)
    assert plain(Name(b"ixnet/0")) == ("ixnet/0",)
    assert plain(ctypes.c_ulonglong(9)) == (9,)


def test_numbers_of_fdinfo_are_found_by_their_whole_name() -> None:
    text = "pos:\t0\nprog_id:\t12\nrun_cnt:\t3\nrecursion_misses:\t45\nverified_insns:\t9\n"
    assert fdinfo_number(text, "recursion_misses") == 45
    assert fdinfo_number(text, "misses") == 0
