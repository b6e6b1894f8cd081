"""Who of a shared subscription gets a message, and how an identifier is sent."""

from __future__ import annotations

import pytest

from mqtt.packets import Subscription
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.session_subscriptions import ShareGroup, Subscribed, identifier_property
from tests.kit.sessions import FakeLink, connected, message, offer


def group_of(*sessions: Session) -> ShareGroup:
    group = ShareGroup("$share/g/t")
    for session in sessions:
        group.add(Subscribed(session, Subscription("$share/g/t", 2)))
    return group


def chosen(group: ShareGroup, besides: Session | None = None) -> str | None:
    entry = group.choose(1, besides=besides)
    return entry.session.client_id if entry else None


def test_a_shared_subscription_prefers_members_with_room_then_connected_ones() -> None:
    policy = SessionPolicy()
    a, b, c = (Session(name, policy) for name in "abc")
    group = group_of(a, b, c)
    assert chosen(group) in "abc"  # somebody will come back
    link = FakeLink()
    a.attach(link)
    assert {chosen(group) for _ in range(6)} == {"a"}
    b.attach(FakeLink())
    assert sorted(str(chosen(group)) for _ in range(6)) == ["a"] * 3 + ["b"] * 3
    link.writable = False
    assert {chosen(group) for _ in range(6)} == {"b"}
    b.detach()
    assert {chosen(group) for _ in range(6)} == {"a"}
    assert chosen(group, besides=a) in ("b", "c")
    assert chosen(ShareGroup("$share/g/t")) is None


@pytest.mark.conformance("MQTT-4.8.2-4", "MQTT-4.8.2-5")
def test_qos_2_that_was_sent_is_not_for_others() -> None:
    session, _ = connected(receive_maximum=2)
    group = group_of(session)
    for text, qos in (("a", 1), ("b", 2), ("c", 2)):
        session.offer(message(text, qos), qos, False, b"", 0.0, group)
    offer(session, "mine")
    session.detach()
    assert [d.message.payload for _, d in session.undelivered_shared()] == [b"a", b"c"]


def test_an_identifier_as_a_property() -> None:
    assert identifier_property(0) == b""
    assert identifier_property(1) == b"\x0b\x01"
    assert identifier_property(268_435_455) == b"\x0b\xff\xff\xff\x7f"
