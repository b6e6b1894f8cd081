"""Conformance, sections 3.1, 3.2 and 4.1: CONNECT, CONNACK, sessions and wills, byte by byte."""

from __future__ import annotations

import pytest

from mqtt.broker.config import BrokerConfig
from runtime.clock import ManualClock
from tests.kit.brokers import Served, serving
from tests.kit.raw_mqtt import (
    RawClient,
    connect,
    connected,
    frame,
    properties_of,
    publish,
    raw,
    string,
    subscribe,
)

VERSIONS = pytest.mark.parametrize("version", [4, 5])

HOUR = b"\x11\0\0\x0e\x10"  # session expiry interval
DISCONNECT = b"\xe0\0"


def lasting(version: int) -> dict[str, object]:
    """Return the fields of a CONNECT whose session is to outlive the connection."""
    return {"clean": False, "props": HOUR if version == 5 else b""}


def frame_of_head(head: bytes) -> bytes:
    """Return a CONNECT with this body."""
    return frame(0x10, head)


async def gone(broker: Served, client: RawClient) -> None:
    """Make a client vanish, and return when the broker knows."""
    count = broker.broker.stats().connections
    client.abort()
    await broker.until(lambda: broker.broker.stats().connections < count)


async def watching(broker: Served, version: int, topic: str = "will") -> RawClient:
    """Return a client subscribed to a topic with QoS 2."""
    watcher = await connected(broker, version, "watcher")
    assert await watcher.subscribe((topic, 2)) == [2]
    return watcher


# -- what is no CONNECT, or not one of ours -----------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    "first",
    [
        publish(4, "t", b"x"),
        subscribe(4, 1, ("t", 0)),
        b"\xc0\0",
        DISCONNECT,
        frame(0x40, b"\0\1"),
        frame(0x20, b"\0\0"),
        frame(0xF0, b"\x18\0"),
    ],
)
@pytest.mark.conformance("MQTT-3.1.0-1", "MQTT-3.14.0-1", "MQTT-4.13.1-1")
async def test_the_first_packet_is_a_connect(version: int, first: bytes) -> None:
    async with serving() as broker:
        client = await raw(broker, version)
        client.send(first)
        assert await client.closed()  # no DISCONNECT before a CONNACK


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.1.0-2", "MQTT-3.2.0-2", "MQTT-4.13.1-1", "MQTT-4.13.2-1", "MQTT-3.14.2-1"
)
async def test_a_second_connect_ends_the_connection_and_sends_the_will(version: int) -> None:
    async with serving() as broker:
        watcher = await watching(broker, version)
        client = await connected(broker, version, "one", will=("will", b"gone"))
        client.send(connect(version, "one"))
        assert await client.refused(0x82)
        assert (await watcher.publish()).payload == b"gone"


@pytest.mark.parametrize(
    ("head", "answers"),
    [
        (string("MQIsdp") + b"\x03\x02\0\x3c" + string("a"), {b"\0\x01"}),  # MQTT 3.1
        (string("MQTT") + b"\x03\x02\0\x3c" + string("a"), {b"\0\x01"}),
        (string("MQTT") + b"\x06\x02\0\x3c" + string("a"), {b"\0\x01"}),
        (string("MQTT") + b"\xff\x02\0\x3c" + string("a"), {b"\0\x01"}),
        (string("MQTT") + b"\x00\x02\0\x3c" + string("a"), {b"\0\x01"}),
        (string("mqtt") + b"\x04\x02\0\x3c" + string("a"), {b""}),
        (string("MQTTX") + b"\x04\x02\0\x3c" + string("a"), {b""}),
        (string("") + b"\x04\x02\0\x3c" + string("a"), {b""}),
    ],
)
@pytest.mark.conformance("MQTT-3.1.2-1", "MQTT-3.1.1:3.1.2-1", "MQTT-3.1.1:3.1.2-2")
async def test_other_names_and_levels_are_refused(head: bytes, answers: set[bytes]) -> None:
    async with serving() as broker:
        client = await raw(broker, 4)
        client.send(frame_of_head(head))
        first, body = await client.packet()
        assert body in answers
        if first:
            assert first == 0x20
            assert await client.closed()


