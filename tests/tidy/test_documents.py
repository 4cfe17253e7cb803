"""What the documents promise is what lies in the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy import tree


def documents() -> str:
    """README.md and ARCHITECTURE.md."""
    return "\n".join(
        (tree.ROOT / name).read_text() if (tree.ROOT / name).exists() else ""
        for name in ("README.md", "ARCHITECTURE.md")
    )


def described_files() -> list[Path]:
    """The files that a reader must be able to find in the documents."""
    modules = [
        p
        for p in (tree.ROOT / "ixnet").rglob("*.py")
        if p.name not in ("__init__.py", "__main__.py")
    ]
    sources = [*tree.core_files(), *(tree.ROOT / "ixnet/native").glob("*.c")]
    sources += (tree.ROOT / "ixnet/posix").glob("*.[ch]")
    sources += [*(tree.ROOT / "xdp").glob("*.c"), *(tree.ROOT / "apps").glob("*.[cp]*")]
    sources += (tree.ROOT / "libdune_shim").rglob("*.[ch]")
    return sorted({*modules, *(p for p in sources if p.suffix == ".c" or is_lone_header(p))})


def is_lone_header(path: Path) -> bool:
    """True for a header without a C file of its name, which is mentioned for itself."""
    return path.suffix == ".h" and not path.with_suffix(".c").exists()


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_document_stands(name: str) -> None:
    assert (tree.ROOT / name).stat().st_size > 500


def test_every_file_is_in_the_map() -> None:
    # As a path's end (`tcp/rtt.c`), or as its bare name where the text has the folder as heading.
    text = documents()
    missing = [
        tree.relative(path)
        for path in described_files()
        if not re.search(rf"(?<![\w.]){re.escape(path.name)}\b", text)
    ]
    tree.expect_none(missing, "mentioned neither in README.md nor in ARCHITECTURE.md")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_document_names_no_vanished_file(name: str) -> None:
    text = (tree.ROOT / name).read_text() if (tree.ROOT / name).exists() else ""
    names = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:c|h|py|sh))`", text))
    present = {p.as_posix() for p in map(lambda p: p.relative_to(tree.ROOT), tree.tracked())}
    gone = [n for n in names if not any(p == n or p.endswith("/" + n) for p in present)]
    tree.expect_none(sorted(gone))


def counters() -> list[tuple[str, str]]:
    """(name, meaning) of each counter."""
    text = (tree.DATAPLANE / "base/counters.h").read_text()
    return re.findall(r'^\s*X\(\s*(\w+)\s*,\s*"([^"]*)"\s*\)', text, flags=re.M)


def test_every_counter_has_a_meaning_of_its_own() -> None:
    found = counters()
    assert len(found) > 50
    tree.expect_none([name for name, meaning in found if len(meaning) < 8])
    meanings = [meaning for _, meaning in found]
    assert len(set(meanings)) == len(meanings)


def test_every_counter_is_counted() -> None:
    sources = "\n".join(p.read_text() for p in tree.core_files() if p.name != "counters.h")
    idle = [name for name, _ in counters() if not re.search(rf"\b{name}\b", sources)]
    tree.expect_none(idle)


def test_every_core_file_has_a_unit_test() -> None:
    # test_rtt.py or test_tcp_rtt.py for tcp/rtt.c.
    tests = {p.stem for p in (tree.ROOT / "tests/unit").glob("test_*.py")}
    sources = [*tree.core_sources(), *(tree.ROOT / "ixnet/native").glob("*.c")]
    untested = [
        tree.relative(p)
        for p in sources
        if not {f"test_{p.stem}", f"test_{p.parent.name}_{p.stem}"} & tests
    ]
    tree.expect_none(untested)


def test_tracked_files_name_no_place_of_a_machine() -> None:
    places = re.compile(r"(?<![\w.$/{}-])/(?:work|root|home/\w+|tmp/ix)(?=[/\s\"'`)])")
    found = []
    for path in tree.tracked():
        if path == Path(__file__).resolve() or path.suffix in (".png", ".pcap"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if places.search(line):
                found.append(f"{tree.relative(path)}:{number}: {line.strip()[:80]}")
    tree.expect_none(found)


def test_built_files_name_no_place_of_a_machine() -> None:
    core = tree.ROOT / "build/core/ixcore.o"
    if not core.exists():
        pytest.skip("build/core/ixcore.o is not built: run `make build`")
    assert str(tree.ROOT).encode() + b"/" not in core.read_bytes()
