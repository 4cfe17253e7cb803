"""One NIC, one address, two stacks: the kernel's services beside the dataplane's, and neighbours.

                            ixs0 10.77.0.1                         ixc0 10.77.0.2
port 7070 commands.py, UDP 7071 udp_echo.py (dataplane)  ---- veth ---- the kernel's client
any other port, UDP, ICMP, ARP          (kernel)
10.77.0.100, with --own-address                (dataplane alone)
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from ixnet.control.lab import Lab, switch_offloads
from ixnet.control.namespaces import in_netns
from tests.interop.kit import (
    APPS,
    MIB,
    PATIENCE_S,
    PORT,
    Flow,
    Service,
    answers,
    connect,
    connect_out,
    digest,
    echo_streams,
    iproute,
    lab_config,
    listening,
    payload,
    ping,
    pump,
    receive,
    until,
)
from tests.runtime.lab import in_background

OWN_IP = "10.77.0.100"
NUD_NOARP = 0x40
KERNEL_PORT, UDP_PORT = 7100, 7071


# ---- the kernel's services ---------------------------------------------------------------------


@contextmanager
def kernel_echo(lab: Lab) -> Iterator[None]:
    """TCP echo on the server's kernel, same address, another port."""

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while data := peer.recv(65536):
                    peer.sendall(data)

    with listening(lab.cfg.server_netns, port=KERNEL_PORT) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_kernels_services_answer_all_the_while(lab: Lab, service: Service) -> None:
    def use_kernel() -> None:
        with connect(lab, port=KERNEL_PORT) as sock:
            data = payload(100_000, 1)
            flow = Flow(sock, data, 1)
            pump([flow])
            assert digest(flow.got) == digest(data)
        assert ping(lab.cfg.client_netns, lab.facts.server.ip)
        with in_netns(lab.cfg.server_netns):
            there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with in_netns(lab.cfg.client_netns):
            here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with there, here:
            there.bind((lab.facts.server.ip, 0))
            there.settimeout(PATIENCE_S)
            here.settimeout(PATIENCE_S)
            here.sendto(b"ask", there.getsockname())
            message, peer = there.recvfrom(100)
            there.sendto(message + b"ed", peer)
            assert here.recv(100) == b"asked"

    with kernel_echo(lab), in_background(use_kernel):
        echo_streams(lab, 8, 2 * MIB)
    assert service.live()["verdicts"]
    service.wait_quiet()


def test_ping_works_both_ways(lab: Lab, service: Service) -> None:
    assert ping(lab.cfg.client_netns, lab.facts.server.ip)
    assert ping(lab.cfg.server_netns, lab.facts.client.ip)


def test_server_opens_kernel_connections_on_the_same_link(lab: Lab, service: Service) -> None:
    with listening(lab.cfg.client_netns) as target, in_netns(lab.cfg.server_netns):
        for _ in range(20):
            with socket.create_connection(
                (lab.facts.client.ip, target.getsockname()[1]), PATIENCE_S
            ) as near:
                far, _ = target.accept()
                with far:
                    near.sendall(b"kernel to kernel")
                    assert receive(far, 16) == b"kernel to kernel"


def test_kernel_cannot_take_the_claimed_port(lab: Lab, service: Service) -> None:
    with (
        in_netns(lab.cfg.server_netns),
        socket.socket() as sock,
        pytest.raises(OSError, match="in use"),
    ):
        sock.bind(("0.0.0.0", PORT))


# ---- neighbours --------------------------------------------------------------------------------


def forget_neighbours(lab: Lab) -> None:
    """Both kernels look for each other anew."""
    for end in (lab.facts.server, lab.facts.client):
        with iproute(end.netns) as ipr:
            for entry in ipr.get_neighbours(ifindex=end.index, family=socket.AF_INET):
                if not entry["state"] & NUD_NOARP:
                    ipr.neigh("del", ifindex=end.index, dst=entry.get("NDA_DST"))


def test_neighbours_are_forgotten_in_mid_stream(lab: Lab, service: Service) -> None:
    def forget() -> None:
        forget_neighbours(lab)
        assert ping(lab.cfg.client_netns, lab.facts.server.ip)

    with in_background(forget):
        echo_streams(lab, 8, 4 * MIB)
    service.wait_quiet()


