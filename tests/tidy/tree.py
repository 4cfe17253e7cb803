"""What lies in the tree, for the tests of the rules of style."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATAPLANE = ROOT / "ixnet/dataplane"
# Folder rank is include permission.
LAYERS = ("base", "wire", "mem", "link", "net", "tcp", "shard", "gate", "api")


def relative(path: Path) -> str:
    """A path's name in a test id."""
    return str(path.relative_to(ROOT))


@cache
def tracked() -> tuple[Path, ...]:
    """The files that git tracks; outside of a clone, the test skips."""
    run = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if run.returncode != 0:
        pytest.skip("not a git clone: can't tell which files are the project's")
    names = [name for name in run.stdout.decode().split("\0") if name]
    return tuple(path for name in names if (path := ROOT / name).is_file())


def expect_none(found: Iterable[str] | Mapping[str, object], why: str = "") -> None:
    """Fails with every finding on a line of its own."""
    lines = [f"{k}: {v}" for k, v in found.items()] if isinstance(found, Mapping) else list(found)
    if lines:
        pytest.fail("\n  ".join([why or f"{len(lines)} found:", *lines]), pytrace=False)


def is_hosted(path: Path) -> bool:
    """True for the files under dataplane/ that may use libc (the Makefile has the same rule)."""
    return path.stem.endswith("_hosted") or path.stem == "xsk_setup"


def c_files() -> list[Path]:
    """Every C file and header of the project."""
    roots = ("ixnet", "xdp", "apps", "bench", "tests", "libdune_shim")
    return sorted(p for r in roots for p in (ROOT / r).rglob("*.[ch]"))


def core_files() -> list[Path]:
    """The C files and headers of the core, hosted ones included."""
    return sorted(p for layer in LAYERS for p in (DATAPLANE / layer).glob("*.[ch]"))


def freestanding_files() -> list[Path]:
    """The C files and headers that may not use libc."""
    return [p for p in core_files() if not is_hosted(p)]


def core_sources() -> list[Path]:
    """The freestanding C files."""
    return [p for p in freestanding_files() if p.suffix == ".c"]


def strip_comments(text: str) -> str:
    """C text with comments and string contents blanked, line numbers kept."""

    def blank(match: re.Match[str]) -> str:
        found = match.group(0)
        if found[0] in "\"'":
            return found[0] + " " * (len(found) - 2) + found[0]
        return re.sub(r"[^\n]", " ", found)

    return re.sub(
        r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S
    )


def includes(path: Path) -> list[tuple[str, str]]:
    """The (< or ", name) of each #include that the core compiles (not those cffi is spared)."""
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), flags=re.M)
