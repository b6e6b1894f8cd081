"""Application messages inside a server: what is routed, queued and retained, and its frames.

A `Message` is shared by everyone who gets it: its frames are encoded once a form (version, first
byte, extra properties) and not once a subscriber. MQTT 5.0 section 3.3.
Invariant: `topic`, `payload` and `properties` never change; what a receiver's copy adds
(subscription identifiers, what is left of the expiry, a topic alias) comes in as `extra`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Final

from mqtt.errors import ProtocolError
from mqtt.primitives import encode_variable_integer
from mqtt.properties import (
    MESSAGE_EXPIRY_INTERVAL,
    PAYLOAD_FORMAT_INDICATOR,
    SUBSCRIPTION_IDENTIFIER,
    TOPIC_ALIAS,
    Properties,
    decode_properties,
    encode_property_block,
)
from mqtt.reason_codes import ReasonCode

__all__ = [
    "Message",
    "PropertyBlocks",
    "PublishProperties",
    "expiry_property",
    "publish_parts",
    "publish_pieces",
]

_PUBLISH: Final = 3
_EXPIRY_MAX_S: Final = 0xFFFF_FFFF
_NO_PARTS: Final = (b"", b"")
_CACHED_BLOCKS_MAX: Final = 256
_CACHED_BLOCK_BYTES_MAX: Final = 256


class Message:
    """One application message; `expires_s` is on the server's monotonic clock, 0.0 for never."""

    __slots__ = (
        "_form",
        "_frames",
        "_parts",
        "expires_s",
        "payload",
        "properties",
        "publisher",
        "qos",
        "retain",
        "store_id",
        "store_refs",
        "token",
        "topic",
        "tracker",
    )

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        properties: bytes = b"",
        expires_s: float = 0.0,
        publisher: str | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain  # as published
        self.properties = properties  # MQTT 5 block without length, expiry and alias
        self.expires_s = expires_s
        self.publisher = publisher  # client id, for no-local; None for the server's own
        self._form: object = None  # of the encoded form in `_parts`; most messages have one
        self._parts: tuple[bytes, bytes] = _NO_PARTS
        self._frames: dict[object, tuple[bytes, bytes]] | None = None  # the others
        self.store_id = 0  # the session store's id once it holds the message
        self.store_refs = 0  # deliveries in the store that need it
        # Told once: True when the client has it, False when it was dropped. Such a message is kept
        # by whoever sent it, and by the session store only if it has a token.
        self.tracker: Callable[[bool], None] | None = None
        self.token = ""  # by which its sender knows it again after a restart

    @property
    def is_stored(self) -> bool:
        """True when the session store keeps it for sessions that last."""
        return self.tracker is None or bool(self.token)

    @property
    def size(self) -> int:
        """Bytes that this message counts against a queue's limit."""
        return len(self.topic) + len(self.payload) + len(self.properties)

    def frame_parts(self, first_byte: int, version: int, extra: bytes = b"") -> tuple[bytes, bytes]:
        """Return what goes before and after the packet identifier of a PUBLISH.

        With QoS 0 there is none: the first part is then the whole packet.

        Args:
            first_byte: Packet type, QoS and RETAIN; DUP is not part of the cached form.
            version: 4 or 5 of the receiver.
            extra: MQTT 5 properties of this receiver's copy, encoded.
        """
        key: object = (first_byte << 3 | version, extra) if extra else first_byte << 3 | version
        if key == self._form:
            return self._parts
        frames = self._frames
        parts = frames.get(key) if frames is not None else None
        if parts is not None:
            return parts
        parts = publish_parts(
            first_byte, version, self.topic, extra + self.properties, self.payload
        )
        if self._form is None:
            self._form, self._parts = key, parts
        elif frames is None:
            self._frames = {key: parts}
        elif len(frames) < 8:  # a few forms serve nearly all; the rest is encoded each time
            frames[key] = parts
        return parts

    def came_as(self, first_byte: int, version: int, head: bytes, tail: bytes) -> None:
        """Take the packet that the message came in for its encoded form, cut as by `frame_parts`.

        It has to be what `frame_parts` would make: of no retained message, its length encoded in as
        few bytes as can be.
        """
        self._form, self._parts = first_byte << 3 | version, (head, tail)

    def forget_frames(self) -> None:
        """Free the encoded forms: the message goes into a queue or is retained."""
        self._form = self._frames = None
        self._parts = _NO_PARTS


