"""Every test of tests/dune, each as a test of its own here: they run in one boot of the lab.

They need a KVM that is fit for libdune; the lab's guest has one, emulated like everything in it.
"""

from __future__ import annotations

import pytest

from tests.lab.guest import GUEST, LIMIT_S, Guest, names

SET_UP_S = 600.0
# The first that is waited for may wait for all of it. The lab keeps to LIMIT_S by itself.
pytestmark = pytest.mark.timeout(SET_UP_S + LIMIT_S + 60)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test here for each test there."""
    if "dune" in metafunc.fixturenames:
        known = names()
        plain = [name.removeprefix("tests/dune/") for name in known]
        metafunc.parametrize("dune", known, ids=plain)


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Guest:
    """The boot, with the tests that were selected here; conftest.py began it."""
    return request.config.stash[GUEST]


def test_in_guest(dune: str, guest: Guest) -> None:
    """A test of tests/dune passed in the guest."""
    result = guest.result(dune)
    if result.outcome == "skipped":
        pytest.skip(f"in the guest: {result.text}")
    if result.outcome == "xfailed":
        pytest.xfail(result.text)
    if result.outcome != "passed":
        pytest.fail(f"{dune} in the guest:\n{result.text}", pytrace=False)


def test_guest_ends_after_the_last_test(guest: Guest) -> None:
    """The guest's pytest came to its end by itself, having run something."""
    status = guest.end()
    if not guest.results and status != 0:
        guest.result("its first test")
    # 0: all passed; 1: a test failed, which is shown above.
    if not guest.results or status not in (0, 1):
        pytest.fail(f"exit status {status}:\n{guest.log()}", pytrace=False)
