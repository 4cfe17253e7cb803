"""Files and functions stay short enough to be read at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.tidy import tree

FILE_LINES = 600
FUNCTION_LINES = 70
LINE_COLUMNS = 100
# Files that may be longer, each with the reason.
LONGER_FILES: dict[str, str] = {}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yields (name, lines) of each function that a C file defines, signature included."""
    lines = tree.strip_comments(path.read_text()).splitlines()
    depth = 0
    head = 0  # where the declaration at hand starts
    for number, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            if depth == 0:
                head = number + 1
            continue
        for column, char in enumerate(line):
            if char == "{":
                if depth == 0:
                    opened = number
                    before = " ".join(lines[head:number]) + " " + line[:column]
                    found = re.search(r"(\w+)\s*\([^{};=]*\)\s*$", before)
                    name = found.group(1) if found else ""
                depth += 1
            elif char == "}":
                depth -= 1
                if depth == 0:
                    if name:
                        first = next(n for n in range(head, opened + 1) if lines[n].strip())
                        yield name, number - first + 1
                    head = number + 1
            elif char == ";" and depth == 0:
                head = number + 1


def test_c_files_are_short() -> None:
    long = {
        tree.relative(path): lines
        for path in tree.c_files()
        if (lines := len(path.read_text().splitlines())) > FILE_LINES
    }
    assert long.keys() == LONGER_FILES.keys(), long


def test_c_functions_are_short() -> None:
    long = [
        f"{tree.relative(path)}: {name}: {lines} lines"
        for path in tree.c_files()
        for name, lines in functions(path)
        if lines > FUNCTION_LINES
    ]
    tree.expect_none(long)


def test_c_lines_are_narrow_and_without_tabs() -> None:
    wide = [
        f"{tree.relative(path)}:{number}: {len(line)} columns"
        for path in tree.c_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LINE_COLUMNS or "\t" in line
    ]
    tree.expect_none(wide)


def test_functions_are_measured(tmp_path: Path) -> None:
    # The measure itself: braces in strings and comments, macros, structs and tables between.
    source = tmp_path / "sample.c"
    source.write_text(
        "struct x {\n    int a;\n};\n"
        "#define OPEN do {\n"
        'static const char *const table[] = {"{", "}"};\n'
        "/* { */\n"
        "int\nlong_head(int a,\n          int b)\n{\n    if (a) {\n        b = '{';\n    }\n"
        "    return b;\n}\n"
        "static inline int one(void) { return 1; }\n"
    )
    assert list(functions(source)) == [("long_head", 9), ("one", 1)]
