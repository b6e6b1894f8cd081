"""Conformance, sections 3.3 to 3.7, 4.3, 4.4, 4.6 and 4.9: messages and their acknowledgements."""

from __future__ import annotations

import pytest

from mqtt.broker.config import BrokerConfig
from runtime.clock import ManualClock
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
)

VERSIONS = pytest.mark.parametrize("version", [4, 5])
PUBACK, PUBREC, PUBREL, PUBCOMP = 0x40, 0x50, 0x62, 0x70

HOUR = b"\x11\0\0\x0e\x10"


def number(packet_id: int) -> bytes:
    """Return a packet identifier."""
    return packet_id.to_bytes(2, "big")


def lasting(version: int, props: bytes = b"") -> dict[str, object]:
    """Return the fields of a CONNECT whose session is to outlive the connection."""
    return {"clean": False, "props": HOUR + props if version == 5 else b""}


async def gone(broker: Served, client: RawClient) -> None:
    """Make a client vanish, and return when the broker knows."""
    count = broker.broker.stats().connections
    client.abort()
    await broker.until(lambda: broker.broker.stats().connections < count)


async def send_whole(
    client: RawClient, topic: str, payload: bytes, qos: int, packet_id: int = 1, **more: object
) -> None:
    """Publish and see the exchange through."""
    version = client.version
    client.send(publish(version, topic, payload, qos, packet_id, **more))  # type: ignore[arg-type]
    if qos == 1:
        assert (await client.packet())[0] == PUBACK
    elif qos == 2:
        assert (await client.packet())[0] == PUBREC
        client.send(frame(PUBREL, number(packet_id)))
        assert (await client.packet())[0] == PUBCOMP
    else:
        assert await client.until_pong() == []


async def settle(client: RawClient, batch: list[RawPublish]) -> None:
    """Acknowledge messages to the end; nothing but PUBREL may come meanwhile."""
    for message in batch:
        if message.qos == 2:
            client.send(frame(PUBREC, number(message.packet_id)))
            assert await client.packet() == (PUBREL, number(message.packet_id))
    for message in batch:
        if message.qos:
            first = PUBACK if message.qos == 1 else PUBCOMP
            client.send(frame(first, number(message.packet_id)))


async def messages(client: RawClient) -> list[RawPublish]:
    """Return the PUBLISH packets sent by now; there must be nothing else."""
    return [parse_publish(client.version, packet) for packet in await client.until_pong()]


