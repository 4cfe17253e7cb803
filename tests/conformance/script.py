"""The subset of packetdrill's language that our scripts use, as events in the order of the file.

    0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3          a system call and its result
    +0...0.2 read(4, ..., 100) = 100                     ... that blocks for 0.2 s
    +.1 < S 0:0(0) win 1000 <mss 1460,sackOK>            a packet arrives
    +0 > S. 0:0(0) ack 1 <...>                           a packet has left; <...>: any options
    +.2~+.4 > . 1:1(0) ack 1                             ... at some time between
    +0 < icmp unreachable port_unreachable [1:1001(1000)]   an ICMP error about it

A line `--so_flags=...` is for the shared object, as packetdrill has it; other options are skipped.
Times are seconds, absolute or (+) since the event before; `*` is any time. Comments are //, # and
/* */. What packetdrill can and this can't is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

US = 1_000_000


class ScriptError(Exception):
    """A script that can't be read, or whose expectation is not met."""


@dataclass(frozen=True)
class When:
    """Microseconds. relative: since the event before. end: of a range. any: `*`."""

    start: int
    relative: bool
    end: int | None = None
    any: bool = False


@dataclass(frozen=True)
class Packet:
    """A TCP segment with relative numbers. options: as written, one string each; None: any."""

    inbound: bool
    flags: str
    seq: int
    payload: int
    ack: int | None
    window: int | None
    options: tuple[str, ...] | None


@dataclass(frozen=True)
class Icmp:
    """An ICMP unreachable about the segment seq:seq+payload that was sent before."""

    code: str
    mtu: int
    seq: int
    payload: int


@dataclass(frozen=True)
class Call:
    """A system call. block_until: when it ends if it blocks, as `When` of its own."""

    name: str
    args: tuple[str, ...]
    result: int
    errno: str | None
    block_until: When | None


@dataclass(frozen=True)
class Event:
    """One line."""

    line: int
    text: str
    when: When
    what: Packet | Icmp | Call


@dataclass
class Script:
    """A whole file."""

    path: Path
    flags: str = ""
    events: list[Event] = field(default_factory=list)


_NUMBER = r"\d*\.?\d+"
_PACKET = re.compile(
    r"(?P<dir>[<>]) (?P<flags>[SFRPECWU.]+|-) (?P<seq>\d+):(?P<end>\d+)\((?P<bytes>\d+)\)"
    r"(?: ack (?P<ack>\d+))?(?: win (?P<win>\d+))?(?: <(?P<options>.*)>)?$"
)
_ICMP = re.compile(
    r"< icmp unreachable (?P<code>\w+)(?: mtu (?P<mtu>\d+))? "
    r"\[(?P<seq>\d+):\d+\((?P<bytes>\d+)\)\]$"
)
_CALL = re.compile(
    r"(?P<name>\w+)\((?P<args>.*)\) = (?P<result>-?(?:0x)?[\da-fA-F]+)"
    r"(?: (?P<errno>E\w+))?(?: \([^()]*\))?$"
)


def _us(text: str) -> int:
    return round(float(text) * US)


def _times(text: str) -> tuple[When, When | None]:
    """The time of an event, and the end of a blocking call."""
    if text == "*":
        return When(0, False, any=True), None
    relative = text.startswith("+")
    if "..." in text:
        start, end = text.split("...")
        return (
            When(_us(start.lstrip("+")), relative),
            When(_us(end.lstrip("+")), relative),
        )
    if "~" in text:
        start, end = text.split("~")
        return When(_us(start.lstrip("+")), relative, _us(end.lstrip("+"))), None
    return When(_us(text.lstrip("+")), relative), None


def split_args(text: str) -> tuple[str, ...]:
    """Splits at commas outside of brackets."""
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += char
    return tuple([*parts, part.strip()]) if text.strip() else ()


def _packet(found: re.Match[str]) -> Packet:
    options = found["options"]
    return Packet(
        inbound=found["dir"] == "<",
        flags="" if found["flags"] == "-" else found["flags"],
        seq=int(found["seq"]),
        payload=int(found["bytes"]),
        ack=None if found["ack"] is None else int(found["ack"]),
        window=None if found["win"] is None else int(found["win"]),
        options=None
        if options == "..."
        else tuple(o.strip() for o in options.split(","))
        if options
        else (),
    )


def _what(text: str, block_until: When | None) -> Packet | Icmp | Call:
    if found := _PACKET.match(text):
        return _packet(found)
    if found := _ICMP.match(text):
        return Icmp(found["code"], int(found["mtu"] or 0), int(found["seq"]), int(found["bytes"]))
    if found := _CALL.match(text):
        return Call(
            found["name"],
            split_args(found["args"]),
            int(found["result"], 0),
            found["errno"],
            block_until,
        )
    raise ScriptError("neither a packet nor a system call")


def parse(path: Path) -> Script:
    """Reads a script."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.S)
    script = Script(path)
    time = re.compile(rf"(\*|\+?{_NUMBER}(?:(?:~|\.\.\.)\+?{_NUMBER})?)\s+(.*)")
    for number, raw in enumerate(text.splitlines(), 1):
        line = " ".join(re.sub(r"(//|#).*", "", raw).split())
        if line.startswith("--so_flags="):
            script.flags = line.removeprefix("--so_flags=")
        if not line or line.startswith("--"):
            continue
        found = time.match(line)
        try:
            if not found:
                raise ScriptError("no time at its start")
            when, block_until = _times(found[1])
            script.events.append(Event(number, line, when, _what(found[2], block_until)))
        except ScriptError as error:
            raise ScriptError(f"{path.name}:{number}: {error}: {line}") from None
    return script
