"""Compiles syscalls.toml into the shim: `gen_syscalls.py syscalls.toml OUTDIR`.

Makes OUTDIR/dune_syscalls.h (how many calls, the prototypes of the emulated ones) and
OUTDIR/dune_syscalls.c (the table, the switch). The table is plain data: the shim's image has no
relocations, so there is no pointer in it. The table's own first lines say what may stand in it.
"""

from __future__ import annotations

import errno
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ACTIONS = ("deny", "allow", "emulate")
CLASSES = ("net", "exec", "fork", "admin", "signal", "ipc")
KEYS = {"nr", *ACTIONS, "class", "why", "open", "makes_fd"}
WIDTHS = ("u64", "u32", "i32", "rw")
PLAIN = ("int", "fd", "string", "nested", *WIDTHS)
POINTERS = ("in", "out", "inout", "range")
ARGUMENTS = 6
# What the kernel's table has: between these there is nothing, or only x32's.
NUMBERS = (range(0, 337), range(424, 470))
STUB = (
    "__attribute__((weak)) long dune_do_##name(struct dune_vcpu *cpu, struct dune_call *call) "
    "{ (void)cpu, (void)call; return -38; }"
)
NAME = re.compile(r"[a-z_][a-z0-9_]*")


class TableError(Exception):
    """The table says something that it can't: which line, and what."""


@dataclass(frozen=True)
class Argument:
    """One argument of a call. `count` is the index of the one that its length depends on."""

    kind: str
    name: str
    unit: str = "fixed"  # fixed, times, bits, pages, pointed
    count: int = 0
    width: str = "u64"
    base: int = 0
    size: int = 0

    @property
    def is_pointer(self) -> bool:
        """True if what it says is checked as an address."""
        return self.kind in POINTERS or self.kind == "string"


@dataclass(frozen=True)
class Call:
    """One system call."""

    name: str
    nr: int
    action: str
    arguments: Sequence[Argument] = ()
    error: str = ""
    why: str = ""
    klass: str = ""
    open: bool = False
    makes_fd: bool = False
    text: Mapping[str, object] = field(default_factory=dict, compare=False)


def _length(call: str, text: str, names: Sequence[str], kinds: Sequence[str]) -> dict[str, object]:
    """What stands between the brackets, as fields of Argument."""

    def argument(name: str, kinds_allowed: Sequence[str]) -> int:
        if name not in names:
            raise TableError(f"{call}: [{text}]: there is no argument {name!r}")
        index = names.index(name)
        if kinds[index] not in kinds_allowed:
            wanted = ", ".join(kinds_allowed)
            raise TableError(
                f"{call}: [{text}]: {name} is {kinds[index]}, which is none of {wanted}"
            )
        return index

    if re.fullmatch(r"\d+", text):
        if int(text) == 0:
            raise TableError(f"{call}: [{text}]: a length of nothing")
        return {"unit": "fixed", "base": int(text)}
    if found := re.fullmatch(r"\*(\w+)", text):
        index = argument(found[1], ("inout",))
        return {"unit": "pointed", "count": index}
    if found := re.fullmatch(r"(\w+) (bits|pages)", text):
        index = argument(found[1], WIDTHS)
        return {"unit": found[2], "count": index, "width": kinds[index]}
    if found := re.fullmatch(r"(?:(\d+)\+)?([a-z_]\w*)(?:\*(\d+))?", text):
        index = argument(found[2], WIDTHS)
        return {
            "unit": "times",
            "count": index,
            "width": kinds[index],
            "base": int(found[1] or 0),
            "size": int(found[3] or 1),
        }
    raise TableError(f"{call}: [{text}]: not a length")