@pytest.mark.parametrize("level", [6, 99, 255])
@pytest.mark.conformance("MQTT-3.1.2-2", "MQTT-3.2.2-8", "MQTT-3.2.2-6", "MQTT-3.2.2-7")
async def test_a_later_protocol_laid_out_like_5_is_told_0x84(level: int) -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        client.send(frame_of_head(string("MQTT") + bytes((level,)) + b"\x02\0\x3c\0" + string("a")))
        first, body = await client.packet()
        assert (first, body[:2]) == (0x20, b"\0\x84")
        assert await client.closed()


# -- flags and fields -------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"flags": 0x01}, id="reserved flag"),
        pytest.param({"flags": 0x08}, id="will QoS 1 without will"),
        pytest.param({"flags": 0x10}, id="will QoS 2 without will"),
        pytest.param({"flags": 0x20}, id="will retain without will"),
        pytest.param({"will": ("w", b"x"), "will_qos": 3}, id="will QoS 3"),
        pytest.param({"flags": 0x04}, id="will without its fields"),
        pytest.param({"flags": 0x80}, id="user name flag without one"),
        pytest.param({"flags": 0xC0, "username": "u"}, id="password flag without one"),
        pytest.param({"username": "u", "flags": -0x80}, id="user name without its flag"),
        pytest.param(
            {"username": "u", "password": b"p", "flags": -0x40}, id="password without its flag"
        ),
    ],
)
@pytest.mark.conformance(
    "MQTT-3.1.2-3",
    "MQTT-3.1.2-9",
    "MQTT-3.1.2-11",
    "MQTT-3.1.2-12",
    "MQTT-3.1.2-13",
    "MQTT-3.1.2-16",
    "MQTT-3.1.2-17",
    "MQTT-3.1.2-18",
    "MQTT-3.1.2-19",
    "MQTT-3.1.4-1",
    "MQTT-3.1.4-6",
    "MQTT-3.1.1:3.1.2-15",
)
async def test_flags_and_payload_of_a_connect_must_agree(
    version: int, fields: dict[str, object]
) -> None:
    fields = dict(fields)
    unset = fields.get("flags", 0)
    async with serving() as broker:
        watcher = await watching(broker, version, "t")
        client = await raw(broker, version)
        if isinstance(unset, int) and unset < 0:
            del fields["flags"]
            whole = bytearray(connect(version, "c", **fields))  # type: ignore[arg-type]
            whole[9] += unset
            data = bytes(whole)
        else:
            data = connect(version, "c", **fields)  # type: ignore[arg-type]
        client.send(data, publish(version, "t", b"must not be read"))
        assert await client.refused(0x81, 0x82)
        assert await watcher.until_pong() == []


@pytest.mark.conformance("MQTT-3.1.1:3.1.2-22")
async def test_a_password_needs_a_user_name_in_3_1_1() -> None:
    async with serving() as broker:
        client = await raw(broker, 4)
        client.send(connect(4, "c", password=b"secret"))
        assert await client.closed()


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.3-1", "MQTT-3.1.2-9", "MQTT-3.1.2-17", "MQTT-3.1.2-19")
async def test_the_fields_of_a_connect_are_read_in_their_order(version: int) -> None:
    props = b"\x26" + string("a") + string("b") if version == 5 else b""
    async with serving() as broker:
        watcher = await watching(broker, version)
        client = await connected(
            broker,
            version,
            "one",
            will=("will", b"payload"),
            will_qos=1,
            will_props=props,
            username="user",
            password=b"\0\xff",
            **lasting(version),
        )
        await gone(broker, client)
        message = await watcher.publish()
        assert (message.payload, message.qos) == (b"payload", 1)
        assert message.props == ([(0x26, b"\0\1a\0\1b")] if version == 5 else [])


