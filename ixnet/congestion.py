"""Names of what the core has numbers for: congestion control, ECN, pacing."""

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


def pacing_number(pacing: bool | int) -> int:
    """The value of IX_OPT_PACING: of True by window and round-trip time, of a number at most so
    many bytes a second, of False none. Errors: ValueError.
    """
    if pacing is True:
        return 2**32
    if pacing < 0:
        raise ValueError(f"{pacing} bytes a second is no pace")
    return int(pacing)
