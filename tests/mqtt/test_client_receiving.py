"""What the client machine receives: each message as its QoS asks; topic aliases both ways."""

from __future__ import annotations

import pytest

from mqtt import properties as p
from mqtt.client_session import (
    Disconnected,
)
from mqtt.errors import LocalProtocolError, ProtocolError
from mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from tests.kit.mqtt_peer import connected

# Receiving


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.conformance("MQTT-3.3.4-1", "MQTT-4.3.2-4", "MQTT-4.3.3-8", "MQTT-4.3.3-11")
def test_messages_are_answered_by_their_qos(version: int) -> None:
    _, peer = connected(version)
    messages = [Publish("t", b"0"), Publish("t", b"1", 1, packet_id=5)]
    messages.append(Publish("t", b"2", 2, packet_id=5))
    assert peer.give(*messages) == messages
    assert peer.sent() == [Puback(5), Pubrec(5)]
    assert peer.give(Pubrel(5)) == []
    assert peer.sent() == [Pubcomp(5)]


@pytest.mark.conformance("MQTT-4.3.3-10", "MQTT-4.3.3-12")
def test_qos_2_is_delivered_once_until_it_is_released() -> None:
    _, peer = connected()
    message = Publish("t", b"x", 2, packet_id=1)
    again = Publish("t", b"x", 2, dup=True, packet_id=1)
    assert peer.give(message, again) == [message]
    assert peer.sent() == [Pubrec(1), Pubrec(1)]
    assert peer.give(Pubrel(1), message) == [message]  # a new message with a free id
    assert peer.sent() == [Pubcomp(1), Pubrec(1)]


@pytest.mark.conformance("MQTT-4.3.2-5")
def test_qos_1_after_puback_is_a_new_message() -> None:
    _, peer = connected()
    message = Publish("t", b"x", 1, dup=True, packet_id=1)
    assert peer.give(message, message) == [message, message]


@pytest.mark.conformance("MQTT-4.6.0-2", "MQTT-4.6.0-3")
def test_answers_leave_in_the_order_of_the_messages() -> None:
    client, peer = connected(auto_ack=False)
    first, second, third = peer.give(
        Publish("t", b"1", 1, packet_id=1),
        Publish("t", b"2", 2, packet_id=2),
        Publish("t", b"3", 1, packet_id=3),
    )
    assert client.ack(third)
    assert client.ack(second)
    assert peer.sent() == []
    assert client.ack(first)
    assert peer.sent() == [Puback(1), Pubrec(2), Puback(3)]
    assert not client.ack(first)  # answered before
    assert not client.ack(Publish("t"))  # QoS 0 wants none


@pytest.mark.conformance("MQTT-4.3.3-9")
def test_a_refused_qos_2_message_is_over() -> None:
    client, peer = connected(auto_ack=False)
    [message] = peer.give(Publish("t", b"x", 2, packet_id=1))
    client.ack(message, 0x97)
    assert peer.sent() == [Pubrec(1, 0x97)]
    assert client.session.inbound == {}
    assert len(peer.give(Publish("t", b"y", 2, packet_id=1))) == 1


def test_an_answer_that_is_not_allowed_changes_nothing() -> None:
    client, peer = connected(4, auto_ack=False)
    [message] = peer.give(Publish("t", b"x", 1, packet_id=1))
    with pytest.raises(LocalProtocolError):
        client.ack(message, 0x97)
    assert client.ack(message)
    assert peer.sent() == [Puback(1)]


def test_a_repeated_message_waits_for_the_answer_to_the_first() -> None:
    client, peer = connected(auto_ack=False)
    [one] = peer.give(Publish("t", b"1", 1, packet_id=1))
    [two] = peer.give(Publish("t", b"2", 2, packet_id=2))
    assert peer.give(Publish("t", b"1", 1, dup=True, packet_id=1)) == []
    assert peer.give(Publish("t", b"2", 2, dup=True, packet_id=2)) == []
    client.ack(one)
    client.ack(two)
    assert peer.sent() == [Puback(1), Pubrec(2)]


@pytest.mark.conformance("MQTT-2.2.1-4")
def test_a_packet_id_in_use_is_the_servers_fault() -> None:
    _, peer = connected(auto_ack=False)
    _, event = peer.give(Publish("t", b"1", 1, packet_id=1), Publish("t", b"2", 1, packet_id=1))
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, ProtocolError)


def test_pubrel_before_pubrec_is_the_servers_fault() -> None:
    _, peer = connected(auto_ack=False)
    _, event = peer.give(Publish("t", b"1", 2, packet_id=1), Pubrel(1))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x82


@pytest.mark.conformance("MQTT-3.3.4-9")
@pytest.mark.parametrize("qos", [1, 2])
def test_our_receive_maximum_binds_the_server(qos: int) -> None:
    client, peer = connected(
        connect=Connect("c", properties={p.RECEIVE_MAXIMUM: 2}), auto_ack=False
    )
    one, _ = peer.give(*(Publish("t", b"", qos, packet_id=n) for n in (1, 2)))
    peer.give(Publish("t", b"", qos, dup=True, packet_id=2))  # counted once
    client.ack(one)
    if qos == 2:
        peer.give(Pubrel(1))
    peer.sent()
    [_] = peer.give(Publish("t", b"", qos, packet_id=3))
    [event] = peer.give(Publish("t", b"", qos, packet_id=4))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x93
    assert peer.sent() == [Disconnect(0x93)]


