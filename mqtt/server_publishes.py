"""What a PUBLISH says to a server: its fields, checked.

Functions over the bytes as received; `mqtt.server` decides what a publish means for its connection.
MQTT 5.0 sections 3.3.1 and 3.3.2. Invariant: nothing here is kept.
"""

from __future__ import annotations

from contextlib import suppress
from struct import unpack
from typing import Final, TypeAlias

from mqtt.errors import MalformedPacket, MqttError, ProtocolError
from mqtt.packets import PUBACK
from mqtt.primitives import read_variable_integer
from mqtt.publish_calls import native
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import Acknowledged, Arrivals
from mqtt.server_messages import Message, PropertyBlocks, PublishProperties
from mqtt.server_routes import NOT_CAPTURED, ClientRoutes, RouteTable, VerdictPending

__all__ = [
    "ZERO",
    "PublishFields",
    "arrive_together",
    "check_utf8",
    "lone_pubacks",
    "publish_fields",
    "zero_packet_id",
]

ZERO: Final = b"\0\0"  # no packet identifier
# Publishes taken apart before it is known whether a capture wants them: few at first.
_AHEAD_MIN: Final = 8
_AHEAD_MAX: Final = 512


# Topic, or empty where an alias stands for it; offsets of packet identifier, property block with
# its length, and payload; properties, None without any.
PublishFields: TypeAlias = tuple[bytes, int, int, int, PublishProperties | None]


def publish_fields(
    first_byte: int, data: bytes, body: int, after: int, version: int, blocks: PropertyBlocks
) -> PublishFields:
    """Check a PUBLISH and find its parts.

    Args:
        first_byte: Of the packet.
        data: Holds it from `body` (its variable header) up to `after`.
        body: Offset.
        after: Offset.
        version: 4 or 5.
        blocks: Property blocks seen before.

    Returns:
        `(topic, id_at, block_at, payload_at, properties)`; the offsets are in `data`.

    Raises:
        MalformedPacket: 0x81, it cannot be read.
        ProtocolError: 0x82, it says what a client must not.
    """
    qos = first_byte >> 1 & 3
    if qos == 3:  # [MQTT-3.3.1-4]
        raise MalformedPacket("PUBLISH with QoS 3", "MQTT-3.3.1-4")
    if not qos and first_byte & 8:  # [MQTT-3.3.1-2]
        raise MalformedPacket("PUBLISH with DUP and QoS 0", "MQTT-3.3.1-2")
    if body + 2 > after:
        raise MalformedPacket("PUBLISH ends inside its topic name", "MQTT-3.3.2-1")
    id_at = body + 2 + (data[body] << 8 | data[body + 1])
    at = id_at + 2 if qos else id_at
    if at > after:
        raise MalformedPacket("topic name runs past the packet", "MQTT-3.3.2-1")
    if qos and data[id_at:at] == ZERO:
        raise zero_packet_id()
    topic = data[body + 2 : id_at]
    if version < 5:
        return topic, id_at, at, at, None
    block_at = at
    length, at = read_variable_integer(data, at, after)
    known = None
    if length:
        if at + length > after:
            raise MalformedPacket("property length runs past the packet", "MQTT-2.2.2.1")
        known = blocks[data[at : at + length]]
        at += length
    if not topic and (known is None or not known.alias):
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            "PUBLISH has neither topic name nor topic alias",
            "MQTT-3.3.2.1",
        )
    return topic, id_at, block_at, at, known


def arrive_together(
    arrivals: Arrivals,
    template: Message,
    data: bytes,
    pos: int,
    version: int,
    size_max: int,
    routes: RouteTable | ClientRoutes,
    room: int,
) -> tuple[int, int]:
    """Take the plain publishes behind one that no capture wants, up to one that is wanted.

    Args:
        arrivals: Where they go.
        template: What the messages have in common.
        data: Holds the packets.
        pos: Where the first one begins.
        version: 4 or 5.
        size_max: Of a packet.
        routes: Of the client.
        room: How many may come to await an answer.

    Returns:
        `(pos, count)`: where the first packet begins that is to be looked at more closely, whatever
        it is, and how many of those before it await an answer.
    """
    count = 0
    if native is None:
        return pos, count
    ahead = _AHEAD_MIN
    with suppress(MqttError, VerdictPending):  # which the closer look comes to
        while True:
            found = native.publishes(template, data, pos, version, size_max, ahead)
            taken = iter(found)
            for message, packet_id, after in zip(taken, taken, taken, strict=True):
                if packet_id and count >= room:  # [MQTT-3.3.4-7]
                    return pos, count
                topic = message.topic
                route = routes.for_retained(topic) if message.retain else routes[topic]
                if route.lane != NOT_CAPTURED:
                    return pos, count
                message.topic = route.topic
                arrivals.messages.append(message)
                arrivals.packet_ids.append(packet_id)
                arrivals.routes.append(route)
                count += packet_id > 0
                pos = after
            if len(found) < 3 * ahead:
                break
            ahead = min(4 * ahead, _AHEAD_MAX)
    return pos, count


def lone_pubacks(data: bytes) -> Acknowledged | None:
    """Return a read of nothing but short PUBACKs as one event; None when it is anything else."""
    count, rest = divmod(len(data), 4)
    if rest or data[::4] != b"\x40" * count or data[1::4] != b"\x02" * count:
        return None
    packet_ids = list(unpack(f">{2 * count}H", data)[1::2])
    return None if 0 in packet_ids else Acknowledged(PUBACK, packet_ids)


def check_utf8(payload: bytes) -> None:
    """Raise ProtocolError, 0x99, when a payload is not the UTF-8 that its publish says."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(
            ReasonCode.PAYLOAD_FORMAT_INVALID, "payload is not UTF-8", "MQTT-3.3.2.3.2"
        ) from None


def zero_packet_id() -> ProtocolError:
    """Return the fault of a packet identifier that is 0: parsed, and not allowed (section 1.2)."""
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, "packet identifier is 0", "MQTT-2.2.1-3")
