"""The `ixnet` command as a user meets it: a process with arguments, output and an exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bench.common import patience
from ixnet.control.instance import process_start_ticks
from ixnet.control.lab import LabConfig, lab_down, lab_status
from ixnet.control.namespaces import in_netns
from ixnet.control.stats import meanings
from ixnet.dune import probe

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")


def ixnet(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs `ixnet WORDS`."""
    return subprocess.run(
        [sys.executable, "-m", "ixnet", *words],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=240, **more,
    )  # fmt: skip


def test_help_is_quick_and_names_the_commands() -> None:
    took: list[float] = []
    while not took or (min(took) >= patience(1) and len(took) < 10):
        begin = time.monotonic()
        run = ixnet("--help")
        took.append(time.monotonic() - begin)
    assert min(took) < patience(1)
    assert run.returncode == 0
    for command in ("doctor", "lab", "run", "stat"):
        assert command in run.stdout


def test_help_does_not_load_what_commands_need() -> None:
    code = "import sys, ixnet.cli; print('pyroute2' in sys.modules, 'ixnet._core' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=ROOT)  # fmt: skip
    assert run.stdout == "False False\n"


def test_dune_placement_on_an_unfit_kvm_says_why() -> None:
    report = probe()
    if report.fit:
        pytest.skip("this machine's KVM is fit")
    run = ixnet("run", "-i", "lo", "--placement", "dune", "apps/echo.py")
    assert run.returncode == 2 and run.stdout == ""
    assert f"this machine's KVM is unfit: {report.reason}" in run.stderr
    assert "cure: " in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_as_dev_null(closed: str) -> None:
    argv = [sys.executable, "-m", "ixnet", "lab", "status", "--name", f"no{os.getpid()}"]
    to_null = closed.replace("&-", "/dev/null")
    runs = [
        subprocess.run(["sh", "-c", f'exec "$@" {how}', "sh", *argv], capture_output=True, cwd=ROOT)
        for how in (closed, to_null)
    ]
    assert len({(run.returncode, run.stdout, run.stderr) for run in runs}) == 1
    doctor = f'"{sys.executable}" -m ixnet doctor {closed.split()[0]}'
    run = subprocess.run(["sh", "-c", doctor], capture_output=True, check=False, cwd=ROOT)
    assert run.returncode in (0, 1) and b"unexpected" not in run.stdout + run.stderr


@pytest.mark.parametrize("words", ["--version", "--help", "doctor", "doctor --json", "lab status"])
def test_output_that_can_not_be_written_is_one_line(words: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "ixnet", *words.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
    assert run.stderr == "ixnet: can't write standard output: No space left on device\n"
    assert run.returncode == 2


def test_reader_of_the_output_that_goes_away_is_no_news() -> None:
    script = f"{sys.executable} -m ixnet doctor --json; echo $? >&2"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        ["sh", "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    os.close(writer)
    assert run.stderr == "1\n"


def test_version_is_said() -> None:
    import ixnet as package

    assert ixnet("--version").stdout == f"ixnet {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "-i", "lo", "--mode", "fast", "x.py"], "--mode fast is not known"),
        (["run", "-i", "lo", "--placement", "moon", "x.py"], "--placement moon is not known"),
        (["run", "-i", "lo", "--kick", "thread", "x.py"], "add --placement dune"),
        (["run", "-i", "lo", "--queues", "many", "x.py"], "--queues many is no number"),
        (["run", "-i", "lo", "--cores", "a", "x.py"], "'a' is no list of cores"),
        (["run", "-i", "lo", "--batch", "0", "x.py"], "--batch 0 is out of range"),
        (["run", "-i", "lo", "--own-address", "10.0.0.1", "x.py"], "no prefix length"),
        (["run", "-i", "lo", "--own-address", "fd00::1/129", "x.py"], "--own-address"),
        *(
            (["run", "-i", "lo", "--own-address", own, "x.py"], f"{own} is no address that a host")
            for own in (
                "0.0.0.0/0",
                "127.0.0.1/8",
                "224.0.0.1/4",
                "10.0.0.255/24",
                "10.0.0.0/24",
                "255.255.255.255/32",
                "::/64",
                "::1/128",
                "ff02::1/64",
            )
        ),
        *(
            (["memcached", "-i", "lo", "-t", "1", *words], f"{' '.join(words)} is out of range")
            for words in (
                ["-m", "-5"],
                ["-b", "-1"],
                ["-c", "-1"],
                ["-n", "-1"],
                ["-f", "nan"],
                ["-f", "inf"],
                ["-f", "-2.0"],
                ["-I", "9g"],
                ["-o", "hashpower=9999999999"],
            )
        ),
        (["run", "-i", "lo", "--ports", "5", "x.py"], "--ports 5 is no range"),
        (["run", "-i", "lo", "--busy-poll", "--spin-us", "5", "x.py"], "give one of them"),
        (["run", "-i", "lo", "no-such-app.py"], "there is no application no-such-app.py"),
        (["run", "-i", "lo", "tests"], "tests is a directory"),
        (["stat", "--name", "no-such-instance"], "no instance is called 'no-such-instance'"),
    ],
)
def test_mistake_is_one_message_with_its_cure(words: list[str], part: str) -> None:
    run = ixnet(*words)
    assert run.returncode == 2
    assert part in run.stderr and "cure: " in run.stderr
    assert run.stderr.startswith("ixnet: ") and "Traceback" not in run.stderr
    assert run.stdout == ""


