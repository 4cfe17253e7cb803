"""Whose timestamps `ixnet bench latency` takes, and a NIC's clock in the system's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ixnet.bench import latency, nicclock
from ixnet.bench.client import Client
from ixnet.bench.errors import BenchError
from ixnet.bench.histogram import Histogram
from ixnet.bench.nicclock import NicClock
from ixnet.control.ethtool import StampConfig, TimestampInfo

ROOT = Path(__file__).resolve().parents[2]
PING = ROOT / "ixnet/bench/ping"

PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "clock.h"
#include "stamps.h"

/* choose WANTED HARDWARE COMPARABLE COMPLETION ERROR CLOCK_ERROR
 * convert DEVICE_NS, then comparisons: BEFORE DEVICE AFTER OFFSET OFFSET_ERROR each
 * offset: CLOCK_REALTIME to CLOCK_MONOTONIC and back */
int main(int argc, char **argv)
{
    if (strcmp(argv[1], "choose") == 0) {
        char why[120];
        struct stamps_seen s = {.hardware = atoi(argv[3]), .comparable = atoi(argv[4]),
                                .completion = atoi(argv[5]), .error = atoi(argv[6]),
                                .clock_error = atoi(argv[7])};
        if (!stamps_parse(argv[2], &s.wanted))
            return 2;
        enum stamp_source source = stamps_choose(&s, why, sizeof why);
        printf("%s\n%s\n", stamps_name(source), why);
        return 0;
    }
    if (strcmp(argv[1], "offset") == 0) {
        uint64_t there_error, back_error;
        int64_t there = clock_offset_ns(CLOCK_REALTIME, CLOCK_MONOTONIC, &there_error);
        int64_t back = clock_offset_ns(CLOCK_MONOTONIC, CLOCK_REALTIME, &back_error);
        printf("%lld %llu\n", (long long)(there + back),
               (unsigned long long)(there_error + back_error));
        return 0;
    }
    struct device_clock c = {.fd = -1};
    for (int i = 3; i + 4 < argc; i += 5) {
        struct clock_reading r[2] = {{strtoull(argv[i], 0, 10), strtoull(argv[i + 1], 0, 10),
                                      strtoull(argv[i + 2], 0, 10)}};
        r[1] = (struct clock_reading){r[0].before_ns, 1, r[0].after_ns + 1}; /* a wider one */
        device_clock_add(&c, r, 2, atoll(argv[i + 3]), strtoull(argv[i + 4], 0, 10));
    }
    printf("%llu %llu\n", (unsigned long long)device_clock_convert(&c, strtoull(argv[2], 0, 10)),
           (unsigned long long)c.last.error_ns);
    return 0;
}
"""

Probe = Callable[..., list[str]]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    made = tmp_path_factory.mktemp("stamps")
    (made / "probe.c").write_text(PROBE)
    words = ["gcc", "-std=gnu11", "-O1", "-g", "-D_GNU_SOURCE", "-fsanitize=address,undefined"]
    words += ["-fno-sanitize-recover=all", f"-I{PING}", str(made / "probe.c")]
    words += [str(PING / "clock.c"), str(PING / "stamps.c"), "-o", str(made / "probe")]
    subprocess.run(words, check=True)

    def run(*arguments: object) -> list[str]:
        argv = [str(made / "probe"), *map(str, arguments)]
        return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.splitlines()

    return run


