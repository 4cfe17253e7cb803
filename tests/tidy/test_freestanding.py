"""The core stands alone: no libc, no globals."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.tidy import tree

CORE = tree.ROOT / "build/core/ixcore.o"


def nm(*arguments: str | Path) -> list[str]:
    """The lines that nm prints."""
    run = subprocess.run(["nm", *map(str, arguments)], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def core() -> Path:
    """The linked core, which must be as new as its sources for these tests to mean anything."""
    if not CORE.exists():
        pytest.skip("build/core/ixcore.o is not built: run `make build`")
    return CORE


def test_core_refers_to_no_outside_symbol(core: Path) -> None:
    tree.expect_none(nm("--undefined-only", core))


def test_build_leaves_nothing_out() -> None:
    # IX_PARTIAL builds what it can of a tree in the making; it must not be the default.
    setting = re.search(r"^IX_PARTIAL\s*\?=(.*)$", (tree.ROOT / "Makefile").read_text(), flags=re.M)
    assert setting is not None and setting.group(1).strip() == ""


def test_core_has_no_writable_data(core: Path) -> None:
    # d/D .data, b/B .bss, C common, s/S small data, and their weak kin. Constant tables of
    # pointers lie in .data.rel.ro, which nm calls d too, but the loader write-protects: ask
    # objdump for the section.
    run = subprocess.run(["objdump", "-t", str(core)], capture_output=True, text=True, check=True)
    writable = [
        line
        for line in run.stdout.splitlines()
        if re.search(r"\s(\.data|\.bss|\.tdata|\.tbss|\*COM\*)(?!\.rel\.ro)\S*\s", line)
        and not re.search(r"\sd\s+\.\S+\s+0+\s+\.\S+$", line)  # the section's own symbol
    ]
    tree.expect_none(writable)


def test_every_core_source_is_in_the_linked_core(core: Path) -> None:
    argv = ["objdump", "--dwarf=info", "--dwarf-depth=1", str(core)]
    run = subprocess.run(argv, capture_output=True, text=True, check=True)
    linked = set(re.findall(r"DW_AT_name.*: (\S+)$", run.stdout, flags=re.M))
    names = map(tree.relative, tree.core_sources())
    tree.expect_none(name for name in names if name not in linked)


def test_freestanding_files_include_no_libc_header() -> None:
    allowed = {"stdint.h", "stddef.h", "stdbool.h", "limits.h", "stdarg.h", "stdalign.h"}
    allowed |= {"stdatomic.h", "stdnoreturn.h", "immintrin.h", "emmintrin.h", "x86intrin.h"}
    found = {
        tree.relative(source): bad
        for source in tree.freestanding_files()
        if (bad := {name for style, name in tree.includes(source) if style == "<"} - allowed)
    }
    tree.expect_none(found)
