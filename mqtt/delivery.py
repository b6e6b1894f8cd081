"""One message with QoS 1 or 2 on its way to one client (MQTT 5.0 section 4.3)."""

from __future__ import annotations

from mqtt.server_messages import Message
from mqtt.session_subscriptions import ShareGroup

__all__ = ["Delivery"]


class Delivery:
    """One message with QoS 1 or 2 on its way to one client."""

    __slots__ = (
        "counted",
        "dup",
        "held",
        "identifiers",
        "message",
        "moving",
        "qos",
        "released",
        "retain",
        "share",
        "size",
    )

    def __init__(
        self, message: Message, qos: int, retain: bool, identifiers: bytes, share: ShareGroup | None
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        self.share = share  # the shared subscription it came by
        self.size = message.size
        self.dup = False  # was sent before, on this connection or another [MQTT-3.3.1-1]
        self.released = False  # PUBREC came: PUBREL is what is to be sent
        self.counted = False  # takes a place in this connection's window
        self.held = False  # not to be sent before the store has it
        self.moving = False  # another member gets it: only the store keeps it, until that has it

    @property
    def movable(self) -> bool:
        """True when another member of the shared subscription that it came by may get it.

        A QoS 2 message that was sent stays with its client [MQTT-4.8.2-4] [MQTT-4.8.2-5].
        """
        return self.share is not None and not self.moving and (self.qos == 1 or not self.dup)
