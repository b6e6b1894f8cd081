"""What a server sends on one connection, within the client's wishes.

The client's limits are the receive maximum, the maximum packet size, the topic alias maximum and
whether it wants to be told of problems (MQTT 5.0 sections 3.1.2.11.3-3.1.2.11.7).
PUBLISH packets that are sent in one turn of the driver's loop leave in one write: a write costs
more than all else that is done for a message (benchmarks/fan_out.py, benchmarks/retained.py).

Invariants:
- no packet longer than the client's maximum packet size is sent [MQTT-3.1.2-24];
- packets leave in the order in which they were sent, and what waits for `flush` is about
  TOGETHER_BYTES at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mqtt.codec import encode
from mqtt.errors import MqttError, TruncatedPacket
from mqtt.frames import encode_publish
from mqtt.packets import (
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBLISH,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubrec,
)
from mqtt.properties import (
    MAXIMUM_PACKET_SIZE,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    REQUEST_PROBLEM_INFORMATION,
    TOPIC_ALIAS_MAXIMUM,
    USER_PROPERTY,
    Properties,
    encode_property_block,
)
from mqtt.reason_codes import (
    ALLOWED,
    DISCONNECT_FROM_SERVER,
    ReasonCode,
    connect_return_code,
)
from mqtt.server_events import Send, State
from mqtt.server_messages import Message, expiry_property

__all__ = ["DURABILITY", "TOGETHER_BYTES", "ServerSender"]

DURABILITY: Final = "tidegate-durability"  # the user property; "1" in CONNECT asks for it
TOGETHER_BYTES: Final = 64 << 10  # more than this is not worth waiting for
_MAY_EXPLAIN: Final = frozenset((CONNACK, PUBLISH, DISCONNECT))  # [MQTT-3.1.2-29]


class ServerSender:
    """The sending half of `mqtt.server.ServerConnection`.

    Args:
        write: Takes bytes for the client.
        flush_soon: Told when something waits; the driver then calls `flush` before its loop waits
            for anything. Without it nothing waits.
    """

    __slots__ = (
        "_aliases_out",
        "_aliases_out_max",
        "_flush_soon",
        "_waiting",
        "_waiting_bytes",
        "_write",
        "asks_durability",
        "bytes_sent",
        "packet_size_max",
        "plain",
        "problem_information",
        "receive_maximum",
        "state",
        "unacknowledged",
        "version",
        "writable",
    )

    def __init__(
        self, write: Send, flush_soon: Callable[[ServerSender], object] | None = None
    ) -> None:
        self._write = write
        self._flush_soon = flush_soon
        self._waiting: list[bytes] | None = None  # for `flush`, in order
        self._waiting_bytes = 0
        self.state = State.NEW
        self.version = 0  # 4 or 5 once a CONNECT came
        self.receive_maximum = 0xFFFF  # the client's: how much it takes at once
        self.packet_size_max = 0  # the client's; 0 = no limit
        self.plain = True  # neither aliases nor a packet size: frames can be shared
        self.problem_information = True  # the client's wish
        self.asks_durability = False  # v5: acknowledgements are to say how durable a publish is
        self.writable = True  # False while the driver's write buffer is full
        self.unacknowledged = 0
        self.bytes_sent = 0
        self._aliases_out: dict[bytes, int] | None = None
        self._aliases_out_max = 0

    def send(self, data: bytes) -> None:
        """Send bytes with whatever else is sent before `flush`."""
        waiting = self._waiting
        if waiting is not None:
            waiting.append(data)
            self._waiting_bytes += len(data)
            if self._waiting_bytes >= TOGETHER_BYTES:
                self.flush()
        elif self._flush_soon is None or len(data) >= TOGETHER_BYTES:
            self._write(data)
        else:
            self._waiting = [data]
            self._waiting_bytes = len(data)
            self._flush_soon(self)

    def send_now(self, data: bytes) -> None:
        """Send bytes at once, if nothing waits that was sent before them."""
        if self._waiting is None:
            self._write(data)
        else:
            self.send(data)

    def flush(self) -> None:
        """Write what waits."""
        waiting = self._waiting
        if waiting is not None:
            self._waiting = None
            self._write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def forget_waiting(self) -> None:
        """Do not send what waits: the client is gone."""
        self._waiting = None

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for `flush`."""
        return self._waiting_bytes if self._waiting is not None else 0

    def obey(self, connect: Connect, aliases_max: int) -> None:
        """Take the client's limits from its CONNECT."""
        properties = connect.properties
        if not properties:
            return
        self.receive_maximum = properties.get(RECEIVE_MAXIMUM, 0xFFFF)  # [MQTT-3.3.4-9]
        self.packet_size_max = properties.get(MAXIMUM_PACKET_SIZE, 0)  # [MQTT-3.1.2-24]
        self.problem_information = properties.get(REQUEST_PROBLEM_INFORMATION, 1) == 1
        asked = (DURABILITY, "1") in properties.get(USER_PROPERTY, ())
        self.asks_durability = asked and self.version >= 5 and self.problem_information
        # [MQTT-3.1.2-26] [MQTT-3.1.2-27]
        self._aliases_out_max = min(properties.get(TOPIC_ALIAS_MAXIMUM, 0), aliases_max)
        self.plain = not self.packet_size_max and not self._aliases_out_max

    def refuse(self, reason_code: int, reason: str = "", retry_after_s: float = 0.0) -> None:
        """Answer a CONNECT with a refusal, if its version has one for it; the driver closes."""
        self.state = State.CLOSED
        if reason_code not in ALLOWED[CONNACK]:
            reason_code = int(ReasonCode.UNSPECIFIED_ERROR)
        if self.version >= 5:
            properties: Properties = {REASON_STRING: reason} if reason else {}
            if retry_after_s:
                properties[USER_PROPERTY] = [("retry-after", f"{retry_after_s:.2f}")]
            self.send_packet(Connack(False, reason_code, properties))
        elif self.version == 4 and connect_return_code(reason_code) is not None:
            self.send_packet(Connack(False, reason_code))  # [MQTT-3.1.1:3.2.2-4]

    def disconnect(self, reason_code: int, reason: str = "") -> None:
        """Say why the server ends the connection, where MQTT lets it; the driver closes."""
        state = self.state
        self.state = State.CLOSED
        if state is State.CONNECTED and self.version >= 5:  # [MQTT-3.14.0-1]
            code = reason_code if reason_code in DISCONNECT_FROM_SERVER else 0x80
            self.send_packet(Disconnect(code, {REASON_STRING: reason} if reason else {}))

    def fail(self, fault: MqttError) -> None:
        """Answer a fault of the peer as its version and state ask for; the driver closes.

        A CONNECT whose lengths contradict each other gets no CONNACK, which is a MAY of section
        4.13.1 of MQTT 5: where it ends is unknown, and what it asked for [MQTT-3.1.4-1].
        """
        if self.state in (State.NEW, State.CONNECTING):
            unreadable = isinstance(fault, TruncatedPacket)
            if not unreadable and fault.reason_code in ALLOWED[CONNACK]:
                self.refuse(fault.reason_code, fault.detail)
            self.state = State.CLOSED
        else:
            self.disconnect(fault.reason_code, fault.detail)  # [MQTT-4.13.1-1]

    def send_packet(self, packet: Packet) -> bool:
        """Send a packet within the client's wishes; False when it is too large for the client.

        Reason strings and user properties are left out if the client does not ask for problem
        information, or if they make the packet too large [MQTT-3.1.2-29] [MQTT-3.2.2-19].
        """
        properties = getattr(packet, "properties", None)
        if properties and not self.problem_information and packet.packet_type not in _MAY_EXPLAIN:
            properties.pop(REASON_STRING, None)
            properties.pop(USER_PROPERTY, None)
        data = encode(packet, self.version)
        limit = self.packet_size_max
        if limit and len(data) > limit:
            if not properties:
                return False  # [MQTT-3.1.2-24]
            properties.pop(REASON_STRING, None)
            properties.pop(USER_PROPERTY, None)
            data = encode(packet, self.version)
            if len(data) > limit:
                return False
        self.bytes_sent += len(data)
        self.send_now(data)
        return True

    def explain(self, qos: int, packet_id: bytes, reason_code: int, reason: str) -> None:
        """Refuse one publish of a v5 client with a Reason String, if it wants one and it fits
        [MQTT-3.1.2-29] [MQTT-3.4.2-2] [MQTT-3.5.2-2]."""
        self.unacknowledged -= 1
        kind = Puback if qos == 1 else Pubrec
        number = int.from_bytes(packet_id, "big")
        self.send_packet(kind(number, reason_code, {REASON_STRING: reason}))

    def acknowledge(self, qos: int, packet_ids: list[bytes], reason_code: int = 0) -> None:
        """Answer publishes of one QoS: PUBACK or PUBREC for each, in one write.

        A reason code reaches v5 clients only [MQTT-3.4.2-1] [MQTT-3.5.2-1].
        """
        if reason_code and self.version >= 5:
            head = b"\x40\x03" if qos == 1 else b"\x50\x03"
            code = bytes((reason_code,))
            data = b"".join([head + packet_id + code for packet_id in packet_ids])
        else:
            head = b"\x40\x02" if qos == 1 else b"\x50\x02"
            data = head + (packet_ids[0] if len(packet_ids) == 1 else head.join(packet_ids))
        # A v5 client counts a QoS 2 publish until PUBCOMP (section 4.9).
        if qos == 1 or reason_code >= 0x80 or self.version < 5:
            self.unacknowledged -= len(packet_ids)
        self.bytes_sent += len(data)
        if self._waiting is None:
            self._write(data)
        else:
            self.send(data)

    def acknowledge_durably(
        self, qos: int, packet_ids: list[bytes], reason_code: int, durability: str
    ) -> None:
        """Answer publishes as `acknowledge` does, with a user property that says how durable.

        Only for a client with `asks_durability`; left out where the client would find the packet
        too large [MQTT-3.4.2-3].
        """
        named = encode_property_block({USER_PROPERTY: [(DURABILITY, durability)]}, PUBACK)
        size = 4 + len(named)  # packet id, reason code, length of the properties
        too_large = 0 < self.packet_size_max < size + 2 or size > 0x7F
        if reason_code >= 0x80 or too_large:
            self.acknowledge(qos, packet_ids, reason_code)
            return
        head = b"%c%c" % (0x40 if qos == 1 else 0x50, size)
        tail = b"%c%c%b" % (reason_code, len(named), named)
        data = b"".join([head + packet_id + tail for packet_id in packet_ids])
        if qos == 1:
            self.unacknowledged -= len(packet_ids)
        self.bytes_sent += len(data)
        self.send_now(data)

    def complete(self, packet_id: int, known: bool) -> None:
        """Answer a PUBREL [MQTT-4.3.3-11]."""
        if self.unacknowledged and self.version >= 5:
            self.unacknowledged -= 1
        if known or self.version < 5:
            self.send(b"\x70\x02" + packet_id.to_bytes(2, "big"))
        else:
            self.send(b"\x70\x03" + packet_id.to_bytes(2, "big") + b"\x92")

    def release(self, packet_id: int, known: bool) -> None:
        """Answer a PUBREC [MQTT-4.3.3-4]."""
        if known or self.version < 5:
            self.send(b"\x62\x02" + packet_id.to_bytes(2, "big"))
        else:
            self.send(b"\x62\x03" + packet_id.to_bytes(2, "big") + b"\x92")

    def publish_frame(
        self, message: Message, first_byte: int, packet_id: int, identifiers: bytes, now_s: float
    ) -> bytes | None:
        """Return the PUBLISH of a message for this client; None when it is over its limit.

        Args:
            message: What to send.
            first_byte: Packet type, DUP, QoS and RETAIN.
            packet_id: The packet identifier, not used with QoS 0.
            identifiers: Subscription identifiers as encoded properties [MQTT-3.3.4-3].
            now_s: Monotonic time: what is left of the message's expiry is counted from it.
        """
        version = self.version
        extra = b""
        if version >= 5:
            extra = identifiers
            if message.expires_s:
                extra += expiry_property(message.expires_s, now_s)
            if self._aliases_out_max:
                return self._aliased_frame(message, first_byte, packet_id, extra)
        head, tail = message.frame_parts(first_byte & 0xF7, version, extra)
        if first_byte & 0x06:
            if first_byte & 0x08:
                head = b"%c%b" % (first_byte, head[1:])
            head = b"%b%c%c%b" % (head, packet_id >> 8, packet_id & 0xFF, tail)
        if self.packet_size_max and len(head) > self.packet_size_max:
            return None
        return head

    def _aliased_frame(
        self, message: Message, first_byte: int, packet_id: int, extra: bytes
    ) -> bytes | None:
        """Return a PUBLISH with a topic alias while there are any left [MQTT-3.1.2-26]."""
        aliases = self._aliases_out
        if aliases is None:
            aliases = self._aliases_out = {}
        topic = message.topic
        alias = aliases.get(topic, 0)
        fresh = not alias and len(aliases) < self._aliases_out_max
        if fresh:
            alias = len(aliases) + 1
        properties = extra + message.properties
        if alias:
            properties = b"\x23%c%c%b" % (alias >> 8, alias & 0xFF, properties)
        # With QoS 2 the topic stays: MQTT.js, which keeps the packet until PUBREL, forgets aliases.
        name = b"" if alias and not fresh and not first_byte & 0x04 else topic
        frame = encode_publish(first_byte, name, packet_id, properties, message.payload, 5)
        if self.packet_size_max and len(frame) > self.packet_size_max:
            if not name:
                return None
            properties = extra + message.properties  # it may fit without the new alias
            frame = encode_publish(first_byte, topic, packet_id, properties, message.payload, 5)
            return frame if len(frame) <= self.packet_size_max else None
        if fresh:
            aliases[topic] = alias
        return frame