# ---- which ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "seen", "source", "why"),
    [
        # hardware, comparable, completion, error, clock error
        ("auto", (1, 1, 0, 0, 0), "hardware", ""),
        ("auto", (1, 0, 0, 0, -13), "software", "clock can't be read: Permission denied"),
        ("auto", (1, 0, 0, 0, 0), "software", "which clock"),
        ("auto", (0, 1, 0, -95, 0), "software", "the driver gave none: Operation not supported"),
        ("auto", (0, 1, 0, 0, 0), "software", "a stamp of 0"),
        ("auto", (0, 0, 1, 1, 0), "software", "not asked"),
        ("software", (1, 1, 0, 0, 0), "software", "as asked"),
        ("hardware", (1, 1, 1, 0, 0), "hardware", ""),
        ("hardware", (0, 1, 1, 0, 0), "auto", "a stamp of 0"),
        ("completion", (0, 0, 1, 0, 0), "completion", "a stamp of 0"),
        ("completion", (1, 1, 0, 0, 0), "auto", "completions carry no stamp"),
    ],
)
def test_best_stamps_seen_are_taken_and_the_reason_is_said(
    probe: Probe, wanted: str, seen: tuple[int, ...], source: str, why: str
) -> None:
    took, said = [*probe("choose", wanted, *seen), ""][:2]
    assert took == source
    assert (why in said) if why else not said


# ---- clocks -----------------------------------------------------------------------------------


def test_one_comparison_converts_by_its_difference(probe: Probe) -> None:
    pair = (1_000_000, 5_000, 1_000_400, 0, 0)
    assert probe("convert", 5_000, *pair) == ["1000200 200"]
    assert probe("convert", 6_000, *pair) == ["1001200 200"]
    assert probe("convert", 4_000, *pair) == ["999200 200"]
    assert probe("convert", 0, *pair)[0].startswith("0 ")
    assert probe("convert", 7_000) == ["0 0"]


def test_offset_to_another_clock_and_its_error_add_up(probe: Probe) -> None:
    assert probe("convert", 5_000, 1_000_000, 5_000, 1_000_400, -300_000, 70) == ["700200 270"]


@pytest.mark.parametrize("ppm", [-80, 0, 80])
def test_clock_of_another_rate_is_followed(probe: Probe, ppm: int) -> None:
    """80 ppm over a second would be 80 us: more than what is measured."""

    def device(system_ns: int) -> int:
        return 77_000_000_000 + system_ns + system_ns * ppm // 1_000_000

    pairs: list[int] = []
    for at in (0, 500_000_000, 1_000_000_000):
        pairs += [at, device(at + 100), at + 200, 0, 0]
    for at in (990_000_000, 1_040_000_000):
        (line,) = probe("convert", device(at), *pairs)
        assert int(line.split()[0]) == pytest.approx(at, abs=5)


def test_systems_clocks_differ_by_the_same_both_ways(probe: Probe) -> None:
    (line,) = probe("offset")
    off, error = map(int, line.split())
    assert abs(off) <= error + 2


# ---- what is said of it -----------------------------------------------------------------------


def stamps(source: str, why: str, asked: bool = True) -> dict[str, Any]:
    return {"source": source, "why": why, "asked": asked}


@pytest.mark.parametrize(
    ("given", "clock", "printed", "why"),
    [
        (("hardware", ""), "", "", ""),
        (("software", "as asked"), "no clock", "  stamps     received: software: x", "as asked"),
        (("software", "was not asked", False), "",
         "  stamps     received: software: the driver has none", "the driver has none"),
        (("software", "was not asked", False), "eth0 has no clock", "", "eth0 has no clock"),
        (("software", "the driver gave none: a stamp of 0"), "eth0 has no clock",
         "  stamps     received: by the NIC's clock", "the driver gave none: a stamp of 0"),
        (("software", "nothing tells which clock"), "/dev/ptp0: Permission denied", "",
         "/dev/ptp0: Permission denied"),
    ],
)  # fmt: skip
def test_reason_is_the_one_that_knows_most(
    given: tuple[Any, ...], clock: str, printed: str, why: str
) -> None:
    report = {"received": stamps(*given), "transmitted": stamps("hardware", "")}
    latency.explain(report, NicClock.none(clock), f"ixnet 0.1\n{printed}\nready\n")
    assert report["received"]["why"] == why
    assert report["transmitted"]["why"] == ""


