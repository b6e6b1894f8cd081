"""What is known of the QoS 2 identifiers a client uses."""

from __future__ import annotations

import pytest

from mqtt.errors import ProtocolError
from mqtt.inbound_qos_2 import (
    AGAIN,
    ASKED,
    NEW,
    PENDING,
    SETTLED,
    note_qos_2,
    publish_check,
)
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy


def test_an_identifier_is_new_until_it_is_free_again() -> None:
    session = Session("c", SessionPolicy())
    assert note_qos_2(session, 7, 10) == NEW
    assert session.inbound == {7: PENDING}
    for state in (PENDING, ASKED, SETTLED):
        session.inbound[7] = state
        assert note_qos_2(session, 7, 10) == AGAIN
        assert session.inbound == {7: state}
    del session.inbound[7]
    assert note_qos_2(session, 7, 10) == NEW


def test_of_one_that_was_captured_before_a_crash_the_check_is_told_once() -> None:
    session = Session("c", SessionPolicy())
    check = publish_check(b"t", b"x")
    session.inbound = {7: ~check}
    assert ~note_qos_2(session, 7, 10) == check
    assert note_qos_2(session, 7, 10) == AGAIN


def test_identifiers_in_use_are_bounded_and_those_in_use_stay() -> None:
    session = Session("c", SessionPolicy())
    for packet_id in (1, 2):
        note_qos_2(session, packet_id, 2)
    with pytest.raises(ProtocolError) as caught:
        note_qos_2(session, 3, 2)
    assert caught.value.reason_code == 0x93
    assert note_qos_2(session, 2, 2) == AGAIN


def test_a_check_tells_topics_and_payloads_apart() -> None:
    checks = {publish_check(topic, payload) for topic in (b"t", b"u") for payload in (b"x", b"y")}
    assert len(checks) == 4
