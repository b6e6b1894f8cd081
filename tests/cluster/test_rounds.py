"""Rounds of messages: what shares one, what waits, and what is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cloud.stream.jetstream.rounds import Rounds


class Sender:
    """Notes what is sent, in rounds of one turn of the loop; answers when told to."""

    def __init__(self, *, each_s: float = 0.0, late_s: float = 60.0) -> None:
        self.under_way: dict[int, asyncio.Future[None]] = {}
        self.sent: list[int] = []
        self.rounds = Rounds(self._go, each_s=each_s, max_s=60.0, late_s=late_s)

    def _go(self, partition: int) -> asyncio.Future[None]:
        assert partition not in self.under_way, "one message of a partition at a time"
        self.sent.append(partition)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.under_way[partition] = future
        return future

    async def want(self, *partitions: int) -> list[int]:
        """Want partitions; return what was sent by then."""
        for partition in partitions:
            self.rounds.want(partition)
        return await self.turns()

    async def answer(self, *partitions: int) -> list[int]:
        """Answer messages; return what was sent because of it."""
        for partition in partitions:
            self.under_way.pop(partition).set_result(None)
        return await self.turns()

    async def turns(self) -> list[int]:
        for _ in range(5):
            await asyncio.sleep(0)
        sent, self.sent = self.sent, []
        return sent


async def test_what_is_wanted_in_one_turn_goes_together_and_what_comes_then_with_the_next() -> None:
    sender = Sender()
    assert await sender.want(8, 4) == [8, 4]
    assert await sender.want(0, 4, 12) == []
    assert await sender.answer(8) == []
    assert await sender.answer(4) == [0, 4, 12]
    assert await sender.answer(0, 4, 12) == []
    assert await sender.want(8) == [8]


async def test_a_round_takes_its_least_time_however_soon_it_is_answered() -> None:
    sender = Sender(each_s=30.0)
    assert await sender.want(1) == [1]
    assert await sender.answer(1) == []
    assert await sender.want(1) == []
    sender.rounds.close()


async def test_a_late_message_holds_up_others_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    late: list[asyncio.Handle] = []

    def call_later(
        delay_s: float, callback: Callable[..., object], *args: object
    ) -> asyncio.Handle:
        if not delay_s:
            return loop.call_soon(callback, *args)
        assert delay_s == 7.0
        late.append(asyncio.Handle(callback, args, loop))
        return late[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    sender = Sender(late_s=7.0)
    assert await sender.want(1, 2) == [1, 2]
    assert await sender.want(1, 2, 3) == []
    assert await sender.answer(2) == []
    (over,) = late
    over._run()
    assert await sender.turns() == [2, 3], "1 is not answered yet"
    assert await sender.answer(1) == []
    assert await sender.answer(2, 3) == [1]


async def test_a_late_message_is_followed_by_its_next_when_there_is_no_round() -> None:
    sender = Sender(late_s=0.0)
    assert await sender.want(1) == [1]
    await asyncio.sleep(0.001)
    assert await sender.want(1) == []
    await asyncio.sleep(0.001)
    assert await sender.answer(1) == [1]
    assert await sender.answer(1) == []


async def test_none_begins_once_closed() -> None:
    sender = Sender()
    sender.rounds.want(1)
    sender.rounds.close()
    assert await sender.turns() == []
