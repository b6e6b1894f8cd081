"""A session by itself: what is sent, queued, sent again, dropped, and what the store is told."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mqtt.delivery import Delivery
from mqtt.frames import parse_publishes, split
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from tests.kit.sessions import FakeLink, connected, message, offer


class Notes:
    """A recorder that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int]] = []

    def delivery_saved(self, session: Session, packet_id: int, delivery: Delivery) -> None:
        self.notes.append(("saved", packet_id))

    def delivery_released(self, session: Session, packet_id: int) -> None:
        self.notes.append(("released", packet_id))

    def delivery_ended(
        self, session: Session, packet_id: int, delivery: Delivery, *, taken: bool = False
    ) -> None:
        self.notes.append(("ended", packet_id))


@pytest.mark.conformance("MQTT-2.2.1-4", "MQTT-3.3.4-9")
def test_a_window_lets_so_many_out_and_each_acknowledgement_one_more() -> None:
    session, link = connected(receive_maximum=2)
    assert offer(session, "a", "b", "c", "d") == [True] * 4
    assert link.take() == [("publish", 1, b"a", False), ("publish", 2, b"b", False)]
    assert session.acknowledged(1, 1)
    session.send_waiting(0.0)
    assert link.take() == [("publish", 3, b"c", False)]
    assert not session.acknowledged(1, 1)
    assert not session.acknowledged(2, 2)  # that is no QoS 2 exchange


def test_packet_ids_wrap_and_skip_those_in_use() -> None:
    session, link = connected()
    session.next_packet_id = 0xFFFF
    offer(session, "a", "b")
    session.next_packet_id = 0xFFFF
    offer(session, "c")
    assert [packet_id for _, packet_id, _, _ in link.take()] == [0xFFFF, 1, 2]


def test_qos_0_needs_a_client_that_is_there_and_reads() -> None:
    policy = SessionPolicy()
    session, link = connected(policy)
    assert offer(session, "a", qos=0) == [True]
    link.writable = False
    assert offer(session, "b", qos=0) == [False]
    session.detach()
    assert offer(session, "c", qos=0) == [False]
    assert policy.drops == {"slow_qos0": 1, "offline_qos0": 1}
    assert policy.sent == [1, 0, 0]


def test_qos_1_waits_while_the_client_does_not_read() -> None:
    session, link = connected()
    link.writable = False
    offer(session, "a", "b")
    assert link.take() == []
    link.writable = True
    offer(session, "c")  # behind what waits
    assert link.take() == []
    session.send_waiting(0.0)
    assert [payload for _, _, payload, _ in link.take()] == [b"a", b"b", b"c"]


@pytest.mark.conformance("MQTT-4.4.0-1", "MQTT-4.6.0-1", "MQTT-4.3.3-5", "MQTT-4.3.3-6")
def test_on_a_new_connection_all_comes_again_in_order() -> None:
    session, link = connected()
    offer(session, "a")
    offer(session, "b", "c", qos=2)
    assert session.received(2)
    assert session.received(2)  # PUBREC twice is answered twice
    assert not session.received(1)
    assert not session.received(9)
    session.detach()
    offer(session, "d")
    link = FakeLink(receive_maximum=2)
    session.attach(link)
    session.send_waiting(0.0)
    assert link.take() == [
        ("publish", 1, b"a", True),
        ("pubrel", 2, b"", False),
        ("publish", 3, b"c", True),
    ]
    assert session.acknowledged(1, 1)
    session.send_waiting(0.0)
    assert link.take() == [("publish", 4, b"d", False)]


def test_limits_by_count_and_bytes_drop_the_newest() -> None:
    policy = SessionPolicy(queue_messages_max=2)
    session = Session("c", policy)
    assert offer(session, "a", "b", "c") == [True, True, False]
    small = Session("d", SessionPolicy(queue_bytes_max=10))
    assert offer(small, "12345", "1234567", "1") == [True, False, True]
    together = SessionPolicy(queues_bytes_max=10)
    one, other = Session("e", together), Session("f", together)
    offer(one, "1234567")
    offer(other, "1")
    assert offer(other, "1234") == [False]
    assert together.queued_bytes == one.queued_bytes + other.queued_bytes == 10
    assert policy.drops == together.drops == {"queue_full": 1}


def test_what_has_expired_or_is_too_large_makes_room_at_once() -> None:
    policy = SessionPolicy()
    session = Session("c", policy)
    notes = Notes()
    session.recorder = notes
    session.offer(message("old", expires_s=5.0), 1, False, b"", 0.0)
    session.offer(message("x" * 100), 1, False, b"", 0.0)
    session.offer(message("fine"), 1, False, b"", 0.0)
    link = FakeLink(limit=50)
    session.attach(link)
    session.send_waiting(6.0)
    assert [payload for _, _, payload, _ in link.take()] == [b"fine"]
    assert policy.drops == {"expired": 1, "too_large": 1}
    assert notes.notes[-2:] == [("ended", 1), ("ended", 2)]
    assert session.queued_bytes == message("fine").size
    assert session.window_used == 1


def test_an_expired_message_that_was_sent_before_is_still_completed() -> None:
    session, link = connected()
    session.offer(message("a", expires_s=5.0), 1, False, b"", 0.0)
    session.detach()
    session.attach(link)
    link.take()
    session.send_waiting(100.0)
    assert link.take() == [("publish", 1, b"a", True)]