# -- flags ------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.3.1-4", "MQTT-4.13.1-1")
async def test_qos_3_is_malformed(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(publish(version, "t", b"x", 3, 1))
        assert await client.refused(0x81)


@VERSIONS
@pytest.mark.conformance("MQTT-3.3.1-2")
async def test_dup_with_qos_0_is_malformed(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(publish(version, "t", b"x", dup=True))
        assert await client.refused(0x81)


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.conformance("MQTT-3.3.1-3", "MQTT-4.3.2-2", "MQTT-4.3.3-2", "MQTT-2.2.1-4")
async def test_dup_is_not_handed_on(version: int, qos: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("t", 2))
        writer = await connected(broker, version, "writer")
        writer.send(publish(version, "t", b"x", qos, 1, dup=True))
        message = await reader.publish()
        assert (message.qos, message.dup) == (qos, False)


# -- retained ---------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.conformance(
    "MQTT-3.3.1-5",
    "MQTT-3.3.1-8",
    "MQTT-3.3.1-9",
    "MQTT-3.3.1-12",
    "MQTT-3.1.1:3.3.1-6",
    "MQTT-3.1.1:3.3.1-7",
    "MQTT-3.1.1:3.3.1-8",
)
async def test_the_last_retained_message_and_its_qos_are_kept(version: int, qos: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        early = await connected(broker, version, "early")
        await early.subscribe(("t", 2))
        await send_whole(writer, "t", b"old", 1, retain=True)
        await send_whole(writer, "t", b"new", qos, retain=True)
        await send_whole(writer, "t", b"not retained", qos)
        assert not any(message.retain for message in await messages(early))
        late = await connected(broker, version, "late")
        await late.subscribe(("t", 2))
        (kept,) = await messages(late)
        assert (kept.payload, kept.qos, kept.retain) == (b"new", qos, True)


@VERSIONS
@pytest.mark.conformance("MQTT-3.3.1-6", "MQTT-3.3.1-7")
async def test_an_empty_retained_message_is_sent_and_forgets(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        early = await connected(broker, version, "early")
        await early.subscribe(("t", 0))
        await send_whole(writer, "t", b"old", 1, retain=True)
        await send_whole(writer, "t", b"", 1, retain=True)
        await send_whole(writer, "never", b"", 1, retain=True)
        assert [(m.payload, m.retain) for m in await messages(early)] == [
            (b"old", False),
            (b"", False),
        ]
        late = await connected(broker, version, "late")
        await late.subscribe(("#", 0))
        assert await messages(late) == []


@pytest.mark.conformance("MQTT-3.3.1-9", "MQTT-3.3.1-10", "MQTT-3.3.1-11", "MQTT-3.8.4-4")
async def test_retain_handling() -> None:
    async with serving() as broker:
        writer = await connected(broker, 5, "writer")
        await send_whole(writer, "t", b"kept", 1, retain=True)
        reader = await connected(broker, 5, "reader")
        for options, expected in (
            (0x10, 1),  # send if new: new
            (0x10, 0),  # not new
            (0x00, 1),  # always
            (0x00, 1),
            (0x20, 0),  # never
        ):
            await reader.subscribe(("t", options))
            assert len(await messages(reader)) == expected, hex(options)
        other = await connected(broker, 5, "other")
        await other.subscribe(("t", 0x20))
        assert await messages(other) == []


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.conformance("MQTT-3.3.1-12", "MQTT-3.3.1-13")
async def test_retain_as_published(retain: bool) -> None:
    async with serving() as broker:
        writer = await connected(broker, 5, "writer")
        plain, faithful = await connected(broker, 5, "a"), await connected(broker, 5, "b")
        await plain.subscribe(("t", 0x01))
        await faithful.subscribe(("t", 0x09))
        await send_whole(writer, "t", b"x", 1, retain=retain)
        assert (await plain.publish()).retain is False
        assert (await faithful.publish()).retain is retain


# -- topic and properties ---------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("topic", ["a/+", "#", "a/#", "+", "a+", "a#b", ""])
@pytest.mark.conformance("MQTT-3.3.2-2", "MQTT-3.3.2-1", "MQTT-4.7.0-1", "MQTT-4.7.3-1")
async def test_a_topic_name_is_not_empty_and_has_no_wildcard(version: int, topic: str) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(publish(version, topic, b"x", 1, 1))
        assert await client.refused(0x81, 0x82, 0x90)


@VERSIONS
@pytest.mark.parametrize("cut", [b"\0", b"\0\x05ab", b"\0\x01t\0"])
@pytest.mark.conformance("MQTT-3.3.2-1")
async def test_a_publish_that_ends_inside_its_header_is_malformed(version: int, cut: bytes) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(frame(0x32, cut))
        assert await client.refused(0x81)


@pytest.mark.conformance(
    "MQTT-3.3.2-3",
    "MQTT-3.3.2-4",
    "MQTT-3.3.2-13",
    "MQTT-3.3.2-15",
    "MQTT-3.3.2-16",
    "MQTT-3.3.2-17",
    "MQTT-3.3.2-18",
    "MQTT-3.3.2-19",
    "MQTT-3.3.2-20",
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_properties_are_handed_on_unaltered(qos: int) -> None:
    names = [(b"z", b"1"), (b"a", b""), (b"z", b"1"), (b"", b"\xe2\x82\xac")]
    users = [b"\x26" + string(name) + string(value) for name, value in names]
    others = [
        b"\x01\x01",
        b"\x03" + string("application/json; charset=utf-8"),
        b"\x08" + string("reply/to/\xe9"),
        b"\x09" + string(bytes(range(256))),
    ]
    async with serving() as broker:
        reader = await connected(broker, 5, "reader")
        await reader.subscribe(("a/+", 2))
        writer = await connected(broker, 5, "writer")
        props = users[0] + others[3] + users[1] + others[0] + others[2] + users[2] + others[1]
        await send_whole(writer, "a/b", b"x", qos, props=props + users[3])
        message = await reader.publish()
        got = [bytes((identifier,)) + value for identifier, value in message.props]
        assert [prop for prop in got if prop[0] == 0x26] == users
        assert sorted(prop for prop in got if prop[0] != 0x26) == others
        assert message.topic == b"a/b"


@pytest.mark.conformance("MQTT-3.3.2-4", "MQTT-3.3.2-15", "MQTT-3.3.2-17", "MQTT-3.3.2-20")
async def test_properties_are_kept_with_a_retained_message() -> None:
    props = b"\x01\x01\x03" + string("c") + b"\x08" + string("r") + b"\x26" + string("n") * 2
    async with serving() as broker:
        writer = await connected(broker, 5, "writer")
        await send_whole(writer, "t", b"x", 1, props=props, retain=True)
        reader = await connected(broker, 5, "reader")
        await reader.subscribe(("t", 0))
        message = await reader.publish()
        assert sorted(b"%c%b" % prop for prop in message.props) == sorted(
            [b"\x01\x01", b"\x03\0\x01c", b"\x08\0\x01r", b"\x26\0\x01n\0\x01n"]
        )


@pytest.mark.parametrize("topic", ["a/+", "#", "reply/#"])
@pytest.mark.conformance("MQTT-3.3.2-14")
async def test_a_response_topic_has_no_wildcard(topic: str) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(publish(5, "t", b"x", props=b"\x08" + string(topic)))
        assert await client.refused(0x81, 0x82, 0x90)


@pytest.mark.conformance("MQTT-3.3.4-6")
async def test_a_clients_publish_has_no_subscription_identifier() -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(publish(5, "t", b"x", props=b"\x0b\x01"))
        assert await client.refused(0x82)


@pytest.mark.conformance("MQTT-3.3.2-5", "MQTT-3.3.2-6")
async def test_a_message_expires_while_it_waits_and_is_told_what_is_left() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        writer = await connected(broker, 5, "writer")
        reader = await connected(broker, 5, "reader", **lasting(5))
        await reader.subscribe(("t", 2))
        await gone(broker, reader)
        for qos, seconds in ((1, 10), (2, 10), (1, 100), (2, 1000)):
            props = b"\x02" + seconds.to_bytes(4, "big")
            await send_whole(writer, "t", b"%d" % seconds, qos, props=props)
            await send_whole(writer, f"kept/{seconds}", b"x", 1, props=props, retain=True)
        clock.advance(30)  # and no tick has come by yet
        reader = await raw(broker, 5)
        await reader.connect("reader", **lasting(5))
        left = [(m.payload, dict(m.props)[2]) for m in await messages(reader)]
        assert left == [(b"100", b"\0\0\0\x46"), (b"1000", b"\0\0\x03\xca")]
        late = await connected(broker, 5, "late")
        await late.subscribe(("kept/#", 0))
        got = {m.topic: dict(m.props)[2] for m in await messages(late)}
        assert got == {b"kept/100": b"\0\0\0\x46", b"kept/1000": b"\0\0\x03\xca"}


# -- topic aliases ----------------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.3.2-12", "MQTT-3.3.2-7")
async def test_aliases_of_a_client_are_taken_set_anew_and_forgotten_with_it() -> None:
    async with serving(BrokerConfig(sys_interval_s=0, topic_alias_maximum=5)) as broker:
        reader = await connected(broker, 5, "reader")
        await reader.subscribe(("#", 0))
        writer = await raw(broker, 5)
        _, body = await writer.connect("writer")
        assert (0x22, b"\0\x05") in properties_of(body, 2)[0]
        writer.send(*(publish(5, f"t/{n}", b"set", props=b"\x23\0%c" % n) for n in range(1, 6)))
        writer.send(*(publish(5, "", b"used", props=b"\x23\0%c" % n) for n in range(1, 6)))
        writer.send(publish(5, "new", b"set", props=b"\x23\0\x03"))
        writer.send(publish(5, "", b"used", props=b"\x23\0\x03"))
        await writer.until_pong()
        got = await messages(reader)
        assert [m.topic for m in got] == [b"t/%d" % n for n in range(1, 6)] * 2 + [b"new"] * 2
        assert not any(m.props for m in got)  # an alias is between two ends only
        await gone(broker, writer)
        writer = await connected(broker, 5, "writer")
        writer.send(publish(5, "", b"x", props=b"\x23\0\x03"))
        assert await writer.refused(0x82, 0x94)


@pytest.mark.parametrize("alias", [0, 6, 0xFFFF])
@pytest.mark.conformance("MQTT-3.3.2-8", "MQTT-3.3.2-9")
async def test_an_alias_out_of_bounds_ends_the_connection(alias: int) -> None:
    async with serving(BrokerConfig(sys_interval_s=0, topic_alias_maximum=5)) as broker:
        client = await connected(broker, 5)
        client.send(publish(5, "t", b"x", props=b"\x23" + number(alias)))
        assert await client.refused(0x94)


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.conformance("MQTT-3.1.2-26", "MQTT-3.1.2-27", "MQTT-3.3.2-8", "MQTT-3.3.2-11")
async def test_the_server_sets_no_more_aliases_than_the_client_takes(most: int) -> None:
    async with serving() as broker:
        props = b"\x22" + number(most) if most else b""
        for _ in range(2):  # and none is carried over to the next connection [MQTT-3.3.2-7]
            reader = await connected(broker, 5, "reader", props=props)
            await reader.subscribe(("#", 1))
            writer = await connected(broker, 5, "writer")
            for turn in range(3):
                for topic in "abcde":
                    await send_whole(writer, topic, b"%d" % turn, 1)
            known: dict[bytes, bytes] = {}
            seen = []
            for message in await messages(reader):
                alias = dict(message.props).get(0x23)
                topic = message.topic
                if alias is not None:
                    assert 1 <= int.from_bytes(alias, "big") <= most
                    topic = known.setdefault(alias, topic) if topic else known[alias]
                seen.append((topic, message.payload))
            assert seen == [(b"%c" % t, b"%d" % turn) for turn in range(3) for t in b"abcde"]
            assert len(known) == most
            await gone(broker, reader)


async def test_qos_2_messages_have_their_topic_beside_the_alias() -> None:
    async with serving() as broker:
        reader = await connected(broker, 5, "reader", props=b"\x22\0\x05")
        await reader.subscribe(("#", 2))
        writer = await connected(broker, 5, "writer")
        for n in range(1, 4):
            await send_whole(writer, "t", b"x", 2, n)
        got = [(m.topic, m.props) for m in await messages(reader)]
        assert got == [(b"t", [(0x23, b"\0\x01")])] * 3


# -- receive maximum --------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.conformance(
    "MQTT-3.3.4-9", "MQTT-3.3.4-10", "MQTT-4.9.0-1", "MQTT-4.9.0-2", "MQTT-4.9.0-3"
)
async def test_no_more_is_sent_than_the_client_takes_at_once(most: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, 5, "reader", props=b"\x21" + number(most))
        await reader.subscribe(("t/#", 2))
        writer = await connected(broker, 5, "writer")
        for n in range(12):
            await send_whole(writer, f"t/{n % 3}", b"%d" % n, n % 3, n + 1)
        got = []
        waiting = [m for m in await messages(reader) if m.qos]  # PINGREQ was answered
        while waiting:
            assert len(waiting) == min(most, 8 - len(got))
            message = waiting.pop(0)
            got.append(int(message.payload))
            identifier = number(message.packet_id)
            if message.qos == 2:
                reader.send(frame(PUBREC, identifier))
                # answered at once, and PUBREC alone frees no place
                assert await reader.until_pong() == [(PUBREL, identifier)]
            reader.send(frame(PUBACK if message.qos == 1 else PUBCOMP, identifier))
            waiting += await messages(reader)
        assert sorted(got) == [n for n in range(12) if n % 3]


@pytest.mark.conformance("MQTT-3.3.4-7", "MQTT-3.3.4-8")
async def test_a_client_may_send_its_receive_maximum_and_no_more() -> None:
    async with serving(BrokerConfig(sys_interval_s=0, receive_maximum=3)) as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("c")
        assert (0x21, b"\0\x03") in properties_of(body, 2)[0]
        for n in (1, 2, 3):
            client.send(publish(5, "t", b"x", 2, n))
            assert (await client.packet())[0] == PUBREC
        client.send(publish(5, "t", b"QoS 0 does not count"), b"\xc0\0")
        assert (await client.packet())[0] == 0xD0
        client.send(publish(5, "t", b"x", 2, 4))
        first, body = await client.packet()  # and none for the one too many
        assert (first, body[0]) == (0xE0, 0x93)
        assert await client.closed()


# -- acknowledgements -------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.3.4-1", "MQTT-4.3.2-4", "MQTT-4.3.2-5", "MQTT-3.4.2-1", "MQTT-3.1.1:4.3.2-2"
)
async def test_a_qos_1_identifier_is_free_again_after_its_puback(version: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("t", 0))
        writer = await connected(broker, version, "writer")
        for dup in (False, True, True):
            writer.send(publish(version, "t", b"x", 1, 7, dup=dup))
            first, body = await writer.packet()
            assert (first, body[:2]) == (PUBACK, b"\0\7")
            assert len(body) == 2 or body[2] < 0x80
        assert len(await messages(reader)) == 3


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.3.4-1",
    "MQTT-3.5.2-1",
    "MQTT-3.7.2-1",
    "MQTT-4.3.3-8",
    "MQTT-4.3.3-10",
    "MQTT-4.3.3-11",
    "MQTT-4.3.3-12",
    "MQTT-3.1.1:4.3.3-2",
)
async def test_a_qos_2_message_is_delivered_once_however_often_it_comes(version: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("t", 2))
        writer = await connected(broker, version, "writer", **lasting(version))
        for dup in (False, True, False):
            writer.send(publish(version, "t", b"once", 2, 7, dup=dup))
            assert (await writer.packet())[0] == PUBREC
        await gone(broker, writer)  # the identifier belongs to the session
        writer = await raw(broker, version)
        await writer.connect("writer", **lasting(version))
        writer.send(publish(version, "t", b"once", 2, 7, dup=True))
        assert (await writer.packet())[0] == PUBREC
        assert [m.payload for m in await messages(reader)] == [b"once"]
        writer.send(frame(PUBREL, b"\0\7"))
        first, body = await writer.packet()
        assert (first, body[:2]) == (PUBCOMP, b"\0\7")
        writer.send(publish(version, "t", b"twice", 2, 7))
        assert (await writer.packet())[0] == PUBREC
        assert [m.payload for m in await messages(reader)] == [b"twice"]


@VERSIONS
@pytest.mark.conformance("MQTT-3.6.2-1", "MQTT-3.7.2-1", "MQTT-4.3.3-11")
async def test_a_pubrel_or_pubrec_for_nothing_is_answered(version: int) -> None:
    said = b"\x92" if version == 5 else b""
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(frame(PUBREL, b"\x12\x34"))
        assert await client.packet() == (PUBCOMP, b"\x12\x34" + said)
        client.send(frame(PUBREC, b"\x12\x34"))
        assert await client.packet() == (PUBREL, b"\x12\x34" + said)
        client.send(frame(PUBACK, b"\x12\x34"), frame(PUBCOMP, b"\x12\x34"))
        assert await client.until_pong() == []


@pytest.mark.parametrize("first", [PUBACK, PUBREC, PUBREL, PUBCOMP])
@pytest.mark.conformance("MQTT-3.4.2-1", "MQTT-3.5.2-1", "MQTT-3.6.2-1", "MQTT-3.7.2-1")
async def test_acknowledgements_may_have_a_reason_and_properties_in_5(first: int) -> None:
    props = b"\x1f" + string("because") + b"\x26" + string("a") * 2
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(frame(first, b"\0\1\0"), frame(first, b"\0\2\0\0"))
        client.send(frame(first, b"\0\3\0" + bytes((len(props),)) + props))
        answers = await client.until_pong()
        assert len(answers) == (3 if first in (PUBREC, PUBREL) else 0)
        client.send(frame(first, b"\0\1\x01"))  # no reason code of this packet
        assert await client.refused(0x82, 0x81)


@VERSIONS
@pytest.mark.parametrize(
    ("qos", "answer"),
    [(1, PUBREC), (1, PUBCOMP), (2, PUBACK), (2, PUBCOMP)],
    ids=["PUBREC for QoS 1", "PUBCOMP for QoS 1", "PUBACK for QoS 2", "PUBCOMP before PUBREC"],
)
@pytest.mark.conformance("MQTT-3.3.4-1", "MQTT-3.1.1:4.8.0-1")
async def test_an_acknowledgement_of_another_qos_is_a_fault(
    version: int, qos: int, answer: int
) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("t", qos))
        writer = await connected(broker, version, "writer")
        await send_whole(writer, "t", b"x", 2)
        message = await reader.publish()
        reader.send(frame(answer, number(message.packet_id)))
        assert await reader.refused(0x82)


