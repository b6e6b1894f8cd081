"""Reason codes: the tables of MQTT 5.0 against each other, and their return codes in 3.1.1."""

from __future__ import annotations

import pytest

from mqtt.reason_codes import (
    ALLOWED,
    CONNECT_RETURN_CODES,
    DISCONNECT_FROM_CLIENT,
    DISCONNECT_FROM_SERVER,
    ReasonCode,
    connect_return_code,
    describe,
)

# Table 2-6 of the specification, row by row: the packets each reason code is for.
CONNACK, ACK, PUBREL, SUBACK, UNSUBACK, DISCONNECT, AUTH = 2, 4, 6, 9, 11, 14, 15
TABLE_2_6 = {
    0x00: {CONNACK, ACK, PUBREL, SUBACK, UNSUBACK, DISCONNECT, AUTH},
    0x01: {SUBACK},
    0x02: {SUBACK},
    0x04: {DISCONNECT},
    0x10: {ACK},
    0x11: {UNSUBACK},
    0x18: {AUTH},
    0x19: {AUTH},
    0x80: {CONNACK, ACK, SUBACK, UNSUBACK, DISCONNECT},
    0x81: {CONNACK, DISCONNECT},
    0x82: {CONNACK, DISCONNECT},
    0x83: {CONNACK, ACK, SUBACK, UNSUBACK, DISCONNECT},
    0x84: {CONNACK},
    0x85: {CONNACK},
    0x86: {CONNACK},
    0x87: {CONNACK, ACK, SUBACK, UNSUBACK, DISCONNECT},
    0x88: {CONNACK},
    0x89: {CONNACK, DISCONNECT},
    0x8A: {CONNACK},
    0x8B: {DISCONNECT},
    0x8C: {CONNACK},
    0x8D: {DISCONNECT},
    0x8E: {DISCONNECT},
    0x8F: {SUBACK, UNSUBACK, DISCONNECT},
    0x90: {CONNACK, ACK, DISCONNECT},
    0x91: {ACK, SUBACK, UNSUBACK},
    0x92: {PUBREL},
    0x93: {DISCONNECT},
    0x94: {DISCONNECT},
    0x95: {CONNACK, DISCONNECT},
    0x96: {DISCONNECT},
    0x97: {CONNACK, ACK, SUBACK, DISCONNECT},
    0x98: {DISCONNECT},
    0x99: {CONNACK, ACK, DISCONNECT},
    0x9A: {CONNACK, DISCONNECT},
    0x9B: {CONNACK, DISCONNECT},
    0x9C: {CONNACK, DISCONNECT},
    0x9D: {CONNACK, DISCONNECT},
    0x9E: {SUBACK, DISCONNECT},
    0x9F: {CONNACK, DISCONNECT},
    0xA0: {DISCONNECT},
    0xA1: {SUBACK, DISCONNECT},
    0xA2: {SUBACK, DISCONNECT},
}


@pytest.mark.parametrize("code", sorted(TABLE_2_6), ids=hex)
def test_the_packets_of_a_reason_code_are_those_of_the_table(code: int) -> None:
    same = {5: ACK, 7: PUBREL}  # PUBREC as PUBACK, PUBCOMP as PUBREL
    allowed = {same.get(packet, packet) for packet, codes in ALLOWED.items() if code in codes}
    assert allowed == TABLE_2_6[code]


def test_there_is_no_reason_code_but_those_of_the_table() -> None:
    assert {int(code) for code in ReasonCode} == set(TABLE_2_6)
    assert set().union(*ALLOWED.values()) == set(TABLE_2_6)


def test_who_may_disconnect_with_what() -> None:
    assert ALLOWED[DISCONNECT] == DISCONNECT_FROM_CLIENT | DISCONNECT_FROM_SERVER
    assert {ReasonCode.DISCONNECT_WITH_WILL} == DISCONNECT_FROM_CLIENT - DISCONNECT_FROM_SERVER
    assert ReasonCode.SESSION_TAKEN_OVER not in DISCONNECT_FROM_CLIENT


@pytest.mark.conformance("MQTT-3.1.1:3.2.2-6")
def test_return_codes_of_3_1_1_and_back() -> None:
    assert [connect_return_code(code) for code in CONNECT_RETURN_CODES] == [0, 1, 2, 3, 4, 5]
    assert connect_return_code(ReasonCode.SERVER_BUSY) == 3
    assert connect_return_code(ReasonCode.PACKET_TOO_LARGE) is None


def test_a_reason_code_as_people_read_it() -> None:
    assert describe(0x97) == "0x97 quota exceeded"
    assert describe(0x7F) == "0x7F unknown"
