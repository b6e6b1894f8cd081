"""A broker with access and listeners in a test's own loop, and clients on every transport.

async with fronting(access=AccessConfig(...), listeners=[ListenerConfig(...)]) as front:
    client = await front.connect("device-1", port=front.ports[0])
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.config import BrokerConfig
from mqtt.broker.front import Front, FrontSettings
from mqtt.broker.net.config import ListenerConfig
from mqtt.packets import Connack, Connect
from runtime.clock import SystemClock
from tests.kit.brokers import Served, WireClient
from tests.kit.certificates import Certificates

__all__ = ["Fronted", "client_tls", "fronting", "is_open", "listener", "settings", "talk"]


class Fronted(Served):
    """A front that listens, and what a test does with it."""

    def __init__(self, front: Front) -> None:
        super().__init__(front.broker, front.port)
        self.front = front

    @property
    def ports(self) -> list[int]:
        """The ports in the order of the listeners."""
        return [listener.port for listener in self.broker.listeners]

    async def ask_at(
        self,
        client_id: str = "c",
        *,
        port: int | None = None,
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
        before: bytes = b"",
        version: int = 5,
        **fields: Any,
    ) -> tuple[WireClient, Connack]:
        """Connect by some way in, and return the answer to a CONNECT."""
        if path is not None:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 24)
        else:
            name = "localhost" if tls is not None else None
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port or self.port, ssl=tls, server_hostname=name, limit=1 << 24
            )
        writer.write(before)
        client = WireClient(reader, writer, version)
        self.clients.append(client)
        client.send(Connect(client_id, protocol_version=version, **fields))
        return client, await client.receive(Connack)


def listener(transport: str, certificates: Certificates, folder: Path) -> ListenerConfig:
    """Return a listener of any transport on a free port, or on a socket in `folder`."""
    if transport == "unix":
        return ListenerConfig(transport="unix", path=folder / "mqtt.sock")
    if transport in ("tls", "wss"):
        return ListenerConfig(
            transport=transport,
            port=0,
            tls_cert_file=certificates.server,
            tls_key_file=certificates.server_key,
        )
    return ListenerConfig(transport=transport, port=0)


def settings(
    *listeners: ListenerConfig,
    access: AccessConfig | None = None,
    broker: BrokerConfig | None = None,
) -> FrontSettings:
    """Return settings without a simple listener: a free TCP port when no other is given."""
    return FrontSettings(
        "",
        0,
        broker or BrokerConfig(sys_interval_s=0, connect_timeout_s=3600),
        access or AccessConfig(),
        listeners or (ListenerConfig(port=0),),
    )


@asynccontextmanager
async def fronting(
    *listeners: ListenerConfig,
    access: AccessConfig | None = None,
    broker: BrokerConfig | None = None,
    **parts: Any,
) -> AsyncIterator[Fronted]:
    """Run a front on free ports."""
    parts = {"capture": None, "store": None, "clock": SystemClock()} | parts
    front = Front(settings(*listeners, access=access, broker=broker), **parts)
    fronted: Fronted | None = None
    try:
        await front.start()
        await front.listen()
        fronted = Fronted(front)
        yield fronted
    finally:
        for client in fronted.clients if fronted is not None else ():
            await client.close()
        await front.stop()


def client_tls(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Return a client's context that trusts `ca`."""
    context = ssl.create_default_context(cafile=str(ca))
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


async def talk(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes on a new connection, and return all that comes until the server closes."""
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    writer.write(data)
    try:
        async with asyncio.timeout(60):
            return await reader.read(1 << 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def is_open(sock: socket.socket) -> bool:
    """Return False when the other side of a blocking socket has closed."""
    sock.setblocking(False)
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
