"""Generates the C source of a cffi extension module from C headers.

Two modules are made this way (see the Makefile):

``ixnet._core`` (``--public``)
    what the Python package uses: the declarations of ``dataplane/api/*.h`` and of the other
    public headers, read with ``IX_CDEF`` defined.
``tests.unit._san_core``
    what unit tests use: the declarations of *every* header of the core, of ``native/`` and of
    ``tests/native/``; static inline functions and integer macros too.

How: ``gcc -E -dD`` expands the headers and says which file each line is from; lines of other
files (libc, libbpf) are dropped. The rest is cut into top-level declarations, each brought into
the form that cffi takes:

- attributes, ``static``, ``inline`` and function bodies go. In API mode cffi compiles wrappers
  against the real headers, so a static inline function needs nothing but its prototype;
- each struct ends in ``...;``, so that layout comes from the C compiler (packed and aligned
  structs work), and a field of a foreign type can be left out;
- array lengths and enumerators that are constant expressions are evaluated;
- macros whose expansion is an integer constant become ``#define NAME ...``.

A function that no object defines would make the module fail to load as a whole, so it is an
error here; with ``--partial`` (a tree in the making) it is left out with a message.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cffi

INCLUDE_DIRS = ("ixnet/dataplane", "ixnet", "xdp", ".")
TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_]\w*|0[xX][0-9a-fA-F]+\w*|\d[\w.]*'
    r"|\.\.\.|<<|>>|<=|>=|==|!=|&&|\|\||->|\S"
)
IDENTIFIER = re.compile(r"[A-Za-z_]\w*\Z")
INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)\Z")
DROPPED_WORDS = {"inline", "__inline", "__inline__", "__extension__", "_Noreturn", "register"}
DROPPED_WORDS |= {"restrict", "__restrict", "__restrict__"}
DROPPED_CALLS = {"__attribute__", "__attribute", "_Alignas", "__asm__", "asm"}
# The functions that the compiler itself calls; the sanitizers bring their own.
COMPILER_CALLS = {"memcpy", "memmove", "memset", "memcmp"}
# What <stdint.h> and the compiler provide to a macro's expansion.
KNOWN_IN_MACROS = re.compile(
    r"(U?INT\d*_(MAX|MIN|C)|UINT64_MAX|u?int\d+_t|size_t|sizeof|unsigned|int|long|char)\Z"
)
# Kernel type names that public headers may use, as cffi knows them.
PRELUDE = "".join(
    f"typedef {standard} {kernel};\n"
    for standard, kernel in (
        ("uint8_t", "__u8"),
        ("uint16_t", "__u16"),
        ("uint32_t", "__u32"),
        ("uint64_t", "__u64"),
        ("int32_t", "__s32"),
        ("int64_t", "__s64"),
    )
)


class HeaderError(Exception):
    """A header says something that can't be declared to cffi."""


@dataclass
class Declarations:
    """What was found in the headers, in order."""

    items: list[list[str]] = field(default_factory=list)  # tokens of each top-level declaration
    macros: dict[str, list[str]] = field(default_factory=dict)  # object-like macros


def preprocess(headers: Iterable[Path], public: bool) -> Iterator[tuple[str, str]]:
    """Yields (file, line) of the expanded headers, #define lines included."""
    source = "".join(f'#include "{header}"\n' for header in headers)
    command = ["gcc", "-E", "-dD", "-std=gnu11", "-D_GNU_SOURCE", "-x", "c", "-"]
    command += [f"-I{path}" for path in INCLUDE_DIRS]
    command += ["-DIX_CDEF"] if public else ["-DIX_SANITIZED=1"]
    run = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise HeaderError(run.stderr)
    current = ""
    for line in run.stdout.splitlines():
        marker = re.match(r'# \d+ "([^"]*)"', line)
        if marker:
            current = marker.group(1)
        else:
            yield current, line


