"""Every kind of segment in every state of RFC 9293 3.3.2, against ixnet and against Linux.

TABLE says what both do: the answers that leave at once (flags, and numbers relative to what is
next; `-`: none), and the state that TCP_INFO shows afterwards (SYN_RCVD: the listener's; `-`: no
socket).
DIFFERENCES says where Linux does something else, and why ours is as it is.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conformance.exchange import Exchange, UnderTest

FAR = 10_000_000  # beyond any window
STIMULI: dict[str, tuple[str, dict[str, Any]]] = {
    "ack exact": ("A", {}),
    "ack of unsent": ("A", {"ack": 1000}),
    "ack old": ("A", {"ack": -1}),
    "ack ancient": ("A", {"ack": -(1 << 30)}),
    "seq outside": ("A", {"seq": FAR}),
    "rst exact": ("R", {}),
    "rst in window": ("R", {"seq": 100}),
    "rst left of window": ("R", {"seq": -1}),
    "rst outside": ("R", {"seq": FAR}),
    "rst exact with ack": ("RA", {}),
    "syn at left edge": ("S", {}),
    "syn in window": ("S", {"seq": 100}),
    "syn outside": ("S", {"seq": FAR}),
    "syn old": ("S", {"seq": -1}),
    "syn-ack": ("SA", {"seq": -1}),
    "data": ("PA", {"data": b"x" * 10}),
    "data outside": ("PA", {"seq": FAR, "data": b"x" * 10}),
    "data old": ("PA", {"seq": -10, "data": b"x" * 10}),
    "data without ack": ("P", {"data": b"x" * 10}),
    "fin": ("FA", {}),
    "fin again": ("FA", {"seq": -1}),
    "fin outside": ("FA", {"seq": FAR}),
    "no flags": ("", {}),
    "syn fin": ("SF", {}),
    "urg": ("UA", {}),
}
# Linux delays this ACK, or not, as its heuristics have it.
DELAYED_BY_LINUX = {("ESTABLISHED", "fin"), ("SYN_RCVD", "fin")}

TABLE = """
CLOSED
    R seq=0 -> -: ack exact; seq outside; syn-ack; data; data outside; data old; fin; fin
        again; fin outside; urg
    R seq+1000 -> -: ack of unsent
    R seq-1 -> -: ack old
    R seq-1073741824 -> -: ack ancient
    - -> -: rst exact; rst in window; rst left of window; rst outside; rst exact with ack
    RA seq=0 ack+1 -> -: syn at left edge
    RA seq=0 ack+2 -> -: syn fin
    RA seq=0 ack+101 -> -: syn in window
    RA seq=0 ack+10000001 -> -: syn outside
    RA seq=0 -> -: syn old; no flags
    RA seq=0 ack+10 -> -: data without ack
LISTEN
    R seq=0 -> LISTEN: ack exact; seq outside; syn-ack; data; data outside; data old; fin;
        fin again; fin outside; urg
    R seq+1000 -> LISTEN: ack of unsent
    R seq-1 -> LISTEN: ack old
    R seq-1073741824 -> LISTEN: ack ancient
    - -> LISTEN: rst exact; rst in window; rst left of window; rst outside; rst exact with
        ack; data without ack; no flags; syn fin
    SA ack+1 -> LISTEN: syn at left edge
    SA ack+101 -> LISTEN: syn in window
    SA ack+10000001 -> LISTEN: syn outside
    SA -> LISTEN: syn old
SYN_SENT
    - -> SYN_SENT: ack exact; seq outside; rst exact; rst in window; rst left of window;
        rst outside; data; data outside; data old; data without ack; fin; fin again; fin
        outside; no flags; urg
    R seq+1000 -> SYN_SENT: ack of unsent
    R seq-1 -> SYN_SENT: ack old
    R seq-1073741824 -> SYN_SENT: ack ancient
    - -> CLOSED: rst exact with ack
    SA ack+1 -> SYN_RCVD: syn at left edge; syn fin
    SA ack+101 -> SYN_RCVD: syn in window
    SA ack+10000001 -> SYN_RCVD: syn outside
    SA -> SYN_RCVD: syn old
    A -> ESTABLISHED: syn-ack