@VERSIONS
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 9, 11])
@pytest.mark.conformance("MQTT-3.1.3-3", "MQTT-3.1.4-1")
async def test_a_connect_that_ends_early_is_refused(version: int, cut: int) -> None:
    body = connect(version, "abcdefghijk")[2:-cut]
    async with serving() as broker:
        client = await raw(broker, version)
        client.send(frame(0x10, body))
        assert await client.refused(0x81)


@pytest.mark.parametrize(
    "props",
    [
        b"\x21\0\0",  # receive maximum 0
        b"\x27\0\0\0\0",  # maximum packet size 0
        b"\x17\x02",
        b"\x19\x02",
        b"\x11\0\0\0\1\x11\0\0\0\1",  # twice
        b"\x16" + string(b"data"),  # authentication data without a method
        b"\x12" + string("assigned"),  # a server's property
    ],
)
@pytest.mark.conformance("MQTT-3.1.4-1", "MQTT-3.1.4-2", "MQTT-4.13.1-1")
async def test_a_connect_with_impossible_properties_is_refused(props: bytes) -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        client.send(connect(5, "c", props=props))
        assert await client.refused(0x81, 0x82)


# -- client identifiers ---------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.3-5", "MQTT-3.1.4-5", "MQTT-3.2.2-1", "MQTT-3.2.2-2")
async def test_plain_client_identifiers_of_1_to_23_bytes_are_taken(version: int) -> None:
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    async with serving() as broker:
        for client_id in ("0", "Z", letters[:23], letters[23:46], letters[39:]):
            client = await raw(broker, version)
            first, body = await client.connect(client_id)
            assert (first, body[:2]) == (0x20, b"\0\0")


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
async def test_an_empty_client_identifier_gets_a_new_one(version: int) -> None:
    async with serving() as broker:
        assigned = set()
        for _ in range(3):
            client = await raw(broker, version)
            first, body = await client.connect("")
            assert (first, body[:2]) == (0x20, b"\0\0")
            if version == 5:
                props, _ = properties_of(body, 2)
                assigned.add(dict(props)[0x12])
        assert len(assigned) == (3 if version == 5 else 0)
        assert broker.broker.stats().connections == 3


