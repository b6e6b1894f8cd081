"""The fast path: it must see exactly what the codec sees, and refuse lengths that do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.codec import Decoder, encode
from mqtt.errors import LocalProtocolError, MalformedPacket
from mqtt.frames import PartialPacket, encode_publish, parse_publishes, split
from mqtt.packets import Publish
from mqtt.primitives import encode_variable_integer
from mqtt.properties import encode_property_block
from tests.kit.mqtt_strategies import publishes, versions
from tests.kit.mqtt_vectors import VECTORS, Vector


def parts_of(publish: Publish) -> tuple[int, bytes, int, bytes, bytes]:
    first_byte = 0x30 | publish.dup << 3 | publish.qos << 1 | publish.retain
    return (
        first_byte,
        publish.topic_name.encode(),
        publish.packet_id,
        encode_property_block(publish.properties, 3),
        publish.payload,
    )


@given(st.data(), versions)
def test_parts_are_what_the_codec_put_in(data: st.DataObject, version: int) -> None:
    sent = data.draw(st.lists(publishes(version), max_size=4))
    frames = b"".join(encode(publish, version) for publish in sent)
    assert parse_publishes(frames, version) == [parts_of(publish) for publish in sent]


@given(st.data(), versions)
def test_encoding_from_parts_gives_the_codecs_bytes(data: st.DataObject, version: int) -> None:
    publish = data.draw(publishes(version))
    assert encode_publish(*parts_of(publish), version) == encode(publish, version)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("size", [0, 116, 117, 118, 127, 128, 16_372, 16_384, 2_097_152])
def test_every_length_of_the_length(size: int, version: int) -> None:
    parts = (0x33, b"topic", 513, b"", bytes(size))
    frame = encode_publish(*parts, version)
    assert parse_publishes(frame * 2, version) == [parts] * 2
    received = Publish("topic", bytes(size), 1, True, packet_id=513)
    assert Decoder(version, 1 << 22).receive_data(frame) == [received]


def test_a_long_property_block() -> None:
    block = encode_property_block({0x09: bytes(40_000)}, 3)
    parts = (0x30, b"t", 0, block, b"payload")
    assert parse_publishes(encode_publish(*parts, 5), 5) == [parts]


@given(st.binary(max_size=80), versions)
def test_random_bytes_are_parts_of_the_same_size_or_malformed(data: bytes, version: int) -> None:
    try:
        parts = parse_publishes(data, version)
    except MalformedPacket:
        return
    assert sum(len(topic) + len(payload) + 4 for _, topic, _, _, payload in parts) <= len(data)
    again = b"".join(encode_publish(*each, version) for each in parts)
    assert parse_publishes(again, version) == parts


@given(st.data(), versions)
def test_a_run_that_is_cut_off_is_malformed(data: st.DataObject, version: int) -> None:
    frame = encode(data.draw(publishes(version)), version)
    cut = data.draw(st.integers(1, len(frame) - 1))
    with pytest.raises(MalformedPacket):
        parse_publishes(frame + frame[:cut], version)


@pytest.mark.parametrize(
    ("what", "version", "text"),
    [
        ("topic past the packet", 4, "30 03 0005 74 3003000174"),
        ("no room for the packet id", 4, "32 03 0001 74 3003000174"),
        ("property length past the packet", 5, "30 04 0001 74 05 3003000174"),
        ("no property length", 5, "30 03 0001 74 300400017400"),
        ("5 byte length", 4, "30 FFFFFFFF01"),
        ("5 byte property length", 5, "30 08 0001 74 FFFFFFFF01"),
        ("nothing in it", 4, "30 00 3003000174"),
    ],
)
def test_lengths_that_do_not_fit(what: str, version: int, text: str) -> None:
    with pytest.raises(MalformedPacket):
        parse_publishes(bytes.fromhex(text), version)


def test_nothing_is_no_publishes() -> None:
    assert parse_publishes(b"", 5) == []


def test_what_is_too_long_for_mqtt_is_the_callers_fault() -> None:
    with pytest.raises(LocalProtocolError):
        encode_publish(0x30, bytes(65_536), 0, b"", b"", 4)
    with pytest.raises(LocalProtocolError):
        encode_publish(0x30, b"t", 0, b"", bytes(268_435_455), 4)


# split


@pytest.mark.parametrize("vector", VECTORS, ids=[f"{v.version}-{v.name}" for v in VECTORS])
def test_split_finds_body_and_end_of_every_packet(vector: Vector) -> None:
    data = vector.data
    for before in (b"", b"\xc0\0"):
        pos = len(before)
        frame = split(before + data + b"more", pos)
        assert frame is not None
        first_byte, body, end = frame
        assert first_byte == data[0]
        assert end == pos + len(data)
        assert encode_variable_integer(end - body) == data[1 : body - pos]


@pytest.mark.parametrize("text", ["", "30", "3080", "30FFFF", "30FFFFFF"])
def test_split_asks_for_more_while_the_header_is_not_complete(text: str) -> None:
    assert split(bytes.fromhex(text)) is None
    assert split(b"\xc0\0" + bytes.fromhex(text), 2) is None


def test_split_tells_the_end_before_the_body_has_come() -> None:
    assert split(b"\x30\x80\x80\x01") == (0x30, 4, 4 + 16_384)


@pytest.mark.parametrize("text", ["30 80808080", "30 FFFFFF80", "30 FFFFFFFF7F"])
def test_split_refuses_a_length_of_more_than_four_bytes(text: str) -> None:
    with pytest.raises(MalformedPacket):
        split(bytes.fromhex(text))


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=30), st.integers(1, 100))
def test_a_packet_in_pieces_is_given_back_once_as_much_is_there_as_was_wanted(
    pieces: list[bytes], wanted: int
) -> None:
    partial = PartialPacket(pieces[0], wanted)
    so_far = pieces[0]
    for piece in pieces[1:]:
        whole = partial.add(piece)
        so_far += piece
        if len(so_far) >= wanted:
            assert whole == so_far
            return
        assert whole is None
        assert len(partial) == len(so_far)


def test_pieces_are_appended_in_place_so_that_joining_them_is_linear() -> None:
    partial = PartialPacket(b"x", 1 << 20)
    partial.add(b"x")
    buffer = partial._buffer
    for _ in range(1000):
        partial.add(b"x" * 100)
        assert partial._buffer is buffer
