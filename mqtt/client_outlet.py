"""The way out of a client: packets to bytes, within the packet size the server takes.

MQTT 5.0 section 3.2.2.3.6. Sender, receiver and connection of one client write to the same
`Outlet`, so bytes leave in the order they were asked for.
"""

from __future__ import annotations

from mqtt.codec import encode
from mqtt.errors import LocalProtocolError
from mqtt.packets import V5, Packet, Puback, Pubcomp, Pubrec, Pubrel
from mqtt.reason_codes import ReasonCode

__all__ = ["Outlet"]


class Outlet:
    """Bytes on their way to the server, within the packet size it takes."""

    __slots__ = ("_frames", "last_sent_s", "now_s", "packet_size_max", "version")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.version = V5
        self.now_s = 0.0  # the last time the machine was told
        self.last_sent_s = 0.0
        self.packet_size_max = 0  # the server's Maximum Packet Size; 0 = no limit

    def send(self, frame: bytes) -> None:
        """Queue one packet; raises LocalProtocolError (0x95) when the server takes no such size."""
        limit = self.packet_size_max
        if limit and len(frame) > limit:  # [MQTT-3.2.2-15]
            raise self.too_large(len(frame))
        self._frames.append(frame)
        self.last_sent_s = self.now_s

    def send_packet(self, packet: Packet) -> None:
        """Encode and queue one packet."""
        self.send(encode(packet, self.version))

    def send_ack(self, packet: Puback | Pubrec | Pubrel | Pubcomp) -> None:
        """Queue an acknowledgement, without properties where they would make it too large."""
        frame = encode(packet, self.version)
        limit = self.packet_size_max
        if limit and len(frame) > limit and packet.properties:  # [MQTT-3.4.2-2] [MQTT-3.4.2-3]
            packet.properties = {}
            frame = encode(packet, self.version)
        self.send(frame)

    def take(self) -> bytes:
        """Return everything queued, and forget it."""
        frames = self._frames
        if not frames:
            return b""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        frames.clear()
        return data

    def too_large(self, size: int) -> LocalProtocolError:
        """Return the fault of a packet larger than the server takes."""
        return LocalProtocolError(
            f"packet of {size} bytes, the server takes {self.packet_size_max}",
            "MQTT-3.2.2-15",
            ReasonCode.PACKET_TOO_LARGE,
        )
