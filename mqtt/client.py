"""The client's side of one MQTT connection as a pure state machine (both specifications, 3 and 4).

Theory of operation
-------------------
A `ClientConnection` lives as long as one network connection; what must outlive it is in the
`ClientSession` it is given. It does no I/O and reads no clock. A driver

1. calls `connect(Connect(...), now_s)` once the transport is up,
2. feeds what arrives to `receive_data(data, now_s)`, or `receive_eof(now_s)`,
3. after every call writes `data_to_send()` and looks through `events()`,
4. calls `handle_timeout(now_s)` at `next_deadline_s()`,
5. closes the transport once `closed` is true and the last bytes are written.

    IDLE ──connect──▶ CONNECTING ──CONNACK < 0x80──▶ CONNECTED ──▶ CLOSED
                          └── CONNACK >= 0x80, fault, EOF, timeout ──▶ ┘

`_HANDLERS` is the whole of what a server may send when; anything else is its protocol error (0x82),
answered with DISCONNECT in MQTT 5. A fault of the server never raises: it ends in a
`Disconnected` event, after the events of everything received before it. A fault of the caller
raises `LocalProtocolError` and changes nothing.

Outbound QoS 1 and 2: a message gets its packet id and its place in `session.outbound` when it is
published. Those not yet sent on this connection wait: after a resumption that is all of them,
re-sent in order with DUP, a PUBREL where the server already owns the message [MQTT-4.4.0-1]. The
server's Receive Maximum bounds how many are under way [MQTT-3.3.4-7].

Inbound QoS 1 and 2: with `auto_ack` the answer is written before the application sees the message;
without, `ack(publish)` gives it, and answers leave in the order the messages came
[MQTT-4.6.0-2] [MQTT-4.6.0-3]. QoS 2 ids stay in `session.inbound` until PUBREL, so a message
re-sent after a cut is delivered once.

When the server has lost the session, messages it never acknowledged are published anew; those it
owned (PUBREC) count as published.

Keep alive: a PINGREQ leaves when nothing was sent, or nothing came, for Keep Alive seconds; the
second half finds a dead server while we do nothing but publish with QoS 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from mqtt.client_outlet import Outlet
from mqtt.client_receiver import Receiver
from mqtt.client_sender import Sender
from mqtt.client_session import (
    ClientEvent,
    ClientSession,
    Connected,
    Disconnected,
    Subscribed,
    Unsubscribed,
)
from mqtt.codec import MAXIMUM_PACKET_SIZE_DEFAULT, Decoder
from mqtt.errors import LocalProtocolError, MqttError, ProtocolError
from mqtt.packets import (
    AUTH,
    CONNACK,
    DISCONNECT,
    PACKET_NAMES,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    V5,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from mqtt.properties import (
    ASSIGNED_CLIENT_IDENTIFIER,
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET_SIZE,
    RECEIVE_MAXIMUM,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY_INTERVAL,
    TOPIC_ALIAS_MAXIMUM,
    Properties,
)
from mqtt.reason_codes import DISCONNECT_FROM_CLIENT, ReasonCode, describe

__all__ = ["ClientConnection", "State"]


class State(Enum):
    """Where a connection is; see the picture above."""

    IDLE = "idle"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class ClientConnection:
    """One MQTT connection as the client sees it.

    Args:
        session: What earlier connections left; a new one by default.
        auto_ack: Answer QoS 1 and 2 messages at once; otherwise `ack` does.
        inflight_max: Messages of QoS 1 and 2 under way at once, beside the server's own limit.
        outbound_max: Messages of QoS 1 and 2 not settled, waiting ones included; more are refused.
        topic_aliases_max: Topic aliases used towards the server, beside the server's own limit.
        connect_timeout_s: Seconds to wait for CONNACK.
        ping_timeout_s: Seconds of silence after a PINGREQ that end the connection.
    """

    __slots__ = (
        "_connect",
        "_decoder",
        "_events",
        "_keep_alive_s",
        "_last_received_s",
        "_outlet",
        "_pending",
        "_ping_s",
        "_receiver",
        "_receiving",
        "_sender",
        "connack",
        "connect_timeout_s",
        "ping_timeout_s",
        "session",
        "state",
    )

    def __init__(
        self,
        session: ClientSession | None = None,
        *,
        auto_ack: bool = True,
        inflight_max: int = 0xFFFF,
        outbound_max: int = 1024,
        topic_aliases_max: int = 256,
        connect_timeout_s: float = 30.0,
        ping_timeout_s: float = 20.0,
    ) -> None:
        self.session = session if session is not None else ClientSession()
        self.connect_timeout_s = connect_timeout_s
        self.ping_timeout_s = ping_timeout_s
        self.state = State.IDLE
        self.connack: Connack | None = None  # None until CONNECTED
        self._events: list[ClientEvent] = []
        self._outlet = Outlet()
        self._sender = Sender(
            self.session,
            self._outlet,
            self._events,
            inflight_max=inflight_max,
            outbound_max=outbound_max,
            topic_aliases_max=topic_aliases_max,
        )
        self._receiver = Receiver(self.session, self._outlet, self._events, auto_ack=auto_ack)
        self._connect: Connect | None = None  # None while IDLE
        self._decoder: Decoder | None = None  # None while IDLE
        # Packet id of a SUBSCRIBE -> its number of filters; of an UNSUBSCRIBE -> minus that.
        self._pending: dict[int, int] = {}
        self._keep_alive_s = 0.0  # 0 = off
        self._ping_s: float | None = None  # when the PINGREQ left that has no PINGRESP yet
        self._last_received_s = 0.0
        self._receiving = True  # False while the driver has paused reading

    # Intents

    def connect(self, connect: Connect, now_s: float) -> None:
        """Send CONNECT [MQTT-3.1.0-1]; messages left in the session follow once it is accepted.

        Its properties also set what this end takes: Receive Maximum, Topic Alias Maximum and
        Maximum Packet Size (1 MiB when it says none). An empty client id takes the session's.

        Raises:
            LocalProtocolError: not IDLE, another client's session, or a packet the specification
                does not allow.
        """
        if self.state is not State.IDLE:  # [MQTT-3.1.0-2]
            raise LocalProtocolError(f"connect while {self.state.value}", "MQTT-3.1.0-2")
        session = self.session
        if not connect.client_id:
            connect = replace(connect, client_id=session.client_id)
        elif session.client_id not in ("", connect.client_id):
            raise LocalProtocolError(
                f"the session is {session.client_id!r}'s, not {connect.client_id!r}'s",
                "MQTT-3.1.3-2",
            )
        outlet = self._outlet
        outlet.version = connect.protocol_version
        outlet.now_s = now_s
        outlet.send_packet(connect)
        session.client_id = connect.client_id
        properties = connect.properties
        size_max = properties.get(MAXIMUM_PACKET_SIZE, MAXIMUM_PACKET_SIZE_DEFAULT)
        self._decoder = Decoder(connect.protocol_version, size_max, "client")
        self._receiver.receive_maximum = properties.get(RECEIVE_MAXIMUM, 0xFFFF)
        self._receiver.topic_alias_maximum = properties.get(TOPIC_ALIAS_MAXIMUM, 0)
        self._connect = connect
        self.state = State.CONNECTING

    def publish(
        self,
        topic_name: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        now_s: float | None = None,
    ) -> int:
        """Publish a message; return its packet id, 0 for QoS 0.

        QoS 1 and 2 are sent when CONNACK has come and the server's Receive Maximum lets them, and
        end in a `Published` event. QoS 0 is sent now. Topic aliases are the machine's own affair.

        Args:
            topic_name: Where to.
            payload: What.
            qos: 0, 1 or 2.
            retain: Whether the server keeps it for later subscribers.
            properties: MQTT 5 only.
            now_s: The time; without it the last one the machine was told.

        Raises:
            LocalProtocolError: invalid topic or properties; more than the server takes (QoS 0x9B,
                retain 0x9A, size 0x95); too many messages not settled (0x97); not connected.
        """
        self._require(State.CONNECTING, State.CONNECTED)
        if now_s is not None:
            self._outlet.now_s = now_s
        return self._sender.publish(
            topic_name,
            payload,
            qos,
            retain=retain,
            properties=properties,
            also_used=self._pending,
        )

    def subscribe(
        self,
        subscriptions: Sequence[Subscription],
        properties: Properties | None = None,
        now_s: float | None = None,
    ) -> int:
        """Ask for subscriptions; return the packet id of the `Subscribed` event to come."""
        self._require(State.CONNECTED)
        packet_id = self.session.free_packet_id(self._pending)
        self._ask(Subscribe(packet_id, list(subscriptions), properties or {}), now_s)
        self._pending[packet_id] = len(subscriptions)
        return packet_id

    def unsubscribe(
        self,
        topic_filters: Sequence[str],
        properties: Properties | None = None,
        now_s: float | None = None,
    ) -> int:
        """End subscriptions; return the packet id of the `Unsubscribed` event to come."""
        self._require(State.CONNECTED)
        packet_id = self.session.free_packet_id(self._pending)
        self._ask(Unsubscribe(packet_id, list(topic_filters), properties or {}), now_s)
        self._pending[packet_id] = -len(topic_filters)
        return packet_id

    def ack(
        self, publish: Publish, reason_code: int = 0, properties: Properties | None = None
    ) -> bool:
        """Answer a message when `auto_ack` is off: the application has it, or refuses it.

        The PUBACK or PUBREC leaves after those of earlier messages. Returns False when there is
        nothing to answer any more: QoS 0, answered before, or from an earlier connection with the
        server still owning the message (it will send it again).

        Raises:
            LocalProtocolError: a reason code or properties that MQTT does not allow there.
        """
        if not publish.qos:
            return False
        return self._receiver.ack(publish, reason_code, properties or {})

    def authenticate(self, auth: Auth) -> None:
        """Send a step of the enhanced authentication agreed on in CONNECT [MQTT-4.12.0-3]."""
        self._require(State.CONNECTING, State.CONNECTED)
        assert self._connect is not None
        method = self._connect.properties.get(AUTHENTICATION_METHOD)
        if method is None or auth.properties.get(AUTHENTICATION_METHOD) != method:
            raise LocalProtocolError(  # [MQTT-4.12.0-5]
                "AUTH needs the authentication method of CONNECT", "MQTT-4.12.0-5"
            )
        self._outlet.send_packet(auth)

    def disconnect(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        """Say good-bye and end; the transport is to be closed after the last bytes.

        Without effect when the connection is over already.

        Raises:
            LocalProtocolError: a reason code or properties a client must not send.
        """
        if self.state is State.CLOSED:
            return
        connect = self._connect
        if connect is not None:
            properties = properties or {}
            if reason_code not in DISCONNECT_FROM_CLIENT:
                raise LocalProtocolError(
                    f"a client must not send DISCONNECT {describe(reason_code)}", "MQTT-3.14.2-1"
                )
            if properties.get(SESSION_EXPIRY_INTERVAL) and not connect.properties.get(
                SESSION_EXPIRY_INTERVAL
            ):
                raise LocalProtocolError(
                    "a session that ends with its connection cannot be prolonged",
                    "MQTT-3.14.2.2.2",
                )
            self._outlet.send_packet(Disconnect(reason_code, properties))
        self._close(Disconnected(reason_code, "disconnected", by_peer=False))  # [MQTT-3.14.4-2]

    # What the driver reports

    def receive_data(self, data: bytes, now_s: float) -> None:
        """Take bytes from the server."""
        decoder = self._decoder
        if decoder is None or self.closed:
            return
        self._outlet.now_s = self._last_received_s = now_s
        try:
            for item in decoder.receive_data(data):
                if isinstance(item, MqttError):
                    raise item
                self._handle(item)
                if self.state is State.CLOSED:
                    return
        except MqttError as fault:
            self._fail(fault)

    def receive_eof(self, now_s: float) -> None:
        """Take note that the server closed the connection, or that it broke."""
        self._outlet.now_s = now_s
        if self.state is not State.CLOSED:
            self._close(
                Disconnected(
                    ReasonCode.UNSPECIFIED_ERROR, "connection closed by the peer", by_peer=True
                )
            )

    def next_deadline_s(self) -> float | None:
        """Return when `handle_timeout` is due; None when nothing is."""
        if self.state is State.CONNECTED:
            keep_alive_s = self._keep_alive_s
            if not keep_alive_s:
                return None
            ping_due_s = self._outlet.last_sent_s + keep_alive_s
            if not self._receiving:
                return ping_due_s
            if self._ping_s is None:
                return min(ping_due_s, self._last_received_s + keep_alive_s)
            return min(ping_due_s, self._silence_ends_s())
        if self.state is State.CONNECTING:
            return self._outlet.last_sent_s + self.connect_timeout_s
        return None

    def handle_timeout(self, now_s: float) -> None:
        """Do what is due at `now_s`: give up waiting for CONNACK or PINGRESP, or send PINGREQ."""
        self._outlet.now_s = now_s
        deadline_s = self.next_deadline_s()
        if deadline_s is None or now_s < deadline_s:
            return
        if self.state is State.CONNECTING:
            self._fail(
                ProtocolError(
                    ReasonCode.UNSPECIFIED_ERROR, f"no CONNACK in {self.connect_timeout_s:g} s"
                )
            )
        elif self._receiving and self._ping_s is not None and now_s >= self._silence_ends_s():
            self._fail(
                ProtocolError(
                    ReasonCode.KEEP_ALIVE_TIMEOUT, f"no PINGRESP in {self.ping_timeout_s:g} s"
                )
            )
        else:  # [MQTT-3.1.2-20]
            self._outlet.send_packet(Pingreq())
            if self._ping_s is None:
                self._ping_s = now_s

    def pause_receiving(self) -> None:
        """Take note that the driver reads no more for now, so that silence means nothing."""
        self._receiving = False

    def resume_receiving(self, now_s: float) -> None:
        """Take note that the driver reads again."""
        self._receiving = True
        self._last_received_s = now_s

    def events(self) -> list[ClientEvent]:
        """Return what happened since the last call, in order."""
        events = self._events[:]
        self._events.clear()
        return events

    def data_to_send(self) -> bytes:
        """Return the bytes to write since the last call."""
        return self._outlet.take()

    @property
    def closed(self) -> bool:
        """Whether the connection is over: write what is left, then close the transport."""
        return self.state is State.CLOSED

    @property
    def free_slots(self) -> int:
        """How many more messages of QoS 1 or 2 would be sent at once."""
        return self._sender.free_slots if self.state is State.CONNECTED else 0

    # One method a packet type that is about the connection itself

    def _handle(self, packet: Packet) -> None:
        handler = _HANDLERS[self.state].get(packet.packet_type)
        if handler is None:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"server sent {PACKET_NAMES[packet.packet_type]} while {self.state.value}",
                "MQTT-3.2.0-1" if self.state is State.CONNECTING else "MQTT-3.2.0-2",
            )
        handler(self, packet)

    def _on_connack(self, packet: Connack) -> None:
        connect = self._connect
        assert connect is not None
        properties = packet.properties
        if packet.reason_code >= 0x80:
            text = f"server refused the connection: {describe(packet.reason_code)}"
            self._close(Disconnected(packet.reason_code, text, by_peer=True, properties=properties))
            return
        if packet.session_present and connect.clean_start:  # [MQTT-3.2.2-4]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "session present after a clean start", "MQTT-3.2.2-4"
            )
        self.connack = packet
        self.state = State.CONNECTED
        # [MQTT-3.1.2-21] [MQTT-3.2.2-21]
        self._keep_alive_s = float(properties.get(SERVER_KEEP_ALIVE, connect.keep_alive))
        session = self.session
        session.client_id = properties.get(ASSIGNED_CLIENT_IDENTIFIER, session.client_id)
        self._events.append(Connected(packet))
        self._receiver.resume(session_present=packet.session_present)
        self._sender.resume(packet)

    def _on_publish(self, packet: Publish) -> None:
        self._receiver.on_publish(packet)

    def _on_puback(self, packet: Puback) -> None:
        self._sender.on_puback(packet)

    def _on_pubrec(self, packet: Pubrec) -> None:
        self._sender.on_pubrec(packet)

    def _on_pubrel(self, packet: Pubrel) -> None:
        self._receiver.on_pubrel(packet)

    def _on_pubcomp(self, packet: Pubcomp) -> None:
        self._sender.on_pubcomp(packet)

    def _on_suback(self, packet: Suback) -> None:
        codes = packet.reason_codes
        if self._pending.get(packet.packet_id) != len(codes):  # [MQTT-3.8.4-2] [MQTT-3.8.4-6]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "SUBACK fits no SUBSCRIBE", "MQTT-3.8.4-6"
            )
        del self._pending[packet.packet_id]
        self._events.append(Subscribed(packet.packet_id, codes, packet.properties))

    def _on_unsuback(self, packet: Unsuback) -> None:
        codes = packet.reason_codes
        filters = -self._pending.get(packet.packet_id, 0)
        v5 = self._outlet.version >= V5
        if filters <= 0 or (v5 and filters != len(codes)):  # [MQTT-3.11.3-1]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "UNSUBACK fits no UNSUBSCRIBE", "MQTT-3.11.3-1"
            )
        del self._pending[packet.packet_id]
        self._events.append(Unsubscribed(packet.packet_id, codes, packet.properties))

    def _on_pingresp(self, _packet: Pingresp) -> None:
        self._ping_s = None

    def _on_disconnect(self, packet: Disconnect) -> None:
        text = f"server disconnected: {describe(packet.reason_code)}"
        self._close(
            Disconnected(packet.reason_code, text, by_peer=True, properties=packet.properties)
        )

    def _on_auth(self, packet: Auth) -> None:
        assert self._connect is not None
        if AUTHENTICATION_METHOD not in self._connect.properties:  # [MQTT-4.12.0-6]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "AUTH without a method in CONNECT", "MQTT-4.12.0-6"
            )
        self._events.append(packet)

    # Helpers

    def _ask(self, packet: Subscribe | Unsubscribe, now_s: float | None) -> None:
        if now_s is not None:
            self._outlet.now_s = now_s
        self._outlet.send_packet(packet)

    def _silence_ends_s(self) -> float:
        """Return when a PINGREQ without an answer means that the server is gone."""
        return max(self._last_received_s, self._ping_s or 0.0) + self.ping_timeout_s

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"not possible while {self.state.value}")

    def _fail(self, fault: MqttError) -> None:
        """End the connection because of what the server did; in MQTT 5, say why."""
        if self._outlet.version >= V5 and self.state is State.CONNECTED:
            code = fault.reason_code
            if code not in DISCONNECT_FROM_CLIENT:
                code = ReasonCode.PROTOCOL_ERROR
            with suppress(LocalProtocolError):  # the server may take no packet of that size
                self._outlet.send_packet(Disconnect(code))
        self._close(Disconnected(fault.reason_code, str(fault), by_peer=False, error=fault))

    def _close(self, event: Disconnected) -> None:
        self.state = State.CLOSED
        self._receiver.end()
        self._pending = {}
        self._events.append(event)


# The table is a part of the class that cannot be written inside it.
# ruff: noqa: SLF001
_HANDLERS: Final[dict[State, dict[int, Callable[[ClientConnection, Any], None]]]] = {
    State.IDLE: {},
    State.CONNECTING: {
        CONNACK: ClientConnection._on_connack,  # [MQTT-3.2.0-1]
        AUTH: ClientConnection._on_auth,
    },
    State.CONNECTED: {
        PUBLISH: ClientConnection._on_publish,
        PUBACK: ClientConnection._on_puback,
        PUBREC: ClientConnection._on_pubrec,
        PUBREL: ClientConnection._on_pubrel,
        PUBCOMP: ClientConnection._on_pubcomp,
        SUBACK: ClientConnection._on_suback,
        UNSUBACK: ClientConnection._on_unsuback,
        PINGRESP: ClientConnection._on_pingresp,
        DISCONNECT: ClientConnection._on_disconnect,
        AUTH: ClientConnection._on_auth,
    },
    State.CLOSED: {},
}
