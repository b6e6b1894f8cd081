"""What is held of a source: who asks, when, and what its answer may be used for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bridge.intervals import Range
from bridge.runs import Run
from cloud.ingest_sources import HeldSeqs

SOURCE = ("gw", 1)


class Stream:
    """A stream that answers when told to."""

    def __init__(self) -> None:
        self.questions: list[asyncio.Future[Sequence[Range]]] = []

    async def held(self, gateway: str, epoch: int) -> Sequence[Range]:
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]

    async def runs(self, gateway: str, epoch: int) -> tuple[int, tuple[Run, ...]]:
        return 0, ()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_two_connections_that_ask_at_once_have_one_answer() -> None:
    """The second question would renew what appends stand on, and its answer be thrown away."""
    stream = Stream()
    unseen: Any = stream  # as much of one as is used
    held = HeldSeqs(unseen)
    one = asyncio.create_task(held.settled(SOURCE, [(1, 5)]))
    two = asyncio.create_task(held.settled(SOURCE, [(6, 9)]))
    await turns()
    assert len(stream.questions) == 1
    stream.questions[0].set_result([(1, 2)])
    assert (await one) is (await two)
    state = await one
    assert state.held is not None
    assert state.held.ranges() == [(1, 2)]
    assert len(stream.questions) == 1


async def test_after_a_failure_it_is_asked_again_once_nothing_is_under_way() -> None:
    stream = Stream()
    unseen: Any = stream
    held = HeldSeqs(unseen)
    asking = asyncio.create_task(held.settled(SOURCE, [(1, 5)]))
    await turns()
    stream.questions[0].set_result([])
    state = await asking
    state.begin([(1, 5)])
    state.begin([(6, 9)])
    state.end([(1, 5)], stored=False)
    again = asyncio.create_task(held.settled(SOURCE, [(1, 5)]))
    await turns()
    assert len(stream.questions) == 1
    state.end([(6, 9)], stored=True)
    await turns()
    assert len(stream.questions) == 2
    stream.questions[1].set_result([(6, 9)])
    assert (await again).held is state.held is not None
