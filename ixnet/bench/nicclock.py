"""A NIC's own clock for the time of a measurement: whether it has one, its stamping on and off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ixnet.bench.client import Client, interface_to
from ixnet.control.ethtool import (
    set_stamp_config,
    stamp_all,
    stamp_config,
    timestamp_info,
)


@dataclass(frozen=True)
class NicClock:
    """path: of its clock, None: there is none to use. received, transmitted: why it stamps nothing
    in that direction, "" if it does."""

    path: Path | None
    received: str = ""
    transmitted: str = ""

    @classmethod
    def none(cls, why: str) -> NicClock:
        """There is none, for this reason."""
        return cls(None, why, why)


def find_clock(interface: str, devices: Path = Path("/dev")) -> NicClock:
    """What the driver says, and whether its clock can be opened."""
    try:
        info = timestamp_info(interface)
    except OSError as error:
        return NicClock.none(f"{interface} tells of no timestamps: {error.strerror}")
    if info.phc is None:
        return NicClock.none(f"{interface} has no clock of its own (ethtool -T)")
    path = devices / f"ptp{info.phc}"
    try:
        path.open("rb").close()
    except OSError as error:
        return NicClock.none(f"{path}, the clock of {interface}: {error.strerror}")
    return NicClock(
        path,
        "" if info.receive_all else f"{interface} does not stamp every frame that comes in",
        "" if info.transmit else f"{interface} does not stamp what it sends",
    )


@contextmanager
def stamping(client: Client, host: str) -> Iterator[NicClock]:
    """Makes the client's NIC stamp all that it receives and sends, and gives back what it did
    before. host: whom the client talks to, for the interface where it names none."""
    with client.inside():
        interface = client.interface or interface_to(host)
        clock = find_clock(interface) if interface else NicClock.none(f"no route to {host}")
        before = None
        if clock.path is not None:
            assert interface is not None
            try:
                before = stamp_config(interface)
                set_stamp_config(
                    interface, stamp_all(received=not clock.received, sent=not clock.transmitted)
                )
            except OSError as error:
                why = f"stamping by {interface} can't be turned on: {error.strerror}"
                clock = NicClock.none(why)
    try:
        yield clock
    finally:
        if before is not None and interface is not None:
            with client.inside(), suppress(OSError):
                set_stamp_config(interface, before)
