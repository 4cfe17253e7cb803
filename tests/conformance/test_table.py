"""README.md's tables of clauses: what they name exists, and what exists is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
ROOT = TESTS.parent
CODE = (ROOT / "ixnet/dataplane", ROOT / "ixnet", ROOT)
MODULES = ("unit", "sim", "conformance", "interop")
# What the TCP of this project promises to follow.
RFCS_OF_TCP = {
    *("1122", "1191", "1337", "2018", "2525", "2883", "3042", "3168", "3465", "3522", "4015"),
    *("4821", "4987", "5482", "5681", "5682", "5927", "5961", "6056", "6191", "6298", "6528"),
    *("6582", "6675", "6928", "6937", "7323", "8201", "8257", "8985", "9293", "9406", "9438"),
}


@dataclass(frozen=True)
class Row:
    clause: str
    code: list[str]
    tests: list[str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows() -> Iterator[Row]:
    """The rows of all tables, by their heads: clause, code or where, test or script."""
    head: list[str] = []
    for line in (HERE / "README.md").read_text().splitlines():
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells(line)
        elif not line.startswith("| ---"):
            row = dict(zip(head, cells(line), strict=False))
            code = row.get("code") or row.get("where") or ""
            tests = row.get("test") or row.get("script") or ""
            names = [re.findall(r"`([^`]+)`", text) for text in (code, tests)]
            yield Row(row["clause"], *names)


def defines(path: Path, name: str) -> bool:
    return path.exists() and re.search(rf"^def {name}\b", path.read_text(), re.M) is not None


def missing_tests(row: Row) -> Iterator[str]:
    """Those of a row's tests that there are not. A bare function is of the file named before it, or
    of the exchanges."""
    files = sorted(HERE.glob("test_*.py"))
    for name in row.tests:
        path, _, function = name.partition("::")
        modules = [TESTS / kind / f"{name}.py" for kind in MODULES]
        if path.endswith(".py"):
            found = [p for p in (TESTS / path, HERE / path) if p.exists()]
            files = found or files
            if not found or (function and not defines(found[0], function)):
                yield name
        elif (HERE / "pkt" / f"{name}.pkt").exists() or any(m.exists() for m in modules):
            continue
        elif not any(defines(file, name) for file in files):
            yield name


def test_every_file_that_is_named_exists() -> None:
    gone = [c for r in rows() for c in r.code if not any((top / c).exists() for top in CODE)]
    assert gone == []


def test_every_test_that_is_named_exists() -> None:
    assert [(r.clause, name) for r in rows() for name in missing_tests(r)] == []


def test_every_row_names_code_and_test() -> None:
    assert [r.clause for r in rows() if not r.code or not r.tests] == []


def test_a_test_that_is_gone_is_found() -> None:
    row = Row("", [], ["unit/test_tcp_cc.py::test_of_nothing", "test_of_nothing", "close-never"])
    assert list(missing_tests(row)) == row.tests


def cited(text: str) -> set[str]:
    """RFCs named in it: RFC 5681, RFC 2018 and 6675."""
    found = set()
    for start in re.finditer(r"RFC (?=\d)", text):
        tail = re.match(r"\d{3,4}(?:(?:,| and| to)? (?:RFC )?\d{4})*", text[start.end() :])
        found |= set(re.findall(r"\b\d{3,4}\b", tail[0] if tail else ""))
    return found


def test_every_rfc_of_tcp_has_a_row_and_is_cited_in_the_code() -> None:
    table = cited("\n".join(r.clause for r in rows()))
    code = cited("\n".join(p.read_text() for p in (ROOT / "ixnet").rglob("*.[ch]")))
    assert sorted(RFCS_OF_TCP - table) == []
    assert sorted(RFCS_OF_TCP - code) == []


def test_every_rfc_that_the_code_of_tcp_cites_has_a_row() -> None:
    table = cited("\n".join(r.clause for r in rows()))
    files = (ROOT / "ixnet/dataplane/tcp").glob("*.[ch]")
    code = cited("\n".join(p.read_text() for p in files))
    assert sorted(code - table) == []
