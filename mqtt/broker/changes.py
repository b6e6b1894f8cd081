"""What a session store is told to keep, change by change, and what it gives back when opened.

A change is a named tuple; a store applies changes in the order they were put, each group in one
transaction. Times are wall clock microseconds since 1970 UTC, 0 for never or not yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "MAYBE_SENT",
    "RELEASED",
    "UNSENT",
    "Change",
    "DeliveryEnded",
    "DeliveryReleased",
    "DeliverySaved",
    "InboundEnded",
    "InboundRecovered",
    "InboundSaved",
    "Marked",
    "MessageEnded",
    "MessageSaved",
    "OfferEnded",
    "OfferSaved",
    "OfferTaken",
    "RetainedEnded",
    "RetainedSaved",
    "SessionEnded",
    "SessionSaved",
    "StoredState",
    "SubscriptionEnded",
    "SubscriptionSaved",
]

# How far a delivery had got when the store was last told.
MAYBE_SENT: Final = 0
RELEASED: Final = 1  # PUBREC came
UNSENT: Final = 2  # queued while the client was away, and it has not come back since


class SessionSaved(NamedTuple):
    """A session was made, or its version, expiry, will or connection changed."""

    client_id: str
    version: int
    expiry_s: int
    away_since_us: int  # 0 while connected
    will_topic: bytes | None
    will_payload: bytes
    will_properties: bytes
    will_flags: int  # QoS, and RETAIN as bit 2
    will_delay_s: int
    will_expiry_s: int  # -1 for none


class SessionEnded(NamedTuple):
    """A session ended, and all that hangs on it but its messages, which end one by one."""

    client_id: str


class SubscriptionSaved(NamedTuple):
    """A subscription was made or changed."""

    client_id: str
    topic_filter: str
    options: int  # as in SUBSCRIBE: QoS, no local, retain as published, retain handling
    identifier: int  # 0 for none


class SubscriptionEnded(NamedTuple):
    """A subscription ended."""

    client_id: str
    topic_filter: str


class MessageSaved(NamedTuple):
    """A message that deliveries refer to."""

    message_id: int
    topic: bytes
    payload: bytes
    properties: bytes
    qos: int
    retain: int
    expires_us: int
    publisher: str | None


class MessageEnded(NamedTuple):
    """No delivery refers to a message any more."""

    message_id: int


class DeliverySaved(NamedTuple):
    """A message was queued for a session; the order of saving is the order of sending."""

    client_id: str
    packet_id: int
    message_id: int
    qos: int
    retain: int
    identifiers: bytes
    share: str  # the shared subscription's filter, "" for none
    progress: int = 0  # MAYBE_SENT, RELEASED or UNSENT


class DeliveryReleased(NamedTuple):
    """PUBREC came for a delivery."""

    client_id: str
    packet_id: int


class DeliveryEnded(NamedTuple):
    """A delivery was acknowledged for good, or dropped."""

    client_id: str
    packet_id: int


class InboundSaved(NamedTuple):
    """A QoS 2 publish was received under this packet identifier."""

    client_id: str
    packet_id: int


class InboundEnded(NamedTuple):
    """PUBREL came: the identifier is free again."""

    client_id: str
    packet_id: int


class InboundRecovered(NamedTuple):
    """After a crash: a QoS 2 publish that the capture holds and the store did not know of."""

    client_id: str
    packet_id: int
    check: int  # `mqtt.session.publish_check` of it


class Marked(NamedTuple):
    """Every QoS 2 identifier that the capture holds up to a position was put before this."""

    epoch: int
    seq: int


class OfferSaved(NamedTuple):
    """A delivery of which its sender wants to know what became of it, over restarts too.

    It is put before the delivery, and taken or ended before the delivery ends: whatever a crash
    leaves, a client's acknowledgement and the word of it are never apart.
    """

    token: str  # the sender's
    client_id: str
    packet_id: int
    taken: int = 0  # 1: the client has acknowledged it


class OfferTaken(NamedTuple):
    """The client has acknowledged it: kept until the sender has noted that."""

    token: str


class OfferEnded(NamedTuple):
    """It was dropped, or its sender has noted what became of it."""

    token: str


class RetainedSaved(NamedTuple):
    """A topic's retained message."""

    topic: bytes
    payload: bytes
    properties: bytes
    qos: int
    expires_us: int
    publisher: str | None


class RetainedEnded(NamedTuple):
    """A topic has no retained message any more."""

    topic: bytes


Change: TypeAlias = (
    SessionSaved
    | SessionEnded
    | SubscriptionSaved
    | SubscriptionEnded
    | MessageSaved
    | MessageEnded
    | DeliverySaved
    | DeliveryReleased
    | DeliveryEnded
    | InboundSaved
    | InboundEnded
    | InboundRecovered
    | Marked
    | OfferSaved
    | OfferTaken
    | OfferEnded
    | RetainedSaved
    | RetainedEnded
)


@dataclass(slots=True)
class StoredState:
    """Everything a store holds, as changes; deliveries in sending order."""

    sessions: list[SessionSaved] = field(default_factory=list)
    subscriptions: list[SubscriptionSaved] = field(default_factory=list)
    messages: list[MessageSaved] = field(default_factory=list)
    deliveries: list[DeliverySaved] = field(default_factory=list)
    inbound: list[InboundSaved] = field(default_factory=list)
    retained: list[RetainedSaved] = field(default_factory=list)
    recovered: list[InboundRecovered] = field(default_factory=list)
    mark: Marked | None = None
    offers: list[OfferSaved] = field(default_factory=list)