def test_debug_shows_where_an_error_came_from() -> None:
    run = ixnet("stat", "--name", "nobody", env={**os.environ, "IXNET_DEBUG": "1"})
    assert run.returncode == 2 and "Traceback" in run.stderr and "cure: " in run.stderr


def test_missing_argument_is_a_usage_error() -> None:
    run = ixnet("run", "app.py")
    assert run.returncode == 2 and "--interface" in run.stderr


def test_doctor_speaks_json_with_a_cure_for_each_trouble() -> None:
    run = ixnet("doctor", "--json")
    findings = json.loads(run.stdout)
    areas = {finding["area"] for finding in findings}
    assert {"kernel", "rights", "memory", "cpu", "network", "ixnet"} <= areas
    assert all(finding["cure"] for finding in findings if finding["level"] == "fail")
    failed = any(finding["level"] == "fail" for finding in findings)
    assert run.returncode == (1 if failed else 0)
    whats = {finding["what"] for finding in findings}
    assert {"capabilities", "huge pages", "busy polling", "KVM", "BTF", "locked memory"} <= whats


@needs_root
def test_doctor_without_rights_says_which_are_missing() -> None:
    argv = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-m", "ixnet"]
    run = subprocess.run([*argv, "doctor", "--json"], capture_output=True, text=True, check=False,
                         cwd=ROOT)  # fmt: skip
    if "No module named" in run.stderr or "Permission denied" in run.stderr:
        pytest.skip("another user can't read this tree")
    finding = next(f for f in json.loads(run.stdout) if f["what"] == "capabilities")
    assert finding["level"] == "fail" and "CAP_NET_ADMIN" in finding["value"]
    assert run.returncode == 1


def test_doctor_finds_an_interface_that_is_not_there() -> None:
    run = ixnet("doctor", "--interface", "nope0")
    assert run.returncode == 1
    assert "nope0" in run.stdout