def test_a_stored_sessions_qos_2_is_held_until_the_store_has_it() -> None:
    session, link = connected()
    session.recorder = Notes()
    offer(session, "a", qos=2)
    offer(session, "b")
    assert link.take() == []  # order holds: what is behind waits too
    session.unhold([1], 0.0)
    assert [payload for _, _, payload, _ in link.take()] == [b"a", b"b"]


def test_ending_forgets_everything() -> None:
    policy = SessionPolicy()
    session, _ = connected(policy)
    notes = Notes()
    session.recorder = notes
    offer(session, "a", "b")
    session.detach()
    session.discard_queue()
    assert notes.notes == [("saved", 1), ("saved", 2), ("ended", 1), ("ended", 2)]
    assert (policy.queued_bytes, session.queued_bytes, session.window_used) == (0, 0, 0)


# -- any history ------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """A client that comes and goes gets each QoS 1 message at least, each QoS 2 message once."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = SessionPolicy(inflight_max=3)
        self.session = Session("c", self.policy)
        self.link: FakeLink | None = None
        self.offered: list[tuple[int, bytes]] = []
        self.delivered: list[tuple[int, bytes]] = []
        self.open_ids: set[int] = set()  # QoS 2 received, PUBREL awaited
        self.inbox: list[tuple[str, int, bytes, int]] = []

    def _read(self) -> None:
        assert self.link is not None
        for data in self.link.sent:
            first, body, _ = split(data) or (0, 0, 0)
            if first >> 4 == 3:
                ((first, _, packet_id, _, payload),) = parse_publishes(data, 4)
                self.inbox.append(("publish", packet_id, payload, first >> 1 & 3))
            else:
                self.inbox.append(("pubrel", int.from_bytes(data[body:], "big"), b"", 2))
        self.link.sent.clear()

    @precondition(lambda self: self.link is None)
    @rule()
    def connect(self) -> None:
        self.link = FakeLink(receive_maximum=2)
        self.session.attach(self.link)
        self.session.send_waiting(0.0)
        self._read()

    @precondition(lambda self: self.link is not None)
    @rule()
    def vanish(self) -> None:
        self.link = None
        self.inbox.clear()  # sent and never received
        self.session.detach()

    @rule(qos=st.sampled_from([1, 2]))
    def publish(self, qos: int) -> None:
        payload = b"%d" % len(self.offered)
        self.offered.append((qos, payload))
        assert self.session.offer(Message(b"t", payload, qos), qos, False, b"", 0.0)
        if self.link is not None:
            self._read()

    @precondition(lambda self: self.inbox)
    @rule(answer=st.booleans())
    def receive(self, answer: bool) -> None:
        assert self.link is not None
        kind, packet_id, payload, qos = self.inbox.pop(0)
        if kind == "pubrel":
            self.open_ids.discard(packet_id)
            if answer:
                self.session.acknowledged(packet_id, 2)
        elif qos == 1:
            self.delivered.append((1, payload))
            if answer:
                self.session.acknowledged(packet_id, 1)
        else:
            if packet_id not in self.open_ids:
                self.open_ids.add(packet_id)
                self.delivered.append((2, payload))
            if answer and self.session.received(packet_id):
                self.link.send(b"\x62\x02" + packet_id.to_bytes(2, "big"))
        self.session.send_waiting(0.0)
        self._read()

    @invariant()
    def the_window_holds(self) -> None:
        counted = sum(d.counted for d in (self.session.outbound or {}).values())
        assert counted == self.session.window_used <= 2

    @invariant()
    def the_bytes_add_up(self) -> None:
        size = sum(d.message.size for d in (self.session.outbound or {}).values())
        assert size == self.session.queued_bytes == self.policy.queued_bytes

    def teardown(self) -> None:
        if self.link is not None:
            self.vanish()
        self.connect()
        while self.inbox:
            self.receive(True)
        assert not self.session.outbound
        twice = [item for item in self.delivered if item[0] == 2]
        assert len(twice) == len(set(twice))
        assert set(self.delivered) == set(self.offered)
        for qos in (1, 2):
            first = list(dict.fromkeys(p for q, p in self.delivered if q == qos))
            assert first == [p for q, p in self.offered if q == qos]


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.conformance("MQTT-3.3.4-1")
def test_acknowledgements_that_come_together_end_what_each_would_alone() -> None:
    policy = SessionPolicy()
    session, link = connected(policy)
    notes = session.recorder = Notes()
    offer(session, *"abcde")
    offer(session, "two", qos=2)
    session.unhold([6], 0.0)
    assert len(link.take()) == 6
    notes.notes.clear()
    assert session.acknowledged_together([1, 2, 77, 2, 4]) == 0
    assert list(session.outbound or ()) == [3, 5, 6]
    assert notes.notes == [("ended", 1), ("ended", 2), ("ended", 4)]
    assert (session.window_used, session.queued_bytes) == (3, 8)
    assert session.acknowledged_together([5, 6, 3]) == 6  # a PUBACK for QoS 2
    assert list(session.outbound or ()) == [3, 6]
    assert (session.window_used, policy.queued_bytes) == (2, 6)


def test_an_acknowledgement_of_what_was_never_sent_ends_nothing() -> None:
    session, link = connected()
    link.writable = False
    told: list[bool] = []
    tracked = message("x")
    tracked.tracker = told.append
    session.offer(tracked, 1, False, b"", 0.0)
    assert session.acknowledged_together([1]) == 0
    assert told == []
    link.writable = True
    session.send_waiting(0.0)
    assert session.acknowledged_together([1]) == 0
    assert told == [True]
    assert Session("fresh", SessionPolicy()).acknowledged_together([1]) == 0
