"""The codec of MQTT 3.1.1 and 5.0: messages to bytes, bytes to messages, streams to messages.

`encode` and `decode` take one packet each; `Decoder` takes a byte stream as it arrives, cut
anywhere. Section 2.1 and 3 of both specifications.
Invariant of `Decoder`: it holds less than one packet of at most `maximum_packet_size` bytes.
"""

from __future__ import annotations

from mqtt.decoding import DEFAULT_LIMITS, Limits, Role, connect_version, decode
from mqtt.encoding import encode
from mqtt.errors import MalformedPacket, MqttError, ProtocolError
from mqtt.frames import PartialPacket, packet_too_large, split
from mqtt.packets import Packet
from mqtt.reason_codes import ReasonCode

__all__ = [
    "MAXIMUM_PACKET_SIZE_DEFAULT",
    "Decoder",
    "Limits",
    "Role",
    "connect_version",
    "decode",
    "encode",
]

MAXIMUM_PACKET_SIZE_DEFAULT = 1 << 20
"""Bytes of one packet, fixed header included, that a Decoder takes unless told otherwise."""


class Decoder:
    """Turns what arrives on one connection into packets.

    Args:
        version: 4 or 5; None on a server's side, until a CONNECT has said it.
        maximum_packet_size: Bytes of one packet, fixed header included; more is refused 0x95.
        role: Which end this is; None to take what either end may receive.
        limits: What one packet may make the decoder hold.
    """

    __slots__ = ("_partial", "fault", "limits", "maximum_packet_size", "role", "version")

    def __init__(
        self,
        version: int | None = None,
        maximum_packet_size: int = MAXIMUM_PACKET_SIZE_DEFAULT,
        role: Role | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.version = version
        self.maximum_packet_size = maximum_packet_size
        self.role: Role | None = role
        self.limits = limits
        self.fault: MqttError | None = None  # set once; nothing is decoded after it
        self._partial: PartialPacket | None = None

    def receive_data(self, data: bytes) -> list[Packet | MqttError]:
        """Take bytes from the peer; return the packets they complete.

        The last item is an MqttError when the peer is at fault there: packets before it are good,
        what follows it is dropped, and so is everything received later.
        """
        if self.fault is not None:
            return []
        if self._partial is not None:
            joined = self._partial.add(data)
            if joined is None:
                return []
            data, self._partial = joined, None
        wanted = 0
        events: list[Packet | MqttError] = []
        pos = 0
        try:
            while True:
                frame = split(data, pos)
                if frame is None:
                    break
                first_byte, body, end = frame
                if self.version is None and first_byte != 0x10:
                    raise _not_connect(first_byte)
                if end - pos > self.maximum_packet_size:  # [MQTT-3.1.2-24] [MQTT-3.2.2-15]
                    clause = "MQTT-3.2.2-15" if self.role == "server" else "MQTT-3.1.2-24"
                    raise packet_too_large(end - pos, self.maximum_packet_size, clause)
                if end > len(data):
                    wanted = end - pos
                    break
                events.append(self._decode(first_byte, data[body:end], body - pos))
                pos = end
        except MqttError as fault:
            self.fault = fault
            events.append(fault)
            return events
        if pos < len(data):
            self._partial = PartialPacket(data[pos:], max(wanted, len(data) - pos + 1))
        return events

    def _decode(self, first_byte: int, body: bytes, header_size: int) -> Packet:
        if self.version is None:
            self.version = connect_version(body)
        version = self.version
        packet = decode(first_byte, body, version, self.role, self.limits)
        # 3.1.1 allows a longer form of the remaining length, 5.0 does not.
        if version >= 5 and header_size > 2 and len(body) < 1 << 7 * (header_size - 2):
            raise MalformedPacket("remaining length is over-long", "MQTT-1.5.5-1")
        return packet


def _not_connect(first_byte: int) -> MqttError:
    """Return the fault of a first byte that begins no CONNECT: no need to wait for its body."""
    if first_byte >> 4 == 1:  # [MQTT-2.1.3-1]
        return MalformedPacket(
            f"reserved flags of CONNECT are {first_byte & 15:04b}", "MQTT-2.1.3-1"
        )
    return ProtocolError(  # [MQTT-3.1.0-1]
        ReasonCode.PROTOCOL_ERROR, "the first packet is not CONNECT", "MQTT-3.1.0-1"
    )
