"""Conformance, sections 3.8 to 3.15, 4.5, 4.7, 4.8 and 4.13: subscriptions, matching, farewells."""

from __future__ import annotations

import pytest

from mqtt.broker.config import BrokerConfig
from tests.kit.brokers import Served, serving
from tests.kit.raw_mqtt import (
    RawClient,
    RawPublish,
    connected,
    frame,
    parse_publish,
    properties_of,
    publish,
    raw,
    string,
    subscribe,
    unsubscribe,
)

VERSIONS = pytest.mark.parametrize("version", [4, 5])
HOUR = b"\x11\0\0\x0e\x10"


async def messages(client: RawClient) -> list[RawPublish]:
    """Return the PUBLISH packets sent by now; there must be nothing else."""
    return [parse_publish(client.version, packet) for packet in await client.until_pong()]


async def gone(broker: Served, client: RawClient) -> None:
    """Make a client vanish, and return when the broker knows."""
    count = broker.broker.stats().connections
    client.abort()
    await broker.until(lambda: broker.broker.stats().connections < count)


async def say(writer: RawClient, *topics: str, qos: int = 0) -> None:
    """Publish each topic's name to it, and return when the server has seen it."""
    for packet_id, topic in enumerate(topics, 1):
        writer.send(publish(writer.version, topic, topic, qos, packet_id))
    await writer.until_pong()


# -- SUBSCRIBE --------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.8.3-2", "MQTT-3.10.3-2", "MQTT-3.1.1:3.8.3-3")
@pytest.mark.parametrize("first", [0x82, 0xA2])
async def test_a_subscribe_or_unsubscribe_has_a_filter(version: int, first: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(frame(first, b"\0\1" + b"\0" * (version == 5)))
        assert await client.refused(0x81, 0x82)


@VERSIONS
@pytest.mark.parametrize("options", [0x03, 0x04, 0x30, 0x40, 0x80, 0xC0, 0xFF])
@pytest.mark.conformance("MQTT-3.8.3-5", "MQTT-3.1.1:3.8.3-4")
async def test_reserved_bits_of_a_subscription_are_malformed(version: int, options: int) -> None:
    if version == 5 and options == 0x04:
        options = 0x43
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(subscribe(version, 1, ("t", options)))
        assert await client.refused(0x81, 0x82)


@pytest.mark.conformance("MQTT-3.8.3-4")
async def test_no_local_on_a_shared_subscription_is_a_fault() -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(subscribe(5, 1, ("$share/g/t", 0x04)))
        assert await client.refused(0x82)


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.8.4-5", "MQTT-3.8.4-6", "MQTT-3.8.4-7", "MQTT-3.9.3-1", "MQTT-3.9.3-2"
)
async def test_each_filter_has_its_code_in_its_place(version: int) -> None:
    config = BrokerConfig(sys_interval_s=0, topic_levels_max=3)
    async with serving(config) as broker:
        client = await connected(broker, version)
        failure = 0x8F if version == 5 else 0x80
        filters = [("a", 2), ("a/b/c/d", 1), ("b", 0), ("a/b", 1), ("a", 1)]
        assert await client.subscribe(*filters) == [2, failure, 0, 1, 1]


@VERSIONS
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.conformance("MQTT-3.8.4-8", "MQTT-3.1.1:3.8.4-6", "MQTT-4.8.2-3", "MQTT-4.5.0-1")
async def test_a_message_has_the_lower_qos(version: int, published: int, granted: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version, "reader")
        await client.subscribe(("t", granted), ("$share/g/s", granted))
        writer = await connected(broker, version, "writer")
        await say(writer, "t", "s", qos=published)
        got = [(m.topic, m.qos) for m in await messages(client)]
        assert got == [(b"t", min(published, granted)), (b"s", min(published, granted))]


@VERSIONS
@pytest.mark.conformance("MQTT-3.8.4-3", "MQTT-3.8.4-4", "MQTT-3.1.1:3.8.4-3")
async def test_the_same_filter_again_replaces_the_subscription(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        writer.send(publish(version, "t", "kept", 1, 1, retain=True))
        await writer.packet()
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("t", 0))
        assert [(m.retain, m.qos) for m in await messages(reader)] == [(True, 0)]
        await reader.subscribe(("t", 1))
        assert [(m.retain, m.qos) for m in await messages(reader)] == [(True, 1)]
        await say(writer, "t", qos=2)
        assert [(m.retain, m.qos) for m in await messages(reader)] == [(False, 1)]  # and once


