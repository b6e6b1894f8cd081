"""What a gateway writes to its card, and a commit window that keeps it within a daily budget.

Written is what this process had the kernel write to storage (Linux, /proc/self/io): journal, its
log and checkpoints, sessions, everything. Small commits cost far more of it a reading than large
ones, a page or two at least each; so under a budget the window between commits is widened, and
acknowledgements wait for it, while more is written than a day's even pace, and narrowed again.

Invariant: the window stays between `commit_window_ms` and `commit_window_max_ms`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from edge.config import JournalConfig
from runtime.background import Background
from runtime.clock import Clock

__all__ = ["Wear", "written_bytes"]

_LOOK_S = 2.0
_SMOOTH_S = 20.0
_DAY_S = 86_400.0
_WIDEN, _NARROW = 1.3, 0.87
_EASY = 0.75  # of the even pace, below which the window is narrowed
_WINDOW_FIRST_MS = 5.0  # what a window of 0 is widened to first
_IO = Path("/proc/self/io")


def written_bytes() -> int:
    """Return the bytes this process had written to storage; 0 where the kernel does not tell."""
    try:
        text = _IO.read_text("ascii")
    except OSError:
        return 0
    fields = dict(line.split(": ") for line in text.splitlines())
    return max(0, int(fields["write_bytes"]) - int(fields.get("cancelled_write_bytes", 0)))


class Wear:
    """Watches what is written and sets the commit window.

    Args:
        config: The window, its limit and the budget.
        clock: Time.
        set_window_s: Told the commit window whenever it changes.
        readings: Returns how many readings were committed so far.
        written: Returns how many bytes were written so far.

    Attributes:
        window_s: The commit window now.
        rate_bytes_s: Written a second, over about twenty.
    """

    def __init__(
        self,
        config: JournalConfig,
        clock: Clock,
        set_window_s: Callable[[float], None],
        readings: Callable[[], int],
        written: Callable[[], int] = written_bytes,
    ) -> None:
        self._config = config
        self._clock = clock
        self._set_window_s = set_window_s
        self._readings = readings
        self._written = written
        self._least_s = config.commit_window_ms / 1000
        self._most_s = max(self._least_s, config.commit_window_max_ms / 1000)
        self._begin = (written(), readings())
        self._seen = (clock.monotonic_s(), written())
        self.window_s = self._least_s
        self.rate_bytes_s = 0.0
        self._background = Background(self._run, "wear")

    async def start(self) -> None:
        """Begin to look every few seconds."""
        self._background.start()

    async def stop(self) -> None:
        """End."""
        await self._background.stop()

    @property
    def written(self) -> int:
        """Bytes written since the start."""
        return self._written() - self._begin[0]

    @property
    def bytes_a_reading(self) -> float:
        """Bytes written a reading since the start; 0 before the first."""
        readings = self._readings() - self._begin[1]
        return self.written / readings if readings else 0.0

    @property
    def over_budget(self) -> bool:
        """True while more is written than a day's pace though the window is at its widest."""
        pace_bytes_s = self._config.day_write_bytes / _DAY_S
        widest = self.window_s >= self._most_s
        return bool(pace_bytes_s) and widest and self.rate_bytes_s > pace_bytes_s

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Take what was written since the last look into account."""
        now_s, written = self._clock.monotonic_s(), self._written()
        before_s, before = self._seen
        passed_s = now_s - before_s
        if passed_s <= 0:
            return
        self._seen = (now_s, written)
        weight = 1 - math.exp(-passed_s / _SMOOTH_S)
        self.rate_bytes_s += ((written - before) / passed_s - self.rate_bytes_s) * weight
        if self._config.day_write_bytes:
            self._adapt(self._config.day_write_bytes / _DAY_S)

    def _adapt(self, pace_bytes_s: float) -> None:
        window_s = self.window_s
        if self.rate_bytes_s > pace_bytes_s:
            window_s = max(window_s * _WIDEN, _WINDOW_FIRST_MS / 1000)
        elif self.rate_bytes_s < pace_bytes_s * _EASY:
            window_s *= _NARROW
        window_s = min(self._most_s, max(self._least_s, window_s))
        if window_s != self.window_s:
            self.window_s = window_s
            self._set_window_s(window_s)
