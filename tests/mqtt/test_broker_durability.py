"""Sessions and retained messages over restarts: an orderly one, and kill -9 under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mqtt.broker.session_store import SqliteSessionStore
from mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqtt.properties import (
    MESSAGE_EXPIRY_INTERVAL,
    SESSION_EXPIRY_INTERVAL,
    SUBSCRIPTION_IDENTIFIER,
    USER_PROPERTY,
    WILL_DELAY_INTERVAL,
    Properties,
)
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.broker_process import broker_process
from tests.kit.brokers import ManualStore, Served, WireClient, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
LASTING: Properties = {SESSION_EXPIRY_INTERVAL: 3600}


@asynccontextmanager
async def on_disk(folder: Path, clock: ManualClock | None = None) -> AsyncIterator[Served]:
    """Run a broker on the state in `folder`."""
    store = SqliteSessionStore(folder / "sessions.db")
    async with serving(store=store, clock=clock or ManualClock()) as broker:
        yield broker


async def lasting(
    broker: Served, client_id: str, *, present: bool = False, version: int = V5
) -> WireClient:
    """Connect to a session that lasts."""
    return await broker.connect(
        client_id,
        version=version,
        clean_start=False,
        properties=dict(LASTING) if version == V5 else {},
        session_present=present,
    )


@VERSIONS
async def test_subscriptions_and_queued_messages_survive_a_restart(
    tmp_path: Path, version: int
) -> None:
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader", version=version)
        await reader.subscribe("t", "dropped")
        reader.send(Unsubscribe(4, ["dropped"]))
        await reader.receive(Unsuback)
        await broker.gone(reader)
        writer = await broker.connect("writer")
        for number, qos in enumerate((1, 2, 1), 1):
            writer.send(Publish("t", b"%d" % number, qos, packet_id=number))
            assert (await writer.next()) in (Puback(number), Pubrec(number))
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader", version=version, present=True)
        writer = await broker.connect("writer")
        writer.send(Publish("t", b"4", 1, packet_id=1), Publish("dropped", b"x", 1, packet_id=2))
        await writer.settled()
        messages = [p for p in await reader.settled() if isinstance(p, Publish)]
        assert [m.payload for m in messages] == [b"1", b"2", b"3", b"4"]
        assert not any(m.dup for m in messages)  # queued while it was away, never sent before
        for message in messages:
            if message.qos == 1:
                reader.send(Puback(message.packet_id))
            else:
                reader.send(Pubrec(message.packet_id))
                await reader.receive(Pubrel)
                reader.send(Pubcomp(message.packet_id))
        await reader.settled()
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader", version=version, present=True)
        assert await reader.settled() == []


@pytest.mark.conformance("MQTT-3.3.1-1", "MQTT-3.3.1-3", "MQTT-4.4.0-1")
@VERSIONS
async def test_what_may_have_been_sent_before_a_restart_has_dup(
    tmp_path: Path, version: int
) -> None:
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader", version=version)
        await reader.subscribe("t")
        await broker.gone(reader)
        writer = await broker.connect("writer")
        writer.send(Publish("t", b"away", 1, packet_id=1))
        await writer.receive(Puback)
        reader = await lasting(broker, "reader", version=version, present=True)
        assert not (await reader.receive(Publish)).dup
        writer.send(Publish("t", b"there", 1, packet_id=2))
        await writer.receive(Puback)
        assert not (await reader.receive(Publish)).dup
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader", version=version, present=True)
        again = [await reader.receive(Publish), await reader.receive(Publish)]
        assert [(m.payload, m.dup) for m in again] == [(b"away", True), (b"there", True)]


async def test_everything_about_a_subscription_and_a_message_survives(tmp_path: Path) -> None:
    clock = ManualClock()
    async with on_disk(tmp_path, clock) as broker:
        reader = await lasting(broker, "reader")
        await reader.subscribe(
            Subscription("t", 1, no_local=True, retain_as_published=True),
            properties={SUBSCRIPTION_IDENTIFIER: [42]},
        )
        await broker.gone(reader)
        writer = await broker.connect("writer")
        properties: Properties = {MESSAGE_EXPIRY_INTERVAL: 100, USER_PROPERTY: [("k", "v")]}
        writer.send(Publish("t", b"x", 1, retain=True, packet_id=1, properties=dict(properties)))
        await writer.receive(Puback)
    clock.advance(60)
    async with on_disk(tmp_path, clock) as broker:
        reader = await lasting(broker, "reader", present=True)
        reader.send(Publish("t", b"mine"))
        (message,) = await reader.settled()
        assert isinstance(message, Publish)
        assert message.payload == b"x"
        assert message.retain
        assert message.properties == {
            MESSAGE_EXPIRY_INTERVAL: 40,
            USER_PROPERTY: [("k", "v")],
            SUBSCRIPTION_IDENTIFIER: [42],
        }


async def test_retained_messages_survive_and_stay_cleared(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as broker:
        writer = await broker.connect("writer")
        for topic, payload in [("a", b"1"), ("a", b"2"), ("b", b"3"), ("b", b""), ("c", b"4")]:
            writer.send(Publish(topic, payload, 1, packet_id=1, retain=True))
            await writer.receive(Puback)
    async with on_disk(tmp_path) as broker:
        writer = await broker.connect("writer")
        writer.send(Publish("c", b"", 1, packet_id=1, retain=True))
        await writer.receive(Puback)
    async with on_disk(tmp_path) as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("#")
        (message,) = await reader.settled()
        assert isinstance(message, Publish)
        assert (message.topic_name, message.payload) == ("a", b"2")


async def test_a_session_whose_expiry_passed_while_the_broker_was_down_is_gone(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with on_disk(tmp_path, clock) as broker:
        await broker.gone(await lasting(broker, "reader"))
        broker.pass_time(clock, 1)
    clock.advance(3600)
    async with on_disk(tmp_path, clock) as broker:
        broker.pass_time(clock, 1)
        await lasting(broker, "reader", present=False)


async def test_a_delayed_will_survives_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    async with on_disk(tmp_path, clock) as broker:
        client = await broker.connect(
            "mortal",
            clean_start=False,
            properties=dict(LASTING),
            will=Will("will", b"gone", 1, properties={WILL_DELAY_INTERVAL: 60}),
        )
        await broker.gone(client)
    clock.advance(30)
    async with on_disk(tmp_path, clock) as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        broker.pass_time(clock, 29)
        assert await watcher.settled() == []
        broker.pass_time(clock, 2)
        assert (await watcher.receive(Publish)).payload == b"gone"


async def test_a_will_that_was_sent_makes_no_session_last_longer(tmp_path: Path) -> None:
    clock = ManualClock()
    async with on_disk(tmp_path, clock) as broker:
        client = await broker.connect(
            "mortal",
            clean_start=False,
            properties=dict(LASTING),
            will=Will("will", b"gone", 1, properties={WILL_DELAY_INTERVAL: 1800}),
        )
        await broker.gone(client)
        broker.pass_time(clock, 1801)
    clock.advance(1800)
    async with on_disk(tmp_path, clock) as broker:
        await lasting(broker, "mortal", present=False)


async def test_an_inbound_qos_2_identifier_survives_a_restart(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as broker:
        reader = await lasting(broker, "reader")
        await reader.subscribe("t")
        await broker.gone(reader)
        writer = await lasting(broker, "writer")
        writer.send(Publish("t", b"x", 2, packet_id=9))
        await writer.receive(Pubrec)
    async with on_disk(tmp_path) as broker:
        writer = await lasting(broker, "writer", present=True)
        writer.send(Publish("t", b"x", 2, dup=True, packet_id=9), Pubrel(9))
        assert await writer.receive(Pubrec) == Pubrec(9)
        assert await writer.receive(Pubcomp) == Pubcomp(9)
        reader = await lasting(broker, "reader", present=True)
        messages = await reader.settled()
        assert [type(m) for m in messages] == [Publish]


async def test_answers_wait_for_the_store(tmp_path: Path) -> None:
    store = ManualStore()
    async with serving(store=store) as broker:
        reader = await broker.open()
        reader.send(
            Connect("reader", clean_start=False, properties=dict(LASTING)),
            Subscribe(1, [Subscription("t", 2)]),
        )
        await broker.until(lambda: len(store.changes) == 1)
        store.commit()
        await reader.receive(Connack)
        assert await reader.settled() == []
        store.commit()
        await reader.receive(Suback)
        writer = await broker.connect("writer")
        writer.send(Publish("t", b"1", 1, packet_id=1))
        assert await writer.settled() == []
        store.commit()
        assert await writer.settled() == [Puback(1)]
        writer.send(Publish("t", b"2", 2, packet_id=2))
        await writer.settled()
        # QoS 1 goes out at once; QoS 2 only under an identifier that the store has.
        assert [p.payload for p in await reader.settled() if isinstance(p, Publish)] == [b"1"]
        store.commit()
        (second,) = await reader.settled()
        assert isinstance(second, Publish)
        reader.send(Pubrec(second.packet_id))
        assert await reader.settled() == []
        store.commit()
        assert await reader.settled() == [Pubrel(second.packet_id)]
        await writer.receive(Pubrec)
        writer.send(Pubrel(2))
        assert await writer.settled() == [Pubcomp(2)]  # the writer's session is not stored


async def test_nothing_is_read_while_the_store_is_saturated() -> None:
    store = ManualStore()
    async with serving(store=store) as broker:
        async with store.committing():
            reader = await lasting(broker, "reader")
            await reader.subscribe("t", qos=1)
        store.full = True
        writer = await broker.connect("writer")
        writer.send(Publish("t", b"1", 1, packet_id=1))
        assert (await reader.receive(Publish)).payload == b"1"
        writer.send(Publish("t", b"2", 1, packet_id=2))
        assert await reader.settled() == []
        store.relieve()
        assert (await reader.receive(Publish)).payload == b"2"


@pytest.mark.parametrize("round_", range(4))
async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, round_: int) -> None:
    """Publishers get acknowledgements until the kill; a stored session has every one of them."""
    acknowledged: set[bytes] = set()

    async def write(port: int, qos: int, enough: asyncio.Event) -> None:
        client = await WireClient.open(port)
        client.send(Connect(f"writer-{qos}"))
        await client.receive(Connack)
        await publish(client, qos, enough)
        await client.close()

    async def publish(client: WireClient, qos: int, enough: asyncio.Event) -> None:
        for number in range(1, 100_000):
            payload = b"%d-%d" % (qos, number)
            packet_id = number % 60_000 + 1
            client.send(Publish("t", payload, qos, packet_id=packet_id))
            answer = await client.next()
            if answer is None:
                return
            acknowledged.add(payload)
            if qos == 2:
                client.send(Pubrel(packet_id))
                if await client.next() is None:
                    return
            if len(acknowledged) > 40 * (round_ + 1):
                enough.set()

    with broker_process(tmp_path) as broker:
        reader = await WireClient.open(broker.port)
        reader.send(
            Connect("reader", clean_start=False, properties=dict(LASTING)),
            Subscribe(1, [Subscription("t", 2)]),
        )
        await reader.receive(Connack)
        await reader.receive(Suback)
        await reader.close()
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for qos in (1, 2):
                group.create_task(write(broker.port, qos, enough))
            await enough.wait()
            broker.kill()
    with broker_process(tmp_path) as broker:
        reader = await WireClient.open(broker.port)
        reader.send(Connect("reader", clean_start=False, properties=dict(LASTING)))
        assert (await reader.receive(Connack)).session_present
        got: list[bytes] = []
        while not acknowledged <= set(got):
            packet = await reader.next()
            assert packet is not None
            if isinstance(packet, Publish):
                got.append(packet.payload)
                answer = Puback(packet.packet_id) if packet.qos == 1 else Pubrec(packet.packet_id)
                reader.send(answer)
            elif isinstance(packet, Pubrel):
                reader.send(Pubcomp(packet.packet_id))
        assert len(got) == len(set(got))
        for qos in (1, 2):
            numbers = [int(p[2:]) for p in got if p.startswith(b"%d-" % qos)]
            assert numbers == sorted(numbers)
        await reader.close()


@VERSIONS
@pytest.mark.conformance("MQTT-4.3.3-8", "MQTT-4.3.3-10", "MQTT-4.4.0-1")
async def test_a_pubrec_that_missed_its_connection_comes_on_the_next_one(version: int) -> None:
    store = ManualStore()
    async with serving(store=store) as broker:
        async with store.committing():
            reader = await lasting(broker, "reader", version=version)
            await reader.subscribe("t")
            writer = await lasting(broker, "writer", version=version)
        writer.send(Publish("t", b"x", 2, packet_id=5))
        await broker.until(lambda: broker.broker.stats().messages_received[2] == 1)
        again = await broker.open(version)
        again.send(
            Connect(
                "writer",
                version,
                clean_start=False,
                properties=dict(LASTING) if version == V5 else {},
            )
        )
        if version == V5:
            assert (await writer.receive(Disconnect)).reason_code == ReasonCode.SESSION_TAKEN_OVER
        assert await writer.closed()
        store.commit()  # PUBREC would go to the connection that is gone
        await again.receive(Connack)
        again.send(Publish("t", b"x", 2, dup=True, packet_id=5))
        assert (await again.receive(Pubrec)).packet_id == 5
        assert [type(packet) for packet in await reader.settled()] == [Publish]
