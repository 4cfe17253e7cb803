"""`python -m bench`: the benchmark tables, each also a command of its own.

    python -m bench [--json FILE] [--seconds T] [--rounds N] [--quick] [--readme FILE]
                    [figures] [limit] [native] [compare] [dune]

figures: what ixnet is held to, each beside its goal (--quick leaves connections out: 10 minutes at
most; --readme puts them into the README). limit: bare AF_XDP over the lab's link. native: the
dataplane at both ends against that. compare: the servers against each other (bench/demo.py without
its checks). dune: the Dune paper's tables, which need a KVM that is fit. The figures, if none is
named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import demo, figures, native
from bench.dune import run as dune
from bench.limit import run as limit

TABLES = ("figures", "limit", "native", "compare", "dune")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tables one after the other; the exit status is the worst of theirs."""
    parser = argparse.ArgumentParser(prog="bench", description="the benchmark tables")
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="FILE gets -TABLE before its end")
    parser.add_argument("--seconds", help="measured time a point")
    parser.add_argument("--rounds")
    parser.add_argument("--quick", action="store_true", help="figures without connections")
    parser.add_argument("--readme", metavar="FILE", help="figures: the file with the marks")
    args = parser.parse_args(argv)
    unknown = set(args.tables) - set(TABLES)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    status = 0
    for name in args.tables or TABLES[:1]:
        words: list[str] = []
        if args.seconds and name != "dune":
            words += ["--seconds", args.seconds]
        if args.rounds:
            words += ["--rounds", args.rounds]
        if args.json:
            words += ["--json", str(args.json.with_stem(f"{args.json.stem}-{name}"))]
        if name == "figures":
            words += ["--quick"] if args.quick else []
            words += ["--readme", args.readme] if args.readme else []
            status = max(status, figures.main(words))
        elif name == "limit":
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
