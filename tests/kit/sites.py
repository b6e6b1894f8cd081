"""Gateways and a cloud node in the test's own loop, joined by real connections; MQTT clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud.node import Node
from edge.config import CommandsConfig, EdgeConfig, EdgeHttpConfig, JournalConfig
from edge.service import EdgeService
from edge.uplink_config import UplinkConfig
from mqtt.aio import Client
from mqtt.client_session import ClientSession
from mqtt.packets import Connect, Publish, Subscription
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from runtime.clock import Clock, SystemClock

__all__ = ["Box", "SkewedClock", "client_at", "gateway_config", "running_gateway", "until"]


def gateway_config(folder: Path, port: int, *, gateway: str = "gw-1", **keys: Any) -> EdgeConfig:
    """Return a quick gateway whose cloud is on a local port; `keys` replace sections."""
    sections: dict[str, Any] = {
        "journal": JournalConfig(disk_reserve_bytes=0),
        "uplink": UplinkConfig(
            endpoints=(f"mqtt://127.0.0.1:{port}",),
            linger_ms=5,
            backoff_min_s=0.01,
            backoff_max_s=0.05,
        ),
        "http": EdgeHttpConfig(port=0),
        "commands": CommandsConfig(wait_s=0.2),
    }
    return EdgeConfig(
        data=folder, gateway=gateway, host="127.0.0.1", port=0, **{**sections, **keys}
    )


@asynccontextmanager
async def running_gateway(
    folder: Path, node: Node | int, *, clock: Clock | None = None, **keys: Any
) -> AsyncIterator[EdgeService]:
    """Run a gateway that dials a node, or whatever is on a port."""
    port = node if isinstance(node, int) else node.port
    service = EdgeService(gateway_config(folder, port, **keys), clock or SystemClock())
    try:
        await service.start()
        yield service
    finally:
        await service.stop()


@dataclass
class Box:
    """What a client got, in order."""

    messages: list[Publish] = field(default_factory=list)

    def payloads(self) -> list[bytes]:
        """Return the payloads."""
        return [message.payload for message in self.messages]

    def json(self) -> list[Any]:
        """Return the payloads as JSON."""
        return [json.loads(message.payload) for message in self.messages]


@asynccontextmanager
async def client_at(
    port: int,
    client_id: str,
    *filters: str,
    qos: int = 1,
    expiry_s: int = 0,
    session: ClientSession | None = None,
) -> AsyncIterator[tuple[Client, Box]]:
    """Connect a v5 client that subscribes to `filters`; a session that stays is resumed.

    `session` is what the client itself knows of it, for QoS 2.
    """
    box = Box()
    properties = {SESSION_EXPIRY_INTERVAL: expiry_s} if expiry_s else {}
    connect = Connect(client_id, clean_start=not expiry_s, properties=properties)
    client = await Client.connect(
        "127.0.0.1",
        port,
        connect,
        session=session,
        on_message=lambda _client, message: box.messages.append(message),
    )
    try:
        if filters:
            await client.subscribe(*(Subscription(one, qos) for one in filters))
        yield client, box
    finally:
        await client.disconnect()


async def until(what: str, check: Any, *, timeout_s: float = 60.0) -> None:
    """Wait until `check()` is true."""
    try:
        async with asyncio.timeout(timeout_s):
            while not check():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout_s:g} s") from None


class SkewedClock(SystemClock):
    """The machine's clock with a wall clock that is wrong by `skew_us`, until told otherwise."""

    def __init__(self, skew_us: int = 0) -> None:
        super().__init__()
        self.skew_us = skew_us

    def wall_us(self) -> int:
        """Return the wrong time."""
        return super().wall_us() + self.skew_us

    def set_right(self) -> None:
        """Set the wall clock, as NTP does."""
        self.skew_us = 0
