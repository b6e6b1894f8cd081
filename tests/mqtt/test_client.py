"""The client machine: who may send what when, connecting, subscribing, keep alive, the end."""

from __future__ import annotations

import pytest

from mqtt import properties as p
from mqtt.client import _HANDLERS, ClientConnection, State
from mqtt.client_session import (
    ClientSession,
    Connected,
    Disconnected,
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
