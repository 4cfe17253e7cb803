"""Goodput on a bad wire beside Linux's: `python -m tests.interop.goodput`.

A stream from the dataplane and one from the kernel beside it, in turns, over the same impaired wire
to the same receiver, the client's kernel; both with CUBIC. Segmentation offloads are off, or one
lost frame of the kernel's would be many segments. Prints each run, the medians and their ratio.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from ixnet.control.lab import Lab, switch_offloads
from tests.interop.kit import (
    MIB,
    Service,
    connect,
    lab_config,
    listening,
)
from tests.interop.test_impaired import SERVER_IP, wire

KERNEL_PORT = 9000
OFFLOADS = ("tx-tcp-segmentation", "tx-generic-segmentation", "rx-gro")
PATIENCE_S = 300.0


def taken_mbits(sock: socket.socket, n: int) -> float:
    """Reads n bytes to the stream's end; Mbit/s from the first of them on."""
    got, began = 0, 0.0
    while data := sock.recv(1 << 16):
        began = began or time.monotonic()
        got += len(data)
    assert got == n, f"{got} of {n} bytes"
    return got * 8 / (time.monotonic() - began) / 1e6


def of_dataplane(far: Lab, n: int) -> float:
    """One stream of the dataplane's."""
    with connect(far, f"source {n} 1", ip=SERVER_IP, timeout_s=PATIENCE_S) as sock:
        return taken_mbits(sock, n)


def of_kernel(near: Lab, far: Lab, n: int) -> float:
    """One stream of the kernel's."""

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(bytes(n))

    with listening(near.cfg.server_netns, port=KERNEL_PORT) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with connect(far, port=KERNEL_PORT, ip=SERVER_IP, timeout_s=PATIENCE_S) as sock:
            mbits = taken_mbits(sock, n)
        server.join()
        return mbits


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", default="0.01", help="share of frames lost, both ways")
    parser.add_argument("--delay-ms", default="10", help="one way")
    parser.add_argument("--mib", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    n, runs = given.mib * MIB, {"ixnet": [], "linux": []}  # type: dict[str, list[float]]
    with ExitStack() as stack:
        near, far = (
            stack.enter_context(Lab(lab_config(queues=1, **ends)))
            for ends in (
                {"client_ip": "10.99.1.2/24", "client_mac": "02:69:78:00:00:03"},
                {"server_ip": "10.99.2.1/24", "server_mac": "02:69:78:00:00:04"},
            )
        )
        switch_offloads(near.cfg.server_netns, near.cfg.server_if, False, *OFFLOADS)
        switch_offloads(far.cfg.client_netns, far.cfg.client_if, False, *OFFLOADS)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ixnet-goodput-")))
        stack.enter_context(Service(near, place))
        for seed in range(1, given.rounds + 1):
            # As one word: all that was asked for need not happen in each run.
            options = (f"--loss={given.loss}", f"--delay-ms={given.delay_ms}", f"--seed={seed}")
            for who, mbits in runs.items():
                with wire(near, far, *options):
                    mbits.append(
                        of_dataplane(far, n) if who == "ixnet" else of_kernel(near, far, n)
                    )
                print(f"{seed} {who}: {mbits[-1]:.2f} Mbit/s", flush=True)
    ours, theirs = (statistics.median(mbits) for mbits in runs.values())
    print(f"medians: ixnet {ours:.2f}, linux {theirs:.2f} Mbit/s: {ours / theirs:.2f}x")


if __name__ == "__main__":
    main()
