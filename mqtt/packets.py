"""The control packets of MQTT 3.1.1 and 5.0 as messages (section 3 of both).

One class a packet for both versions. Reason codes are those of MQTT 5; `properties` is empty in
3.1.1 and keyed by property identifier (`mqtt.properties`). A message holds what the wire says and
nothing else: the codec checks it, the machines give it meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias

from mqtt.properties import Properties

__all__ = [
    "AUTH",
    "CONNACK",
    "CONNECT",
    "DISCONNECT",
    "PACKET_NAMES",
    "PINGREQ",
    "PINGRESP",
    "PUBACK",
    "PUBCOMP",
    "PUBLISH",
    "PUBREC",
    "PUBREL",
    "SUBACK",
    "SUBSCRIBE",
    "UNSUBACK",
    "UNSUBSCRIBE",
    "V5",
    "V311",
    "Auth",
    "Connack",
    "Connect",
    "Disconnect",
    "Packet",
    "Pingreq",
    "Pingresp",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "Subscription",
    "Unsuback",
    "Unsubscribe",
    "Will",
]

V311: Final = 4  # the protocol level of MQTT 3.1.1
V5: Final = 5

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
PINGREQ: Final = 12
PINGRESP: Final = 13
DISCONNECT: Final = 14
AUTH: Final = 15

PACKET_NAMES: Final = (
    "reserved type 0",
    "CONNECT",
    "CONNACK",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "AUTH",
)


@dataclass(slots=True)
class Will:
    """The message a server publishes when the connection ends without a good-bye."""

    topic_name: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Connect:
    """A client's first packet. `clean_start` is named Clean Session in 3.1.1."""

    packet_type: ClassVar[int] = CONNECT
    client_id: str = ""
    protocol_version: int = V5
    clean_start: bool = True
    keep_alive: int = 0  # seconds; 0 = off
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Connack:
    """The server's answer to CONNECT."""

    packet_type: ClassVar[int] = CONNACK
    session_present: bool = False
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Publish:
    """An application message. `packet_id` is 0 exactly when `qos` is 0."""

    packet_type: ClassVar[int] = PUBLISH
    topic_name: str  # empty only in MQTT 5, when a topic alias stands for it
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Puback:
    """Acknowledges a QoS 1 PUBLISH."""

    packet_type: ClassVar[int] = PUBACK
    packet_id: int
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Pubrec:
    """Acknowledges a QoS 2 PUBLISH, first part."""

    packet_type: ClassVar[int] = PUBREC
    packet_id: int
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Pubrel:
    """Answers a PUBREC: the sender will not send the message again."""

    packet_type: ClassVar[int] = PUBREL
    packet_id: int
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Pubcomp:
    """Answers a PUBREL: the packet identifier is free again."""

    packet_type: ClassVar[int] = PUBCOMP
    packet_id: int
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Subscription:
    """A topic filter with its options; all but `qos` are MQTT 5 only."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0  # 0 send retained, 1 only if the subscription is new, 2 never


@dataclass(slots=True)
class Subscribe:
    """Asks for one or more subscriptions."""

    packet_type: ClassVar[int] = SUBSCRIBE
    packet_id: int
    subscriptions: list[Subscription]
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Suback:
    """One reason code a subscription, in the order of the SUBSCRIBE."""

    packet_type: ClassVar[int] = SUBACK
    packet_id: int
    reason_codes: list[int]
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Unsubscribe:
    """Ends one or more subscriptions."""

    packet_type: ClassVar[int] = UNSUBSCRIBE
    packet_id: int
    topic_filters: list[str]
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Unsuback:
    """One reason code a topic filter in MQTT 5; none in 3.1.1."""

    packet_type: ClassVar[int] = UNSUBACK
    packet_id: int
    reason_codes: list[int] = field(default_factory=list)
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Pingreq:
    """The client is alive."""

    packet_type: ClassVar[int] = PINGREQ


@dataclass(slots=True)
class Pingresp:
    """The server is alive too."""

    packet_type: ClassVar[int] = PINGRESP


@dataclass(slots=True)
class Disconnect:
    """The last packet of a connection; in 3.1.1 only a client's, without a reason."""

    packet_type: ClassVar[int] = DISCONNECT
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True)
class Auth:
    """One step of an enhanced authentication; MQTT 5 only."""

    packet_type: ClassVar[int] = AUTH
    reason_code: int = 0
    properties: Properties = field(default_factory=dict)


Packet: TypeAlias = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
