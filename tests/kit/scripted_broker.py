"""A broker that does what a test tells it: answers, refuses, stays silent, cuts the line.

It speaks the project's codec and keeps every PUBLISH in the order it came. It routes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self, cast

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
)

__all__ = ["ScriptedBroker"]

Answer = Callable[[str, Publish], int | None]


def _accept(_client_id: str, _publish: Publish) -> int | None:
    return 0


@dataclass
class ScriptedBroker:
    """Listens on loopback while it is entered.

    Args:
        answer: Gives the reason code for a PUBLISH of a client, or None for no answer.
        connack: The reason code of every CONNACK.
    """

    answer: Answer = _accept
    connack: int = 0
    port: int = 0
    published: list[tuple[str, Publish]] = field(default_factory=list)
    connects: list[Connect] = field(default_factory=list)
    disconnects: int = 0
    pings: int = 0
    connections: set[_Connection] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)  # client ids without clean start

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, broker: ScriptedBroker) -> None:
        self._broker = broker
        self._decoder = Decoder(None, role="server")
        self._client_id = ""
        self._version = 4

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._broker.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._broker.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        for packet in self._decoder.receive_data(data):
            assert not isinstance(packet, MqttError), packet
            reply = self._reply(packet)
            if reply is not None:
                self.transport.write(encode(reply, self._version))

    def _reply(self, packet: Packet) -> Packet | None:
        broker = self._broker
        if isinstance(packet, Connect):
            broker.connects.append(packet)
            self._client_id, self._version = packet.client_id, packet.protocol_version
            present = not packet.clean_start and packet.client_id in broker.sessions
            if not packet.clean_start:
                broker.sessions.add(packet.client_id)
            if broker.connack:
                return Connack(reason_code=broker.connack)
            return Connack(session_present=present)
        if isinstance(packet, Publish):
            broker.published.append((self._client_id, packet))
            code = broker.answer(self._client_id, packet)
            if code is None or not packet.qos:
                return None
            answer = Puback if packet.qos == 1 else Pubrec
            return answer(packet.packet_id, code)
        if isinstance(packet, Pubrel):
            return Pubcomp(packet.packet_id)
        if isinstance(packet, Pingreq):
            broker.pings += 1
            return Pingresp()
        if isinstance(packet, Disconnect):
            broker.disconnects += 1
            self.transport.close()
        return None
