"""A lab for the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from ixnet.control.lab import Lab, LabConfig
from tests.runtime.lab import APPS, ECHO_PORT, Run


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two queues; made for the module, taken down with everything that runs in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rt{os.getpid()}")) as made:
        yield made


class Start(Protocol):
    """Starts an instance that is ended, if it still runs, when the test is over."""

    def __call__(self, app: Path = ..., *args: str, **more: Any) -> Run: ...


@contextmanager
def started(lab: Lab) -> Iterator[Start]:
    """What the fixture `start` is, for a lab of the test's own."""
    runs: list[Run] = []

    def begin(app: Path = APPS / "echo.py", *args: str, **more: Any) -> Run:
        run = Run(lab, app, args or (str(ECHO_PORT),), **more)
        runs.append(run)
        return run

    yield begin
    lab.stop(*(run.process for run in runs))


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    """Starts `ixnet run` in the lab: the echo application, unless another is named."""
    with started(lab) as begin:
        yield begin
