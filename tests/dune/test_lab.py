"""The guest is what the other tests need: otherwise they would fail for reasons hard to see."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable
from pathlib import Path

from tests.dune import kit

KVM_GET_API_VERSION = 0xAE00


def test_kvm_opens_with_the_stable_api() -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12
    finally:
        os.close(kvm)


def test_kvm_uses_nested_paging(note: Callable[[str], None]) -> None:
    assert Path("/sys/module/kvm_amd/parameters/npt").read_text().strip() in ("Y", "1")
    note(f"{platform.release()}, kvm_amd with nested paging, {os.cpu_count()} CPUs")


def test_run_outlasting_its_time_is_killed_with_its_children() -> None:
    result = kit.run(["sh", "-c", "echo begun; sleep 100 | sleep 100"], timeout=10)
    assert (result.status, result.stdout) == (None, "begun\n")