@needs_root
def test_lab_comes_up_is_seen_and_goes_down() -> None:
    name = f"tc{os.getpid()}"
    cfg = LabConfig.named(name)
    try:
        assert ixnet("lab", "status", "--name", name).returncode == 1
        up = ixnet("lab", "up", "--name", name, "--json")
        assert up.returncode == 0, up.stderr
        facts = json.loads(up.stdout)
        assert facts["server"]["rx_queues"] == 2 and facts["created"] is True
        again = ixnet("lab", "up", "--name", name)
        assert again.returncode == 0 and "was up already" in again.stdout
        status = ixnet("lab", "status", "--name", name)
        assert status.returncode == 0 and cfg.server_netns in status.stdout
        doctor = subprocess.run(
            ["nsenter", f"--net=/run/netns/{cfg.server_netns}", sys.executable, "-m", "ixnet",
             "doctor", "-i", cfg.server_if, "--json"],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        findings = {f["what"]: f for f in json.loads(doctor.stdout) if f["area"] == cfg.server_if}
        assert "native copy" in findings["AF_XDP modes"]["value"]
        assert findings["queues"]["value"] == "2"
        assert findings["XDP program"]["level"] == "ok"
        assert "fits frames of 2048 bytes" in findings["MTU"]["value"]
        down = ixnet("lab", "down", "--name", name)
        assert down.returncode == 0 and "lab is down" in down.stdout
        assert "there was no lab" in ixnet("lab", "down", "--name", name).stdout
    finally:
        lab_down(cfg, kill=True)
    assert lab_status(cfg).state == "absent"


@needs_root
def test_lab_that_can_not_be_is_one_message() -> None:
    run = ixnet("lab", "up", "--queues", "0")
    assert run.returncode == 2
    assert run.stderr.startswith("ixnet: queues must be") and "Traceback" not in run.stderr


@needs_root
def test_stat_shows_a_running_instance() -> None:
    name = f"ts{os.getpid()}"
    cfg = LabConfig.named(name)
    app = ROOT / "tests/runtime/apps/echo.py"
    argv = ["nsenter", f"--net=/run/netns/{cfg.server_netns}", sys.executable, "-m", "ixnet"]
    argv += ["run", "-i", cfg.server_if, "--name", name, "--frames", "2048", "--max-flows", "4096"]
    process = None
    watchers: list[subprocess.Popen[str]] = []
    try:
        assert ixnet("lab", "up", "--name", name).returncode == 0
        process = subprocess.Popen(
            [*argv, str(app), "7000"], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        assert any(line.startswith("ready") for line in process.stdout)
        data = json.loads(ixnet("stat", "--name", name, "--json").stdout)
        assert data["interface"] == cfg.server_if and data["placement"] == "inline"
        assert data["mode"] == "native copy" and data["state"] == "serving"
        assert data["claims"] == ["tcp *:7000"]
        assert [shard["queue"] for shard in data["shards"]] == [0, 1]
        assert data["total"]["cycles"] > 0 and "redirect_claim" in data["verdicts"]
        assert {"drop_tcp_csum", "tcp_rexmit"} <= set(data["total"])
        shown = ixnet("stat", "--name", name)
        assert shown.returncode == 0
        for word in ("native copy", "tcp *:7000", "cycles", "shard 1"):
            assert word in shown.stdout
        assert "drop_tcp_csum" not in shown.stdout, "nothing was dropped"
        with in_netns(cfg.server_netns), IPRoute() as ipr:
            [index] = ipr.link_lookup(ifname=cfg.server_if)
            ipr.link("set", index=index, state="down")
            ipr.link("set", index=index, ifname="renamed0")
            ipr.link("set", index=index, state="up")
        again = subprocess.run([*argv[:6], "-i", "renamed0", str(app), "1"], capture_output=True,
                               text=True, check=False, cwd=ROOT)  # fmt: skip
        assert again.returncode == 2 and f"is run by the instance {name}" in again.stderr
        every = ixnet("stat", "--name", name, "--all").stdout.splitlines()
        rows = [line for line in every if line.startswith("drop_tcp_csum")]
        assert rows and meanings()["drop_tcp_csum"] in rows[0], "a row is a line, for grep"
        watchers = [
            subprocess.Popen(
                [sys.executable, "-m", "ixnet", "stat", "--name", name, "--watch", *more],
                stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for more in (["--interval", "0.1"], ["--interval", "0.1", "--json"])
        ]  # fmt: skip
        table, objects = watchers
        assert table.stdout is not None and objects.stdout is not None
        looks = (line for line in table.stdout if line.startswith(f"{name}: "))
        assert next(looks) and next(looks), "each look is shown at once, not at the end"
        assert any(line.startswith('  "total"') for line in objects.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        out, _ = table.communicate(timeout=120)
        assert table.returncode == 0 and "the instance has ended" in out
        objects.communicate(timeout=120)
        assert objects.returncode == 0, "what has ended isn't watched any longer"
        assert ixnet("stat", "--name", name).returncode == 2
    finally:
        for one in (process, *watchers):
            if one is not None and one.poll() is None:
                one.kill()
                one.wait()
        lab_down(cfg, kill=True)


@pytest.mark.parametrize("how", [[], ["--json"], ["--watch"]])
def test_stat_of_a_starting_instance_says_so(tmp_path: Path, how: list[str]) -> None:
    directory = tmp_path / "ixnet" / "slow"
    directory.mkdir(parents=True)
    ticks = process_start_ticks(os.getpid())
    facts = {"pid": os.getpid(), "start_ticks": ticks, "name": "slow", "interface": "eth9"}
    (directory / "instance.json").write_text(json.dumps({**facts, "state": "starting"}))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = ixnet("stat", "--name", "slow", *how, env=env)
    assert run.returncode == 2 and "slow is still starting" in run.stderr
    assert "cure: " in run.stderr
