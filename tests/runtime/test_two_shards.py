"""What two shards of one instance do together."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.runtime.conftest import Start
from tests.runtime.lab import connect, receive, until

TCP_PORT = 9001


def test_outgoing_connections_of_two_shards_come_back_to_their_own(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    with in_netns(lab.cfg.client_netns):
        listener = socket.create_server((lab.facts.client.ip, TCP_PORT), backlog=64)
    app = tmp_path / "many.py"
    app.write_text(
        "import sys, time\n"
        "from ixnet.shard import EV_CONNECTED, Shard\n"
        "shard = Shard()\n"
        "for i in range(20):\n"
        f"    shard.connect('{lab.facts.client.ip}', {TCP_PORT}, cookie=i)\n"
        "up, end = 0, time.monotonic() + 60\n"
        "while up < 20 and time.monotonic() < end:\n"
        "    batch = shard.poll(10_000_000)\n"
        "    for kind, status in zip(batch.types, batch.statuses):\n"
        "        up += kind == EV_CONNECTED and status == 0\n"
        "print(f'up {up} of shard {shard.shard_id}')\n"
    )
    with listener:
        run = start(app)
        assert run.wait() == 0, run.errors()
    assert run.process.stdout is not None
    said = run.process.stdout.read()
    assert "up 20 of shard 0" in said and "up 20 of shard 1" in said, said


def test_own_address_answers_beside_the_kernels(lab: Lab, start: Start) -> None:
    run = start(options=["--own-address", "10.77.0.50/24"]).wait_ready()
    assert any("10.77.0.50/24" in line for line in run.said)

    def echoes() -> bool:
        try:
            with in_netns(lab.cfg.client_netns):
                sock = socket.create_connection(("10.77.0.50", 7777), timeout=5)
            with sock:
                sock.sendall(b"x")
                return receive(sock, 1) == b"x"
        except OSError:
            return False

    # ARP is answered by the dataplane itself, on whichever queue the question comes.
    assert until("the own address", echoes)
    # The kernel's own address has no such service, and is not taken over.
    with pytest.raises(ConnectionRefusedError):
        connect(lab)
    assert run.end() == 0