def _arguments(call: str, action: str, texts: object) -> list[Argument]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TableError(f"{call}: {action} takes a list of arguments, each a text")
    if len(texts) > ARGUMENTS:
        raise TableError(f"{call}: more than {ARGUMENTS} arguments")
    parts = []
    for text in texts:
        found = re.fullmatch(r"(\w+) (\w+)(?:\[([^\]]*)\])?", text)
        if not found:
            raise TableError(f"{call}: {text!r}: not 'KIND NAME' or 'KIND NAME[LENGTH]'")
        parts.append((found[1], found[2], found[3]))
    kinds = [kind for kind, _, _ in parts]
    names = [name for _, name, _ in parts]
    if len(set(names)) != len(names):
        raise TableError(f"{call}: two arguments of one name")
    made = []
    for kind, name, length in parts:
        if kind not in (*PLAIN, *POINTERS):
            raise TableError(f"{call}: {name}: unknown kind {kind!r}")
        if (kind in POINTERS) != (length is not None):
            raise TableError(
                f"{call}: {name}: {kind} goes {'with' if length is None else 'without'} a length"
            )
        if kind == "nested" and action != "emulate":
            raise TableError(f"{call}: {name}: only an emulated call can check what is nested")
        fields = _length(call, length, names, kinds) if length is not None else {}
        made.append(Argument(kind, name, **fields))  # type: ignore[arg-type]
    for index, argument in enumerate(made):
        if argument.unit == "pointed" and made[argument.count].base != 4:
            raise TableError(f"{call}: {argument.name}: {names[argument.count]} is not 32 bits")
        if (
            kinds[index] in WIDTHS
            and not any(
                other.count == index and other.unit in ("times", "bits", "pages") for other in made
            )
            and action != "emulate"
        ):
            raise TableError(
                f"{call}: {argument.name}: {kinds[index]}, but no length depends on it"
            )
    return made


def _call(name: str, text: object) -> Call:
    if not NAME.fullmatch(name) or not isinstance(text, dict):
        raise TableError(f"{name}: not 'NAME = {{ ... }}'")
    if unknown := set(text) - KEYS:
        raise TableError(f"{name}: unknown: {', '.join(sorted(unknown))}")
    nr = text.get("nr")
    if not isinstance(nr, int) or isinstance(nr, bool) or nr < 0:
        raise TableError(f"{name}: nr is missing, or no number")
    actions = [action for action in ACTIONS if action in text]
    if len(actions) != 1:
        raise TableError(f"{name}: needs one of {', '.join(ACTIONS)}")
    action = actions[0]
    klass = text.get("class", "")
    if klass and klass not in CLASSES:
        raise TableError(f"{name}: unknown class {klass!r}")
    for flag in ("open", "makes_fd"):
        if not isinstance(text.get(flag, False), bool):
            raise TableError(f"{name}: {flag} is true or false")
    common = {"klass": klass, "open": text.get("open", False), "text": text}
    if action == "deny":
        if not isinstance(getattr(errno, str(text["deny"]), None), int):
            raise TableError(f"{name}: unknown errno {text['deny']!r}")
        if not text.get("why") or text.get("makes_fd"):
            raise TableError(f"{name}: a refusal says why, and makes no descriptor")
        return Call(name, nr, action, (), text["deny"], text["why"], **common)
    if "why" in text or "open" in text:
        raise TableError(f"{name}: `why` and `open` are for what is denied")
    arguments = _arguments(name, action, text[action])
    return Call(name, nr, action, arguments, makes_fd=text.get("makes_fd", False), **common)


def parse(text: str) -> list[Call]:
    """The calls by number. Errors: TableError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(str(error)) from None
    calls = [_call(name, entry) for name, entry in table.items()]
    numbers: dict[int, str] = {}
    for call in calls:
        if call.nr in numbers:
            raise TableError(f"{call.name}: {call.nr} is {numbers[call.nr]}'s number")
        numbers[call.nr] = call.name
    known = {nr for numbers_of in NUMBERS for nr in numbers_of}
    if missing := sorted(known - numbers.keys()):
        raise TableError(f"no entry for {', '.join(map(str, missing))}")
    if beyond := sorted(numbers.keys() - known):
        raise TableError(f"{numbers[beyond[0]]}: {beyond[0]} is no number that the generator knows")
    return sorted(calls, key=lambda call: call.nr)


class Blob:
    """Texts one behind the other, each with its NUL; addressed by offset."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.bytes = 0
        self.add("")

    def add(self, text: str) -> int:
        """The text's offset."""
        if text not in self.texts:
            self.texts[text] = self.bytes
            self.bytes += len(text.encode()) + 1
        return self.texts[text]

    def c_lines(self) -> Iterator[str]:
        for text in self.texts:
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            yield f'    "{quoted}\\0"'


