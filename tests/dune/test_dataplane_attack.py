"""The application in ring 3 attacks the dataplane in ring 0; others' traffic goes on all the while.

One instance has two workers, of which the second attacks when told to (apps/attack.c); another
instance has a link of its own. A verified echo stream runs on the first worker and on the other
instance from beginning to end.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dune.dataplane import (
    ECHO,
    PATIENCE_S,
    Dataplane,
    Guard,
    Link,
    Ring0,
    Veth,
    echo_once,
    kill,
    receive,
)
from tests.dune.kit import ROOT

ATTACK = ROOT / "build/tests/dune/apps/attack.so"
PORT = 7000
ATTACKER = 1
ATTACKER_PORT = PORT + ATTACKER
Note = Callable[[str], None]
# Emulated, and two instances to start.
pytestmark = pytest.mark.timeout(3600)


class World:
    """The attacker, its neighbours, and their streams."""

    def __init__(self, place: Path, attacked: Dataplane, other: Dataplane) -> None:
        self.attacked = attacked
        self.random = random.Random(7)
        self._answers = place / "answers"
        self._orders = os.open(place / "orders", os.O_RDWR | os.O_CLOEXEC)
        self._read = 0
        self.guards = [Guard(attacked, PORT, 1), Guard(other, PORT, 2)]
        self.ring0 = [Ring0(attacked.worker(0)["pid"]), Ring0(attacked.worker(ATTACKER)["pid"])]

    def say(self, attack: str) -> None:
        """Has it done, and waits for nothing."""
        os.write(self._orders, f"{attack}\n".encode())

    def order(self, attack: str) -> int:
        """Has it done; returns the number of attempts, each of which was refused."""
        self.say(attack)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            text = self._answers.read_text()[self._read :]
            if text.endswith("\n"):
                self._read += len(text)
                name, attempts, outcome = text.rstrip("\n").split(" ", 2)
                assert (name, outcome) == (attack, "refused"), text
                return int(attempts)
            time.sleep(0.02)
        raise AssertionError(f"no answer to {attack}:\n{self.attacked.printed()}")

    def unharmed(self) -> None:
        """Everything that no attack may reach."""
        for guard in self.guards:
            guard.unharmed()
        for ring0 in self.ring0:
            ring0.check()

    def reborn(self, pid: int) -> None:
        """Waits for the attacker's next life."""
        worker = self.attacked.wait_serving(ATTACKER, other_than=pid)
        self.ring0.pop().close()
        self.ring0.append(Ring0(worker["pid"]))

    def echoes(self) -> None:
        """The attacker's own shard serves a new connection."""
        with self.attacked.connect(ATTACKER_PORT) as sock:
            echo_once(sock, 5000, self.random)

    def close(self) -> None:
        for guard in self.guards:
            guard.close()
        for ring0 in self.ring0:
            ring0.close()
        os.close(self._orders)


@contextmanager
def world_on(attacked_link: Link, other_link: Link, place: Path) -> Iterator[World]:
    """It, with the attacker on one link and the other instance on another."""
    os.mkfifo(place / "orders")
    (place / "answers").touch()
    args = (str(place), str(PORT))
    with (  # the attacker is root, with every capability: nothing but the rings stops it
        Dataplane(attacked_link, place / "log", ATTACK, args, "--keep-privileges") as attacked,
        Dataplane(other_link, place / "log2", ECHO, ("--port", str(PORT))) as other,
    ):
        world = World(place, attacked.wait_ready(), other.wait_ready())
        try:
            yield world
        finally:
            world.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_on(Veth("att", 2), Veth("oth", 1), tmp_path_factory.mktemp("attack")) as made:
        yield made


SURVIVED = (
    "nothing", "closed-memory", "closed-calls", "payload", "map-files", "holes", "io-pages",
    "io-lies", "forged", "addresses", "gate", "background", "jump", "privileged",
)  # fmt: skip


@pytest.mark.parametrize("attack", SURVIVED)
def test_refused_and_nobody_harmed(world: World, note: Note, attack: str) -> None:
    with world.attacked.connect(ATTACKER_PORT) as sock:
        echo_once(sock, 2000, world.random)
        attempts = world.order(attack)
    world.unharmed()
    world.echoes()
    note(f"{attempts} attempts refused")


def test_records_raced_while_they_are_read(world: World, note: Note) -> None:
    with world.attacked.connect(ATTACKER_PORT) as sock:
        echo_once(sock, 2000, world.random)
        world.order("race")
        world.unharmed()
        note(f"{world.order('race-ends')} records raced")
    world.unharmed()
    world.echoes()


def test_frames_exhausted_by_one_worker_are_its_own(world: World, note: Note) -> None:
    """It holds all that it is lent: its peers are stopped, nobody else's."""
    socks = [world.attacked.connect(ATTACKER_PORT) for _ in range(8)]
    for sock in socks:
        echo_once(sock, 100, world.random)
    world.order("hoard")
    sent = 0
    for sock in socks:
        sock.settimeout(0.3)
        try:
            while sent < 64 << 20:
                sent += sock.send(bytes(1 << 16))
        except TimeoutError:
            pass
    world.unharmed()
    held = world.order("release")
    for sock in socks:
        sock.close()
    note(f"{held} frames held, of which none was missing elsewhere")
    world.echoes()
    world.unharmed()


def test_arena_unmapped_while_its_frames_are_in_flight(world: World) -> None:
    with world.attacked.connect(ATTACKER_PORT) as sock:
        echo_once(sock, 2000, world.random)
        world.order("arena")
        assert receive(sock, 4096) == b"Z" * 4096
        echo_once(sock, 2000, world.random)
    world.unharmed()


def test_spinning_worker_is_seen_and_others_go_on(world: World) -> None:
    world.order("spin")
    before = world.attacked.worker(ATTACKER)
    world.unharmed()
    deadline = time.monotonic() + PATIENCE_S
    while not (after := world.attacked.worker(ATTACKER))["stalled_s"]:
        assert time.monotonic() < deadline, "the control plane doesn't see it"
        time.sleep(0.2)
    assert not world.attacked.worker(0)["stalled_s"]
    assert f"worker {ATTACKER} (queue" in world.attacked.printed()
    assert "does not come back to its loop" in world.attacked.printed()
    seen, then = before["guest"], after["guest"]
    assert then["module_calls"] == seen["module_calls"], "it polls"
    assert then["cycles_ring3"] > seen["cycles_ring3"], "it doesn't run"
    kill(after["pid"])
    world.reborn(after["pid"])
    world.echoes()
    world.unharmed()


def test_a_fault_is_the_end_of_the_application_alone(world: World) -> None:
    pid = world.attacked.worker(ATTACKER)["pid"]
    with world.attacked.connect(ATTACKER_PORT) as sock:
        echo_once(sock, 2000, world.random)
        world.say("die")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    world.reborn(pid)
    said = world.attacked.printed()
    assert ", in ring 3, thread " in said and "; ends by SIGSEGV" in said, said
    # The application's file was mapped after the fork.
    assert re.search(r"#0 +\w+ ring 3: attack\.so attack_die\+0x", said), said
    assert re.search(r"#\d+ +\w+ ring 3: libixnet\.so \w+\+0x", said), said
    world.unharmed()
    world.echoes()
