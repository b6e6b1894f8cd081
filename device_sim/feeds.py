"""Feeds: which device has a reading to send, by the clock.

A feed releases devices as their readings come due and hands the readings out one at a time. Of a
generated reading nothing is kept while it waits, only how many a device owes; of a trace at most
`_AHEAD_MAX` records wait, then the trace is not read on. So a broker that stalls costs no memory.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heapreplace
from typing import Final, Protocol

from device_sim.sources import Generated, Message, Replayed

__all__ = ["Feed", "PacedFeed", "TraceFeed", "UnpacedFeed"]

_AHEAD_MAX: Final = 10_000  # records of a trace that wait for their connection
_FULL_RETRY_S: Final = 0.01


class Feed(Protocol):
    """What the fleet has to send. Times are monotonic, in seconds."""

    def release(self, now_s: float) -> Iterator[int]:
        """Yield a device for each reading that has come due."""
        ...

    def next_s(self, now_s: float) -> float | None:
        """Return when to call `release` again; None when nothing more will come due."""
        ...

    def take(self, device: int) -> tuple[float, Message] | None:
        """Return when a device's next reading was due, and the reading; None if it has none."""
        ...

    def stop(self) -> int:
        """Have no more readings; return how many were due and not taken."""
        ...


class PacedFeed:
    """Generated readings at their rate.

    Args:
        source: The devices.
        start_s: When the run began.
        starts_s: By device, how long after that it begins.
        count: How many readings to release in all; 0 = no limit.
    """

    def __init__(
        self, source: Generated, start_s: float, starts_s: Callable[[int], float], count: int
    ) -> None:
        self._source = source
        devices = len(source.clients)
        self._starts_s = array("d", (start_s + starts_s(device) for device in range(devices)))
        self._released = array("q", bytes(8 * devices))
        self._taken = array("q", bytes(8 * devices))
        self._left = count or None
        self._due = [(self._due_s(device, 0), device) for device in range(devices)]
        heapify(self._due)

    def _due_s(self, device: int, counter: int) -> float:
        return self._starts_s[device] + self._source.due_s(device, counter)

    def release(self, now_s: float) -> Iterator[int]:
        due, released = self._due, self._released
        while due and due[0][0] <= now_s:
            if self._left is not None:
                self._left -= 1
            _, device = due[0]
            released[device] += 1
            if self._left == 0:
                due.clear()
            else:
                heapreplace(due, (self._due_s(device, released[device]), device))
            yield device

    def next_s(self, now_s: float) -> float | None:  # noqa: ARG002 - the Protocol's
        return self._due[0][0] if self._due else None

    def take(self, device: int) -> tuple[float, Message] | None:
        counter = self._taken[device]
        if counter >= self._released[device]:
            return None
        self._taken[device] = counter + 1
        return self._due_s(device, counter), self._source.message(device, counter)

    def stop(self) -> int:
        left = sum(self._released) - sum(self._taken)
        self._due.clear()
        self._released = array("q", self._taken)
        return left


class UnpacedFeed:
    """Generated readings as fast as they are taken; a reading is due when it is taken."""

    def __init__(self, source: Generated, count: int, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._taken = array("q", bytes(8 * len(source.clients)))
        self._left = count or None
        self._fresh = True

    def release(self, now_s: float) -> Iterator[int]:  # noqa: ARG002 - the Protocol's
        if self._fresh:
            self._fresh = False
            yield from range(len(self._taken))

    def next_s(self, now_s: float) -> float | None:
        return now_s if self._fresh else None

    def take(self, device: int) -> tuple[float, Message] | None:
        if self._left == 0:
            return None
        if self._left is not None:
            self._left -= 1
        counter = self._taken[device]
        self._taken[device] = counter + 1
        return self._clock(), self._source.message(device, counter)

    def stop(self) -> int:
        self._left = 0
        self._fresh = False
        return 0


class TraceFeed:
    """Records of a trace at the times of the trace."""

    def __init__(self, source: Replayed, start_s: float, *, unpaced: bool) -> None:
        self._start_s = start_s
        self._unpaced = unpaced
        self._records = source.feed()
        self._next = next(self._records, None)
        self._queues: list[deque[tuple[float, Message]]] = [deque() for _ in source.clients]
        self._queued = 0

    def release(self, now_s: float) -> Iterator[int]:
        while self._next is not None and self._queued < _AHEAD_MAX:
            due_s, device, message = self._next
            due_s = now_s if self._unpaced else due_s + self._start_s
            if due_s > now_s:
                return
            self._queues[device].append((due_s, message))
            self._queued += 1
            self._next = next(self._records, None)
            yield device

    def next_s(self, now_s: float) -> float | None:
        if self._next is None:
            return None
        if self._queued >= _AHEAD_MAX:
            return now_s + _FULL_RETRY_S
        return now_s if self._unpaced else self._next[0] + self._start_s

    def take(self, device: int) -> tuple[float, Message] | None:
        queue = self._queues[device]
        if not queue:
            return None
        self._queued -= 1
        return queue.popleft()

    def stop(self) -> int:
        left = self._queued
        self._next = None
        self._queued = 0
        for queue in self._queues:
            queue.clear()
        return left
