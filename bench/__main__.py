"""`python -m bench`: the benchmark tables, each also a command of its own.

    python -m bench [--json FILE] [--seconds T] [--rounds N] [limit] [native] [compare] [dune]

limit: bare AF_XDP over the lab's link. native: the dataplane at both ends against that. compare:
the servers against each other (bench/demo.py without its checks). dune: the Dune paper's tables,
which need a KVM that is fit. The first three, if none is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import demo, native
from bench.dune import run as dune
from bench.limit import run as limit

TABLES = ("limit", "native", "compare", "dune")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tables one after the other; the exit status is the worst of theirs."""
    parser = argparse.ArgumentParser(prog="bench", description="the benchmark tables")
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="FILE gets -TABLE before its end")
    parser.add_argument("--seconds", help="measured time a point")
    parser.add_argument("--rounds")
    args = parser.parse_args(argv)
    unknown = set(args.tables) - set(TABLES)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    status = 0
    for name in args.tables or TABLES[:3]:
        words: list[str] = []
        if args.seconds and name != "dune":
            words += ["--seconds", args.seconds]
        if args.rounds:
            words += ["--rounds", args.rounds]
        if args.json:
            words += ["--json", str(args.json.with_stem(f"{args.json.stem}-{name}"))]
        if name == "limit":
            status = max(status, limit.main(words))
        elif name == "native":
            status = max(status, native.main(words))
        elif name == "dune":
            status = max(status, dune.main(words))
        else:
            status = max(status, demo.main(["--no-checks", *words]))
    return status


if __name__ == "__main__":
    sys.exit(main())
