"""A tiny MQTT client made of bytes, so that our own codec is not its own judge.

It shares no line with `mqtt/`: packets are put together from the figures of the specifications,
and what comes back is taken apart byte by byte.

    async with serving() as broker:
        client = await raw(broker, version)
        assert await client.connect("one") == connack(version)
        client.send(subscribe(version, 1, ("a/#", 1)))
        assert await client.packet() == (0x90, b"...")
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kit.brokers import Served

__all__ = [
    "RawClient",
    "RawPublish",
    "connect",
    "connected",
    "frame",
    "parse_publish",
    "properties_of",
    "publish",
    "raw",
    "string",
    "subscribe",
    "unsubscribe",
    "varint",
]

TIMEOUT_S = 60.0  # a hang: all that is waited for comes as soon as the machine has time

Field = str | bytes
Prop = tuple[int, bytes]

# Bytes of a property's value; "s" = length-prefixed, "p" = a pair of those, "v" = variable integer.
_VALUES: dict[int, int | str] = {
    0x01: 1,
    0x02: 4,
    0x03: "s",
    0x08: "s",
    0x09: "s",
    0x0B: "v",
    0x11: 4,
    0x12: "s",
    0x13: 2,
    0x15: "s",
    0x16: "s",
    0x17: 1,
    0x18: 4,
    0x19: 1,
    0x1A: "s",
    0x1C: "s",
    0x1F: "s",
    0x21: 2,
    0x22: 2,
    0x23: 2,
    0x24: 1,
    0x25: 1,
    0x26: "p",
    0x27: 4,
    0x28: 1,
    0x29: 1,
    0x2A: 1,
}


def varint(value: int) -> bytes:
    """Return a variable byte integer."""
    out = b""
    while True:
        value, low = divmod(value, 128)
        out += bytes((low | (0x80 if value else 0),))
        if not value:
            return out


def string(value: Field) -> bytes:
    """Return a string or binary data with its length."""
    raw_value = value.encode() if isinstance(value, str) else value
    return len(raw_value).to_bytes(2, "big") + raw_value


def frame(first_byte: int, body: bytes = b"") -> bytes:
    """Return a control packet."""
    return bytes((first_byte,)) + varint(len(body)) + body


def block(version: int, props: bytes) -> bytes:
    """Return properties with their length; nothing in 3.1.1."""
    return varint(len(props)) + props if version == 5 else b""


def connect(
    version: int,
    client_id: Field = "c",
    *,
    clean: bool = True,
    keep_alive: int = 0,
    props: bytes = b"",
    will: tuple[Field, Field] | None = None,
    will_qos: int = 0,
    will_retain: bool = False,
    will_props: bytes = b"",
    username: Field | None = None,
    password: Field | None = None,
    flags: int = 0,
) -> bytes:
    """Return a CONNECT; `flags` is added to the connect flags that follow from the rest."""
    flags |= clean << 1
    payload = string(client_id)
    if will is not None:
        flags |= 4 | will_qos << 3 | will_retain << 5
        payload += block(version, will_props) + string(will[0]) + string(will[1])
    if username is not None:
        flags |= 0x80
        payload += string(username)
    if password is not None:
        flags |= 0x40
        payload += string(password)
    head = string("MQTT") + bytes((version, flags)) + keep_alive.to_bytes(2, "big")
    return frame(0x10, head + block(version, props) + payload)


def publish(
    version: int,
    topic: Field,
    payload: Field = b"",
    qos: int = 0,
    packet_id: int = 0,
    *,
    retain: bool = False,
    dup: bool = False,
    props: bytes = b"",
) -> bytes:
    """Return a PUBLISH."""
    body = string(topic)
    if qos:
        body += packet_id.to_bytes(2, "big")
    body += block(version, props)
    body += payload.encode() if isinstance(payload, str) else payload
    return frame(0x30 | dup << 3 | qos << 1 | retain, body)


def subscribe(
    version: int, packet_id: int, *filters: tuple[Field, int], props: bytes = b""
) -> bytes:
    """Return a SUBSCRIBE of (filter, options byte) pairs."""
    body = packet_id.to_bytes(2, "big") + block(version, props)
    return frame(0x82, body + b"".join(string(f) + bytes((options,)) for f, options in filters))


def unsubscribe(version: int, packet_id: int, *filters: Field, props: bytes = b"") -> bytes:
    """Return an UNSUBSCRIBE."""
    body = packet_id.to_bytes(2, "big") + block(version, props)
    return frame(0xA2, body + b"".join(map(string, filters)))


def properties_of(data: bytes, pos: int = 0) -> tuple[list[Prop], int]:
    """Take a property block apart; return its properties in order and the position after it."""
    length, pos = _read_varint(data, pos)
    end = pos + length
    found: list[Prop] = []
    while pos < end:
        identifier, start = data[pos], pos + 1
        kind = _VALUES[identifier]
        if kind == "v":
            _, pos = _read_varint(data, start)
        elif isinstance(kind, int):
            pos = start + kind
        else:
            pos = start
            for _ in range(2 if kind == "p" else 1):
                pos += 2 + int.from_bytes(data[pos : pos + 2], "big")
        found.append((identifier, data[start:pos]))
    assert pos == end, "a property runs past the block"
    return found, end


@dataclass(frozen=True)
class RawPublish:
    """A PUBLISH that the server sent."""

    topic: bytes
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    retain: bool = False
    dup: bool = False
    props: list[Prop] = field(default_factory=list)


def parse_publish(version: int, packet: tuple[int, bytes]) -> RawPublish:
    """Take a PUBLISH apart."""
    first, body = packet
    assert first >> 4 == 3, packet
    qos = first >> 1 & 3
    pos = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:pos]
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(body[pos : pos + 2], "big")
        pos += 2
    props: list[Prop] = []
    if version == 5:
        props, pos = properties_of(body, pos)
    return RawPublish(topic, body[pos:], qos, packet_id, bool(first & 1), bool(first & 8), props)


class RawClient:
    """One connection on which a test says and hears every byte."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int
    ) -> None:
        self.version = version
        self._reader = reader
        self._writer = writer

    def send(self, *packets: bytes) -> None:
        """Send bytes in one write."""
        self._writer.write(b"".join(packets))

    async def connect(self, client_id: Field = "c", **fields: object) -> tuple[int, bytes]:
        """Send a CONNECT and return the answer."""
        self.send(connect(self.version, client_id, **fields))  # type: ignore[arg-type]
        return await self.packet()

    async def packet(self) -> tuple[int, bytes]:
        """Return the first byte and the body of the next packet; (0, b"") when closed."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                first = await self._reader.readexactly(1)
                length = shift = 0
                while True:
                    (byte,) = await self._reader.readexactly(1)
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                return first[0], await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0, b""

    async def publish(self) -> RawPublish:
        """Return the next packet, which must be a PUBLISH."""
        return parse_publish(self.version, await self.packet())

    async def closed(self) -> bool:
        """Return True when the server has closed and sent nothing more before."""
        packet = await self.packet()
        assert packet == (0, b""), packet
        return True

    async def refused(self, *codes: int) -> bool:
        """Return True when the server ends the connection for a fault, as the version has it.

        In 5.0 it may say DISCONNECT, or CONNACK before one was sent, with one of `codes`.
        """
        first, body = await self.packet()
        if self.version == 5 and first:
            assert first in (0x20, 0xE0), (hex(first), body)
            code = body[1] if first == 0x20 else body[0]
            assert code in codes, hex(code)
            first, body = await self.packet()
        assert (first, body) == (0, b""), (hex(first), body)
        return True

    async def until_pong(self) -> list[tuple[int, bytes]]:
        """Return what the server sends before it answers a PINGREQ sent now."""
        self.send(b"\xc0\0")
        packets: list[tuple[int, bytes]] = []
        while (packet := await self.packet()) != (0xD0, b""):
            assert packet[0], packets
            packets.append(packet)
        return packets

    async def subscribe(self, *filters: tuple[Field, int], props: bytes = b"") -> list[int]:
        """Subscribe and return the reason codes."""
        self.send(subscribe(self.version, 9, *filters, props=props))
        first, body = await self.packet()
        assert (first, body[:2]) == (0x90, b"\0\x09"), (hex(first), body)
        pos = 2
        if self.version == 5:
            _, pos = properties_of(body, pos)
        return list(body[pos:])

    def abort(self) -> None:
        """Vanish without a word."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return


async def raw(broker: Served, version: int = 5) -> RawClient:
    """Open a connection that ends with the broker, and say nothing yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port, limit=1 << 24)
    client = RawClient(reader, writer, version)
    broker.clients.append(client)
    return client


async def connected(
    broker: Served, version: int = 5, client_id: Field = "c", **fields: object
) -> RawClient:
    """Return a client that the broker has let in."""
    client = await raw(broker, version)
    first, body = await client.connect(client_id, **fields)
    assert (first, body[1]) == (0x20, 0), (first, body)
    return client


def _read_varint(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
