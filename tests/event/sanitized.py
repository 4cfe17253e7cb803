"""ixnet.event on the C side that is built with sanitizers, and on the fake dataplane.

`from tests.event.sanitized import event, Server` gives the module as tests see it. The package's
own module, on ixnet._core, is left as it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import ixnet
from tests.unit import san
from tests.unit.evfake import Fake
from tests.unit.san import ffi, lib

_NAMES = ("ixnet._core", "ixnet.evbuffer", "ixnet.event")


def _load() -> Any:
    saved = {name: sys.modules.pop(name, None) for name in _NAMES}
    attributes = {name: getattr(ixnet, name.split(".")[1], None) for name in _NAMES}
    sys.modules["ixnet._core"] = san
    try:
        return importlib.import_module("ixnet.event")
    finally:
        for name in _NAMES:
            sys.modules.pop(name, None)
            if saved[name] is not None:
                sys.modules[name] = saved[name]
            if attributes[name] is not None:
                setattr(ixnet, name.split(".")[1], attributes[name])
            elif hasattr(ixnet, name.split(".")[1]):
                delattr(ixnet, name.split(".")[1])


event = _load()


class Server:
    """An EventBase on a fake dataplane, with a listener; tests play the peers.

    Errors that callbacks raise end the test, unless it sets base.on_error.
    """

    def __init__(self, on_accept: Callable[[Any, Any], object] | None = None, **fake: int) -> None:
        self.fake = Fake(**fake)
        self.base = event.EventBase(self.fake.app)
        self.base._listen = lambda *_: 0
        self.base.on_error = self._raise
        self.accepted: list[Any] = []
        self._on_accept = on_accept
        self.listener = event.Listener(self.base, ("", 7), self._accept)

    @staticmethod
    def _raise(_: Any, error: Exception) -> None:
        raise error

    def _accept(self, listener: Any, bev: Any) -> None:
        self.accepted.append(bev)
        if self._on_accept:
            self._on_accept(listener, bev)

    def connect(self) -> tuple[int, Any]:
        """A peer connects: its number, and the server's BufferEvent."""
        conn = self.fake.knock(self.listener._id)
        self.turn(2)
        return conn, self.accepted[-1]

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.base.loop(event.EVLOOP_NONBLOCK)
            self.fake.check()
            wrong = lib.ix_evloop_check(self.base._loop)
            assert not wrong, ffi.string(wrong)

    def end(self) -> None:
        """Closes what is open; nothing may be left."""
        for bev in list(self.base._table):
            bev.abort()
        self.turn(4)
        loop = self.base._loop
        assert (loop.bev_count, loop.attached) == (0, 0)
        assert lib.ix_fake_frames_lent(self.fake.c) == 0
        assert loop.pool.arena_free_count == self.fake.c.io.arena_frames
        assert loop.pool.lent_bytes == 0
