"""The server's C code under the sanitizers, on a dataplane that tests play (fake_dataplane.h)."""

from __future__ import annotations

from typing import Any

from tests.unit.san import ffi, lib

LISTENER = 2**64 - 1
SECOND_NS = 1_000_000_000


class Engine:
    """One worker. Options are fields of struct ix_mc_config."""

    def __init__(self, pool: int = 1024, arena: int = 512, **options: int) -> None:
        c = ffi.new("struct ix_mc_config *")
        lib.ix_mc_config_init(c)
        c.now_ns, c.wall_s, c.hash_key = 1, 1_800_000_000, 0x1234567890ABCDEF
        c.hash_power = 12
        for name, value in options.items():
            setattr(c, name, value)
        why = ffi.new("char[]", 320)
        self.mc = lib.ix_mc_new(c, why, 320)
        assert self.mc != ffi.NULL, ffi.string(why)
        self.fake = lib.ix_fake_new(pool, arena, 256, 256)
        self.fake.step_ns = 0
        self.server = lib.ix_mc_server_new(lib.ix_fake_app(self.fake), self.mc)
        assert self.server != ffi.NULL

    def close(self) -> None:
        """Ends it, and checks that all is as it must be then."""
        lib.ix_mc_server_free(self.server)
        self.check()
        lib.ix_fake_free(self.fake)
        lib.ix_mc_free(self.mc)

    def check(self) -> None:
        """The store's invariants and the API's rules."""
        wrong = lib.ix_mc_check(self.mc)
        assert wrong == ffi.NULL, ffi.string(wrong)
        violation = self.fake.violation
        assert violation == ffi.NULL, ffi.string(violation)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()

    def connect(self) -> Conn:
        """A client."""
        number = lib.ix_fake_knock(self.fake, LISTENER)
        assert number >= 0
        self.turn(2)
        return Conn(self, number)

    def turn(self, times: int = 1) -> None:
        """Runs cycles."""
        for _ in range(times):
            assert lib.ix_mc_server_turn(self.server, 0) >= 0

    def sleep(self, seconds: float) -> None:
        """Lets virtual time pass."""
        self.fake.now_ns += int(seconds * SECOND_NS)
        self.turn()

    def ask(self, data: bytes) -> bytes:
        """What a client gets that sends this and then closes."""
        conn = self.connect()
        conn.send(data)
        return conn.finish()

    @property
    def store(self) -> Any:
        """struct ix_mc."""
        return self.mc


class Conn:
    """A client's connection."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.seen = 0

    @property
    def c(self) -> Any:
        """struct ix_fake_conn."""
        return self.engine.fake.conns[self.number]

    def send(self, data: bytes, frame_bytes: int = 1448) -> None:
        """Sends all, as fast as the server takes it."""
        buffer = ffi.from_buffer("uint8_t[]", data)
        at, idle = 0, 0
        while at < len(data):
            done = lib.ix_fake_send(
                self.engine.fake, self.number, buffer + at, len(data) - at, frame_bytes
            )
            at += done
            self.engine.turn()
            self.ack()
            idle = 0 if done else idle + 1
            if self.c.fins == 2 or idle > 2000:
                return

    def ack(self, nbytes: int = 1 << 40) -> None:
        """Acknowledges what was sent."""
        lib.ix_fake_ack(self.engine.fake, self.number, nbytes)

    def read(self) -> bytes:
        """What came since the last time, with everything acknowledged."""
        idle = 0
        while idle < 3:
            before = self.c.got_bytes
            self.ack()
            self.engine.turn()
            # What is still to be handed to the server may bring an answer.
            busy = self.c.got_bytes != before or self.engine.fake.queued_count
            idle = 0 if busy else idle + 1
        got = bytes(ffi.buffer(self.c.got, self.c.got_bytes))[self.seen :] if self.c.got else b""
        self.seen += len(got)
        return got

    def talk(self, data: bytes, frame_bytes: int = 1448) -> bytes:
        """Sends, and reads what comes."""
        self.send(data, frame_bytes)
        return self.read()

    def finish(self) -> bytes:
        """Closes its half, reads to the end, and is gone."""
        lib.ix_fake_fin(self.engine.fake, self.number)
        got = self.read()
        assert self.c.fins == 2, "the server does not close"
        lib.ix_fake_die(self.engine.fake, self.number, 0)
        self.engine.turn(3)
        return got
