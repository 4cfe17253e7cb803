"""tests/dune/test_deaths.py on real NIC drivers in zero-copy mode, in the lab's virtual machine
(`make lab`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs real NIC drivers: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from tests.dune import test_deaths as cases
from tests.dune.conftest import note
from tests.dune.test_deaths import Scene, scene_on, test_death_is_told_and_stays_alone
from tests.lab.wires import IGB, VIRTIO, NicLink

__all__ = ["note", "test_death_is_told_and_stays_alone"]
pytestmark = cases.pytestmark


@pytest.fixture(scope="module", params=[IGB, VIRTIO], ids=lambda wire: wire.driver)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with scene_on(NicLink(request.param), tmp_path_factory.mktemp("deaths")) as made:
        assert "native zero-copy, dune" in made.dataplane.printed()
        yield made
