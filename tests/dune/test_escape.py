"""Every way out of ring 3 that the protection of the vault speaks of, tried from ring 3.

tests/dune/c/escape.c runs under dune-sandbox and tries; this looks at it from outside. Before the
attempts it fills pages of the vault with a secret, through /proc/PID/mem, and remembers all of the
vault that never changes (the shim's text, tables, the policy, the descriptors); afterwards all of
that must be as before. The attempts find the secret's complement on their standard input, so that
they notice if they have read the secret.

All of it with the vault's protection key and without.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dune import kit

ESCAPE = kit.PROGRAMS / "escape"
FATAL_H = Path(__file__).parent / "c/escape/fatal.h"
GROUPS = (
    "direct",
    "pointers",
    "nested",
    "mappings",
    "files",
    "descriptors",
    "calls",
    "signals",
    "threads",
    "races",
    "sweeps",
)
FATAL = re.findall(r'^ *\{ ?"([\w-]+)", fatal_', FATAL_H.read_text(), re.M)
# In the vault (shim/layout.h): what never changes once ring 3 runs, and where the secret goes.
IMAGE = (0, 0x100000)
POLICY_AND_CPUID = (0x1E0000, 0x20000)
STUBS = (0x10000000, 0x1000)
GDT = (0x10002E00, 0x38)
IDT = (0x10003000, 0x1000)
SECRET_BYTES = 65536
SCRATCH = 0x20000000
GIB = 1 << 30
# Where the secret goes: a place of the vault that nothing uses; with a module in ring 0 into its
# data.
VAULT, DATA = 0x4000000, GIB
MODULE = (0x4000000, 0x20000)
WITH_MODULE = ("direct", "pointers", "nested", "mappings", "signals", "threads", "races", "module")
TIMEOUT_S = 600.0


@dataclass
class Escapee:
    """One process in ring 3, and the view of it from outside."""

    process: subprocess.Popen[bytes]
    vault: int
    descriptors: dict[int, str]
    target: int  # offset of the secret
    secret: bytes
    before: dict[str, bytes]

    def memory(self, offset: int, length: int) -> bytes:
        with open(f"/proc/{self.process.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.vault + offset)
            return memory.read(length)

    def put(self, offset: int, data: bytes) -> None:
        with open(f"/proc/{self.process.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self.vault + offset)
            assert memory.write(data) == len(data)

    def constant(self) -> dict[str, bytes]:
        places = {
            "the shim's image": IMAGE,
            "the policy": POLICY_AND_CPUID,
            "the entry stubs": STUBS,
            "the GDT": GDT,
            "the IDT": IDT,
            "the secret": (self.target, SECRET_BYTES),
            "the thread numbers": (self.target + SECRET_BYTES, 4096),
        }
        if self.target == DATA:
            places["the module's image"] = MODULE
        return {name: self.memory(*place) for name, place in places.items()}

    def prepare(self) -> None:
        """Fills in the secret and lets the attempts begin."""
        tids = self.target + SECRET_BYTES
        self.put(self.target, self.secret * (SECRET_BYTES // 8))
        base = self.process.pid
        self.put(tids, b"".join((base + n).to_bytes(4, "little") for n in range(1024)))
        self.before = self.constant()
        words = [
            self.vault,
            self.vault + self.target,
            self.vault + SCRATCH,
            self.vault + tids,
            base,
            ~int.from_bytes(self.secret, "little") & (2**64 - 1),
            min(self.descriptors),
        ]
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(f"{word:x}" for word in words).encode() + b"\n")
        self.process.stdin.flush()

    def check_untouched(self) -> None:
        """The vault and the shim's descriptors are as before."""
        changed = [name for name, was in self.constant().items() if was != self.before[name]]
        assert not changed, f"changed in the vault: {changed}"
        now = high_descriptors(self.process.pid)
        lost = {fd: link for fd, link in self.descriptors.items() if now.get(fd) != link}
        assert not lost, f"descriptors of the shim are gone: {lost}"


def high_descriptors(pid: int) -> dict[int, str]:
    """The shim's: they lie above all that ring 3 has."""
    place = Path(f"/proc/{pid}/fd")
    return {int(fd.name): os.readlink(fd) for fd in place.iterdir() if int(fd.name) >= 256}


