"""Messages from a client to the server: QoS 1 and 2 handshakes, flow control, topic aliases.

MQTT 5.0 sections 3.3.2.3.4, 4.3, 4.4, 4.6 and 4.9; the story is told at the top of `mqtt.client`.
Invariants: a message of the session that waits for its turn on this connection is in `_waiting`,
any other is `sent`; `_inflight` is the number of messages with `counted`.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

from mqtt.client_outlet import Outlet
from mqtt.client_session import (
    AWAIT_PUBACK,
    AWAIT_PUBCOMP,
    AWAIT_PUBREC,
    QUEUED,
    ClientEvent,
    ClientSession,
    Outbound,
    Published,
)
from mqtt.errors import LocalProtocolError, ProtocolError
from mqtt.frames import encode_publish
from mqtt.packets import PACKET_NAMES, PUBLISH, V5, Connack, Puback, Pubcomp, Pubrec, Pubrel
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

__all__ = ["Sender"]

_NO_PROPERTIES: Final[Properties] = {}


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
