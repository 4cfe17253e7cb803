"""CPython's own tests in ring 3: each case fails, passes or is skipped as it does outside.

`python3 -m test` of Debian's libpython3.11-testsuite runs twice on the same guest, as it is and
under dune-sandbox, and its JUnit reports are compared case by case. Cases that depend on how fast
the machine is are given another chance, on both sides. What differs must be in DIFFERENT.

IX_CPYTHON=all (`make lab-dune`) runs ALL, which takes half an hour; otherwise QUICK alone runs.
"""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dune import kit

PYTHON = "/usr/bin/python3"
TIMEOUT_S = 1800.0
# Seconds outside, in the lab: 6, 5, 5, 7, 4, 2, 5, 5.
QUICK = ("re", "struct", "array", "hashlib", "select", "mmap", "ctypes", "zlib")
# 16, 9 (81 in ring 3), 39, 18, 23, 52, 55.
SLOW = ("json", "os", "socket", "selectors", "threading", "subprocess", "signal")
ALL = (*QUICK, *SLOW)
CHOSEN = ALL if os.environ.get("IX_CPYTHON") == "all" else QUICK
AGAIN = 2
SHOWN = 40
STARTS = 9
# 1.6 to 2.6 most days, 3.0 and 3.7 where the machine below was slow: exits are emulated there. A
# start that became dear (each page a fault, each read an exit) is tens of times.
MOST_START_RATIO = 8.0

POLICY = """
paths any
exec sandboxed
fork yes
network yes
signal yes
ipc yes
admin yes
log {log}
"""

# Not run, on neither side: they don't fail where the kernel has no UDP-Lite (Linux 7 has none), but
# end the whole run.
LEFT_OUT = ("*UDPLITE*",)
# What may differ, by the case's name (or its beginning), and why.
DIFFERENT: dict[str, str] = {}


@dataclass
class Report:
    """What a run of `python3 -m test` found. cases: name to passed, failed or skipped."""

    cases: dict[str, str]
    text: dict[str, str]  # why, of those that failed
    seconds: float
    result: kit.Result
    refused: str = ""

    def counts(self) -> str:
        outcomes = list(self.cases.values())
        return ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(sorted(outcomes)))


def cpython(place: Path, sandboxed: bool, *options: str) -> Report:
    """Runs `python3 -m test OPTIONS`."""
    xml, log = place / "report.xml", place / "refused"
    for old in (xml, log):
        old.unlink(missing_ok=True)
    # Not where the test that runs this looks for its own files.
    work = place / "work"
    work.mkdir(exist_ok=True)
    argv = [PYTHON, "-m", "test", "--junit-xml", str(xml), "--tempdir", str(work)]
    argv += [word for pattern in LEFT_OUT for word in ("--ignore", pattern)] + list(options)
    began = time.monotonic()
    if sandboxed:
        result = kit.run_sandbox(place, POLICY.format(log=log), *argv, timeout=TIMEOUT_S, cwd=work)
    else:
        result = kit.run(argv, TIMEOUT_S, cwd=work)
    seconds = time.monotonic() - began
    cases, text = parse(xml)
    refused = log.read_text(errors="replace") if log.exists() else ""
    return Report(cases, text, seconds, result, refused)


