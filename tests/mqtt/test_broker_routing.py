"""Who gets what over real sockets: QoS, overlaps, options, retained messages, shared groups."""

from __future__ import annotations

import pytest

from mqtt.broker.config import BrokerConfig
from mqtt.packets import (
    V5,
    V311,
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
)
from mqtt.properties import (
    CONTENT_TYPE,
    CORRELATION_DATA,
    MAXIMUM_PACKET_SIZE,
    MESSAGE_EXPIRY_INTERVAL,
    PAYLOAD_FORMAT_INDICATOR,
    RECEIVE_MAXIMUM,
    RESPONSE_TOPIC,
    SUBSCRIPTION_IDENTIFIER,
    TOPIC_ALIAS,
    TOPIC_ALIAS_MAXIMUM,
    USER_PROPERTY,
    Properties,
)
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.brokers import Served, WireClient, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


async def publishes(client: WireClient) -> list[Publish]:
    """Return the messages that `client` has been sent by now; QoS 1 and 2 are not answered."""
    packets = await client.settled()
    assert all(isinstance(packet, Publish) for packet in packets), packets
    return [packet for packet in packets if isinstance(packet, Publish)]


async def publish(client: WireClient, packet: Publish) -> None:
    """Publish and see the exchange through."""
    client.send(packet)
    if packet.qos == 1:
        assert (await client.receive(Puback)).packet_id == packet.packet_id
    elif packet.qos == 2:
        await client.receive(Pubrec)
        client.send(Pubrel(packet.packet_id))
        await client.receive(Pubcomp)
    else:
        assert await client.settled() == []


@VERSIONS
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
@pytest.mark.conformance("MQTT-3.8.4-6", "MQTT-3.8.4-8", "MQTT-3.3.4-1", "MQTT-3.3.1-2")
async def test_a_message_comes_with_the_lower_of_two_qos(
    version: int, published: int, subscribed: int
) -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", version=version)
        assert await reader.subscribe("a/b", qos=subscribed) == [subscribed]
        writer = await broker.connect("writer", version=version)
        await publish(writer, Publish("a/b", b"x", published, packet_id=5 if published else 0))
        (message,) = await publishes(reader)
        assert (message.topic_name, message.payload) == ("a/b", b"x")
        assert message.qos == min(published, subscribed)
        assert not message.dup
        assert not message.retain
        assert bool(message.packet_id) == bool(message.qos)


@pytest.mark.conformance("MQTT-3.4.2-1", "MQTT-3.5.2-1")
async def test_a_v5_publisher_learns_that_nobody_listens() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        client.send(Publish("t", b"x", 1, packet_id=1), Publish("t", b"x", 2, packet_id=2))
        assert await client.settled() == [Puback(1, 0x10), Pubrec(2, 0x10)]


