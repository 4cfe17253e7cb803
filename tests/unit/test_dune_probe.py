"""libdune's self-test, on this machine's KVM as it is: fit, unfit or none.

What an unfit KVM must lead to is tested where there is one, and otherwise on reports made up.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ixnet import dune
from ixnet.control import doctor, guest
from ixnet.control.errors import IxError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_PROGRAM = ROOT / "build/tests/dune/probe_limit"
SECONDS_MOST = 240.0
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to lose rights")


@pytest.fixture(scope="module")
def report() -> dune.Report:
    return dune.probe()


@pytest.fixture
def unfit(report: dune.Report) -> dune.Report:
    """A report of an unfit KVM: this machine's, if it is."""
    if not report.fit:
        return report
    reason = "SYSCALL from ring 3 doesn't arrive in ring 0"
    return replace(
        report, fitness=dune.Fitness.SYSCALL_UNSOUND, reason=reason, cure="use another machine"
    )


def in_child(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own: libdune is set up once a process."""
    argv = [*before, sys.executable, "-c", f"from ixnet import dune\n{code}"]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS_MOST
    )


# ---- the report --------------------------------------------------------------------------------


def test_report_says_fit_exactly_when_all_experiments_went_well(report: dune.Report) -> None:
    sound = (
        report.syscall_raises_privilege
        and report.supervisor_pages_closed
        and report.ring0_native
        and report.traps_sound
    )
    if report.fit:
        assert sound and report.reason == "" and report.cure == ""
        assert report.exit_ns > 0 and report.ring0_ps_per_instruction > 0
    else:
        assert report.reason and report.cure
    assert report.kernel == os.uname().release
    assert report.vendor


def test_report_names_an_unsound_syscall_first(report: dune.Report) -> None:
    # Ring 3 that can't get into ring 0 is told before how fast ring 0 is.
    if report.fitness is dune.Fitness.NO_KVM:
        pytest.skip(f"this machine has no KVM: {report.reason}")
    if report.syscall_raises_privilege:
        assert report.fitness is not dune.Fitness.SYSCALL_UNSOUND
    elif report.fitness > dune.Fitness.NO_NESTED_PAGING:
        assert report.fitness is dune.Fitness.SYSCALL_UNSOUND
        assert "SYSCALL" in report.reason and "VT-x" in report.cure


def test_probe_leaves_nothing_behind() -> None:
    def state() -> tuple[int, frozenset[int], str, int]:
        mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        timers = Path("/proc/self/timers").read_text() if Path("/proc/self/timers").exists() else ""
        tasks = len(os.listdir("/proc/self/task"))
        return len(os.listdir("/proc/self/fd")), mask, timers, tasks

    before = state()
    dune.probe()
    assert state() == before


@contextmanager
def alarms(seconds: float) -> Iterator[list[int]]:
    seen: list[int] = []
    old = signal.signal(signal.SIGVTALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


def test_probe_among_signals_finds_the_same(report: dune.Report) -> None:
    with alarms(0.002) as seen:
        while not seen:
            pass
        assert dune.probe().fitness is report.fitness


def test_probe_takes_no_time_worth_mentioning() -> None:
    began = time.monotonic()
    dune.probe()
    assert time.monotonic() - began < SECONDS_MOST / 2


def test_guest_that_never_ends_is_ended() -> None:
    if not LIMIT_PROGRAM.exists():
        pytest.skip(f"{LIMIT_PROGRAM.name} is not built: make dune-build")
    run = subprocess.run(
        [LIMIT_PROGRAM], capture_output=True, text=True, check=False, timeout=SECONDS_MOST
    )
    if run.returncode == 77:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr


# ---- refusal -----------------------------------------------------------------------------------


def test_init_on_unfit_kvm_refuses_with_the_reason(report: dune.Report) -> None:
    if report.fit:
        pytest.skip("this machine's KVM is fit: nothing to refuse")
    code = """
try:
    dune.init()
except dune.Unfit as error:
    print(error.errnum, error, sep="|")
print(dune.ring())
try:
    dune.enter_user()
except dune.DuneError as error:
    print(error.errnum, error, sep="|")
"""
    run = in_child(code)
    first, ring, second = run.stdout.splitlines()
    assert first.startswith(f"{errno.EOPNOTSUPP}|") and report.reason in first
    assert f"(cure: {report.cure})" in first
    assert ring == "None"
    assert second.startswith(f"{errno.EINVAL}|")


def test_enter_user_on_fit_kvm_runs_python_in_ring_3(report: dune.Report) -> None:
    if not report.fit:
        pytest.skip(f"this machine's KVM is unfit: {report.reason}")
    code = """
dune.init()
dune.enter_user()
ring = dune.ring()
dune.leave()
print(ring, dune.ring(), dune.stats().exits > 0)
"""
    run = in_child(code)
    assert run.stdout.split() == ["3", "None", "True"], run.stderr


NO_KVM = "r = dune.probe(); print(r.fitness.name, r.reason, r.cure, sep='|')"


@needs_root
def test_no_kvm_device_is_said_with_the_module_to_load() -> None:
    script = 'mount -t tmpfs none /dev && exec "$@"'
    run = in_child(NO_KVM, "unshare", "--mount", "sh", "-c", script, "sh")
    if run.returncode != 0 and "unshare" in run.stderr:
        pytest.skip(f"no mount namespace of one's own here: {run.stderr.strip()}")
    fitness, reason, cure = run.stdout.strip().split("|")
    assert fitness == "NO_KVM"
    assert reason == "there is no /dev/kvm"
    assert "kvm_intel" in cure


@needs_root
def test_user_who_may_not_open_kvm_is_told_the_group() -> None:
    device = Path("/dev/kvm")
    if not device.exists():
        pytest.skip("this machine has no /dev/kvm")
    if device.stat().st_mode & 0o006:
        pytest.skip("everybody may open this machine's /dev/kvm")
    # The rights go once all is loaded: others may not be able to read this tree.
    lose = f"import os; os.setgroups([]); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})"
    run = in_child(f"dune.ring()\n{lose}\n{NO_KVM}")
    fitness, _, cure = run.stdout.strip().split("|")
    assert fitness == "NO_KVM", run.stderr
    assert "group kvm" in cure


# ---- what shows it -----------------------------------------------------------------------------


def test_doctor_shows_the_report(report: dune.Report) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ixnet", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    found = {f["what"]: f for f in json.loads(run.stdout) if f["area"] == "dune"}
    if report.fitness is dune.Fitness.NO_KVM:
        assert report.reason in found["KVM"]["value"]
        return
    assert {"KVM", "self-test", "costs", "guest's features"} <= found.keys()
    assert found["KVM"]["level"] == ("ok" if report.fit else "info")
    if not report.fit:
        assert report.reason in found["KVM"]["value"] and report.cure in found["KVM"]["cure"]


def test_doctor_of_unfit_kvm_says_why_and_which_experiment_failed(unfit: dune.Report) -> None:
    findings = {f.what: f for f in doctor.dune_findings(replace(unfit, traps_sound=False))}
    assert findings["KVM"].value.startswith("unfit: ") and findings["KVM"].cure
    assert "exceptions arrive as they should: no" in findings["self-test"].value


def test_doctor_of_fit_kvm_says_what_it_costs(report: dune.Report) -> None:
    fit = replace(
        report, fitness=dune.Fitness.FIT, reason="", cure="", exit_ns=45_000, ring_switch_ns=120,
        ring0_ps_per_instruction=730, xsave=True,
    )  # fmt: skip
    findings = {f.what: f for f in doctor.dune_findings(fit)}
    assert findings["KVM"].level == doctor.OK
    assert "an exit 45.0 us" in findings["costs"].value and "120 ns" in findings["costs"].value
    assert "xsave" in findings["guest's features"].value


def test_placement_dune_on_unfit_kvm_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, unfit: dune.Report
) -> None:
    monkeypatch.setattr(dune, "probe", lambda: unfit)
    with pytest.raises(dune.Unfit) as error:
        guest.require_fit()
    assert unfit.reason in error.value.message
    assert error.value.cure == unfit.cure


def test_placement_dune_on_fit_kvm_is_taken(
    monkeypatch: pytest.MonkeyPatch, report: dune.Report
) -> None:
    fit = replace(report, fitness=dune.Fitness.FIT, reason="", cure="")
    monkeypatch.setattr(dune, "probe", lambda: fit)
    assert guest.require_fit() == fit


def test_errors_without_libdune_say_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ixnet._dune", None)
    with pytest.raises(IxError) as error:
        dune.probe()
    assert error.value.cure == "make build"
