"""A router with a bus: what one member of a shared subscription gives up goes by the log again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqtt.broker.bus import BusRouter
from mqtt.delivery import Delivery
from mqtt.packets import Subscription
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy

FILTER = "$share/g/a/#"


class Log:
    """A bus that puts messages into a log; a test says when it has them."""

    def __init__(self) -> None:
        self.has_members = True
        self.asked: list[bool] = []  # of each message, whether members that wait will do
        self.done: list[Callable[[], object]] = []

    def reach(self, topic_name: str) -> object | None:
        """Nobody is elsewhere."""
        return None

    def subscribed(self, session: Session, topic_filter: str) -> None:
        """Nobody else is told."""

    def reroute(
        self, message: Message, group: object, done: Callable[[], object], *, waiting: bool
    ) -> bool:
        """Take a message."""
        self.asked.append(waiting)
        if self.has_members:
            self.done.append(done)
        return self.has_members


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def router(log: Log) -> BusRouter:
    made = BusRouter(SessionPolicy())
    bus: Any = log
    recorder: Any = None
    made.use(bus, recorder)
    return made


def waiting(router: BusRouter, told: list[bool] | None = None) -> tuple[Session, Delivery]:
    """Return a session that is away, and what waits there with packet identifier 1."""
    session = Session("c", router.policy)
    router.subscribe(session, Subscription(FILTER, 1))
    message = Message(b"a/1", b"x", 1)
    if told is not None:
        message.tracker = told.append
    session.offer(message, 1, False, b"", 0.0, router.group(FILTER))
    assert session.outbound is not None
    return session, session.outbound[1]


def test_what_may_wait_stays_until_the_log_has_it(router: BusRouter, log: Log) -> None:
    session, _ = waiting(router)
    router.reassign(session, 0.0)
    assert log.asked == [False]
    assert list(session.outbound or ()) == [1]
    log.done[0]()
    assert not session.outbound


@pytest.mark.parametrize("to_absent", [False, True])
def test_what_came_by_the_log_is_done_with_when_it_is_there_again(
    router: BusRouter, log: Log, to_absent: bool
) -> None:
    told: list[bool] = []
    session, delivery = waiting(router, told)
    assert router.hand_over(session, 1, delivery, 0.0, to_absent=to_absent)
    assert log.asked == [True]
    assert not session.outbound
    assert told == []
    log.done[0]()
    assert told == [True]


class Store:
    """Notes what a session has it forget."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def delivery_saved(self, session: Session, packet_id: int, delivery: Delivery) -> None:
        """Keep it."""

    def delivery_ended(
        self, session: Session, packet_id: int, delivery: Delivery, *, taken: bool = False
    ) -> None:
        """Forget it."""
        self.ended.append(packet_id)


class Line:
    """A connection that notes what it is given to send."""

    version = 5
    writable = True
    plain = True
    receive_maximum = 10
    bytes_sent = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def publish_frame(self, message: Message, *_: object) -> bytes:
        """Return what tells messages apart."""
        return message.topic

    def send(self, data: bytes) -> None:
        """Note it."""
        self.sent.append(data)


def test_a_client_that_comes_and_goes_again_has_nothing_handed_over_twice(
    router: BusRouter, log: Log
) -> None:
    session, _ = waiting(router)
    router.reassign(session, 0.0)
    line: Any = Line()
    session.attach(line)
    session.send_waiting(0.0)
    assert line.sent == []  # another member has it before long: with QoS 2 two would
    session.detach()
    router.reassign(session, 0.0)
    assert len(log.done) == 1
    log.done[0]()
    assert not session.outbound


def test_what_is_handed_over_ends_no_other_message_of_its_packet_identifier(
    router: BusRouter, log: Log
) -> None:
    session, _ = waiting(router)
    router.reassign(session, 0.0)
    session.acknowledged(1)  # a client's late word
    session.next_packet_id = 1
    session.offer(Message(b"b", b"x", 1), 1, False, b"", 0.0)
    log.done[0]()
    assert session.outbound is not None
    assert session.outbound[1].message.topic == b"b"


def test_what_may_not_stay_is_never_sent_and_stored_until_the_log_has_it(
    router: BusRouter, log: Log
) -> None:
    """If the power goes before the log has it, the store has it still: it is handed over again."""
    session, delivery = waiting(router)
    store: Any = Store()
    session.recorder = store
    assert router.hand_over(session, 1, delivery, 0.0, to_absent=True)
    assert log.asked == [True]
    session.next_packet_id = 1
    session.offer(Message(b"b", b"x", 1), 1, False, b"", 0.0)
    line: Any = Line()
    session.attach(line)
    session.send_waiting(0.0)
    assert line.sent == [b"b"]
    router.reassign(session, 0.0)
    assert len(log.done) == 1  # it is on its way
    assert store.ended == []
    log.done[0]()
    assert (store.ended, list(session.outbound or ())) == ([1], [2])


@pytest.mark.parametrize("tracked", [False, True])
def test_what_nobody_else_takes_is_left_to_the_caller(
    router: BusRouter, log: Log, tracked: bool
) -> None:
    told: list[bool] | None = [] if tracked else None
    session, delivery = waiting(router, told)
    log.has_members = False
    assert not router.hand_over(session, 1, delivery, 0.0, to_absent=True)
    assert list(session.outbound or ()) == [1]
    session.drop(1, delivery, "not_authorized")
    assert told == ([False] if tracked else None)
