"""Delivery over connections that end: what is sent again, and nothing lost or doubled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqtt import properties as p
from mqtt.client import ClientConnection
from mqtt.client_session import ClientSession, Connected, Published
from mqtt.codec import Decoder, encode
from mqtt.errors import MqttError
from mqtt.packets import (
    Connack,
    Connect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from tests.kit.mqtt_peer import Peer, connected

RESUME = Connect("c", clean_start=False, properties={p.SESSION_EXPIRY_INTERVAL: 3600})


def resumed(
    session: ClientSession, connack: Connack | None = None, *, auto_ack: bool = True
) -> tuple[ClientConnection, Peer]:
    return connected(
        session=session, connect=RESUME, connack=connack or Connack(True), auto_ack=auto_ack
    )


@pytest.mark.conformance(
    "MQTT-3.3.1-1", "MQTT-4.1.0-1", "MQTT-4.4.0-1", "MQTT-4.6.0-1", "MQTT-4.3.3-6"
)
def test_a_resumed_session_sends_again_in_order_what_is_not_settled() -> None:
    client, peer = connected(connect=RESUME)
    for n, qos in enumerate((1, 2, 2, 1), start=1):
        client.publish("t", b"%d" % n, qos, properties={p.CONTENT_TYPE: "x"})
    peer.sent()
    peer.give(Pubrec(2), Puback(1))
    client.receive_eof(0.0)
    _, again = resumed(client.session)
    same = {p.CONTENT_TYPE: "x"}
    assert again.sent() == [
        Pubrel(2),
        Publish("t", b"3", 2, dup=True, packet_id=3, properties=same),
        Publish("t", b"4", 1, dup=True, packet_id=4, properties=same),
    ]
    events = again.give(Pubcomp(2), Pubrec(3), Pubcomp(3), Puback(4))
    assert events == [Published(2, 0, {}), Published(3, 0, {}), Published(4, 0, {})]


def test_what_was_never_sent_follows_without_dup() -> None:
    client, peer = connected(connect=RESUME, connack=Connack(properties={p.RECEIVE_MAXIMUM: 1}))
    client.publish("t", b"1", 1)
    client.publish("t", b"2", 1)
    peer.sent()
    client.receive_eof(0.0)
    _, again = resumed(client.session)
    assert [(publish.payload, publish.dup) for publish in again.sent()] == [
        (b"1", True),
        (b"2", False),
    ]


def test_messages_published_before_connack_leave_after_it() -> None:
    client = ClientConnection()
    peer = Peer(client)
    client.connect(Connect("c"), 0.0)
    packet_id = client.publish("t", b"x", 1)
    assert len(peer.sent()) == 1
    assert [type(event) for event in peer.give(Connack())] == [Connected]
    assert peer.sent() == [Publish("t", b"x", 1, packet_id=packet_id)]


@pytest.mark.conformance("MQTT-3.3.4-7")
def test_sending_again_honours_receive_maximum() -> None:
    client, peer = connected(connect=RESUME)
    for n in range(4):
        client.publish("t", b"%d" % n, 2)
    peer.sent()
    peer.give(Pubrec(2))
    client.receive_eof(0.0)
    _, again = resumed(client.session, Connack(True, properties={p.RECEIVE_MAXIMUM: 1}))
    assert [packet.packet_id for packet in again.sent()] == [1, 2]  # PUBLISH 1, PUBREL 2
    again.give(Pubcomp(2))
    assert again.sent() == []
    again.give(Pubrec(1), Pubcomp(1))
    assert [packet.packet_id for packet in again.sent()] == [1, 3]  # PUBREL 1, PUBLISH 3


@pytest.mark.conformance("MQTT-3.2.2-5")
def test_a_session_the_server_lost_begins_anew() -> None:
    client, peer = connected(connect=RESUME)
    client.publish("t", b"1", 1)
    client.publish("t", b"2", 2)
    client.publish("t", b"3", 2)
    peer.sent()
    peer.give(Pubrec(2), Publish("in", b"", 2, packet_id=5))
    client.receive_eof(0.0)
    assert client.session.inbound
    _, again = resumed(client.session, Connack(False))
    assert again.sent() == [
        Publish("t", b"1", 1, packet_id=1),
        Publish("t", b"3", 2, packet_id=3),
    ]
    assert client.session.inbound == {}
    assert 2 not in client.session.outbound


def test_an_acknowledgement_of_what_was_not_sent_again_yet_is_the_servers_fault() -> None:
    client, peer = connected(connect=RESUME)
    client.publish("t", b"1", 1)
    client.publish("t", b"2", 1)
    peer.sent()
    client.receive_eof(0.0)
    machine, again = resumed(client.session, Connack(True, properties={p.RECEIVE_MAXIMUM: 1}))
    again.give(Puback(2))
    assert machine.closed
    assert set(client.session.outbound) == {1, 2}


@pytest.mark.conformance("MQTT-4.3.3-10")
def test_qos_2_is_delivered_once_over_two_connections() -> None:
    client, peer = connected(connect=RESUME)
    message = Publish("t", b"x", 2, packet_id=1)
    assert peer.give(message) == [message]
    client.receive_eof(0.0)
    _, again = resumed(client.session)
    assert again.give(Publish("t", b"x", 2, dup=True, packet_id=1)) == []
    assert again.sent() == [Pubrec(1)]
    assert again.give(Pubrel(1)) == []
    assert again.sent() == [Pubcomp(1)]
    assert client.session.inbound == {}


def test_qos_2_answered_while_the_connection_was_down() -> None:
    client, peer = connected(connect=RESUME, auto_ack=False)
    [message] = peer.give(Publish("t", b"x", 2, packet_id=1))
    client.receive_eof(0.0)
    assert client.ack(message)
    assert peer.sent() == []
    _, again = resumed(client.session, auto_ack=False)
    assert again.give(Publish("t", b"x", 2, dup=True, packet_id=1)) == []
    assert again.sent() == [Pubrec(1)]


def test_qos_2_not_answered_before_the_cut_is_answered_after_it() -> None:
    client, peer = connected(connect=RESUME, auto_ack=False)
    [message] = peer.give(Publish("t", b"x", 2, packet_id=1))
    client.receive_eof(0.0)
    machine, again = resumed(client.session, auto_ack=False)
    assert again.give(Publish("t", b"x", 2, dup=True, packet_id=1)) == []
    assert again.sent() == []
    assert machine.ack(message)
    assert again.sent() == [Pubrec(1)]


def test_an_answer_to_a_qos_1_message_of_an_earlier_connection_goes_nowhere() -> None:
    client, peer = connected(connect=RESUME, auto_ack=False)
    [old] = peer.give(Publish("t", b"old", 1, packet_id=1))
    client.receive_eof(0.0)
    assert not client.ack(old)
    machine, again = resumed(client.session, auto_ack=False)
    [new] = again.give(Publish("t", b"new", 1, packet_id=1))
    assert not machine.ack(old)  # the packet id is the same, the message is not
    assert again.sent() == []
    assert machine.ack(new)
    assert again.sent() == [Puback(1)]


class Server:
    """A server's session with one client, as short as the specification lets it be."""

    def __init__(self, receive_maximum: int) -> None:
        self.receive_maximum = receive_maximum
        self.taken: list[bytes] = []
        self.received: set[int] = set()  # QoS 2 packet ids not released
        self.sending: dict[int, tuple[Publish, bool]] = {}  # id -> message, released
        self.settled_ids = 0
        self.known = False
        self.peak = 0

    def open(self) -> None:
        self.decoder = Decoder(5, role="server")
        self.out = bytearray()
        self.accepted = False

    def publish(self, payload: bytes, qos: int) -> None:
        packet_id = next(n for n in range(1, 0xFFFF) if n not in self.sending)
        message = Publish("t", payload, qos, packet_id=packet_id)
        self.sending[packet_id] = (message, False)
        if self.accepted:
            self.write(message)

    def write(self, packet: Packet) -> None:
        self.out += encode(packet, 5)

    def take(self, data: bytes) -> None:
        for packet in self.decoder.receive_data(data):
            assert not isinstance(packet, MqttError), packet
            self.handle(packet)

    def handle(self, packet: Packet) -> None:
        if isinstance(packet, Connect):
            limit = {p.RECEIVE_MAXIMUM: self.receive_maximum}
            self.write(Connack(self.known, properties=limit))
            self.known = self.accepted = True
            for message, released in self.sending.values():
                again = Publish("t", message.payload, message.qos, False, True, message.packet_id)
                self.write(Pubrel(message.packet_id) if released else again)
        elif isinstance(packet, Publish):
            if packet.qos == 1 or packet.packet_id not in self.received:
                self.taken.append(packet.payload)
            if packet.qos == 2:
                self.received.add(packet.packet_id)
                self.peak = max(self.peak, len(self.received))
                self.write(Pubrec(packet.packet_id))
            else:
                self.write(Puback(packet.packet_id))
        elif isinstance(packet, Pubrel):
            self.received.discard(packet.packet_id)
            self.write(Pubcomp(packet.packet_id))
        elif isinstance(packet, Pubrec):
            self.sending[packet.packet_id] = (self.sending[packet.packet_id][0], True)
            self.write(Pubrel(packet.packet_id))
        elif isinstance(packet, (Puback, Pubcomp)):
            del self.sending[packet.packet_id]