@pytest.mark.conformance("MQTT-3.8.3-3")
async def test_no_local_keeps_a_clients_own_messages_from_it() -> None:
    async with serving() as broker:
        client = await connected(broker, 5, "one")
        other = await connected(broker, 5, "two")
        await client.subscribe(("t", 0x04))
        client.send(publish(5, "t", b"own"))
        assert await client.until_pong() == []
        await say(other, "t")
        assert len(await messages(client)) == 1
        # Beside another subscription: by that one, and with its terms.
        await client.subscribe(("t", 0x06), props=b"\x0b\x01")
        await client.subscribe(("+", 0x01), props=b"\x0b\x02")
        client.send(publish(5, "t", b"own", 2, 1))
        packets = [p for p in await client.until_pong() if p[0] >> 4 == 3]
        own = [parse_publish(5, packet) for packet in packets]
        assert [(m.qos, m.props) for m in own] == [(1, [(0x0B, b"\x02")])]
        await say(other, "t", qos=2)
        (foreign,) = await messages(client)
        assert (foreign.qos, sorted(foreign.props)) == (2, [(0x0B, b"\x01"), (0x0B, b"\x02")])


@VERSIONS
@pytest.mark.conformance("MQTT-3.3.4-2", "MQTT-3.3.4-3", "MQTT-3.3.4-4", "MQTT-3.3.2-3")
async def test_overlapping_subscriptions_give_one_copy_with_all_identifiers(version: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        for number, (topic_filter, qos) in enumerate((("a/+", 0), ("a/#", 2), ("a/b", 1)), 1):
            props = b"\x0b\xff\xff\xff" + bytes((number,)) if version == 5 else b""
            await reader.subscribe((topic_filter, qos), props=props)
        await reader.subscribe(("#", 0))  # without an identifier
        writer = await connected(broker, version, "writer")
        await say(writer, "a/b", "b", qos=2)
        overlapping, plain = await messages(reader)
        assert (overlapping.topic, overlapping.qos) == (b"a/b", 2)
        assert (plain.topic, plain.props) == (b"b", [])
        if version == 5:
            assert sorted(overlapping.props) == [
                (0x0B, b"\xff\xff\xff" + bytes((number,))) for number in (1, 2, 3)
            ]


@pytest.mark.parametrize("props", [b"\x0b\x00", b"\x0b\x01\x0b\x02", b"\x0b\xff\xff\xff\xff\x01"])
@pytest.mark.conformance("MQTT-4.13.1-1")
async def test_a_subscription_identifier_is_one_and_not_0(props: bytes) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(subscribe(5, 1, ("t", 0), props=props))
        assert await client.refused(0x81, 0x82)


# -- UNSUBSCRIBE ------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.10.4-1", "MQTT-3.10.4-2", "MQTT-3.10.4-6", "MQTT-3.11.3-1", "MQTT-3.11.3-2"
)
async def test_filters_are_compared_character_by_character(version: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("a/+", 1), ("a/b", 1), ("A/b", 1), ("$share/g/a/b", 1))
        reader.send(unsubscribe(version, 7, "a/#", "a/+", "a/b", "a/b", "$share/h/a/b", "A/B"))
        first, body = await reader.packet()
        assert (first, body[:2]) == (0xB0, b"\0\7")
        if version == 5:
            assert body[2:] == b"\0" + b"\x11\0\0\x11\x11\x11"
        else:
            assert body == b"\0\7"
        writer = await connected(broker, version, "writer")
        await say(writer, "a/b", "a/c", "A/b", qos=1)
        assert [m.topic for m in await messages(reader)] == [b"a/b", b"A/b"]  # the shared one


@VERSIONS
@pytest.mark.conformance("MQTT-3.10.4-2", "MQTT-3.10.4-3")
async def test_what_has_begun_is_finished_after_unsubscribe(version: int) -> None:
    fields = {"clean": False, "props": HOUR if version == 5 else b""}
    async with serving() as broker:
        reader = await connected(broker, version, "reader", **fields)
        await reader.subscribe(("t", 2))
        writer = await connected(broker, version, "writer")
        writer.send(publish(version, "t", "1", 1, 1), publish(version, "t", "2", 2, 2))
        await writer.until_pong()
        one, two = await messages(reader)
        reader.send(unsubscribe(version, 1, "t"))
        assert (await reader.packet())[0] == 0xB0
        await say(writer, "t", qos=1)
        assert await messages(reader) == []
        reader.send(frame(0x50, two.packet_id.to_bytes(2, "big")))
        assert (await reader.packet())[0] == 0x62
        await gone(broker, reader)
        reader = await raw(broker, version)
        await reader.connect("reader", **fields)
        packets = await reader.until_pong()
        assert parse_publish(version, packets[0]).packet_id == one.packet_id
        assert packets[1] == (0x62, two.packet_id.to_bytes(2, "big"))


