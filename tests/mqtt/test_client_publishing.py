"""What the client machine publishes: the flows of each QoS, and what the server does not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqtt import properties as p
from mqtt.client import ClientConnection
from mqtt.client_session import (
    Disconnected,
    Published,
)
from mqtt.codec import encode
from mqtt.errors import LocalProtocolError, ProtocolError
from mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Subscription,
)
from tests.kit.mqtt_peer import Peer, connected

METHOD = {p.AUTHENTICATION_METHOD: "m"}

# Publishing


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.conformance("MQTT-4.3.1-1", "MQTT-2.2.1-2")
def test_qos_0_is_sent_and_forgotten(version: int) -> None:
    client, peer = connected(version)
    assert client.publish("t", b"x", retain=True) == 0
    assert peer.sent() == [Publish("t", b"x", retain=True)]
    assert client.session.outbound == {}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.conformance("MQTT-4.3.2-1", "MQTT-4.3.2-2", "MQTT-4.3.2-3")
def test_qos_1_is_settled_by_puback(version: int) -> None:
    client, peer = connected(version)
    packet_id = client.publish("t", b"x", 1)
    assert peer.sent() == [Publish("t", b"x", 1, packet_id=packet_id)]
    assert packet_id in client.session.outbound
    assert peer.give(Puback(packet_id)) == [Published(packet_id, 0, {})]
    assert client.session.outbound == {}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.conformance(
    "MQTT-4.3.3-1", "MQTT-4.3.3-2", "MQTT-4.3.3-3", "MQTT-4.3.3-4", "MQTT-4.3.3-5"
)
def test_qos_2_is_settled_by_pubcomp(version: int) -> None:
    client, peer = connected(version)
    packet_id = client.publish("t", b"x", 2)
    assert peer.sent() == [Publish("t", b"x", 2, packet_id=packet_id)]
    assert peer.give(Pubrec(packet_id)) == []
    assert peer.sent() == [Pubrel(packet_id)]
    assert peer.give(Pubrec(packet_id)) == []  # the server asks again
    assert peer.sent() == [Pubrel(packet_id)]
    assert peer.give(Pubcomp(packet_id)) == [Published(packet_id, 0, {})]
    assert client.session.outbound == {}


@pytest.mark.conformance("MQTT-4.4.0-2")
@pytest.mark.parametrize(("qos", "refusal"), [(1, Puback(1, 0x97)), (2, Pubrec(1, 0x97))])
def test_a_refused_message_is_settled_and_not_sent_again(qos: int, refusal: Packet) -> None:
    client, peer = connected()
    assert client.publish("t", b"x", qos) == 1
    peer.sent()
    assert peer.give(refusal) == [Published(1, 0x97, {})]
    assert peer.sent() == []
    assert client.session.outbound == {}


@pytest.mark.parametrize(
    ("qos", "answer"),
    [(1, Pubrec(1)), (1, Pubcomp(1)), (2, Puback(1)), (2, Pubcomp(1))],
)
@pytest.mark.conformance("MQTT-2.2.1-5")
def test_an_acknowledgement_that_does_not_fit_is_a_protocol_error(qos: int, answer: Packet) -> None:
    client, peer = connected()
    client.publish("t", b"x", qos)
    peer.sent()
    [event] = peer.give(answer)
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, ProtocolError)
    assert peer.sent() == [Disconnect(0x82)]
    assert 1 in client.session.outbound  # still owed to the server


def test_acknowledgements_of_nothing() -> None:
    _, peer = connected()
    assert peer.give(Puback(9), Pubcomp(9)) == []
    assert peer.sent() == []
    peer.give(Pubrec(9))
    assert peer.sent() == [Pubrel(9, 0x92)]
    peer.give(Pubrec(9, 0x80))
    assert peer.sent() == []
    peer.give(Pubrel(9))
    assert peer.sent() == [Pubcomp(9, 0x92)]
    _, old = connected(4)
    old.give(Pubrec(9), Pubrel(9))
    assert old.sent() == [Pubrel(9), Pubcomp(9)]


@pytest.mark.parametrize(
    ("call", "reason_code"),
    [
        (lambda client: client.publish("a/+", b""), 0x90),
        (lambda client: client.publish("", b""), 0x90),
        (lambda client: client.publish("\ud800", b""), 0x82),
        (lambda client: client.publish("t", b"", 3), 0x82),
        (lambda client: client.publish("t", b"", 1, properties={p.TOPIC_ALIAS: 1}), 0x82),
        (lambda client: client.publish("t", b"", 1, properties={p.MAXIMUM_QOS: 1}), 0x82),
        (lambda client: client.subscribe([]), 0x82),
        (lambda client: client.subscribe([Subscription("a#")]), 0x82),
        (lambda client: client.unsubscribe([]), 0x82),
        (lambda client: client.disconnect(0x8E), 0x82),
        (lambda client: client.authenticate(Auth(0x19, dict(METHOD))), 0x82),
    ],
)
def test_the_callers_faults_raise_and_change_nothing(
    call: Callable[[ClientConnection], object], reason_code: int
) -> None:
    client, peer = connected()
    with pytest.raises(LocalProtocolError) as fault:
        call(client)
    assert fault.value.reason_code == reason_code
    assert peer.sent() == []
    assert client.session.outbound == {}
    assert client.events() == []
    assert client.publish("t", b"x", 1) > 0
    assert len(peer.sent()) == 1


def test_3_1_1_has_no_properties() -> None:
    client, _ = connected(4)
    with pytest.raises(LocalProtocolError):
        client.publish("t", b"", 1, properties={p.CONTENT_TYPE: "x"})


@pytest.mark.parametrize("state", ["idle", "connecting", "closed"])
def test_qos_0_and_subscriptions_need_a_connection(state: str) -> None:
    client = ClientConnection()
    if state != "idle":
        client.connect(Connect("c"), 0.0)
    if state == "closed":
        client.receive_eof(0.0)
    with pytest.raises(LocalProtocolError):
        client.publish("t", b"")
    with pytest.raises(LocalProtocolError):
        client.subscribe([Subscription("t")])
    with pytest.raises(LocalProtocolError):
        client.unsubscribe(["t"])


# The server's limits


@pytest.mark.conformance("MQTT-3.3.4-7", "MQTT-4.9.0-1", "MQTT-4.9.0-2", "MQTT-4.9.0-3")
def test_receive_maximum_of_the_server_is_honoured() -> None:
    client, peer = connected(connack=Connack(properties={p.RECEIVE_MAXIMUM: 2}))
    assert client.free_slots == 2
    ids = [client.publish("t", b"%d" % n, 1 + n % 2) for n in range(5)]
    assert [packet.payload for packet in peer.sent()] == [b"0", b"1"]
    assert client.free_slots == 0
    client.publish("t", b"now")  # QoS 0 is not held back
    client.subscribe([Subscription("t")])  # nor is any other packet
    assert [type(packet) for packet in peer.sent()] == [Publish, Subscribe]
    peer.give(Puback(ids[0]))
    assert [packet.payload for packet in peer.sent()] == [b"2"]
    peer.give(Pubrec(ids[1]))  # takes its place until PUBCOMP
    assert peer.sent() == [Pubrel(ids[1])]
    peer.give(Pubcomp(ids[1]), Puback(ids[2]))
    assert [packet.payload for packet in peer.sent()] == [b"3", b"4"]


def test_the_caller_may_set_a_lower_window() -> None:
    client, peer = connected(inflight_max=1)
    for n in range(3):
        client.publish("t", b"%d" % n, 1)
    assert len(peer.sent()) == 1
    peer.give(Puback(1))
    assert len(peer.sent()) == 1


def test_messages_not_settled_are_limited() -> None:
    client, peer = connected(outbound_max=2)
    first = client.publish("t", b"", 1)
    client.publish("t", b"", 2)
    assert client.free_slots == 0
    with pytest.raises(LocalProtocolError) as fault:
        client.publish("t", b"", 1)
    assert fault.value.reason_code == 0x97
    peer.give(Puback(first))
    assert client.free_slots == 1
    client.publish("t", b"", 1)


@pytest.mark.conformance("MQTT-3.2.2-11", "MQTT-3.2.2-14", "MQTT-3.2.2-15")
@pytest.mark.parametrize(
    ("limit", "payload", "qos", "retain", "reason_code"),
    [
        ({p.MAXIMUM_QOS: 1}, b"", 2, False, 0x9B),
        ({p.MAXIMUM_QOS: 0}, b"", 1, False, 0x9B),
        ({p.RETAIN_AVAILABLE: 0}, b"", 1, True, 0x9A),
        ({p.RETAIN_AVAILABLE: 0}, b"", 0, True, 0x9A),
        ({p.MAXIMUM_PACKET_SIZE: 20}, bytes(100), 1, False, 0x95),
        ({p.MAXIMUM_PACKET_SIZE: 20}, bytes(13), 1, False, 0x95),
        ({p.MAXIMUM_PACKET_SIZE: 20}, bytes(15), 0, False, 0x95),
    ],
)
def test_what_the_server_does_not_take_is_not_sent(
    limit: dict[int, int], payload: bytes, qos: int, retain: bool, reason_code: int
) -> None:
    client, peer = connected(connack=Connack(properties=limit))
    with pytest.raises(LocalProtocolError) as fault:
        client.publish("t", payload, qos, retain=retain)
    assert fault.value.reason_code == reason_code
    assert peer.sent() == []
    assert client.session.outbound == {}
    # The same, published before the server had told.
    if qos:
        early = ClientConnection()
        early_peer = Peer(early)
        early.connect(Connect("c"), 0.0)
        packet_id = early.publish("t", payload, qos, retain=retain)
        early_peer.sent()
        _, event = early_peer.give(Connack(properties=limit))
        assert event == Published(packet_id, reason_code, {})
        assert early_peer.sent() == []
        assert early.session.outbound == {}


def test_the_largest_packet_the_server_takes() -> None:
    client, peer = connected(connack=Connack(properties={p.MAXIMUM_PACKET_SIZE: 20}))
    client.publish("t", bytes(12), 1)
    [publish] = peer.sent()
    assert len(encode(publish, 5)) == 20


@pytest.mark.conformance("MQTT-3.4.2-2", "MQTT-3.4.2-3")
def test_an_answer_leaves_its_properties_out_where_they_do_not_fit() -> None:
    client, peer = connected(
        connack=Connack(properties={p.MAXIMUM_PACKET_SIZE: 12}), auto_ack=False
    )
    [message] = peer.give(Publish("t", b"", 1, packet_id=1))
    client.ack(message, 0x99, {p.REASON_STRING: "a long explanation"})
    assert peer.sent() == [Puback(1, 0x99)]
