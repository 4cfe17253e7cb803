"""What Python costs an event: `python -m tests.event.cost`.

An echo on ixnet.event runs on the fake dataplane (tests/native/fake_dataplane.c), which hands out a
batch of requests with each poll and takes the answers. Its own time, and that of the C side of the
loop, is measured by the same run with the callback done in C, and taken off.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

from ixnet._core import ffi, lib
from ixnet.event import EV_READ, EVLOOP_NONBLOCK, BufferEvent, EventBase, Listener

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include "tests/native/fake_dataplane.c"
#include "native/evloop.h"

void cost_setup(struct ix_fake *f, uint32_t bytes, uint32_t max)
{
    f->app.clock = NULL;
    f->generate_bytes = bytes;
    f->generate_max = max;
}
uint64_t cost_answered(struct ix_fake *f) { return f->answered; }
uint64_t cost_polls(struct ix_fake *f) { return f->polls; }
const char *cost_violation(struct ix_fake *f) { return f->violation; }

/* The same echo without Python. */
void cost_in_c(struct ix_evloop *loop, uint64_t ns)
{
    for (uint64_t end = ix_evloop_now(loop) + ns; ix_evloop_now(loop) < end;) {
        ix_evloop_turn(loop, 1000000);
        for (uint32_t i = 0; i < loop->read_count; i++) {
            struct ix_bev *bev = ix_evloop_at(loop, loop->read[i]);
            ix_evbuffer_add_buffer(ix_bev_output(bev), ix_bev_input(bev));
        }
    }
}
"""


def build(folder: Path) -> ctypes.CDLL:
    """Compiles the fake without sanitizers, with a few functions to set it up."""
    source = folder / "cost.c"
    source.write_text(SOURCE)
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(folder / "cost.so"), str(source)]
    command += [f"-I{ROOT / path}" for path in ("", "ixnet/dataplane", "ixnet", "tests/native")]
    library = ROOT / "ixnet"
    command += [f"-L{library}", "-lixnet", f"-Wl,-rpath,{library}"]
    subprocess.run(command, check=True)
    fake = ctypes.CDLL(str(folder / "cost.so"))
    for name in ("ix_fake_new", "ix_fake_app", "cost_answered", "cost_polls"):
        getattr(fake, name).restype = ctypes.c_uint64
    fake.cost_violation.restype = ctypes.c_char_p
    return fake


def run(fake: ctypes.CDLL, conns: int, batch: int, seconds: float, kind: str) -> float:
    """Measures ns a request, the fake included."""
    f = ctypes.c_uint64(fake.ix_fake_new(8192, 1024, 1024, 1024))
    base = EventBase(ffi.cast("struct ix_app *", fake.ix_fake_app(f)))
    base._listen = lambda *_: 0

    def move(bev: BufferEvent) -> None:
        bev.output.add_buffer(bev.input)

    def copy(bev: BufferEvent) -> None:
        bev.write(bev.read())

    def on_accept(_: Listener, bev: BufferEvent) -> None:
        bev.setcb(copy if kind == "copy" else move)
        bev.enable(EV_READ)

    listener = Listener(base, ("", 7), on_accept)
    for _ in range(conns):
        fake.ix_fake_knock(f, ctypes.c_uint64(lib.IX_EVLOOP_LISTENER | listener._id))
    base.loop(EVLOOP_NONBLOCK)
    base.loop(EVLOOP_NONBLOCK)
    fake.cost_setup(f, 64, batch)
    base.loopexit(seconds)
    start = time.thread_time()
    if kind == "c":
        fake.cost_in_c(
            ctypes.c_uint64(int(ffi.cast("uintptr_t", base._loop))),
            ctypes.c_uint64(int(seconds * 1e9)),
        )
    else:
        base.dispatch()
    spent = time.thread_time() - start
    violation = fake.cost_violation(f)
    assert violation is None, violation
    return float(spent / fake.cost_answered(f) * 1e9)


def main() -> None:
    """Prints a line a batch size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--conns", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fake = build(Path(folder))
        for batch in (1, 4, 16, 64):
            ns = {
                kind: min(
                    run(fake, args.conns, batch, args.seconds, kind) for _ in range(args.repeat)
                )
                for kind in ("c", "move", "copy")
            }
            print(
                f"{batch:3} requests a poll: C {ns['c']:5.0f} ns a request (fake included), Python "
                f"{ns['move'] - ns['c']:5.0f} ns more moving buffers, "
                f"{ns['copy'] - ns['c']:5.0f} ns more with read() and write()"
            )


if __name__ == "__main__":
    main()
