"""What a client sends before its CONNACK, without I/O: one CONNECT, and AUTH where it was named.

What comes behind a CONNECT is kept until it is answered. From a client that has named an
authentication method nothing may come but AUTH and its giving up [MQTT-3.1.2-30].
MQTT 5.0 sections 3.1 and 4.12.
"""

from __future__ import annotations

from typing import Final

from mqtt.codec import connect_version, decode
from mqtt.errors import ProtocolError, UnsupportedProtocolVersion
from mqtt.frames import PartialPacket, packet_too_large, split
from mqtt.packets import AUTH, CONNECT, DISCONNECT, PACKET_NAMES, Auth, Connect, Disconnect
from mqtt.properties import AUTHENTICATION_METHOD
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import ServerLimits

__all__ = ["Handshake"]

_AUTHENTICATING: Final = frozenset((AUTH, DISCONNECT))


class Handshake:
    """The bytes of one connection until its CONNACK.

    Args:
        limits: What the client may ask of the server.

    Attributes:
        version: 4 or 5, or the one to refuse an unknown one in; 0 until a CONNECT has told.
        rest: What came behind the CONNECT and was not taken.
    """

    __slots__ = ("_authenticates", "_limits", "_partial", "rest", "version")

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._partial: PartialPacket | None = None
        self._authenticates = False  # CONNECT has named a method
        self.rest = b""
        self.version = 0

    def receive_connect(self, data: bytes) -> Connect | None:
        """Take more of a CONNECT; return it when it is whole.

        Raises:
            MqttError: it cannot be read, is too large, or another packet came [MQTT-3.1.0-1].
        """
        if self._partial is not None:
            joined = self._partial.add(data)
            if joined is None:
                return None
            data, self._partial = joined, None
        if data[0] >> 4 != CONNECT:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"the first packet is {PACKET_NAMES[data[0] >> 4]}",
                "MQTT-3.1.0-1",
            )
        frame = split(data)
        end = frame[2] if frame is not None else 0
        if end > self._limits.maximum_packet_size:  # [MQTT-3.2.2-15]
            raise packet_too_large(end, self._limits.maximum_packet_size)
        if frame is None or end > len(data):
            self._partial = PartialPacket(data, max(end, len(data) + 1))
            return None
        first_byte, body, _ = frame
        content = data[body:end]
        try:
            self.version = connect_version(content)
        except UnsupportedProtocolVersion as fault:
            self.version = fault.answer_version
            raise
        packet = decode(first_byte, content, self.version, "server", self._limits.codec)
        assert isinstance(packet, Connect)
        self._authenticates = AUTHENTICATION_METHOD in packet.properties
        self.rest = data[end:]
        return packet

    def receive_data(self, data: bytes) -> Auth | Disconnect | None:
        """Take what comes while the CONNECT is being answered; None while nothing is to be done.

        Raises:
            MqttError: it cannot be read, is too much, or must not come now.
        """
        data = self.rest + data
        self.rest = b""
        if not data:
            return None
        packet_type = data[0] >> 4
        if self._authenticates and packet_type not in _AUTHENTICATING:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"{PACKET_NAMES[packet_type]} before the client has authenticated",
                "MQTT-3.1.2-30",
            )
        waits = packet_type != AUTH and not self._authenticates
        frame = None if waits else split(data)
        if frame is None or frame[2] > len(data):
            if len(data) > self._limits.maximum_packet_size:
                raise ProtocolError(ReasonCode.PACKET_TOO_LARGE, "too much before CONNACK")
            self.rest = data
            return None
        first_byte, body, end = frame
        self.rest = data[end:]
        packet = decode(first_byte, data[body:end], self.version, "server", self._limits.codec)
        assert isinstance(packet, Auth | Disconnect)
        return packet
