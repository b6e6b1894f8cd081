"""A small MQTT server on real sockets, for tests of clients: it says yes and can be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mqtt.codec import Decoder, encode
from mqtt.errors import MqttError
from mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tests.kit.turns import all_accepted

__all__ = ["MiniServer", "ServerSide", "mini_server"]


@dataclass
class MiniServer:
    """What the server does, and what it has seen."""

    connack: Callable[[Connect], Connack | None] = lambda _: Connack()
    answer: set[type] = field(
        default_factory=lambda: {Publish, Pubrel, Subscribe, Unsubscribe, Pingreq}
    )  # the packets it answers; take one out to make it silent
    echo: bool = True  # send every PUBLISH back, QoS 0
    port: int = 0
    sides: list[ServerSide] = field(default_factory=list)
    received: list[Packet] = field(default_factory=list)
    _arrivals: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; looked at after every packet and end of a connection."""
        async with asyncio.timeout(60):
            while not condition():
                self._arrivals.clear()
                await self._arrivals.wait()

    def count(self, kind: type) -> int:
        return sum(isinstance(packet, kind) for packet in self.received)

    def noticed(self) -> None:
        self._arrivals.set()


class ServerSide(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, server: MiniServer) -> None:
        self.server = server
        self.decoder = Decoder(None, 1 << 28, "server")
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.server.sides.append(self)

    def send(self, *packets: Packet) -> None:
        version = self.decoder.version or 5
        self.transport.write(b"".join(encode(packet, version) for packet in packets))

    def data_received(self, data: bytes) -> None:
        for item in self.decoder.receive_data(data):
            assert not isinstance(item, MqttError), item
            self.server.received.append(item)
            self.handle(item)
        self.server.noticed()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.server.noticed()

    def handle(self, packet: Packet) -> None:
        if isinstance(packet, Connect):
            connack = self.server.connack(packet)
            if connack is not None:
                self.send(connack)
        elif isinstance(packet, Disconnect):
            self.transport.close()
        elif type(packet) in self.server.answer:
            self.respond(packet)

    def respond(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            if packet.qos:
                self.send((Puback if packet.qos == 1 else Pubrec)(packet.packet_id))
            if self.server.echo:
                self.send(Publish(packet.topic_name, packet.payload))
        elif isinstance(packet, Pubrel):
            self.send(Pubcomp(packet.packet_id))
        elif isinstance(packet, Subscribe):
            self.send(Suback(packet.packet_id, [each.qos for each in packet.subscriptions]))
        elif isinstance(packet, Unsubscribe):
            self.send(Unsuback(packet.packet_id, [0] * len(packet.topic_filters)))
        elif isinstance(packet, Pingreq):
            self.send(Pingresp())


@asynccontextmanager
async def mini_server(
    path: Path | None = None, ssl_context: Any = None, **behaviour: Any
) -> AsyncIterator[MiniServer]:
    """Run a MiniServer on a free port (or a Unix socket), until the block ends."""
    server = MiniServer(**behaviour)
    loop = asyncio.get_running_loop()

    def factory() -> ServerSide:
        return ServerSide(server)

    if path is not None:
        listener = await loop.create_unix_server(factory, str(path))
    else:
        listener = await loop.create_server(factory, "127.0.0.1", 0, ssl=ssl_context)
        server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await all_accepted()
        for side in server.sides:
            side.transport.abort()
        await server.until(lambda: all(side.lost for side in server.sides))
