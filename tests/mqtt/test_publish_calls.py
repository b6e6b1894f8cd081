"""PUBLISH packets that come together are the same taken apart in C and by the server's pass."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt import publish_calls, server_publishes
from mqtt.broker.seams import PENDING, PublishRun
from mqtt.errors import MqttError
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import Acknowledged, Arrivals, Event, ServerLimits
from mqtt.server_messages import Message
from mqtt.server_routes import ClientRoutes, RouteTable, VerdictPending
from tests.kit.server_machines import Machine

# Where nothing was built, Python is compared with itself.
NATIVE: Any = publish_calls.native

_TOPICS = (
    b"a",
    b"a/b",
    b"retained/1",
    b"devices/d",
    b"urgent/u",
    b"no",
    b"later",
    b"a/+",
    b"",
    b"\xff",
)
_PINGREQ = b"\xc0\0"


@st.composite
def frames(draw: st.DrawFn, version: int) -> bytes:
    """Most often a PUBLISH that is plain; now and then one that is wrong, or another packet."""
    first_byte = draw(st.sampled_from((0x30, 0x31, 0x32, 0x33, 0x32, 0x34, 0x3A, 0x38, 0x36)))
    topic = draw(st.sampled_from(_TOPICS[:6]) | st.sampled_from(_TOPICS))
    body = len(topic).to_bytes(2, "big") + topic
    if first_byte & 6:
        body += draw(st.integers(0, 3) | st.just(300)).to_bytes(2, "big")
    if version == 5:
        body += draw(st.sampled_from((b"\0", b"\0", b"\0", b"\2\1\1", b"\3\x23\0\1", b"\2\xff\0")))
    body += b"x" * draw(st.integers(0, 3) | st.sampled_from((100, 130, 200)))
    length = len(body)
    if length < 0x80:
        overlong = draw(st.integers(0, 9)) == 0
        size = bytes((length | 0x80, 0)) if overlong else bytes((length,))
    else:
        size = bytes((length & 0x7F | 0x80, length >> 7))
    packet = bytes((first_byte,)) + size + body
    return draw(st.sampled_from((packet, packet, packet, packet, packet, _PINGREQ)))


def told(event: Event) -> object:
    """Return what an event says, to compare."""
    if isinstance(event, Arrivals):
        messages = [
            [getattr(message, name) for name in Message.__slots__] for message in event.messages
        ]
        routes = [(route.topic, route.lane, route.verdict) for route in event.routes]
        return messages, event.packet_ids, routes
    if isinstance(event, PublishRun):
        _, flags, ids, routes = event.token
        return event.lane, event.frames, event.count, flags, ids, [route.topic for route in routes]
    if isinstance(event, Acknowledged):
        return event.packet_type, event.packet_ids, event.reason_code
    if isinstance(event, MqttError):
        return type(event), event.reason_code, str(event)
    if isinstance(event, VerdictPending):
        return event.topic_name
    return event


def heard(stream: list[bytes], version: int, *, waits: bool) -> list[object]:
    """Return what a server makes of reads; a verdict that it waits for is a yes in the end."""
    machine = Machine(ServerLimits(maximum_packet_size=180, receive_maximum=40))
    machine.connect(version)
    connection = machine.connection
    decided: set[str] = set()

    def verdict(topic_name: str) -> int:
        if waits and topic_name == "later" and topic_name not in decided:
            return PENDING  # however often it is asked
        return 0x87 if topic_name == "no" else 0

    shared = connection.routes
    assert isinstance(shared, RouteTable)
    connection.forget_routes(ClientRoutes(shared, verdict))
    found: list[object] = []
    for data in stream:
        events = connection.receive_data(data, 1.0)
        while events and isinstance(events[-1], VerdictPending):
            found += map(told, events)
            decided.add(events[-1].topic_name)
            events = connection.receive_data(b"", 1.0)
        found += map(told, events)
        found.append(connection.unacknowledged)
        if events and isinstance(events[-1], MqttError):
            break
    return found


@given(st.data(), st.sampled_from((4, 5)), st.booleans())
def test_a_read_is_the_same_however_it_is_taken_apart(
    data: st.DataObject, version: int, waits: bool
) -> None:
    packets = data.draw(st.lists(frames(version), max_size=60))
    whole = b"".join(packets)
    cut = data.draw(st.integers(0, len(whole)))
    stream = [each for each in (whole[:cut], whole[cut:]) if each]
    found = heard(stream, version, waits=waits)
    with patch.object(server_publishes, "native", None):
        assert heard(stream, version, waits=waits) == found


def test_all_of_a_long_read_arrive_together() -> None:
    machine = Machine(ServerLimits(receive_maximum=5000)).connect(4)
    frame = b"\x33\x09\0\3a/b%b\xff\xfe"
    data = b"".join(frame % number.to_bytes(2, "big") for number in range(1, 2001))
    (event,) = machine.connection.receive_data(data, 0.0)
    assert isinstance(event, Arrivals)
    assert event.packet_ids == list(range(1, 2001))
    assert {(m.topic, m.payload, m.qos, m.retain, m.publisher) for m in event.messages} == {
        (b"a/b", b"\xff\xfe", 1, True, "c")
    }
    assert machine.connection.unacknowledged == 2000


@pytest.mark.parametrize("library", [NATIVE, None], ids=["in use", "python"])
def test_what_exceeds_the_receive_maximum_is_not_taken(library: Any) -> None:
    data = b"".join(b"\x32\6\0\1a%c%c\0" % (0, number) for number in range(1, 6))
    for version, taken in ((5, [1, 2]), (4, [1, 2, 3, 4, 5])):
        machine = Machine(ServerLimits(receive_maximum=2)).connect(version)
        with patch.object(server_publishes, "native", library):
            arrivals, *faults = machine.connection.receive_data(data, 0.0)
        assert isinstance(arrivals, Arrivals)
        assert arrivals.packet_ids == taken
        codes = [each.reason_code for each in faults if isinstance(each, MqttError)]
        assert codes == [ReasonCode.RECEIVE_MAXIMUM_EXCEEDED] * (version == 5)


@pytest.mark.parametrize("captured", [b"devices/d", b"urgent/u"])
def test_what_a_capture_wants_is_taken_ahead_in_vain_a_few_times_only(captured: bytes) -> None:
    """Captured and not in turn: what is made ahead stays bounded, however long the read."""
    made: list[int] = []
    if NATIVE:

        class Counting:
            VERSION = NATIVE.VERSION

            @staticmethod
            def publishes(*arguments: Any) -> list[Any]:
                found: list[Any] = NATIVE.publishes(*arguments)
                made.append(len(found) // 3)
                return found

        library: Any = Counting
    else:
        library = None
    one = b"\x32%c\0\1a\0\1" % 5
    other = b"\x32%c\0%c%b\0\1" % (len(captured) + 4, len(captured), captured)
    machine = Machine(ServerLimits(receive_maximum=5000)).connect(4)
    with patch.object(server_publishes, "native", library):
        events = machine.connection.receive_data((one + other) * 400, 0.0)
    assert len(events) == 800
    assert sum(made) <= 8 * 400
