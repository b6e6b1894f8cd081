"""Latencies in a high dynamic range histogram, cheap enough to record every message.

A value goes into a dict under its 11 leading bits (0.1 % fine); the HDR histogram takes the few
distinct values over when it is asked for quantiles. Recording costs a dict update instead of the
histogram's own microsecond; `tidegate sim` at full rate pays for it.
"""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

__all__ = ["QUANTILES", "Latencies"]

QUANTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
_HIGHEST_US = 24 * 3600 * 1_000_000
_DIGITS = 3
_RECENT_MAX = 20_000


class Latencies:
    """A distribution of times in microseconds, from 1 us to a day."""

    __slots__ = ("_histogram", "_recent")

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        self._recent: dict[int, int] = {}

    def record(self, us: int) -> None:
        """Add one time; what is outside 1 us to a day counts as the nearer of the two."""
        shift = us.bit_length() - 11
        if shift > 0:
            us = us >> shift << shift
        recent = self._recent
        recent[us] = recent.get(us, 0) + 1
        if len(recent) > _RECENT_MAX:
            self.settle()

    def settle(self) -> None:
        """Move what was recorded into the histogram: a new 'recent' begins."""
        record = self._histogram.record_value
        for us, times in self._recent.items():
            record(min(max(us, 1), _HIGHEST_US), times)
        self._recent = {}

    def recent_ms(self, percent: float) -> float:
        """Return a quantile, in milliseconds, of what was recorded since the last `settle`."""
        left = sum(self._recent.values()) * percent / 100.0
        for us in sorted(self._recent):
            left -= self._recent[us]
            if left <= 0:
                return us / 1000.0
        return 0.0

    def count(self) -> int:
        """Return how many times were recorded."""
        self.settle()
        return int(self._histogram.get_total_count())

    def quantile_ms(self, percent: float) -> float:
        """Return the time in milliseconds that `percent` of all stay under; 0 without any."""
        self.settle()
        if not self._histogram.get_total_count():
            return 0.0
        return float(self._histogram.get_value_at_percentile(percent)) / 1000.0

    def as_dict(self) -> dict[str, float]:
        """Return the quantiles and the greatest time by name, in milliseconds."""
        quantiles = {f"p{percent:g}_ms": self.quantile_ms(percent) for percent in QUANTILES}
        return quantiles | {"max_ms": self.quantile_ms(100.0)}