def matching(tokens: list[str], start: int) -> int:
    """The index of the bracket that closes tokens[start]."""
    depth = 0
    for i in range(start, len(tokens)):
        if tokens[i] in "([{":
            depth += 1
        elif tokens[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    raise HeaderError("unbalanced brackets near: " + " ".join(tokens[start : start + 12]))


def strip_extensions(tokens: list[str]) -> list[str]:
    """Drops attributes and words that cffi doesn't know."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        if tokens[i] in DROPPED_CALLS:
            i = matching(tokens, i + 1) + 1
        elif tokens[i] in DROPPED_WORDS:
            i += 1
        else:
            out.append(tokens[i])
            i += 1
    return out


def split_items(tokens: list[str]) -> Iterator[list[str]]:
    """Cuts tokens into top-level declarations, without function bodies and the last semicolon."""
    item: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token == ";":
            if item and item[0] != "_Static_assert":
                yield item
            item = []
        elif token == "{" and item and item[-1] == ")":
            yield item
            item = []
            i = matching(tokens, i)
        elif token in "([{":
            end = matching(tokens, i)
            item.extend(tokens[i : end + 1])
            i = end
        else:
            item.append(token)
        i += 1


def read_headers(headers: list[Path], public: bool) -> Declarations:
    """Reads the declarations that stand in the headers themselves (public) or in the tree."""
    wanted = {header.resolve() for header in headers}
    found = Declarations()
    text: list[str] = []
    is_wanted: dict[str, bool] = {}
    for name, line in preprocess(headers, public):
        if name not in is_wanted:
            is_wanted[name] = Path(name).resolve() in wanted
        if not is_wanted[name]:
            continue
        define = re.match(r"#define (\w+)(\(?)\s*(.*)", line)
        if define:
            if not define.group(2):
                found.macros[define.group(1)] = TOKEN.findall(define.group(3))
        elif not line.startswith("#"):
            text.append(line)
    tokens = strip_extensions(TOKEN.findall("\n".join(text)))
    found.items = list(split_items(tokens))
    return found


def evaluate(tokens: list[str], known: dict[str, int]) -> int | None:
    """The value of an integer constant expression, or None where it isn't simple."""
    words = []
    for token in tokens:
        number = INTEGER.match(token)
        if number:
            words.append(str(int(number.group(1), 0 if "x" in number.group(1).lower() else 10)))
        elif token in known:
            words.append(str(known[token]))
        elif token == "/":
            words.append("//")
        elif re.fullmatch(r"[-+*%()&|^~]|<<|>>", token):
            words.append(token)
        else:
            return None
    try:
        value = eval(" ".join(words), {"__builtins__": {}})  # digits and operators only
    except (SyntaxError, ArithmeticError, ValueError, TypeError):
        return None
    return value if isinstance(value, int) else None


def convert_arrays(tokens: list[str], known: dict[str, int]) -> list[str]:
    """Evaluates array lengths; one that isn't simple becomes [...]."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        if tokens[i] == "[":
            end = matching(tokens, i)
            inside = [t for t in tokens[i + 1 : end] if t not in ("static", "const")]
            value = evaluate(inside, known)
            out += ["[", *([] if not inside else ["..."] if value is None else [str(value)]), "]"]
            i = end
        else:
            out.append(tokens[i])
        i += 1
    return out


def convert_enum(body: list[str], known: dict[str, int]) -> list[str]:
    """Evaluates enumerators; where one isn't simple, the compiler is asked for all."""
    out: list[str] = []
    simple = True
    next_value = 0
    for enumerator in split_at(body, ","):
        value = evaluate(enumerator[2:], known) if len(enumerator) > 1 else next_value
        if value is None:
            simple = False
            out += [enumerator[0], ","]
            continue
        known[enumerator[0]] = value
        next_value = value + 1
        out += [enumerator[0], "=", str(value), ","]
    if not simple:
        out = [t for e in split_at(body, ",") for t in (e[0], ",")] + ["..."]
    return out


def split_at(tokens: list[str], separator: str) -> list[list[str]]:
    """Splits at separators outside of brackets; empty parts are dropped."""
    parts: list[list[str]] = [[]]
    i = 0
    while i < len(tokens):
        if tokens[i] == separator:
            parts.append([])
        elif tokens[i] in "([{":
            end = matching(tokens, i)
            parts[-1].extend(tokens[i : end + 1])
            i = end
        else:
            parts[-1].append(tokens[i])
        i += 1
    return [part for part in parts if part]


def convert_bodies(tokens: list[str], known: dict[str, int], structs: set[str]) -> list[str]:
    """Converts the struct, union and enum bodies in a declaration, nested ones too."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        if tokens[i] != "{":
            out.append(tokens[i])
            i += 1
            continue
        end = matching(tokens, i)
        body = tokens[i + 1 : end]
        named = (
            len(out) >= 2
            and IDENTIFIER.match(out[-1]) is not None
            and out[-2] in ("struct", "union")
        )
        if "enum" in out[-2:]:
            out += ["{", *convert_enum(body, known), "}"]
        else:
            fields = [convert_bodies(f, known, structs) for f in split_at(body, ";")]
            if named:
                structs.add(" ".join(out[-2:]))
            fields = [f for f in fields if not is_foreign_by_value(f, structs)]
            bits = any(":" in f for f in fields)
            out.append("{")
            for f in fields:
                out += [*f, ";"]
            out += ["...", ";", "}"] if named and not bits else ["}"]
        i = end + 1
    return out


def is_foreign_by_value(tokens: list[str], structs: set[str]) -> bool:
    """True for a field `struct x name` of a struct that no header of the tree defines."""
    words = [t for t in tokens if t not in ("const", "volatile")]
    if len(words) < 3 or words[0] not in ("struct", "union") or words[1] == "{":
        return False
    return "*" not in words and "{" not in words and " ".join(words[:2]) not in structs


def function_name(item: list[str]) -> str | None:
    """The name that a function declaration declares, or None for other declarations."""
    if item[0] == "typedef" or "{" in item or "=" in item:
        return None
    for i in range(1, len(item)):
        if item[i] == "(":
            return item[i - 1] if IDENTIFIER.match(item[i - 1]) else None
    return None


def variable_name(item: list[str]) -> str:
    """The name that `extern type name[...]` declares."""
    end = item.index("[") if "[" in item else len(item)
    return item[end - 1]


def is_integer_macro(
    name: str, macros: dict[str, list[str]], known: dict[str, int], depth: int = 0
) -> bool:
    """True where a macro expands to an integer constant expression."""
    if not macros[name] or depth > 16:
        return False
    for token in macros[name]:
        if token in macros:
            if not is_integer_macro(token, macros, known, depth + 1):
                return False
        elif IDENTIFIER.match(token):
            if token not in known and not KNOWN_IN_MACROS.match(token):
                return False
        elif not INTEGER.match(token) and not re.fullmatch(r"[-+*/%()&|^~<>]|<<|>>", token):
            return False
    return True


def defined_symbols(objects: list[str]) -> set[str]:
    """The symbols that objects and archives define."""
    if not objects:
        return set()
    command = ["nm", "--defined-only", "--format=posix", *objects]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines() if line.count(" ") >= 2}


@dataclass
class Cdef:
    """The text for cffi, and what had to be left out of it."""

    text: str
    undefined: list[str]  # functions and variables that no object defines
    refused: list[str]  # declarations that cffi doesn't take


def check_names(headers: Iterable[Path]) -> None:
    """Raises where two headers give one struct, union or enum name to two things.

    All headers are compiled as one unit here, so a name must be one thing in the whole tree.
    """
    owners: dict[str, Path] = {}
    for header in headers:
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        for tag in re.findall(r"^(?:struct|union|enum)\s+(\w+)\s*\{", text, flags=re.M):
            if tag in owners:
                raise HeaderError(f"{tag} is defined in {owners[tag]} and in {header}: rename one")
            owners[tag] = header


def make_cdef(found: Declarations, symbols: set[str]) -> Cdef:
    """Turns declarations into the text for ffi.cdef()."""
    known: dict[str, int] = {}
    structs: set[str] = set()
    seen: set[str] = set()
    texts: list[str] = []
    result = Cdef(PRELUDE, [], [])
    for original in found.items:
        is_static = "static" in original
        item = [t for t in original if t != "static"]
        if "=" in item and "{" not in item[: item.index("=")]:
            item = item[: item.index("=")]
        name = function_name(item)
        if name in COMPILER_CALLS:
            continue
        if name is None and item[0] == "extern" and "(" not in item and "{" not in item:
            name = variable_name(item)
        if name and not is_static and name not in symbols:
            result.undefined.append(name)
            continue
        text = " ".join(convert_arrays(convert_bodies(item, known, structs), known)) + ";\n"
        if text not in seen:
            seen.add(text)
            texts.append(text)
    if not is_accepted(PRELUDE + "".join(texts)):
        # One at a time, with the names that may stand for a type in another.
        typedefs = PRELUDE + "".join(t for t in texts if t.startswith("typedef") and is_accepted(t))
        result.refused = [t for t in texts if not is_accepted(typedefs + t)]
    result.text += "".join(t for t in texts if t not in result.refused)
    for name in found.macros:
        if name not in known and is_integer_macro(name, found.macros, known):
            result.text += f"#define {name} ...\n"
    return result


def is_accepted(text: str) -> bool:
    """True where cffi can parse the text."""
    try:
        cffi.FFI().cdef(text)
    except (cffi.CDefError, cffi.FFIError, NotImplementedError):
        return False
    return True


def generate(module: str, headers: list[Path], out: Path, public: bool, symbols: set[str]) -> Cdef:
    """Writes the module's C source to out, unless it holds the same text already."""
    check_names(headers)
    cdef = make_cdef(read_headers(headers, public), symbols)
    ffi = cffi.FFI()
    ffi.cdef(cdef.text)
    includes = "#include <stdint.h>\n#include <linux/types.h>\n"
    includes += "".join(f'#include "{header}"\n' for header in headers)
    ffi.set_source(module, includes)
    fresh = out.with_suffix(".new.c")
    with contextlib.redirect_stdout(io.StringIO()):  # cffi tells the file's name
        ffi.emit_c_code(str(fresh))
    out.with_suffix(".cdef").write_text(cdef.text)
    if out.exists() and out.read_bytes() == fresh.read_bytes():
        fresh.unlink()
    else:
        fresh.replace(out)
    return cdef


def main() -> int:
    """Runs as a program; returns its exit status."""
    parser = argparse.ArgumentParser(description="generate the C source of a cffi module")
    parser.add_argument("--module", required=True, help="its dotted name")
    parser.add_argument("--out", required=True, type=Path, help="the C file to write")
    parser.add_argument("--public", action="store_true", help="read headers with IX_CDEF defined")
    parser.add_argument("--partial", action="store_true", help="leave out what isn't there yet")
    parser.add_argument("--defined-in", action="append", default=[], help="an object or archive")
    parser.add_argument("headers", nargs="*", type=Path)
    args = parser.parse_args()
    try:
        cdef = generate(
            args.module, args.headers, args.out, args.public, defined_symbols(args.defined_in)
        )
    except HeaderError as error:
        print(f"{args.module}: {error}", file=sys.stderr)
        return 1
    if cdef.undefined:
        names = " ".join(cdef.undefined)
        print(f"{args.module}: declared, but no object defines them: {names}", file=sys.stderr)
    for text in cdef.refused:
        print(f"{args.module}: cffi does not take: {text}", file=sys.stderr)
    failed = bool(cdef.undefined or (args.public and cdef.refused)) and not args.partial
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
