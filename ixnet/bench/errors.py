"""What can go wrong with a benchmark."""

from __future__ import annotations

from ixnet.control.errors import IxError


class BenchError(IxError):
    """A benchmark can't be run, or didn't end as it should; the message says why."""
