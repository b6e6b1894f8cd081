"""Messages that the host keeps itself: offered to one client, and told what became of each."""

from __future__ import annotations

from mqtt.broker.broker import Outgoing, Subscriber
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
        assert broker.broker.offer("d1", Outgoing("devices/d1/cmd/x", b"1", 1), told)
        assert await client.settled() == [Publish("devices/d1/cmd/x", b"1", 1, packet_id=1)]
        assert told.words == []
        client.send(Puback(1))
        await client.settled()
        assert told.words == [True]
        assert broker.broker.offer("d1", Outgoing("devices/d1/cmd/x", b"2", 2), told)
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
        assert broker.broker.offer("d1", Outgoing("t", b"1", 1), told)
        await client.settled()
        await broker.gone(client)
        assert told.words == [False]
        assert not broker.broker.offer("d1", Outgoing("t", b"1", 1), told)


async def test_a_stored_session_sends_it_again_but_the_store_never_has_it() -> None:
    told = Told()
    store = ManualStore()
    async with serving(store=store) as broker, store.committing():
        client = await broker.connect("d1", properties=STAYS)
        before = len(store.changes)
        assert broker.broker.offer("d1", Outgoing("t", b"1", 1), told)
        await client.settled()
        await broker.gone(client)
        assert told.words == []
        client = await broker.connect(
            "d1", properties=STAYS, clean_start=False, session_present=True
        )
        (again,) = await client.settled()
        assert (again.payload, again.dup) == (b"1", True)
        client.send(Puback(again.packet_id))
        await client.settled()
        assert told.words == [True]
        kinds = {type(change).__name__ for change in store.changes[before:]}
        assert not kinds & {"MessageSaved", "DeliverySaved", "DeliveryEnded", "MessageEnded"}


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
