"""Reason codes of MQTT 5.0 (section 2.4), which packets may carry them, and their 3.1.1 twins.

The library speaks MQTT 5 reason codes everywhere; the codec turns them into the return codes of
3.1.1 on the wire. Invariant: `ALLOWED[packet_type]` is the whole of the specification's table.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "ALLOWED",
    "CONNECT_RETURN_CODES",
    "DISCONNECT_FROM_CLIENT",
    "DISCONNECT_FROM_SERVER",
    "ReasonCode",
    "connect_return_code",
    "describe",
]


class ReasonCode(IntEnum):
    """Every reason code of MQTT 5.0; below 0x80 the operation succeeded."""

    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


_PUBLISH_RECEIVED: Final = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))

# Table 3-10: who may send which reason code in a DISCONNECT.
_DISCONNECT_BOTH: Final = frozenset(
    (0x00, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)
)
DISCONNECT_FROM_CLIENT: Final = _DISCONNECT_BOTH | {0x04}
DISCONNECT_FROM_SERVER: Final = _DISCONNECT_BOTH | {
    *(0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F),
    *(0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2),
}

ALLOWED: Final[dict[int, frozenset[int]]] = {
    # CONNACK, table 3-1
    2: frozenset(
        (0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F)
    ),
    4: _PUBLISH_RECEIVED,  # PUBACK, table 3-4
    5: _PUBLISH_RECEIVED,  # PUBREC, table 3-5
    6: frozenset((0x00, 0x92)),  # PUBREL, table 3-6
    7: frozenset((0x00, 0x92)),  # PUBCOMP, table 3-7
    # SUBACK, table 3-8
    9: frozenset((0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    11: frozenset((0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),  # UNSUBACK, table 3-9
    14: DISCONNECT_FROM_CLIENT | DISCONNECT_FROM_SERVER,
    15: frozenset((0x00, 0x18, 0x19)),  # AUTH, table 3-11
}
"""Packet type -> the reason codes it may carry in MQTT 5."""

CONNECT_RETURN_CODES: Final[tuple[int, ...]] = (0x00, 0x84, 0x85, 0x88, 0x86, 0x87)
"""The reason code that each CONNACK return code 0-5 of MQTT 3.1.1 (table 3.1) stands for."""

_RETURN_CODES: Final[dict[int, int]] = {
    **{reason: code for code, reason in enumerate(CONNECT_RETURN_CODES)},
    0x89: 3,  # busy: unavailable for now
    0x8A: 5,  # banned: not authorized
    0x8C: 4,  # bad authentication method
    0x97: 3,  # quota exceeded
    0x9F: 3,  # connection rate exceeded
}

_NAMES: Final[dict[int, str]] = {
    int(code): code.name.lower().replace("_", " ") for code in ReasonCode
}


def connect_return_code(reason_code: int) -> int | None:
    """Return the 3.1.1 CONNACK return code for a reason code.

    None when none applies: the server then closes without a CONNACK [MQTT-3.1.1:3.2.2-6].
    """
    return _RETURN_CODES.get(reason_code)


def describe(reason_code: int) -> str:
    """Return `0x87 not authorized`: a reason code as a person reads it."""
    return f"0x{reason_code:02X} {_NAMES.get(reason_code, 'unknown')}"
