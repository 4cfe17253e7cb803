"""Running programs in the lab's guest: the C test programs, and anything under dune-sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build/tests/dune"
SANDBOX = ROOT / "build/dune-sandbox"
# Emulated, and nested in that: patience.
TIMEOUT_S = 600.0
SHOWN_CHARS = 6000


@dataclass(frozen=True)
class Result:
    """How a program ended. status: its exit status, or minus the signal that ended it; None: it
    took too long and was killed."""

    argv: tuple[str, ...]
    status: int | None
    stdout: str
    stderr: str

    def __str__(self) -> str:
        if self.status is None:
            how = "took too long"
        elif self.status < 0:
            how = f"was ended by {signal.Signals(-self.status).name}"
        else:
            how = f"ended with status {self.status}"
        parts = [f"{' '.join(self.argv)}\n{how}"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text:
                parts.append(f"---- its {name}\n{_shortened(text)}")
        return "\n".join(parts)

    def expect(self, status: int = 0) -> Result:
        """Itself, if it ended so; otherwise the test fails, showing all of it."""
        if self.status != status:
            pytest.fail(f"expected status {status}: {self}", pytrace=False)
        return self


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARS:
        return text
    half = SHOWN_CHARS // 2
    return f"{text[:half]}\n[... {len(text) - SHOWN_CHARS} characters ...]\n{text[-half:]}"


def run(
    argv: Sequence[str | Path],
    timeout: float = TIMEOUT_S,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Result:
    """Runs a program and all that it starts, to its end or to `timeout` seconds. env adds to the
    environment. Bytes that are no UTF-8 come as surrogates."""
    words = tuple(map(str, argv))
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        status = None
    return Result(words, status, stdout, stderr)


def run_program(
    name: str,
    *args: str | Path,
    timeout: float = TIMEOUT_S,
    status: int | None = 0,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Result:
    """Runs build/tests/dune/NAME. The test fails, showing how the program ended and all that it
    said, unless that is `status` (minus a signal's number; None: whatever it is)."""
    program = PROGRAMS / name
    if not program.exists():
        pytest.fail(f"{program} is not there: `make` makes it of tests/dune/c/{name}.c")
    result = run([program, *args], timeout, env=env, stdin=stdin)
    return result if status is None else result.expect(status)


def run_sandbox(place: Path, policy: str, *argv: str | Path, **more: object) -> Result:
    """Runs a program under build/dune-sandbox with this policy: the name of one that it has
    (permissive, strict), or a text, which is kept in `place`. `more` is as for run(); nothing is
    expected of how it ends."""
    if not SANDBOX.exists():
        pytest.fail(f"{SANDBOX} is not there: `make` makes it of libdune_shim/sandbox/")
    if not policy.isalpha():
        (place / "policy").write_text(policy)
        policy = str(place / "policy")
    return run([SANDBOX, policy, "--", *argv], **more)  # type: ignore[arg-type]