@pytest.mark.conformance("MQTT-3.1.3-2", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
async def test_an_assigned_identifier_is_an_identifier_like_any_other() -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("", clean=False, props=HOUR)
        client_id = dict(properties_of(body, 2)[0])[0x12][2:]
        await gone(broker, client)
        again = await raw(broker, 5)
        _, body = await again.connect(client_id, clean=False)
        assert body[0] == 1  # session present


@pytest.mark.conformance("MQTT-3.1.1:3.1.3-8", "MQTT-3.1.1:3.2.2-4", "MQTT-3.1.1:3.2.2-5")
async def test_an_empty_identifier_with_a_session_to_keep_is_refused_in_3_1_1() -> None:
    async with serving() as broker:
        client = await raw(broker, 4)
        assert await client.connect("", clean=False) == (0x20, b"\0\x02")
        assert await client.closed()


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.3-8", "MQTT-3.1.1:3.1.3-9", "MQTT-3.2.2-6", "MQTT-3.2.2-7")
async def test_an_identifier_that_is_too_long_is_refused(version: int) -> None:
    async with serving() as broker:
        client = await raw(broker, version)
        first, body = await client.connect("x" * 2000)
        assert (first, body[:2]) == (0x20, b"\0\x85" if version == 5 else b"\0\x02")
        assert await client.closed()


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.4-3", "MQTT-3.1.3-2", "MQTT-4.13.2-1")
async def test_a_client_identifier_is_taken_over(version: int) -> None:
    async with serving() as broker:
        first = await connected(broker, version, "one")
        second = await connected(broker, version, "one")
        assert await first.refused(0x8E)
        assert await second.until_pong() == []


# -- sessions ---------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance(
    "MQTT-3.1.2-4",
    "MQTT-3.1.2-5",
    "MQTT-3.1.2-6",
    "MQTT-3.1.2-23",
    "MQTT-3.1.4-4",
    "MQTT-3.2.2-2",
    "MQTT-3.2.2-3",
    "MQTT-3.1.1:3.1.2-4",
    "MQTT-3.1.1:3.1.2-5",
    "MQTT-3.1.1:3.1.2-6",
    "MQTT-4.5.0-1",
)
async def test_a_session_is_made_resumed_and_discarded(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        reader = await raw(broker, version)
        assert (await reader.connect("reader", **lasting(version)))[1][:2] == b"\0\0"  # new
        await reader.subscribe(("t", 1))
        await gone(broker, reader)
        writer.send(publish(version, "t", b"while away", 1, 1))
        await writer.packet()

        reader = await raw(broker, version)
        assert (await reader.connect("reader", **lasting(version)))[1][:2] == b"\1\0"  # resumed
        assert (await reader.publish()).payload == b"while away"
        await gone(broker, reader)

        reader = await raw(broker, version)
        fresh = lasting(version) | {"clean": True}
        assert (await reader.connect("reader", **fresh))[1][:2] == b"\0\0"
        writer.send(publish(version, "t", b"to nobody", 1, 2))
        await writer.packet()
        assert await reader.until_pong() == []


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.1:3.1.2-6", "MQTT-4.1.0-2")
async def test_a_session_without_expiry_ends_with_its_connection(version: int) -> None:
    async with serving() as broker:
        client = await connected(broker, version, "one", clean=True)
        await client.subscribe(("t", 1))
        await gone(broker, client)
        client = await raw(broker, version)
        _, body = await client.connect("one", **lasting(version))
        assert body[:2] == b"\0\0"


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.1:3.1.2-7")
async def test_retained_messages_outlive_the_session_that_sent_them(version: int) -> None:
    async with serving() as broker:
        writer = await connected(broker, version, "writer")
        writer.send(publish(version, "kept", b"x", 1, 1, retain=True))
        await writer.packet()
        await gone(broker, writer)
        reader = await connected(broker, version, "reader")
        await reader.subscribe(("kept", 0))
        assert (await reader.publish()).payload == b"x"


@pytest.mark.conformance("MQTT-4.1.0-1", "MQTT-4.1.0-2", "MQTT-3.1.2-23")
async def test_a_session_ends_when_its_expiry_has_passed_and_not_before() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        client = await connected(broker, 5, "one", clean=False, props=b"\x11\0\0\0\x0a")
        broker.pass_time(clock, 3600)  # open connections do not expire
        assert await client.until_pong() == []
        await gone(broker, client)
        broker.pass_time(clock, 9)
        client = await raw(broker, 5)
        assert (await client.connect("one", clean=False, props=b"\x11\0\0\0\x0a"))[1][0] == 1
        await gone(broker, client)
        broker.pass_time(clock, 11)
        client = await raw(broker, 5)
        assert (await client.connect("one", clean=False))[1][0] == 0


@VERSIONS
@pytest.mark.conformance("MQTT-4.1.0-1")
async def test_a_session_lasts_as_long_as_its_connection(version: int) -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        reader = await connected(broker, version, "reader")  # clean, without expiry
        await reader.subscribe(("t", 0))
        broker.pass_time(clock, 1e6)
        writer = await connected(broker, version, "writer")
        writer.send(publish(version, "t", b"x", 0))
        assert (await reader.publish()).payload == b"x"


@pytest.mark.conformance("MQTT-3.1.2-23")
async def test_a_session_may_last_for_ever() -> None:
    clock = ManualClock()
    config = BrokerConfig(sys_interval_s=0, session_expiry_max_s=0xFFFF_FFFF)
    async with serving(config, clock=clock) as broker:
        client = await connected(broker, 5, "one", clean=False, props=b"\x11" + b"\xff" * 4)
        await gone(broker, client)
        broker.pass_time(clock, 100 * 365 * 86_400)
        client = await raw(broker, 5)
        assert (await client.connect("one", clean=False))[1][0] == 1


# -- wills ------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.conformance(
    "MQTT-3.1.2-7",
    "MQTT-3.1.2-8",
    "MQTT-3.1.2-10",
    "MQTT-3.1.2-12",
    "MQTT-3.1.2-14",
    "MQTT-3.1.2-15",
    "MQTT-3.1.1:3.1.2-12",
)
async def test_a_will_is_published_once_as_it_was_given(
    version: int, qos: int, retain: bool
) -> None:
    async with serving() as broker:
        watcher = await watching(broker, version)
        fields = {"will": ("will", b"\0gone"), "will_qos": qos, "will_retain": retain}
        await gone(broker, await connected(broker, version, "one", **fields))
        message = await watcher.publish()
        assert (message.payload, message.qos, message.retain) == (b"\0gone", qos, False)
        assert await watcher.until_pong() == []
        later = await connected(broker, version, "later")
        await later.subscribe(("will", 0))
        kept = [packet for packet in await later.until_pong() if packet[0] >> 4 == 3]
        assert [first & 1 for first, _ in kept] == ([1] if retain else [])
        # It is gone from the session: the next end of a connection publishes nothing.
        await gone(broker, await connected(broker, version, "one"))
        assert await watcher.until_pong() == []


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.1.2-10", "MQTT-3.14.4-3")
async def test_a_normal_disconnect_deletes_the_will(version: int) -> None:
    async with serving() as broker:
        watcher = await watching(broker, version)
        client = await connected(broker, version, "one", will=("will", b"gone"), **lasting(version))
        client.send(DISCONNECT)
        assert await client.closed()
        assert await watcher.until_pong() == []


