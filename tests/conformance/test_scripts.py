"""The packet scripts of tests/conformance/pkt, and that what reads them can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import runner, script

SCRIPTS = sorted((Path(__file__).parent / "pkt").glob("*.pkt"))
ESTABLISHED = """0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 8) = 0
+0 < S 0:0(0) win 8000 <mss 1000>
+0 > S. 0:0(0) ack 1 <mss 1460>
+.1 < . 1:1(0) ack 1 win 8000
+0 accept(3, ..., ...) = 4
"""


# What differs between the two says of which it is.
OF_IPV4 = [p for p in SCRIPTS if "--ip_version=ipv6" not in p.read_text()]
OF_IPV6 = [p for p in SCRIPTS if "--ip_version=ipv4" not in p.read_text()]


@pytest.mark.parametrize("path", OF_IPV4, ids=lambda p: p.stem)
def test_script(path: Path) -> None:
    runner.run(script.parse(path))


@pytest.mark.parametrize("path", OF_IPV6, ids=lambda p: p.stem)
def test_script_over_ipv6(path: Path) -> None:
    runner.run(script.parse(path), version="ipv6")


MAPPED = [p for p in SCRIPTS if p.stem.startswith(("handshake", "accept", "connect", "icmp"))]


@pytest.mark.parametrize("path", MAPPED, ids=lambda p: p.stem)
def test_script_with_ipv6_sockets_over_ipv4(path: Path) -> None:
    runner.run(script.parse(path), version="ipv4-mapped-ipv6")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_script_says_what_it_is_about(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("// ") and len(first) >= 20


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("+0 > S. 0:0(0) ack 1 <...>", "no packet leaves any more"),
        ("+0 write(4, ..., 100) = 99", "expected 99"),
        ("+0 fcntl(4, F_SETFL, O_NONBLOCK) = 0\n+0 read(4, ..., 100) = 1", "got -1 EAGAIN"),
        ("+0 write(4, ..., 100) = 100\n+0 > P. 1:101(100) ack 2", "'ack': 2"),
        ("+0 write(4, ..., 100) = 100\n+0 > . 1:101(100) ack 1", "'flags': '.'"),
        ("+0 write(4, ..., 100) = 100\n+.2 > P. 1:101(100) ack 1", "early"),
        ("+0 write(4, ..., 100) = 100\n+0 > P. 1:91(90) ack 1", "'bytes': 90"),
        ("+0 write(4, ..., 100) = 100\n+0 > P. 1:101(100) ack 1 <nop>", "'options'"),
        ("+0 write(4, ..., 100) = 100", "not expected"),
        ("+0...0.1 read(4, ..., 100) = 100\n+.2 < P. 1:101(100) ack 1 win 9", "late"),
        ("+0...0.1 read(4, ..., 100) = 100\n+.1 < P. 1:91(90) ack 1 win 9", "got 90"),
        ("+0 frobnicate(4) = 0", "not in the subset"),
        ("+0 >< 1:1(0)", "neither a packet nor a system call"),
        ("write(4, ..., 100) = 100", "no time"),
    ],
)
def test_wrong_script_fails(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "wrong.pkt"
    path.write_text(ESTABLISHED + lines + "\n")
    with pytest.raises(script.ScriptError, match=message):
        runner.run(script.parse(path))


def test_options_of_one_line_are_split_at_their_commas() -> None:
    assert script.split_args("5, [{a=1, b=2}, {c=3}], (x, y), z") == (
        "5",
        "[{a=1, b=2}, {c=3}]",
        "(x, y)",
        "z",
    )


def test_every_script_has_a_row_in_the_table() -> None:
    table = (Path(__file__).parent / "README.md").read_text()
    assert [p.stem for p in SCRIPTS if f"`{p.stem}`" not in table] == []