SYN_RCVD
    - -> LISTEN: ack exact; rst exact; rst left of window; rst outside; rst exact with
        ack; data without ack; no flags; urg
    R seq+1000 -> LISTEN: ack of unsent
    R seq-1 -> LISTEN: ack old
    R seq-1073741824 -> LISTEN: ack ancient
    A -> LISTEN: seq outside; rst in window; syn at left edge; syn in window; syn outside;
        syn-ack; data outside; data old; fin again; fin outside; syn fin
    SA -> LISTEN: syn old
    A ack+1 -> LISTEN: fin
    A ack+10 -> LISTEN: data
ESTABLISHED
    - -> ESTABLISHED: ack exact; rst left of window; rst outside; data without ack; no flags;
        urg
    A -> ESTABLISHED: ack of unsent; ack old; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data outside; data old; fin again;
        fin outside; syn fin
    - -> CLOSED: rst exact; rst exact with ack
    A ack+10 -> ESTABLISHED: data
    A ack+1 -> CLOSE_WAIT: fin
FIN_WAIT_1
    - -> FIN_WAIT_2: ack exact; urg
    A -> FIN_WAIT_1: ack of unsent; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data outside; fin outside; syn fin
    - -> FIN_WAIT_1: ack old; rst left of window; rst outside; data without ack; no flags
    - -> CLOSED: rst exact; rst exact with ack
    A ack+10 -> FIN_WAIT_2: data
    A -> FIN_WAIT_2: data old; fin again
    A ack+1 -> CLOSED: fin
FIN_WAIT_2
    - -> FIN_WAIT_2: ack exact; ack old; rst left of window; rst outside; data without
        ack; no flags; urg
    A -> FIN_WAIT_2: ack of unsent; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data outside; data old; fin again;
        fin outside; syn fin
    - -> CLOSED: rst exact; rst exact with ack
    A ack+10 -> FIN_WAIT_2: data
    A ack+1 -> CLOSED: fin
CLOSE_WAIT
    - -> CLOSE_WAIT: ack exact; rst left of window; rst outside; data without ack; no flags;
        urg
    A -> CLOSE_WAIT: ack of unsent; ack old; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data; data outside; data old; fin;
        fin again; fin outside; syn fin
    - -> CLOSED: rst exact; rst exact with ack
CLOSING
    - -> CLOSED: ack exact; rst exact; rst exact with ack; urg
    A -> CLOSING: ack of unsent; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data outside; fin outside; syn fin
    - -> CLOSING: ack old; rst left of window; rst outside; data without ack; no flags
    A -> CLOSED: data; data old; fin; fin again
LAST_ACK
    - -> CLOSED: ack exact; rst exact; rst exact with ack; data; data old; fin; fin again;
        urg
    A -> LAST_ACK: ack of unsent; ack ancient; seq outside; rst in window; syn at left
        edge; syn in window; syn outside; syn old; syn-ack; data outside; fin outside; syn fin
    - -> LAST_ACK: ack old; rst left of window; rst outside; data without ack; no flags
TIME_WAIT
    - -> CLOSED: ack exact; ack old; rst exact; rst in window; rst left of window; rst
        outside; rst exact with ack; data without ack; no flags; urg
    A -> CLOSED: ack of unsent; ack ancient; seq outside; syn at left edge; syn old;
        syn-ack; data; data outside; data old; fin; fin again; fin outside; syn fin
    SA ack+101 -> CLOSED: syn in window
    SA ack+10000001 -> CLOSED: syn outside
