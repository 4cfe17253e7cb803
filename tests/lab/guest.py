"""tests/dune, run by the guest's pytest in one boot of the lab, its results read as they come.

The directory that both share (lab.py run --out) holds: `selected`, the names of the tests to run;
`results.jsonl`, a line for each that began and one for each that ended (tests/dune/conftest.py
writes it); and here alone `log`, what the lab and the guest's pytest said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests/lab/lab.py"
TESTS = "tests/dune"
# Of the whole boot. IX_DUNE_SECONDS: for more than `make test` runs.
LIMIT_S = float(os.environ.get("IX_DUNE_SECONDS", "10800"))
END_S = 600.0
POLL_S = 0.1
UNAVAILABLE = os.EX_UNAVAILABLE
SLOWEST = 5
# Passed on to the guest: what of tests/dune is run, and how much of it.
PASSED_ON = ("IX_CPYTHON", "IX_FUZZ_SECONDS", "IX_FUZZ_SEED")


def names() -> list[str]:
    """The tests in tests/dune, as pytest finds them here. Errors: a test file is broken."""
    with tempfile.TemporaryDirectory(prefix="ixnet-dune-") as place:
        file = Path(place) / "names"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", TESTS],
            cwd=ROOT,
            env={**os.environ, "IX_LAB": "1", "IX_DUNE_NAMES": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not file.exists():
            raise pytest.UsageError(f"{TESTS} can't be collected:\n{done.stdout}{done.stderr}")
        return file.read_text().splitlines()


@dataclass
class Outcome:
    """A test's result. outcome: passed, failed, skipped, xfailed. text: why, where not passed."""

    outcome: str
    text: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Guest:
    """One boot that runs the selected tests of tests/dune."""

    def __init__(self, selected: Sequence[str]) -> None:
        self.results: dict[str, Outcome] = {}
        self.under_way = "nothing"
        self._directory = tempfile.TemporaryDirectory(prefix="ixnet-dune-")
        self._out = out = Path(self._directory.name)
        self._read = 0
        self._blamed = False
        (out / "selected").write_text("".join(f"{name}\n" for name in selected))
        passed_on = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        command = [sys.executable, "-m", "pytest", "-v", "-rN", "--tb=short", TESTS]
        # A session that a sanitizer ends at once doesn't leave the lab behind.
        argv = ["setpriv", "--pdeathsig", "TERM", sys.executable, LAB]
        argv += ["run", "--timeout", str(LIMIT_S), "--out", str(out), "--"]
        with (out / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, "env", *passed_on, *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def result(self, name: str) -> Outcome:
        """Waits for a test's result; fails or skips the calling test if there will be none."""
        while name not in self.results:
            ended = self._process.poll() is not None  # asked first: its last words are read after
            self._take()
            if name in self.results:
                break
            if ended:
                self._no_result()
            time.sleep(POLL_S)
        return self.results[name]

    def _take(self) -> None:
        """Reads the lines that came."""
        file = self._out / "results.jsonl"
        if not file.exists():
            return
        with file.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                said = json.loads(line)
                name = said.pop("id")
                if said["outcome"] == "started":
                    self.under_way = name
                else:
                    self.results[name] = Outcome(**said)

    def _no_result(self) -> None:
        status, log = self._process.returncode, self.log()
        if status == UNAVAILABLE:
            pytest.skip(f"tests/dune needs the lab, which is not to be had here: {log}")
        said = "" if self._blamed else f" The end of what it said:\n{log}"
        self._blamed = True  # the others need not repeat it
        pytest.fail(
            f"the guest ended (exit status {status}) during {self.under_way}.{said}", pytrace=False
        )

    def log(self, lines: int = 60) -> str:
        """The end of what the lab and the guest's pytest said."""
        text = (self._out / "log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def end(self) -> int | None:
        """Waits for its end; its exit status. None: it was made to end."""
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return None

    def _kill(self) -> None:
        """Whatever it does. lab.py takes the emulator with it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def stop(self) -> None:
        """Ends it; log() is no more to be had."""
        self._kill()
        self._directory.cleanup()

    def summary(self) -> list[str]:
        """Lines for the closing report."""
        counts: dict[str, int] = {}
        for result in self.results.values():
            counts[result.outcome] = counts.get(result.outcome, 0) + 1
        total = sum(result.seconds for result in self.results.values())
        lines = [", ".join(f"{n} {word}" for word, n in counts.items()) + f" in {total:.0f} s"]
        slow = sorted(self.results.items(), key=lambda item: item[1].seconds, reverse=True)
        lines += [f"  {result.seconds:6.1f} s {name}" for name, result in slow[:SLOWEST]]
        for name, result in self.results.items():
            if result.notes:
                lines += [name, *(f"  {note}" for note in result.notes)]
        return lines


GUEST = pytest.StashKey[Guest]()
