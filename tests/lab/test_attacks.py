"""tests/dune/test_dataplane_attack.py on real NIC drivers in zero-copy mode, in the lab's virtual
machine (`make lab`): one NIC's application attacks, the other instance has the other NIC."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs real NIC drivers: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from tests.dune import test_dataplane_attack as cases
from tests.dune.conftest import note
from tests.dune.test_dataplane_attack import World, world_on
from tests.lab.wires import IGB, VIRTIO, NicLink

__all__ = ["note"]
globals().update({name: f for name, f in vars(cases).items() if name.startswith("test_")})
pytestmark = cases.pytestmark


@pytest.fixture(scope="module", params=[(IGB, VIRTIO), (VIRTIO, IGB)], ids=["igb", "virtio_net"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    attacked, other = (NicLink(wire) for wire in request.param)
    with world_on(attacked, other, tmp_path_factory.mktemp("attacks")) as made:
        assert "native zero-copy, dune" in made.attacked.printed()
        yield made