@pytest.mark.parametrize("answer", [PUBACK, PUBREC])
@pytest.mark.conformance("MQTT-4.4.0-2", "MQTT-4.3.3-4", "MQTT-4.8.2-6", "MQTT-3.3.4-9")
async def test_a_refused_delivery_is_over(answer: int) -> None:
    qos = 1 if answer == PUBACK else 2
    async with serving() as broker:
        fields = lasting(5, b"\x21\0\x01")
        readers = [await connected(broker, 5, name, **fields) for name in "ab"]
        for reader in readers:
            assert await reader.subscribe(("$share/g/t", 2)) == [2]
        writer = await connected(broker, 5, "writer")
        for n in range(1, 5):
            await send_whole(writer, "t", b"%d" % n, qos, n)
        got = []
        for _ in range(4):
            for reader in readers:
                for message in await messages(reader):
                    got.append(message.payload)
                    reader.send(frame(answer, number(message.packet_id) + b"\x80"))
        assert sorted(got) == [b"1", b"2", b"3", b"4"]
        for name, reader in zip("ab", readers, strict=True):
            await gone(broker, reader)
            reader = await raw(broker, 5)  # noqa: PLW2901 - the same client again
            await reader.connect(name, **fields)
            assert await messages(reader) == []


@VERSIONS
@pytest.mark.conformance(
    "MQTT-4.4.0-1",
    "MQTT-4.3.2-3",
    "MQTT-4.3.3-3",
    "MQTT-4.3.3-4",
    "MQTT-4.3.3-5",
    "MQTT-4.3.3-6",
    "MQTT-3.3.1-1",
    "MQTT-4.6.0-1",
    "MQTT-3.1.1:4.3.2-1",
    "MQTT-3.1.1:4.3.3-1",
    "MQTT-3.1.1:2.3.1-4",
)
async def test_what_is_not_acknowledged_comes_again_on_the_next_connection(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        reader = await connected(broker, version, "reader", **lasting(version))
        await reader.subscribe(("t", 2))
        for n, qos in enumerate((1, 2, 1, 2, 2), 1):
            await send_whole(writer, "t", b"%d" % n, qos, n)
        before = await messages(reader)
        assert [(m.payload, m.dup) for m in before] == [(b"%d" % n, False) for n in range(1, 6)]
        reader.send(frame(PUBACK, number(before[0].packet_id)))
        reader.send(frame(PUBREC, number(before[1].packet_id)))
        assert await reader.until_pong() == [(PUBREL, number(before[1].packet_id))]
        for _ in range(2):
            await gone(broker, reader)
            reader = await raw(broker, version)
            await reader.connect("reader", **lasting(version))
            packets = await reader.until_pong()
            assert packets[0] == (PUBREL, number(before[1].packet_id))
            again = [parse_publish(version, packet) for packet in packets[1:]]
            assert [(m.packet_id, m.payload, m.qos, m.dup) for m in again] == [
                (m.packet_id, m.payload, m.qos, True) for m in before[2:]
            ]
        assert await reader.until_pong() == []  # at no other time


@pytest.mark.conformance("MQTT-4.3.3-7", "MQTT-4.3.3-13")
async def test_a_message_that_was_sent_does_not_expire() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        writer = await connected(broker, 5, "writer")
        reader = await connected(broker, 5, "reader", **lasting(5))
        await reader.subscribe(("t", 2))
        await send_whole(writer, "t", b"x", 2, props=b"\x02\0\0\0\x05")
        (message,) = await messages(reader)
        await gone(broker, reader)
        broker.pass_time(clock, 60)
        reader = await raw(broker, 5)
        await reader.connect("reader", **lasting(5))
        (again,) = await messages(reader)
        assert (again.packet_id, again.dup) == (message.packet_id, True)
        reader.send(frame(PUBREC, number(again.packet_id)))
        assert await reader.until_pong() == [(PUBREL, number(again.packet_id))]
        # The other way: a publisher's exchange goes on however short its message lives.
        writer.send(publish(5, "t", b"y", 2, 9, props=b"\x02\0\0\0\x01"))
        assert (await writer.packet())[0] == PUBREC
        broker.pass_time(clock, 60)
        writer.send(frame(PUBREL, b"\0\x09"))
        assert await writer.packet() == (PUBCOMP, b"\0\x09")


@pytest.mark.conformance("MQTT-4.3.3-9", "MQTT-3.5.2-1")
async def test_an_identifier_whose_pubrec_refused_is_free_at_once() -> None:
    config = BrokerConfig(sys_interval_s=0, retained_messages_max=0)
    async with serving(config) as broker:
        reader = await connected(broker, 5, "reader")
        await reader.subscribe(("t", 2))
        writer = await connected(broker, 5, "writer")
        writer.send(publish(5, "t", b"refused", 2, 7, retain=True))
        first, body = await writer.packet()
        assert (first, body[:3]) == (PUBREC, b"\0\7\x97")
        writer.send(publish(5, "t", b"new", 2, 7))
        first, body = await writer.packet()
        assert (first, body[:2]) == (PUBREC, b"\0\7")
        assert [m.payload for m in await messages(reader)] == [b"new"]


# -- order ------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.conformance("MQTT-4.6.0-5", "MQTT-4.6.0-6", "MQTT-4.6.0-2", "MQTT-4.6.0-3")
async def test_messages_of_one_topic_and_qos_keep_their_order(version: int, qos: int) -> None:
    async with serving() as broker:
        reader = await connected(broker, version, "reader", **lasting(version))
        await reader.subscribe(("t", 2))
        writer = await connected(broker, version, "writer")
        for half in (range(1, 101), range(101, 201)):
            writer.send(*(publish(version, "t", b"%d" % n, qos, n) for n in half))
            answers = await writer.until_pong()
            first = {1: PUBACK, 2: PUBREC}.get(qos)
            assert [(a[0], a[1][:2]) for a in answers] == (
                [(first, number(n)) for n in half] if qos else []
            )
            if qos:
                await gone(broker, reader)  # half of it waits, half of it is sent again
                reader = await raw(broker, version)
                await reader.connect("reader", **lasting(version))
        got: list[int] = []
        while len(got) < 200:  # the window opens as they are acknowledged
            batch = await messages(reader)
            assert batch, got
            got += [int(message.payload) for message in batch]
            await settle(reader, batch)
        assert got == list(range(1, 201))
