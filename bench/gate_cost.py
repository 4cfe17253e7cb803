"""What the protection costs in instructions a message: the gate against direct calls.

    .venv/bin/python bench/gate_cost.py [--rounds N] [--json]

Counts, under valgrind's callgrind, the core's instructions for an echo of 64-byte messages at
batches of 64 (bench/gate_cost.c), inline and as the dune placement runs it: through the gate, with
private copies, answers from the send arena gathered. The way from ring 3 to the gate and back is
the same for every cycle: it is counted in the code of libdune's shim and of native/gateops.c.
Instructions are not time: the switch's own (syscall, xsavec, xrstor, sysretq) are slow ones.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from bench.common import ROOT, BenchError, callgrind, program

SHIM = ROOT / "build/dune/shim.elf"
MODULE = ROOT / "ixnet/ring0.elf"
LIBRARY = ROOT / "ixnet/libixnet.so"
WORKLOADS = {"lent": "sent from where it was received", "arena": "sent from the send arena"}
GOAL_PERCENT = 15.0
_BRANCH = re.compile(r"^j(?!mp)\w+$")


def measure(placement: str, workload: str, rounds: int) -> tuple[int, int, int]:
    """Instructions in the shard's cycles, messages, cycles. Errors: BenchError."""
    with tempfile.TemporaryDirectory() as place:
        done = callgrind(
            Path(place) / "out", f"--toggle-collect=measured_{placement}",
            str(program("gate_cost")), placement, workload, str(rounds),
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise BenchError(f"callgrind counted nothing:\n{done.stderr}")
    messages, cycles = map(int, done.stdout.split())
    return int(found[1]), messages, cycles


def _code(path: Path, *options: str) -> list[list[str]]:
    """Disassembled instructions: address, mnemonic, operands."""
    argv = ["objdump", "-d", "--no-show-raw-insn", *options, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    rows = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)\s*([^#<\n]*)", done.stdout, re.MULTILINE)
    return [[address, name, operands.strip()] for address, name, operands in rows]


def _function(path: Path, name: str) -> int:
    """All instructions of a function: no fewer than any call of it runs, loops aside."""
    count = len(_code(path, f"--disassemble={name}"))
    if not count:
        raise BenchError(f"there is no {name} in {path}")
    return count


def _stub() -> int:
    """Instructions that a module call runs in the entry stub, SYSRET included.

    Of its branches only the second is taken: to the module's hook.
    """
    code = _code(SHIM, "--disassemble-all", "--section=.image")
    at = {int(address, 16): i for i, (address, _, _) in enumerate(code)}
    named = subprocess.run(["nm", str(SHIM)], capture_output=True, text=True, check=True).stdout
    start = re.search(r"^([0-9a-f]+) \w dune_stub_syscall$", named, re.MULTILINE)
    if start is None:
        raise BenchError(f"there is no dune_stub_syscall in {SHIM}")
    i, count, branches = at[int(start[1], 16)], 0, 0
    while code[i][1] not in ("sysretq", "sysret", "sysretl"):
        name, operands = code[i][1:]
        count += 1
        if count > 200:
            raise BenchError("the stub's way of a module call is another than it was")
        branches += bool(_BRANCH.match(name))
        taken = name == "jmp" or (_BRANCH.match(name) and branches == 2)
        i = at[int(operands, 16)] if taken else i + 1
    return count + 1


def switch_instructions() -> int:
    """From the application's poll to ix_gate_call() and back."""
    ring0 = _function(SHIM, "dune_ring0_module") + _function(MODULE, "dune_module_main")
    return _stub() + ring0 + _function(LIBRARY, "gate_poll")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="batches of 64 (200)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    switch, rows = switch_instructions(), {}
    for workload in WORKLOADS:
        inline, messages, _ = measure("inline", workload, args.rounds)
        dune, _, cycles = measure("dune", workload, args.rounds)
        total = dune + switch * cycles
        rows[workload] = {
            "inline": inline / messages,
            "dune": total / messages,
            "of it, the switch": switch * cycles / messages,
            "percent": 100 * (total / inline - 1),
        }
    if args.json:
        print(json.dumps({"switch": switch, "rows": rows}, indent=1))
    else:
        print(f"instructions a message, batches of 64; a ring switch is {switch}")
        for workload, row in rows.items():
            figures = ", ".join(f"{name} {value:.1f}" for name, value in row.items())
            print(f"  {WORKLOADS[workload]}: {figures}")
    if any(row["percent"] > GOAL_PERCENT for row in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
