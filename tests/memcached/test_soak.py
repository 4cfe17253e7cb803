"""memaslap, which verifies every value that it reads, over a wire that loses, doubles, reorders and
corrupts frames. IX_MEMCACHED_SOAK: seconds (make memcached-soak: 600)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import lab_config
from tests.interop.test_impaired import SERVER_IP, wire
from tests.memcached.kit import in_client, serving

SECONDS = int(os.environ.get("IX_MEMCACHED_SOAK", "4"))
BAD = ["--loss", "0.01", "--reorder", "0.02", "--duplicate", "0.005", "--corrupt", "0.005"]


@pytest.fixture
def ends() -> Iterator[tuple[Lab, Lab]]:
    """The server's lab and the client's, each with an end of the wire."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    near = lab_config(queues=1, client_ip="10.99.1.2/24", client_mac="02:69:78:00:00:03")
    far = lab_config(queues=1, server_ip="10.99.2.1/24", server_mac="02:69:78:00:00:04")
    with Lab(near) as server_end, Lab(far) as client_end:
        yield server_end, client_end


@pytest.mark.timeout(SECONDS + 600)
def test_values_are_whole_over_a_bad_wire(ends: tuple[Lab, Lab]) -> None:
    near, far = ends
    load = ["memcaslap", "-s", f"{SERVER_IP}:11211", "-T", "1", "-c", "16", "-w", "10k"]
    load += ["-t", f"{SECONDS}s", "-v", "1.0", "-X", "3000"]
    with serving(near, "-m", "64"), wire(near, far, *BAD, "--seed", "7"):
        run = in_client(far, load, SECONDS + 300)
    counts = dict(re.findall(r"^(\w+): (\d+)$", run.stdout, flags=re.M))
    assert int(counts["cmd_get"]) > SECONDS, run.stdout
    assert (counts["verify_misses"], counts["verify_failed"]) == ("0", "0"), run.stdout
