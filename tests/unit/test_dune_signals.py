"""libdune_shim/shim: signal.c and frame.c, without a guest.

dune_signals.c holds them in a vault of one vCPU whose guest is a set of registers. The reference is
the kernel it runs on: its frames are compared byte by byte with those built here, it returns to
frames that were built here, and real signals interrupt real forwarded calls.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "libdune_shim/shim"
HARNESS = Path(__file__).with_name("dune_signals.c")
CASES = re.findall(r"CASE\((\w+)\)[,}]", HARNESS.read_text())
NO_AVX = 77

FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-O2", "-g", "-fno-pie"]
# As the image is compiled. Here the code doesn't lie in the vault: it is told where that is.
FREESTANDING = [
    "-ffreestanding",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-DDUNE_OWN_VAULT()=((struct dune_vault *)(0x200000000000ull + DUNE_VAULT_AT))",
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("signals")
    gcc = ["gcc", *FLAGS, f"-I{ROOT / 'libdune_shim'}"]
    objects = []
    for name in ("signal", "frame"):
        made = place / f"{name}.o"
        subprocess.run([*gcc, *FREESTANDING, "-c", SHIM / f"{name}.c", "-o", made], check=True)
        objects.append(made)
    program = place / "dune_signals"
    sources = [HARNESS, SHIM / "host.S", SHIM / "touch.S"]
    subprocess.run([*gcc, "-no-pie", "-o", program, *sources, *objects], check=True)
    return program


@pytest.mark.parametrize("case", CASES)
def test_signals_case_agrees_with_the_kernel(harness: Path, case: str) -> None:
    done = subprocess.run([harness, case], capture_output=True, text=True, timeout=120)
    if done.returncode == NO_AVX:
        pytest.skip("this CPU has no AVX")
    assert (done.returncode, done.stderr if case != "host_fault" else "") == (0, "")


def test_cases_are_all_listed(harness: Path) -> None:
    listed = subprocess.run([harness], capture_output=True, text=True, check=True).stdout.split()
    assert listed == CASES
    assert len(CASES) > 25
