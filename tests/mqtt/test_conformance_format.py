"""Conformance, sections 1.5 and 2: data types, flags and identifiers, byte by byte."""

from __future__ import annotations

import pytest

from tests.kit.brokers import serving
from tests.kit.raw_mqtt import (
    connect,
    connected,
    frame,
    publish,
    raw,
    string,
    subscribe,
    unsubscribe,
)

VERSIONS = pytest.mark.parametrize("version", [4, 5])

NOT_UTF_8 = {
    "a lone surrogate": b"a\xed\xa0\x80",
    "a surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "an over-long NUL": b"a\xc0\x80",
    "an over-long slash": b"\xe0\x80\xaf",
    "past U+10FFFF": b"\xf4\x90\x80\x80",
    "a lone continuation": b"\x80",
    "a cut sequence": b"a\xe2\x82",
    "no UTF-8 at all": b"\xff\xfe",
    "NUL": b"a\0b",
}


@VERSIONS
@pytest.mark.parametrize("where", ["client id", "user name", "will topic"])
@pytest.mark.conformance(
    "MQTT-1.5.4-1", "MQTT-1.5.4-2", "MQTT-3.1.3-4", "MQTT-3.1.3-11", "MQTT-3.1.3-12", "MQTT-4.7.3-2"
)
async def test_a_connect_with_an_ill_formed_string_is_refused(version: int, where: str) -> None:
    async with serving() as broker:
        for text in NOT_UTF_8.values():
            client = await raw(broker, version)
            client.send(
                {
                    "client id": connect(version, text),
                    "user name": connect(version, "c", username=text),
                    "will topic": connect(version, "c", will=(text, b"gone")),
                }[where]
            )
            assert await client.refused(0x81), text


@VERSIONS
@pytest.mark.parametrize("where", ["PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"])
@pytest.mark.conformance(
    "MQTT-1.5.4-1", "MQTT-1.5.4-2", "MQTT-3.3.2-1", "MQTT-3.8.3-1", "MQTT-3.10.3-1", "MQTT-4.7.3-2"
)
async def test_an_ill_formed_topic_ends_the_connection(version: int, where: str) -> None:
    async with serving() as broker:
        for text in NOT_UTF_8.values():
            client = await connected(broker, version)
            client.send(
                {
                    "PUBLISH": publish(version, text, b"x"),
                    "SUBSCRIBE": subscribe(version, 1, (text, 0)),
                    "UNSUBSCRIBE": unsubscribe(version, 1, text),
                }[where]
            )
            assert await client.refused(0x81), text


@pytest.mark.parametrize(
    ("identifier", "also"),
    [(0x03, b""), (0x08, b""), (0x26, string("value")), (0x26, b"name first")],
    ids=["content type", "response topic", "user property name", "user property value"],
)
@pytest.mark.conformance("MQTT-1.5.4-1", "MQTT-1.5.7-1", "MQTT-3.3.2-13", "MQTT-3.3.2-19")
async def test_an_ill_formed_string_property_ends_the_connection(
    identifier: int, also: bytes
) -> None:
    async with serving() as broker:
        for text in NOT_UTF_8.values():
            value = string("name") + string(text) if also == b"name first" else string(text) + also
            client = await connected(broker, 5)
            client.send(publish(5, "t", b"x", props=bytes((identifier,)) + value))
            assert await client.refused(0x81), text


@VERSIONS
@pytest.mark.conformance("MQTT-1.5.4-3", "MQTT-4.7.3-4")
async def test_a_byte_order_mark_is_a_character_like_any_other(version: int) -> None:
    marked = b"\xef\xbb\xbfa/\xef\xbb\xbf"
    async with serving() as broker:
        client = await connected(broker, version)
        assert await client.subscribe((marked, 0)) == [0]
        client.send(publish(version, b"a/", b"plain"), publish(version, marked, b"marked"))
        message = await client.publish()
        assert (message.topic, message.payload) == (marked, b"marked")
        assert await client.until_pong() == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x85\x00\x00\x01t\x00x",  # remaining length 5 in two bytes
        b"\x82\x87\x80\x00\x00\x01\x00\x00\x01a\x00",  # 7 in three
        b"\x30\x06\x00\x01t\x80\x00x",  # property length 0 in two
        b"\x82\x0a\x00\x01\x03\x0b\x81\x00\x00\x01a\x00",  # subscription identifier 1 in two
    ],
)
@pytest.mark.conformance("MQTT-1.5.5-1")
async def test_an_integer_in_more_bytes_than_it_needs_is_malformed(data: bytes) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(data)
        assert await client.refused(0x81)


