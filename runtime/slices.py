"""Long loops in slices: others of the event loop have their turn after every few items.

Invariant: no more than `size` items are worked on in one turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

__all__ = ["in_slices"]

T = TypeVar("T")


async def in_slices(items: Iterable[T], size: int) -> AsyncIterator[T]:
    """Yield each item, with a pause after every `size` of them.

    Args:
        items: Must bear that others work between two of them.
        size: At least 1.
    """
    for number, item in enumerate(items, 1):
        yield item
        if not number % size:
            await asyncio.sleep(0)
