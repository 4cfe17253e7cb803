"""Results in JSON: what was measured, how, and on what."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ixnet.bench.errors import BenchError
from ixnet.bench.machine import machine, versions

SCHEMA = "ixnet-bench/1"
KINDS = ("echo", "memcached", "connrate", "connections", "stream", "latency")


def make_result(
    kind: str,
    client: dict[str, Any],
    options: dict[str, Any],
    targets: Sequence[dict[str, Any]],
    command: Sequence[str] | None = None,
    stopped: str = "",
) -> dict[str, Any]:
    """A result file's content.

    targets: one dict a target with "label", "target" and what was measured of it: "runs" and
    "median"; "slo" and "sweep" where asked for. stopped: why it is only a part.
    """
    on = machine()
    return {
        "schema": SCHEMA,
        "kind": kind,
        "time": on.time,
        "command": list(command if command is not None else sys.argv),
        "versions": versions(),
        "machine": on.as_dict(),
        "client": client,
        "options": options,
        "targets": list(targets),
        "stopped": stopped,
    }


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file beside it. Errors: BenchError."""
    draft = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        yield draft
    except OSError as error:
        raise BenchError(
            f"{path} can't be written: {error.strerror}", "--json another file, or - to print it"
        ) from error


def check_writable(path: Path) -> None:
    """Before what takes long. Errors: BenchError."""
    with _draft(path) as draft:
        draft.touch()
        draft.unlink()


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes it, whole or not at all. Errors: BenchError."""
    with _draft(path) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
        draft.replace(path)


def read_result(path: Path) -> dict[str, Any]:
    """Errors: BenchError if it is no result of this schema."""
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise BenchError(f"{path} is no result of ixnet bench", f'its "schema" should be {SCHEMA}')
    return result
