"""Hellos of gateways: none waits for another's, each is answered, those of one in their order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from bridge.commands import Hello, Message, Welcome
from cloud.commands.hellos import Hellos
from cloud.ingest_runs import Greeting
from cloud.stream.contract import StreamError
from runtime.clock import ManualClock


class Site:
    """A node whose stream answers when it is told to."""

    def __init__(self) -> None:
        self.may: dict[str, asyncio.Event] = {}
        self.fails: dict[str, int] = {}
        self.sent: list[tuple[str, int]] = []
        batches = SimpleNamespace(runs=self)
        node = SimpleNamespace(capture=SimpleNamespace(batches=batches), clock=ManualClock())
        self.hellos = Hellos(cast("Any", node), cast("Any", self))

    async def greet(self, gateway: str, hello: Hello) -> Greeting:
        if gateway in self.may:
            await self.may[gateway].wait()
        if self.fails.get(gateway):
            self.fails[gateway] -= 1
            raise StreamError("an election")
        return Greeting(hello.last_seq)

    async def greeted(self, gateway: str, answer: Message) -> None:
        assert isinstance(answer, Welcome)
        self.sent.append((gateway, answer.assigned))

    def hello(self, gateway: str, last_seq: int) -> asyncio.Event:
        """Say a hello; return the event of its acknowledgement."""
        answered = asyncio.Event()
        self.hellos.take([(gateway, Hello(7, last_seq))], 1, answered.set)
        return answered


async def answered(*events: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        for event in events:
            await event.wait()


async def test_a_gateway_does_not_wait_for_another() -> None:
    site = Site()
    site.may["slow"] = asyncio.Event()
    slow = site.hello("slow", 1)
    await answered(*[site.hello(f"gw-{number}", 1) for number in range(200)])
    assert not slow.is_set()
    site.may["slow"].set()
    await answered(slow)
    assert site.sent[-1] == ("slow", 1)


async def test_of_one_gateway_they_are_answered_in_order() -> None:
    site = Site()
    site.may["gw"] = asyncio.Event()
    events = [site.hello("gw", seq) for seq in (1, 2, 3)]
    site.may["gw"].set()
    await answered(*events)
    assert site.sent == [("gw", 1), ("gw", 2), ("gw", 3)]


async def test_one_that_failed_is_tried_again_before_it_is_acknowledged() -> None:
    site = Site()
    site.fails["gw"] = 1
    event = site.hello("gw", 5)
    await answered(site.hello("other", 1))
    assert not event.is_set()
    await answered(event)
    assert site.sent == [("other", 1), ("gw", 5)]


async def test_when_the_node_stops_what_cannot_be_answered_is_not_acknowledged() -> None:
    site = Site()
    site.fails["gw"] = 1_000_000
    event = site.hello("gw", 5)
    async with asyncio.timeout(60):
        await site.hellos.stop()
    assert not event.is_set()
    assert site.sent == []