def report(source: str) -> dict[str, Any]:
    return {
        "protocol": "udp", "bytes": 64, "sent": 1, "lost": 0, "incomplete": 0,
        "clock_error_ns": 700, "received": stamps(source, "x"), "transmitted": stamps(source, "x"),
        "stages": [{"name": "a", "clock": "b", "histogram": [[1000, 1]]}],
    }  # fmt: skip


def test_rounds_by_different_stamps_are_not_mixed() -> None:
    made = latency.merge_probes([report("hardware"), report("hardware") | {"clock_error_ns": 900}])
    assert (made["received"], made["clock_error_ns"]) == ({"source": "hardware", "why": "x"}, 900)
    assert Histogram(made["stages"][0]["latency"]["hdr"]).count == 2
    with pytest.raises(BenchError, match="hardware and software in turn"):
        latency.merge_probes([report("hardware"), report("software")])


# ---- the NIC ----------------------------------------------------------------------------------

NO_CLOCK = TimestampInfo(None, False, False)
SOME_PACKETS = TimestampInfo(0, True, False)
ALL = TimestampInfo(0, True, True)


@pytest.mark.parametrize(
    ("info", "device", "part"),
    [
        (OSError(95, "Operation not supported"), True, "Operation not supported"),
        (NO_CLOCK, True, "has no clock"),
        (ALL, False, "No such file"),
        (ALL, True, ""),
        (SOME_PACKETS, True, "not stamp every frame"),
        (TimestampInfo(0, False, True), True, "not stamp what it sends"),
    ],
)
def test_clock_is_found_or_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    info: TimestampInfo | OSError,
    device: bool,
    part: str,
) -> None:
    def answer(_: str) -> TimestampInfo:
        if isinstance(info, OSError):
            raise info
        return info

    monkeypatch.setattr(nicclock, "timestamp_info", answer)
    if device:
        (tmp_path / "ptp0").touch()
    found = nicclock.find_clock("eth0", tmp_path)
    assert part in found.received + found.transmitted
    whole = "" if found.path is None else str(found.path)
    assert whole == (str(tmp_path / "ptp0") if part.startswith("not stamp") or not part else "")


@contextmanager
def _nic_with_clock(
    monkeypatch: pytest.MonkeyPatch, state: list[StampConfig], fails: bool = False
) -> Iterator[None]:
    def change(_: str, wanted: StampConfig) -> StampConfig:
        if fails:
            raise PermissionError(1, "Operation not permitted")
        state.append(wanted)
        return wanted

    with monkeypatch.context() as patch:
        patch.setattr(nicclock, "find_clock", lambda _: NicClock(Path("/dev/ptp0")))
        patch.setattr(nicclock, "stamp_config", lambda _: state[-1])
        patch.setattr(nicclock, "set_stamp_config", change)
        yield


def test_stamping_is_given_back_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = StampConfig(0, 0, 12)
    state = [before]
    client = Client(interface="eth0")
    with _nic_with_clock(monkeypatch, state), pytest.raises(BenchError):  # noqa: SIM117
        with nicclock.stamping(client, "192.0.2.1") as clock:
            assert clock.path == Path("/dev/ptp0")
            assert state[-1] == StampConfig(0, 1, 1)
            raise BenchError("it broke")
    assert state[-1] == before and len(state) == 3


def test_stamping_that_can_not_be_turned_on_is_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    state = [StampConfig(0, 0, 0)]
    with (
        _nic_with_clock(monkeypatch, state, fails=True),
        nicclock.stamping(Client(interface="eth0"), "192.0.2.1") as clock,
    ):
        assert clock.path is None
        assert "can't be turned on: Operation not permitted" in clock.received
    assert len(state) == 1


def test_interface_is_the_routes() -> None:
    assert nicclock.interface_to("127.0.0.1") == "lo"
    assert nicclock.interface_to("nonsense") is None
