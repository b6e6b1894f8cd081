"""Work that goes on beside a component's other work, from its start to its stop.

Invariant: once `stop` has returned nothing of it runs any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Background"]


class Background:
    """One task, for as long as its owner runs.

    Args:
        work: Makes what is to go on; it ends by being cancelled.
        name: The task's.
    """

    __slots__ = ("_name", "_task", "_work")

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; not while it goes on."""
        self._task = asyncio.create_task(self._work(), name=self._name)

    async def stop(self) -> None:
        """End; harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
