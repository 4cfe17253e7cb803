"""Exits and shares of cycles of an echo in the dune placement, as tables in the closing report.

Everything is emulated here, so cycles tell shares alone, and those roughly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.common import run_load
from tests.dune.dataplane import ECHO, Dataplane, Veth

PORT = 7000
OUTSTANDING = (1, 8, 64)
SECONDS = 1.5
SHARES = ("ring0", "ring3", "linux")
pytestmark = pytest.mark.timeout(3600)


def _measure(dataplane: Dataplane, link: Veth, connections: int) -> dict[str, Any]:
    """What the counters went up by, and how many messages were echoed."""
    before = dataplane.worker(0)["guest"]
    report = run_load(
        link.lab, "echo", dataplane.host, PORT, cpu=None, connections=connections, bytes=64,
        seconds=SECONDS, warmup=0,
    )  # fmt: skip
    after = dataplane.worker(0)["guest"]
    assert report["ok"], report
    facts = {name: after[name] - before[name] for name in after if not name.startswith("percent")}
    return facts | {"messages": report["completed"]}


@pytest.mark.parametrize("kick", ["exit", "thread"])
def test_exits_and_cycles(tmp_path: Path, note: Callable[[str], None], kick: str) -> None:
    options = ("--busy-poll", "--kick", kick)
    args = ("--port", str(PORT))
    link = Veth("exits", 1)
    with Dataplane(link, tmp_path / "log", ECHO, args, *options) as dataplane:
        dataplane.wait_ready()
        note(f"kick by {kick}; outstanding, exits and kicks a 1,000 messages, {', '.join(SHARES)}")
        for outstanding in OUTSTANDING:
            found = _measure(dataplane, link, outstanding)
            messages, cycles = found["messages"], sum(found[f"cycles_{s}"] for s in SHARES)
            rates = [1000 * found[name] / messages for name in ("exits", "kicks")]
            shares = [f"{100 * found[f'cycles_{s}'] / cycles:.0f}%" for s in SHARES]
            note(f"{outstanding:3} {rates[0]:8.1f} {rates[1]:8.1f}  {' '.join(shares)}")
            assert found["kicks"] <= found["module_calls"], "more than one kick a cycle"
            assert messages > outstanding
            if kick == "thread":
                assert found["kicks"] == 0
