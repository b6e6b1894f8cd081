"""Messages from the server to a client: QoS 1 and 2 handshakes, order of answers, topic aliases.

MQTT 5.0 sections 3.3.2.3.4, 4.3, 4.6 and 4.9; the story is told at the top of `mqtt.client`.
Invariants: answers leave in the order of the messages, so `_order` holds the ones to come, oldest
first, and an entry in it is `queued`; `_receiving` never holds more ids than `receive_maximum`.
"""

from __future__ import annotations

from collections import deque

from mqtt.client_outlet import Outlet
from mqtt.client_session import ClientEvent, ClientSession, Inbound
from mqtt.codec import encode
from mqtt.errors import ProtocolError
from mqtt.packets import V5, Puback, Pubcomp, Publish, Pubrec, Pubrel
from mqtt.properties import TOPIC_ALIAS, Properties
from mqtt.reason_codes import ReasonCode
from mqtt.topic_aliases import resolve_alias

__all__ = ["Receiver"]


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
        if self._topics is None:
            self._topics = {}
        packet.topic_name = resolve_alias(
            self._topics, alias, packet.topic_name, self.topic_alias_maximum, "MQTT-3.1.2-26"
        )