def _kind(argument: Argument) -> str:
    if argument.kind in ("in", "out", "inout"):
        return "DUNE_ARG_POINTER"
    if argument.kind in WIDTHS:
        return "DUNE_ARG_INT"
    return f"DUNE_ARG_{argument.kind.upper()}"


def _rule(call: Call, blob: Blob) -> str:
    arguments = ", ".join(
        f"{{{_kind(a)}, DUNE_UNIT_{a.unit.upper()}, {a.count}, DUNE_WIDTH_{a.width.upper()}, "
        f"{a.base}, {a.size}}}"
        for a in call.arguments
    )
    flags = [name for name, on in (("OPEN", call.open), ("MAKES_FD", call.makes_fd)) if on]
    fields = {
        "action": f"DUNE_CALL_{call.action.upper()}",
        "classes": f"DUNE_CLASS_{call.klass.upper()}" if call.klass else "0",
        "flags": " | ".join(f"DUNE_CALL_{flag}" for flag in flags) or "0",
        "error": str(getattr(errno, call.error)) if call.error else "0",
        "name": str(blob.add(call.name)),
        "why": str(blob.add(call.why)),
        "arg": "{" + arguments + "}",
    }
    return f"    [{call.nr}] = {{" + ", ".join(f".{k} = {v}" for k, v in fields.items()) + "},"


def source(calls: Sequence[Call]) -> str:
    """The C file."""
    blob = Blob()
    rules = [_rule(call, blob) for call in calls]
    emulated = [call for call in calls if call.action == "emulate"]
    lines = [
        "/* Made by gen_syscalls.py of syscalls.toml. */",
        '#include "shim/call.h"',
        '#include "shim/policy.h"',
        '#include "dune_syscalls.h"',
        "",
        "const struct dune_call_rule dune_call_rules[DUNE_CALLS] = {",
        *rules,
        "};",
        "",
        "const char dune_call_texts[] =",
        *blob.c_lines(),
        "    ;",
        "",
        f'_Static_assert(sizeof(dune_call_texts) <= 65536 && {blob.bytes} < 65536, "offsets");',
        "",
        "long dune_emulate(struct dune_vcpu *cpu, struct dune_call *call)",
        "{",
        "    switch (call->nr) {",
    ]
    for call in emulated:
        lines += [f"    case {call.nr}:", f"        return dune_do_{call.name}(cpu, call);"]
    lines += ["    default:", "        return -38; /* ENOSYS */", "    }", "}", ""]
    # For who wants the table without the shim: tests/unit, the fuzzer.
    lines += ["#ifdef DUNE_PARTIAL", f"#define STUB(name) {STUB}"]
    lines += [f"STUB({call.name})" for call in emulated]
    lines += ["#endif", ""]
    return "\n".join(lines)


def header(calls: Sequence[Call]) -> str:
    """The header."""
    emulated = [call for call in calls if call.action == "emulate"]
    return "\n".join(
        [
            "/* Made by gen_syscalls.py of syscalls.toml. */",
            "#ifndef DUNE_SYSCALLS_H",
            "#define DUNE_SYSCALLS_H",
            "",
            f"#define DUNE_CALLS {calls[-1].nr + 1}",
            "",
            "struct dune_vcpu;",
            "struct dune_call;",
            "",
            "#pragma GCC visibility push(hidden)",
            *(
                f"long dune_do_{c.name}(struct dune_vcpu *cpu, struct dune_call *call);"
                for c in emulated
            ),
            "#pragma GCC visibility pop",
            "",
            "#endif",
            "",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    table, out = Path(arguments[0]), Path(arguments[1])
    try:
        calls = parse(table.read_text())
    except TableError as error:
        print(f"{table.name}: {error}", file=sys.stderr)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    (out / "dune_syscalls.h").write_text(header(calls))
    (out / "dune_syscalls.c").write_text(source(calls))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