@VERSIONS
@pytest.mark.conformance("MQTT-4.6.0-2", "MQTT-4.6.0-3", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
async def test_order_holds_for_each_qos(version: int) -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", version=version)
        await reader.subscribe("t")
        writer = await broker.connect("writer", version=version)
        count = 60
        writer.send(
            *[
                Publish("t", str(i).encode(), i % 3, packet_id=i + 1 if i % 3 else 0)
                for i in range(count)
            ]
        )
        acks = await writer.settled()
        assert [type(a).__name__ for a in acks] == ["Puback", "Pubrec"] * (count // 3)
        messages = await publishes(reader)
        for qos in (0, 1, 2):
            got = [int(m.payload) for m in messages if m.qos == qos]
            assert got == list(range(qos, count, 3))


@pytest.mark.conformance("MQTT-3.3.4-2", "MQTT-3.3.4-3", "MQTT-3.3.4-4", "MQTT-3.1.1:3.3.5-1")
async def test_overlapping_subscriptions_give_one_copy_with_every_identifier() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("a/+", qos=0, properties={SUBSCRIPTION_IDENTIFIER: [1]})
        await reader.subscribe("a/#", qos=2, properties={SUBSCRIPTION_IDENTIFIER: [300]})
        await reader.subscribe("a/b", qos=1)
        writer = await broker.connect("writer")
        await publish(writer, Publish("a/b", b"x", 2, packet_id=1))
        (message,) = await publishes(reader)
        assert message.qos == 2
        assert sorted(message.properties[SUBSCRIPTION_IDENTIFIER]) == [1, 300]


@pytest.mark.conformance("MQTT-3.8.4-3")
async def test_a_subscription_made_again_replaces_the_first() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t", qos=2, properties={SUBSCRIPTION_IDENTIFIER: [1]})
        await reader.subscribe("t", qos=0, properties={SUBSCRIPTION_IDENTIFIER: [2]})
        writer = await broker.connect("writer")
        await publish(writer, Publish("t", b"x", 2, packet_id=1))
        (message,) = await publishes(reader)
        assert (message.qos, message.properties) == (0, {SUBSCRIPTION_IDENTIFIER: [2]})


@pytest.mark.conformance("MQTT-3.8.3-3")
async def test_no_local_keeps_a_clients_own_messages_away() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        await client.subscribe(Subscription("t", 1, no_local=True))
        other = await broker.connect("two")
        client.send(Publish("t", b"mine"))
        other.send(Publish("t", b"theirs"))
        await other.settled()
        assert [m.payload for m in await publishes(client)] == [b"theirs"]


@VERSIONS
@pytest.mark.conformance("MQTT-3.10.4-1", "MQTT-3.10.4-2", "MQTT-3.10.4-4", "MQTT-3.10.4-5")
async def test_after_unsubscribe_nothing_new_comes(version: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        await client.subscribe("a/+", "b")
        client.send(Unsubscribe(5, ["a/+", "a/#"]), Publish("a/b", b"1"), Publish("b", b"2"))
        unsuback = await client.receive(Unsuback)
        assert unsuback.packet_id == 5
        assert unsuback.reason_codes == ([0, 0x11] if version == V5 else [])
        assert [m.payload for m in await publishes(client)] == [b"2"]


@VERSIONS
@pytest.mark.conformance("MQTT-4.7.2-1")
async def test_wildcards_do_not_match_names_that_begin_with_a_dollar(version: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        await client.subscribe("#", "+/x", "$mine/x")
        client.send(Publish("$mine/x", b"1"), Publish("mine/x", b"2"))
        assert [m.topic_name for m in await publishes(client)] == ["$mine/x", "mine/x"]


async def test_sys_topics_tell_of_the_broker_and_cannot_be_written() -> None:
    async with serving(BrokerConfig(sys_interval_s=3600)) as broker:
        client = await broker.connect("one")
        await client.subscribe("$SYS/broker/clients/#", "$SYS/mine")
        told = {m.topic_name for m in await publishes(client)}
        assert told == {"$SYS/broker/clients/connected", "$SYS/broker/clients/total"}
        client.send(Publish("$SYS/mine", b"x", 1, packet_id=1))
        assert await client.settled() == [Puback(1, ReasonCode.NOT_AUTHORIZED)]


@pytest.mark.conformance("MQTT-3.3.2-2", "MQTT-4.7.0-1")
@VERSIONS
async def test_publishing_to_a_wildcard_ends_the_connection_of_the_culprit_only(
    version: int,
) -> None:
    async with serving() as broker:
        bystander = await broker.connect("bystander", version=version)
        culprit = await broker.connect("culprit", version=version)
        culprit.send_bytes(b"\x30\x06\x00\x03a/+" + (b"\x00" if version == V5 else b"x"))
        if version == V5:
            goodbye = await culprit.receive(Disconnect)
            assert goodbye.reason_code == ReasonCode.TOPIC_NAME_INVALID
        assert await culprit.closed()
        assert await bystander.settled() == []


@pytest.mark.conformance(
    "MQTT-3.3.2-4", "MQTT-3.3.2-15", "MQTT-3.3.2-16", "MQTT-3.3.2-17", "MQTT-3.3.2-20"
)
async def test_properties_reach_the_subscriber_unaltered() -> None:
    properties: Properties = {
        PAYLOAD_FORMAT_INDICATOR: 1,
        CONTENT_TYPE: "text/plain",
        RESPONSE_TOPIC: "answers",
        CORRELATION_DATA: b"\x00\x01",
        USER_PROPERTY: [("b", "2"), ("a", "1"), ("b", "3")],
    }
    async with serving() as broker:
        reader = await broker.connect("reader")
        old = await broker.connect("old", version=V311)
        await reader.subscribe("t")
        await old.subscribe("t")
        writer = await broker.connect("writer")
        await publish(writer, Publish("t", b"x", 1, packet_id=1, properties=dict(properties)))
        (message,) = await publishes(reader)
        assert message.properties == properties
        (message,) = await publishes(old)
        assert message.properties == {}


@pytest.mark.conformance("MQTT-3.3.4-6")
async def test_a_client_must_not_send_subscription_identifiers() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        client.send(Publish("t", b"x", properties={SUBSCRIPTION_IDENTIFIER: [1]}))
        assert (await client.receive(Disconnect)).reason_code == ReasonCode.PROTOCOL_ERROR


# -- topic aliases ----------------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.3.2-8", "MQTT-3.3.2-10", "MQTT-3.3.2-12")
async def test_an_alias_stands_for_its_topic_on_its_connection_only() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("#")
        writer = await broker.connect("writer")
        alias: Properties = {TOPIC_ALIAS: 3}
        writer.send(
            Publish("a", b"1", properties=dict(alias)),
            Publish("", b"2", properties=dict(alias)),
            Publish("b", b"3", properties=dict(alias)),
            Publish("", b"4", properties=dict(alias)),
        )
        await writer.settled()
        got = [(m.topic_name, m.payload, m.properties) for m in await publishes(reader)]
        assert got == [("a", b"1", {}), ("a", b"2", {}), ("b", b"3", {}), ("b", b"4", {})]
        other = await broker.connect("other")
        other.send(Publish("", b"5", properties=dict(alias)))
        assert (await other.receive(Disconnect)).reason_code == ReasonCode.PROTOCOL_ERROR


@pytest.mark.conformance("MQTT-3.3.2-9")
async def test_an_alias_above_the_maximum_is_refused() -> None:
    async with serving(BrokerConfig(topic_alias_maximum=2, sys_interval_s=0)) as broker:
        writer = await broker.connect("writer")
        writer.send(Publish("a", b"1", properties={TOPIC_ALIAS: 3}))
        goodbye = await writer.receive(Disconnect)
        assert goodbye.reason_code == ReasonCode.TOPIC_ALIAS_INVALID


@pytest.mark.conformance("MQTT-3.1.2-26", "MQTT-3.1.2-27")
async def test_the_server_uses_no_more_aliases_than_the_client_takes() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader", properties={TOPIC_ALIAS_MAXIMUM: 1})
        await reader.subscribe("#", qos=1)
        plain = await broker.connect("plain")
        await plain.subscribe("#", qos=1)
        writer = await broker.connect("writer")
        for topic in ("a", "a", "b", "a"):
            writer.send(Publish(topic, b"x"))
        await writer.settled()
        got = [(m.topic_name, m.properties.get(TOPIC_ALIAS)) for m in await publishes(reader)]
        assert got == [("a", 1), ("", 1), ("b", None), ("", 1)]
        got = [(m.topic_name, m.properties.get(TOPIC_ALIAS)) for m in await publishes(plain)]
        assert got == [("a", None), ("a", None), ("b", None), ("a", None)]


# -- retained ---------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.3.1-5", "MQTT-3.3.1-8", "MQTT-3.3.1-6", "MQTT-3.3.1-7")
async def test_a_retained_message_waits_for_new_subscribers(version: int) -> None:
    async with serving() as broker:
        writer = await broker.connect("writer", version=version)
        await publish(writer, Publish("a/b", b"old", 1, retain=True, packet_id=1))
        await publish(writer, Publish("a/b", b"new", 1, retain=True, packet_id=1))
        await publish(writer, Publish("a/c", b"gone", 0, retain=True))
        await publish(writer, Publish("a/c", b"", 0, retain=True))
        await publish(writer, Publish("a/d", b"never kept"))
        reader = await broker.connect("reader", version=version)
        await reader.subscribe("a/#")
        (message,) = await publishes(reader)
        assert (message.topic_name, message.payload, message.qos) == ("a/b", b"new", 1)
        assert message.retain
        assert broker.broker.stats().retained_messages == 1


@pytest.mark.conformance("MQTT-3.3.1-12", "MQTT-3.3.1-13")
async def test_retain_is_cleared_for_live_subscribers_unless_they_want_it_as_published() -> None:
    async with serving() as broker:
        plain = await broker.connect("plain")
        await plain.subscribe("t")
        asks = await broker.connect("asks")
        await asks.subscribe(Subscription("t", 2, retain_as_published=True))
        writer = await broker.connect("writer")
        await publish(writer, Publish("t", b"x", retain=True))
        assert [m.retain for m in await publishes(plain)] == [False]
        assert [m.retain for m in await publishes(asks)] == [True]


@pytest.mark.conformance("MQTT-3.3.1-9", "MQTT-3.3.1-10", "MQTT-3.3.1-11")
@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
async def test_retain_handling(handling: int, first: int, again: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        await publish(client, Publish("t", b"x", retain=True))
        for expected in (first, again):
            await client.subscribe(Subscription("t", 0, retain_handling=handling))
            assert len(await publishes(client)) == expected


async def test_many_retained_messages_reach_a_subscriber_with_a_small_window() -> None:
    async with serving(BrokerConfig(inflight_max=4, sys_interval_s=0)) as broker:
        writer = await broker.connect("writer")
        topics = [f"t/{i}" for i in range(700)]
        for topic in topics:
            writer.send(Publish(topic, b"x", 1, packet_id=1, retain=True))
            await writer.receive(Puback)
        reader = await broker.connect("reader", properties={RECEIVE_MAXIMUM: 2})
        await reader.subscribe("t/+", qos=1)
        got = []
        while len(got) < len(topics):
            message = await reader.receive(Publish)
            got.append(message.topic_name)
            reader.send(Puback(message.packet_id))
        assert sorted(got) == sorted(topics)


async def test_retained_messages_over_the_limit_are_refused() -> None:
    config = BrokerConfig(retained_messages_max=1, sys_interval_s=0)
    async with serving(config) as broker:
        client = await broker.connect("one")
        await publish(client, Publish("a", b"1", 1, packet_id=1, retain=True))
        await publish(client, Publish("a", b"2", 1, packet_id=1, retain=True))
        client.send(Publish("b", b"3", 1, packet_id=1, retain=True))
        assert (await client.receive(Puback)).reason_code == ReasonCode.QUOTA_EXCEEDED
        assert broker.broker.stats().drops == {"retained_full": 1}


async def test_what_the_server_retains_itself_takes_nobodys_place() -> None:
    config = BrokerConfig(retained_messages_max=2, sys_interval_s=0.01)
    async with serving(config) as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("$SYS/#")
        await reader.receive(Publish)  # the server's own are there
        client = await broker.connect("one")
        for topic in ("a", "b"):
            client.send(Publish(topic, b"1", 1, packet_id=1, retain=True))
            code = (await client.receive(Puback)).reason_code
            assert code == ReasonCode.NO_MATCHING_SUBSCRIBERS  # and kept
        client.send(Publish("c", b"1", 1, packet_id=1, retain=True))
        assert (await client.receive(Puback)).reason_code == ReasonCode.QUOTA_EXCEEDED


# -- message expiry ---------------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.3.2-5", "MQTT-3.3.2-6")
async def test_message_expiry_counts_down_while_a_message_waits() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        writer = await broker.connect("writer")
        expiring: Properties = {MESSAGE_EXPIRY_INTERVAL: 100}
        await publish(writer, Publish("t", b"x", retain=True, properties=dict(expiring)))
        broker.pass_time(clock, 40)
        reader = await broker.connect("reader")
        await reader.subscribe("t")
        (message,) = await publishes(reader)
        assert message.properties == {MESSAGE_EXPIRY_INTERVAL: 60}
        broker.pass_time(clock, 61)
        late = await broker.connect("late")
        await late.subscribe("t")
        assert await publishes(late) == []
        assert broker.broker.stats().retained_messages == 0


# -- limits of the client ---------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.1.2-24", "MQTT-3.1.2-25")
async def test_what_is_too_large_for_a_client_is_dropped_for_it_alone() -> None:
    async with serving() as broker:
        small = await broker.connect("small", properties={MAXIMUM_PACKET_SIZE: 60})
        large = await broker.connect("large")
        for client in (small, large):
            await client.subscribe("t", qos=1)
        writer = await broker.connect("writer")
        await publish(writer, Publish("t", b"x" * 100, 1, packet_id=1))
        await publish(writer, Publish("t", b"y" * 100, 0))
        await publish(writer, Publish("t", b"fits", 1, packet_id=1))
        assert [m.payload for m in await publishes(small)] == [b"fits"]
        assert [len(m.payload) for m in await publishes(large)] == [100, 100, 4]
        assert broker.broker.stats().drops == {"too_large": 2}


@VERSIONS
async def test_a_packet_over_the_servers_limit_is_refused_before_it_is_kept(version: int) -> None:
    config = BrokerConfig(maximum_packet_size_bytes=1000, sys_interval_s=0)
    async with serving(config) as broker:
        client = await broker.connect("one", version=version)
        client.send_bytes(b"\x30\xff\xff\xff\x7f")  # 256 MB are to follow
        if version == V5:
            goodbye = await client.receive(Disconnect)
            assert goodbye.reason_code == ReasonCode.PACKET_TOO_LARGE
        assert await client.closed()


@VERSIONS
async def test_a_payload_of_256_kb_arrives_whole(version: int) -> None:
    payload = bytes(range(256)) * 1024
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        await client.subscribe("t", qos=1)
        client.send(Publish("t", payload, 1, packet_id=1))
        message = await client.receive(Publish)
        assert message.payload == payload


async def test_subscriptions_over_the_limit_are_refused() -> None:
    async with serving(BrokerConfig(subscriptions_max=1, sys_interval_s=0)) as broker:
        client = await broker.connect("one")
        assert await client.subscribe("a", "b", "a") == [2, ReasonCode.QUOTA_EXCEEDED, 2]


async def test_a_filter_with_too_many_levels_is_refused() -> None:
    async with serving(BrokerConfig(topic_levels_max=3, sys_interval_s=0)) as broker:
        client = await broker.connect("one")
        assert await client.subscribe("a/b/c", "a/b/c/d", qos=0) == [
            0,
            ReasonCode.TOPIC_FILTER_INVALID,
        ]


# -- shared subscriptions ---------------------------------------------------------------------


async def _members(broker: Served, count: int, qos: int = 1) -> list[WireClient]:
    clients = [await broker.connect(f"member-{i}") for i in range(count)]
    for client in clients:
        await client.subscribe("$share/g/t/#", qos=qos)
    return clients


@pytest.mark.conformance("MQTT-4.8.2-3")
async def test_a_shared_subscription_gives_each_message_to_one_member() -> None:
    async with serving() as broker:
        members = await _members(broker, 3)
        outsider = await broker.connect("outsider")
        await outsider.subscribe("t/#")
        writer = await broker.connect("writer")
        for i in range(30):
            writer.send(Publish("t/x", str(i).encode()))
        await writer.settled()
        shares = [[int(m.payload) for m in await publishes(member)] for member in members]
        assert sorted(n for share in shares for n in share) == list(range(30))
        assert [len(share) for share in shares] == [10, 10, 10]
        assert len(await publishes(outsider)) == 30


async def test_retained_messages_are_not_sent_to_shared_subscriptions() -> None:
    async with serving() as broker:
        writer = await broker.connect("writer")
        await publish(writer, Publish("t/x", b"x", retain=True))
        (member,) = await _members(broker, 1)
        assert await publishes(member) == []


@pytest.mark.conformance("MQTT-4.8.2-5")
async def test_what_a_member_did_not_acknowledge_goes_to_another_when_it_leaves() -> None:
    async with serving() as broker:
        leaver, stayer = await _members(broker, 2)
        writer = await broker.connect("writer")
        for i in range(4):
            await publish(writer, Publish("t/x", str(i).encode(), 1, packet_id=1))
        assert len(await publishes(leaver)) == 2
        assert len(await publishes(stayer)) == 2
        await broker.gone(leaver)
        rest = {(await stayer.receive(Publish)).payload for _ in range(2)}
        assert len(rest) == 2


@pytest.mark.conformance("MQTT-4.8.2-4", "MQTT-4.8.2-5")
async def test_a_qos_2_message_that_was_sent_stays_with_its_member() -> None:
    async with serving() as broker:
        leaver, stayer = await _members(broker, 2, qos=2)
        writer = await broker.connect("writer")
        for i in range(2):
            await publish(writer, Publish("t/x", str(i).encode(), 2, packet_id=1))
        assert len(await publishes(leaver)) == len(await publishes(stayer)) == 1
        await broker.gone(leaver)
        await publish(writer, Publish("t/x", b"next", 0))
        assert [m.payload for m in await publishes(stayer)] == [b"next"]


@VERSIONS
async def test_subscribing_to_several_filters_is_answered_in_their_order(version: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        client.send(
            Subscribe(9, [Subscription("a", 2), Subscription("b", 0), Subscription("c", 1)])
        )
        assert (await client.receive(Suback)) == Suback(9, [2, 0, 1])