# -- what does not fit is left out ------------------------------------------------------------


@pytest.mark.conformance(
    "MQTT-3.4.2-2",
    "MQTT-3.4.2-3",
    "MQTT-3.5.2-2",
    "MQTT-3.5.2-3",
    "MQTT-3.6.2-2",
    "MQTT-3.6.2-3",
    "MQTT-3.7.2-2",
    "MQTT-3.7.2-3",
    "MQTT-3.9.2-1",
    "MQTT-3.9.2-2",
    "MQTT-3.11.2-1",
    "MQTT-3.11.2-2",
    "MQTT-3.14.2-2",
    "MQTT-3.14.2-3",
    "MQTT-3.14.2-4",
)
@pytest.mark.parametrize("limit", [14, 20, 1000])
async def test_no_answer_is_longer_than_the_client_takes(limit: int) -> None:
    config = BrokerConfig(
        sys_interval_s=0,
        subscriptions_max=1,
        retained_messages_max=0,
        receive_maximum=0xFFFF,
        topic_alias_maximum=0,
    )
    async with serving(config) as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("c", props=b"\x27" + limit.to_bytes(4, "big"))
        assert len(body) + 2 <= limit
        assert await client.subscribe(("a", 1)) == [1]
        client.send(
            subscribe(5, 1, ("b", 0)),
            unsubscribe(5, 2, "never"),
            publish(5, "t", b"x", 1, 3, retain=True),
            publish(5, "t", b"x", 2, 4, retain=True),
            frame(0x62, b"\0\x05"),
            frame(0x50, b"\0\x06"),
        )
        answers = await client.until_pong()
        assert [first for first, _ in answers] == [0x90, 0xB0, 0x40, 0x50, 0x70, 0x62]
        assert max(len(body) + 2 for _, body in answers) <= limit
        client.send(frame(0x82, b"\0\1"))  # malformed
        first, body = await client.packet()
        assert (first, body[0]) == (0xE0, 0x81)
        assert len(body) + 2 <= limit
        props = dict(properties_of(body, 1)[0]) if len(body) > 1 else {}
        assert 0x11 not in props
        assert (0x1F in props) == (limit == 1000)
        assert await client.closed()


