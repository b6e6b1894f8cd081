"""What an MQTT client remembers between connections, and the events its machine hands out.

MQTT 5.0 section 4.1 (session state of a client) and 3.1.1 section 4.1. A `ClientSession` outlives
the `ClientConnection`s that use it, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from mqtt.errors import LocalProtocolError, MqttError
from mqtt.packets import Auth, Connack, Publish
from mqtt.properties import Properties
from mqtt.reason_codes import ReasonCode

__all__ = [
    "AWAIT_PUBACK",
    "AWAIT_PUBCOMP",
    "AWAIT_PUBREC",
    "QUEUED",
    "ClientEvent",
    "ClientSession",
    "Connected",
    "Disconnected",
    "Inbound",
    "Outbound",
    "Published",
    "Subscribed",
    "Unsubscribed",
]

# The life of an outbound message: what it waits for.
QUEUED: Final = 0  # a first sending: a connection, or the server's Receive Maximum
AWAIT_PUBACK: Final = 1  # QoS 1, sent
AWAIT_PUBREC: Final = 2  # QoS 2, sent
AWAIT_PUBCOMP: Final = 3  # QoS 2, the server owns the message


@dataclass(slots=True)
class Outbound:
    """A message of QoS 1 or 2 on its way to the server."""

    qos: int
    retain: bool
    topic: bytes
    payload: bytes  # b"" once the server owns it
    properties: Properties
    state: int = QUEUED
    sent: bool = False  # on this connection: an acknowledgement may come
    counted: bool = False  # takes a place in the server's Receive Maximum on this connection


@dataclass(slots=True)
class Inbound:
    """A message of QoS 1 or 2 the server sent, until its handshake is over."""

    publish: Publish
    reason_code: int | None = None  # the application's answer; None until it gave one
    properties: Properties = field(default_factory=dict)
    queued: bool = False  # the answer has its place in the order of this connection's answers


class ClientSession:
    """State that a reconnecting client must keep [MQTT-4.1.0-1].

    Invariants: `outbound` is in the order of publishing, and so in the order of re-sending
    [MQTT-4.6.0-1]; its packet ids and those of `inbound` are different worlds; `inbound` holds
    QoS 2 messages only.
    """

    __slots__ = ("_last_packet_id", "client_id", "inbound", "outbound")

    def __init__(self, client_id: str = "") -> None:
        self.client_id = client_id  # "" until the server has assigned one
        self.outbound: dict[int, Outbound] = {}
        self.inbound: dict[int, Inbound] = {}
        self._last_packet_id = 0

    def free_packet_id(self, also_used: dict[int, int]) -> int:
        """Return a packet id that neither `outbound` nor `also_used` has [MQTT-2.2.1-3].

        Raises:
            LocalProtocolError: all 65,535 are in use (0x97).
        """
        outbound = self.outbound
        packet_id = self._last_packet_id
        for _ in range(0xFFFF):
            packet_id = packet_id % 0xFFFF + 1
            if packet_id not in outbound and packet_id not in also_used:
                self._last_packet_id = packet_id
                return packet_id
        raise LocalProtocolError(
            "all packet identifiers are in use", "MQTT-2.2.1-3", ReasonCode.QUOTA_EXCEEDED
        )


@dataclass(slots=True)
class Connected:
    """The server took the connection."""

    connack: Connack


@dataclass(slots=True)
class Published:
    """A message of QoS 1 or 2 is settled: below 0x80 the server has it."""

    packet_id: int
    reason_code: int
    properties: Properties


@dataclass(slots=True)
class Subscribed:
    """The answer to a SUBSCRIBE, one reason code a topic filter."""

    packet_id: int
    reason_codes: list[int]
    properties: Properties


@dataclass(slots=True)
class Unsubscribed:
    """The answer to an UNSUBSCRIBE; MQTT 3.1.1 gives no reason codes."""

    packet_id: int
    reason_codes: list[int]
    properties: Properties


@dataclass(slots=True)
class Disconnected:
    """The connection is over: always the last event, exactly once.

    `error` is set when the protocol was broken, by the server or by silence; it is None after an
    orderly end or a refusal by the server, which `reason_code` and `properties` then tell.
    """

    reason_code: int
    detail: str
    by_peer: bool
    properties: Properties = field(default_factory=dict)
    error: MqttError | None = None


ClientEvent: TypeAlias = (
    Connected | Publish | Published | Subscribed | Unsubscribed | Auth | Disconnected
)
