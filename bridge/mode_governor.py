"""When the structured mode has to make way for the columnar one: a governor with hysteresis.

The encoder is the bottleneck when nothing is in flight, because everything was answered while a
batch was being encoded, and yet more readings wait than it could encode within `BEHIND_S`. If that
lasts, batches go columnar until little waits, and for a while at least, which doubles each time it
happens again soon. A slow link never looks like that: there the window is full, and the fewest
bytes are also the fastest way.
"""

from __future__ import annotations

__all__ = ["ModeGovernor"]

BEHIND_S = 2.0  # of encoding waiting: more is too much
PATIENCE_S = 1.0  # of encoding while behind before the mode changes
HOLD_MIN_S = 10.0
HOLD_MAX_S = 300.0
_FADE = 0.2  # weight of a batch in the cost of a reading


class ModeGovernor:
    """Says whether the next batch may be structured.

    Attributes:
        cost_s: What encoding a reading takes, smoothed; 0 before anything was measured.
        holds: How often the columnar mode had to help.
    """

    __slots__ = ("_behind_s", "_hold_s", "_until_s", "cost_s", "holds")

    def __init__(self) -> None:
        self.cost_s = 0.0
        self.holds = 0
        self._behind_s = 0.0
        self._hold_s = HOLD_MIN_S
        self._until_s: float | None = None  # columnar at least until then; None: structured

    def structured(self, now_s: float, waiting: int) -> bool:
        """Return True when the next batch may be structured.

        Args:
            now_s: Now.
            waiting: Readings that wait to be sent, those of the batch included.
        """
        until_s = self._until_s
        if until_s is None:
            return True
        if now_s < until_s or waiting * self.cost_s > BEHIND_S / 4:
            return False
        self._until_s = None
        self._behind_s = 0.0
        if now_s > until_s + 2 * self._hold_s:
            self._hold_s = HOLD_MIN_S
        return True

    def encoded(
        self, now_s: float, took_s: float, readings: int, *, waiting: int, idle: bool
    ) -> None:
        """Note a batch that was encoded as structured.

        Args:
            now_s: Now.
            took_s: How long it took.
            readings: How many it holds, 1 or more.
            waiting: Readings that wait behind it.
            idle: Nothing was in flight when it was done.
        """
        cost_s = took_s / readings
        self.cost_s += (cost_s - self.cost_s) * (_FADE if self.cost_s else 1.0)
        if not idle or waiting * self.cost_s <= BEHIND_S:
            self._behind_s = max(0.0, self._behind_s - took_s)
            return
        self._behind_s += took_s
        if self._behind_s < PATIENCE_S:
            return
        self.holds += 1
        self._until_s = now_s + self._hold_s
        self._hold_s = min(HOLD_MAX_S, self._hold_s * 2)
