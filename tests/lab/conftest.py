"""The guest in which tests/dune runs, beside everything else, and the closing report on it."""

from __future__ import annotations

import os

import pytest

from tests.lab.guest import GUEST, Guest

# Rows of the table of exits (test_protected.py).
EXITS = pytest.StashKey[list[str]]()
EXITS_HEAD = (
    "driver     kick   outstanding    exits    kicks  ring0  ring3  linux  messages  "
    "(exits and kicks a 1,000 messages)"
)

# In the guest itself only the tests on NIC drivers make sense.
collect_ignore = (
    ["test_dune.py", "test_images.py", "test_taps.py"] if os.environ.get("IX_LAB") == "1" else []
)


def pytest_configure(config: pytest.Config) -> None:
    """Room for what tests tell."""
    config.stash[EXITS] = []


def _in_guest(item: pytest.Item) -> bool:
    return item.path.name == "test_dune.py"


def _name_there(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return call.params.get("dune") if call else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Results of the guest are waited for last: by then most have come."""
    items.sort(key=_in_guest)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Boots at once, where its tests are among those selected: the emulator runs on one core, at a
    low priority, while the other tests run here."""
    if session.config.option.collectonly:
        return
    there = [item for item in session.items if _in_guest(item)]
    if there:
        selected = [name for item in there if (name := _name_there(item))]
        session.config.stash[GUEST] = Guest(selected)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """However the session ends, the guest does too."""
    guest = session.config.stash.get(GUEST, None)
    if guest is not None:
        guest.stop()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What the tests in the guest noted."""
    guest = config.stash.get(GUEST, None)
    if guest is not None and guest.results:
        terminalreporter.section("dune, in the lab's guest")
        for line in guest.summary():
            terminalreporter.write_line(line)
    if rows := config.stash[EXITS]:
        terminalreporter.section("exits and cycles of an echo in the dune placement")
        for line in (EXITS_HEAD, *rows):
            terminalreporter.write_line(line)
