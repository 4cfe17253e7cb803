"""The same over IPv6: streams, datagrams, connections out, sharing with the kernel.

namespace ixtPID-N-srv                          namespace ixtPID-N-cli
ixs0 fd77:6978::1/64 ------ veth, 2 queues ------ ixc0 fd77:6978::2/64
     fd77:6978::100, with --own-address                 the kernel's own sockets
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute, netns

from ixnet.control.lab import Lab
from tests.interop.kit import (
    APPS,
    MIB,
    NATIVE_ECHO,
    PATIENCE_S,
    PORT,
    PYTHON_ECHO,
    Service,
    answers,
    connect,
    connect_out,
    echo_streams,
    iproute,
    kernel_socket,
    lab_config,
    listening,
    payload,
    ping,
    send_and_sink,
    sysctls,
    take_source,
    until,
)

SERVER6, CLIENT6, OWN6 = "fd77:6978::1", "fd77:6978::2", "fd77:6978::100"
ROUTER6, BEYOND6, OWN4 = "fd77:2::1", "fd77:2::2", "10.77.0.100"
UDP_PORT = 7071
IFA_F_NODAD, NUD_NOARP = 0x02, 0x40


def forget_neighbours(lab: Lab) -> None:
    """Both kernels look for each other anew."""
    for end in (lab.facts.server, lab.facts.client):
        with iproute(end.netns) as ipr:
            for entry in ipr.get_neighbours(ifindex=end.index, family=socket.AF_INET6):
                if not entry["state"] & NUD_NOARP:
                    ipr.neigh("del", ifindex=end.index, dst=entry.get("NDA_DST"))


def test_streams_both_ways_are_whole(lab: Lab, service: Service) -> None:
    echo_streams(lab, 8, MIB, ip=SERVER6)
    with connect(lab, "sink", ip=SERVER6) as sock:
        send_and_sink(sock, 4 * MIB, 1)
    with connect(lab, f"source {4 * MIB} 2", ip=SERVER6) as sock:
        take_source(sock, 4 * MIB, 2)
    echo_streams(lab, 2, MIB // 4)  # the same listener takes IPv4
    service.wait_quiet()


@pytest.mark.parametrize("n", [0, 1, 1427, 1428, 1429, 65536])
def test_streams_of_awkward_lengths_are_whole(lab: Lab, service: Service, n: int) -> None:
    with connect(lab, "sink", ip=SERVER6) as sock:
        send_and_sink(sock, n, n)
    with connect(lab, f"source {n} {n}", ip=SERVER6) as sock:
        take_source(sock, n, n)


def test_messages_are_echoed_from_where_they_lie(lab: Lab, service: Service) -> None:
    before = sum(s["tx_inplace"] for s in service.shards())
    with connect(lab, "echo", ip=SERVER6) as sock:
        for _ in range(100):
            assert answers(sock, bytes(1000))
    until("the count", lambda: sum(s["tx_inplace"] for s in service.shards()) - before >= 99)


def test_link_local_address_is_served(lab: Lab, service: Service) -> None:
    with iproute(lab.cfg.server_netns) as ipr:
        (local,) = [
            a.get("IFA_ADDRESS")
            for a in ipr.get_addr(index=lab.facts.server.index, family=socket.AF_INET6)
            if a.get("IFA_ADDRESS").startswith("fe80")
        ]
    with kernel_socket(lab.cfg.client_netns, local) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((local, PORT, 0, lab.facts.client.index))
        sock.sendall(b"echo\n")
        assert answers(sock)


def test_dataplane_connects_out(lab: Lab, service: Service) -> None:
    connect_out(lab, service, SERVER6, CLIENT6, "::")


def test_neighbours_are_the_kernels_and_found_again(lab: Lab, service: Service) -> None:
    with connect(lab, "echo", ip=SERVER6) as sock:
        for _ in range(3):
            assert answers(sock)
            forget_neighbours(lab)
            assert ping(lab.cfg.client_netns, SERVER6)
        assert answers(sock)


def test_peer_that_resets_and_port_of_the_kernel(lab: Lab, service: Service) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(lab, ip=SERVER6, port=9)
    with (
        listening(lab.cfg.server_netns, SERVER6) as kernels,
        connect(lab, ip=SERVER6, port=kernels.getsockname()[1]) as sock,
    ):
        there, _ = kernels.accept()
        with there:
            sock.sendall(b"kernel's")
            assert there.recv(100) == b"kernel's"
    with kernel_socket(lab.cfg.server_netns, "::") as late, pytest.raises(OSError, match="in use"):
        late.bind(("::", PORT))


@contextmanager
def beyond_a_router(lab: Lab, mtu: int) -> Iterator[str]:
    """A namespace behind the client's, which forwards to it over a narrower link. Its address is
    BEYOND6; the server's kernel has a route there. As in the lab a flow that sends again keeps to
    its queue (net.core.txrehash)."""
    name = f"{lab.cfg.client_netns}-far"
    netns.create(name)
    try:
        with iproute(lab.cfg.client_netns) as ipr:
            ipr.link(
                "add", ifname="narrow0", kind="veth", peer={"ifname": "far0", "net_ns_fd": name}
            )
            set_up(ipr, "narrow0", ROUTER6, mtu)
        with iproute(name) as ipr:
            set_up(ipr, "far0", BEYOND6, 1500)  # or it would announce a smaller MSS
            ipr.route("add", dst="default", gateway=ROUTER6, family=socket.AF_INET6)
        net = {"dst": "fd77:2::/64", "gateway": CLIENT6, "family": socket.AF_INET6}
        with (
            sysctls(lab.cfg.client_netns, {"net/ipv6/conf/all/forwarding": "1"}),
            sysctls(name, {"net/core/txrehash": "0"}),
            iproute(lab.cfg.server_netns) as ipr,
        ):
            ipr.route("add", **net)
            try:
                yield name
            finally:
                ipr.route("del", **net)
    finally:
        netns.remove(name)


def set_up(ipr: IPRoute, ifname: str, address: str, mtu: int) -> None:
    (index,) = ipr.link_lookup(ifname=ifname)
    ipr.link("set", index=index, mtu=mtu, state="up")
    ipr.addr("add", index=index, address=address, prefixlen=64, flags=IFA_F_NODAD)


def test_path_that_is_narrow_behind_a_router_is_learned(lab: Lab, service: Service) -> None:
    """The router says packet too big (RFC 8201)."""
    before = service.counters()["pmtu_lowered"]
    with beyond_a_router(lab, 1280) as far, kernel_socket(far, SERVER6) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((SERVER6, PORT))
        sock.sendall(f"source {MIB} 5\n".encode())
        take_source(sock, MIB, 5)
    until("the count", lambda: service.counters()["pmtu_lowered"] > before)
    service.wait_quiet()


def test_listener_of_ipv6_alone_leaves_ipv4_to_the_kernel(tmp_path: Path) -> None:
    with Lab(lab_config(queues=1)) as own:
        app = tmp_path / "v6only.py"
        app.write_text(V6ONLY_ECHO)
        with (
            Service(own, tmp_path, app, [str(PORT)]),
            listening(own.cfg.server_netns, "0.0.0.0", PORT) as kernels,
        ):
            with connect(own, ip=SERVER6) as sock:
                assert answers(sock)
            with connect(own) as sock:
                there, _ = kernels.accept()
                there.close()


V6ONLY_ECHO = """
import sys
from ixnet.event import EV_READ, EventBase, Listener

