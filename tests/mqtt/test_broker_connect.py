"""CONNECT to CONNACK over a real socket: refusals, client ids, takeover, keep-alive."""

from __future__ import annotations

import asyncio

import pytest

from mqtt.broker.config import BrokerConfig
from mqtt.codec import encode
from mqtt.packets import (
    V5,
    V311,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Subscription,
    Will,
)
from mqtt.properties import (
    ASSIGNED_CLIENT_IDENTIFIER,
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET_SIZE,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY_INTERVAL,
    TOPIC_ALIAS_MAXIMUM,
)
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.brokers import serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


@VERSIONS
@pytest.mark.conformance("MQTT-3.2.0-1", "MQTT-3.1.4-5", "MQTT-3.12.4-1")
async def test_a_client_connects_and_is_answered_when_it_pings(version: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        client.send(Pingreq())
        assert await client.receive(Pingresp) == Pingresp()


@pytest.mark.conformance("MQTT-3.2.2-21", "MQTT-3.2.2-15")
async def test_connack_tells_the_limits_of_the_server() -> None:
    config = BrokerConfig(
        receive_maximum=7,
        maximum_packet_size_bytes=4096,
        topic_alias_maximum=3,
        session_expiry_max_s=60,
        keep_alive_max_s=30,
        sys_interval_s=0,
    )
    async with serving(config) as broker:
        _, connack = await broker.ask(
            "one", keep_alive=600, properties={SESSION_EXPIRY_INTERVAL: 3600}
        )
        assert connack.properties == {
            RECEIVE_MAXIMUM: 7,
            MAXIMUM_PACKET_SIZE: 4096,
            TOPIC_ALIAS_MAXIMUM: 3,
            SESSION_EXPIRY_INTERVAL: 60,
            SERVER_KEEP_ALIVE: 30,
        }


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
async def test_a_client_without_an_id_gets_one_of_its_own(version: int) -> None:
    async with serving() as broker:
        client, first = await broker.ask("", version=version, clean_start=True)
        other, second = await broker.ask("", version=version, clean_start=True)
        if version == V5:
            names = {c.properties[ASSIGNED_CLIENT_IDENTIFIER] for c in (first, second)}
            assert len(names) == 2
        assert await client.settled() == await other.settled() == []  # neither took over


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.4-3")
async def test_a_second_connection_takes_the_session_over(version: int) -> None:
    async with serving() as broker:
        first = await broker.connect("same", version=version)
        second = await broker.connect("same", version=version)
        if version == V5:
            goodbye = await first.receive(Disconnect)
            assert goodbye.reason_code == ReasonCode.SESSION_TAKEN_OVER
        assert await first.closed()
        assert await second.settled() == []


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.0-1")
async def test_what_is_no_connect_ends_the_connection(version: int) -> None:
    async with serving() as broker:
        client = await broker.open(version)
        client.send(Pingreq())
        assert await client.closed()
        assert broker.broker.stats().protocol_faults == 1


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.0-2")
async def test_a_second_connect_is_a_protocol_error(version: int) -> None:
    async with serving() as broker:
        client = await broker.connect("one", version=version)
        client.send(Connect("one", version))
        if version == V5:
            assert (await client.receive(Disconnect)).reason_code == ReasonCode.PROTOCOL_ERROR
        assert await client.closed()


@pytest.mark.conformance("MQTT-3.1.2-1", "MQTT-3.1.2-2")
@pytest.mark.parametrize(
    ("connect", "answer"),
    [
        # MQTT 3.1
        (b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a", b"\x20\x02\x00\x01"),
        # an unknown level, laid out as in 3.1.1 and as in 5.0
        (b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x01a", b"\x20\x02\x00\x01"),
        (b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x01a", b"\x20"),
        # another name
        (b"\x10\x0d\x00\x04MQTU\x04\x02\x00\x00\x00\x01a", b""),
        # no MQTT at all
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
async def test_other_protocols_are_refused_in_their_own_words(
    connect: bytes, answer: bytes
) -> None:
    async with serving() as broker:
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(connect)
        async with asyncio.timeout(60):
            data = await reader.read()
        assert data.startswith(answer)
        assert bool(data) == bool(answer)
        writer.close()


@pytest.mark.conformance("MQTT-3.1.4-2", "MQTT-3.2.2-7")
async def test_a_malformed_connect_is_told_why_in_mqtt_5() -> None:
    async with serving() as broker:
        client = await broker.open()
        client.send_bytes(b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x01a")  # reserved flag
        connack = await client.receive(Connack)
        assert connack.reason_code == ReasonCode.MALFORMED_PACKET
        assert await client.closed()


@pytest.mark.conformance("MQTT-3.1.4-1")
@pytest.mark.parametrize("version", [V311, V5])
async def test_a_connect_that_runs_past_its_end_is_closed_without_a_word(version: int) -> None:
    async with serving() as broker:
        client = await broker.open(version)
        properties = b"\0" if version == V5 else b""
        body = b"\x00\x04MQTT" + bytes([version, 2]) + b"\x00\x3c" + properties + b"\x00\x04test"
        client.send_bytes(bytes([0x10, len(body) - 1]) + body)  # one short
        assert await client.closed()


@pytest.mark.conformance("MQTT-3.1.3-8", "MQTT-3.1.1:3.1.3-8", "MQTT-3.1.1:3.1.3-9")
async def test_an_empty_client_id_without_clean_session_is_refused_in_3_1_1() -> None:
    async with serving() as broker:
        client = await broker.open(V311)
        client.send_bytes(b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00")
        assert (await client.receive(Connack)).reason_code == (
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
        )
        assert await client.closed()


@pytest.mark.conformance("MQTT-4.12.0-1")
async def test_an_unknown_authentication_method_is_refused() -> None:
    async with serving() as broker:
        client, connack = await broker.ask("one", properties={AUTHENTICATION_METHOD: "magic"})
        assert connack.reason_code == ReasonCode.BAD_AUTHENTICATION_METHOD
        assert await client.closed()


@pytest.mark.conformance("MQTT-4.12.0-7")
async def test_auth_without_a_method_is_a_protocol_error() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        client.send(Auth(ReasonCode.REAUTHENTICATE, {AUTHENTICATION_METHOD: "magic"}))
        assert (await client.receive(Disconnect)).reason_code == ReasonCode.PROTOCOL_ERROR
        assert await client.closed()


@VERSIONS
async def test_more_connections_than_allowed_are_refused_as_busy(version: int) -> None:
    async with serving(BrokerConfig(connections_max=1, sys_interval_s=0)) as broker:
        await broker.connect("one", version=version)
        client, connack = await broker.ask("two", version=version)
        assert connack.reason_code == (
            ReasonCode.SERVER_BUSY if version == V5 else ReasonCode.SERVER_UNAVAILABLE
        )
        assert await client.closed()


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.4-1")
async def test_packets_behind_connect_need_not_wait_for_connack(version: int) -> None:
    async with serving() as broker:
        client = await broker.open(version)
        client.send(Connect("eager", version), Publish("t", b"x", qos=1, packet_id=9), Pingreq())
        assert (await client.receive(Connack)).reason_code == 0
        assert (await client.receive(Puback)).packet_id == 9
        await client.receive(Pingresp)


async def test_a_connect_may_come_a_byte_at_a_time() -> None:
    async with serving() as broker:
        client = await broker.open()
        for byte in encode(Connect("slow"), V5):
            client.send_bytes(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.receive(Connack)).reason_code == 0


@pytest.mark.conformance("MQTT-3.1.2-22")
async def test_a_client_silent_for_1_5_keep_alives_is_cut_off() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        client = await broker.connect("quiet", keep_alive=10)
        for _ in range(3):
            broker.pass_time(clock, 14)
            assert await client.settled() == []  # this is heard
        broker.pass_time(clock, 16)
        assert (await client.receive(Disconnect)).reason_code == ReasonCode.KEEP_ALIVE_TIMEOUT
        assert await client.closed()


async def test_keep_alive_0_means_no_deadline() -> None:
    clock = ManualClock()
    async with serving(clock=clock) as broker:
        client = await broker.connect("quiet", keep_alive=0)
        broker.pass_time(clock, 1_000_000)
        assert await client.settled() == []


async def test_a_connection_that_never_says_connect_is_closed() -> None:
    clock = ManualClock()
    config = BrokerConfig(connect_timeout_s=5, sys_interval_s=0)
    async with serving(config, clock=clock) as broker:
        client = await broker.open()
        await broker.connect("other")  # the first is accepted by now
        broker.pass_time(clock, 6)
        assert await client.closed()
        assert broker.broker.stats().connections == 1


@pytest.mark.conformance("MQTT-3.14.4-2", "MQTT-3.14.4-3", "MQTT-3.1.2-10")
@VERSIONS
async def test_after_disconnect_nothing_more_is_read_and_no_will_is_sent(version: int) -> None:
    async with serving() as broker:
        watcher = await broker.connect("watcher")
        await watcher.subscribe("#")
        client = await broker.connect("leaver", version=version, will=Will("will", b"gone"))
        client.send(Disconnect(), Publish("t", b"too late"))
        assert await client.closed()
        assert await watcher.settled() == []


@pytest.mark.conformance("MQTT-3.14.2-1")
async def test_disconnect_must_not_lengthen_a_session_that_was_to_end() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        client.send(Disconnect(0, {SESSION_EXPIRY_INTERVAL: 60}))
        assert (await client.receive(Disconnect)).reason_code == ReasonCode.PROTOCOL_ERROR
        assert await client.closed()
        assert broker.broker.stats().sessions == 0
        assert broker.broker.stats().protocol_faults == 1


@VERSIONS
@pytest.mark.conformance("MQTT-3.14.0-1", "MQTT-4.13.1-1")
async def test_stopping_tells_v5_clients_and_closes_all(version: int) -> None:
    async with serving(stop=False) as broker:
        client = await broker.connect("one", version=version)
        await broker.broker.stop()
        if version == V5:
            goodbye = await client.receive(Disconnect)
            assert goodbye.reason_code == ReasonCode.SERVER_SHUTTING_DOWN
        assert await client.closed()


class Doorkeeper:
    """Lets in who has the password `sesame`, to topics that begin with their own id."""

    async def connect(self, client: object, password: bytes | None) -> int:
        await asyncio.sleep(0)
        return 0 if password == b"sesame" else ReasonCode.BAD_USER_NAME_OR_PASSWORD

    def publish(self, client: object, topic_name: str) -> int:
        mine = topic_name.startswith(getattr(client, "client_id", "?"))
        return 0 if mine else ReasonCode.NOT_AUTHORIZED

    subscribe = publish


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.1:3.3.5-2", "MQTT-3.1.4-2")
async def test_access_decides_who_connects_publishes_and_subscribes(version: int) -> None:
    async with serving(access=Doorkeeper()) as broker:
        stranger, connack = await broker.ask("bob", version=version)
        assert connack.reason_code == ReasonCode.BAD_USER_NAME_OR_PASSWORD
        assert await stranger.closed()
        client, connack = await broker.ask(
            "alice", version=version, username="alice", password=b"sesame"
        )
        assert connack.reason_code == 0
        refused = ReasonCode.NOT_AUTHORIZED if version == V5 else 0x80
        codes = await client.subscribe(Subscription("alice/#", 1), Subscription("bob/#", 1), qos=1)
        assert codes == [1, refused]
        client.send(
            Publish("alice/a", b"1", qos=1, packet_id=1), Publish("bob/a", b"2", qos=1, packet_id=2)
        )
        packets = await client.settled()
        assert [p.payload for p in packets if isinstance(p, Publish)] == [b"1"]
        acks = {p.packet_id: p.reason_code for p in packets if isinstance(p, Puback)}
        assert acks == {1: 0, 2: ReasonCode.NOT_AUTHORIZED if version == V5 else 0}


async def test_packets_wait_while_access_is_asked() -> None:
    async with serving(access=Doorkeeper()) as broker:
        client = await broker.open()
        connect = Connect("alice", username="a", password=b"sesame")
        client.send(connect, Publish("alice/x", b"1", qos=1, packet_id=5))
        await client.receive(Connack)
        assert (await client.receive(Puback)).packet_id == 5


async def test_an_access_check_that_fails_lets_nobody_in() -> None:
    class Broken(Doorkeeper):
        async def connect(self, client: object, password: bytes | None) -> int:
            raise RuntimeError("the directory is down")

    async with serving(access=Broken()) as broker:
        client, connack = await broker.ask("alice")
        assert connack.reason_code == ReasonCode.SERVER_UNAVAILABLE
        assert connack.properties.get(REASON_STRING) is None
        assert await client.closed()
