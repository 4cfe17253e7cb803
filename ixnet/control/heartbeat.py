"""Whether a shard still runs cycles: an application that does not come back to its loop is seen.

A worker with nothing to do sleeps a tenth of a second at most before its next cycle (native/app.c).
So when the last one was seconds ago the application holds it up: it spins, or waits for something.
Time that the worker waited for its core, on a machine that has too much to do, is not counted, nor
is time in which the control plane did not look either: a virtual machine may stop as a whole.
"""

from __future__ import annotations

from pathlib import Path

STALLED_S = 2.0
# From here on it is looked at closely.
_SUSPECT_NS = 300_000_000


def _waited_ns(pid: int) -> int:
    """How long the process's first thread has waited for a core so far; 0 where nobody says."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


class Heartbeat:
    """Of one worker. stalled_s: for how long it has run no cycle; 0: it does."""

    def __init__(self) -> None:
        self.stalled_s = 0.0
        self._cycle_ns = -1
        self._from_ns = 0
        self._waited_ns = 0

    def look(self, pid: int, cycle_ns: int, now_ns: int) -> str:
        """To be called several times a second. cycle_ns: when the last cycle was, CLOCK_MONOTONIC;
        0: none yet. Returns what there is to tell the operator now, in words, or ""."""
        age_ns = now_ns - cycle_ns
        if not cycle_ns or age_ns < _SUSPECT_NS:
            return self._runs()
        if cycle_ns != self._cycle_ns:
            recovered = self._runs()
            self._cycle_ns, self._waited_ns = cycle_ns, _waited_ns(pid)
            self._from_ns = max(cycle_ns, now_ns - 2 * _SUSPECT_NS)
            return recovered
        held_s = (now_ns - self._from_ns - (_waited_ns(pid) - self._waited_ns)) / 1e9
        if held_s < STALLED_S:
            return ""
        news = not self.stalled_s
        self.stalled_s = held_s
        return self.text() if news else ""

    def text(self) -> str:
        """The trouble, in words; "": none."""
        if not self.stalled_s:
            return ""
        return (
            f"has run no cycle for {self.stalled_s:.0f} s: its application does not come back to "
            "its loop, so its connections stand still; others go on"
        )

    def _runs(self) -> str:
        stalled_s, self.stalled_s = self.stalled_s, 0.0
        return f"runs cycles again, after {stalled_s:.1f} s" if stalled_s else ""
