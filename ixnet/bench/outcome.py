"""What a benchmark came to, whole or as far as it got."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ixnet.control.errors import IxError

INTERRUPTED = 130  # exit status, as shells have it
FAILED = 2
_MEASURED = ("runs", "slo", "sweep", "steps", "probes")


@dataclass
class Outcome:
    """facts: of the client. entries: one a target. stopped: why it ended before its time, "" if it
    did not; status: the process's, 0 if it did not."""

    entries: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    status: int = 0

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Around the measuring: what was measured before an error or ctrl-C is kept, and only if
        that is nothing the error goes on."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._keep("interrupted", INTERRUPTED):
                print("interrupted before anything was measured", file=sys.stderr)
                raise
        except IxError as error:
            if not self._keep(str(error), FAILED):
                raise

    def _keep(self, why: str, status: int) -> bool:
        self.entries[:] = [e for e in self.entries if any(map(e.get, _MEASURED))]
        self.stopped, self.status = why, status
        return bool(self.entries)
