"""The codec against others': paho-mqtt over a loopback socket, mosquitto, amqtt's packet classes.

What paho-mqtt writes must read as it was meant, what we write must reach its callbacks as meant,
in both versions. Our client must get along with mosquitto. amqtt (3.1.1 only) must read every
packet of ours and write it back unchanged.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt import packet_dict
from hypothesis import assume, given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.subscribeoptions import SubscribeOptions

from mqtt import properties as p
from mqtt.aio import Client
from mqtt.codec import Decoder, encode
from mqtt.errors import UnsupportedProtocolVersion
from mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
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
from tests.kit.mosquitto import mosquitto
from tests.kit.mqtt_server import MiniServer, mini_server
from tests.kit.mqtt_strategies import packets


def paho_properties(packet_type: int, **values: Any) -> PahoProperties:
    properties = PahoProperties(packet_type)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class Judge:
    """A paho-mqtt client whose callbacks put what they get into a queue."""

    def __init__(self, version: int, client_id: str = "paho") -> None:
        self.heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id,
            protocol={3: paho.MQTTv31, 4: paho.MQTTv311, 5: paho.MQTTv5}[version],
        )
        self.client.on_connect = self.note("connect", lambda *a: (a[2], a[3], a[4]))
        self.client.on_subscribe = self.note("subscribe", lambda *a: (a[2], a[3], a[4]))
        self.client.on_unsubscribe = self.note("unsubscribe", lambda *a: (a[2], a[3], a[4]))
        self.client.on_publish = self.note("publish", lambda *a: (a[2], a[3], a[4]))
        self.client.on_message = self.note("message", lambda *a: a[2])
        self.client.on_disconnect = self.note("disconnect", lambda *a: (a[3], a[4]))

    def note(self, name: str, pick: Callable[..., Any]) -> Callable[..., None]:
        heard = self.heard  # not self: a cycle would leave the client's sockets to the collector
        return lambda *arguments: heard.put((name, pick(*arguments)))

    async def hears(self, name: str) -> Any:
        heard, value = await asyncio.to_thread(self.heard.get, timeout=60)
        assert heard == name
        return value

    async def connect(self, server: MiniServer, keep_alive: int = 60, **how: Any) -> Any:
        await asyncio.to_thread(self.client.connect, "127.0.0.1", server.port, keep_alive, **how)
        self.client.loop_start()
        return await self.hears("connect")

    async def stop(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)
        sock = self.client.socket()
        if sock is not None:
            sock.close()


async def test_paho_3_1_1_says_what_we_read() -> None:
    judge = Judge(4)
    judge.client.username_pw_set("user", "pass")
    judge.client.will_set("gone/é", b"\x00\xff", 1, retain=True)
    async with mini_server(echo=False) as server:
        _, reason, _ = await judge.connect(server)
        assert reason == 0
        judge.client.subscribe([("a/#", 1), ("b/+", 2)])
        mid, codes, _ = await judge.hears("subscribe")
        assert (mid, [code.value for code in codes]) == (1, [1, 2])
        for qos in (0, 1, 2):
            judge.client.publish("a/b", b"%d" % qos, qos, retain=qos == 1)
            await judge.hears("publish")
        judge.client.publish("big", bytes(200_000), 1)
        await judge.hears("publish")
        judge.client.unsubscribe(["a/#", "b/+"])
        await judge.hears("unsubscribe")
        judge.client.disconnect()
        await judge.hears("disconnect")
        await server.until(lambda: server.sides[0].lost)
        assert server.received == [
            Connect("paho", 4, True, 60, Will("gone/é", b"\x00\xff", 1, True), "user", b"pass"),
            Subscribe(1, [Subscription("a/#", 1), Subscription("b/+", 2)]),
            Publish("a/b", b"0"),
            Publish("a/b", b"1", 1, True, packet_id=3),
            Publish("a/b", b"2", 2, packet_id=4),
            Pubrel(4),
            Publish("big", bytes(200_000), 1, packet_id=5),
            Unsubscribe(6, ["a/#", "b/+"]),
            Disconnect(),
        ]
    await judge.stop()


async def test_paho_5_says_what_we_read() -> None:
    judge = Judge(5, "")
    judge.client.username_pw_set("user", "pass")
    judge.client.will_set(
        "gone",
        b"w",
        2,
        properties=paho_properties(
            PacketTypes.WILLMESSAGE,
            WillDelayInterval=5,
            PayloadFormatIndicator=1,
            MessageExpiryInterval=6,
            ContentType="text/plain",
            ResponseTopic="answer",
            CorrelationData=b"\x01",
            UserProperty=[("a", "b")],
        ),
    )
    connect_properties = paho_properties(
        PacketTypes.CONNECT,
        SessionExpiryInterval=100,
        ReceiveMaximum=10,
        MaximumPacketSize=100_000,
        TopicAliasMaximum=7,
        RequestResponseInformation=1,
        RequestProblemInformation=0,
        UserProperty=[("k", "1"), ("k", "2")],
    )
    publish_properties = paho_properties(
        PacketTypes.PUBLISH,
        PayloadFormatIndicator=1,
        MessageExpiryInterval=60,
        TopicAlias=3,
        ResponseTopic="re",
        CorrelationData=b"\xff",
        UserProperty=("x", "y"),
        ContentType="application/json",
    )
    subscribe_properties = paho_properties(
        PacketTypes.SUBSCRIBE, SubscriptionIdentifier=300, UserProperty=("s", "t")
    )
    async with mini_server(echo=False) as server:
        await judge.connect(server, clean_start=False, properties=connect_properties)
        options = SubscribeOptions(2, True, True, 2)
        judge.client.subscribe(
            [("a/#", options), ("$share/g/b", SubscribeOptions(1))],
            properties=subscribe_properties,
        )
        await judge.hears("subscribe")
        judge.client.publish("a", b"{}", 2, properties=publish_properties)
        await judge.hears("publish")
        judge.client.unsubscribe("a/#")
        await judge.hears("unsubscribe")
        judge.client.disconnect(
            reasoncode=paho.ReasonCode(PacketTypes.DISCONNECT, identifier=4),
            properties=paho_properties(PacketTypes.DISCONNECT, SessionExpiryInterval=9),
        )
        await judge.hears("disconnect")
        await server.until(lambda: server.sides[0].lost)
    await judge.stop()
    assert server.received == [
        Connect(
            "",
            5,
            False,
            60,
            Will(
                "gone",
                b"w",
                2,
                False,
                {
                    p.WILL_DELAY_INTERVAL: 5,
                    p.PAYLOAD_FORMAT_INDICATOR: 1,
                    p.MESSAGE_EXPIRY_INTERVAL: 6,
                    p.CONTENT_TYPE: "text/plain",
                    p.RESPONSE_TOPIC: "answer",
                    p.CORRELATION_DATA: b"\x01",
                    p.USER_PROPERTY: [("a", "b")],
                },
            ),
            "user",
            b"pass",
            {
                p.SESSION_EXPIRY_INTERVAL: 100,
                p.RECEIVE_MAXIMUM: 10,
                p.MAXIMUM_PACKET_SIZE: 100_000,
                p.TOPIC_ALIAS_MAXIMUM: 7,
                p.REQUEST_RESPONSE_INFORMATION: 1,
                p.REQUEST_PROBLEM_INFORMATION: 0,
                p.USER_PROPERTY: [("k", "1"), ("k", "2")],
            },
        ),
        Subscribe(
            1,
            [Subscription("a/#", 2, True, True, 2), Subscription("$share/g/b", 1)],
            {p.SUBSCRIPTION_IDENTIFIER: [300], p.USER_PROPERTY: [("s", "t")]},
        ),
        Publish(
            "a",
            b"{}",
            2,
            packet_id=2,
            properties={
                p.PAYLOAD_FORMAT_INDICATOR: 1,
                p.MESSAGE_EXPIRY_INTERVAL: 60,
                p.TOPIC_ALIAS: 3,
                p.RESPONSE_TOPIC: "re",
                p.CORRELATION_DATA: b"\xff",
                p.USER_PROPERTY: [("x", "y")],
                p.CONTENT_TYPE: "application/json",
            },
        ),
        Pubrel(2),
        Unsubscribe(3, ["a/#"]),
        Disconnect(4, {p.SESSION_EXPIRY_INTERVAL: 9}),
    ]


async def test_paho_5_reads_what_we_say() -> None:
    judge = Judge(5)
    connack = Connack(
        properties={
            p.ASSIGNED_CLIENT_IDENTIFIER: "given",
            p.MAXIMUM_QOS: 1,
            p.MAXIMUM_PACKET_SIZE: 1 << 20,
            p.TOPIC_ALIAS_MAXIMUM: 5,
            p.REASON_STRING: "wëlcome",
            p.USER_PROPERTY: [("a", "b"), ("a", "c")],
            p.SERVER_KEEP_ALIVE: 30,
        }
    )
    async with mini_server(connack=lambda _: connack, answer=set()) as server:
        _, reason, properties = await judge.connect(server)
        side = server.sides[0]
        assert reason == 0
        assert properties.AssignedClientIdentifier == "given"
        assert properties.MaximumQoS == 1
        assert properties.MaximumPacketSize == 1 << 20
        assert properties.TopicAliasMaximum == 5
        assert properties.ReasonString == "wëlcome"
        assert properties.UserProperty == [("a", "b"), ("a", "c")]
        assert properties.ServerKeepAlive == 30

        _, mid = judge.client.subscribe([("a", SubscribeOptions(2)), ("b", SubscribeOptions(1))])
        await server.until(lambda: server.count(Subscribe) == 1)
        side.send(Suback(mid or 0, [2, 0x87], {p.REASON_STRING: "half"}))
        _, codes, properties = await judge.hears("subscribe")
        assert [code.value for code in codes] == [2, 0x87]
        assert properties.ReasonString == "half"

        published = judge.client.publish("a", b"x", 1)
        await server.until(lambda: server.count(Publish) == 1)
        side.send(Puback(published.mid, 0x97, {p.USER_PROPERTY: [("lane", "full")]}))
        mid, reason, properties = await judge.hears("publish")
        assert (mid, reason.value) == (published.mid, 0x97)
        assert properties.UserProperty == [("lane", "full")]

        side.send(
            Publish(
                "été/☀",
                b"\x00\xff",
                2,
                True,
                packet_id=77,
                properties={
                    p.PAYLOAD_FORMAT_INDICATOR: 0,
                    p.MESSAGE_EXPIRY_INTERVAL: 12,
                    p.SUBSCRIPTION_IDENTIFIER: [1, 268_435_455],
                    p.CORRELATION_DATA: b"\x00",
                    p.RESPONSE_TOPIC: "r",
                    p.CONTENT_TYPE: "c",
                    p.USER_PROPERTY: [("k", "v")],
                },
            )
        )
        await server.until(lambda: server.count(Pubrec) == 1)
        side.send(Pubrel(77))
        message = await judge.hears("message")
        await server.until(lambda: server.count(Pubcomp) == 1)
        assert (message.topic, message.payload) == ("été/☀", b"\x00\xff")
        assert (message.qos, message.retain) == (2, True)
        assert message.properties.PayloadFormatIndicator == 0
        assert message.properties.MessageExpiryInterval == 12
        assert message.properties.SubscriptionIdentifier == [1, 268_435_455]
        assert message.properties.CorrelationData == b"\x00"
        assert message.properties.ResponseTopic == "r"
        assert message.properties.ContentType == "c"
        assert message.properties.UserProperty == [("k", "v")]

        _, mid = judge.client.unsubscribe(["a", "b"])
        await server.until(lambda: server.count(Unsubscribe) == 1)
        side.send(Unsuback(mid or 0, [0, 0x11]))
        _, codes, _ = await judge.hears("unsubscribe")
        assert [code.value for code in codes] == [0, 0x11]

        side.send(Disconnect(0x8B, {p.SERVER_REFERENCE: "other:1883"}))
        reason, properties = await judge.hears("disconnect")
        assert reason.value == 0x8B
        assert properties.ServerReference == "other:1883"
    await judge.stop()


@pytest.mark.parametrize(
    ("reason_code", "text"),
    [
        (0x85, "Client identifier not valid"),
        (0x88, "Server unavailable"),
        (0x86, "Bad user name or password"),
        (0x87, "Not authorized"),
    ],
)
async def test_paho_3_1_1_understands_our_refusals(reason_code: int, text: str) -> None:
    judge = Judge(4)
    async with mini_server(connack=lambda _: Connack(False, reason_code)) as server:
        _, reason, _ = await judge.connect(server)
        assert str(reason) == text
    await judge.stop()


async def test_paho_3_1_is_recognised_and_refused_in_a_way_it_understands() -> None:
    judge = Judge(3)
    faults: list[UnsupportedProtocolVersion] = []

    class Refusing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            [fault] = Decoder(None, role="server").receive_data(data)
            assert isinstance(fault, UnsupportedProtocolVersion)
            faults.append(fault)
            self.transport.write(encode(Connack(False, fault.reason_code), fault.answer_version))
            self.transport.close()

    listener = await asyncio.get_running_loop().create_server(Refusing, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    _, reason, _ = await judge.connect(MiniServer(port=port))
    assert str(reason) == "Unsupported protocol version"
    assert faults[0].protocol_name == "MQIsdp"
    await judge.stop()
    listener.close()


async def test_pahos_pings_are_read_and_answered() -> None:
    judge = Judge(4)
    async with mini_server() as server:
        await judge.connect(server, keep_alive=60)
        async with asyncio.timeout(60):
            while server.count(Pingreq) < 2:
                judge.client._last_msg_out = 0.0  # as if it had been silent for that long
                await asyncio.sleep(0.01)
        assert not server.sides[0].lost
        judge.client.disconnect()
        await judge.hears("disconnect")
    await judge.stop()


# mosquitto


@pytest.mark.parametrize("version", [4, 5])
async def test_our_client_and_mosquitto_understand_each_other(version: int, tmp_path: Path) -> None:
    # No small Receive Maximum here: mosquitto 2.0 takes a QoS 2 message for settled at PUBREC and
    # sends more than it was told: our client ends such a connection with 0x93 [MQTT-3.3.4-9].
    ours = {p.SESSION_EXPIRY_INTERVAL: 60, p.TOPIC_ALIAS_MAXIMUM: 2}
    connect = Connect("sub", version, clean_start=False, properties=ours if version == 5 else {})
    with mosquitto(tmp_path) as port:
        listener = await Client.connect("127.0.0.1", port, connect)
        assert await listener.subscribe(Subscription("a/+", 2)) == [2]
        listener.abort()
        await listener.closed
        async with await Client.connect("127.0.0.1", port, Connect("pub", version)) as publisher:
            for n in range(30):
                answer = await publisher.publish(f"a/{n % 4}", b"%d" % n, 1 + n % 2)
                assert answer is not None
                assert answer.reason_code == 0
        listener = await Client.connect("127.0.0.1", port, connect, session=listener.session)
        assert listener.connack.session_present
        got: list[Publish] = []
        async with asyncio.timeout(60):
            async for message in listener.messages():
                got.append(message)
                if len(got) == 30:
                    break
        assert sorted(int(message.payload) for message in got) == list(range(30))
        assert {(m.topic_name, m.qos) for m in got if m.payload == b"7"} == {("a/3", 2)}
        assert await listener.unsubscribe("a/+") == ([0] if version == 5 else [])
        await listener.disconnect()


# amqtt


async def read_by_amqtt(data: bytes) -> Any:
    return await packet_dict[data[0] >> 4].from_stream(BufferReader(data))


def meaning(packet: Packet) -> tuple[Any, ...]:
    """What a packet says, in the terms of `amqtt_meaning`."""
    if isinstance(packet, Connect):
        will = packet.will
        return (
            packet.client_id,
            packet.clean_start,
            packet.keep_alive,
            (will.topic_name, will.payload, will.qos, will.retain) if will else None,
            packet.username,
            None if packet.password is None else packet.password.decode(),
        )
    if isinstance(packet, Publish):
        return (
            packet.topic_name,
            packet.packet_id or None,
            packet.payload,
            packet.qos,
            packet.retain,
            packet.dup,
        )
    if isinstance(packet, Connack):
        codes = {0: 0, 0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}
        return (int(packet.session_present), codes[packet.reason_code])
    if isinstance(packet, Subscribe):
        return (packet.packet_id, [(s.topic_filter, s.qos) for s in packet.subscriptions])
    if isinstance(packet, Suback):
        return (packet.packet_id, packet.reason_codes)
    if isinstance(packet, Unsubscribe):
        return (packet.packet_id, packet.topic_filters)
    return (packet.packet_id,) if hasattr(packet, "packet_id") else ()


def amqtt_meaning(kind: type, packet: Any) -> tuple[Any, ...]:
    """What amqtt understood."""
    head, body = packet.variable_header, packet.payload
    if kind is Connect:
        will = None
        if head.will_flag:
            will = (body.will_topic, body.will_message, head.will_qos, head.will_retain_flag)
        return (
            body.client_id,
            head.clean_session_flag,
            head.keep_alive,
            will,
            body.username,
            body.password,
        )
    if kind is Publish:
        return (
            head.topic_name,
            head.packet_id,
            body.data,
            packet.qos,
            packet.retain_flag,
            packet.dup_flag,
        )
    if kind is Connack:
        return (head.session_parent, head.return_code)
    if kind is Subscribe:
        return (head.packet_id, body.topics)
    if kind is Suback:
        return (head.packet_id, body.return_codes)
    if kind is Unsubscribe:
        return (head.packet_id, body.topics)
    return (head.packet_id,) if head is not None else ()


@given(st.data())
def test_amqtt_reads_what_we_write_and_writes_it_alike(data: st.DataObject) -> None:
    packet = data.draw(packets(4))
    if isinstance(packet, Connect):
        # amqtt makes up a client id where there is none, and takes a password for a text.
        assume(packet.client_id)
        packet.password = None if packet.password is None else packet.password.hex().encode()
    encoded = encode(packet, 4)
    other = asyncio.run(read_by_amqtt(encoded))
    assert amqtt_meaning(type(packet), other) == meaning(packet)
    assert other.to_bytes() == encoded
