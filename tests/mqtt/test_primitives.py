"""The data types of section 1.5: limits, forms to refuse, and reading what was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.errors import LocalProtocolError, MalformedPacket
from mqtt.primitives import (
    VARIABLE_INTEGER_MAX,
    encode_binary,
    encode_string,
    encode_variable_integer,
    read_binary,
    read_four_bytes,
    read_string,
    read_two_bytes,
    read_variable_integer,
)
from tests.kit.mqtt_strategies import texts


# The table of section 1.5.5: the first and last value of each length.
@pytest.mark.conformance("MQTT-1.5.5-1")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00"),
        (127, "7F"),
        (128, "8001"),
        (16_383, "FF7F"),
        (16_384, "808001"),
        (2_097_151, "FFFF7F"),
        (2_097_152, "80808001"),
        (VARIABLE_INTEGER_MAX, "FFFFFF7F"),
    ],
)
def test_variable_byte_integers_of_every_length(value: int, text: str) -> None:
    data = bytes.fromhex(text)
    assert encode_variable_integer(value) == data
    assert read_variable_integer(b"?" + data + b"?", 1, 1 + len(data)) == (value, 1 + len(data))


@pytest.mark.conformance("MQTT-1.5.5-1")
@pytest.mark.parametrize("text", ["8000", "FF00", "808000", "80808000", "8080808001", "FFFFFFFF7F"])
def test_over_long_and_too_long_variable_byte_integers_are_malformed(text: str) -> None:
    data = bytes.fromhex(text)
    with pytest.raises(MalformedPacket):
        read_variable_integer(data, 0, len(data))


@pytest.mark.parametrize("value", [-1, VARIABLE_INTEGER_MAX + 1])
def test_a_variable_byte_integer_out_of_bounds_is_the_callers_fault(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_variable_integer(value)


@given(st.integers(0, VARIABLE_INTEGER_MAX))
def test_reading_a_variable_byte_integer_undoes_writing_it(value: int) -> None:
    data = encode_variable_integer(value)
    assert read_variable_integer(data, 0, len(data)) == (value, len(data))


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_variable_integer, b""),
        (read_variable_integer, b"\x80"),
        (read_two_bytes, b"\0"),
        (read_four_bytes, b"\0\0\0"),
        (read_binary, b"\0"),
        (read_binary, b"\0\2x"),
        (read_string, b"\0\2x"),
    ],
)
def test_nothing_is_read_past_the_end(
    read: Callable[[bytes, int, int], object], data: bytes
) -> None:
    longer = data + b"\0\0\0\0"  # of the next packet
    with pytest.raises(MalformedPacket):
        read(longer, 0, len(data))


@pytest.mark.conformance("MQTT-1.5.4-1", "MQTT-1.5.4-2")
@pytest.mark.parametrize(
    ("what", "raw", "clause"),
    [
        ("surrogate D800", b"\xed\xa0\x80", "MQTT-1.5.4-1"),
        ("surrogate DFFF", b"\xed\xbf\xbf", "MQTT-1.5.4-1"),
        ("surrogate pair", b"\xed\xa0\xbd\xed\xb8\x80", "MQTT-1.5.4-1"),
        ("over-long /", b"\xc0\xaf", "MQTT-1.5.4-1"),
        ("over-long U+0000", b"\xc0\x80", "MQTT-1.5.4-1"),
        ("over-long in 3 bytes", b"\xe0\x80\xaf", "MQTT-1.5.4-1"),
        ("past U+10FFFF", b"\xf4\x90\x80\x80", "MQTT-1.5.4-1"),
        ("5 byte form", b"\xf8\x88\x80\x80\x80", "MQTT-1.5.4-1"),
        ("lone continuation", b"\x80", "MQTT-1.5.4-1"),
        ("cut off", b"\xe2\x82", "MQTT-1.5.4-1"),
        ("FF", b"\xff", "MQTT-1.5.4-1"),
        ("U+0000", b"a\0b", "MQTT-1.5.4-2"),
    ],
)
def test_strings_that_are_not_allowed(what: str, raw: bytes, clause: str) -> None:
    data = len(raw).to_bytes(2, "big") + raw
    with pytest.raises(MalformedPacket) as fault:
        read_string(data, 0, len(data))
    assert fault.value.clause == clause


@pytest.mark.conformance("MQTT-1.5.4-3")
@pytest.mark.parametrize("text", ["\ufeff", "a\ufeff", "\uffff", "\U0010ffff", "\x01\x7f\x9f"])
def test_strings_that_are_allowed_come_through_unchanged(text: str) -> None:
    data = encode_string(text)
    assert read_string(data, 0, len(data)) == (text, len(data))


@given(texts)
def test_reading_a_string_undoes_writing_it(text: str) -> None:
    data = encode_string(text)
    assert read_string(data, 0, len(data)) == (text, len(data))


@pytest.mark.conformance("MQTT-4.7.3-3")
def test_the_longest_string_and_binary_data() -> None:
    assert len(encode_string("x" * 65_535)) == 65_537
    assert read_binary(encode_binary(bytes(65_535)), 0, 65_537) == (bytes(65_535), 65_537)
    for too_long in ("x" * 65_536, "é" * 32_768):
        with pytest.raises(LocalProtocolError):
            encode_string(too_long)
    with pytest.raises(LocalProtocolError):
        encode_binary(bytes(65_536))


@pytest.mark.parametrize("text", ["\ud800", "a\0"])
def test_strings_that_must_not_be_written(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_string(text)


def test_big_endian_integers() -> None:
    assert read_two_bytes(b"\x01\x02", 0, 2) == (258, 2)
    assert read_four_bytes(b"\xff\x01\x02\x03\x04", 1, 5) == (0x01020304, 5)
