"""What can go wrong with a benchmark."""

from __future__ import annotations

from ixnet.control.errors import IxError


class BenchError(IxError):
    """A benchmark can't be run, or didn't end as it should; the message says why."""


# What a client says of a server, and what to do about it.
_CURES = (
    ("Connection refused", "start the server there, or check the port; --wait S waits for it"),
    ("no connection opened", "check address, route and firewall; is there such a machine?"),
    ("No route to host", "check address, route and firewall; is there such a machine?"),
    ("bind to an address of --source", "give addresses that an interface here has, or add them"),
    ("Network is unreachable", "check the address and the route to it"),
    ("nothing moved", "see what the server is doing; --timeout S is more patient"),
    ("the server closed it", "see the server's log: why does it close connections?"),
    ("the server closed the connection", "see the server's log: why does it close connections?"),
    ("Connection reset by peer", "see the server's log: why does it reset connections?"),
    ("differs from what", "is this a server of that protocol? echo servers send all back as it is"),
    ("no reply to what was asked", "is this a memcached server?"),
    ("more came back", "is this a server of that protocol? echo servers send all back as it is"),
    ("replies are still missing", "a lower --rate, or a longer --timeout"),
    (
        "no reply came back",
        "is there an echo server for this protocol? --timeout S is more patient",
    ),
    ("Too many open files", "a higher ulimit -n, or --client ixnet"),
    ("no memory", "fewer --connections or --items"),
)


def failure(text: str) -> BenchError:
    """The error for what a client of ours said, with its cure as far as one is known."""
    said, there, cure = text.partition(" (cure: ")
    if there:
        return BenchError(said, cure.strip().removesuffix(")"))
    return BenchError(text, next((cure for part, cure in _CURES if part in text), ""))
