"""A native application: ix_app_main() of a shared object, run in each worker."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.runtime.conftest import Start
from tests.runtime.lab import ROOT, connect, echo_once, receive, run_to_end

# Echo by copying: what came is given back at once, and a copy is sent from the arena.
SOURCE = r"""
#include "native/app.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    char why[256];
    uint32_t next = 0;
    int n;
    if (argc != 2)
        return 7;
    if (ix_app_listen(app, NULL, (uint16_t)atoi(argv[1]), 5, 0, why, sizeof why) < 0) {
        fprintf(stderr, "%s\n", why);
        return 3;
    }
    while ((n = ix_app_poll(app, 100000000)) >= 0)
        for (int i = 0; i < n; i++) {
            struct ix_event *ev = &app->io->events[i];
            if (ev->type == IX_EV_KNOCK) {
                ix_app_call(app, IX_CALL_ACCEPT, ev->handle);
            } else if (ev->type == IX_EV_RECV && ev->bytes) {
                uint32_t frame = app->io->arena_frame + next++ % app->io->arena_frames;
                uint64_t to = ((uint64_t)frame << app->io->frame_shift) + app->io->tx_headroom;
                memcpy(app->io->umem + to, ix_app_payload(app, ev), ev->bytes);
                struct ix_call *send = ix_app_call(app, IX_CALL_SENDV, ev->handle);
                send->addr = to;
                send->bytes = ev->bytes;
                struct ix_call *done = ix_app_call(app, IX_CALL_RECV_DONE, ev->handle);
                done->addr = ((uint64_t)ev->frame << app->io->frame_shift) + ev->offset;
                done->bytes = ev->bytes;
            } else if (ev->type == IX_EV_RECV) {
                ix_app_call(app, IX_CALL_CLOSE, ev->handle);
            }
        }
    return 0;
}
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    directory = tmp_path_factory.mktemp("native")
    source, made = directory / "copy.c", directory / "copy.so"
    source.write_text(SOURCE)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-I", ROOT / "ixnet/dataplane",
         "-I", ROOT / "ixnet", source, "-o", made, "-L", ROOT / "ixnet", "-lixnet"],
        check=True,
    )  # fmt: skip
    return made


def test_native_application_serves_on_both_queues(lab: Lab, start: Start, app: Path) -> None:
    run = start(app, "7001").wait_ready()
    message = bytes(range(256)) * 4
    for _ in range(12):
        assert echo_once(lab, 7001, message) == message
    assert run.counters()["tcp_passive_opens"] == 12
    with connect(lab, 7001) as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        assert run.end() == 0
    assert run.errors() == ""


def test_native_applications_status_is_the_instances(lab: Lab, app: Path) -> None:
    status, _, err = run_to_end(lab, app)
    assert status == 7
    assert "exit status 7" in err


def test_native_application_is_told_why_it_can_not_listen(lab: Lab, app: Path) -> None:
    status, _, err = run_to_end(lab, app, "0")
    assert status == 3 and "port 0 is none (cure: name the port)" in err


def test_native_application_that_can_not_be_loaded_is_refused(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF and nothing more")
    status, _, err = run_to_end(lab, broken)
    assert status == 2
    assert "broken.so" in err and "cure: " in err and "Traceback" not in err
