"""Properties of MQTT 5.0 (section 2.2.2): identifiers, types, and the property x packet table.

In a packet they are a dict from identifier to value: int, str or bytes; USER_PROPERTY has a list
of (name, value) pairs and SUBSCRIPTION_IDENTIFIER a list of ints. Wire order is kept for user
properties [MQTT-3.3.2-18]; between different properties it carries no meaning.
Invariant: `TABLE` is the whole of table 2-4; what it does not list is not allowed.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from mqtt.errors import LocalProtocolError, MalformedPacket, ProtocolError, TruncatedPacket
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
from mqtt.reason_codes import ReasonCode

__all__ = [
    "ASSIGNED_CLIENT_IDENTIFIER",
    "AUTHENTICATION_DATA",
    "AUTHENTICATION_METHOD",
    "CONTENT_TYPE",
    "CORRELATION_DATA",
    "MAXIMUM_PACKET_SIZE",
    "MAXIMUM_QOS",
    "MESSAGE_EXPIRY_INTERVAL",
    "PAYLOAD_FORMAT_INDICATOR",
    "REASON_STRING",
    "RECEIVE_MAXIMUM",
    "REQUEST_PROBLEM_INFORMATION",
    "REQUEST_RESPONSE_INFORMATION",
    "RESPONSE_INFORMATION",
    "RESPONSE_TOPIC",
    "RETAIN_AVAILABLE",
    "SERVER_KEEP_ALIVE",
    "SERVER_REFERENCE",
    "SESSION_EXPIRY_INTERVAL",
    "SHARED_SUBSCRIPTION_AVAILABLE",
    "SUBSCRIPTION_IDENTIFIER",
    "SUBSCRIPTION_IDENTIFIER_AVAILABLE",
    "TABLE",
    "TOPIC_ALIAS",
    "TOPIC_ALIAS_MAXIMUM",
    "USER_PROPERTIES_MAX",
    "USER_PROPERTY",
    "WILDCARD_SUBSCRIPTION_AVAILABLE",
    "WILL",
    "WILL_DELAY_INTERVAL",
    "Kind",
    "Properties",
    "Property",
    "check_property",
    "decode_properties",
    "encode_properties",
    "encode_property_block",
]

# The value's type follows from the identifier (see `Kind`), which a dict's type cannot say.
Properties: TypeAlias = dict[int, Any]

PAYLOAD_FORMAT_INDICATOR: Final = 0x01
MESSAGE_EXPIRY_INTERVAL: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SUBSCRIPTION_IDENTIFIER: Final = 0x0B
SESSION_EXPIRY_INTERVAL: Final = 0x11
ASSIGNED_CLIENT_IDENTIFIER: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
AUTHENTICATION_METHOD: Final = 0x15
AUTHENTICATION_DATA: Final = 0x16
REQUEST_PROBLEM_INFORMATION: Final = 0x17
WILL_DELAY_INTERVAL: Final = 0x18
REQUEST_RESPONSE_INFORMATION: Final = 0x19
RESPONSE_INFORMATION: Final = 0x1A
SERVER_REFERENCE: Final = 0x1C
REASON_STRING: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS_MAXIMUM: Final = 0x22
TOPIC_ALIAS: Final = 0x23
MAXIMUM_QOS: Final = 0x24
RETAIN_AVAILABLE: Final = 0x25
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27
WILDCARD_SUBSCRIPTION_AVAILABLE: Final = 0x28
SUBSCRIPTION_IDENTIFIER_AVAILABLE: Final = 0x29
SHARED_SUBSCRIPTION_AVAILABLE: Final = 0x2A

WILL: Final = 0
"""The column of will properties in `TABLE`; the other columns are packet types."""

USER_PROPERTIES_MAX: Final = 1024
"""Default limit on user properties a packet: an empty pair takes 5 bytes on the wire, 100 here."""


class Kind:
    """The data types of property values (section 1.5)."""

    BYTE: Final = 0
    TWO_BYTES: Final = 1
    FOUR_BYTES: Final = 2
    VARIABLE: Final = 3
    STRING: Final = 4
    BINARY: Final = 5
    PAIR: Final = 6


class Property(NamedTuple):
    """One row of table 2-4."""

    name: str
    kind: int
    packets: frozenset[int]
    clause: str
    minimum: int = 0
    maximum: int = 0  # 0: what the kind can hold


_P = Property
_CONNECT, _CONNACK, _PUBLISH, _SUBSCRIBE, _UNSUBSCRIBE = 1, 2, 3, 8, 10
_ACKS: Final = (4, 5, 6, 7, 9, 11)
_MESSAGE: Final = frozenset((WILL, _PUBLISH))
_AUTHENTICATED: Final = frozenset((_CONNECT, _CONNACK, 15))
_ONLY_CONNECT: Final = frozenset((_CONNECT,))
_ONLY_CONNACK: Final = frozenset((_CONNACK,))
_BOTH: Final = frozenset((_CONNECT, _CONNACK))

TABLE: Final[dict[int, Property]] = {
    0x01: _P("payload format indicator", Kind.BYTE, _MESSAGE, "MQTT-3.3.2.3.2", 0, 1),
    0x02: _P("message expiry interval", Kind.FOUR_BYTES, _MESSAGE, "MQTT-3.3.2.3.3"),
    0x03: _P("content type", Kind.STRING, _MESSAGE, "MQTT-3.3.2-19"),
    0x08: _P("response topic", Kind.STRING, _MESSAGE, "MQTT-3.3.2-13"),
    0x09: _P("correlation data", Kind.BINARY, _MESSAGE, "MQTT-3.3.2.3.6"),
    0x0B: _P(
        "subscription identifier",
        Kind.VARIABLE,
        frozenset((_PUBLISH, _SUBSCRIBE)),
        "MQTT-3.8.2.1.2",
        1,
    ),
    0x11: _P(
        "session expiry interval",
        Kind.FOUR_BYTES,
        frozenset((_CONNECT, _CONNACK, 14)),
        "MQTT-3.1.2.11.2",
    ),
    0x12: _P("assigned client identifier", Kind.STRING, _ONLY_CONNACK, "MQTT-3.2.2.3.7"),
    0x13: _P("server keep alive", Kind.TWO_BYTES, _ONLY_CONNACK, "MQTT-3.2.2.3.14"),
    0x15: _P("authentication method", Kind.STRING, _AUTHENTICATED, "MQTT-3.1.2.11.9"),
    0x16: _P("authentication data", Kind.BINARY, _AUTHENTICATED, "MQTT-3.1.2.11.10"),
    0x17: _P("request problem information", Kind.BYTE, _ONLY_CONNECT, "MQTT-3.1.2.11.7", 0, 1),
    0x18: _P("will delay interval", Kind.FOUR_BYTES, frozenset((WILL,)), "MQTT-3.1.3.2.2"),
    0x19: _P("request response information", Kind.BYTE, _ONLY_CONNECT, "MQTT-3.1.2.11.6", 0, 1),
    0x1A: _P("response information", Kind.STRING, _ONLY_CONNACK, "MQTT-3.2.2.3.15"),
    0x1C: _P("server reference", Kind.STRING, frozenset((_CONNACK, 14)), "MQTT-3.2.2.3.16"),
    0x1F: _P("reason string", Kind.STRING, frozenset((_CONNACK, *_ACKS, 14, 15)), "MQTT-3.2.2.3.9"),
    0x21: _P("receive maximum", Kind.TWO_BYTES, _BOTH, "MQTT-3.1.2.11.3", 1),
    0x22: _P("topic alias maximum", Kind.TWO_BYTES, _BOTH, "MQTT-3.1.2.11.5"),
    0x23: _P("topic alias", Kind.TWO_BYTES, frozenset((_PUBLISH,)), "MQTT-3.3.2-8", 1),
    0x24: _P("maximum QoS", Kind.BYTE, _ONLY_CONNACK, "MQTT-3.2.2.3.4", 0, 1),
    0x25: _P("retain available", Kind.BYTE, _ONLY_CONNACK, "MQTT-3.2.2.3.5", 0, 1),
    0x26: _P(
        "user property",
        Kind.PAIR,
        frozenset((WILL, *range(1, 12), 14, 15)),
        "MQTT-1.5.7-1",
    ),
    0x27: _P("maximum packet size", Kind.FOUR_BYTES, _BOTH, "MQTT-3.1.2.11.4", 1),
    0x28: _P("wildcard subscription available", Kind.BYTE, _ONLY_CONNACK, "MQTT-3.2.2.3.11", 0, 1),
    0x29: _P(
        "subscription identifiers available", Kind.BYTE, _ONLY_CONNACK, "MQTT-3.2.2.3.12", 0, 1
    ),
    0x2A: _P("shared subscription available", Kind.BYTE, _ONLY_CONNACK, "MQTT-3.2.2.3.13", 0, 1),
}

_REPEATED: Final = frozenset((USER_PROPERTY, SUBSCRIPTION_IDENTIFIER))
_MAXIMA: Final = (0xFF, 0xFFFF, 0xFFFFFFFF, VARIABLE_INTEGER_MAX)


def check_property(identifier: int, value: int) -> str:
    """Return what is wrong with a numeric value, or "" when it is in bounds."""
    row = TABLE[identifier]
    if value < row.minimum or value > (row.maximum or _MAXIMA[row.kind]):
        return f"{row.name} must not be {value}"
    return ""


def decode_properties(
    data: bytes,
    pos: int,
    end: int,
    packet: int,
    user_properties_max: int = USER_PROPERTIES_MAX,
) -> tuple[Properties, int]:
    """Read a property length and the properties it covers.

    Args:
        data: The packet's body.
        pos: Offset of the property length.
        end: Offset that reading never passes.
        packet: The packet type, or WILL.
        user_properties_max: More user properties are refused with 0x97.

    Returns:
        The properties and the position after them.

    Raises:
        ProtocolError: 0x81 malformed, or with a property that is not allowed there; 0x82 for one
            that comes twice or is out of bounds; 0x94 for topic alias 0; 0x97 for too many user
            properties.
    """
    length, pos = read_variable_integer(data, pos, end)
    if not length:
        return {}, pos
    after = pos + length
    if after > end:
        raise TruncatedPacket("property length runs past the packet", "MQTT-2.2.2.1")
    properties: Properties = {}
    while pos < after:
        identifier, pos = read_variable_integer(data, pos, after)
        row = TABLE.get(identifier)
        if row is None:
            raise MalformedPacket(f"unknown property 0x{identifier:02X}", "MQTT-2.2.2.2")
        if packet not in row.packets:
            raise MalformedPacket(f"property {row.name} is not allowed here", "MQTT-2.2.2.2")
        value, pos = _read_value(identifier, row, data, pos, after)
        if identifier in _REPEATED:
            values = properties.setdefault(identifier, [])
            values.append(value)
            if len(values) > user_properties_max:
                raise ProtocolError(ReasonCode.QUOTA_EXCEEDED, f"too many of {row.name}")
            # Only a server's PUBLISH may carry several.
            if packet == _SUBSCRIBE and identifier != USER_PROPERTY and len(values) > 1:
                raise _twice(row)
        elif identifier in properties:
            raise _twice(row)
        else:
            properties[identifier] = value
    return properties, after


def encode_properties(properties: Properties, packet: int) -> bytes:
    """Return the property length and properties; b"\\0" when there are none [MQTT-2.2.2-1].

    Raises:
        LocalProtocolError: a property is not allowed in `packet`, or its value is out of bounds.
    """
    if not properties:
        return b"\0"
    block = encode_property_block(properties, packet)
    return encode_variable_integer(len(block)) + block


def encode_property_block(properties: Properties, packet: int) -> bytes:
    """Return the properties without their length, as `mqtt.frames` takes them."""
    parts: list[bytes] = []
    for identifier, value in properties.items():
        row = TABLE.get(identifier)
        if row is None or packet not in row.packets:
            name = f"property 0x{identifier:02X}" if row is None else f"property {row.name}"
            raise LocalProtocolError(f"{name} is not allowed here", "MQTT-2.2.2.2")
        if identifier in _REPEATED:
            if packet == _SUBSCRIBE and identifier != USER_PROPERTY and len(value) > 1:
                raise LocalProtocolError(f"more than one {row.name}", row.clause)
            for item in value:
                parts.append(bytes((identifier,)))
                parts.append(_encode_value(identifier, row, item))
        else:
            parts.append(bytes((identifier,)))
            parts.append(_encode_value(identifier, row, value))
    return b"".join(parts)


def _read_value(
    identifier: int, row: Property, data: bytes, pos: int, end: int
) -> tuple[object, int]:
    kind = row.kind
    if kind == Kind.STRING:
        text, pos = read_string(data, pos, end)
        if identifier == RESPONSE_TOPIC and ("+" in text or "#" in text or not text):
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"response topic {text!r} is no topic name",
                "MQTT-3.3.2-14",
            )
        return text, pos
    if kind == Kind.PAIR:
        name, pos = read_string(data, pos, end)
        text, pos = read_string(data, pos, end)
        return (name, text), pos
    if kind == Kind.BINARY:
        return read_binary(data, pos, end)
    if kind == Kind.BYTE:
        if pos >= end:
            raise TruncatedPacket("packet ends inside a property", "MQTT-1.5.1")
        number = data[pos]
        pos += 1
    elif kind == Kind.TWO_BYTES:
        number, pos = read_two_bytes(data, pos, end)
    elif kind == Kind.FOUR_BYTES:
        number, pos = read_four_bytes(data, pos, end)
    else:
        number, pos = read_variable_integer(data, pos, end)
    fault = check_property(identifier, number)
    if fault:
        reason = ReasonCode.PROTOCOL_ERROR
        if identifier == TOPIC_ALIAS:
            reason = ReasonCode.TOPIC_ALIAS_INVALID
        raise ProtocolError(reason, fault, row.clause)
    return number, pos


def _encode_value(identifier: int, row: Property, value: Any) -> bytes:
    kind = row.kind
    if kind == Kind.STRING:
        if identifier == RESPONSE_TOPIC and ("+" in value or "#" in value or not value):
            raise LocalProtocolError(f"response topic {value!r} is no topic name", "MQTT-3.3.2-14")
        return encode_string(value)
    if kind == Kind.PAIR:
        name, text = value
        return encode_string(name) + encode_string(text)
    if kind == Kind.BINARY:
        return encode_binary(value)
    fault = check_property(identifier, value)
    if fault:
        raise LocalProtocolError(fault, row.clause)
    number = int(value)
    if kind == Kind.VARIABLE:
        return encode_variable_integer(number)
    return number.to_bytes((1, 2, 4)[kind], "big")


def _twice(row: Property) -> ProtocolError:
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, f"property {row.name} comes twice", row.clause)
