"""Properties: the whole property x packet table both ways, bounds, repetition, order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt import properties as p
from mqtt.errors import LocalProtocolError, MalformedPacket, MqttError, ProtocolError
from mqtt.properties import (
    TABLE,
    WILL,
    Kind,
    decode_properties,
    encode_properties,
    encode_property_block,
)
from tests.kit.mqtt_strategies import properties

# Table 2-4 of the specification, row by row; WILL stands for "Will Properties".
TABLE_2_4 = {
    0x01: {3, WILL},
    0x02: {3, WILL},
    0x03: {3, WILL},
    0x08: {3, WILL},
    0x09: {3, WILL},
    0x0B: {3, 8},
    0x11: {1, 2, 14},
    0x12: {2},
    0x13: {2},
    0x15: {1, 2, 15},
    0x16: {1, 2, 15},
    0x17: {1},
    0x18: {WILL},
    0x19: {1},
    0x1A: {2},
    0x1C: {2, 14},
    0x1F: {2, 4, 5, 6, 7, 9, 11, 14, 15},
    0x21: {1, 2},
    0x22: {1, 2},
    0x23: {3},
    0x24: {2},
    0x25: {2},
    0x26: {1, 2, 3, WILL, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15},
    0x27: {1, 2},
    0x28: {2},
    0x29: {2},
    0x2A: {2},
}
SAMPLES: dict[int, tuple[object, bytes]] = {
    Kind.BYTE: (1, b"\x01"),
    Kind.TWO_BYTES: (258, b"\x01\x02"),
    Kind.FOUR_BYTES: (16_909_060, b"\x01\x02\x03\x04"),
    Kind.VARIABLE: ([128], b"\x80\x01"),
    Kind.STRING: ("é", b"\x00\x02\xc3\xa9"),
    Kind.BINARY: (b"\xff\x00", b"\x00\x02\xff\x00"),
    Kind.PAIR: ([("k", "v")], b"\x00\x01k\x00\x01v"),
}


def test_there_is_no_property_but_those_of_the_table() -> None:
    assert set(TABLE) == set(TABLE_2_4)


@pytest.mark.parametrize("packet", range(16))
@pytest.mark.parametrize("identifier", sorted(TABLE_2_4), ids=hex)
def test_a_property_is_allowed_exactly_where_the_table_says(identifier: int, packet: int) -> None:
    value, encoded = SAMPLES[TABLE[identifier].kind]
    block = bytes((identifier,)) + encoded
    data = bytes((len(block),)) + block
    if packet in TABLE_2_4[identifier]:
        assert encode_properties({identifier: value}, packet) == data
        assert decode_properties(data, 0, len(data), packet) == ({identifier: value}, len(data))
        return
    with pytest.raises(LocalProtocolError):
        encode_properties({identifier: value}, packet)
    with pytest.raises(ProtocolError) as fault:
        decode_properties(data, 0, len(data), packet)
    assert fault.value.reason_code == 0x81  # section 2.2.2.2 of MQTT 5


@pytest.mark.parametrize("identifier", sorted(set(TABLE_2_4) - {p.USER_PROPERTY}), ids=hex)
def test_a_property_that_comes_twice_is_a_protocol_error(identifier: int) -> None:
    _, encoded = SAMPLES[TABLE[identifier].kind]
    block = (bytes((identifier,)) + encoded) * 2
    data = bytes((len(block),)) + block
    packet = 8 if identifier == p.SUBSCRIPTION_IDENTIFIER else min(TABLE_2_4[identifier])
    with pytest.raises(ProtocolError) as fault:
        decode_properties(data, 0, len(data), packet)
    assert fault.value.reason_code == 0x82


@pytest.mark.parametrize(
    ("identifier", "packet", "bad", "reason_code"),
    [
        (p.PAYLOAD_FORMAT_INDICATOR, 3, 2, 0x82),
        (p.REQUEST_PROBLEM_INFORMATION, 1, 2, 0x82),
        (p.REQUEST_RESPONSE_INFORMATION, 1, 255, 0x82),
        (p.MAXIMUM_QOS, 2, 2, 0x82),
        (p.RETAIN_AVAILABLE, 2, 2, 0x82),
        (p.WILDCARD_SUBSCRIPTION_AVAILABLE, 2, 2, 0x82),
        (p.SUBSCRIPTION_IDENTIFIER_AVAILABLE, 2, 2, 0x82),
        (p.SHARED_SUBSCRIPTION_AVAILABLE, 2, 2, 0x82),
        (p.RECEIVE_MAXIMUM, 1, 0, 0x82),
        (p.MAXIMUM_PACKET_SIZE, 2, 0, 0x82),
        (p.SUBSCRIPTION_IDENTIFIER, 8, 0, 0x82),
        (p.TOPIC_ALIAS, 3, 0, 0x94),
    ],
)
@pytest.mark.conformance("MQTT-3.3.2-8")
def test_values_out_of_bounds(identifier: int, packet: int, bad: int, reason_code: int) -> None:
    width = {Kind.BYTE: 1, Kind.TWO_BYTES: 2, Kind.FOUR_BYTES: 4, Kind.VARIABLE: 1}
    block = bytes((identifier,)) + bad.to_bytes(width[TABLE[identifier].kind], "big")
    data = bytes((len(block),)) + block
    with pytest.raises(ProtocolError) as fault:
        decode_properties(data, 0, len(data), packet)
    assert fault.value.reason_code == reason_code
    listed = [bad] if identifier == p.SUBSCRIPTION_IDENTIFIER else bad
    with pytest.raises(LocalProtocolError):
        encode_properties({identifier: listed}, packet)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_a_number_too_large_for_its_type_is_the_callers_fault(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_properties({p.RECEIVE_MAXIMUM: value}, 1)


@pytest.mark.conformance("MQTT-3.3.2-14")
@pytest.mark.parametrize("topic", ["a/+", "#", ""])
def test_a_response_topic_is_a_topic_name(topic: str) -> None:
    raw = topic.encode()
    block = b"\x08" + len(raw).to_bytes(2, "big") + raw
    with pytest.raises(ProtocolError):
        decode_properties(bytes((len(block),)) + block, 0, 1 + len(block), 3)
    with pytest.raises(LocalProtocolError):
        encode_properties({p.RESPONSE_TOPIC: topic}, 3)


@pytest.mark.conformance("MQTT-2.2.2-1")
def test_no_properties_are_a_length_of_zero() -> None:
    assert encode_properties({}, 3) == b"\0"
    assert decode_properties(b"\0rest", 0, 5, 3) == ({}, 1)


@pytest.mark.conformance("MQTT-3.3.2-18", "MQTT-3.1.3-10")
def test_user_properties_keep_their_order_and_repetitions() -> None:
    pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("", "")]
    data = encode_properties({p.USER_PROPERTY: pairs}, 3)
    assert decode_properties(data, 0, len(data), 3)[0] == {p.USER_PROPERTY: pairs}


def test_only_one_subscription_identifier_goes_into_subscribe() -> None:
    with pytest.raises(LocalProtocolError):
        encode_properties({p.SUBSCRIPTION_IDENTIFIER: [1, 2]}, 8)
    data = encode_properties({p.SUBSCRIPTION_IDENTIFIER: [1, 2]}, 3)
    assert decode_properties(data, 0, len(data), 3)[0] == {p.SUBSCRIPTION_IDENTIFIER: [1, 2]}


def test_a_property_length_must_end_where_a_property_ends() -> None:
    data = b"\x02\x21\x00\x05rest"
    with pytest.raises(MalformedPacket):
        decode_properties(data, 0, len(data), 1)


@given(st.data(), st.sampled_from((WILL, *range(1, 12), 14, 15)))
def test_decoding_undoes_encoding(data: st.DataObject, packet: int) -> None:
    values = data.draw(properties(packet))
    encoded = encode_properties(values, packet)
    assert decode_properties(encoded, 0, len(encoded), packet) == (values, len(encoded))
    assert encoded.endswith(encode_property_block(values, packet))


@given(st.binary(max_size=40), st.sampled_from((WILL, *range(1, 12), 14, 15)))
def test_random_bytes_are_properties_or_a_typed_error(data: bytes, packet: int) -> None:
    try:
        _, after = decode_properties(data, 0, len(data), packet)
    except MqttError as fault:
        assert isinstance(fault, ProtocolError)  # noqa: PT017 - either outcome is fine
    else:
        assert after <= len(data)