def publish_parts(
    first_byte: int, version: int, topic: bytes, properties: bytes, payload: bytes
) -> tuple[bytes, bytes]:
    """Return a PUBLISH cut at its packet identifier; whole in the first part with QoS 0."""
    block = b""
    if version >= 5:
        size = len(properties)
        block = encode_variable_integer(size) + properties if size else b"\0"
    topic_size = len(topic)
    length = 2 + topic_size + len(block) + len(payload)
    qos = first_byte & 0x06
    if qos:
        length += 2
    header = bytes((first_byte, length)) if length < 0x80 else None
    if header is None:
        header = bytes((first_byte,)) + encode_variable_integer(length)
    head = b"%b%c%c%b" % (header, topic_size >> 8, topic_size & 0xFF, topic)
    if qos:
        return head, block + payload
    return b"%b%b%b" % (head, block, payload), b""


def publish_pieces(
    first_byte: int, version: int, message: Message, packet_id: int, extra: bytes
) -> tuple[bytes, ...]:
    """Return a PUBLISH in pieces, for one `join` of many packets.

    Args:
        first_byte: Packet type, QoS and RETAIN.
        version: 4 or 5 of the receiver.
        message: What to send.
        packet_id: The packet identifier, not used with QoS 0.
        extra: MQTT 5 properties of this receiver's copy, encoded.
    """
    topic = message.topic
    payload = message.payload
    topic_size = len(topic)
    length = 2 + topic_size + len(payload)
    identifier = block = b""
    if first_byte & 0x06:
        length += 2
        identifier = packet_id.to_bytes(2, "big")
    if version >= 5:
        properties = extra + message.properties
        size = len(properties)
        block = encode_variable_integer(size) + properties if size else b"\0"
        length += len(block)
    if length < 0x80:
        head = bytes((first_byte, length, topic_size >> 8, topic_size & 0xFF))
    elif length < 0x4000:
        head = bytes(
            (first_byte, length & 0x7F | 0x80, length >> 7, topic_size >> 8, topic_size & 0xFF)
        )
    else:
        head = b"%c%b%b" % (
            first_byte,
            encode_variable_integer(length),
            topic_size.to_bytes(2, "big"),
        )
    return head, topic, identifier, block, payload


class PublishProperties:
    """What a server needs to know of one property block of a PUBLISH it received."""

    __slots__ = ("alias", "expiry_s", "forward", "received", "utf8")

    def __init__(self, properties: Properties) -> None:
        if SUBSCRIPTION_IDENTIFIER in properties:  # [MQTT-3.3.4-6]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                "PUBLISH to a server has a subscription identifier",
                "MQTT-3.3.4-6",
            )
        self.alias: int = properties.pop(TOPIC_ALIAS, 0)  # 0 = none; never forwarded
        # As a PUBLISH in which the alias was replaced by its topic carries it.
        self.received = encode_property_block(properties, _PUBLISH)
        self.expiry_s: int | None = properties.pop(MESSAGE_EXPIRY_INTERVAL, None)
        self.utf8 = properties.get(PAYLOAD_FORMAT_INDICATOR) == 1
        # [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]: unaltered
        self.forward = encode_property_block(properties, _PUBLISH)


class PropertyBlocks(dict[bytes, PublishProperties]):
    """Property block without its length -> what it says: blocks repeat from publish to publish.

    Looking up a block that was not seen decodes it, and raises ProtocolError if it is wrong.
    Holds at most 256 blocks of at most 256 bytes.
    """

    __slots__ = ()

    def __missing__(self, block: bytes) -> PublishProperties:
        framed = encode_variable_integer(len(block)) + block
        properties, _ = decode_properties(framed, 0, len(framed), _PUBLISH)
        known = PublishProperties(properties)
        if len(block) <= _CACHED_BLOCK_BYTES_MAX:
            if len(self) >= _CACHED_BLOCKS_MAX:
                self.clear()
            self[block] = known
        return known


def expiry_property(expires_s: float, now_s: float) -> bytes:
    """Return what is left of a message's expiry as a PUBLISH carries it [MQTT-3.3.2-6]."""
    left_s = ceil(expires_s - now_s - 0.001)  # the sum of two floats is no whole number
    return b"\x02" + max(0, min(_EXPIRY_MAX_S, left_s)).to_bytes(4, "big")
