"""A bell: those who wait go on when it rings, and none of them misses a ring it waited for.

An `asyncio.Event` stays set until somebody clears it; with several who wait, one clears what
another has not seen. Here each waits for the next ring, and looks again at what it came for.
"""

from __future__ import annotations

import asyncio

__all__ = ["Bell"]


class Bell:
    """Wakes all who wait; belongs to one event loop."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], None] = {}

    async def wait(self) -> None:
        """Return at the next ring; raises what `fail` was given, should that come first."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def ring(self) -> None:
        """Wake all who wait now."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise `error` in all who wait now."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