class Line:
    """Client and server with a line between them that can be cut anywhere."""

    def __init__(self, receive_maximum: int) -> None:
        self.server = Server(receive_maximum)
        self.session = ClientSession("c")
        self.delivered: list[bytes] = []
        self.unanswered: list[Publish] = []
        self.settled: list[int] = []
        self.count = 0
        self.open()

    def open(self) -> None:
        self.client = ClientConnection(self.session, auto_ack=False)
        self.server.open()
        self.up = bytearray()
        self.client.connect(RESUME, 0.0)
        self.move(0, 0)

    def publish(self, qos: int) -> None:
        self.count += 1
        self.client.publish("t", b"%d:%d" % (qos, self.count), qos)

    def publish_back(self, qos: int) -> None:
        self.count += 1
        self.server.publish(b"%d:%d" % (qos, self.count), qos)

    def move(self, up: int, down: int) -> None:
        """Let so many bytes through each way."""
        self.up += self.client.data_to_send()
        self.server.take(bytes(self.up[:up]))
        del self.up[:up]
        self.client.receive_data(bytes(self.server.out[:down]), 0.0)
        del self.server.out[:down]
        for event in self.client.events():
            if isinstance(event, Publish):
                self.delivered.append(event.payload)
                self.unanswered.append(event)
            elif isinstance(event, Published):
                self.settled.append(event.packet_id)
        assert not self.client.closed

    def answer(self, which: int) -> None:
        if self.unanswered:
            self.client.ack(self.unanswered.pop(which % len(self.unanswered)))

    def cut(self) -> None:
        self.client.receive_eof(0.0)
        # A QoS 1 message not answered is the server's again.
        self.unanswered = [message for message in self.unanswered if message.qos == 2]
        self.open()

    def finish(self) -> None:
        """Let everything through until nothing moves any more."""
        for _ in range(100):
            while self.unanswered:
                self.answer(0)
            self.move(1 << 20, 1 << 20)


