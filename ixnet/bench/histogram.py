"""Latency histograms: from the load generator's buckets, merged, and in JSON.

Kept in HdrHistogram's own form, three significant digits, so that other tools can read the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hdrh.histogram import HdrHistogram

# As load/histogram.h has them.
SUB_BITS = 10
MAX_BITS = 40
_SUB = 1 << SUB_BITS

SHARES = (("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p999", 99.9))


def bucket_value_ns(index: int) -> float:
    """The middle of one of the load generator's buckets, ns."""
    if index < _SUB:
        return float(index)
    shift = index // _SUB - 1
    low = (_SUB + index % _SUB) << shift
    return low + ((1 << shift) - 1) / 2


class Histogram:
    """Durations. Recorded in ns; shown in us."""

    def __init__(self, encoded: str | None = None) -> None:
        """encoded: what `encode` gave."""
        self._hdr: Any = (
            HdrHistogram.decode(encoded.encode()) if encoded else HdrHistogram(1, 1 << MAX_BITS, 3)
        )

    @classmethod
    def from_buckets(cls, buckets: Iterable[Sequence[int]]) -> Histogram:
        """Of a load worker's [[bucket, count], ...]."""
        made = cls()
        for index, count in buckets:
            value = max(1, min(int(bucket_value_ns(index)), (1 << MAX_BITS) - 1))
            made._hdr.record_value(value, count)
        return made

    def add(self, other: Histogram) -> None:
        """Takes another one's samples in."""
        self._hdr.add(other._hdr)

    def encode(self) -> str:
        """Base64 of HdrHistogram's compressed form (V2)."""
        text: bytes = self._hdr.encode()
        return text.decode()

    @property
    def count(self) -> int:
        """How many samples."""
        return int(self._hdr.get_total_count())

    def percentile_us(self, percent: float) -> float:
        """The value that so many percent of the samples don't exceed; 0 without any."""
        return int(self._hdr.get_value_at_percentile(percent)) / 1e3 if self.count else 0.0

    def summary(self) -> dict[str, float]:
        """Percentiles, mean, least and most, us."""
        if not self.count:
            return dict.fromkeys((*(name for name, _ in SHARES), "mean", "min", "max"), 0.0)
        figures = {name: self.percentile_us(percent) for name, percent in SHARES}
        figures["mean"] = float(self._hdr.get_mean_value()) / 1e3
        figures["min"] = int(self._hdr.get_min_value()) / 1e3
        figures["max"] = int(self._hdr.get_max_value()) / 1e3
        return figures

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the summary in us, the count, and all of it."""
        return {"us": self.summary(), "count": self.count, "hdr": self.encode()}

    def curve(self, points: int = 200) -> list[tuple[float, float]]:
        """(percent, us) along the distribution, denser towards its tail."""
        found: list[tuple[float, float]] = []
        for i in range(points + 1):
            percent = 100 - 100 * 10 ** (-5 * i / points)
            if percent and self.count and self.count * (1 - percent / 100) < 0.5:
                break
            found.append((percent, self.percentile_us(percent)))
        return found
