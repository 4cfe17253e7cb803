"""The command ``dune-sandbox`` of an installed package: leads to the program that lies in it.

A process of its own is not kept: what runs is the C program (``libdune_shim/sandbox/``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().with_name("dune-sandbox")


def main() -> int:
    """Becomes dune-sandbox with this command's arguments. Returns only when it can't: 125."""
    try:
        os.execv(PROGRAM, ["dune-sandbox", *sys.argv[1:]])
    except OSError as error:
        print(f"dune-sandbox: {PROGRAM}: {error.strerror} (cure: make build)", file=sys.stderr)
    return 125