def on_accept(listener, bev):
    assert bev.getpeername()[0] == "fd77:6978::2", bev.getpeername()
    assert bev.getsockname() == ("fd77:6978::1", int(sys.argv[1]))
    bev.setcb(lambda bev: bev.output.add_buffer(bev.input))
    bev.enable(EV_READ)

base = EventBase()
listener = Listener(base, ("::", int(sys.argv[1])), on_accept, v6only=True)
base.dispatch()
"""


@pytest.mark.parametrize("app", [PYTHON_ECHO, NATIVE_ECHO], ids=["echo.py", "echo.so"])
def test_the_apps_echo_streams_whole(lab: Lab, app: Path, tmp_path: Path) -> None:
    with Lab(lab_config()) as own, Service(own, tmp_path, app, ["--port", str(PORT)]) as running:
        echo_streams(own, 8, MIB, command="", ip=SERVER6)
        running.wait_quiet()


def test_datagrams_of_all_sizes_are_echoed(tmp_path: Path) -> None:
    app = APPS / "udp_echo.py"
    with Lab(lab_config()) as own, Service(own, tmp_path, app, [str(UDP_PORT)]) as running:
        for n in range(2):  # several, so that both shards have some
            with kernel_socket(own.cfg.client_netns, SERVER6, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect((SERVER6, UDP_PORT))
                for length in (0, 1, 17, 1000, 1451, 1452):
                    message = payload(length, n)
                    sock.send(message)
                    assert sock.recv(2000) == message
        running.wait_quiet()


# ---- an address of its own ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    with Lab(lab_config()) as made:
        yield made


@pytest.fixture(scope="module")
def own_service(own_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Addresses of both families that only the dataplane has."""
    options = ["--own-address", f"{OWN6}/64", "--own-address", f"{OWN4}/24"]
    with Service(own_lab, tmp_path_factory.mktemp("own6"), options=options) as running:
        yield running


