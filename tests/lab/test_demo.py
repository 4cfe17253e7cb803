"""`make demo PLACEMENT=dune` where KVM is fit: in the lab's virtual machine (`make lab`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs a fit KVM: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from ixnet.control.lab import LabConfig, lab_status
from tests.lab.wires import ROOT, note

pytestmark = pytest.mark.timeout(1500)


def test_demo_in_the_dune_placement_passes_all_its_checks(tmp_path: Path) -> None:
    """What the target runs, with one short round of its comparison: times tell nothing here."""
    record = tmp_path / "demo.json"
    argv = [sys.executable, "bench/demo.py", "--placement", "dune", "--quick"]
    done = subprocess.run(
        [*argv, "--json", str(record)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        note(line)
    assert done.returncode == 0
    told = json.loads(record.read_text())
    assert told["ok"] and told["placement"] == "dune"
    assert len(told["checks"]) >= 7 and all(check["ok"] for check in told["checks"])
    assert "dune" in told["ready_line"]
    assert all("dune" in line for label, line in told["comparison"]["ready_lines"].items()
               if label != "kernel")  # fmt: skip
    assert lab_status(LabConfig.named("demo")).state == "absent"
