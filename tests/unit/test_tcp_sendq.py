"""tcp/sendq: borrowed memory between SENDV and SENT."""

from __future__ import annotations

from tests.unit.peer import opened


def test_queue_emptied_then_longer_data_is_sent_from_its_start() -> None:
    # Sent in place, acknowledged, and its extent used again for more than it held before.
    stack, peer, handle = opened()
    stack.sendv(handle, b"short")
    peer.expect("PA", b"short")
    peer.send("A")
    stack.sendv(handle, b"something longer")
    peer.expect("PA", b"something longer", seq=5)
