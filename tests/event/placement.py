"""Where the shards of these tests lie: in this process, built with the sanitizers; or, in the lab's
guest with IX_EVENT_PLACEMENT=dune, in ring 0 (tests/dune/test_event.py).
"""

from __future__ import annotations

import os
from typing import Any

event: Any
Pair: Any
if os.environ.get("IX_EVENT_PLACEMENT") == "dune":
    from ixnet import event
    from tests.dune.event_pair import Pair
else:
    from tests.event.pair import Pair
    from tests.event.sanitized import event

__all__ = ["Pair", "event"]