@VERSIONS
@pytest.mark.conformance("MQTT-1.5.5-1", "MQTT-3.1.1:4.8.0-1")
async def test_a_remaining_length_of_five_bytes_ends_the_connection(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(b"\x30\xff\xff\xff\xff\x01")
        assert await client.refused(0x81)


@VERSIONS
@pytest.mark.parametrize(
    ("first_byte", "body"),
    [
        (0x41, b"\0\1"),
        (0x58, b"\0\1"),
        (0x60, b"\0\1"),
        (0x63, b"\0\1"),
        (0x71, b"\0\1"),
        (0x80, b"subscribe"),
        (0x83, b"subscribe"),
        (0xA0, b"unsubscribe"),
        (0xA3, b"unsubscribe"),
        (0xC1, b""),
        (0xE1, b""),
        (0x00, b""),
    ],
)
@pytest.mark.conformance(
    "MQTT-2.1.3-1",
    "MQTT-3.6.1-1",
    "MQTT-3.8.1-1",
    "MQTT-3.10.1-1",
    "MQTT-3.14.1-1",
    "MQTT-3.1.1:2.2.2-2",
)
async def test_reserved_flags_must_be_as_the_table_says(
    version: int, first_byte: int, body: bytes
) -> None:
    whole = frame(first_byte, body)
    if body == b"subscribe":
        whole = bytes((first_byte,)) + subscribe(version, 1, ("t", 0))[1:]
    elif body == b"unsubscribe":
        whole = bytes((first_byte,)) + unsubscribe(version, 1, "t")[1:]
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(whole)
        assert await client.refused(0x81)


@pytest.mark.conformance("MQTT-2.1.3-1", "MQTT-3.1.4-1")
@VERSIONS
@pytest.mark.parametrize("first_byte", [0x11, 0x12, 0x18])
async def test_a_connect_with_reserved_flags_is_refused(version: int, first_byte: int) -> None:
    async with serving() as broker:
        client = await raw(broker, version)
        client.send(bytes((first_byte,)) + connect(version)[1:])
        first, _ = await client.packet()
        assert first in (0, 0x20)
        assert await client.closed()


@pytest.mark.parametrize("first_byte", [0xF1, 0xF2, 0xF8])
@pytest.mark.conformance("MQTT-3.15.1-1")
async def test_an_auth_with_reserved_flags_is_malformed(first_byte: int) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(frame(first_byte, b"\x19\x04\x15" + string("m")))
        assert await client.refused(0x81)


@VERSIONS
@pytest.mark.conformance("MQTT-2.1.3-1", "MQTT-3.6.1-1")
async def test_what_the_server_sends_has_the_right_flags(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        await client.subscribe(("t", 2))
        client.send(publish(version, "t", b"x", 2, 7))
        firsts = []
        delivered = 0
        while len(firsts) < 2:  # PUBLISH and PUBREC, in either order
            first, body = await client.packet()
            firsts.append(first)
            if first == 0x34:
                delivered = int.from_bytes(body[3:5], "big")
        assert sorted(firsts) == [0x34, 0x50]
        client.send(frame(0x50, delivered.to_bytes(2, "big")), frame(0x62, b"\0\x07"))
        client.send(publish(version, "none", b"x", 1, 8), unsubscribe(version, 9, "t"))
        got = [(await client.packet())[0] for _ in range(4)]
        assert sorted(got) == [0x40, 0x62, 0x70, 0xB0]


@VERSIONS
@pytest.mark.conformance("MQTT-2.2.1-2", "MQTT-2.2.2-1", "MQTT-4.3.1-1", "MQTT-3.3.1-2")
async def test_a_qos_0_publish_has_neither_identifier_nor_dup(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        await client.subscribe(("t", 0))
        client.send(publish(version, "t", b"x", 1, 5))
        packets = [await client.packet(), await client.packet()]
        assert (0x30, b"\0\1t" + b"\0" * (version == 5) + b"x") in packets


@VERSIONS
@pytest.mark.parametrize("what", ["PUBLISH 1", "PUBLISH 2", "SUBSCRIBE", "UNSUBSCRIBE", "PUBACK"])
@pytest.mark.conformance("MQTT-2.2.1-3")
async def test_packet_identifier_0_is_a_protocol_error(version: int, what: str) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        client.send(
            {
                "PUBLISH 1": publish(version, "t", b"x", 1, 0),
                "PUBLISH 2": publish(version, "t", b"x", 2, 0),
                "SUBSCRIBE": subscribe(version, 0, ("t", 0)),
                "UNSUBSCRIBE": unsubscribe(version, 0, "t"),
                "PUBACK": frame(0x40, b"\0\0"),
            }[what]
        )
        assert await client.refused(0x82)


@VERSIONS
@pytest.mark.conformance("MQTT-2.2.1-4", "MQTT-4.3.2-1", "MQTT-4.3.3-1")
async def test_the_servers_packet_identifiers_are_not_in_use(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version)
        await client.subscribe(("t", 2))
        for number in range(1, 31):
            client.send(publish(version, "t", b"x", 1 + number % 2, number))
        identifiers = []
        while len(identifiers) < 30:
            packet = await client.packet()
            if packet[0] >> 4 == 3:
                identifiers.append(int.from_bytes(packet[1][3:5], "big"))
        assert len(set(identifiers)) == 30
        assert 0 not in identifiers


@VERSIONS
@pytest.mark.parametrize("packet_id", [1, 0x7F, 0x80, 0x1234, 0xFFFF])
@pytest.mark.conformance(
    "MQTT-2.2.1-5",
    "MQTT-2.2.1-6",
    "MQTT-3.8.4-1",
    "MQTT-3.8.4-2",
    "MQTT-3.10.4-4",
    "MQTT-3.10.4-5",
    "MQTT-4.3.2-4",
    "MQTT-4.3.3-8",
    "MQTT-4.3.3-11",
)
async def test_answers_carry_the_identifier_they_answer(version: int, packet_id: int) -> None:
    number = packet_id.to_bytes(2, "big")
    async with serving() as broker:
        client = await connected(broker, version)
        for request, first in (
            (subscribe(version, packet_id, ("other", 1)), 0x90),
            (unsubscribe(version, packet_id, "never"), 0xB0),
            (publish(version, "t", b"x", 1, packet_id), 0x40),
            (publish(version, "t", b"x", 2, packet_id), 0x50),
            (frame(0x62, number), 0x70),
        ):
            client.send(request)
            answer = await client.packet()
            assert (answer[0], answer[1][:2]) == (first, number)


@pytest.mark.conformance("MQTT-2.2.2-1")
async def test_no_properties_are_a_length_of_zero() -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(subscribe(5, 1, ("t", 0)))
        assert await client.packet() == (0x90, b"\0\x01\0\0")
        client.send(unsubscribe(5, 2, "t"))
        assert await client.packet() == (0xB0, b"\0\x02\0\0")


@pytest.mark.parametrize(
    ("props", "codes"),
    [
        (b"\x07\0", (0x81,)),  # no property has this number
        (b"\xff\x7f\0", (0x81,)),
        (b"\x02\0\0", (0x81,)),  # cut short
        (b"\x01\0\x01\0", (0x82,)),  # twice
        (b"\x01\x02", (0x82, 0x81)),  # neither 0 nor 1
        (b"\x11\0\0\0\1", (0x82, 0x81)),  # a CONNECT's
        (b"\x21\0\1", (0x82, 0x81)),
    ],
)
@pytest.mark.conformance("MQTT-3.1.1:4.8.0-1", "MQTT-4.13.1-1")
async def test_properties_that_do_not_belong_are_faults(
    props: bytes, codes: tuple[int, ...]
) -> None:
    async with serving() as broker:
        client = await connected(broker, 5)
        client.send(publish(5, "t", b"x", props=props))
        assert await client.refused(*codes)
