"""The server's end of a client machine under test: no sockets, every packet in plain sight."""

from __future__ import annotations

from mqtt.client import ClientConnection
from mqtt.client_session import ClientEvent, ClientSession
from mqtt.codec import Decoder, encode
from mqtt.errors import MqttError
from mqtt.packets import Connack, Connect, Packet

__all__ = ["Peer", "connected"]


class Peer:
    """Speaks to one ClientConnection; time stands still unless moved with `now_s`."""

    def __init__(self, client: ClientConnection, version: int = 5) -> None:
        self.client = client
        self.version = version
        self.now_s = 1000.0
        self._decoder = Decoder(version, 1 << 28, "server")

    def sent(self) -> list[Packet]:
        """Return the packets the client has written since the last call."""
        packets: list[Packet] = []
        for item in self._decoder.receive_data(self.client.data_to_send()):
            assert not isinstance(item, MqttError), item
            packets.append(item)
        return packets

    def give(self, *packets: Packet) -> list[ClientEvent]:
        """Let the client receive packets, in one read; return the events."""
        data = b"".join(encode(packet, self.version) for packet in packets)
        self.client.receive_data(data, self.now_s)
        return self.client.events()


def connected(
    version: int = 5,
    *,
    connect: Connect | None = None,
    connack: Connack | None = None,
    session: ClientSession | None = None,
    **options: object,
) -> tuple[ClientConnection, Peer]:
    """Return a client that has been accepted, and its peer; nothing left to read on either side."""
    client = ClientConnection(session, **options)  # type: ignore[arg-type]
    peer = Peer(client, version)
    client.connect(connect or Connect("c", version), peer.now_s)
    peer.sent()
    peer.give(connack or Connack())
    return client, peer