def test_our_maximum_packet_size_binds_the_server() -> None:
    client, peer = connected(connect=Connect("c", properties={p.MAXIMUM_PACKET_SIZE: 50}))
    small, event = peer.give(Publish("t", bytes(30)), Publish("t", bytes(60)), Publish("t"))
    assert small == Publish("t", bytes(30))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x95
    assert client.closed


# Topic aliases


@pytest.mark.conformance("MQTT-3.3.2-9", "MQTT-3.2.2-17", "MQTT-3.3.2-8")
def test_topic_aliases_towards_the_server() -> None:
    client, peer = connected(connack=Connack(properties={p.TOPIC_ALIAS_MAXIMUM: 2}))
    for topic in ("a", "b", "a", "c", "b", "c"):
        client.publish(topic, b"", properties={p.CONTENT_TYPE: "x"})
    seen = [(pub.topic_name, pub.properties.get(p.TOPIC_ALIAS)) for pub in peer.sent()]
    assert seen == [("a", 1), ("b", 2), ("", 1), ("c", None), ("", 2), ("c", None)]


@pytest.mark.conformance("MQTT-3.2.2-18")
def test_no_topic_alias_unless_the_server_takes_them() -> None:
    client, peer = connected()
    client.publish("a", b"")
    client.publish("a", b"")
    assert peer.sent() == [Publish("a"), Publish("a")]


@pytest.mark.conformance("MQTT-3.3.2-7")
def test_topic_aliases_end_with_the_connection() -> None:
    client, peer = connected(connack=Connack(properties={p.TOPIC_ALIAS_MAXIMUM: 9}))
    client.publish("a", b"1", 1)
    client.publish("a", b"2", 1)
    assert [publish.topic_name for publish in peer.sent()] == ["a", ""]
    client.receive_eof(0.0)
    _, again = connected(
        connect=Connect("c", clean_start=False),
        connack=Connack(True, properties={p.TOPIC_ALIAS_MAXIMUM: 9}),
        session=client.session,
    )
    resent = again.sent()
    assert [(r.topic_name, r.properties, r.dup) for r in resent] == [
        ("a", {p.TOPIC_ALIAS: 1}, True),
        ("", {p.TOPIC_ALIAS: 1}, True),
    ]
    _, plain = connected(
        connect=Connect("c", clean_start=False), connack=Connack(True), session=client.session
    )
    assert [(r.topic_name, r.properties) for r in plain.sent()] == [("a", {}), ("a", {})]


def test_an_alias_is_not_taken_for_known_when_its_packet_was_not_sent() -> None:
    limits = {p.TOPIC_ALIAS_MAXIMUM: 9, p.MAXIMUM_PACKET_SIZE: 12}
    client, peer = connected(connack=Connack(properties=limits))
    with pytest.raises(LocalProtocolError):
        client.publish("abc", bytes(9))
    client.publish("abc", b"")
    [publish] = peer.sent()
    assert publish == Publish("abc", properties={p.TOPIC_ALIAS: 1})


@pytest.mark.conformance("MQTT-3.3.2-10")
def test_topic_aliases_from_the_server() -> None:
    _, peer = connected(connect=Connect("c", properties={p.TOPIC_ALIAS_MAXIMUM: 2}))
    events = peer.give(
        Publish("a", properties={p.TOPIC_ALIAS: 2}),
        Publish("", b"1", properties={p.TOPIC_ALIAS: 2}),
        Publish("b", properties={p.TOPIC_ALIAS: 2}),
        Publish("", b"2", properties={p.TOPIC_ALIAS: 2, p.CONTENT_TYPE: "x"}),
    )
    events += peer.give(Publish("c", properties={p.CONTENT_TYPE: "y"}))
    assert events == [
        Publish("a"),
        Publish("a", b"1"),
        Publish("b"),
        Publish("b", b"2", properties={p.CONTENT_TYPE: "x"}),
        Publish("c", properties={p.CONTENT_TYPE: "y"}),
    ]


@pytest.mark.conformance("MQTT-3.1.2-26", "MQTT-3.1.2-27")
@pytest.mark.parametrize(
    ("topic", "alias", "reason_code"), [("a", 3, 0x94), ("", 3, 0x94), ("", 1, 0x82)]
)
def test_topic_aliases_the_server_must_not_send(topic: str, alias: int, reason_code: int) -> None:
    client, peer = connected(connect=Connect("c", properties={p.TOPIC_ALIAS_MAXIMUM: 2}))
    [event] = peer.give(Publish(topic, properties={p.TOPIC_ALIAS: alias}))
    assert isinstance(event, Disconnected)
    assert event.reason_code == reason_code
    assert peer.sent() == [Disconnect(reason_code)]
    assert client.closed