# -- PINGREQ and DISCONNECT -------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.12.4-1")
async def test_every_pingreq_is_answered(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(b"\xc0\0" * 5)
        assert [await client.packet() for _ in range(5)] == [(0xD0, b"")] * 5


@VERSIONS
@pytest.mark.conformance("MQTT-3.14.4-1", "MQTT-3.14.4-2", "MQTT-3.1.1:3.14.4-3")
async def test_nothing_after_a_disconnect_is_read(version: int) -> None:
    async with serving() as broker:
        watcher = await connected(broker, version, "watcher")
        await watcher.subscribe(("t", 0))
        client = await connected(broker, version, "c", will=("t", b"will"))
        client.send(b"\xe0\0", publish(version, "t", b"x", 1, 1), b"\xc0\0")
        assert await client.closed()
        assert await messages(watcher) == []


@pytest.mark.parametrize("code", [0x01, 0x03, 0x05, 0x7F, 0x84, 0x86, 0x9F + 0x10, 0xFF])
@pytest.mark.conformance("MQTT-3.14.2-1", "MQTT-4.13.1-1")
async def test_a_disconnect_with_a_code_that_is_none_is_a_fault(code: int) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(frame(0xE0, bytes((code,))))
        assert await client.refused(0x82, 0x81)


@pytest.mark.conformance("MQTT-3.14.2-1", "MQTT-3.1.2-8")
async def test_a_disconnect_that_makes_a_session_last_is_no_disconnect() -> None:
    async with serving() as broker:
        watcher = await connected(broker, 5, "watcher")
        await watcher.subscribe(("will", 0))
        client = await connected(broker, 5, "c", will=("will", b"gone"))
        client.send(frame(0xE0, b"\0\x05\x11\0\0\0\x01"))
        assert await client.refused(0x82)
        assert (await watcher.publish()).payload == b"gone"


@VERSIONS
@pytest.mark.conformance("MQTT-3.14.0-1", "MQTT-3.14.4-1", "MQTT-3.14.4-2", "MQTT-3.2.2-8")
async def test_a_server_that_stops_says_so_to_whom_it_may(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        silent = await raw(broker, version)
        await broker.until(lambda: broker.broker.stats().connections == 2)
        await broker.broker.stop()
        assert await client.refused(0x8B)
        assert await silent.closed()


@VERSIONS
@pytest.mark.parametrize("packet", [0x20, 0x90, 0xB0, 0xD0, 0xF0])
@pytest.mark.conformance("MQTT-4.13.1-1", "MQTT-3.1.1:4.8.0-1")
async def test_what_only_servers_send_is_a_fault_and_no_others(version: int, packet: int) -> None:
    async with serving() as broker:
        other = await connected(broker, version, "other")
        client = await connected(broker, version)
        client.send(frame(packet, b"" if packet in (0xD0, 0xF0) else b"\0\1\0"))
        assert await client.refused(0x81, 0x82)
        assert await other.until_pong() == []  # no consequence for other sessions


# -- matching ---------------------------------------------------------------------------------

MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player10", False),
    ("sport/#", "sport", True),
    ("#", "any/thing", True),
    ("#", "/", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/tennis/#", "sport/tennis", True),
    ("+/tennis/#", "/tennis", True),
    ("+", "/finance", False),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("#", "$data/x", False),
    ("+/x", "$data/x", False),
    ("+/#", "$data/x", False),
    ("$data/#", "$data/x", True),
    ("$data/+", "$data/x", True),
    ("$data/x", "$data/x", True),
    ("a//b", "a//b", True),
    ("a//b", "a/b", False),
    ("a/+/b", "a//b", True),
    ("ACCOUNTS", "Accounts", False),
    ("a b/ c", "a b/ c", True),
    ("\u00e9", "e\u0301", False),  # no normalization
    ("\u212b", "\u00c5", False),
    ("/a", "a", False),
    ("a/", "a", False),
    ("/", "/", True),
    ("\x01", "\x01", True),
]


@VERSIONS
@pytest.mark.conformance(
    "MQTT-4.7.0-1",
    "MQTT-4.7.1-1",
    "MQTT-4.7.1-2",
    "MQTT-4.7.2-1",
    "MQTT-4.7.3-1",
    "MQTT-4.7.3-4",
    "MQTT-3.3.2-3",
)
async def test_filters_match_as_the_specification_says(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        for topic_filter, topic, expected in MATCHES:
            reader = await connected(broker, version, "reader")
            await reader.subscribe((topic_filter, 0))
            await say(writer, topic)
            assert bool(await messages(reader)) is expected, (topic_filter, topic)


@VERSIONS
@pytest.mark.parametrize("retain", [True])
@pytest.mark.conformance("MQTT-4.7.2-1", "MQTT-3.3.1-9")
async def test_retained_messages_match_alike(version: int, retain: bool) -> None:
    async with serving() as broker:
        for topic_filter, topic, expected in MATCHES:
            client = await connected(broker, version, "c")
            client.send(publish(version, topic, b"x", retain=retain))
            await client.subscribe((topic_filter, 0))
            assert bool(await messages(client)) is expected, (topic_filter, topic)
            client.send(publish(version, topic, b"", retain=True))


@VERSIONS
@pytest.mark.parametrize(
    "topic_filter", ["", "a#", "a/#/b", "#/a", "a/b#", "a+", "a/+b", "+a/b", "a/++", "##"]
)
@pytest.mark.conformance("MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.7.3-1")
async def test_a_filter_that_is_none_is_refused(version: int, topic_filter: str) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(subscribe(version, 1, (topic_filter, 0)))
        assert await client.refused(0x81, 0x82, 0x8F)


@pytest.mark.parametrize(
    "topic_filter", ["$share/", "$share//t", "$share/g", "$share/g/", "$share/g+/t", "$share/#/t"]
)
@pytest.mark.conformance("MQTT-4.8.2-1", "MQTT-4.8.2-2")
async def test_a_shared_filter_that_is_none_is_refused(topic_filter: str) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(subscribe(5, 1, (topic_filter, 0)))
        assert await client.refused(0x81, 0x82, 0x8F)


@VERSIONS
@pytest.mark.conformance("MQTT-4.7.3-3", "MQTT-4.2-1")
async def test_the_longest_topic_is_carried(version: int) -> None:
    topic = "x" * 65_535
    async with serving() as broker:
        client = await connected(broker, version)
        await client.subscribe((topic, 0))
        client.send(publish(version, topic, b"payload"))
        message = await client.publish()
        assert (len(message.topic), message.payload) == (65_535, b"payload")


# -- shared subscriptions ---------------------------------------------------------------------


@pytest.mark.conformance("MQTT-4.8.2-1", "MQTT-4.8.2-2", "MQTT-3.3.1-9")
async def test_groups_are_independent_and_get_no_retained_messages() -> None:
    async with serving() as broker:
        writer = await connected(broker, 5, "writer")
        writer.send(publish(5, "t", b"kept", retain=True))
        await writer.until_pong()
        members = [await connected(broker, 5, name) for name in "abcd"]
        for member, topic_filter in zip(
            members, ("$share/one/t", "$share/one/t", "$share/two/+", "t"), strict=True
        ):
            await member.subscribe((topic_filter, 0x20 if topic_filter == "t" else 0))
        await say(writer, *["t"] * 10)
        counts = [len(await messages(member)) for member in members]
        assert counts[0] + counts[1] == counts[2] == counts[3] == 10
        assert min(counts) > 0


@pytest.mark.conformance("MQTT-4.8.2-4", "MQTT-4.8.2-5")
async def test_a_qos_2_message_on_its_way_waits_for_its_member() -> None:
    async with serving() as broker:
        fields = {"clean": False, "props": HOUR + b"\x21\0\x01"}
        first = await connected(broker, 5, "first", **fields)
        await first.subscribe(("$share/g/t", 2))
        writer = await connected(broker, 5, "writer")
        await say(writer, "t", qos=2)
        message = await first.publish()
        second = await connected(broker, 5, "second")
        await second.subscribe(("$share/g/t", 2))
        await gone(broker, first)
        assert await messages(second) == []
        first = await raw(broker, 5)
        await first.connect("first", **fields)
        again = await first.publish()
        assert (again.packet_id, again.dup) == (message.packet_id, True)
        await gone(broker, first)
        first = await raw(broker, 5)
        await first.connect("first", clean=True)  # its session ends
        assert await messages(second) == []


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.conformance("MQTT-4.5.0-1")
async def test_what_a_member_was_not_sent_goes_to_another_when_it_leaves(qos: int) -> None:
    async with serving() as broker:
        fields = {"clean": False, "props": HOUR + b"\x21\0\x01"}
        first = await connected(broker, 5, "first", **fields)
        await first.subscribe(("$share/g/t", 2))
        writer = await connected(broker, 5, "writer")
        for n in range(1, 4):
            writer.send(publish(5, "t", b"%d" % n, qos, n))
        await writer.until_pong()
        assert [m.payload for m in await messages(first)] == [b"1"]  # the others wait
        second = await connected(broker, 5, "second")
        await second.subscribe(("$share/g/t", 2))
        await gone(broker, first)
        got = [m.payload for m in await messages(second)]
        assert got == ([b"1", b"2", b"3"] if qos == 1 else [b"2", b"3"])


# -- $SYS -------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-4.7.2-1")
async def test_the_servers_own_topics_are_for_those_who_ask_for_them(version: int) -> None:
    async with serving(BrokerConfig(sys_interval_s=0.05)) as broker:
        everything = await connected(broker, version, "everything")
        await everything.subscribe(("#", 0), ("+/broker/uptime", 0))
        curious = await connected(broker, version, "curious")
        await curious.subscribe(("$SYS/#", 0))
        topics = {(await curious.publish()).topic for _ in range(5)}
        assert all(topic.startswith(b"$SYS/broker/") for topic in topics)
        assert await messages(everything) == []
        everything.send(publish(version, "$SYS/broker/uptime", b"forged", 1, 1))
        first, body = await everything.packet()
        assert first == 0x40
        assert version == 4 or body[2] == 0x87
        later = await connected(broker, version, "later")
        await later.subscribe(("$SYS/broker/uptime", 0))
        assert (await later.publish()).payload != b"forged"


@pytest.mark.conformance("MQTT-3.15.2-1", "MQTT-4.13.1-1")
async def test_an_auth_with_a_code_that_is_none_is_a_fault() -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(frame(0xF0, b"\x01\x04\x15" + string("m")))
        assert await client.refused(0x82, 0x81)