@pytest.mark.parametrize("code", [0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x99])
@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.14.2-1")
async def test_any_other_disconnect_sends_the_will(code: int) -> None:
    async with serving() as broker:
        watcher = await watching(broker, 5)
        client = await connected(broker, 5, "one", will=("will", b"gone"))
        client.send(frame(0xE0, bytes((code,))))
        assert await client.closed()
        assert (await watcher.publish()).payload == b"gone"


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.1.2-22")
async def test_a_client_that_falls_silent_is_cut_off_and_its_will_sent(version: int) -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await watching(broker, version)
        client = await connected(broker, version, "one", keep_alive=10, will=("will", b"gone"))
        broker.pass_time(clock, 14)
        assert await watcher.until_pong() == []
        broker.pass_time(clock, 1.6)
        assert await client.refused(0x8D)
        assert (await watcher.publish()).payload == b"gone"


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-22", "MQTT-3.2.2-22")
async def test_any_packet_keeps_a_connection_alive_and_0_needs_none(version: int) -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        never = await connected(broker, version, "never", keep_alive=0)
        client = await connected(broker, version, "one", keep_alive=10)
        for _ in range(3):
            broker.pass_time(clock, 14)
            client.send(publish(version, "t", b"x", 1, 1))
            assert (await client.packet())[0] == 0x40
        broker.pass_time(clock, 14)
        assert await client.until_pong() == []
        broker.pass_time(clock, 100_000)
        assert await client.refused(0x8D)
        assert await never.until_pong() == []


@pytest.mark.conformance("MQTT-3.1.2-21", "MQTT-3.1.2-22")
async def test_the_servers_keep_alive_counts() -> None:
    clock = ManualClock()
    config = BrokerConfig(sys_interval_s=0, keep_alive_max_s=20)
    async with serving(config, clock=clock) as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("one", keep_alive=1000)
        assert (0x13, b"\0\x14") in properties_of(body, 2)[0]
        broker.pass_time(clock, 29)
        assert await client.until_pong() == []
        broker.pass_time(clock, 31)
        assert await client.refused(0x8D)


