"""ixnet.shard in the dune placement, call by call, UDP among them: tests/runtime/test_shard.py with
the shard in ring 0 and the UMEM on huge pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ixnet.control.lab import Lab
from tests.runtime import test_shard as cases
from tests.runtime.test_shard import exercise, lab, peer

# Milliseconds matter to it, and this machine is emulated.
NOT_HERE = ("test_timer_fires_once_in_time_and_a_cancelled_one_does_not",)
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
PAGES = 16
PATIENCE_S = 900.0
DUNE = ("--placement", "dune", "--frames", "4096")
pytestmark = pytest.mark.timeout(3600)

__all__ = ["lab", "peer"]
globals().update(
    {name: f for name, f in vars(cases).items() if name[:5] == "test_" and name not in NOT_HERE}
)


@pytest.fixture(scope="module")
def huge_pages() -> Iterator[None]:
    """Some are set aside."""
    before = NR_HUGEPAGES.read_text()
    NR_HUGEPAGES.write_text(str(PAGES))
    assert int(NR_HUGEPAGES.read_text()) == PAGES
    yield
    NR_HUGEPAGES.write_text(before)


@pytest.fixture(scope="module")
def seen(lab: Lab, peer: str, huge_pages: None) -> tuple[dict[str, Any], list[str]]:
    return exercise(lab, peer, *DUNE, "--huge-pages", "yes", patience_s=PATIENCE_S)


@pytest.fixture(scope="module")
def report(seen: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
    return seen[0]


def test_its_umem_lies_on_huge_pages(seen: tuple[dict[str, Any], list[str]]) -> None:
    assert any("huge pages UMEM yes" in line for line in seen[1]), seen[1]


def test_huge_pages_that_are_not_there_are_an_error(lab: Lab) -> None:
    words = ["--no-restart-workers", *DUNE, "--huge-pages", "yes"]
    before = NR_HUGEPAGES.read_text()
    NR_HUGEPAGES.write_text("0")
    try:
        status, _, err = cases.run_to_end(
            lab, cases.APPS / "exercise.py", options=words, patience_s=PATIENCE_S
        )
    finally:
        NR_HUGEPAGES.write_text(before)
    assert status == 2
    assert "no huge pages for 12 MiB of UMEM" in err and "vm.nr_hugepages" in err, err
