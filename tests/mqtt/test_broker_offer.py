"""Messages that the host keeps itself: offered to one client, and told what became of each."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mqtt.broker.broker import Broker, Outgoing, Subscriber
from mqtt.broker.session_store import SqliteSessionStore
from mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe, Subscription
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from tests.kit.brokers import ManualStore, serving

STAYS = {SESSION_EXPIRY_INTERVAL: 3600}


class Told:
    def __init__(self) -> None:
        self.words: list[bool] = []

    def __call__(self, taken: bool) -> None:
        self.words.append(taken)


async def test_a_client_that_acknowledges_has_it() -> None:
    told = Told()
    async with serving() as broker:
        client = await broker.connect("d1")
        assert broker.broker.offer("d1", Outgoing("devices/d1/cmd/x", b"1", 1), told, "a")
        assert await client.settled() == [Publish("devices/d1/cmd/x", b"1", 1, packet_id=1)]
        assert told.words == []
        client.send(Puback(1))
        await client.settled()
        assert told.words == [True]
        assert broker.broker.offer("d1", Outgoing("devices/d1/cmd/x", b"2", 2), told, "b")
        (publish,) = await client.settled()
        client.send(Pubrec(publish.packet_id))
        assert await client.settled() == [Pubrel(publish.packet_id)]
        assert told.words == [True]
        client.send(Pubcomp(publish.packet_id))
        await client.settled()
        assert told.words == [True, True]


async def test_a_session_that_ends_first_drops_it() -> None:
    told = Told()
    async with serving() as broker:
        client = await broker.connect("d1")
        assert broker.broker.offer("d1", Outgoing("t", b"1", 1), told, "a")
        await client.settled()
        await broker.gone(client)
        assert told.words == [False]
        assert not broker.broker.offer("d1", Outgoing("t", b"1", 1), told, "a")


async def test_a_stored_session_gets_it_once_the_store_has_it_and_sends_it_again() -> None:
    told = Told()
    store = ManualStore()
    async with serving(store=store) as broker:
        async with store.committing():
            client = await broker.connect("d1", properties=STAYS)
        before = len(store.changes)
        assert broker.broker.offer("d1", Outgoing("t", b"1", 1), told, "a")
        assert await client.settled() == []
        store.commit()
        (publish,) = await client.settled()
        await broker.gone(client)
        assert told.words == []
        async with store.committing():
            client = await broker.connect(
                "d1", properties=STAYS, clean_start=False, session_present=True
            )
        (again,) = await client.settled()
        assert (again.payload, again.dup, again.packet_id) == (b"1", True, publish.packet_id)
        client.send(Puback(again.packet_id))
        await client.settled()
        assert told.words == [True]
        broker.broker.forget_offer("a")
        kinds = [type(change).__name__ for change in store.changes[before:]]
        offered = [kind for kind in kinds if kind.startswith(("Offer", "Delivery"))]
        assert offered == ["OfferSaved", "DeliverySaved", "OfferTaken", "DeliveryEnded",
                           "OfferEnded"]  # fmt: skip


@pytest.mark.parametrize("died", ["unsent", "sent", "received", "complete", "noted"])
async def test_a_restart_finds_how_far_an_offer_had_got(tmp_path: Path, died: str) -> None:
    """QoS 2: whenever the broker dies, the client gets one PUBLISH, or the same packet again."""
    path, after = tmp_path / "s.db", tmp_path / "after.db"
    told, fresh = Told(), 0
    async with serving(store=SqliteSessionStore(path)) as broker:
        client = await broker.connect("d1", properties=STAYS)
        if died != "unsent":
            assert broker.broker.offer("d1", Outgoing("t", b"1", 2), told, "a")
            publish = await client.receive(Publish)
            fresh += not publish.dup
        if died in ("received", "complete", "noted"):
            client.send(Pubrec(publish.packet_id))
            assert await client.receive(Pubrel) == Pubrel(publish.packet_id)
        if died in ("complete", "noted"):
            client.send(Pubcomp(publish.packet_id))
            await client.settled()
            assert told.words == [True]
        if died == "noted":
            broker.broker.forget_offer("a")
        await durable(broker.broker)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(after)) as copy:
            source.backup(copy)  # what a crash leaves
    told = Told()
    async with serving(store=SqliteSessionStore(after)) as broker:
        found = broker.broker.resume_offers(lambda token: told if token == "a" else Told())
        expected = {"sent": False, "received": False, "complete": True}
        assert found == ({"a": expected[died]} if died in expected else {})
        client = await broker.connect(
            "d1", properties=STAYS, clean_start=False, session_present=True
        )
        if died == "unsent":
            assert broker.broker.offer("d1", Outgoing("t", b"1", 2), told, "a")
        if died in ("unsent", "sent"):
            again = await client.receive(Publish)
            assert again.packet_id == (publish.packet_id if died == "sent" else 1)
            fresh += not again.dup
            client.send(Pubrec(again.packet_id))
        if died in ("unsent", "sent", "received"):
            released = await client.receive(Pubrel)
            client.send(Pubcomp(released.packet_id))
            await client.settled()
            assert told.words == [True]
        assert await client.settled() == []
    assert fresh == 1


async def durable(broker: Broker) -> None:
    """Return once the store has all it was told."""
    done = asyncio.Event()
    recorder = broker._core.recorder
    assert recorder is not None
    recorder.when_durable(done.set)
    await done.wait()


async def test_who_would_get_a_topic() -> None:
    async with serving() as broker:
        client = await broker.connect("d1", properties=STAYS)
        client.send(Subscribe(1, [Subscription("devices/d1/cmd/#", 2)]))
        await client.settled()
        topic = "devices/d1/cmd/x"
        assert broker.broker.subscribers(topic) == [Subscriber("d1", True, 2)]
        await broker.gone(client)
        assert broker.broker.subscribers(topic) == [Subscriber("d1", False, 2)]
        assert broker.broker.subscribers("devices/d2/cmd/x") == []
