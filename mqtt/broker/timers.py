"""A timer wheel: many deadlines, rarely met and often moved, for a set operation each.

A keep-alive that is met costs nothing at all: the wheel looks at a connection when its earliest
possible deadline comes, and puts it back when there has been traffic. Deadlines are met up to one
tick late and never early.
"""

from __future__ import annotations

from math import ceil
from typing import Protocol

__all__ = ["Timed", "TimerWheel"]


class Timed(Protocol):
    """What a wheel can hold: each in one place at most."""

    timer_tick: int  # where in the wheel; 0 when not in it

    def on_timer(self, now_s: float) -> None:
        """The deadline has passed."""
        ...


class TimerWheel:
    """Deadlines in buckets of `tick_s`."""

    __slots__ = ("_buckets", "_tick", "tick_s")

    def __init__(self, now_s: float, tick_s: float = 0.5) -> None:
        self.tick_s = tick_s
        self._tick = int(now_s / tick_s)  # the last bucket that was emptied
        self._buckets: dict[int, set[Timed]] = {}

    def set(self, item: Timed, due_s: float) -> None:
        """Have `item.on_timer` called at `due_s`, and not when it was to be called before."""
        tick = max(self._tick + 1, ceil(due_s / self.tick_s))
        if item.timer_tick == tick:
            return
        if item.timer_tick:
            self.cancel(item)
        item.timer_tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
        bucket.add(item)

    def hasten(self, item: Timed, due_s: float) -> None:
        """Have `item.on_timer` called at `due_s`, or when it is to be called already if sooner.

        For a deadline that mostly moves back: `on_timer` looks and sets the new one.
        """
        if not item.timer_tick or due_s < item.timer_tick * self.tick_s:
            self.set(item, due_s)

    def cancel(self, item: Timed) -> None:
        """Have nothing called for `item`."""
        bucket = self._buckets.get(item.timer_tick)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._buckets[item.timer_tick]
        item.timer_tick = 0

    def advance(self, now_s: float) -> None:
        """Call what is due at `now_s`."""
        until = int(now_s / self.tick_s)
        # After a long pause the buckets are fewer than the ticks.
        if until - self._tick > len(self._buckets):
            due = sorted(tick for tick in self._buckets if tick <= until)
        else:
            due = [tick for tick in range(self._tick + 1, until + 1) if tick in self._buckets]
        self._tick = until
        for tick in due:
            for item in self._buckets.pop(tick, ()):
                item.timer_tick = 0
                item.on_timer(now_s)
