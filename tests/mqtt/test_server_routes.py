"""Routes: validated once, found anew when subscriptions change, refused per client."""

from __future__ import annotations

import pytest

from mqtt.broker.router import Router
from mqtt.broker.seams import PENDING
from mqtt.errors import MalformedPacket, ProtocolError
from mqtt.packets import Subscription
from mqtt.reason_codes import ReasonCode
from mqtt.server_messages import Message, PropertyBlocks
from mqtt.server_routes import NOT_CAPTURED, ClientRoutes, RouteTable, VerdictPending
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.topic_tables import FilterTable
from tests.kit.server_machines import lane_of


def table(**options: int) -> RouteTable:
    return RouteTable(FilterTable(), lane_of, lambda lane: lane == 0, **options)


def test_a_route_says_all_there_is_to_say_of_a_topic() -> None:
    routes = table()
    live, urgent, other = (routes[t] for t in (b"devices/d", b"urgent/d", b"other"))
    assert (live.lane, live.exclusive) == (1, False)
    assert (urgent.lane, urgent.exclusive) == (0, True)
    assert (other.lane, other.name) == (NOT_CAPTURED, "other")
    assert routes[b"devices/d"] is live


@pytest.mark.parametrize(
    "topic",
    [
        b"$SYS/x",
        b"$share/g/t",
        b"tidegate/v1/down",
        b"tidegate/v1/down/g",
        b"tidegate/v1/outcome/d",
    ],
)
def test_the_servers_own_names_cannot_be_published_to(topic: bytes) -> None:
    assert table()[topic].verdict == ReasonCode.NOT_AUTHORIZED


@pytest.mark.conformance("MQTT-3.3.2-2", "MQTT-4.7.3-1", "MQTT-1.5.4-1", "MQTT-1.5.4-2")
def test_invalid_names_make_no_route() -> None:
    routes = table(levels_max=3)
    for topic in (b"a/+", b"#", b"", b"a/b/c/d"):
        with pytest.raises(ProtocolError) as caught:
            routes[topic]
        assert caught.value.reason_code == ReasonCode.TOPIC_NAME_INVALID
    for topic in (b"\xff", b"a\0b", b"\xed\xa0\x80"):
        with pytest.raises(MalformedPacket):
            routes[topic]
    assert len(routes) == 0


def test_receivers_are_found_anew_only_where_they_may_have_changed() -> None:
    policy = SessionPolicy()
    router = Router(policy)
    a, b = Session("a", policy), Session("b", policy)
    one, two = router.routes[b"t/1"], router.routes[b"t/2"]
    assert not router.receivers(one)
    assert not router.receivers(two)
    router.subscribe(a, Subscription("t/1"))
    assert two.generation == router.routes.generation  # not its business
    assert router.receivers(one)
    assert not router.receivers(two)
    router.subscribe(b, Subscription("t/+"))
    assert router.receivers(two)
    assert [target.session for target in one.targets] == [a]  # as it was
    assert router.receivers(one)
    assert {target.session for target in one.targets} == {a, b}
    router.unsubscribe(b, "t/+")
    router.forget(a)
    assert not router.receivers(one)
    assert not router.receivers(two)
    assert len(router.filters) == 0


def test_what_is_for_one_client_alone_matches_no_wildcard() -> None:
    policy = SessionPolicy()
    router = Router(policy)
    filters = ("#", "tidegate/#", "tidegate/v1/down/+", "tidegate/v1/down/g")
    sessions = {each: Session(each, policy) for each in filters}
    for each, session in sessions.items():
        router.subscribe(session, Subscription(each, 1))
    route = router.routes[b"tidegate/v1/down/g"]
    assert router.receivers(route)
    assert [target.session for target in route.targets] == [sessions["tidegate/v1/down/g"]]


def test_a_route_that_was_dropped_for_room_still_learns_of_subscribers() -> None:
    policy = SessionPolicy()
    router = Router(policy)
    router.routes._size_max = 2
    held = router.routes[b"t/0"]
    assert not router.receivers(held)
    for index in range(1, 5):
        router.routes[b"t/%d" % index]
    assert len(router.routes) <= 2
    assert not router.receivers(held)
    router.subscribe(Session("a", policy), Subscription("t/0"))
    assert router.receivers(held)


def test_routes_in_use_outlast_those_used_once() -> None:
    routes = table(size_max=100)
    often = routes[b"often"]
    for index in range(1000):
        routes[b"once/%d" % index]
        if index % 40 == 0:
            assert routes[b"often"] is often
        assert len(routes) + len(routes._older) <= 100
    assert routes[b"once/0"] is not often


def test_long_topics_are_bounded_by_their_bytes() -> None:
    routes = table()
    for index in range(2000):
        routes[b"%d/" % index + b"x" * 60_000]
    assert sum(map(len, [*routes, *routes._older])) <= 16 << 20


