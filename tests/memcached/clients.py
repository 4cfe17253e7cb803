"""Other projects' clients and their own tests of a memcached server, fetched into build/clients/.

Nothing of theirs is kept in this repository. A client is cloned at the tag that is named here (or
its source distribution is unpacked, where that has the tests), and gets a virtual environment with
what its tests need. IX_CLIENTS_GIT: where to clone from instead of https://github.com, a directory
or URL with OWNER+NAME/repo or OWNER/NAME in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.lab import ROOT

PLACE = ROOT / "build/clients"
PATIENCE_S = 300


class NotToBeHadError(Exception):
    """A client can't be fetched or installed here; says why."""


@dataclass(frozen=True)
class Client:
    """A client's tests. packages: that they need. edits: text of their files to be replaced, with
    {host} and {port} for the server's. arguments: pytest's, likewise."""

    name: str
    version: str
    github: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...]
    sdist_has_tests: bool = False
    edits: tuple[tuple[str, str, str], ...] = ()

    @property
    def place(self) -> Path:
        """The sources."""
        return PLACE / f"{self.name}-{self.version}"


CLIENTS = (
    Client(
        "pymemcache", "4.0.0", "pinterest/pymemcache",
        ("pytest==8.3.4", "Faker==26.1.0", "zstd", "python-memcached==1.62"),
        ("-m", "integration", "--server={host}", "--port={port}", "pymemcache/test"),
        sdist_has_tests=True,
    ),
    Client(
        "aiomcache", "0.8.2", "aio-libs/aiomcache",
        ("pytest==8.4.2", "pytest-asyncio==1.2.0", "docker-py==1.10.6", "python-memcached==1.62",
         "typing_extensions"),
        ("-o", "asyncio_mode=auto", "tests"),
        edits=(
            ("tests/conftest.py", 'mcache_server_actual("localhost")',
             'mcache_server_actual("{host}", {port})'),
        ),
    ),
)  # fmt: skip


def _run(argv: Sequence[str], what: str) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=PLACE
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise NotToBeHadError(f"{what}: {' '.join(last)}")


def _clone(client: Client) -> None:
    base = os.environ.get("IX_CLIENTS_GIT", "https://github.com")
    flat = Path(base) / client.github.replace("/", "+") / "repo"
    source = str(flat) if flat.exists() else f"{base}/{client.github}"
    _run(
        ["git", "clone", "-q", "-c", "advice.detachedHead=false", "--branch", f"v{client.version}",
         source, str(client.place)],
        f"{client.name} can't be cloned",
    )  # fmt: skip


def _unpack(client: Client) -> None:
    requirement = f"{client.name}=={client.version}"
    _run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d",
         str(PLACE), requirement],
        f"{requirement} can't be fetched",
    )  # fmt: skip
    with tarfile.open(PLACE / f"{client.name}-{client.version}.tar.gz") as archive:
        archive.extractall(PLACE)


def prepare(client: Client) -> None:
    """Fetches it and makes its environment, if that wasn't done. Errors: NotToBeHadError."""
    PLACE.mkdir(parents=True, exist_ok=True)
    venv, done = client.place / ".venv", client.place / ".ready"
    recipe = " ".join(client.packages)
    if done.exists() and done.read_text() == recipe:
        return
    if not client.place.exists():
        (_unpack if client.sdist_has_tests else _clone)(client)
    _run([sys.executable, "-m", "venv", "--clear", str(venv)], "no virtual environment")
    _run(
        [str(venv / "bin/python"), "-m", "pip", "install", "-q", *client.packages],
        f"what {client.name}'s tests need can't be installed",
    )
    done.write_text(recipe)


def run_tests(client: Client, host: str, port: int, prefix: Sequence[str] = ()) -> dict[str, str]:
    """Runs its tests against a server; returns each one's outcome: passed, failed or skipped."""
    report = PLACE / f"{client.name}-{host}.xml"
    report.unlink(missing_ok=True)
    originals = {}
    for name, old, new in client.edits:
        file = client.place / name
        originals[file] = text = file.read_text()
        assert old in text, f"{client.name}'s {name} is not as it was expected"
        file.write_text(text.replace(old, new.format(host=host, port=port)))
    arguments = [a.format(host=host, port=port) for a in client.arguments]
    argv = [*prefix, str(client.place / ".venv/bin/python"), "-m", "pytest", "-q", "-o", "addopts="]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    try:
        done = subprocess.run(
            [*argv, "-p", "no:cacheprovider", f"--junitxml={report}", *arguments],
            cwd=client.place, env=env, capture_output=True, text=True, check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip
    finally:
        for file, text in originals.items():
            file.write_text(text)
    assert report.exists(), done.stdout + done.stderr
    return _outcomes(report)


def _outcomes(report: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "skipped" if "skipped" in kinds else outcome
    return found
