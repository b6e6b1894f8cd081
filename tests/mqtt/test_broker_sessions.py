"""Sessions and wills over real sockets: what is kept while a client is away, and for how long."""

from __future__ import annotations

import pytest

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
    Subscription,
    Will,
)
from mqtt.properties import (
    MESSAGE_EXPIRY_INTERVAL,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY_INTERVAL,
    USER_PROPERTY,
    WILL_DELAY_INTERVAL,
    Properties,
)
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.brokers import Served, WireClient, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


def lasting(version: int, seconds: int = 3600) -> Properties:
    """Return the CONNECT properties of a session that lasts."""
    return {SESSION_EXPIRY_INTERVAL: seconds} if version == V5 else {}


async def connect(
    broker: Served, client_id: str, version: int, *, present: bool, seconds: int = 3600
) -> WireClient:
    """Connect to a session that lasts."""
    return await broker.connect(
        client_id,
        version=version,
        clean_start=False,
        properties=lasting(version, seconds),
        session_present=present,
    )


async def send_away(broker: Served, client: WireClient) -> None:
    """Make a client vanish."""
    await broker.gone(client)


async def publish(client: WireClient, *payloads: bytes, topic: str = "t", qos: int = 1) -> None:
    """Publish and see the exchanges through."""
    for payload in payloads:
        client.send(Publish(topic, payload, qos, packet_id=3 if qos else 0))
        if qos == 1:
            await client.receive(Puback)
        elif qos == 2:
            await client.receive(Pubrec)
            client.send(Pubrel(3))
            await client.receive(Pubcomp)
    await client.settled()


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-4", "MQTT-3.1.2-5", "MQTT-3.1.2-6", "MQTT-3.2.2-2")
async def test_messages_wait_for_a_client_that_is_away(version: int) -> None:
    async with serving() as broker:
        reader = await connect(broker, "reader", version, present=False)
        await reader.subscribe("t", qos=1)
        await send_away(broker, reader)
        writer = await broker.connect("writer")
        await publish(writer, b"1", b"2", b"3")
        await publish(writer, b"not kept", qos=0)
        reader = await connect(broker, "reader", version, present=True)
        messages = await reader.settled()
        assert [m.payload for m in messages if isinstance(m, Publish)] == [b"1", b"2", b"3"]
        assert not any(m.dup for m in messages if isinstance(m, Publish))
        assert broker.broker.stats().drops == {"offline_qos0": 1}


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-4", "MQTT-3.2.2-3")
async def test_a_clean_start_forgets_the_session(version: int) -> None:
    async with serving() as broker:
        reader = await connect(broker, "reader", version, present=False)
        await reader.subscribe("t", qos=1)
        await send_away(broker, reader)
        writer = await broker.connect("writer")
        await publish(writer, b"lost on purpose")
        reader = await broker.connect("reader", version=version, clean_start=True)
        await publish(writer, b"nobody subscribed")
        assert await reader.settled() == []


@VERSIONS
@pytest.mark.conformance("MQTT-4.4.0-1", "MQTT-3.3.1-1", "MQTT-4.6.0-1", "MQTT-4.5.0-1")
async def test_what_was_not_acknowledged_comes_again_in_order_with_dup(version: int) -> None:
    async with serving() as broker:
        reader = await connect(broker, "reader", version, present=False)
        await reader.subscribe("t", qos=2)
        writer = await broker.connect("writer")
        await publish(writer, b"1", b"2", qos=1)
        await publish(writer, b"3", b"4", qos=2)
        sent = [await reader.receive(Publish) for _ in range(4)]
        reader.send(Puback(sent[0].packet_id), Pubrec(sent[2].packet_id))
        assert (await reader.receive(Pubrel)).packet_id == sent[2].packet_id
        await send_away(broker, reader)
        reader = await connect(broker, "reader", version, present=True)
        again = await reader.settled()
        assert [type(p).__name__ for p in again] == ["Publish", "Pubrel", "Publish"]
        first, release, last = again
        assert isinstance(first, Publish)
        assert isinstance(last, Publish)
        assert isinstance(release, Pubrel)
        assert (first.payload, first.packet_id, first.dup) == (b"2", sent[1].packet_id, True)
        assert release.packet_id == sent[2].packet_id
        assert (last.payload, last.packet_id, last.dup) == (b"4", sent[3].packet_id, True)


