"""What can go wrong in MQTT, told apart by whose fault it is.

`ProtocolError` and `MalformedPacket` are the peer's: the machines hand them out as events.
`LocalProtocolError` is the caller's: it is raised at the call that asked for the impossible, and
nothing has changed when it is.
"""

from __future__ import annotations

from mqtt.reason_codes import ReasonCode, describe

__all__ = [
    "LocalProtocolError",
    "MalformedPacket",
    "MqttError",
    "ProtocolError",
    "TruncatedPacket",
    "UnsupportedProtocolVersion",
]


class MqttError(Exception):
    """A breach of MQTT; `str()` is one line an operator can act on.

    Args:
        reason_code: The MQTT 5 reason code that names it; goes into CONNACK or DISCONNECT.
        detail: What was wrong, with the offending value.
        clause: The normative statement broken (`MQTT-3.3.1-4`), or the section, or "".
    """

    def __init__(self, reason_code: int, detail: str, clause: str = "") -> None:
        super().__init__(reason_code, detail, clause)
        self.reason_code = reason_code
        self.detail = detail
        self.clause = clause

    def __str__(self) -> str:
        clause = f" [{self.clause}]" if self.clause else ""
        return f"{describe(self.reason_code)}: {self.detail}{clause}"


class ProtocolError(MqttError):
    """The peer sent what the protocol does not allow: the connection has to end."""


class MalformedPacket(ProtocolError):  # noqa: N818 - the specification's own term
    """The peer sent bytes that are no MQTT packet (reason code 0x81)."""

    def __init__(self, detail: str, clause: str = "") -> None:
        super().__init__(ReasonCode.MALFORMED_PACKET, detail, clause)

    def __reduce__(self) -> tuple[type[MalformedPacket], tuple[str, str]]:
        return type(self), (self.detail, self.clause)


class TruncatedPacket(MalformedPacket):
    """A packet ends inside one of its fields: its lengths contradict each other."""


class UnsupportedProtocolVersion(ProtocolError):  # noqa: N818 - as above
    """A CONNECT for a protocol this library does not speak, MQTT 3.1 (`MQIsdp`) among them.

    `answer_version` is the version whose CONNACK the client will understand: 4 or 5, or 0 when
    there is none.
    """

    def __init__(
        self, protocol_name: str, protocol_level: int, clause: str, answer_version: int
    ) -> None:
        super().__init__(
            ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            f"protocol {protocol_name!r} level {protocol_level} is not supported; use MQTT 3.1.1"
            " (level 4) or 5.0 (level 5)",
            clause,
        )
        self.protocol_name = protocol_name
        self.protocol_level = protocol_level
        self.answer_version = answer_version

    def __reduce__(self) -> tuple[type[UnsupportedProtocolVersion], tuple[str, int, str, int]]:
        arguments = (self.protocol_name, self.protocol_level, self.clause, self.answer_version)
        return type(self), arguments


class LocalProtocolError(MqttError):
    """The caller asked for what the protocol or the peer's limits do not allow."""

    def __init__(
        self, detail: str, clause: str = "", reason_code: int = ReasonCode.PROTOCOL_ERROR
    ) -> None:
        super().__init__(reason_code, detail, clause)

    def __reduce__(self) -> tuple[type[LocalProtocolError], tuple[str, str, int]]:
        return type(self), (self.detail, self.clause, self.reason_code)