@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.1.3-9")
async def test_a_will_waits_for_its_delay_and_is_cancelled_by_coming_back() -> None:
    clock = ManualClock()
    fields = {"clean": False, "props": HOUR, "will": ("will", b"gone")}
    delay = {"will_props": b"\x18\0\0\0\x0a"}
    async with serving(clock=clock) as broker:
        watcher = await watching(broker, 5)
        await gone(broker, await connected(broker, 5, "one", **fields, **delay))
        broker.pass_time(clock, 9)
        assert await watcher.until_pong() == []
        client = await raw(broker, 5)
        await client.connect("one", clean=False, props=HOUR)
        broker.pass_time(clock, 60)
        assert await watcher.until_pong() == []
        await gone(broker, client)
        broker.pass_time(clock, 60)
        assert await watcher.until_pong() == []  # it was the other connection's
        client = await raw(broker, 5)
        await client.connect("one", **fields, **delay)
        await gone(broker, client)
        broker.pass_time(clock, 11)
        assert (await watcher.publish()).payload == b"gone"


@pytest.mark.conformance("MQTT-3.1.2-8")
async def test_the_end_of_the_session_sends_a_will_before_its_delay() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        watcher = await watching(broker, 5)
        client = await connected(
            broker,
            5,
            "one",
            clean=False,
            props=b"\x11\0\0\0\x05",
            will=("will", b"gone"),
            will_props=b"\x18\0\0\x0e\x10",
        )
        await gone(broker, client)
        broker.pass_time(clock, 4)
        assert await watcher.until_pong() == []
        broker.pass_time(clock, 2)
        assert (await watcher.publish()).payload == b"gone"


@pytest.mark.conformance("MQTT-3.1.3-10", "MQTT-3.3.2-4", "MQTT-3.3.2-15", "MQTT-3.3.2-20")
async def test_a_wills_properties_are_those_of_the_message() -> None:
    names = [b"\x26" + string(n) + string(v) for n, v in (("b", "1"), ("a", "2"), ("b", "3"))]
    others = [b"\x01\x01", b"\x03" + string("text"), b"\x08" + string("re"), b"\x09" + string("c")]
    async with serving() as broker:
        watcher = await watching(broker, 5)
        props = names[0] + others[0] + names[1] + b"".join(others[1:]) + names[2]
        fields = {"will": ("will", "gone"), "will_props": props + b"\x02\0\0\0\x64"}
        await gone(broker, await connected(broker, 5, "one", **fields))
        message = await watcher.publish()
        assert [bytes((n,)) + v for n, v in message.props if n == 0x26] == names
        assert sorted(bytes((n,)) + v for n, v in message.props if n not in (0x26, 2)) == others
        assert (0x02, b"\0\0\0\x64") in message.props


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.2-8", "MQTT-3.1.4-6")
async def test_a_refused_connect_has_no_will(version: int) -> None:
    config = BrokerConfig(sys_interval_s=0, connections_max=1)
    async with serving(config) as broker:
        watcher = await watching(broker, version)
        client = await raw(broker, version)
        client.send(
            connect(version, "one", will=("will", b"gone")), publish(version, "will", b"never")
        )
        assert (await client.packet())[1][:2] == (b"\0\x89" if version == 5 else b"\0\x03")
        assert await client.closed()
        assert await watcher.until_pong() == []


# -- what the client wishes -------------------------------------------------------------------


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.4-5", "MQTT-3.2.0-1", "MQTT-3.2.2-1", "MQTT-3.2.0-2")
async def test_connack_comes_first_and_once(version: int) -> None:
    async with serving() as broker:
        client = await raw(broker, version)
        client.send(
            connect(version, "one"),
            subscribe(version, 1, ("t", 0)),
            publish(version, "t", b"x"),
            b"\xc0\0",
        )
        firsts = [(await client.packet())[0] for _ in range(4)]
        assert firsts == [0x20, 0x90, 0x30, 0xD0]


