"""The client machine: who may send what when, both flows, limits, aliases, keep alive, the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqtt import properties as p
from mqtt.client import _HANDLERS, ClientConnection, State
from mqtt.client_session import (
    ClientSession,
    Connected,
    Disconnected,
    Published,
    Subscribed,
    Unsubscribed,
)
from mqtt.codec import encode
from mqtt.errors import LocalProtocolError, ProtocolError
from mqtt.packets import (
    PACKET_NAMES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
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
from tests.kit.mqtt_peer import Peer, connected

METHOD = {p.AUTHENTICATION_METHOD: "m"}

# One packet of every type that a server may send, and what a fresh client does with it in each
# state: None = nothing, an event class = hands it out, a number = ends with that reason code.
OUTCOMES: list[tuple[Packet, type | int | None, type | int | None]] = [
    # packet, while CONNECTING, while CONNECTED
    (Connack(), Connected, 0x82),
    (Connack(False, 0x87), 0x87, 0x82),
    (Publish("t"), 0x82, Publish),
    (Puback(7), 0x82, None),
    (Pubrec(7), 0x82, None),
    (Pubrel(7), 0x82, None),
    (Pubcomp(7), 0x82, None),
    (Suback(7, [0]), 0x82, 0x82),
    (Unsuback(7, [0]), 0x82, 0x82),
    (Pingresp(), 0x82, None),
    (Disconnect(0x8B), 0x82, 0x8B),
    (Auth(0x18, METHOD), Auth, Auth),
]


@pytest.mark.conformance("MQTT-3.2.0-1", "MQTT-3.2.0-2", "MQTT-3.14.0-1")
@pytest.mark.parametrize("state", [State.CONNECTING, State.CONNECTED])
@pytest.mark.parametrize(
    ("packet", "connecting", "in_connection"),
    OUTCOMES,
    ids=[PACKET_NAMES[packet.packet_type] for packet, _, _ in OUTCOMES],
)
def test_what_a_server_may_send_when(
    packet: Packet,
    connecting: type | int | None,
    in_connection: type | int | None,
    state: State,
) -> None:
    client = ClientConnection()
    peer = Peer(client)
    client.connect(Connect("c", properties=dict(METHOD)), peer.now_s)
    if state is State.CONNECTED:
        peer.give(Connack())
    expected = connecting if state is State.CONNECTING else in_connection
    events = peer.give(packet)
    if expected is None:
        assert events == []
    elif isinstance(expected, type):
        assert [type(event) for event in events] == [expected]
    else:
        [event] = events
        assert isinstance(event, Disconnected)
        assert event.reason_code == expected
        assert client.closed


def test_the_table_covers_every_packet_a_server_may_send() -> None:
    types = {packet.packet_type for packet, _, _ in OUTCOMES}
    assert set(_HANDLERS[State.CONNECTING]) | set(_HANDLERS[State.CONNECTED]) == types
    assert not _HANDLERS[State.IDLE]
    assert not _HANDLERS[State.CLOSED]


# Connecting


def test_connect_is_the_first_packet_and_leaves_once() -> None:
    client = ClientConnection()
    peer = Peer(client)
    connect = Connect("c", keep_alive=10)
    client.connect(connect, 0.0)
    assert peer.sent() == [connect]
    with pytest.raises(LocalProtocolError):
        client.connect(connect, 0.0)
    assert peer.sent() == []


@pytest.mark.parametrize("version", [4, 5])
def test_a_refusal_ends_the_connection_with_the_servers_reason(version: int) -> None:
    client = ClientConnection()
    peer = Peer(client, version)
    client.connect(Connect("c", version), 0.0)
    [event] = peer.give(Connack(False, 0x86))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x86
    assert event.by_peer
    assert event.error is None
    assert client.closed


@pytest.mark.conformance("MQTT-3.2.2-4")
def test_a_session_that_cannot_be_is_a_protocol_error() -> None:
    client = ClientConnection()
    peer = Peer(client)
    client.connect(Connect("c", clean_start=True), 0.0)
    [event] = peer.give(Connack(True))
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, ProtocolError)
    assert event.error.clause == "MQTT-3.2.2-4"


@pytest.mark.conformance("MQTT-3.1.3-7")
def test_the_server_may_assign_the_client_id() -> None:
    client, _ = connected(
        connect=Connect(""), connack=Connack(properties={p.ASSIGNED_CLIENT_IDENTIFIER: "auto-1"})
    )
    assert client.session.client_id == "auto-1"
    again = ClientConnection(client.session)
    again.connect(Connect("", clean_start=False), 0.0)
    [connect] = Peer(again).sent()
    assert isinstance(connect, Connect)
    assert connect.client_id == "auto-1"


@pytest.mark.conformance("MQTT-3.1.3-2")
def test_a_session_belongs_to_one_client_id() -> None:
    client, _ = connected(connect=Connect("a"))
    with pytest.raises(LocalProtocolError):
        ClientConnection(client.session).connect(Connect("b"), 0.0)


def test_a_connect_that_is_not_allowed_changes_nothing() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError):
        client.connect(Connect("c\0"), 0.0)
    assert client.state is State.IDLE
    client.connect(Connect("c"), 0.0)
    assert client.state is State.CONNECTING


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


# Subscribing


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.conformance("MQTT-2.2.1-6", "MQTT-3.8.4-2", "MQTT-3.10.4-5")
def test_subscribe_and_unsubscribe_are_told_their_answers(version: int) -> None:
    client, peer = connected(version)
    packet_id = client.subscribe([Subscription("a/#", 1), Subscription("b", 2)])
    assert peer.sent() == [Subscribe(packet_id, [Subscription("a/#", 1), Subscription("b", 2)])]
    assert peer.give(Suback(packet_id, [1, 0x80])) == [Subscribed(packet_id, [1, 0x80], {})]
    packet_id = client.unsubscribe(["a/#", "b"])
    assert peer.sent() == [Unsubscribe(packet_id, ["a/#", "b"])]
    codes = [0, 0x11] if version == 5 else []
    assert peer.give(Unsuback(packet_id, codes)) == [Unsubscribed(packet_id, codes, {})]


@pytest.mark.conformance("MQTT-3.8.4-6", "MQTT-3.9.3-1", "MQTT-3.11.3-1")
@pytest.mark.parametrize("answer", [Suback(1, [0]), Suback(2, [0, 0]), Unsuback(1, [0, 0])])
def test_a_suback_that_does_not_fit_is_a_protocol_error(answer: Packet) -> None:
    client, peer = connected()
    assert client.subscribe([Subscription("a"), Subscription("b")]) == 1
    [event] = peer.give(answer)
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, ProtocolError)


@pytest.mark.conformance("MQTT-2.2.1-3", "MQTT-2.2.1-6")
def test_packet_ids_are_not_given_twice_and_the_two_directions_do_not_meet() -> None:
    client, peer = connected(outbound_max=70_000)
    used = {client.publish("t", b"", 1) for _ in range(65_533)}
    used.add(client.subscribe([Subscription("t")]))
    used.add(client.unsubscribe(["t"]))
    assert used == set(range(1, 65_536))
    for call in (
        lambda: client.publish("t", b"", 1),
        lambda: client.subscribe([Subscription("t")]),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    peer.give(Puback(77))
    assert client.publish("t", b"", 1) == 77
    assert peer.give(Publish("t", b"", 2, packet_id=1)) == [Publish("t", b"", 2, packet_id=1)]


# Keep alive


@pytest.mark.conformance("MQTT-3.1.2-20")
def test_pingreq_leaves_when_nothing_else_was_sent_for_keep_alive() -> None:
    client, peer = connected(connect=Connect("c", keep_alive=10))
    assert client.next_deadline_s() == 1010.0
    client.handle_timeout(1009.9)
    assert peer.sent() == []
    client.handle_timeout(1010.0)
    assert peer.sent() == [Pingreq()]
    peer.now_s = 1011.0
    assert peer.give(Pingresp()) == []
    assert client.next_deadline_s() == 1020.0


def test_a_client_that_only_publishes_finds_a_dead_server() -> None:
    client, peer = connected(connect=Connect("c", keep_alive=10), ping_timeout_s=5.0)
    client.publish("t", b"", now_s=1008.0)
    assert client.next_deadline_s() == 1010.0  # nothing came for 10 s
    client.handle_timeout(1010.0)
    assert peer.sent() == [Publish("t"), Pingreq()]
    client.publish("t", b"", now_s=1014.0)
    assert client.next_deadline_s() == 1015.0
    client.handle_timeout(1015.0)
    [event] = client.events()
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x8D
    assert not event.by_peer
    assert client.closed


def test_anything_received_puts_off_the_end() -> None:
    client, peer = connected(connect=Connect("c", keep_alive=60), ping_timeout_s=5.0)
    client.handle_timeout(1060.0)
    peer.now_s = 1064.0
    peer.give(Publish("t"))
    assert client.next_deadline_s() == 1069.0


def test_while_reading_is_paused_silence_means_nothing_but_pings_go_on() -> None:
    client, peer = connected(connect=Connect("c", keep_alive=10), ping_timeout_s=5.0)
    client.pause_receiving()
    for now_s in (1010.0, 1020.0, 1030.0):
        assert client.next_deadline_s() == now_s
        client.handle_timeout(now_s)
        assert peer.sent() == [Pingreq()]
    client.resume_receiving(1035.0)
    assert client.next_deadline_s() == 1040.0
    peer.now_s = 1036.0
    peer.give(Pingresp(), Pingresp(), Pingresp())
    assert client.next_deadline_s() == 1040.0
    assert not client.closed


@pytest.mark.conformance("MQTT-3.1.2-21", "MQTT-3.2.2-21")
def test_the_server_sets_the_keep_alive() -> None:
    client, _ = connected(
        connect=Connect("c", keep_alive=60), connack=Connack(properties={p.SERVER_KEEP_ALIVE: 5})
    )
    assert client.next_deadline_s() == 1005.0
    client, _ = connected(
        connect=Connect("c", keep_alive=60), connack=Connack(properties={p.SERVER_KEEP_ALIVE: 0})
    )
    assert client.next_deadline_s() is None


def test_connack_must_come_in_time() -> None:
    client = ClientConnection(connect_timeout_s=3.0)
    assert client.next_deadline_s() is None
    client.connect(Connect("c"), 100.0)
    assert client.next_deadline_s() == 103.0
    client.handle_timeout(103.0)
    [event] = client.events()
    assert isinstance(event, Disconnected)
    assert event.error is not None
    assert client.closed
    assert client.next_deadline_s() is None


# The end


@pytest.mark.conformance("MQTT-3.14.4-1", "MQTT-3.14.4-2", "MQTT-3.14.2-1")
def test_disconnect_is_the_last_packet() -> None:
    client, peer = connected(connect=Connect("c", keep_alive=1))
    client.disconnect(4, {p.REASON_STRING: "bye"})
    assert peer.sent() == [Disconnect(4, {p.REASON_STRING: "bye"})]
    [event] = client.events()
    assert isinstance(event, Disconnected)
    assert (event.reason_code, event.by_peer) == (4, False)
    client.disconnect()
    client.handle_timeout(9e9)
    client.receive_eof(9e9)
    assert peer.give(Publish("t", b"", 1, packet_id=1)) == []
    assert peer.sent() == []
    with pytest.raises(LocalProtocolError):
        client.publish("t", b"", 1)


def test_a_session_that_ends_with_its_connection_cannot_be_prolonged() -> None:
    client, _ = connected()
    with pytest.raises(LocalProtocolError):
        client.disconnect(0, {p.SESSION_EXPIRY_INTERVAL: 10})
    kept, peer = connected(connect=Connect("c", properties={p.SESSION_EXPIRY_INTERVAL: 5}))
    kept.disconnect(0, {p.SESSION_EXPIRY_INTERVAL: 10})
    assert peer.sent() == [Disconnect(0, {p.SESSION_EXPIRY_INTERVAL: 10})]


@pytest.mark.parametrize("version", [4, 5])
def test_malformed_bytes_end_the_connection_after_what_came_before(version: int) -> None:
    client, peer = connected(version)
    client.receive_data(encode(Publish("t"), version) + b"\x00\x00", 0.0)
    message, event = client.events()
    assert message == Publish("t")
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x81
    assert peer.sent() == ([Disconnect(0x81)] if version == 5 else [])


def test_the_end_of_the_stream_ends_the_connection_once() -> None:
    client, _ = connected()
    client.receive_eof(0.0)
    client.receive_eof(0.0)
    [event] = client.events()
    assert isinstance(event, Disconnected)
    assert event.by_peer


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_server_that_takes_too_small_packets_ends_the_connection(size: int) -> None:
    client, peer = connected(connack=Connack(properties={p.MAXIMUM_PACKET_SIZE: size}))
    event = peer.give(Publish("t", b"", 1, packet_id=1), Publish("t"))[-1]
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x95
    assert client.closed
    assert len(client.data_to_send()) <= size


# Enhanced authentication


@pytest.mark.conformance("MQTT-4.12.0-3", "MQTT-4.12.0-5", "MQTT-4.12.1-1")
def test_enhanced_authentication_goes_through() -> None:
    client = ClientConnection()
    peer = Peer(client)
    client.connect(Connect("c", properties=dict(METHOD)), 0.0)
    client.publish("t", b"x", 1)  # waits for CONNACK [MQTT-3.1.2-30]
    [challenge] = peer.give(Auth(0x18, METHOD | {p.AUTHENTICATION_DATA: b"1"}))
    assert isinstance(challenge, Auth)
    client.authenticate(Auth(0x18, METHOD | {p.AUTHENTICATION_DATA: b"2"}))
    _, auth = peer.sent()
    assert auth == Auth(0x18, METHOD | {p.AUTHENTICATION_DATA: b"2"})
    assert len(peer.give(Connack(properties=dict(METHOD)))) == 1
    assert len(peer.sent()) == 1
    client.authenticate(Auth(0x19, dict(METHOD)))
    assert peer.sent() == [Auth(0x19, METHOD)]
    with pytest.raises(LocalProtocolError):
        client.authenticate(Auth(0x19, {p.AUTHENTICATION_METHOD: "other"}))


@pytest.mark.conformance("MQTT-4.12.0-6")
def test_auth_without_a_method_is_the_servers_fault() -> None:
    _, peer = connected()
    [event] = peer.give(Auth(0x18, METHOD))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x82


def test_a_client_is_cheap() -> None:
    client, _ = connected(4)
    assert not hasattr(client, "__dict__")
    assert not hasattr(ClientSession(), "__dict__")