def test_own_address_answers_nd_ping_and_tcp(own_lab: Lab, own_service: Service) -> None:
    forget_neighbours(own_lab)
    assert ping(own_lab.cfg.client_netns, OWN6)
    assert ping(own_lab.cfg.client_netns, OWN6, data=payload(1400, 1))
    with iproute(own_lab.cfg.client_netns) as ipr:
        (entry,) = ipr.get_neighbours(dst=OWN6, family=socket.AF_INET6)
        assert entry.get("NDA_LLADDR") == own_lab.cfg.server_mac
    echo_streams(own_lab, 8, MIB // 2, ip=OWN6)
    echo_streams(own_lab, 2, MIB // 2, ip=OWN4)
    own_service.wait_quiet()
    counters = own_service.counters()
    assert counters["nd_adverts_out"] >= 1 and counters["icmp_echo_replies"] == 2


def test_own_address_kernels_address_is_the_kernels(own_lab: Lab, own_service: Service) -> None:
    assert ping(own_lab.cfg.client_netns, SERVER6)
    with pytest.raises(ConnectionRefusedError):
        connect(own_lab, ip=SERVER6)


def test_own_address_that_another_one_has_is_refused(tmp_path: Path) -> None:
    with Lab(lab_config(queues=1)) as own:
        with iproute(own.cfg.client_netns) as ipr:
            index = own.facts.client.index
            ipr.addr("add", index=index, address=OWN6, prefixlen=64, flags=IFA_F_NODAD)
        run = Service(own, tmp_path, options=["--own-address", f"{OWN6}/64"])
        try:
            assert run.process.wait(PATIENCE_S) == 2
            assert f"{own.cfg.client_mac} has the address {OWN6}, too" in run.errors()
        finally:
            own.stop(run.process)


def test_own_address_connects_out(own_lab: Lab, own_service: Service) -> None:
    """The dataplane solicits its neighbours itself."""
    connect_out(own_lab, own_service, OWN6, CLIENT6, "::")


def test_own_address_udp_port_without_endpoint_is_unreachable(
    own_lab: Lab, own_service: Service
) -> None:
    with kernel_socket(own_lab.cfg.client_netns, OWN6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((OWN6, 9))
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
