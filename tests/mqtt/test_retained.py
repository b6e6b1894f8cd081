"""Retained messages on their way to one session: many in one write, and never what is no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.broker.retained import RetainedFeed
from mqtt.broker.router import Router
from mqtt.packets import Publish, Subscription
from mqtt.properties import RECEIVE_MAXIMUM, TOPIC_ALIAS_MAXIMUM, Properties
from mqtt.server_messages import Message, publish_parts, publish_pieces
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.session_subscriptions import identifier_property
from tests.kit.server_machines import Machine

NOW_S = 100.0


class Reader:
    """A session on a connection, and what it was sent."""

    def __init__(self, version: int = 5, *, policy: SessionPolicy | None = None, **limits: int):
        names = {"receive_maximum": RECEIVE_MAXIMUM, "aliases": TOPIC_ALIAS_MAXIMUM}
        properties: Properties = {names[key]: value for key, value in limits.items()}
        self.machine = Machine().connect(version, properties)
        session = self.machine.connection.session
        assert session is not None
        self.session: Session = session
        if policy is not None:
            session.policy = policy

    def take(self) -> list[Publish]:
        packets = [packet for packet in self.machine.answers() if isinstance(packet, Publish)]
        assert all(packet.retain for packet in packets)
        return packets


def router_with(*messages: tuple[str, int, float]) -> Router:
    router = Router(SessionPolicy())
    for name, qos, expires_s in messages:
        payload = f"of {name}".encode()
        assert router.retain(Message(name.encode(), payload, qos, True, b"", expires_s), name)
    return router


def feed_of(router: Router, reader: Reader, qos: int, identifier: int = 0) -> RetainedFeed:
    subscription = Subscription("#", qos)
    return RetainedFeed(router, reader.session, subscription, identifier_property(identifier))


def drain(feed: RetainedFeed, limit: int = 100) -> int:
    """Send all; return in how many goes."""
    goes = 0
    while not feed.is_done:
        assert feed.send(limit, NOW_S) > 0
        goes += 1
    return goes


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_many_go_in_one_write_each_with_the_lower_qos(version: int, qos: int) -> None:
    router = router_with(*((f"a/{index}", index % 3, 0.0) for index in range(60)))
    reader = Reader(version)
    assert drain(feed_of(router, reader, qos, 7 if version == 5 else 0)) == 1
    assert len(reader.machine.sent) == 1
    packets = reader.take()
    assert {(p.topic_name, p.payload, p.qos) for p in packets} == {
        (f"a/{index}", f"of a/{index}".encode(), min(index % 3, qos)) for index in range(60)
    }
    ids = [p.packet_id for p in packets if p.qos]
    assert len(set(ids)) == len(ids) == len(reader.session.outbound or {})
    assert all(bool(p.properties) == (version == 5) for p in packets)
    for packet in packets:
        if packet.qos == 1:
            assert reader.session.acknowledged(packet.packet_id, 1)
        elif packet.qos:
            assert reader.session.received(packet.packet_id)
            assert reader.session.completed(packet.packet_id)
    assert (reader.session.window_used, reader.session.queued_bytes) == (0, 0)
    assert reader.session.policy.queued_bytes == 0


@pytest.mark.conformance("MQTT-3.3.4-9")
def test_the_window_holds_and_the_rest_waits_in_order() -> None:
    router = router_with(*((f"a/{index}", 1, 0.0) for index in range(10)))
    reader = Reader(receive_maximum=3)
    feed = feed_of(router, reader, 1)
    assert feed.send(10, NOW_S) == 3
    assert feed.send(4, NOW_S) == 4  # queued: they go as the window opens
    got = []
    while packets := reader.take():
        got += [packet.topic_name for packet in packets]
        assert reader.session.window_used <= 3
        for packet in packets:
            reader.session.acknowledged(packet.packet_id, 1)
        reader.session.send_waiting(NOW_S)
    assert len(got) == len(set(got)) == 7
    assert drain(feed) == 1
    assert {*got, *(packet.topic_name for packet in reader.take())} == {
        f"a/{index}" for index in range(10)
    }


def test_what_was_replaced_or_forgotten_meanwhile_is_not_sent() -> None:
    router = router_with(*((f"a/{index}", 1, 0.0) for index in range(9)))
    reader = Reader()
    feed = feed_of(router, reader, 1)
    for index in (0, 4, 5):
        router.retain(Message(b"a/%d" % index, b"", 1, True), f"a/{index}")
    router.retain(Message(b"a/8", b"new", 1, True), "a/8")
    drain(feed)
    assert sorted(p.topic_name for p in reader.take()) == ["a/1", "a/2", "a/3", "a/6", "a/7"]


@pytest.mark.conformance("MQTT-3.3.2-5", "MQTT-3.3.2-6")
def test_what_expires_says_when_and_what_has_expired_goes() -> None:
    router = router_with(("a", 0, 0.0), ("b", 1, NOW_S + 30), ("c", 1, NOW_S - 1), ("d", 1, 0.0))
    reader = Reader()
    drain(feed_of(router, reader, 1))
    assert {p.topic_name: p.properties.get(2) for p in reader.take()} == {
        "a": None, "b": 30, "d": None
    }  # fmt: skip
    assert set(router.retained) == {"a", "b", "d"}


def test_a_client_with_aliases_gets_the_same_one_by_one() -> None:
    router = router_with(*((f"a/{index}", 1, 0.0) for index in range(5)))
    reader = Reader(aliases=2)
    drain(feed_of(router, reader, 1))
    packets = reader.take()
    assert len(packets) == 5
    assert sum(35 in packet.properties for packet in packets) == 2


def test_what_the_client_does_not_read_waits() -> None:
    router = router_with(*((f"a/{index}", 0, 0.0) for index in range(5)))
    reader = Reader()
    feed = feed_of(router, reader, 0)
    reader.machine.connection.writable = False
    assert feed.send(5, NOW_S) == 0
    reader.machine.connection.writable = True
    assert feed.send(5, NOW_S) == 5
    assert len(reader.take()) == 5


def test_large_messages_stop_at_so_many_bytes() -> None:
    router = Router(SessionPolicy())
    for index in range(20):
        router.retain(Message(b"a/%d" % index, bytes(30_000), 0, True), f"a/{index}")
    reader = Reader()
    assert drain(feed_of(router, reader, 0)) == 7  # three at a time
    assert len(reader.take()) == 20


def test_a_queue_that_is_half_full_is_filled_with_care() -> None:
    policy = SessionPolicy(queue_messages_max=8)
    router = router_with(*((f"a/{index}", 1, 0.0) for index in range(12)))
    reader = Reader(policy=policy)
    feed = feed_of(router, reader, 1)
    assert feed.send(20, NOW_S) == 4  # half of the queue at once
    assert feed.send(4, NOW_S) == 4
    assert reader.session in policy.crowded
    assert policy.drops == {}
    assert len(reader.take()) == 8


@given(
    topic=st.binary(min_size=1, max_size=300),
    payload=st.integers(0, 40_000),
    properties=st.binary(max_size=200),
    extra=st.sampled_from([b"", b"\x0b\x05"]),
    qos=st.integers(0, 2),
    version=st.sampled_from([4, 5]),
    packet_id=st.integers(1, 0xFFFF),
)
def test_pieces_are_the_packet_that_is_sent_one_by_one(
    topic: bytes,
    payload: int,
    properties: bytes,
    extra: bytes,
    qos: int,
    version: int,
    packet_id: int,
) -> None:
    message = Message(topic, bytes(payload), qos, True, properties)
    first_byte = 0x31 | qos << 1
    block = extra + properties if version == 5 else b""
    head, tail = publish_parts(first_byte, version, topic, block, message.payload)
    whole = head + packet_id.to_bytes(2, "big") + tail if qos else head
    assert b"".join(publish_pieces(first_byte, version, message, packet_id, extra)) == whole
