"""What `ixnet run` was asked for, and what follows from it for each shard."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ixnet._core import lib
from ixnet.congestion import CONGESTION, ECN
from ixnet.control.errors import IxError, ModeUnavailable, NoSuchQueue
from ixnet.control.privileges import Privileges
from ixnet.runtime import Program

if TYPE_CHECKING:
    from ixnet.control.nic import IpInterface, Mode, Nic

MODES = ("auto", "zerocopy", "copy", "generic")
HUGE_PAGES = ("auto", "yes", "no")
SYN_COOKIES = ("full", "never", "always")  # the order is enum ix_cookies'
MSS_MIN = 88
PLACEMENTS = ("inline", "dune")
KICKS = ("exit", "thread")

# Frames of a queue. A reply keeps one until the peer acknowledges it, and a peer that has nothing
# to say delays that by 40 ms: at 400,000 replies a second that is 16,000 frames. Not more than
# this part of the machine's memory by itself, for all queues together.
FRAMES_DEFAULT = 32_768
FRAMES_DEFAULT_LEAST = 8192
FRAMES_DEFAULT_SHARE = 16
FRAMES_MIN = 1024
FRAMES_MAX = 1 << 19
BATCH_MAX = 256
FLOWS_DEFAULT = 65_536
FLOWS_MAX = 1 << 22
# Idle time before a worker sleeps. It costs a wakeup, some 5 us, to be called back.
SPIN_US_DEFAULT = 50
BUSY_POLL_US = 20
# Outgoing ports: just above the kernel's default range of ephemeral ones, so that no frame of a
# kernel service is taken away; and of an address that only the dataplane has.
SHARED_PORTS = (61000, 65535)
OWN_PORTS = (16384, 65535)
RING_ENTRIES = 4096
# Frames that wait on FILL for what arrives. They are used in turn, so with many of them each is one
# that the caches have forgotten; with few a worker that is not run for a moment loses what comes:
# 1,024 are 2 ms of the fastest echo. Of 256 to 2,048 the best in bench/figures: connrate gained 10%
# over 2,048, streams 4%; with 256 and 512 streams lost 7% and more. There are up to RING_ENTRIES of
# them for a while when they were too few (shard/shard.c).
FILL_FRAMES = 1024
# Of each frame recorded: all, as a frame is never longer.
SNAPLEN_DEFAULT = 65_535


class ConfigError(IxError):
    """An option's value can't be; the message says which and what could be."""


def default_frames(queues: int, frame_shift: int) -> int:
    """UMEM frames of a queue where nobody says how many: FRAMES_DEFAULT, fewer where they and half
    as many to send from would be more than a sixteenth of the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = memory // FRAMES_DEFAULT_SHARE // queues * 2 // 3 >> frame_shift
    return max(FRAMES_DEFAULT_LEAST, min(FRAMES_DEFAULT, most))


