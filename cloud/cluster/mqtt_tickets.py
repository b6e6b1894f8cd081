"""Which of the things begun are durable: what an MQTT answer has to wait for.

Invariant: a callback runs, on a turn of the loop of its own, when everything that was open at its
registration is closed; later tickets do not delay it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["Tickets"]


class Tickets:
    """Numbers of what is not durable yet."""

    def __init__(self) -> None:
        self._opened = 0
        self._open: OrderedDict[int, None] = OrderedDict()
        self._waiting: deque[tuple[int, Callable[[], object]]] = deque()
        self._scheduled = False

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    def open(self) -> int:
        """Begin something."""
        self._opened += 1
        self._open[self._opened] = None
        return self._opened

    def close(self, ticket: int) -> None:
        """It is durable."""
        del self._open[ticket]
        self._schedule()

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call back when all that is open now is closed."""
        self._waiting.append((self._opened, callback))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._waiting and self._is_done(self._waiting[0][0]):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _is_done(self, ticket: int) -> bool:
        return not self._open or next(iter(self._open)) > ticket

    def _run(self) -> None:
        self._scheduled = False
        waiting = self._waiting
        while waiting and self._is_done(waiting[0][0]):
            waiting.popleft()[1]()