@pytest.mark.conformance("MQTT-3.1.2-24", "MQTT-3.1.2-25")
async def test_what_is_too_large_for_one_client_is_dropped_for_that_one_only() -> None:
    async with serving() as broker:
        small = await connected(broker, 5, "small", props=b"\x27\0\0\0\x32")
        large = await connected(broker, 5, "large")
        for client in (small, large):
            await client.subscribe(("t", 2))
        writer = await connected(broker, 5, "writer")
        sizes = [(0, 44), (0, 45), (1, 42), (1, 43), (2, 42), (2, 43), (0, 1)]
        for number, (qos, size) in enumerate(sizes, 1):
            writer.send(publish(5, "t", b"x" * size, qos, number))
            if qos:
                await writer.packet()
        assert [len((await large.publish()).payload) for _ in sizes] == [n for _, n in sizes]
        # 2 of header, 3 of topic, 1 of property length, and 2 of identifier with QoS 1 and 2
        packets = await small.until_pong()
        assert [(first, 2 + len(body)) for first, body in packets] == [
            (0x30, 50),
            (0x32, 50),
            (0x34, 50),
            (0x30, 7),
        ]


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.conformance("MQTT-3.1.2-24", "MQTT-3.2.0-1")
async def test_who_cannot_take_a_connack_is_told_nothing(limit: int) -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        client.send(connect(5, "c", props=b"\x27" + limit.to_bytes(4, "big")))
        assert await client.closed()


@pytest.mark.conformance("MQTT-3.2.2-19", "MQTT-3.2.2-20")
async def test_a_refusal_leaves_out_its_reason_where_that_is_too_long() -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        client.send(connect(5, "c", props=b"\x15" + string("none such") + b"\x27\0\0\0\x08"))
        assert await client.packet() == (0x20, b"\0\x8c\0")
        assert await client.closed()


@pytest.mark.parametrize("wish", [b"", b"\x19\x00", b"\x19\x01"])
@pytest.mark.conformance("MQTT-3.1.2-28")
async def test_response_information_is_not_given(wish: bytes) -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("c", props=wish)
        assert 0x1A not in dict(properties_of(body, 2)[0])


@pytest.mark.conformance("MQTT-3.1.2-29")
async def test_without_problem_information_answers_have_no_reason() -> None:
    config = BrokerConfig(sys_interval_s=0, subscriptions_max=1, retained_messages_max=0)
    async with serving(config) as broker:
        client = await connected(broker, 5, "c", props=b"\x17\x00")
        await client.subscribe(("a", 0))
        client.send(subscribe(5, 3, ("b", 0)))
        assert await client.packet() == (0x90, b"\0\x03\0\x97")
        client.send(publish(5, "t", b"x", 1, 4, retain=True))
        assert await client.packet() == (0x40, b"\0\x04\x97")
        client.send(frame(0x62, b"\0\x09"))
        assert await client.packet() == (0x70, b"\0\x09\x92")


@pytest.mark.conformance("MQTT-4.12.0-1", "MQTT-4.12.0-4", "MQTT-3.1.4-2")
async def test_an_authentication_method_that_is_not_offered_is_refused() -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("c", props=b"\x15" + string("none such"))
        assert body[1] in (0x8C, 0x87)
        assert await client.closed()


@pytest.mark.conformance("MQTT-4.12.0-6", "MQTT-4.12.0-7")
async def test_without_a_method_there_is_no_authentication() -> None:
    async with serving() as broker:
        client = await raw(broker, 5)
        _, body = await client.connect("c")
        assert not {0x15, 0x16} & dict(properties_of(body, 2)[0]).keys()
        client.send(frame(0xF0, b"\x19\x04\x15" + string("m")))
        assert await client.refused(0x82)
