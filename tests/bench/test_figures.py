"""The figures that ixnet is held to: goals, the README's block, peers in turns."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bench import figures
from bench.common import BenchError
from bench.manyconns import many_addresses
from bench.servers import KernelServer, Server
from ixnet.bench.drive import Target
from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns


def figure(
    ours: float, reference: float, goal: float | None, at_most: bool = False
) -> figures.Figure:
    return figures.Figure("echo", "echo", "/s", goal, ours, reference, "kernel", at_most)


def test_goal_is_met_from_the_right_side() -> None:
    assert figure(300, 100, 3).met and not figure(299, 100, 3).met
    assert figure(25, 100, 0.25, True).met and not figure(26, 100, 0.25, True).met
    assert not figure(300, 0, 3).met


def test_a_figure_without_a_goal_is_neither_met_nor_missed() -> None:
    (row,) = figures.rows([figure(83, 100, None)])
    assert row[4:] == ["0.83x", "", ""]


def test_readme_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    begin, end = figures.MARKS
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    figures.put_into(
        readme, figures.markdown([figure(1234567, 100, 3)], rounds=3, mode="native copy")
    )
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text
    assert "| echo | 1,234,567/s | 100/s | kernel | 12345.67x | 3x |" in text
    assert "cores" in text and "medians of 3" in text
    readme.write_text("no marks")
    with pytest.raises(BenchError, match="has no marks"):
        figures.put_into(readme, "x")


def test_the_tree_has_the_marks() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert all(text.count(mark) == 1 for mark in figures.MARKS)


def test_servers_are_measured_in_turns(lab: Lab) -> None:
    said: list[str] = []
    setting = figures.Setting(lab, 0.05, 2, said.append)
    servers: list[Server] = [KernelServer("a"), KernelServer("b")]

    def measure(setting: figures.Setting, target: Target) -> dict[str, Any]:
        us = {"p50": 1.0, "p99": 2.0}
        return {"per_second": 10.0, "bytes_per_second": 1.0, "latency": {"us": us}}

    entries = figures.alternate(setting, "x", 7210, servers, measure)
    assert [line[-1] for line in said] == ["a", "b", "b", "a"]
    assert [len(entry["runs"]) for entry in entries] == [2, 2]
    assert entries[0]["median"]["per_second"]["median"] == 10


def test_many_addresses_come_and_go(lab: Lab) -> None:
    def addresses() -> set[str]:
        with in_netns(lab.cfg.client_netns), IPRoute() as ipr:
            found = ipr.get_addr(index=lab.facts.client.index, family=socket.AF_INET)
            return {message.get("IFA_ADDRESS") for message in found}

    before = addresses()
    with many_addresses(lab, 200_000) as sources:
        assert len(sources) == 4
        assert set(sources) <= addresses()
    assert addresses() == before
