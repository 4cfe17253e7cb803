"""What a worker may do: nothing that takes a capability, and with --user as much as that user."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.runtime.conftest import Start
from tests.runtime.lab import APPS, ROOT, Run, connect, run_to_end, until

NOBODY = 65534
REFUSED = str(errno.EPERM)


@pytest.fixture(scope="module")
def app() -> Iterator[Path]:
    """A copy of the application that everybody can read."""
    place = Path(tempfile.mkdtemp(prefix="ixnet-rights-"))
    place.chmod(0o755)
    yield Path(shutil.copy(APPS / "rights.py", place))
    shutil.rmtree(place)


def ask(lab: Lab, order: str) -> str:
    """The application's answer."""
    with connect(lab) as sock, sock.makefile("rwb") as stream:
        stream.write(f"{order}\n".encode())
        stream.flush()
        return stream.readline().decode().rstrip("\n")


def runs_as(run: Run) -> str:
    """As it said when it started."""
    return next(line.split(maxsplit=2)[2] for line in run.said if line.startswith("  runs as"))


def test_worker_has_no_capabilities(lab: Lab, start: Start, app: Path) -> None:
    run = start(app).wait_ready()
    assert ask(lab, "who") == "0 0 none"
    assert ask(lab, "admin") == f"{REFUSED} {REFUSED}"
    assert runs_as(run) == "root, without capabilities"
    assert run.end() == 0
    assert run.errors() == ""


def test_worker_keeps_them_where_asked(lab: Lab, start: Start, app: Path) -> None:
    run = start(app, options=["--keep-privileges"]).wait_ready()
    assert ask(lab, "admin") == "0 0"
    assert runs_as(run) == "root, all that this process may"
    assert run.end() == 0


def test_worker_becomes_the_user_and_can_not_harm_the_control_process(
    lab: Lab, start: Start, app: Path
) -> None:
    run = start(app, options=["--user", "nobody"]).wait_ready()
    assert ask(lab, "who") == f"{NOBODY} {NOBODY} none"
    assert ask(lab, "control") == REFUSED
    directory = run.instance().directory
    for file in ("/proc/sys/net/ipv4/ip_forward", directory / "instance.json"):
        assert ask(lab, f"write {file}") == str(errno.EACCES), file
    assert runs_as(run) == "nobody, without capabilities"
    assert run.end() == 0
    assert run.errors() == ""


def test_worker_of_a_user_dies_with_the_control_process(lab: Lab, start: Start, app: Path) -> None:
    run = start(app, options=["--user", "nobody:0"]).wait_ready()
    assert ask(lab, "who") == f"{NOBODY} 0 none"
    pids = run.worker_pids()
    os.kill(run.control_pid(), 9)
    run.wait()
    until("the workers' end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_application_that_the_user_can_not_read(lab: Lab, app: Path) -> None:
    private = Path(shutil.copy(app, app.with_name("private.py")))
    private.chmod(0o600)
    status, _, err = run_to_end(lab, private, "7777", options=["--user", "nobody"])
    assert status == 2
    assert f"there is no application {private} that this user can read" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--user", "who-is-this"], "there is no user who-is-this"),
        (["--user", "nobody:who-is-this"], "there is no group who-is-this"),
        (["--user", "nobody", "--keep-privileges"], "--user can't keep privileges"),
    ],
)
def test_mistake_is_refused(options: list[str], part: str) -> None:
    argv = [sys.executable, "-m", "ixnet", "run", "-i", "lo", *options, "app.py"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert part in done.stderr and "cure: " in done.stderr
