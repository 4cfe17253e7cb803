"""The event API's tests in the dune placement: Python and the event bases in ring 3, the shards in
ring 0. Each test is one of tests/event/test_dataplane.py, unchanged, in a process of its own.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["IX_EVENT_PLACEMENT"] = "dune"
from tests.event import test_dataplane as cases

# What of tests/event can't be run so, and why.
NOT_HERE = {
    "test_event.py": "its dataplane is a fake that plays events; there is no shard to be in ring 0",
    "test_buffer.py": "the same",
    "test_native.py": "its programs are C under the sanitizers, both ends in one of them",
}
# Of a seeded test so many; the others would show no more of the placement.
SEEDS = None if os.environ.get("IX_CPYTHON") == "all" else 3


def values(mark: pytest.Mark) -> Iterator[dict[str, Any]]:
    """What a parametrized test is run with."""
    names = mark.args[0]
    for value in itertools.islice(mark.args[1], SEEDS):
        yield {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


def every() -> Iterator[Any]:
    """The tests with their arguments."""
    for name, function in vars(cases).items():
        if name.startswith("test_"):
            marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
            for arguments in values(marks[0]) if marks else [{}]:
                label = "-".join([name.removeprefix("test_"), *map(str, arguments.values())])
                yield pytest.param(function, arguments, id=label)


def test_every_file_is_here_or_has_a_reason() -> None:
    there = {path.name for path in Path(cases.__file__).parent.glob("test_*.py")}
    assert there == {Path(cases.__file__).name, *NOT_HERE}


@pytest.mark.parametrize(("function", "arguments"), list(every()))
def test_in_ring_3(function: Callable[..., None], arguments: dict[str, Any]) -> None:
    sys.stdout.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(**arguments)
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"wait status {status:#x}\n{said}"
