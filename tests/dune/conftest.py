"""What the tests of libdune share. They need a KVM that is fit for it, so they run in the lab's
guest; on the host tests/lab/test_dune.py boots that once and shows each of these tests as its own.

    make test PYTEST_ARGS='tests/lab/test_dune.py -k memory'      some of them, from the host

Fixtures (kit.py says more)
    run_program(NAME, ARGS...)  runs build/tests/dune/NAME, made of tests/dune/c/NAME.c
    sandbox(POLICY, ARGV...)    runs a program under build/dune-sandbox
    note(TEXT)                  a line that the closing report of `make test` shows

Importing a test file must work on the host too: it is done there to learn the tests' names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.dune import kit

IN_LAB = os.environ.get("IX_LAB") == "1"
if not IN_LAB:  # or `make test` would show hundreds of skips on a machine that can run none
    collect_ignore_glob = ["*"]

# The directory that the guest shares with the host: test_dune.py says what lies there.
_OUT = os.environ.get("IX_LAB_OUT")
OUT = Path(_OUT) if _OUT else None


# ---- fixtures --------------------------------------------------------------------------------


@pytest.fixture
def run_program() -> Callable[..., kit.Result]:
    """kit.run_program()."""
    return kit.run_program


@pytest.fixture
def sandbox(tmp_path: Path) -> Callable[..., kit.Result]:
    """kit.run_sandbox(), its policy kept in the test's own directory."""

    def run(policy: str, *argv: str, **more: object) -> kit.Result:
        return kit.run_sandbox(tmp_path, policy, *argv, **more)

    return run


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a line in the closing report, whether or not the test passes."""

    def write(text: str) -> None:
        request.node.user_properties.append(("note", text))
        print(text, flush=True)

    return write


# ---- between guest and host --------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves only the tests that the host asked for."""
    selected = OUT / "selected" if OUT else None
    if selected and selected.exists():
        wanted = set(selected.read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Names the tests to the host."""
    if path := os.environ.get("IX_DUNE_NAMES"):
        Path(path).write_text("".join(f"{item.nodeid}\n" for item in session.items))


def _say(line: dict[str, object]) -> None:
    if OUT:
        with (OUT / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """So that the host knows what was under way if the guest breaks down."""
    _say({"id": nodeid, "outcome": "started"})


_parts: list[pytest.TestReport] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test's result, once all of its parts (set-up, call, clearing up) are through."""
    _parts.append(report)
    if report.when == "teardown":
        _say(_result(_parts))
        _parts.clear()


def _result(parts: Iterable[pytest.TestReport]) -> dict[str, object]:
    parts = list(parts)
    # An outcome other than passed says why; of several the worst counts.
    failed = [part for part in parts if part.failed]
    skipped = [part for part in parts if part.skipped]
    outcome, text = "passed", ""
    if failed:
        sections = [f"---- {title} ----\n{body}" for title, body in failed[-1].sections]
        outcome, text = "failed", "\n".join([*(part.longreprtext for part in failed), *sections])
    elif skipped and hasattr(skipped[0], "wasxfail"):
        outcome, text = "xfailed", skipped[0].wasxfail
    elif skipped:
        where = skipped[0].longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        outcome, text = "skipped", reason.removeprefix("Skipped: ")
    notes = [text for name, text in parts[-1].user_properties if name == "note"]
    seconds = sum(part.duration for part in parts)
    return {
        "id": parts[0].nodeid,
        "outcome": outcome,
        "text": text,
        "notes": notes,
        "seconds": round(seconds, 2),
    }
