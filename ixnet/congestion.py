"""Names of what the core has numbers for: congestion control and ECN."""

from __future__ import annotations

from typing import Final

from ixnet._core import lib

CONGESTION: Final[dict[str, int]] = {
    "cubic": lib.IX_CC_CUBIC,
    "newreno": lib.IX_CC_NEWRENO,
    "dctcp": lib.IX_CC_DCTCP,
}
ECN: Final[dict[str, int]] = {
    "accept": lib.IX_ECN_ACCEPT,
    "request": lib.IX_ECN_REQUEST,
    "off": lib.IX_ECN_OFF,
}


def congestion_number(name: str | None) -> int:
    """enum ix_congestion of a name; 0 for None. Errors: ValueError."""
    if name is None:
        return int(lib.IX_CC_DEFAULT)
    if name not in CONGESTION:
        raise ValueError(f"{name!r} is no congestion control: {', '.join(CONGESTION)}")
    return CONGESTION[name]
