"""A TCP echo server on the dataplane: ixnet run --interface IF apps/echo.py -- [--port N]"""

from __future__ import annotations

import argparse

from ixnet.event import BEV_EVENT_EOF, EV_READ, BufferEvent, EventBase, Listener


def on_read(bev: BufferEvent) -> None:
    """Sends back what came, from where it lies."""
    bev.output.add_buffer(bev.input)


def on_event(bev: BufferEvent, events: int) -> None:
    """The peer is done: deliver what is left. Anything else ends the connection too."""
    bev.close() if events & BEV_EVENT_EOF else bev.abort()


def on_accept(_: Listener, bev: BufferEvent) -> None:
    """A peer has connected."""
    bev.setcb(on_read, None, on_event)
    bev.enable(EV_READ)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--address", default="", help="dotted IPv4 address (every local one)")
parser.add_argument("--port", type=int, default=7)
arguments = parser.parse_args()

base = EventBase()
listener = Listener(base, (arguments.address, arguments.port), on_accept)
base.dispatch()