def find_vault(pid: int) -> int:
    """The shim's image: one MiB of executable memory at the beginning of a GiB."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = re.match(r"(\w+)-(\w+) r-xp 0+ 00:00 0\s*$", line)
        if found:
            start, end = (int(word, 16) for word in found.groups())
            if start % GIB == 0 and end - start == 1 << 20:
                return start
    raise AssertionError(f"process {pid} has no vault")


def read_lines(process: subprocess.Popen[bytes], last: str, timeout: float) -> list[str]:
    """What it prints, up to the line that begins with `last`, or to its end."""
    assert process.stdout is not None
    end, text = time.monotonic() + timeout, b""
    while not any(line.startswith(last) for line in text.decode(errors="replace").splitlines()):
        left = end - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise AssertionError(f"nothing more in {timeout} s:\n{text.decode(errors='replace')}")
        more = os.read(process.stdout.fileno(), 65536)
        if not more:
            break
        text += more
    return text.decode(errors="replace").splitlines()


@contextmanager
def escapee(pkey: bool, *words: str, target: int = VAULT) -> Iterator[Escapee]:
    """The program in ring 3, at its first question; with a module if the target is there."""
    options = [] if pkey else ["--no-pkey"]
    command: list[str | Path] = [kit.SANDBOX, *options, "permissive", "--", ESCAPE]
    if target != VAULT:
        command = [ESCAPE, "--module" if pkey else "--module-no-pkey"]
    process = subprocess.Popen(
        [*command, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert read_lines(process, "ready", TIMEOUT_S) == ["ready"], process.communicate()
        made = Escapee(
            process,
            find_vault(process.pid),
            high_descriptors(process.pid),
            target,
            secrets.token_bytes(8),
            {},
        )
        made.prepare()
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def key_of(pid: int, address: int) -> int:
    """The protection key of the mapping that holds address."""
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        found = re.match(r"(\w+)-(\w+) ", line)
        if found and not line.startswith("ProtectionKey"):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("ProtectionKey:"):
            return int(line.split()[1])
    return 0


def cpu_has_keys() -> bool:
    return " ospke" in Path("/proc/cpuinfo").read_text()


def keep(name: str, lines: list[str]) -> None:
    """The whole table, for the closing report."""
    print("\n".join(lines))
    if out := os.environ.get("IX_LAB_OUT"):
        (Path(out) / f"escape-{name}.tsv").write_text("\n".join(lines) + "\n")


PKEY = pytest.mark.parametrize("pkey", [True, False], ids=["pkey", "no-pkey"])


@PKEY
def test_vault_is_under_a_key_where_the_cpu_has_them(pkey: bool) -> None:
    with escapee(pkey, "direct", target=DATA) as one:
        read_lines(one.process, "done", TIMEOUT_S)
        key = key_of(one.process.pid, one.vault)
        assert (key != 0) == (pkey and cpu_has_keys())
        for place in (MODULE[0], DATA):
            assert key_of(one.process.pid, one.vault + place) == key


def try_to_escape(group: str, pkey: bool, target: int, note: Callable[[str], None]) -> None:
    with escapee(pkey, group, target=target) as one:
        lines = read_lines(one.process, "done", TIMEOUT_S)
        if not lines[-1:] or not lines[-1].startswith("done"):
            _, error = one.process.communicate(timeout=TIMEOUT_S)
            said_last = "\n".join([*lines[-5:], error.decode(errors="replace")[-2000:]])
            pytest.fail(f"it ended with {one.process.returncode} after:\n{said_last}")
        one.check_untouched()
        said = [line.split("\t") for line in lines if "\t" in line]
        keep(f"{group}-{target:x}-{'pkey' if pkey else 'nopkey'}", lines)
        broken = [" ".join(words[1:]) for words in said if words[0] != "refused"]
        assert not broken, "went through:\n" + "\n".join(broken)
        assert lines[-1] == f"done {len(said)} 0" or group == "calls", lines[-1]
        assert one.process.stdin is not None
        one.process.stdin.write(b"\n")
        one.process.stdin.flush()
        assert one.process.wait(TIMEOUT_S) == 0
    outcomes = Counter(outcome(words[3]) for words in said)
    note(f"{len(said)} attempts: {', '.join(f'{n} {what}' for what, n in outcomes.most_common())}")


@PKEY
@pytest.mark.parametrize("group", GROUPS)
def test_ring3_tries_to_escape_and_is_refused(
    group: str, pkey: bool, note: Callable[[str], None]
) -> None:
    try_to_escape(group, pkey, VAULT, note)


@PKEY
@pytest.mark.parametrize("group", WITH_MODULE)
def test_ring3_tries_to_reach_the_module_and_is_refused(
    group: str, pkey: bool, note: Callable[[str], None]
) -> None:
    try_to_escape(group, pkey, DATA, note)


def outcome(text: str) -> str:
    """An errno, a signal, or what else is as good."""
    word = text.split(",")[0].split(" ")[0]
    return word if re.fullmatch("[A-Z0-9]*[A-Z]", word) else "without effect"


@PKEY
@pytest.mark.parametrize("name", FATAL)
def test_ring3_is_ended_by_a_fault_it_can_not_handle(name: str, pkey: bool) -> None:
    with escapee(pkey, "fatal", name) as one:
        out, err = one.process.communicate(timeout=TIMEOUT_S)
        assert one.process.returncode == -signal.SIGSEGV, (out, err)


@pytest.mark.parametrize(
    ("group", "least"),
    [("direct", 40), ("mappings", 20), ("files", 60), ("signals", 5), ("races", 4)],
)
def test_attempts_are_real_outside_of_the_sandbox(group: str, least: int) -> None:
    """Against a range of its own memory, outside, many of the same attempts go through."""
    done = kit.run([ESCAPE, "--bare", group], timeout=TIMEOUT_S)
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert len(broken) >= least, done