@dataclass(frozen=True)
class RunConfig:
    """The options of `ixnet run`, checked as far as they can be without looking at the machine.

    queues: how many, None all. workers: how many run them, None a worker a queue. cores: one a
    worker, in turn; None chooses. spin_us: idle time before a worker sleeps, us; None: never if
    busy_poll, else by how many workers share a core. frames: UMEM frames of a queue's dataplane;
    its send arena has half as many on top; None: by the machine's memory (default_frames()).
    own_addresses: those that only the dataplane has, one of each family at most. ports: the first
    and last of the outgoing ones. congestion: of connections that say no other; ecn: accept,
    request or off. pacing: of connections that say nothing else.
    syn_cookies: full, never or always; mss_max: bytes, None no limit. kick: who makes the system
    calls that push the NIC along in the dune placement: exit, the guest itself, or thread, one of
    the control process; None: exit. privileges: of the workers. pcap: where frames are recorded;
    snaplen: bytes kept of each, None or 0 all. timestamps: arrival times before frames.
    """

    interface: str
    program: Program
    queues: int | None = None
    workers: int | None = None
    cores: tuple[int, ...] | None = None
    mode: str = "auto"
    busy_poll: bool = False
    spin_us: int | None = None
    batch: int = 64
    frames: int | None = None
    huge_pages: str = "auto"
    own_addresses: tuple[IpInterface, ...] = ()
    placement: str = "inline"
    kick: str | None = None
    name: str | None = None
    max_flows: int = FLOWS_DEFAULT
    ports: tuple[int, int] = SHARED_PORTS
    restart_workers: bool = True
    congestion: str = "cubic"
    ecn: str = "accept"
    pacing: bool = False
    syn_cookies: str = "full"
    mss_max: int | None = None
    privileges: Privileges = field(default_factory=Privileges)
    pcap: Path | None = None
    snaplen: int | None = None
    timestamps: bool = False

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("huge-pages", self.huge_pages, HUGE_PAGES)
        _one_of("placement", self.placement, PLACEMENTS)
        _one_of("congestion", self.congestion, tuple(CONGESTION))
        _one_of("ecn", self.ecn, tuple(ECN))
        _one_of("syn-cookies", self.syn_cookies, SYN_COOKIES)
        if self.mss_max is not None:
            _within("mss-max", self.mss_max, MSS_MIN, 65_535)
        _within("batch", self.batch, 1, BATCH_MAX)
        if self.frames is not None:
            _within("frames", self.frames, FRAMES_MIN, FRAMES_MAX)
        _within("max-flows", self.max_flows, 64, FLOWS_MAX)
        if not 1024 <= self.ports[0] < self.ports[1] <= 65535:
            raise ConfigError(
                f"--ports {self.ports[0]}-{self.ports[1]} is no range", "use 1024 to 65535"
            )
        if self.queues is not None:
            _within("queues", self.queues, 1, 256)
        if self.workers is not None:
            _within("workers", self.workers, 1, 256)
        if self.spin_us is not None:
            _within("spin-us", self.spin_us, 0, 10_000_000)
            if self.busy_poll:
                raise ConfigError(
                    "--busy-poll never sleeps, so --spin-us has no meaning with it",
                    "give one of them",
                )
        if self.snaplen is not None:
            _within("snaplen", self.snaplen, 0, SNAPLEN_DEFAULT)
            if self.pcap is None:
                raise ConfigError("--snaplen records nothing by itself", "add --pcap PATH")
        for address in self.own_addresses:
            _one_host(address)
        families = [address.version for address in self.own_addresses]
        if len(families) != len(set(families)):
            raise ConfigError(
                "--own-address is given twice for one family", "give one IPv4 and one IPv6 address"
            )
        self._check_placement()

    def _check_placement(self) -> None:
        if self.kick is not None:
            _one_of("kick", self.kick, KICKS)
            if self.placement != "dune":
                raise ConfigError(
                    "--kick is about how a guest wakes the kernel", "add --placement dune"
                )
        if self.placement == "dune" and self.pcap is not None:
            raise ConfigError(
                "--pcap writes a file in the middle of the dataplane's cycle, which ring 0 can't",
                "record with --placement inline, or with tcpdump at the peer",
            )

    def wanted_mode(self) -> Mode | None:
        """The AF_XDP mode asked for; None lets the ladder choose."""
        from ixnet.control.nic import Mode

        return {
            "auto": None,
            "zerocopy": Mode.NATIVE_ZEROCOPY,
            "copy": Mode.NATIVE_COPY,
            "generic": Mode.GENERIC_COPY,
        }[self.mode]

    def choose_queues(self, nic: Nic) -> tuple[int, ...]:
        """The NIC queues to take. Errors: NoSuchQueue."""
        if self.queues is None:
            return nic.queues
        if self.queues > len(nic.queues):
            nic.check_queues(range(self.queues))
            raise NoSuchQueue(f"{nic.name} has {len(nic.queues)} queues", "ask for fewer")
        return nic.queues[: self.queues]

    def spread(self, queues: int) -> list[range]:
        """Which of so many queues, by their place, each worker runs: neighbours, as evenly as can
        be. Errors: ConfigError."""
        workers = self.workers if self.workers is not None else queues
        if workers > queues:
            raise ConfigError(
                f"{workers} workers can't run {queues} queue{'s' if queues > 1 else ''}",
                "a queue is one worker's: ask for no more workers than queues",
            )
        most = -(-queues // workers)
        if self.placement == "dune" and most > lib.IX_GATE_SHARDS:
            raise ConfigError(
                f"a guest can't run {most} queues",
                f"ask for at least {-(-queues // lib.IX_GATE_SHARDS)} workers",
            )
        first = [i * queues // workers for i in range(workers + 1)]
        return [range(first[i], first[i + 1]) for i in range(workers)]

    def choose_frame_shift(self, nic: Nic) -> int:
        """log2 of the smallest UMEM frame that holds the interface's MTU. Errors: MtuTooLarge."""
        if nic.mtu <= nic.largest_mtu(1 << 11):
            return 11
        nic.check_frame(1 << 12)
        return 12

    def choose_spin_ns(self, shares_core: bool) -> int:
        """Idle time before sleeping, ns; -1 never. Workers that share a core must not spin: the
        other one has the work."""
        if self.busy_poll:
            return -1
        if self.spin_us is not None:
            return self.spin_us * 1000
        return 0 if shares_core else SPIN_US_DEFAULT * 1000

    def busy_poll_us(self, nic: Nic) -> int:
        """SO_BUSY_POLL for the sockets. A virtual device has no interrupts that busy polling could
        hold off: its frames are put on the ring by whoever sends them."""
        return BUSY_POLL_US if self.busy_poll and not nic.kind else 0


def require_mode(config: RunConfig, nic: Nic) -> None:
    """Raises ModeUnavailable where the device says by itself that it lacks the mode asked for."""
    features = nic.xdp_features
    if config.mode == "zerocopy" and features is not None and "xsk-zerocopy" not in features:
        raise ModeUnavailable(
            f"{nic.name} ({nic.driver}) has no zero-copy AF_XDP",
            "use --mode auto, or a NIC whose driver has it (ixnet doctor --interface shows)",
            errno.EOPNOTSUPP,
        )


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"--{option} {value} is not known", f"use one of: {', '.join(choices)}")


def _one_host(own: IpInterface) -> None:
    """Refuses what no host may have (RFC 1122 3.2.1.3, RFC 4291 2.5 and 2.7)."""
    ip, network = own.ip, own.network
    several = own.version == 4 and network.prefixlen < 31
    if (
        ip.is_unspecified
        or ip.is_loopback
        or ip.is_multicast
        or ip == ip_address("255.255.255.255")
        or (several and ip in (network.network_address, network.broadcast_address))
        or (isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None)
    ):
        raise ConfigError(
            f"--own-address {own} is no address that a host can have",
            "give one of its network, like 192.0.2.1/24 or 2001:db8::1/64",
        )


def _within(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"--{option} {value} is out of range", f"use {least} to {most}")