def test_a_route_that_two_hold_and_one_was_let_go_learns_of_subscribers() -> None:
    policy = SessionPolicy()
    router = Router(policy)
    router.routes._size_max = 2
    held = router.routes[b"t/0"]
    for index in range(1, 5):
        router.routes[b"t/%d" % index]
    other = router.routes[b"t/0"]
    assert other is not held
    session = Session("a", policy)
    for route in (held, other):
        assert not router.receivers(route)
    router.subscribe(session, Subscription("t/0"))
    for route in (held, other):
        assert router.receivers(route)
    router.unsubscribe(session, "t/0")
    for route in (held, other):
        assert not router.receivers(route)


def test_a_clients_refusal_never_becomes_everybodys_route() -> None:
    shared = table(size_max=2)
    refused = ClientRoutes(shared, lambda _: int(ReasonCode.NOT_AUTHORIZED))[b"devices/d"]
    for index in range(5):
        shared[b"t/%d" % index]
    assert b"devices/d" not in shared
    shared.refresh(refused)
    assert shared[b"devices/d"].verdict == 0


def test_a_client_without_leave_gets_a_refusing_route_asked_for_once() -> None:
    asked: list[str] = []

    def verdict(name: str) -> int:
        asked.append(name)
        return 0 if name == "mine" else int(ReasonCode.NOT_AUTHORIZED)

    shared = table()
    routes = ClientRoutes(shared, verdict, size_max=2)
    for _ in range(3):
        assert routes[b"mine"] is shared[b"mine"]
        assert routes[b"devices/theirs"].verdict == ReasonCode.NOT_AUTHORIZED
        assert routes[b"devices/theirs"].lane == NOT_CAPTURED
    assert asked == ["mine", "devices/theirs"]
    assert shared[b"devices/theirs"].verdict == 0
    assert routes[b"$SYS/x"].verdict == ReasonCode.NOT_AUTHORIZED
    assert asked == ["mine", "devices/theirs"]
    assert len(routes) <= 2


def test_the_route_of_a_topics_first_retained_message_is_not_kept() -> None:
    policy = SessionPolicy()
    router = Router(policy)
    session = Session("c", policy)
    router.subscribe(session, Subscription("t/+", 1))
    routes = router.routes
    route = routes.for_retained(b"t/1")
    assert len(routes) == 0
    assert router.receivers(route)
    assert len(routes) == 0
    router.unsubscribe(session, "t/+")
    assert not router.receivers(route)  # whoever still holds it: it is found anew each time

    assert router.retain(Message(b"t/1", b"x", retain=True), route.name)
    again = routes.for_retained(b"t/1")
    assert routes[b"t/1"] is routes.for_retained(b"t/1") is again

    live = table()
    assert live.for_retained(b"devices/d") is live[b"devices/d"]  # captured: more will come
    with pytest.raises(ProtocolError):
        live.for_retained(b"a/+")


def test_a_clients_first_retained_message_of_a_topic_needs_leave() -> None:
    routes = table()
    asked: list[str] = []

    def verdict(topic_name: str) -> int:
        asked.append(topic_name)
        return 0x87 if topic_name == "no" else PENDING if topic_name == "later" else 0

    mine = ClientRoutes(routes, verdict)
    assert mine.for_retained(b"yes").verdict == 0
    assert mine.for_retained(b"no").verdict == 0x87
    with pytest.raises(VerdictPending):
        mine.for_retained(b"later")
    assert mine.for_retained(b"$SYS/x").verdict == ReasonCode.NOT_AUTHORIZED
    assert asked == ["yes", "no", "later"]
    assert len(mine) == len(routes) == 0
    kept = mine.for_retained(b"devices/d")
    assert mine[b"devices/d"] is routes[b"devices/d"] is kept
    assert mine.for_retained(b"devices/d") is kept
    assert asked == ["yes", "no", "later", "devices/d"]


def test_property_blocks_are_decoded_once_and_bounded() -> None:
    blocks = PropertyBlocks()
    block = b"\x01\x01" + b"\x02\x00\x00\x00\x0a" + b"\x23\x00\x05" + b"\x03\x00\x01a"
    known = blocks[block]
    assert blocks[block] is known
    assert (known.alias, known.expiry_s, known.utf8) == (5, 10, True)
    assert known.forward == b"\x01\x01" + b"\x03\x00\x01a"
    assert known.received == b"\x01\x01" + b"\x02\x00\x00\x00\x0a" + b"\x03\x00\x01a"
    for index in range(2000):
        blocks[b"\x09\x00\x02" + index.to_bytes(2, "big")]
    blocks[b"\x09\x03\xe8" + bytes(1000)]
    assert len(blocks) <= 256
    with pytest.raises(ProtocolError):
        blocks[b"\x0b\x01"]  # a subscription identifier
