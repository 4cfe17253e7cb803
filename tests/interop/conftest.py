"""A lab and a service for the tests of a module:

namespace ixtPID-N-srv                         namespace ixtPID-N-cli
ixs0 10.77.0.1/24 ------- veth, 2 queues ------- ixc0 10.77.0.2/24
ixnet run commands.py on port 7070              the kernel's own sockets
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import Service, lab_config

HARD_LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test of this directory may take longer than this."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(HARD_LIMIT_S))


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> None:
    """A thousand connections need more than the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two queues; taken down with everything that runs in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(lab_config()) as made:
        yield made


@pytest.fixture(scope="module")
def service(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """commands.py on both queues. At the end of the module it must end in order, silently."""
    with Service(lab, tmp_path_factory.mktemp("service")) as running:
        yield running