@pytest.mark.conformance("MQTT-3.1.2-23", "MQTT-4.1.0-2")
async def test_a_session_ends_when_its_expiry_has_passed() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        for seconds, present in ((99, True), (101, False)):
            reader = await connect(broker, "reader", V5, present=False, seconds=100)
            await reader.subscribe("t", qos=1)
            await send_away(broker, reader)
            broker.pass_time(clock, seconds)
            reader = await connect(broker, "reader", V5, present=present, seconds=0)
            await broker.gone(reader)
            assert broker.broker.stats().sessions == 0
            assert broker.broker.stats().subscriptions == 0


async def test_disconnect_can_change_the_expiry() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        reader = await connect(broker, "reader", V5, present=False, seconds=100)
        reader.send(Disconnect(0, {SESSION_EXPIRY_INTERVAL: 0}))
        assert await reader.closed()
        assert broker.broker.stats().sessions == 0


@VERSIONS
async def test_a_session_taken_over_keeps_its_messages(version: int) -> None:
    async with serving() as broker:
        first = await connect(broker, "reader", version, present=False)
        await first.subscribe("t", qos=1)
        writer = await broker.connect("writer")
        await publish(writer, b"1")
        second = await connect(broker, "reader", version, present=True)
        (message,) = await second.settled()
        assert isinstance(message, Publish)
        assert (message.payload, message.dup) == (b"1", True)


async def test_a_message_that_expires_while_its_client_is_away_is_not_sent() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        reader = await connect(broker, "reader", V5, present=False)
        await reader.subscribe("t", qos=1)
        await send_away(broker, reader)
        writer = await broker.connect("writer")
        for seconds in (10, 100):
            properties: Properties = {MESSAGE_EXPIRY_INTERVAL: seconds}
            writer.send(Publish("t", b"%d" % seconds, 1, packet_id=1, properties=properties))
            await writer.receive(Puback)
        broker.pass_time(clock, 50)
        reader = await connect(broker, "reader", V5, present=True)
        (message,) = await reader.settled()
        assert isinstance(message, Publish)
        assert (message.payload, message.properties) == (b"100", {MESSAGE_EXPIRY_INTERVAL: 50})
        assert broker.broker.stats().drops == {"expired": 1}


# -- flow control -----------------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.3.4-9", "MQTT-4.9.0-1", "MQTT-4.9.0-2")
@pytest.mark.parametrize("qos", [1, 2])
async def test_no_more_is_sent_than_the_client_takes_at_once(qos: int) -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", properties={RECEIVE_MAXIMUM: 2})
        await reader.subscribe("t", qos=2)
        writer = await broker.connect("writer")
        await publish(writer, *[b"%d" % i for i in range(5)], qos=qos)
        got = [p for p in await reader.settled() if isinstance(p, Publish)]
        assert [m.payload for m in got] == [b"0", b"1"]
        if qos == 1:
            reader.send(Puback(got[0].packet_id))
        else:
            reader.send(Pubrec(got[0].packet_id))
            await reader.receive(Pubrel)
            assert await reader.settled() == []  # the place is free at PUBCOMP, not before
            reader.send(Pubcomp(got[0].packet_id))
        assert (await reader.receive(Publish)).payload == b"2"


@pytest.mark.conformance("MQTT-4.9.0-3")
async def test_qos_0_is_sent_past_a_full_window() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", properties={RECEIVE_MAXIMUM: 1})
        await reader.subscribe("t", qos=2)
        writer = await broker.connect("writer")
        await publish(writer, b"1", b"2", qos=1)
        await publish(writer, b"0", qos=0)
        got = [p.payload for p in await reader.settled() if isinstance(p, Publish)]
        assert got == [b"1", b"0"]


