"""The QoS 1 and 2 handshakes of a client, each direction on its own.

`Sender` takes messages to the server, `Receiver` takes them from it; both write to one `Outlet`,
which knows the server's limits. MQTT 5.0 sections 4.3, 4.4, 4.6, 4.9 and 3.3.2.3.4; the story is
told at the top of `mqtt.client`.
Invariants: a message of `Sender` that waits for its turn on this connection is in `_waiting`, any
other is `sent`; `_inflight` is the number of messages with `counted`.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

from mqtt.client_session import (
    AWAIT_PUBACK,
    AWAIT_PUBCOMP,
    AWAIT_PUBREC,
    QUEUED,
    ClientEvent,
    ClientSession,
    Inbound,
    Outbound,
    Published,
)
from mqtt.codec import encode
from mqtt.errors import LocalProtocolError, ProtocolError
from mqtt.frames import encode_publish
from mqtt.packets import (
    PACKET_NAMES,
    PUBLISH,
    V5,
    Connack,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from mqtt.properties import (
    MAXIMUM_PACKET_SIZE,
    MAXIMUM_QOS,
    RECEIVE_MAXIMUM,
    RETAIN_AVAILABLE,
    TOPIC_ALIAS,
    TOPIC_ALIAS_MAXIMUM,
    Properties,
    encode_property_block,
)
from mqtt.reason_codes import ReasonCode
from mqtt.topics import topic_name_fault

__all__ = ["Outlet", "Receiver", "Sender"]

_NO_PROPERTIES: Final[Properties] = {}


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


class Sender:
    """Outbound messages of one connection.

    Args:
        session: Holds the messages that are not settled.
        outlet: Where packets go.
        events: Where `Published` goes.
        inflight_max: Limit on messages of QoS 1 and 2 under way; the server may lower it.
        outbound_max: Limit on messages of QoS 1 and 2 not settled, waiting ones included.
        topic_aliases_max: Limit on topic aliases; the server may lower it.
    """

    __slots__ = (
        "_aliases",
        "_aliases_max",
        "_connack_properties",
        "_events",
        "_inflight",
        "_inflight_max",
        "_outbound_max",
        "_outlet",
        "_session",
        "_waiting",
    )

    def __init__(
        self,
        session: ClientSession,
        outlet: Outlet,
        events: list[ClientEvent],
        *,
        inflight_max: int,
        outbound_max: int,
        topic_aliases_max: int,
    ) -> None:
        self._session = session
        self._outlet = outlet
        self._events = events
        self._inflight_max = inflight_max
        self._outbound_max = outbound_max
        self._aliases_max = topic_aliases_max  # the lower of this and the server's once connected
        self._aliases: dict[bytes, int] | None = None  # None: no topic aliases (yet)
        self._connack_properties: Properties | None = None  # None until connected
        self._inflight = 0
        self._waiting: deque[int] | None = None  # None while empty: most clients never wait

    @property
    def free_slots(self) -> int:
        """How many more messages of QoS 1 or 2 would be sent at once."""
        if self._connack_properties is None or self._waiting is not None:
            return 0
        unsettled = len(self._session.outbound)
        return max(0, min(self._inflight_max - self._inflight, self._outbound_max - unsettled))

    def resume(self, connack: Connack) -> None:
        """Begin sending: take the server's limits, then go on with the session's messages."""
        properties = self._connack_properties = connack.properties
        self._outlet.packet_size_max = properties.get(MAXIMUM_PACKET_SIZE, 0)
        self._inflight_max = min(self._inflight_max, properties.get(RECEIVE_MAXIMUM, 0xFFFF))
        self._aliases_max = min(self._aliases_max, properties.get(TOPIC_ALIAS_MAXIMUM, 0))
        if self._aliases_max:
            self._aliases = {}
        outbound = self._session.outbound
        if not connack.session_present:  # [MQTT-3.2.2-5] the server knows of none of them
            for packet_id, entry in list(outbound.items()):
                if entry.state == AWAIT_PUBCOMP:
                    del outbound[packet_id]
                    self._events.append(Published(packet_id, 0, {}))
                entry.state = QUEUED
        if outbound:
            for entry in outbound.values():
                entry.sent = entry.counted = False
            self._waiting = deque(outbound)  # [MQTT-4.4.0-1] [MQTT-4.6.0-1]
            self._flush_waiting()

    def publish(
        self,
        topic_name: str,
        payload: bytes,
        qos: int,
        *,
        retain: bool,
        properties: Properties | None,
        also_used: dict[int, int],
    ) -> int:
        """Send a message, or let it wait for its turn; return its packet id, 0 for QoS 0."""
        topic = _topic_bytes(topic_name)
        if properties is None:
            properties = _NO_PROPERTIES
        self._check(topic, payload, qos, retain=retain, properties=properties)
        entry = Outbound(qos, retain, topic, payload, properties)
        connected = self._connack_properties is not None
        if not qos:
            if not connected:
                raise LocalProtocolError("QoS 0 needs an accepted connection")
            self._send(entry, 0, dup=False)
            return 0
        outbound = self._session.outbound
        if len(outbound) >= self._outbound_max:
            raise LocalProtocolError(
                f"{self._outbound_max} messages are not settled yet",
                reason_code=ReasonCode.QUOTA_EXCEEDED,
            )
        packet_id = self._session.free_packet_id(also_used)
        if connected and self._waiting is None and self._inflight < self._inflight_max:
            self._send_tracked(entry, packet_id)
            outbound[packet_id] = entry
            return packet_id
        outbound[packet_id] = entry
        if connected:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(packet_id)
        return packet_id

    def on_puback(self, packet: Puback) -> None:
        """Settle a QoS 1 message."""
        entry = self._answered(packet, AWAIT_PUBACK)
        if entry is not None:
            self._settle(packet, entry)

    def on_pubrec(self, packet: Pubrec) -> None:
        """Release a QoS 2 message the server has taken, or settle one it refused."""
        packet_id = packet.packet_id
        entry = self._session.outbound.get(packet_id)
        if entry is None:
            if packet.reason_code < 0x80:
                not_found = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
                self._outlet.send_ack(
                    Pubrel(packet_id, not_found if self._outlet.version >= V5 else 0)
                )
            return
        if entry.state != AWAIT_PUBCOMP:
            self._answered(packet, AWAIT_PUBREC)
            if packet.reason_code >= 0x80:
                self._settle(packet, entry)
                return
            entry.state = AWAIT_PUBCOMP
            entry.payload = b""  # [MQTT-4.3.3-6] it is never sent again
        self._outlet.send_ack(Pubrel(packet_id))  # [MQTT-4.3.3-4]

    def on_pubcomp(self, packet: Pubcomp) -> None:
        """Settle a QoS 2 message."""
        entry = self._answered(packet, AWAIT_PUBCOMP)
        if entry is not None:
            self._settle(packet, entry)

    def _check(
        self, topic: bytes, payload: bytes, qos: int, *, retain: bool, properties: Properties
    ) -> None:
        """Raise LocalProtocolError for a message that could never be sent."""
        if qos not in (0, 1, 2):
            raise LocalProtocolError(f"QoS is {qos}", "MQTT-3.3.1-4")
        if properties:
            if self._outlet.version < V5:
                raise LocalProtocolError("MQTT 3.1.1 has no properties", "MQTT-2.2.2")
            if TOPIC_ALIAS in properties:
                raise LocalProtocolError("the machine assigns topic aliases itself", "MQTT-3.3.2-8")
            encode_property_block(properties, PUBLISH)
        fault = self._exceeds_server(qos, len(topic) + len(payload), retain=retain)
        if fault is not None:
            raise fault

    def _exceeds_server(self, qos: int, size: int, *, retain: bool) -> LocalProtocolError | None:
        """Return the fault of a message that the server said it does not take."""
        limit = self._outlet.packet_size_max
        if limit and size > limit:  # the packet is larger still: `Outlet.send` is exact
            return self._outlet.too_large(size)
        properties = self._connack_properties
        if not properties:
            return None
        if qos > properties.get(MAXIMUM_QOS, 2):  # [MQTT-3.2.2-11]
            return LocalProtocolError(
                f"the server takes no QoS {qos}", "MQTT-3.2.2-11", ReasonCode.QOS_NOT_SUPPORTED
            )
        if retain and not properties.get(RETAIN_AVAILABLE, 1):  # [MQTT-3.2.2-14]
            return LocalProtocolError(
                "the server retains no messages", "MQTT-3.2.2-14", ReasonCode.RETAIN_NOT_SUPPORTED
            )
        return None

    def _flush_waiting(self) -> None:
        """Send what waits for its turn, as far as the server lets us."""
        waiting = self._waiting
        if waiting is None:
            return
        outbound = self._session.outbound
        while waiting:
            packet_id = waiting[0]
            entry = outbound[packet_id]
            if entry.state == AWAIT_PUBCOMP:
                self._outlet.send_ack(Pubrel(packet_id))
                entry.sent = True
            elif self._inflight >= self._inflight_max:  # [MQTT-3.3.4-7]
                return
            else:
                size = len(entry.topic) + len(entry.payload)
                fault = self._exceeds_server(entry.qos, size, retain=entry.retain)
                try:
                    if fault is not None:
                        raise fault
                    self._send_tracked(entry, packet_id)
                except LocalProtocolError as refused:
                    # It was queued before the server told its limits: it can never be sent.
                    del outbound[packet_id]
                    self._events.append(Published(packet_id, refused.reason_code, {}))
            waiting.popleft()
        self._waiting = None

    def _send_tracked(self, entry: Outbound, packet_id: int) -> None:
        """Send a QoS 1 or 2 message, with DUP when it has been sent before."""
        self._send(entry, packet_id, dup=entry.state != QUEUED)  # [MQTT-3.3.1-1]
        entry.state = AWAIT_PUBACK if entry.qos == 1 else AWAIT_PUBREC
        entry.sent = entry.counted = True
        self._inflight += 1

    def _send(self, entry: Outbound, packet_id: int, *, dup: bool) -> None:
        version = self._outlet.version
        topic = entry.topic
        block = b""
        aliases = self._aliases
        new_alias = 0
        if version >= V5:
            properties = entry.properties
            if aliases is not None:
                alias = aliases.get(topic, 0)
                if alias:
                    topic = b""
                elif len(aliases) < self._aliases_max:  # [MQTT-3.3.2-9]
                    alias = new_alias = len(aliases) + 1
                if alias:
                    properties = {TOPIC_ALIAS: alias, **properties}
            if properties:
                block = encode_property_block(properties, PUBLISH)
        first_byte = 0x30 | entry.qos << 1 | entry.retain | dup << 3
        self._outlet.send(
            encode_publish(first_byte, topic, packet_id, block, entry.payload, version)
        )
        if new_alias and aliases is not None:  # the server learns it from this very packet
            aliases[topic] = new_alias

    def _answered(self, packet: Puback | Pubrec | Pubcomp, state: int) -> Outbound | None:
        """Return the message an acknowledgement is for; None when it is none of ours."""
        entry = self._session.outbound.get(packet.packet_id)
        if entry is not None and (entry.state != state or not entry.sent):
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"{PACKET_NAMES[packet.packet_type]} does not fit packet identifier"
                f" {packet.packet_id}",
                "MQTT-2.2.1-5",
            )
        return entry

    def _settle(self, packet: Puback | Pubrec | Pubcomp, entry: Outbound) -> None:
        del self._session.outbound[packet.packet_id]
        if entry.counted:
            self._inflight -= 1
        self._events.append(Published(packet.packet_id, packet.reason_code, packet.properties))
        self._flush_waiting()


class Receiver:
    """Inbound messages of one connection.

    Args:
        session: Remembers QoS 2 messages until their PUBREL.
        outlet: Where answers go.
        events: Where messages for the application go.
        auto_ack: Answer at once; otherwise `ack` does.
    """

    __slots__ = (
        "_auto_ack",
        "_connected",
        "_events",
        "_order",
        "_outlet",
        "_receiving",
        "_session",
        "_topics",
        "_unacked",
        "receive_maximum",
        "topic_alias_maximum",
    )

    def __init__(
        self,
        session: ClientSession,
        outlet: Outlet,
        events: list[ClientEvent],
        *,
        auto_ack: bool,
    ) -> None:
        self._session = session
        self._outlet = outlet
        self._events = events
        self._auto_ack = auto_ack
        self.receive_maximum = 0xFFFF  # what this end told the server in CONNECT
        self.topic_alias_maximum = 0
        self._connected = False
        self._topics: dict[int, str] | None = None  # by topic alias
        self._receiving: set[int] | None = None  # packet ids counted against receive_maximum
        self._unacked: dict[int, Inbound] | None = None  # QoS 1 without an answer
        self._order: deque[Inbound] | None = None  # answers to come, oldest first

    def resume(self, *, session_present: bool) -> None:
        """Begin receiving; forget QoS 2 messages the server has forgotten [MQTT-3.2.2-5]."""
        self._connected = True
        inbound = self._session.inbound
        if not session_present:
            inbound.clear()
        for entry in inbound.values():
            entry.queued = False

    def end(self) -> None:
        """Take note that the connection is over: QoS 1 messages will come again."""
        self._connected = False
        self._order = self._unacked = self._receiving = None

    def on_publish(self, packet: Publish) -> None:
        """Hand a message to the application, once."""
        if packet.properties:
            self._resolve_alias(packet)
        if packet.qos == 0:
            self._events.append(packet)
        elif packet.qos == 1:
            self._on_qos_1(packet)
        else:
            self._on_qos_2(packet)

    def ack(self, publish: Publish, reason_code: int, properties: Properties) -> bool:
        """Give the application's answer to a message; False when none is wanted any more."""
        entry = None
        if publish.qos == 2:
            entry = self._session.inbound.get(publish.packet_id)
        elif self._unacked is not None:
            entry = self._unacked.get(publish.packet_id)
        if entry is None or entry.publish is not publish or entry.reason_code is not None:
            return False
        # Encoded only to be checked: nothing has changed when this raises.
        encode(Puback(publish.packet_id, reason_code, properties), self._outlet.version)
        entry.reason_code = reason_code
        entry.properties = properties
        self._flush()
        return True

    def on_pubrel(self, packet: Pubrel) -> None:
        """Forget a QoS 2 message: the server will not send it again."""
        packet_id = packet.packet_id
        entry = self._session.inbound.get(packet_id)
        code = 0
        if entry is None:
            if self._outlet.version >= V5:
                code = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        elif entry.reason_code is None or entry.queued:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"PUBREL for packet identifier {packet_id} before its PUBREC",
                "MQTT-4.3.3-5",
            )
        else:
            del self._session.inbound[packet_id]
        if self._receiving is not None:
            self._receiving.discard(packet_id)
        self._outlet.send_ack(Pubcomp(packet_id, code))  # [MQTT-4.3.3-11]

    def _on_qos_1(self, packet: Publish) -> None:
        packet_id = packet.packet_id
        if self._auto_ack:  # [MQTT-4.3.2-4]
            self._outlet.send_ack(Puback(packet_id))
            self._events.append(packet)
            return
        if self._unacked is None:
            self._unacked = {}
        if packet_id in self._unacked:
            if packet.dup:  # the answer to the first is still to come
                return
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"server used packet identifier {packet_id} twice",
                "MQTT-2.2.1-4",
            )
        self._count(packet_id)
        entry = self._unacked[packet_id] = Inbound(packet)
        self._queue(entry)
        self._events.append(packet)

    def _on_qos_2(self, packet: Publish) -> None:
        packet_id = packet.packet_id
        self._count(packet_id)
        entry = self._session.inbound.get(packet_id)
        if entry is None:
            entry = self._session.inbound[packet_id] = Inbound(packet)
            self._events.append(packet)
        if self._auto_ack:
            entry.reason_code = 0
        # A message seen before is answered again, and not delivered again [MQTT-4.3.3-10].
        if not entry.queued:
            self._queue(entry)
            self._flush()

    def _count(self, packet_id: int) -> None:
        if self._receiving is None:
            self._receiving = set()
        self._receiving.add(packet_id)
        if len(self._receiving) > self.receive_maximum:  # [MQTT-3.3.4-9]
            raise ProtocolError(
                ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
                f"more than {self.receive_maximum} messages not acknowledged",
                "MQTT-3.3.4-9",
            )

    def _queue(self, entry: Inbound) -> None:
        if self._order is None:
            self._order = deque()
        self._order.append(entry)
        entry.queued = True

    def _flush(self) -> None:
        """Send the answers that are given, up to the first that is not [MQTT-4.6.0-2]."""
        order = self._order
        if order is None or not self._connected:
            return
        while order:
            entry = order[0]
            code = entry.reason_code
            if code is None:
                return
            packet_id = entry.publish.packet_id
            if entry.publish.qos == 1:
                self._outlet.send_ack(Puback(packet_id, code, entry.properties))
                over = True
                if self._unacked is not None:
                    del self._unacked[packet_id]
            else:
                self._outlet.send_ack(Pubrec(packet_id, code, entry.properties))
                over = code >= 0x80
                if over:
                    del self._session.inbound[packet_id]
            if over and self._receiving is not None:
                self._receiving.discard(packet_id)
            entry.queued = False
            order.popleft()
        self._order = None

    def _resolve_alias(self, packet: Publish) -> None:
        """Put the topic name in place of its alias: the application sees no alias."""
        alias = packet.properties.pop(TOPIC_ALIAS, 0)
        if not alias:
            return
        if alias > self.topic_alias_maximum:  # [MQTT-3.1.2-26]
            raise ProtocolError(
                ReasonCode.TOPIC_ALIAS_INVALID, f"topic alias {alias} is too high", "MQTT-3.1.2-26"
            )
        if self._topics is None:
            self._topics = {}
        if packet.topic_name:
            self._topics[alias] = packet.topic_name
            return
        topic_name = self._topics.get(alias)
        if topic_name is None:  # [MQTT-3.3.2-7]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, f"topic alias {alias} has no topic", "MQTT-3.3.2-7"
            )
        packet.topic_name = topic_name


@lru_cache(maxsize=65_536)
def _topic_bytes(topic_name: str) -> bytes:
    """Return a valid topic name as UTF-8; shared by all clients of the process."""
    fault = topic_name_fault(topic_name, levels_max=0x10000)
    if fault is not None:
        raise LocalProtocolError(fault.detail, fault.clause, ReasonCode.TOPIC_NAME_INVALID)
    try:
        return topic_name.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError("topic name contains a surrogate", "MQTT-1.5.4-1") from None
