"""A lab and a server for the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ixnet.control.lab import Lab, LabConfig
from tests.memcached.kit import Server, serving


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two queues; taken down with everything that runs in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"mc{os.getpid() % 100000}")) as made:
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Server]:
    """With UDP; ends in order, silently."""
    with serving(lab, "-U", "11211") as running:
        yield running
