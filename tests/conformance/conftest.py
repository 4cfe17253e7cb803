"""The two stacks that the exchanges run against."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conformance.exchange import UnderTest
from tests.conformance.linux import Linux
from tests.conformance.stack import Stack

LONG = os.environ.get("IX_CONFORMANCE") == "long"


@pytest.fixture(scope="module")
def stacks() -> Iterator[dict[str, UnderTest]]:
    """ixnet in virtual time, and the kernel in a namespace."""
    ours = Stack()
    linux = Linux()
    yield {"ixnet": ours, "linux": linux}
    linux.close()
    ours.check()
    ours.close()


@pytest.fixture(params=["ixnet", "linux"])
def stack(request: pytest.FixtureRequest, stacks: dict[str, UnderTest]) -> UnderTest:
    """Each of them in turn."""
    return stacks[request.param]


@pytest.fixture
def in_long_form() -> None:
    """For what takes real seconds."""
    if not LONG:
        pytest.skip("takes long: runs in `make conformance`")
