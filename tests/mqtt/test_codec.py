"""The codec as a whole: the vector table both ways, the stream decoder, and their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.codec import Decoder, Limits, decode, encode
from mqtt.errors import MalformedPacket, MqttError, ProtocolError
from mqtt.frames import split
from mqtt.packets import (
    Connect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from mqtt.properties import USER_PROPERTY
from tests.kit.mqtt_strategies import packets, splits, versions
from tests.kit.mqtt_vectors import ACCEPTED, VECTORS, Vector


def names(vectors: list[Vector]) -> list[str]:
    return [f"{vector.version}-{vector.name}" for vector in vectors]


def events_of(decoder: Decoder, pieces: list[bytes]) -> list[Packet | MqttError]:
    return [event for piece in pieces for event in decoder.receive_data(piece)]


@pytest.mark.parametrize("vector", VECTORS, ids=names(VECTORS))
@pytest.mark.conformance(*sorted({vector.clause for vector in VECTORS}))
def test_a_packet_is_written_as_the_specification_says(vector: Vector) -> None:
    assert encode(vector.packet, vector.version) == vector.data


@pytest.mark.parametrize("vector", VECTORS + ACCEPTED, ids=names(VECTORS + ACCEPTED))
@pytest.mark.conformance(*sorted({vector.clause for vector in VECTORS + ACCEPTED}))
def test_bytes_are_read_as_the_specification_says(vector: Vector) -> None:
    assert Decoder(vector.version).receive_data(vector.data) == [vector.packet]


@pytest.mark.parametrize("vector", VECTORS, ids=names(VECTORS))
def test_every_vector_is_read_byte_by_byte_and_with_trailing_data(vector: Vector) -> None:
    pieces = [bytes((byte,)) for byte in vector.data]
    assert events_of(Decoder(vector.version), pieces) == [vector.packet]
    both = Decoder(vector.version).receive_data(vector.data + b"\xc0\0")
    assert both == [vector.packet, Pingreq()]


@given(st.data(), versions)
def test_decoding_undoes_encoding(data: st.DataObject, version: int) -> None:
    packet = data.draw(packets(version))
    encoded = encode(packet, version)
    frame = split(encoded)
    assert frame is not None
    first_byte, body, end = frame
    assert end == len(encoded)
    assert decode(first_byte, encoded[body:], version) == packet


@given(st.data(), versions)
def test_any_split_of_a_stream_gives_the_same_packets(data: st.DataObject, version: int) -> None:
    sent = data.draw(st.lists(packets(version), max_size=5))
    stream = b"".join(encode(packet, version) for packet in sent)
    pieces = data.draw(splits(stream))
    assert events_of(Decoder(version), pieces) == sent


@given(st.data(), versions)
def test_a_strict_prefix_asks_for_more_and_changes_nothing(
    data: st.DataObject, version: int
) -> None:
    packet = data.draw(packets(version))
    encoded = encode(packet, version)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    decoder = Decoder(version)
    assert decoder.receive_data(encoded[:cut]) == []
    assert decoder.fault is None
    assert decoder.receive_data(encoded[cut:]) == [packet]


@given(st.data(), versions)
def test_what_decoding_accepts_encoding_writes(data: st.DataObject, version: int) -> None:
    encoded = bytearray(encode(data.draw(packets(version)), version))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    for event in Decoder(version).receive_data(bytes(encoded)):
        if isinstance(event, MqttError):
            assert isinstance(event, ProtocolError)
            assert event.reason_code >= 0x80
            assert "\n" not in str(event)
        else:
            own = event.protocol_version if isinstance(event, Connect) else version
            again = encode(event, own)
            assert Decoder(own).receive_data(again) == [event]


@given(st.lists(st.binary(max_size=64), max_size=20), st.sampled_from((None, 4, 5)))
def test_random_bytes_give_packets_or_one_typed_error_in_bounded_memory(
    pieces: list[bytes], version: int | None
) -> None:
    decoder = Decoder(version, maximum_packet_size=200)
    events = events_of(decoder, pieces)
    faults = [event for event in events if isinstance(event, MqttError)]
    assert faults == ([decoder.fault] if decoder.fault else [])
    assert all(isinstance(fault, ProtocolError) for fault in faults)
    assert len(decoder._partial or b"") < 200


def test_packets_before_a_fault_are_delivered_and_nothing_after_it() -> None:
    decoder = Decoder(4)
    good = encode(Puback(1), 4)
    events = decoder.receive_data(good + b"\x00\x00" + good)
    assert events[0] == Puback(1)
    assert isinstance(events[1], MalformedPacket)
    assert len(events) == 2
    assert decoder.receive_data(good) == []


@pytest.mark.conformance("MQTT-3.1.0-1", "MQTT-2.1.3-1")
@pytest.mark.parametrize(
    ("what", "start", "clause"),
    [
        ("pingreq", b"\xc0\x00", "MQTT-3.1.0-1"),
        ("HTTP", b"GET / HTTP/1.1", "MQTT-3.1.0-1"),
        ("TLS", b"\x16\x03\x01\x02\x00", "MQTT-2.1.3-1"),
        ("CONNECT with flags", b"\x11\x7f", "MQTT-2.1.3-1"),
    ],
)
def test_a_server_refuses_anything_before_connect_at_once(
    what: str, start: bytes, clause: str
) -> None:
    [fault] = Decoder(None, role="server").receive_data(start)
    assert isinstance(fault, ProtocolError)
    assert fault.clause == clause


def test_a_server_learns_the_version_from_connect() -> None:
    decoder = Decoder(None, role="server")
    publish = Publish("t", b"x", properties={USER_PROPERTY: [("a", "b")]})
    stream = encode(Connect("c", 5), 5) + encode(publish, 5)
    assert decoder.receive_data(stream) == [Connect("c", 5), publish]
    assert decoder.version == 5


def test_the_version_is_known_when_the_rest_of_connect_is_malformed() -> None:
    decoder = Decoder(None, role="server")
    [fault] = decoder.receive_data(bytes.fromhex("10 0C 0004 4D515454 05 03 0000 0000"))
    assert isinstance(fault, MalformedPacket)
    assert decoder.version == 5


@pytest.mark.conformance("MQTT-3.2.2-15", "MQTT-3.1.2-24")
@pytest.mark.parametrize(
    ("role", "clause"), [("server", "MQTT-3.2.2-15"), ("client", "MQTT-3.1.2-24")]
)
def test_a_packet_too_large_is_refused_before_its_body_comes(role: str, clause: str) -> None:
    fits = encode(Publish("t", bytes(100)), 4)
    decoder = Decoder(4, len(fits), role)
    assert decoder.receive_data(fits) == [Publish("t", bytes(100))]
    too_large = encode(Publish("t", bytes(101)), 4)
    [fault] = decoder.receive_data(too_large[:2])
    assert isinstance(fault, ProtocolError)
    assert (fault.reason_code, fault.clause) == (0x95, clause)


def test_one_packet_cannot_make_the_decoder_hold_too_many_small_things() -> None:
    limits = Limits(user_properties_max=2, subscriptions_max=2)
    pairs = encode(Publish("t", properties={USER_PROPERTY: [("", "")] * 3}), 5)
    filters = encode(Subscribe(1, [Subscription("a")] * 3), 5)
    names = encode(Unsubscribe(1, ["a"] * 3), 5)
    for data in (pairs, filters, names):
        [fault] = Decoder(5, limits=limits).receive_data(data)
        assert isinstance(fault, ProtocolError)
        assert fault.reason_code == 0x97


def test_a_large_packet_in_small_pieces_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counting(data: bytes | bytearray, pos: int = 0) -> tuple[int, int, int] | None:
        nonlocal looks
        looks += 1
        return split(data, pos)

    monkeypatch.setattr("mqtt.codec.split", counting)
    packet = Publish("t", bytes(200_000))
    encoded = encode(packet, 4)
    pieces = [encoded[at : at + 100] for at in range(0, len(encoded), 100)]
    assert events_of(Decoder(4), pieces) == [packet]
    assert looks <= 3
