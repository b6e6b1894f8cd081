"""Turns of the event loop that something asyncio does by itself takes."""

from __future__ import annotations

import asyncio

__all__ = ["all_accepted"]


async def all_accepted() -> None:
    """Return when whoever a server accepted before it was closed has a task that can be ended.

    asyncio takes a turn each to make the transport, to give it to its protocol and to begin the
    task; a client that is forgotten in between keeps its socket, which the collector tells of in
    the middle of another test.
    """
    for _ in range(4):
        await asyncio.sleep(0)
