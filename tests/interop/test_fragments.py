"""UDP datagrams larger than the MTU from the kernel, on a shared address and on one of our own."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from tests.interop.kit import APPS, PATIENCE_S, Service, kernel_socket, lab_config, payload, until

PORT, KERNEL_PORT = 7072, 7073
OWN4, OWN6 = "10.77.0.100", "fd77:6978::100"
SHARED4, SHARED6 = "10.77.0.1", "fd77:6978::1"
HELLO = b"hello"
LENGTHS = (1400, 1453, 1473, 2944, 4000, 9000, 30_000, 65_487)


@contextmanager
def digests(place: Path, *options: str) -> Iterator[Service]:
    """udp_digest.py on the server's end of a lab of its own."""
    with (
        Lab(lab_config(queues=2)) as lab,
        Service(lab, place, APPS / "udp_digest.py", [str(PORT)], options) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """On addresses that only the dataplane has."""
    options = ["--own-address", f"{OWN4}/24", "--own-address", f"{OWN6}/64"]
    with digests(tmp_path_factory.mktemp("own"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """On the kernel's addresses."""
    with digests(tmp_path_factory.mktemp("shared")) as running:
        yield running


def answer_to(message: bytes) -> str:
    """What udp_digest.py says."""
    return f"{len(message)} {hashlib.sha256(message).hexdigest()}"


def greet(sock: socket.socket) -> None:
    """Sends until the shard that this socket's datagrams come to has found our MAC."""
    sock.settimeout(0.2)
    for _ in range(500):
        sock.send(HELLO)
        with suppress(TimeoutError):
            assert sock.recv(200).decode() == answer_to(HELLO)
            return
    raise AssertionError("no datagram was answered")


def exchange(service: Service, address: str) -> None:
    """Each length twice, from several ports."""
    before = service.counters()["ip_reassembled"]
    for n in range(2):
        with kernel_socket(service.lab.cfg.client_netns, address, socket.SOCK_DGRAM) as sock:
            sock.connect((address, PORT))
            greet(sock)
            sock.settimeout(PATIENCE_S)
            for length in LENGTHS:
                message = payload(length, n)
                sock.send(message)
                while (said := sock.recv(200).decode()) == answer_to(HELLO):
                    pass  # a late one
                assert said == answer_to(message)
    in_fragments = 2 * sum(length > (1452 if ":" in address else 1472) for length in LENGTHS)
    until("the count", lambda: service.counters()["ip_reassembled"] - before == in_fragments)
    service.wait_quiet()


@pytest.mark.parametrize("address", [OWN4, OWN6])
def test_datagrams_in_fragments_to_an_own_address(own: Service, address: str) -> None:
    exchange(own, address)


@pytest.mark.parametrize("address", [SHARED4, SHARED6])
def test_datagrams_in_fragments_to_a_shared_address(shared: Service, address: str) -> None:
    exchange(shared, address)


@pytest.mark.parametrize("address", [SHARED4, SHARED6])
def test_kernels_datagrams_in_fragments_stay_the_kernels(shared: Service, address: str) -> None:
    with (
        kernel_socket(shared.lab.cfg.server_netns, address, socket.SOCK_DGRAM) as kernels,
        kernel_socket(shared.lab.cfg.client_netns, address, socket.SOCK_DGRAM) as sock,
    ):
        kernels.bind((address, KERNEL_PORT))
        kernels.settimeout(PATIENCE_S)
        for length in LENGTHS:
            message = payload(length, 3)
            sock.sendto(message, (address, KERNEL_PORT))
            assert kernels.recv(70_000) == message
