"""The server machine as tables: state x packet, faults and their codes, runs, limits, deadlines."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.broker.seams import PublishRun
from mqtt.codec import encode
from mqtt.errors import MalformedPacket, MqttError, ProtocolError
from mqtt.frames import parse_publishes
from mqtt.inbound_qos_2 import SETTLED
from mqtt.packets import (
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    V5,
    V311,
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
from mqtt.primitives import encode_variable_integer
from mqtt.properties import (
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET_SIZE,
    PAYLOAD_FORMAT_INDICATOR,
    REASON_STRING,
    REQUEST_PROBLEM_INFORMATION,
    TOPIC_ALIAS,
    USER_PROPERTY,
)
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import Acknowledged, Arrivals, Event, ServerLimits, State
from mqtt.server_messages import Message, publish_parts
from mqtt.server_routes import ClientRoutes, RouteTable
from tests.kit.server_machines import Machine

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


def reading(number: int = 1, qos: int = 1, topic: str = "devices/d", size: int = 3) -> Publish:
    """Return a captured publish."""
    return Publish(topic, b"%0*d" % (size, number), qos, packet_id=number if qos else 0)


def fault_of(events: list[Event]) -> int:
    """Return the reason code of the fault that ends `events`."""
    assert events
    fault = events[-1]
    assert isinstance(fault, MqttError)
    return int(fault.reason_code)


def runs_of(events: list[Event]) -> list[PublishRun]:
    """Return the captured runs of `events`."""
    return [event for event in events if isinstance(event, PublishRun)]


# -- state x packet ---------------------------------------------------------------------------

CLIENT_PACKETS: list[Packet] = [
    Publish("t", b"x"),
    Puback(1),
    Pubrec(1),
    Pubrel(1),
    Pubcomp(1),
    Subscribe(1, [Subscription("t")]),
    Unsubscribe(1, ["t"]),
    Pingreq(),
    Disconnect(),
]
SERVER_PACKETS: list[Packet] = [Connack(), Suback(1, [0]), Unsuback(1, [0]), Pingresp()]


@pytest.mark.conformance("MQTT-3.1.0-1")
@pytest.mark.parametrize(
    "packet", [*CLIENT_PACKETS, *SERVER_PACKETS], ids=lambda p: type(p).__name__
)
def test_new_takes_nothing_but_connect(packet: Packet) -> None:
    machine = Machine()
    events = machine.connection.receive_data(encode(packet, V5), 0.0)
    assert fault_of(events) == ReasonCode.PROTOCOL_ERROR
    machine.connection.fail(events[-1])  # type: ignore[arg-type] # fault_of has checked
    assert machine.connection.state is State.CLOSED


@VERSIONS
@pytest.mark.parametrize("packet", CLIENT_PACKETS, ids=lambda p: type(p).__name__)
def test_connected_takes_what_clients_send(version: int, packet: Packet) -> None:
    machine = Machine().connect(version)
    (event,) = machine.receive(packet)
    assert not isinstance(event, MqttError)


@VERSIONS
@pytest.mark.conformance("MQTT-3.1.0-2")
@pytest.mark.parametrize("packet", [Connect("c"), *SERVER_PACKETS], ids=lambda p: type(p).__name__)
def test_connected_refuses_what_servers_send_and_a_second_connect(
    version: int, packet: Packet
) -> None:
    machine = Machine().connect(version)
    if isinstance(packet, Connect):
        packet = Connect("c", version)
    elif isinstance(packet, Unsuback) and version == V311:
        packet = Unsuback(1)
    assert fault_of(machine.receive(packet)) == ReasonCode.PROTOCOL_ERROR


def test_connecting_lets_auth_through_and_keeps_the_rest() -> None:
    machine = Machine()
    auth = Auth(ReasonCode.CONTINUE_AUTHENTICATION, {AUTHENTICATION_METHOD: "m"})
    connect = Connect("c", properties={AUTHENTICATION_METHOD: "m"})
    assert machine.receive(connect) == [connect]
    data = encode(auth, V5)
    assert machine.connection.receive_data(data[:3], 0.0) == []
    assert machine.connection.receive_data(data[3:], 0.0) == [auth]
    assert machine.receive(Disconnect()) == [Disconnect()]
    machine = Machine()
    assert machine.receive(Connect("c"), Pingreq()) == [Connect("c")]
    assert machine.receive(Disconnect()) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode(Pingreq(), V5), 0x82),
        (encode(Connect("c"), V5), 0x82),
        (encode(Publish("t", b"x"), V5)[:2], 0x82),
        (b"\xf0\xff\xff\xff\xff\x01", 0x81),
        (b"\xf1\0", 0x81),
    ],
)
def test_a_client_that_authenticates_sends_nothing_else(data: bytes, code: int) -> None:
    machine = Machine()
    machine.receive(Connect("c", properties={AUTHENTICATION_METHOD: "m"}))
    assert fault_of(machine.connection.receive_data(data, 0.0)) == code


def test_a_client_that_sends_too_much_before_connack_is_refused() -> None:
    machine = Machine(ServerLimits(maximum_packet_size=1000))
    machine.receive(Connect("c"))
    fine = machine.receive(*[Publish("t", b"x" * 100)] * 9)
    assert fine == []
    assert fault_of(machine.receive(Publish("t", b"x" * 100))) == ReasonCode.PACKET_TOO_LARGE


@pytest.mark.conformance("MQTT-3.14.4-2")
def test_nothing_behind_a_disconnect_is_read() -> None:
    machine = Machine().connect()
    assert machine.receive(Disconnect(), Pingreq()) == [Disconnect()]
    assert machine.receive(Pingreq()) == []


# -- faults -----------------------------------------------------------------------------------

FAULTS = [
    ("QoS 3", b"\x36\x06\x00\x01t\x00\x01\x00", 0x81),
    ("DUP with QoS 0", b"\x38\x04\x00\x01t\x00", 0x81),
    ("packet id 0", b"\x32\x06\x00\x01t\x00\x00\x00", 0x82),
    ("PUBACK of id 0", b"\x40\x02\x00\x00", 0x82),
    ("topic runs past the packet", b"\x30\x04\x00\x09t\x00", 0x81),
    ("no room for a topic length", b"\x30\x01\x00", 0x81),
    ("no room for a packet id", b"\x32\x04\x00\x01t\x00", 0x81),
    ("properties run past the packet", b"\x30\x05\x00\x01t\x09x", 0x81),
    ("empty topic", b"\x30\x03\x00\x00\x00", 0x82),
    ("topic with U+0000", b"\x30\x04\x00\x01\x00\x00", 0x81),
    ("topic is a surrogate", b"\x30\x06\x00\x03\xed\xa0\x80\x00", 0x81),
    ("topic is over-long UTF-8", b"\x30\x05\x00\x02\xc0\x80\x00", 0x81),
    ("topic has a wildcard", b"\x30\x06\x00\x03a/#\x00", 0x90),
    ("remaining length of 5 bytes", b"\x30\xff\xff\xff\xff\x01", 0x81),
    ("over-long remaining length", b"\x30\x84\x00\x00\x01t\x00", 0x81),
    ("over the packet size", b"\x30\xff\xff\xff\x7f", 0x95),
    ("reserved type 0", b"\x00\x00", 0x81),
    ("flags of PUBREL", b"\x60\x02\x00\x01", 0x81),
    ("flags of SUBSCRIBE", b"\x80\x07\x00\x01\x00\x00\x01t\x00", 0x81),
    ("alias 0", b"\x30\x07\x00\x01t\x03\x23\x00\x00", 0x94),
    ("unknown property", b"\x30\x06\x00\x01t\x02\x7e\x00", 0x81),
    ("payload format 2", b"\x30\x06\x00\x01t\x02\x01\x02", 0x82),
]


@pytest.mark.conformance(
    *("MQTT-3.3.1-4", "MQTT-3.3.1-2", "MQTT-2.2.1-3", "MQTT-1.5.4-1", "MQTT-1.5.4-2"),
    *("MQTT-3.3.2-1", "MQTT-3.3.2-2", "MQTT-4.7.3-1", "MQTT-4.7.3-2", "MQTT-1.5.5-1"),
    *("MQTT-3.6.1-1", "MQTT-3.8.1-1", "MQTT-2.1.3-1", "MQTT-4.13.1-1"),
)
@pytest.mark.parametrize(("data", "code"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_named_and_what_came_before_it_counts(data: bytes, code: int) -> None:
    machine = Machine().connect()
    before = encode(reading(1), V5) + encode(Publish("t", b"x", 1, packet_id=2), V5)
    events = machine.connection.receive_data(before + data, 0.0)
    run, arrivals, _fault = events
    assert isinstance(run, PublishRun)
    assert isinstance(arrivals, Arrivals)
    assert fault_of(events) == code
    fault = events[-1]
    assert isinstance(fault, MqttError)
    machine.connection.fail(fault)
    (goodbye,) = machine.answers()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == code
    assert goodbye.properties[REASON_STRING]


@pytest.mark.parametrize(("data", "code"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_the_same_a_byte_at_a_time(data: bytes, code: int) -> None:
    machine = Machine().connect()
    events: list[Event] = []
    for byte in data:
        events += machine.connection.receive_data(bytes((byte,)), 0.0)
        if events:
            break
    assert fault_of(events) == code


def test_3_1_1_is_closed_without_a_word() -> None:
    machine = Machine().connect(V311)
    (fault,) = machine.connection.receive_data(b"\x00\x00", 0.0)
    assert isinstance(fault, MqttError)
    machine.connection.fail(fault)
    assert machine.sent == []


def test_a_remaining_length_may_be_over_long_in_3_1_1() -> None:
    machine = Machine().connect(V311)
    (run,) = machine.connection.receive_data(b"\x30\x8c\x00\x00\x09devices/dx", 0.0)
    assert isinstance(run, PublishRun)


@pytest.mark.conformance("MQTT-3.3.2-8", "MQTT-3.3.2-9")
def test_aliases_have_bounds_and_must_be_set() -> None:
    limits = ServerLimits(topic_alias_maximum=1)
    beyond = Publish("t", b"", properties={TOPIC_ALIAS: 2})
    assert fault_of(Machine(limits).connect().receive(beyond)) == ReasonCode.TOPIC_ALIAS_INVALID
    unset = Publish("", b"", properties={TOPIC_ALIAS: 1})
    assert fault_of(Machine(limits).connect().receive(unset)) == ReasonCode.PROTOCOL_ERROR


def test_a_payload_that_is_not_the_utf_8_it_says_is_refused_if_asked_for() -> None:
    publish = Publish("t", b"\xff", properties={PAYLOAD_FORMAT_INDICATOR: 1})
    (arrivals,) = Machine().connect().receive(publish)
    assert isinstance(arrivals, Arrivals)
    strict = Machine(ServerLimits(check_payload_format=True)).connect()
    assert fault_of(strict.receive(publish)) == ReasonCode.PAYLOAD_FORMAT_INVALID


@pytest.mark.parametrize("topic", ["t", "devices/d"])
@pytest.mark.parametrize("reads", [1, 2])
def test_every_payload_that_says_it_is_utf_8_is_looked_at(topic: str, reads: int) -> None:
    utf_8 = {PAYLOAD_FORMAT_INDICATOR: 1}
    publishes = [Publish(topic, payload, properties=utf_8) for payload in (b"x", b"\xff")]
    machine = Machine(ServerLimits(check_payload_format=True)).connect()
    events = [
        event
        for read in ([publishes] if reads == 1 else [[one] for one in publishes])
        for event in machine.receive(*read)
    ]
    assert fault_of(events) == ReasonCode.PAYLOAD_FORMAT_INVALID
    assert len(events) == 2


def test_open_qos_2_exchanges_are_bounded_in_3_1_1_too() -> None:
    machine = Machine(ServerLimits(receive_maximum=2)).connect(V311)
    packets = [Publish("t", b"", 2, packet_id=i) for i in range(1, 9)]
    assert not isinstance(machine.receive(*packets)[-1], MqttError)
    one_more = Publish("t", b"", 2, packet_id=9)
    assert fault_of(machine.receive(one_more)) == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


def pubacks_of(events: list[Event]) -> list[list[int]]:
    """Return the packet identifiers of each event, which all are PUBACKs."""
    assert all(isinstance(event, Acknowledged) for event in events)
    acknowledged = [event for event in events if isinstance(event, Acknowledged)]
    assert {(event.packet_type, event.reason_code) for event in acknowledged} <= {(PUBACK, 0)}
    return [event.packet_ids for event in acknowledged]


def test_acknowledgements_that_come_together_are_one_event() -> None:
    connection = Machine().connect().connection
    ids = [1, 0xFFFF, 256, 7, 7]
    data = b"".join(b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in ids)
    assert pubacks_of(connection.receive_data(data, 0.0)) == [ids]
    for end in range(1, len(data)):  # the same in two reads, wherever they part
        events = connection.receive_data(data[:end], 0.0)
        events += connection.receive_data(data[end:], 0.0)
        assert [one for each in pubacks_of(events) for one in each] == ids


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (b"\x40\x02\x00\x00", ProtocolError),
        (b"\x40\x03\x00\x01", None),
        (b"\x42\x02\x00\x01", MalformedPacket),
        (b"\x50\x02\x00\x01", Acknowledged),
        (b"\xc0\x00\xc0\x00", Pingreq),
    ],
)
def test_what_only_resembles_acknowledgements(other: bytes, expected: type | None) -> None:
    events = Machine().connect().connection.receive_data(b"\x40\x02\x00\x01" + other, 0.0)
    assert pubacks_of(events[:1]) == [[1]]
    assert {type(event) for event in events[1:]} == ({expected} if expected else set())


# -- runs -------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_equal_and_unequal_publishes_become_one_run_of_the_bytes_as_received(
    version: int, qos: int
) -> None:
    packets = [
        reading(1, qos),
        reading(2, qos),
        reading(3, qos, size=9),
        reading(4, qos, size=200),
        reading(5, qos, topic="devices/e"),
        reading(6, qos),
    ]
    machine = Machine().connect(version)
    (run,) = machine.receive(*packets)
    assert isinstance(run, PublishRun)
    assert run.frames == b"".join(encode(packet, version) for packet in packets)
    assert (run.count, run.lane) == (6, 1)
    assert machine.connection.unacknowledged == (6 if qos else 0)


def test_a_read_that_is_one_run_is_not_copied() -> None:
    machine = Machine().connect()
    data = b"".join(encode(reading(i), V5) for i in range(1, 5))
    for _ in range(2):
        (run,) = machine.connection.receive_data(data, 0.0)
        assert isinstance(run, PublishRun)
        assert run.frames is data


def test_zero_packet_ids_are_caught_on_the_fast_path_too() -> None:
    machine = Machine().connect()
    data = encode(reading(1), V5)
    zero = data.replace(b"\x00\x01\x00", b"\x00\x00\x00")
    events = machine.connection.receive_data(data + data + zero, 0.0)
    assert fault_of(events) == ReasonCode.PROTOCOL_ERROR
    assert [run.count for run in runs_of(events)] == [2]


def test_other_properties_are_not_taken_for_the_last_ones() -> None:
    machine = Machine().connect()
    plain = encode(Publish("devices/d", b"12345", 1, packet_id=1), V5)
    with_property = encode(
        Publish("devices/d", b"123", 1, packet_id=1, properties={PAYLOAD_FORMAT_INDICATOR: 1}), V5
    )
    assert len(plain) == len(with_property)
    (run,) = machine.connection.receive_data(plain + with_property + plain, 0.0)
    assert isinstance(run, PublishRun)
    assert [parts[3] for parts in parse_publishes(run.frames, V5)] == [b"", b"\x01\x01", b""]
    # a wrong block of the same length must not slip through either
    wrong = with_property.replace(b"\x02\x01\x01", b"\x02\x01\x02")
    assert fault_of(machine.connection.receive_data(plain + wrong, 0.0)) == 0x82


def test_lane_retain_and_qos_cut_a_run() -> None:
    kept = reading(3)
    kept.retain = True
    machine = Machine().connect()
    events = machine.receive(
        reading(1), reading(2, topic="urgent/d"), reading(4), kept, reading(5, 0), reading(6)
    )
    assert [(run.lane, run.token[1]) for run in runs_of(events)] == [
        (1, 1),
        (0, 1),
        (1, 1),
        (1, 5),
        (1, 0),
        (1, 1),
    ]


@pytest.mark.conformance("MQTT-4.3.3-10")
def test_a_qos_2_identifier_in_use_is_not_taken_again() -> None:
    machine = Machine().connect()
    events = machine.receive(reading(7, 2), reading(8, 2), reading(7, 2), reading(9, 2))
    first, again, last = events
    assert isinstance(again, Acknowledged)
    assert (again.packet_type, again.packet_ids) == (PUBLISH, [7])
    assert [run.count for run in (first, last) if isinstance(run, PublishRun)] == [2, 1]
    session = machine.connection.session
    assert session is not None
    assert session.inbound is not None
    session.inbound[7] = SETTLED
    (again,) = machine.receive(reading(7, 2))
    assert isinstance(again, Acknowledged)


def test_short_acknowledgements_are_gathered_by_type() -> None:
    machine = Machine().connect()
    events = machine.receive(
        Puback(1), Puback(2), Pubrec(3), Pubrel(4), Pubrel(5), Pubcomp(6), Puback(7, 0x10)
    )
    assert [
        (e.packet_type, e.packet_ids, e.reason_code) for e in events if isinstance(e, Acknowledged)
    ] == [
        (PUBACK, [1, 2], 0),
        (PUBREC, [3], 0),
        (PUBREL, [4, 5], 0),
        (PUBCOMP, [6], 0),
        (PUBACK, [7], 0x10),
    ]


PACKETS = st.sampled_from(
    [
        reading(1),
        reading(2),
        reading(3, 0),
        reading(4, 2),
        reading(5, topic="urgent/d"),
        reading(6, size=300),
        Publish("elsewhere", b"x" * 40, 1, packet_id=7),
        Publish("devices/d", b"p", 1, packet_id=8, properties={USER_PROPERTY: [("k", "v")]}),
        Publish("devices/a", b"p", 1, packet_id=9, properties={TOPIC_ALIAS: 1}),
        Puback(1),
        Pingreq(),
        Subscribe(1, [Subscription("t")]),
    ]
)


def told(events: list[Event]) -> list[object]:
    """Return what events say, however they were gathered."""
    said: list[object] = []
    for event in events:
        if isinstance(event, PublishRun):
            ids = event.token[2]
            for index, parts in enumerate(parse_publishes(event.frames, V5)):
                said.append((event.lane, parts))
                if ids:
                    assert parts[2] == int.from_bytes(ids[index], "big")
        elif isinstance(event, Arrivals):
            said += [(m.topic, m.payload, m.qos) for m in event.messages]
        elif isinstance(event, Acknowledged):
            said += [(event.packet_type, packet_id) for packet_id in event.packet_ids]
        else:
            said.append(event)
    return said


@given(packets=st.lists(PACKETS, max_size=12), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_any_cut_of_a_stream_says_the_same(packets: list[Packet], cuts: list[int]) -> None:
    data = b"".join(encode(packet, V5) for packet in packets)
    whole = told(Machine().connect().connection.receive_data(data, 0.0)) if data else []
    machine = Machine().connect()
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    events: list[Event] = []
    for begin, end in pairwise(at):
        if end > begin:
            events += machine.connection.receive_data(data[begin:end], 0.0)
    assert told(events) == whole


@given(data=st.binary(max_size=400), version=st.sampled_from([V311, V5]))
def test_random_bytes_give_events_or_a_typed_fault(data: bytes, version: int) -> None:
    machine = Machine(ServerLimits(maximum_packet_size=1000)).connect(version)
    events = machine.connection.receive_data(data, 0.0) if data else []
    for event in events[:-1]:
        assert not isinstance(event, MqttError)
    assert len(machine.connection._partial or b"") <= 1000


@given(data=st.binary(min_size=1, max_size=200))
def test_random_first_bytes_give_a_connect_or_a_typed_fault(data: bytes) -> None:
    for start in (b"", b"\x10", b"\x10\x10\x00\x04MQTT\x05", b"\x10\x10\x00\x04MQTT\x04"):
        machine = Machine(ServerLimits(maximum_packet_size=1000))
        events = machine.connection.receive_data(start + data, 0.0)
        assert len(events) <= 1
        if events and isinstance(events[0], MqttError):
            machine.connection.fail(events[0])
            assert machine.connection.state is State.CLOSED


def test_a_large_packet_may_come_in_many_pieces() -> None:
    machine = Machine().connect()
    data = encode(reading(1, size=500_000), V5)
    events: list[Event] = []
    for at in range(0, len(data), 100):
        events += machine.connection.receive_data(data[at : at + 100], 0.0)
        held = machine.connection._partial
        assert (held is None) == (at + 100 >= len(data))
    (run,) = events
    assert isinstance(run, PublishRun)
    assert run.frames == data


# -- what the client wishes -------------------------------------------------------------------


@pytest.mark.conformance("MQTT-3.1.2-29")
def test_problem_information_is_left_out_where_it_is_not_wanted() -> None:
    machine = Machine().connect(properties={REQUEST_PROBLEM_INFORMATION: 0})
    explained = {REASON_STRING: "why", USER_PROPERTY: [("k", "v")]}
    machine.connection.send_packet(Suback(1, [0x87], dict(explained)))
    machine.connection.send_packet(Disconnect(0x87, dict(explained)))
    suback, goodbye = machine.answers()
    assert suback == Suback(1, [0x87])
    assert isinstance(goodbye, Disconnect)
    assert goodbye.properties == explained


@pytest.mark.conformance("MQTT-3.1.2-24", "MQTT-3.2.2-19", "MQTT-3.9.2-1", "MQTT-3.14.2-3")
def test_reasons_are_left_out_where_they_do_not_fit() -> None:
    machine = Machine().connect(properties={MAXIMUM_PACKET_SIZE: 12})
    explained = {REASON_STRING: "a reason that is too long"}
    assert machine.connection.send_packet(Suback(1, [0x87], dict(explained)))
    assert machine.answers() == [Suback(1, [0x87])]
    assert not machine.connection.send_packet(Suback(1, [0x87] * 20))
    assert machine.sent == []


@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgements_are_one_write(qos: int) -> None:
    machine = Machine().connect()
    machine.receive(*[reading(i, qos) for i in (1, 2, 3)])
    machine.connection.acknowledge(qos, [b"\x00\x01", b"\x00\x02"])
    machine.connection.acknowledge(qos, [b"\x00\x03"], 0x97)
    assert len(machine.sent) == 2
    kind = Puback if qos == 1 else Pubrec
    assert machine.answers() == [kind(1), kind(2), kind(3, 0x97)]
    assert machine.connection.unacknowledged == (0 if qos == 1 else 2)


def test_a_message_is_encoded_once_a_form() -> None:
    message = Message(b"t", b"x" * 10)
    five, old = Machine().connect().connection, Machine().connect(V311).connection
    frames = [link.publish_frame(message, 0x30, 0, b"", 0.0) for link in (five, old, five, old)]
    assert frames[0] is frames[2]
    assert frames[1] is frames[3]
    assert frames[0] != frames[1]


# -- time -------------------------------------------------------------------------------------


def test_deadlines_by_state() -> None:
    machine = Machine(ServerLimits(connect_timeout_s=5)).connection
    assert machine.next_deadline_s() == 5
    assert machine.handle_timeout(4.9) is None
    fault = machine.handle_timeout(5)
    assert fault is not None
    assert fault.reason_code == ReasonCode.MAXIMUM_CONNECT_TIME
    connected = Machine().connect()
    assert connected.connection.next_deadline_s() is None
    connected.connection.keep_alive_s = 10
    connected.receive(Pingreq(), now_s=100.0)
    assert connected.connection.next_deadline_s() == 115
    fault = connected.connection.handle_timeout(115)
    assert fault is not None
    assert fault.reason_code == ReasonCode.KEEP_ALIVE_TIMEOUT
    connected.receive(Disconnect())
    assert connected.connection.next_deadline_s() is None


# -- what looks like the last publish ---------------------------------------------------------


def publish_bytes(
    version: int, topic: bytes, first: int, number: int, rest: bytes, pad: int
) -> bytes:
    """Return a PUBLISH whose length is encoded in `pad` bytes more than are needed."""
    body = len(topic).to_bytes(2, "big") + topic
    if first & 6:
        body += number.to_bytes(2, "big")
    body += rest
    length = encode_variable_integer(len(body))
    if pad:
        length = length[:-1] + bytes([length[-1] | 0x80]) + b"\x80" * (pad - 1) + b"\0"
    return bytes([first]) + length + body


PUBLISHES = st.lists(
    st.tuples(
        st.sampled_from([b"t", b"u/v", b"devices/d"]),
        st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x3A]),
        st.sampled_from([b"", b"x", b"y", bytes(130)]),
        st.sampled_from([b"\0", b"\0", b"\0", b"\x02\x01\x00", b"\x05\x02\0\0\0\x09"]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    max_size=12,
)


@given(st.sampled_from([V311, V5]), PUBLISHES)
def test_publishes_one_a_read_are_the_same_as_all_in_one_read(
    version: int, publishes: list[tuple[bytes, int, bytes, bytes, int]]
) -> None:
    packets = [
        publish_bytes(
            version,
            topic,
            first,
            number,
            block * (version == V5) + payload,
            pad * (version == V311),
        )
        for number, (topic, first, payload, block, pad) in enumerate(publishes, 1)
    ]
    together = Machine().connect(version)
    apart = Machine().connect(version)
    events = [event for data in packets for event in apart.connection.receive_data(data, 0.0)]
    expected = together.connection.receive_data(b"".join(packets), 0.0)
    assert delivered(events) == delivered(expected)
    assert apart.connection.unacknowledged == together.connection.unacknowledged


def delivered(events: list[Event]) -> list[object]:
    """Return what events say, whatever their grouping, and what receivers would be sent."""
    found: list[object] = []
    for event in events:
        if isinstance(event, PublishRun):
            found += parse_publishes(event.frames, event.client.protocol_version)
        else:
            assert isinstance(event, Arrivals)
            for message, number, route in zip(
                event.messages, event.packet_ids, event.routes, strict=True
            ):
                forms = [(f, v) for f in (0x30, 0x31, 0x32, 0x33) for v in (V311, V5)]
                for first, receiver in forms:
                    parts = publish_parts(
                        first, receiver, message.topic, message.properties, message.payload
                    )
                    assert message.frame_parts(first, receiver) == parts
                found.append(
                    (
                        message.topic,
                        message.payload,
                        message.qos,
                        message.retain,
                        number,
                        route.name,
                    )
                )
                found.append((message.properties, message.expires_s, message.publisher))
    return found


def test_a_lone_publish_like_the_last_is_checked_like_the_first() -> None:
    machine = Machine(limits=ServerLimits(receive_maximum=2)).connect(V5)
    for number in (1, 2):
        (event,) = machine.receive(Publish("t", b"x", 1, packet_id=number))
        assert isinstance(event, Arrivals)
    events = machine.receive(Publish("t", b"x", 1, packet_id=3))
    assert fault_of(events) == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
    machine = Machine().connect(V5)
    machine.receive(Publish("t", b"x", 1, packet_id=1))
    data = encode(Publish("t", b"x", 1, packet_id=1), V5).replace(b"t\0\1", b"t\0\0")
    assert fault_of(machine.connection.receive_data(data, 0.0)) == ReasonCode.PROTOCOL_ERROR


@VERSIONS
@pytest.mark.parametrize("topic", ["devices/d", "t"])
def test_what_begins_no_packet_is_never_like_the_last(version: int, topic: str) -> None:
    """Neither before anything was published, nor after what may be has changed."""
    machine = Machine().connect(version)
    junk = b"\xff" * 5
    assert fault_of(machine.connection.receive_data(junk, 0.0)) == ReasonCode.MALFORMED_PACKET
    machine = Machine().connect(version)
    machine.receive(reading(1, topic=topic))
    machine.connection.forget_routes(machine.connection.routes)
    alike = junk + encode(reading(2, topic=topic), version)[len(junk) :]
    assert fault_of(machine.connection.receive_data(alike, 0.0)) == ReasonCode.MALFORMED_PACKET


# What may happen between two publishes that look alike: what the client may publish changes, or it
# sets an alias. (None for a change of leave) or (topic, first byte, property block, payload).
TURNS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(
            st.sampled_from([b"t", b"t", b"u", b"devices/d"]),
            st.sampled_from([0x30, 0x32]),
            st.sampled_from([b"\0", b"\0", b"\x03\x23\x00\x01"]),
            st.sampled_from([b"x", b"y"]),
        ),
        st.just((b"", 0x30, b"\x03\x23\x00\x01", b"x")),
    ),
    max_size=16,
)


class Leave:
    """What a client may publish: everything, until it changes."""

    def __init__(self, machine: Machine) -> None:
        self.refused: set[str] = set()
        self._shared = machine.connection.routes
        self._machine = machine
        self.change()

    def change(self) -> None:
        """Take or give leave for `t`, and have the machine ask again."""
        self.refused ^= {"t"}
        assert isinstance(self._shared, RouteTable)
        routes = ClientRoutes(self._shared, lambda name: 0x87 * (name in self.refused))
        self._machine.connection.forget_routes(routes)


@given(TURNS)
def test_a_publish_like_the_last_is_decided_as_if_it_were_the_first(
    turns: list[tuple[bytes, int, bytes, bytes] | None],
) -> None:
    short, whole = Machine().connect(V5), Machine().connect(V5)
    leaves = Leave(short), Leave(whole)
    for number, turn in enumerate(turns, 1):
        if turn is None:
            for leave in leaves:
                leave.change()
            continue
        topic, first, block, payload = turn
        data = publish_bytes(V5, topic, first, number, block + payload, 0)
        events = short.connection.receive_data(data, 0.0)
        # a read that holds anything beside the publish never takes the short way
        _, *expected = whole.connection.receive_data(b"\xc0\0" + data, 0.0)
        if isinstance(expected[-1], MqttError):  # the alias was never set
            assert fault_of(events) == fault_of(expected)
            return
        assert decided(events) == decided(expected)


def decided(events: list[Event]) -> list[object]:
    """Return what events say, and what the client is told of each publish."""
    verdicts = [
        route.verdict for event in events if isinstance(event, Arrivals) for route in event.routes
    ]
    return [*delivered(events), *verdicts]
