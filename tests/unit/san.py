"""The C core and its helpers, built with the address and undefined-behaviour sanitizers.

``from tests.unit.san import ffi, lib`` in a test module; see tests/conftest.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def _runtime_is_loaded() -> bool:
    """True where this process was started with the sanitizer's runtime before everything else."""
    return "libasan.so" in Path("/proc/self/maps").read_text()


if not _runtime_is_loaded():
    pytest.skip(
        "needs the sanitizers' runtime loaded before Python: run `make test` "
        "(PYTEST_ARGS='tests/unit/test_x.py' for a part of it)",
        allow_module_level=True,
    )

from tests.unit import _san_core  # type: ignore[attr-defined]  # noqa: E402

ffi: Any = _san_core.ffi
lib: Any = _san_core.lib
