"""Which core runs which worker."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ixnet.control.errors import IxError


class CoreError(IxError):
    """The cores asked for can't be had; the message says which and what there is."""


def parse_cores(text: str) -> tuple[int, ...]:
    """'0,2-4' as (0, 2, 3, 4), in the order written. Errors: CoreError."""
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise CoreError(f"'{text}' is no list of cores", "write it like 1 or 0,2-4")
        span = range(int(first), int(last if dash else first) + 1)
        if not span or span[-1] > 65535:
            raise CoreError(f"'{part.strip()}' is no range of cores", "write it like 2-4")
        cores.extend(span)
    return tuple(cores)


def format_cores(cores: Sequence[int]) -> str:
    """(0, 2) as '0,2'."""
    return ",".join(str(core) for core in cores)


def allowed_cores() -> tuple[int, ...]:
    """The cores that this process may run on (its affinity and cgroup), ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def assign_cores(
    workers: int, wanted: Sequence[int] | None, allowed: Sequence[int]
) -> tuple[int, ...]:
    """A core for each of `workers` workers, from `wanted`, or from the end of `allowed`.

    Core 0 takes most of a machine's interrupts and its first processes, so without a wish it comes
    last. More workers than cores share them in turn. Errors: CoreError for a core that is not
    allowed.
    """
    if wanted is not None:
        missing = [core for core in wanted if core not in allowed]
        if missing or not wanted:
            raise CoreError(
                f"core {format_cores(missing)} is not one that this process may use",
                f"choose from {format_cores(allowed)} (see taskset and the cgroup's cpuset)",
            )
        order = list(wanted)
    else:
        order = sorted(core for core in allowed if core != 0) + [c for c in allowed if c == 0]
    return tuple(order[i % len(order)] for i in range(workers))


def spare_cores(used: Sequence[int], allowed: Sequence[int]) -> tuple[int, ...]:
    """Where the control plane should run: off the workers' cores if there are others."""
    return tuple(core for core in allowed if core not in used) or tuple(allowed)