steps = st.lists(
    st.tuples(
        st.sampled_from(("publish", "publish_back", "move", "move", "answer", "cut")),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=40,
)


@pytest.mark.conformance("MQTT-4.3.2-3", "MQTT-4.3.3-10", "MQTT-4.6.0-1", "MQTT-4.6.0-2")
@settings(max_examples=300)
@given(steps, st.integers(1, 4))
def test_over_a_line_that_is_cut_qos_1_comes_at_least_once_and_qos_2_exactly_once(
    steps: list[tuple[str, int, int]], receive_maximum: int
) -> None:
    line = Line(receive_maximum)
    sent: list[bytes] = []
    sent_back: list[bytes] = []
    for step, a, b in steps:
        if step == "publish":
            line.publish(1 + a % 2)
            sent.append(b"%d:%d" % (1 + a % 2, line.count))
        elif step == "publish_back":
            line.publish_back(1 + a % 2)
            sent_back.append(b"%d:%d" % (1 + a % 2, line.count))
        elif step == "move":
            line.move(a, b)
        elif step == "answer":
            line.answer(a)
        else:
            line.cut()
    line.finish()
    assert line.session.outbound == {}
    assert line.session.inbound == {}
    assert line.server.sending == {}
    for wanted, got in ((sent, line.server.taken), (sent_back, line.delivered)):
        assert set(got) == set(wanted)
        exactly_once = [payload for payload in wanted if payload.startswith(b"2")]
        assert [payload for payload in got if payload.startswith(b"2")] == exactly_once
        first_seen = list(dict.fromkeys(got))
        qos_1 = [payload for payload in first_seen if payload.startswith(b"1")]
        assert qos_1 == [payload for payload in wanted if payload.startswith(b"1")]
    assert line.server.peak <= receive_maximum
