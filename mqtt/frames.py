"""Frames without their meaning: the fast path of journal, uplink, ingest and broker.

`split` finds where a packet ends; `parse_publishes` takes runs of whole PUBLISH packets apart
without making a message of each; `encode_publish` puts one together from parts that are bytes
already. They check lengths, never contents: contents were checked when the packet came in.
`PartialPacket` keeps what has come of a packet until the rest has. MQTT 5.0 sections 2.1 and 3.3.
"""

from __future__ import annotations

from typing import TypeAlias

from mqtt.errors import LocalProtocolError, MalformedPacket, ProtocolError
from mqtt.primitives import VARIABLE_INTEGER_MAX, encode_variable_integer
from mqtt.reason_codes import ReasonCode

__all__ = [
    "PartialPacket",
    "PublishParts",
    "encode_publish",
    "packet_too_large",
    "parse_publishes",
    "split",
]

# (first byte, topic, packet id or 0, property block without its length, payload)
PublishParts: TypeAlias = tuple[int, bytes, int, bytes, bytes]


def split(data: bytes | bytearray, pos: int = 0) -> tuple[int, int, int] | None:
    """Find the packet that begins at `pos`.

    Returns:
        `(first_byte, body_start, end)`, or None while the fixed header is not complete.
        `data[body_start:end]` is the body; `end > len(data)` while more of it has to come.

    Raises:
        MalformedPacket: the remaining length has more than 4 bytes.
    """
    size = len(data)
    body = pos + 2
    if body > size:
        return None
    length = data[pos + 1]
    if length >= 0x80:
        length &= 0x7F
        shift = 7
        while True:
            if shift == 28:
                raise MalformedPacket("remaining length has more than 4 bytes", "MQTT-2.1.4")
            if body >= size:
                return None
            byte = data[body]
            body += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    return data[pos], body, body + length


class PartialPacket:
    """The start of a packet whose rest has not come; pieces are joined in linear time.

    Args:
        start: What has come.
        wanted: Bytes that are worth looking at again.
    """

    __slots__ = ("_buffer", "_start", "_wanted")

    def __init__(self, start: bytes, wanted: int) -> None:
        self._start = start
        self._wanted = wanted
        self._buffer: bytearray | None = None  # `start` and what came since, in more pieces

    def __len__(self) -> int:
        return len(self._start if self._buffer is None else self._buffer)

    def add(self, data: bytes) -> bytes | None:
        """Return all that has come, `data` last; None, and keep it, while less than wanted has."""
        buffer = self._buffer
        if buffer is None:
            if len(self._start) + len(data) >= self._wanted:
                return self._start + data
            buffer = self._buffer = bytearray(self._start)
            self._start = b""
        buffer += data
        return bytes(buffer) if len(buffer) >= self._wanted else None


def packet_too_large(size: int, maximum: int, clause: str = "MQTT-3.2.2-15") -> ProtocolError:
    """Return the fault of a peer whose packet has more bytes than this end takes.

    Args:
        size: Of the packet, fixed header included.
        maximum: What this end takes.
        clause: What the peer goes against: a client does this one.
    """
    return ProtocolError(
        ReasonCode.PACKET_TOO_LARGE, f"packet of {size} bytes, the limit is {maximum}", clause
    )


def parse_publishes(frames: bytes, version: int) -> list[PublishParts]:
    """Take apart whole PUBLISH packets that lie end to end.

    Args:
        frames: PUBLISH packets one after another, nothing between and nothing after them.
        version: 4 or 5: whether a property block follows the packet identifier.

    Returns:
        `(first_byte, topic, packet_id, properties, payload)` of each, in order; `first_byte`
        has QoS in bits 1-2, RETAIN in bit 0 and DUP in bit 3; `packet_id` is 0 for QoS 0;
        `properties` is the block without its length, b"" in 3.1.1.

    Raises:
        MalformedPacket: a length does not fit; nothing is returned then.
    """
    parts: list[PublishParts] = []
    append = parts.append
    has_properties = version >= 5
    pos = 0
    end = len(frames)
    packet_id = 0
    properties = b""
    try:
        while pos < end:
            first_byte = frames[pos]
            after = frames[pos + 1]
            pos += 2
            if after >= 0x80:
                after, pos = _long_length(frames, pos, after)
            after += pos
            cut = pos + 2
            pos = cut + (frames[pos] << 8 | frames[pos + 1])
            topic = frames[cut:pos]
            if first_byte & 0x06:
                packet_id = frames[pos] << 8 | frames[pos + 1]
                pos += 2
            else:
                packet_id = 0
            if has_properties:
                length = frames[pos]
                pos += 1
                if length:
                    if length >= 0x80:
                        length, pos = _long_length(frames, pos, length)
                    cut = pos + length
                    properties = frames[pos:cut]
                    pos = cut
                else:
                    properties = b""
            # One comparison catches every length inside that runs past the packet.
            if pos > after:
                raise MalformedPacket("a length runs past its PUBLISH", "MQTT-2.1.4")
            append((first_byte, topic, packet_id, properties, frames[pos:after]))
            pos = after
    except IndexError:
        pos = end + 1
    if pos != end:
        raise MalformedPacket("the last PUBLISH is cut off", "MQTT-2.1.4")
    return parts


def encode_publish(
    first_byte: int,
    topic: bytes,
    packet_id: int,
    properties: bytes,
    payload: bytes,
    version: int,
) -> bytes:
    """Return one PUBLISH from parts as `parse_publishes` gives them.

    The parts are taken as they are: `topic` is UTF-8 of at most 65,535 bytes, `packet_id` counts
    only when QoS in `first_byte` is above 0, `properties` only when `version` is 5.

    Raises:
        LocalProtocolError: topic or packet is too long for MQTT.
    """
    topic_size = len(topic)
    if topic_size > 0xFFFF:
        raise LocalProtocolError(f"topic has {topic_size} bytes, the limit is 65535", "4.7.3-3")
    length = topic_size + 2 + len(payload)
    head = topic
    if first_byte & 0x06:
        length += 2
        head = b"%b%c%c" % (topic, packet_id >> 8, packet_id & 0xFF)
    if version >= 5:
        size = len(properties)
        block = b"%c" % size if size < 0x80 else encode_variable_integer(size)
        length += len(block) + size
        head = b"%b%b%b" % (head, block, properties)
    if length < 0x80:
        return b"%c%c%c%c%b%b" % (
            first_byte,
            length,
            topic_size >> 8,
            topic_size & 0xFF,
            head,
            payload,
        )
    if length > VARIABLE_INTEGER_MAX:
        raise LocalProtocolError(f"PUBLISH of {length} bytes is too long for MQTT", "MQTT-2.1.4")
    return b"%c%b%c%c%b%b" % (
        first_byte,
        encode_variable_integer(length),
        topic_size >> 8,
        topic_size & 0xFF,
        head,
        payload,
    )


def _long_length(data: bytes, pos: int, first: int) -> tuple[int, int]:
    """Read on in a variable byte integer whose first byte, `first`, was not its last."""
    value = first & 0x7F
    for shift in (7, 14, 21):
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise MalformedPacket("a length has more than 4 bytes", "MQTT-1.5.5")
