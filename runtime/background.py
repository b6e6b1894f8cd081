"""Work that goes on beside a component's other work, from its start to its stop.

Invariants: once `stop` has returned nothing of it runs any more; work that ends by what it raises
does so with a line in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

__all__ = ["Background"]

log = structlog.get_logger(component="background")


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
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End; harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:  # whoever stops it does not want to hear of it by then
            log.exception("background_failed", work=self._name)