def parse(xml: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The outcome of each case, and why some failed."""
    cases: dict[str, str] = {}
    text: dict[str, str] = {}
    if not xml.exists():
        return cases, text
    for case in ET.parse(xml).iter("testcase"):
        name = case.get("name", "")
        wrong = [part for part in case if part.tag in ("failure", "error")]
        if wrong:
            cases[name] = "failed"
            text[name] = (wrong[0].text or "").strip()
        elif case.find("skipped") is not None:
            cases.setdefault(name, "skipped")
        else:
            cases.setdefault(name, "passed")
    return cases, text


def compare(bare: Report, sandboxed: Report) -> list[str]:
    """Names of the cases that don't end alike."""
    names = bare.cases.keys() | sandboxed.cases.keys()
    return sorted(name for name in names if bare.cases.get(name) != sandboxed.cases.get(name))


def again(place: Path, module: str, names: Collection[str]) -> list[str]:
    """Of these cases, those that still differ when run alone, on both sides."""
    matches = place / "matches"
    matches.write_text("".join(f"{name}\n" for name in names))
    options = ("--matchfile", str(matches), module)
    outside = cpython(place, False, *options)
    return compare(outside, cpython(place, True, *options))


def declared(name: str) -> str | None:
    """Why a case may differ."""
    return next((why for known, why in DIFFERENT.items() if name.startswith(known)), None)


@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("subject", CHOSEN)
def test_cpython_cases_end_as_outside(
    subject: str, tmp_path: Path, note: Callable[[str], None]
) -> None:
    module = f"test_{subject}"
    bare = cpython(tmp_path, False, module)
    assert bare.cases, f"outside, nothing ran: {bare.result}"
    sandboxed = cpython(tmp_path, True, module)
    note(
        f"{bare.counts()}; {bare.seconds:.0f} s outside, {sandboxed.seconds:.0f} s in ring 3 "
        f"({sandboxed.seconds / bare.seconds:.1f}x)"
    )
    if not sandboxed.cases:
        pytest.fail(f"in ring 3 it gave no report: {sandboxed.result}\n{sandboxed.refused[-2000:]}")
    different = compare(bare, sandboxed)
    for name in list(different):
        if why := declared(name):
            note(f"declared: {name}: {why}")
            different.remove(name)
    for _ in range(AGAIN if different else 0):
        still = again(tmp_path, module, different)
        for name in set(different) - set(still):
            note(f"only at the first try: {name}: {bare.cases.get(name)} outside")
        different = [name for name in different if name in still]
        if not different:
            break
    if different:
        pytest.fail(explain(different, bare, sandboxed), pytrace=False)


def explain(different: list[str], bare: Report, sandboxed: Report) -> str:
    """The cases that differ, and what is known about each."""
    parts = [f"{len(different)} cases differ"]
    for name in different[:SHOWN]:
        before, after = bare.cases.get(name, "not run"), sandboxed.cases.get(name, "not run")
        parts.append(f"{name}: {before} outside, {after} in ring 3")
        parts.append(sandboxed.text.get(name, "")[-1500:])
    parts.append(f"refused calls:\n{sandboxed.refused[-3000:]}")
    parts.append(f"the end of its output:\n{sandboxed.result.stdout[-1500:]}")
    return "\n".join(parts)


def test_cpython_starts_in_ring_3_in_a_few_times_its_time(
    tmp_path: Path, note: Callable[[str], None]
) -> None:
    """The least of a few, all in turn, as a busy machine only adds. What dune-sandbox itself takes
    (the self-test, the VM) is that of /bin/true and taken off: it is the same for every program. A
    first start, which compiles what it imports: one from bytecode is little but calls for Linux,
    and an exit here, emulated, costs a hundred times what it does on a CPU."""
    python, true = [PYTHON, "-B", "-X", "pycache_prefix=/nowhere", "-c", "pass"], ["/bin/true"]
    seconds: dict[str, list[float]] = {}
    for _ in range(STARTS):
        for name, argv in (("python", python), ("true", true)):
            began = time.monotonic()
            kit.run(argv).expect()
            between = time.monotonic()
            kit.run_sandbox(tmp_path, "permissive", *argv).expect()
            seconds.setdefault(f"{name} outside", []).append(between - began)
            seconds.setdefault(f"{name} in ring 3", []).append(time.monotonic() - between)
    least = {name: min(values) for name, values in seconds.items()}
    outside = least["python outside"] - least["true outside"]
    inside = least["python in ring 3"] - least["true in ring 3"]
    for name, value in least.items():
        note(f"{name}: {value:.3f} s")
    whole = least["python in ring 3"] / least["python outside"]
    note(f"python3 -c pass: {inside / outside:.2f}x, with dune-sandbox's start {whole:.2f}x")
    assert inside / outside <= MOST_START_RATIO
