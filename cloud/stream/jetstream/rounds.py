"""Rounds: the messages of one RAW stream leave together, and not too often.

What comes while a round is on its way, or too soon after it left, waits for the next one, where the
bodies of a partition share a message and all messages reach the stream's leader together, which
writes and syncs them as one. So work follows time and partitions, not gateways: messages of their
own cost the servers five times as much (docs/scaling.md). A round of few messages is short: who
appends alone waits for nobody.

Invariants: a partition is in one round at a time. A message that is late holds up the next round
of its partition, and that of others for `late_s` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

__all__ = ["Rounds"]

_EACH_S = 0.004
_MAX_S = 0.02
_LATE_S = 0.1


class Rounds:
    """The rounds of one stream.

    Args:
        go: Sends what waits of a partition; returns what is done once that was answered.
        each_s: A round lasts so long for each message in it,
        max_s: up to this, however many they are,
        late_s: and then until all were answered, up to this since it began.
    """

    __slots__ = ("_busy", "_each_s", "_ends", "_go", "_late_s", "_left", "_max_s", "_over",
                 "_round", "_waiting")  # fmt: skip

    def __init__(
        self,
        go: Callable[[int], asyncio.Future[None]],
        *,
        each_s: float = _EACH_S,
        max_s: float = _MAX_S,
        late_s: float = _LATE_S,
    ) -> None:
        self._go = go
        self._each_s, self._max_s, self._late_s = each_s, max_s, late_s
        self._waiting: dict[int, None] = {}  # partitions for the next round, in order
        self._busy: set[int] = set()  # partitions whose message is not answered
        self._round = 0
        self._left = 0  # messages of this round not answered
        self._over = True  # its least time
        self._ends: asyncio.Handle | None = None  # what begins the next one; None: no round

    def want(self, partition: int) -> None:
        """Have a partition go with the next round, and once more if it is on its way."""
        self._waiting[partition] = None
        if self._ends is None:  # all that is wanted in this turn of the loop goes together
            self._ends = asyncio.get_running_loop().call_soon(self._begin)

    def close(self) -> None:
        """Begin no more rounds."""
        if self._ends is not None:
            self._ends.cancel()

    def _begin(self) -> None:
        self._ends = None
        ready = [partition for partition in self._waiting if partition not in self._busy]
        if not ready:
            return
        for partition in ready:
            del self._waiting[partition]
        self._round += 1
        self._left, self._over = len(ready), False
        self._busy.update(ready)
        least_s = min(self._max_s, self._each_s * len(ready))
        self._ends = asyncio.get_running_loop().call_later(least_s, self._least_time_over, least_s)
        for partition in ready:
            self._go(partition).add_done_callback(partial(self._answered, partition, self._round))

    def _least_time_over(self, least_s: float) -> None:
        self._over = True
        if not self._left:
            self._begin()
            return
        late_s = max(0.0, self._late_s - least_s)
        self._ends = asyncio.get_running_loop().call_later(late_s, self._begin)

    def _answered(self, partition: int, number: int, _answer: asyncio.Future[None]) -> None:
        self._busy.discard(partition)
        if number == self._round:
            self._left -= 1
        if self._ends is None:
            if partition in self._waiting:
                self._begin()
        elif self._over and not self._left and number == self._round:
            self._ends.cancel()
            self._begin()