def test_idle_connection_outlives_its_neighbour(lab: Lab, service: Service) -> None:
    with connect(lab, "echo") as sock:
        assert answers(sock)
        forget_neighbours(lab)
        assert answers(sock)


def test_peer_changes_its_mac_connection_goes_on(lab: Lab, service: Service) -> None:
    with connect(lab, "echo") as sock, iproute(lab.cfg.client_netns) as ipr:
        assert answers(sock)
        try:
            ipr.link("set", index=lab.facts.client.index, address="02:69:78:00:00:77")
            forget_neighbours(lab)
            assert answers(sock)
            echo_streams(lab, 2, MIB)
        finally:
            ipr.link("set", index=lab.facts.client.index, address=lab.cfg.client_mac)
            forget_neighbours(lab)
        assert answers(sock)
    service.wait_quiet()


# ---- an address of its own ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    with Lab(lab_config()) as made:
        yield made


@pytest.fixture(scope="module")
def own_service(own_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("own")
    options = ["--own-address", f"{OWN_IP}/24"]
    with Service(own_lab, directory, options=options) as running:
        yield running


def test_own_address_answers_arp_ping_and_tcp(own_lab: Lab, own_service: Service) -> None:
    with iproute(own_lab.cfg.server_netns) as ipr:
        assert OWN_IP not in {a.get("IFA_ADDRESS") for a in ipr.get_addr()}
    forget_neighbours(own_lab)
    assert ping(own_lab.cfg.client_netns, OWN_IP)
    assert ping(own_lab.cfg.client_netns, OWN_IP, data=payload(1400, 1))
    with iproute(own_lab.cfg.client_netns) as ipr:
        (entry,) = ipr.get_neighbours(dst=OWN_IP)
        assert entry.get("NDA_LLADDR") == own_lab.cfg.server_mac
    echo_streams(own_lab, 8, MIB, ip=OWN_IP)
    own_service.wait_quiet()
    counters = own_service.counters()
    assert counters["arp_replies_out"] >= 1
    assert counters["icmp_echo_replies"] == 2


def test_own_address_without_listener_the_dataplane_refuses(
    own_lab: Lab, own_service: Service
) -> None:
    before = own_service.counters()["drop_tcp_no_listener"]
    with pytest.raises(ConnectionRefusedError):
        connect(own_lab, ip=OWN_IP, port=9)
    until("the count", lambda: own_service.counters()["drop_tcp_no_listener"] == before + 1)


def test_own_address_kernels_address_is_the_kernels(own_lab: Lab, own_service: Service) -> None:
    assert ping(own_lab.cfg.client_netns, own_lab.facts.server.ip)
    with pytest.raises(ConnectionRefusedError):
        connect(own_lab, port=PORT)
    with kernel_echo(own_lab), connect(own_lab, port=KERNEL_PORT) as sock:
        assert answers(sock)


def test_own_address_connects_out(own_lab: Lab, own_service: Service) -> None:
    """The dataplane asks for its neighbours itself."""
    connect_out(own_lab, own_service, OWN_IP, own_lab.facts.client.ip)


def test_own_address_udp_port_without_endpoint_is_unreachable(
    own_lab: Lab, own_service: Service
) -> None:
    with in_netns(own_lab.cfg.client_netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((OWN_IP, 9))
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)


def test_own_address_neighbour_changes_its_mac(own_lab: Lab, own_service: Service) -> None:
    with connect(own_lab, "echo", ip=OWN_IP) as sock, iproute(own_lab.cfg.client_netns) as ipr:
        assert answers(sock)
        try:
            ipr.link("set", index=own_lab.facts.client.index, address="02:69:78:00:00:77")
            forget_neighbours(own_lab)
            assert ping(own_lab.cfg.client_netns, OWN_IP)
            assert answers(sock)
        finally:
            ipr.link("set", index=own_lab.facts.client.index, address=own_lab.cfg.client_mac)
            forget_neighbours(own_lab)
        assert ping(own_lab.cfg.client_netns, OWN_IP)
        assert answers(sock)


# ---- UDP -----------------------------------------------------------------------------------------


def test_datagrams_of_all_sizes_are_echoed(tmp_path: Path) -> None:
    with Lab(lab_config()) as own:
        app = APPS / "udp_echo.py"
        with Service(own, tmp_path, app, [str(UDP_PORT)]) as running:
            numbers = random.Random(1)
            lengths = [0, 1, 17, 18, 1471, 1472]
            lengths += [numbers.randint(0, 1472) for _ in range(500)]
            with ExitStack() as stack:
                for _ in range(4):  # several, so that both shards have some
                    with in_netns(own.cfg.client_netns):
                        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    sock.settimeout(PATIENCE_S)
                    sock.connect((own.facts.server.ip, UDP_PORT))
                    for length in lengths:
                        message = numbers.randbytes(length)
                        sock.send(message)
                        assert sock.recv(2000) == message

            def all_counted() -> bool:
                counters = running.counters()
                return counters["udp_in"] == counters["udp_out"] == 4 * len(lengths)

            until("the last counts", all_counted)
            assert ping(own.cfg.client_netns, own.facts.server.ip)
            running.wait_quiet()


def test_flood_of_datagrams_leaves_the_service_well(tmp_path: Path) -> None:
    """More than the application can take: some are lost and counted, none come back wrong."""
    with Lab(lab_config(queues=1)) as own:
        options = ["--frames", "1024"]
        app = APPS / "udp_echo.py"
        with Service(own, tmp_path, app, [str(UDP_PORT)], options) as running:
            with in_netns(own.cfg.client_netns):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
                sock.connect((own.facts.server.ip, UDP_PORT))
                sent = {b"%06d" % i * 50 for i in range(20_000)}
                for message in sent:
                    sock.send(message)
                sock.settimeout(0.5)
                back = set()
                try:
                    while True:
                        back.add(sock.recv(2000))
                except TimeoutError:
                    pass
                assert back and back <= sent
                # Late ones may come still, and this one may be lost among them.
                while (late := ask(sock, b"well?")) != b"well?":
                    assert late in sent
            running.wait_quiet()


def ask(sock: socket.socket, question: bytes) -> bytes:
    """What comes then; asks again after a second of silence."""
    sock.settimeout(1)
    for _ in range(int(PATIENCE_S)):
        sock.send(question)
        with suppress(TimeoutError):
            return sock.recv(2000)
    raise AssertionError("nothing is answered any more")


# ---- two of them ---------------------------------------------------------------------------------


def second_link(lab: Lab) -> None:
    """ixs1 10.78.0.1 to ixc1 10.78.0.2, between the same namespaces."""
    queues = {"num_rx_queues": 2, "num_tx_queues": 2}
    with iproute(lab.cfg.server_netns) as ipr:
        peer = {"ifname": "ixc1", "net_ns_fd": lab.cfg.client_netns, **queues}
        ipr.link("add", ifname="ixs1", kind="veth", peer=peer, **queues)
    for netns, ifname, ip in (
        (lab.cfg.server_netns, "ixs1", "10.78.0.1"),
        (lab.cfg.client_netns, "ixc1", "10.78.0.2"),
    ):
        switch_offloads(netns, ifname, False, "tx-checksum-ip-generic", "tx-generic-segmentation")
        with iproute(netns) as ipr:
            index = ipr.link_lookup(ifname=ifname)[0]
            ipr.addr("add", index=index, address=ip, prefixlen=24)
            ipr.link("set", index=index, state="up")


def test_two_instances_on_two_interfaces(tmp_path: Path) -> None:
    """Each claims the same port, on its own interface's address only."""
    with Lab(lab_config()) as own, ExitStack() as stack:
        second_link(own)
        running = []
        for ifname, ip in (("ixs0", own.facts.server.ip), ("ixs1", "10.78.0.1")):
            directory = tmp_path / ifname
            directory.mkdir()
            args = [str(PORT), str(directory), ip]
            service = Service(own, directory, args=args, options=["-i", ifname])
            running.append(stack.enter_context(service))
            echo_streams(own, 4, MIB, ip=ip)
        for service in running:
            service.wait_quiet()
            assert service.counters()["tcp_established"] == 4
        # The first ends; the second serves on.
        assert running[0].end() == 0
        echo_streams(own, 4, MIB, ip="10.78.0.1")
        with pytest.raises(ConnectionRefusedError):
            connect(own)