@pytest.mark.conformance("MQTT-4.3.3-4")
async def test_a_pubrec_that_refuses_ends_the_exchange() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", properties={RECEIVE_MAXIMUM: 1})
        await reader.subscribe("t", qos=2)
        writer = await broker.connect("writer")
        await publish(writer, b"1", b"2", qos=2)
        first = await reader.receive(Publish)
        reader.send(Pubrec(first.packet_id, ReasonCode.QUOTA_EXCEEDED))
        assert (await reader.receive(Publish)).payload == b"2"


async def test_unknown_packet_ids_are_answered_as_such() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        client.send(Pubrec(7), Pubrel(8), Puback(9), Pubcomp(10))
        assert await client.settled() == [
            Pubrel(7, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
            Pubcomp(8, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND),
        ]


# -- QoS 2 inbound ----------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-4.3.3-10", "MQTT-4.3.3-8", "MQTT-4.3.3-11", "MQTT-4.3.3-12")
async def test_a_qos_2_message_sent_again_is_delivered_once(version: int) -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t", qos=0)
        writer = await connect(broker, "writer", version, present=False)
        writer.send(Publish("t", b"x", 2, packet_id=5))
        await writer.receive(Pubrec)
        writer.send(Publish("t", b"x", 2, dup=True, packet_id=5))
        assert (await writer.receive(Pubrec)).reason_code == 0
        await send_away(broker, writer)
        writer = await connect(broker, "writer", version, present=True)
        writer.send(Publish("t", b"x", 2, dup=True, packet_id=5), Pubrel(5))
        assert [type(p) for p in await writer.settled()] == [Pubrec, Pubcomp]
        writer.send(Publish("t", b"another", 2, packet_id=5))
        await writer.receive(Pubrec)
        got = [p.payload for p in await reader.settled() if isinstance(p, Publish)]
        assert got == [b"x", b"another"]


# -- wills ------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-7", "MQTT-3.1.2-8", "MQTT-3.1.2-14", "MQTT-3.1.2-15")
@pytest.mark.parametrize("retain", [False, True])
async def test_a_will_is_published_when_a_client_vanishes(version: int, retain: bool) -> None:
    async with serving() as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe(Subscription("will/#", 2, retain_as_published=True))
        client = await broker.connect(
            "mortal", version=version, will=Will("will/mortal", b"gone", 1, retain)
        )
        await broker.gone(client)
        message = await watcher.receive(Publish)
        assert (message.topic_name, message.payload, message.qos, message.retain) == (
            "will/mortal",
            b"gone",
            1,
            retain,
        )
        assert broker.broker.stats().retained_messages == int(retain)


async def test_disconnect_with_will_sends_it() -> None:
    async with serving() as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        client = await broker.connect("mortal", will=Will("will", b"gone"))
        client.send(Disconnect(ReasonCode.DISCONNECT_WITH_WILL))
        assert (await watcher.receive(Publish)).payload == b"gone"


async def test_a_protocol_fault_sends_the_will() -> None:
    async with serving() as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        client = await broker.connect("mortal", will=Will("will", b"gone"))
        client.send_bytes(b"\x00\x00")
        assert (await watcher.receive(Publish)).payload == b"gone"


@pytest.mark.parametrize(("delay_s", "expiry_s", "present"), [(10, 100, True), (100, 10, False)])
@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.1.2-23")
async def test_what_is_due_does_not_wait_for_the_tick_when_a_client_comes_back(
    delay_s: int, expiry_s: int, present: bool
) -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        fields = {"properties": lasting(V5, expiry_s), "clean_start": False}
        will = Will("will", b"gone", properties={WILL_DELAY_INTERVAL: delay_s})
        client = await broker.connect("mortal", will=will, **fields)
        clock.advance(5)  # counted from its going, to the moment
        await broker.gone(client)
        clock.advance(9)
        client = await broker.connect("mortal", will=will, session_present=True, **fields)
        await broker.gone(client)
        assert await watcher.settled() == []
        clock.advance(11)
        await broker.connect("mortal", session_present=present, **fields)
        assert (await watcher.receive(Publish)).payload == b"gone"


@pytest.mark.conformance("MQTT-3.1.3-9")
async def test_a_delayed_will_is_cancelled_by_coming_back() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        will = Will("will", b"gone", properties={WILL_DELAY_INTERVAL: 10})
        properties = lasting(V5)

        async def arrive(present: bool) -> WireClient:
            return await broker.connect(
                "mortal",
                will=will,
                clean_start=False,
                properties=dict(properties),
                session_present=present,
            )

        await broker.gone(await arrive(False))
        broker.pass_time(clock, 9)
        client = await arrive(True)
        broker.pass_time(clock, 9)
        assert await watcher.settled() == []
        await broker.gone(client)
        broker.pass_time(clock, 9)
        assert await watcher.settled() == []
        broker.pass_time(clock, 2)
        assert (await watcher.receive(Publish)).payload == b"gone"
        broker.pass_time(clock, 3600)
        assert await watcher.settled() == []  # once


@pytest.mark.parametrize(
    ("expiry_s", "delay_s", "due_s"), [(5, 60, 5), (0, 60, 0), (60, 5, 5), (0xFFFFFFFF, 5, 5)]
)
async def test_a_will_is_sent_at_its_delay_or_the_sessions_end(
    expiry_s: int, delay_s: int, due_s: int
) -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        client = await broker.connect(
            "mortal",
            will=Will("will", b"gone", properties={WILL_DELAY_INTERVAL: delay_s}),
            properties=lasting(V5, expiry_s),
        )
        await broker.gone(client)
        if due_s:
            broker.pass_time(clock, due_s - 1)
            assert await watcher.settled() == []
            broker.pass_time(clock, 1.6)
        assert (await watcher.receive(Publish)).payload == b"gone"


async def test_a_clean_start_ends_the_old_session_and_sends_its_delayed_will() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        client = await broker.connect(
            "mortal",
            will=Will("will", b"gone", properties={WILL_DELAY_INTERVAL: 60}),
            properties=lasting(V5),
        )
        await broker.gone(client)
        await broker.connect("mortal", clean_start=True)
        assert (await watcher.receive(Publish)).payload == b"gone"


async def test_a_will_carries_its_properties_and_expiry() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        properties: Properties = {
            MESSAGE_EXPIRY_INTERVAL: 30,
            USER_PROPERTY: [("k", "v")],
            WILL_DELAY_INTERVAL: 0,
        }
        client = await broker.connect(
            "mortal", will=Will("will", b"gone", retain=True, properties=properties)
        )
        broker.pass_time(clock, 1000)  # the expiry is counted from the publication
        await broker.gone(client)
        broker.pass_time(clock, 10)
        watcher = await broker.connect("watcher")
        await watcher.subscribe("will")
        message = await watcher.receive(Publish)
        assert message.properties[USER_PROPERTY] == [("k", "v")]
        assert message.properties[MESSAGE_EXPIRY_INTERVAL] in (20, 21)
        assert WILL_DELAY_INTERVAL not in message.properties


async def test_a_will_with_an_impossible_topic_is_refused() -> None:
    async with serving() as broker:
        client, connack = await broker.ask("one", will=Will("$SYS/mine", b"x"))
        assert connack.reason_code == ReasonCode.TOPIC_NAME_INVALID
        assert await client.closed()


async def test_two_connections_racing_for_one_client_id_leave_one() -> None:
    async with serving() as broker:
        clients = [await broker.open() for _ in range(8)]
        for client in clients:
            client.send(Connect("same"))
        for client in clients:
            await client.receive(Connack)
        await broker.until(lambda: broker.broker.stats().connections == 1)
        assert broker.broker.stats().sessions == 1
