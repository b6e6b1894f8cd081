"""What the decoder refuses: the table of malformed packets, and rules that span packet types."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt.codec import Decoder, Role, encode
from mqtt.decoding import connect_version, decode
from mqtt.errors import MalformedPacket, MqttError, ProtocolError, UnsupportedProtocolVersion
from mqtt.frames import split
from mqtt.packets import PACKET_NAMES
from mqtt.reason_codes import ALLOWED
from tests.kit.mqtt_strategies import packets, versions
from tests.kit.mqtt_vectors import MALFORMED, VECTORS, Malformed, Vector

TO_SERVER = {1, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15}
TO_CLIENT = {2, 3, 4, 5, 6, 7, 9, 11, 13, 14, 15}
FLAG_CLAUSES = {6: "3.6.1-1", 8: "3.8.1-1", 10: "3.10.1-1", 14: "3.14.1-1", 15: "3.15.1-1"}


@pytest.mark.parametrize("case", MALFORMED, ids=[f"{c.version}-{c.name}" for c in MALFORMED])
@pytest.mark.conformance(*sorted({case.clause for case in MALFORMED if "-" in case.clause[5:]}))
def test_malformed_packets_get_the_reason_code_and_clause_they_deserve(case: Malformed) -> None:
    first_is_connect = case.data[0] >> 4 == 1
    role: Role | None = "client" if case.role == "client" else "server" if case.role else None
    decoder = Decoder(None if first_is_connect else case.version, role=role)
    [fault] = decoder.receive_data(case.data)
    assert isinstance(fault, ProtocolError)
    assert (fault.reason_code, fault.clause) == (case.reason_code, case.clause)


@pytest.mark.parametrize("case", MALFORMED, ids=[f"{c.version}-{c.name}" for c in MALFORMED])
def test_malformed_packets_are_refused_byte_by_byte_too(case: Malformed) -> None:
    decoder = Decoder(None if case.data[0] >> 4 == 1 else case.version)
    if case.role == "client":
        decoder.role = "client"
    elif case.role:
        decoder.role = "server"
    events = [event for byte in case.data for event in decoder.receive_data(bytes((byte,)))]
    assert [type(event) for event in events] == [type(decoder.fault)]
    assert isinstance(decoder.fault, MqttError)
    assert decoder.fault.reason_code == case.reason_code


@pytest.mark.conformance(
    "MQTT-2.1.3-1",
    "MQTT-3.1.1:2.2.2-2",
    *(f"MQTT-{clause}" for clause in FLAG_CLAUSES.values()),
)
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("packet_type", [t for t in range(1, 16) if t != 3])
def test_reserved_flags_must_have_their_value(packet_type: int, version: int) -> None:
    vectors = [v for v in VECTORS if v.version == version and v.data[0] >> 4 == packet_type]
    if not vectors:
        assert (packet_type, version) == (15, 4)
        return
    data = vectors[0].data
    right = 2 if packet_type in (6, 8, 10) else 0
    for flags in range(16):
        changed = bytes((packet_type << 4 | flags,)) + data[1:]
        [event] = Decoder(version).receive_data(changed)
        if flags == right:
            assert event == vectors[0].packet
        else:
            assert isinstance(event, MalformedPacket)
            assert event.clause == f"MQTT-{FLAG_CLAUSES.get(packet_type, '2.1.3-1')}"


@pytest.mark.parametrize("vector", VECTORS, ids=[f"{v.version}-{v.name}" for v in VECTORS])
def test_each_end_refuses_what_only_the_other_may_get(vector: Vector) -> None:
    data = vector.data
    packet_type = data[0] >> 4
    ends: list[tuple[Role, set[int]]] = [("server", TO_SERVER), ("client", TO_CLIENT)]
    for role, allowed in ends:
        if packet_type in allowed:
            continue
        [fault] = Decoder(vector.version, role=role).receive_data(data)
        assert isinstance(fault, ProtocolError)
        assert fault.reason_code == 0x82
        assert PACKET_NAMES[packet_type] in fault.detail


@pytest.mark.conformance(
    "MQTT-3.2.2-8",
    "MQTT-3.4.2-1",
    "MQTT-3.5.2-1",
    "MQTT-3.6.2-1",
    "MQTT-3.7.2-1",
    "MQTT-3.9.3-2",
    "MQTT-3.11.3-2",
    "MQTT-3.14.2-1",
    "MQTT-3.15.2-1",
)
@pytest.mark.parametrize("packet_type", sorted(ALLOWED))
def test_every_reason_code_is_taken_where_the_tables_list_it_and_nowhere_else(
    packet_type: int,
) -> None:
    before = {2: b"\0", 4: b"\0\1", 5: b"\0\1", 6: b"\0\1", 7: b"\0\1"}.get(packet_type, b"")
    after = {2: b"\0"}.get(packet_type, b"")
    if packet_type in (9, 11):
        before = b"\0\1\0"
    if packet_type == 15:
        after = b"\x04\x15\0\1m"
    flags = 2 if packet_type == 6 else 0
    for code in range(256):
        body = before + bytes((code,)) + after
        if code in ALLOWED[packet_type]:
            assert decode(packet_type << 4 | flags, body, 5).packet_type == packet_type
        else:
            with pytest.raises(ProtocolError) as fault:
                decode(packet_type << 4 | flags, body, 5)
            assert fault.value.reason_code == 0x82


@given(st.data(), versions)
def test_a_body_cut_short_is_an_error_or_another_packet_never_a_crash(
    data: st.DataObject, version: int
) -> None:
    encoded = encode(data.draw(packets(version)), version)
    frame = split(encoded)
    assert frame is not None
    body = encoded[frame[1] :]
    cut = data.draw(st.integers(0, len(body)))
    with contextlib.suppress(ProtocolError):
        again = decode(frame[0], body[:cut], version)
        assert again.packet_type == frame[0] >> 4


@pytest.mark.conformance("MQTT-3.1.2-1", "MQTT-3.1.2-2", "MQTT-3.1.1:3.1.2-2")
@pytest.mark.parametrize(
    ("text", "name", "level", "answer_version"),
    [
        ("0006 4D5149736470 03", "MQIsdp", 3, 4),
        ("0004 4D515454 03", "MQTT", 3, 4),
        ("0004 4D515454 84", "MQTT", 0x84, 4),
        ("0004 4D515454 06", "MQTT", 6, 5),
        ("0004 4D515454 06 02 003C 0001 61", "MQTT", 6, 4),  # laid out as in 3.1.1
        ("0004 4D515454 06 02 003C 00 0001 61", "MQTT", 6, 5),  # has a property length
        ("0004 4D515454 06 02 003C 00 0000", "MQTT", 6, 5),
        ("0004 4D515455 05", "MQTU", 5, 5),
        ("0004 4D515455 04", "MQTU", 4, 0),  # no MQTT: nobody knows what it reads
    ],
)
def test_other_protocols_are_told_apart_so_that_they_can_be_answered(
    text: str, name: str, level: int, answer_version: int
) -> None:
    with pytest.raises(UnsupportedProtocolVersion) as caught:
        connect_version(bytes.fromhex(text))
    fault = caught.value
    assert fault.reason_code == 0x84
    assert (fault.protocol_name, fault.protocol_level) == (name, level)
    assert fault.answer_version == answer_version
