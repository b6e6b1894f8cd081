"""Who wants to hear of latest values as they change: each has a little memory of what is new.

Of a value that changes faster than its hearer reads only the newest is kept, so memory is bounded
by the values there are; one who falls further behind than `PENDING_MAX` values is told how many it
missed, and reads them again.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cloud.latest import LatestReading

__all__ = ["HEARERS_MAX", "PENDING_MAX", "Changes", "Heard", "Hearer"]

HEARERS_MAX = 32
PENDING_MAX = 4_096  # values


class Heard(NamedTuple):
    """What is new since the last time."""

    readings: list[LatestReading]  # each topic of a device once
    missed: int  # values that changed and are not among them


class Hearer:
    """One who listens; made by `Changes.hear`."""

    def __init__(self, match: str) -> None:
        """Prepare; `match` is a glob of device ids."""
        self._matches: Callable[[str], object] = re.compile(fnmatch.translate(match)).match
        self._pending: OrderedDict[tuple[str, str], LatestReading] = OrderedDict()
        self._missed = 0
        self._news = asyncio.Event()
        self.ended = False

    def take(self, reading: LatestReading) -> None:
        """Note a new value."""
        if not self._matches(reading.device):
            return
        self._pending[reading.device, reading.topic] = reading
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)
            self._missed += 1
        self._news.set()

    def end(self) -> None:
        """Tell it that nothing more comes."""
        self.ended = True
        self._news.set()

    async def news(self, timeout_s: float) -> Heard:
        """Return what is new; nothing after `timeout_s`, or when it has `ended`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        heard = Heard(list(self._pending.values()), self._missed)
        self._pending.clear()
        self._missed = 0
        return heard


class Changes:
    """All who listen to one table."""

    def __init__(self) -> None:
        self.hearers: set[Hearer] = set()

    @contextmanager
    def hear(self, match: str) -> Iterator[Hearer]:
        """Give a hearer of devices that match a glob, for as long as the block lasts."""
        hearer = Hearer(match)
        self.hearers.add(hearer)
        try:
            yield hearer
        finally:
            self.hearers.discard(hearer)

    def end(self) -> None:
        """End all: the node stops."""
        for hearer in self.hearers:
            hearer.end()
