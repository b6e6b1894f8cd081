"""A circuit breaker for structured batches: when they fail in a row, mode 0 goes instead.

A decoder may be down for a while, and comes up again: after a pause that doubles each time one
structured batch is let through, and what becomes of it decides. A cloud that does not know the
mode at all is asked again only on another connection.
"""

from __future__ import annotations

import math

__all__ = ["PAUSE_MAX_S", "PAUSE_MIN_S", "StructuredBreaker"]

_FAILURES_MAX = 3  # in a row; then it is mode 0
PAUSE_MIN_S = 5.0  # for so long, before a structured batch is tried again;
PAUSE_MAX_S = 320.0  # each time twice as long, up to this


class StructuredBreaker:
    """Whether structured batches may go on this connection.

    Attributes:
        is_open: They may not: what is sent is mode 0.
    """

    __slots__ = ("_failures", "_pause_s", "_until_s", "is_open")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Note that nothing speaks against them: one was taken, or this is another connection."""
        self.is_open = False
        self._pause_s = PAUSE_MIN_S
        self._until_s = 0.0
        self._failures = 0

    def failed(self, now_s: float) -> None:
        """Count one that was refused."""
        self._failures += 1
        if self._failures < _FAILURES_MAX:
            return
        self.is_open = True
        self._until_s = max(self._until_s, now_s + self._pause_s)
        self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)

    def unsupported(self) -> None:
        """Note that the cloud does not know the mode."""
        self.is_open = True
        self._until_s = math.inf

    def columnar_taken(self, now_s: float) -> None:
        """Note that a batch of mode 0 was taken: the next may be structured once it is time."""
        if now_s >= self._until_s:
            self.is_open = False
