"""The wire of a lab with several queues: taps in a namespace that goes with the emulator."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

WAITS = ("sh", "-c", "ip -d -j link; exec sleep 600")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """lab.py, which is a program."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("lab")


def network_of(pid: int | str) -> str:
    """A process's network namespace, by the kernel's name; "": there is no such process."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


@pytest.mark.parametrize("text", ["virtio:0", "virtio:two", "igb:2", "e1000", ""])
def test_nic_of_no_kind_is_refused(lab: ModuleType, text: str) -> None:
    with pytest.raises(lab.LabError, match="virtio:QUEUES"):
        lab.Pair.parse(0, text)


def test_nic_of_one_queue_is_on_a_hub(lab: ModuleType) -> None:
    pairs = [lab.Pair.parse(0, "igb"), lab.Pair.parse(1, "virtio")]
    assert lab.in_namespace(pairs, ["true"]) == ["true"]
    assert [word for word in pairs[1].options() if word.startswith("hubport")] == [
        "hubport,id=dut1,hubid=1",
        "hubport,id=peer1,hubid=1",
    ]


@pytest.mark.skipif(not os.access("/dev/net/tun", os.W_OK), reason="there is no /dev/net/tun")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_taps_go_with_what_uses_them(lab: ModuleType, number: signal.Signals) -> None:
    pairs = [lab.Pair.parse(0, "igb"), lab.Pair.parse(1, "virtio:2")]
    with subprocess.Popen(
        lab.in_namespace(pairs, WAITS), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        links = {link["ifname"]: link for link in json.loads(process.stdout.readline())}
        namespace = network_of(process.pid)
        assert namespace != network_of("self")
        assert subprocess.check_output(["ip", "netns", "identify", str(process.pid)]) == b"\n"
        process.send_signal(number)
        assert process.wait() == -number
    assert set(links) >= {"dut1", "peer1", "wire1"} and "dut0" not in links
    for tap in ("dut1", "peer1"):
        assert links[tap]["master"] == "wire1"
        assert links[tap]["linkinfo"]["info_data"]["multi_queue"] is True
    assert namespace not in map(network_of, filter(str.isdecimal, os.listdir("/proc")))
