"""A server machine without a socket: what it is given, what it says, what it sends."""

from __future__ import annotations

from typing import Any

from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.codec import Decoder, encode
from mqtt.errors import MqttError
from mqtt.packets import Connack, Connect, Packet
from mqtt.properties import Properties
from mqtt.server import ServerConnection
from mqtt.server_events import Event, ServerLimits
from mqtt.server_messages import PropertyBlocks
from mqtt.server_routes import RouteTable
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.topic_tables import FilterTable

__all__ = ["Machine", "lane_of"]


def lane_of(topic_name: str) -> int | None:
    """Capture `devices/...` in lane 1 and `urgent/...` in lane 0."""
    return {"devices": 1, "urgent": 0}.get(topic_name.partition("/")[0])


class Machine:
    """A `ServerConnection` and all that it sent."""

    def __init__(self, limits: ServerLimits | None = None, *, exclusive: bool = False) -> None:
        self.sent: list[bytes] = []
        self.settled: list[tuple[PublishRun, Any]] = []
        routes = RouteTable(FilterTable(), lane_of, lambda _lane: exclusive)
        self.connection = ServerConnection(
            limits or ServerLimits(),
            routes,
            PropertyBlocks(),
            self.sent.append,
            lambda run, codes: self.settled.append((run, codes)),
            0.0,
        )

    def connect(self, version: int = 5, properties: Properties | None = None) -> Machine:
        """Go through CONNECT and CONNACK; returns itself."""
        connect = Connect("c", version, properties=properties or {})
        (event,) = self.connection.receive_data(encode(connect, version), 0.0)
        assert event == connect
        session = Session("c", SessionPolicy())
        client = ClientInfo("c", version)
        self.connection.accept(client, session, connect, Connack())
        session.attach(self.connection)
        self.sent.clear()
        return self

    def receive(self, *packets: Packet, now_s: float = 0.0) -> list[Event]:
        """Give packets to the machine in one read."""
        version = self.connection.version or 5
        data = b"".join(encode(packet, version) for packet in packets)
        return self.connection.receive_data(data, now_s)

    def answers(self) -> list[Packet]:
        """Return what was sent since the last time, as packets."""
        decoder = Decoder(self.connection.version or 5, role="client")
        packets: list[Packet] = []
        for packet in decoder.receive_data(b"".join(self.sent)):
            assert not isinstance(packet, MqttError), packet
            packets.append(packet)
        self.sent.clear()
        return packets
