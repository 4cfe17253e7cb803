"""What tracing needs: found or not, and with which cure."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from ixnet.control.doctor import INFO, OK, trace_finding
from ixnet.trace import needs
from ixnet.trace.needs import Machine, TraceError

DEBIAN, FEDORA, NONE = frozenset({"debian"}), frozenset({"fedora"}), frozenset[str]()


def machine(tmp_path: Path, release: str, distribution: frozenset[str] = DEBIAN) -> Machine:
    """One without headers."""
    return Machine(release, tmp_path / "modules", tmp_path / "kheaders.tar.xz", distribution)


@pytest.mark.parametrize(
    ("release", "package"),
    [
        ("6.1.0-18-amd64", "linux-headers-6.1.0-18-amd64"),
        ("6.12.9+bpo-cloud-amd64", None),
        ("7.3.4+deb13-amd64", "linux-headers-7.3.4+deb13-amd64"),
        ("7.3.4+deb13-cloud-amd64", "linux-headers-7.3.4+deb13-cloud-amd64"),
        ("6.8.0-45-generic", "linux-headers-6.8.0-45-generic"),
        ("6.18.44-fc-v657", None),
    ],
)
def test_headers_package_is_named_for_a_distribution_kernel_alone(
    tmp_path: Path, release: str, package: str | None
) -> None:
    assert needs.headers_package(machine(tmp_path, release)) == package


def test_bcc_cure_names_the_headers_too_where_they_are_missing(tmp_path: Path) -> None:
    one = machine(tmp_path, "6.1.0-18-amd64")
    both = "apt-get install python3-bpfcc linux-headers-6.1.0-18-amd64"
    assert needs.bcc_cure(one) == both
    one.kheaders.touch()
    assert needs.bcc_cure(one) == "apt-get install python3-bpfcc"


def test_cures_elsewhere_name_that_distributions_packages(tmp_path: Path) -> None:
    fedora = machine(tmp_path, "6.9.7-200.fc40.x86_64", FEDORA)
    assert needs.bcc_cure(fedora).startswith("dnf install python3-bcc kernel-devel-6.9.7")
    assert needs.headers_cure(fedora) == "dnf install kernel-devel-6.9.7-200.fc40.x86_64"
    assert "python3-bpfcc" in needs.bcc_cure(machine(tmp_path, "6.9.7", NONE))
    assert "CONFIG_IKHEADERS" in needs.headers_cure(machine(tmp_path, "6.18.44-fc-v657"))


@pytest.mark.parametrize("kind", ["source", "build"])
def test_headers_are_found_where_modules_lead(tmp_path: Path, kind: str) -> None:
    one = machine(tmp_path, "7.0.0")
    assert not needs.has_headers(one)
    place = one.modules / one.release / kind / "include/linux"
    place.mkdir(parents=True)
    (place / "kconfig.h").touch()
    assert needs.has_headers(one)


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither this environment nor the system has bcc; returns the system's place for it."""
    monkeypatch.setitem(sys.modules, "bcc", None)
    monkeypatch.setattr(needs, "DIST_PACKAGES", tmp_path)
    monkeypatch.setattr(needs.os, "geteuid", lambda: 0)
    monkeypatch.setattr(needs, "missing_capabilities", lambda: ())
    return tmp_path


def write_bcc(place: Path, text: str) -> None:
    (place / "bcc").mkdir()
    (place / "bcc/__init__.py").write_text(text)
    (place / "bcc/part.py").write_text("word = 'here'\n")


def test_bcc_of_the_system_is_taken_without_its_neighbours(
    no_bcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bcc(no_bcc, "from .part import word\nclass BPF: pass\n")
    before = list(sys.path)
    module = needs.load_bcc()
    assert isinstance(module, ModuleType) and module.word == "here"
    assert sys.path == before


@pytest.mark.parametrize("text", ["word = 1\n", "raise OSError('no libbcc.so.0')\n"])
def test_another_bcc_or_a_broken_one_is_none(no_bcc: Path, text: str) -> None:
    write_bcc(no_bcc, text)
    with pytest.raises(TraceError, match="bcc is not installed"):
        needs.load_bcc()


def test_problems_are_told_one_after_the_other(
    no_bcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine(tmp_path, "6.1.0-18-amd64")
    monkeypatch.setattr(needs, "TRACEFS", tmp_path / "events")
    monkeypatch.setattr(needs, "BTF", tmp_path / "vmlinux")
    monkeypatch.setattr(needs.os, "geteuid", lambda: 1000)
    told: list[tuple[str, str]] = []

    def tell() -> None:
        found = needs.problem(one)
        assert found is not None
        told.append((found.message, found.cure))

    tell()
    monkeypatch.setattr(needs.os, "geteuid", lambda: 0)
    tell()
    monkeypatch.setattr(needs, "load_bcc", lambda: ModuleType("bcc"))
    tell()
    one.kheaders.touch()
    tell()
    needs.TRACEFS.mkdir()
    tell()
    needs.BTF.touch()
    assert needs.problem(one) is None
    needs.require(one)
    parts = ("root's rights", "bcc is not", "no headers", "events are not", "no BTF")
    assert len(told) == len(parts)
    assert all(part in message for part, (message, _) in zip(parts, told, strict=True))
    assert all(cure for _, cure in told)
    assert told[2][1] == "apt-get install linux-headers-6.1.0-18-amd64"
    assert told[3][1] == "mount -t debugfs debugfs /sys/kernel/debug"


def test_distribution_is_read_with_its_kin(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('NAME="Ubuntu"\nID=ubuntu\nID_LIKE="debian"\n')
    assert needs._distribution(path) == {"ubuntu", "debian"}
    assert needs._distribution(tmp_path / "none") == frozenset()


def test_doctor_tells_what_is_missing_without_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_finding(None).level == OK
    found = trace_finding(TraceError("bcc is not installed", "apt-get install python3-bpfcc"))
    assert found.level == INFO
    assert "bcc is not installed" in found.value and "apt-get install" in found.cure
