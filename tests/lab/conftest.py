"""The closing report on what ran in the lab's guest."""

from __future__ import annotations

import os

import pytest

from tests.lab.guest import GUEST

# In the guest itself only the tests on NIC drivers make sense.
collect_ignore = ["test_dune.py", "test_images.py"] if os.environ.get("IX_LAB") == "1" else []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What the tests in the guest noted."""
    guest = config.stash.get(GUEST, None)
    if guest is not None and guest.results:
        terminalreporter.section("dune, in the lab's guest")
        for line in guest.summary():
            terminalreporter.write_line(line)