"""

EMBRYONIC = "RFC 5961 4.2: challenged, as in the synchronized states; Linux resets"
MACOS = "RFC 5961 3.2: off the left edge; Linux takes the RST that macOS sends after its FIN"
AFTER_FIN = "RFC 9293 3.10.7.4 has this ignored; an ACK tells a confused peer where it is"
CLOSING = (
    "the ACK in it leads to TIME-WAIT, where the rest of the segment is answered, as any is there"
)
TW_ACK = "RFC 9293 3.10.7.4: in TIME-WAIT, too, an ACK of what was not sent is answered by an ACK"
TW_NO_ACK = "RFC 9293 3.10.7.4: without ACK it is dropped"

# (state, stimulus): Linux's answers, its state, why ours differ
DIFFERENCES: dict[tuple[str, str], tuple[str, str, str]] = {
    ("SYN_RCVD", "syn at left edge"): ("RA seq=0 ack+1", "LISTEN", EMBRYONIC),
    ("SYN_RCVD", "syn in window"): ("RA seq=0 ack+101", "LISTEN", EMBRYONIC),
    ("SYN_RCVD", "syn fin"): ("RA seq=0 ack+2", "LISTEN", EMBRYONIC),
    ("CLOSE_WAIT", "rst left of window"): ("-", "CLOSED", MACOS),
    ("CLOSE_WAIT", "data"): ("-", "CLOSE_WAIT", AFTER_FIN),
    ("CLOSE_WAIT", "fin"): ("-", "CLOSE_WAIT", AFTER_FIN),
    ("CLOSING", "rst left of window"): ("-", "CLOSED", MACOS),
    ("CLOSING", "data"): ("-", "CLOSED", CLOSING),
    ("CLOSING", "data old"): ("-", "CLOSED", CLOSING),
    ("CLOSING", "fin"): ("-", "CLOSED", CLOSING),
    ("CLOSING", "fin again"): ("-", "CLOSED", CLOSING),
    ("LAST_ACK", "rst left of window"): ("-", "CLOSED", MACOS),
    ("TIME_WAIT", "ack of unsent"): ("-", "CLOSED", TW_ACK),
    ("TIME_WAIT", "ack ancient"): ("-", "CLOSED", TW_ACK),
    ("TIME_WAIT", "data without ack"): ("A", "CLOSED", TW_NO_ACK),
}


def _read(table: str) -> dict[tuple[str, str], tuple[str, str]]:
    cases, state = {}, ""
    for line in re.sub(r"\n {8,}", " ", table).strip().splitlines():
        if not line.startswith(" "):
            state = line
            continue
        answers, after, names = re.fullmatch(r"\s+(.*) -> (\S+): (.*)", line).groups()  # type: ignore[union-attr]
        for name in names.split("; "):
            cases[state, name] = (answers, after)
    return cases


CASES = _read(TABLE)


def test_table_is_complete() -> None:
    states = {state for state, _ in CASES}
    assert len(states) == 11
    assert CASES.keys() == {(state, name) for state in states for name in STIMULI}
    assert CASES.keys() >= DIFFERENCES.keys()
    assert all(CASES[case] != differs[:2] for case, differs in DIFFERENCES.items())


@pytest.mark.parametrize("state", sorted({state for state, _ in CASES}))
@pytest.mark.parametrize("side", ["ixnet", "linux"])
def test_state(side: str, state: str, stacks: dict[str, UnderTest]) -> None:
    wrong = []
    for name, (flags, fields) in STIMULI.items():
        want = CASES[state, name]
        if side == "linux":
            want = DIFFERENCES.get((state, name), want)[:2]
        exchange = Exchange(stacks[side]).to(state)
        answers = exchange.put(flags, **fields)
        if side == "linux" and not answers and (state, name) in DELAYED_BY_LINUX:
            answers = [exchange.show(exchange.wait())]
        after = exchange.state() if exchange.fd >= 0 else "-"
        if (", ".join(answers) or "-", after) != want:
            wrong.append(f"{name}: {answers} -> {after}, not {want}")
    assert not wrong, "\n".join(wrong)
