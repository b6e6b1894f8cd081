"""The server's end of one MQTT connection, without I/O: bytes in, events out, intents back.

Theory of operation. A connection is NEW until a CONNECT has come, CONNECTING until the driver
calls `accept` or `refuse` (`server_handshake` reads what comes until then), CONNECTED, and CLOSED
after a DISCONNECT or a fault. `receive_data` makes one pass over a whole read. In it, PUBLISH
packets that the capture wants become `PublishRun`s that hold the bytes as received; the others
become `Arrivals` of messages; short acknowledgements become `Acknowledged`; anything else is the
codec's packet. The events keep the order of the wire. A fault of the peer is the last event, an
`MqttError`; what came before it is good. A `VerdictPending` is the last one too: call
`receive_data(b"", now_s)` when the verdict is known. MQTT 5.0 and 3.1.1, sections 3 and 4.

Speed (benchmarks/fan_in.py): most publishes of a device look like its last one, so the bytes
before the packet identifier are remembered: one `startswith` then recognises fixed header, topic
and route at once. Nothing is made a message of before somebody asks for one.

Invariants:
- `unacknowledged` counts the publishes with QoS 1 and 2 that the client awaits an answer for, and
  a v5 client that passes the receive maximum is cut off [MQTT-3.3.4-7];
- `_partial` holds less than one packet of at most `maximum_packet_size` bytes, except for what
  waits for a verdict, or came behind a CONNECT, which may be one read more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.codec import decode
from mqtt.errors import MalformedPacket, MqttError, ProtocolError
from mqtt.frames import PartialPacket, encode_publish, packet_too_large, split
from mqtt.inbound_qos_2 import AGAIN, CAPTURED, NEW, note_qos_2, publish_check
from mqtt.packets import (
    PACKET_NAMES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)
from mqtt.properties import SERVER_KEEP_ALIVE
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import (
    CONNECTED,
    Acknowledged,
    Arrivals,
    Event,
    Send,
    ServerLimits,
    Settled,
    State,
)
from mqtt.server_handshake import Handshake
from mqtt.server_messages import Message, PropertyBlocks
from mqtt.server_publishes import (
    ZERO,
    PublishFields,
    arrive_together,
    check_utf8,
    lone_pubacks,
    publish_fields,
    zero_packet_id,
)
from mqtt.server_routes import ClientRoutes, Route, RouteTable, VerdictPending, are_unheard
from mqtt.server_sender import ServerSender
from mqtt.session import Session
from mqtt.topic_aliases import resolve_alias

__all__ = ["ServerConnection"]

# What a connected client may send; 0, which is reserved, is left to the decoder, as malformed.
_RECEIVES: Final = frozenset((0, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15))  # [MQTT-3.1.0-2]
_ACKNOWLEDGEMENTS: Final = {0x40: PUBACK, 0x50: PUBREC, 0x62: PUBREL, 0x70: PUBCOMP}
_NO_PREFIX: Final = b"\xff" * 5  # goes with size 0 and kind -1: a read may begin so
_PLAIN: Final = frozenset((0x30, 0x32))  # PUBLISH of QoS 0 and 1, neither retained nor again
_NO_PROPERTIES: Final = (b"", b"\0")  # of a PUBLISH in 3.1.1, in 5.0
# What comes in most reads that hold no publish, and the 3.1.1 CONNACK by session present.
_PINGREQ: Final = Pingreq()
_DISCONNECT: Final = Disconnect()
_ACCEPTED: Final = (b"\x20\2\0\0", b"\x20\2\1\0")


class ServerConnection(ServerSender):
    """One connection as a state machine.

    Args:
        limits: What the client may ask of the server.
        routes: Topic bytes -> route; raises ProtocolError for an invalid topic name.
        blocks: Property blocks seen before, shared by all connections.
        write: Takes bytes for the client.
        settled: Goes into each PublishRun.
        now_s: Monotonic time; the CONNECT deadline runs from it.
        owner: The driver's own object for this connection.
        flush_soon: As `ServerSender` has it.
    """

    __slots__ = (
        "_aliases_in",
        "_block",
        "_block_at",
        "_handshake",
        "_id_at",
        "_kind",
        "_partial",
        "_prefix",
        "_routes",
        "_settled",
        "_size",
        "blocks",
        "client",
        "keep_alive_s",
        "last_received_s",
        "limits",
        "owner",
        "routes",
        "session",
        "waiting_since_s",
    )

    def __init__(
        self,
        limits: ServerLimits,
        routes: RouteTable | ClientRoutes,
        blocks: PropertyBlocks,
        write: Send,
        settled: Settled,
        now_s: float,
        owner: object = None,
        flush_soon: Callable[[ServerSender], object] | None = None,
    ) -> None:
        super().__init__(write, flush_soon)
        self.limits = limits
        self.routes = routes
        self.blocks = blocks
        self.owner = owner
        self.client: ClientInfo | None = None  # None until accepted
        self.keep_alive_s = 0.0  # 0 = off
        self.last_received_s = now_s
        # Before CONNACK: since when a packet is waited for, whatever trickles in of it.
        self.waiting_since_s = now_s
        self.session: Session | None = None  # None until accepted
        self._settled = settled
        self._handshake: Handshake | None = Handshake(limits)  # None once accepted
        self._partial: PartialPacket | None = None  # what the rest has not come of
        self._aliases_in: dict[int, bytes] | None = None
        # The last publish, to recognise the next one by:
        self._prefix = _NO_PREFIX  # up to the packet identifier
        self._id_at = 0  # offset of the packet identifier; 0 = QoS 0
        self._block = b""  # v5: the property length and block, at `_block_at`
        self._block_at = 0
        self._size = 0
        self._kind = -1  # lane, RETAIN and QoS; -1 when no capture wants it
        self._routes: tuple[Route, ...] = ()  # none when it is not for subscribers

    # -- receiving ----------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_s: float) -> list[Event]:
        """Take what the client sent; return what it means, in order."""
        self.last_received_s = now_s
        if self._partial is not None:
            joined = self._partial.add(data)
            if joined is None:
                return []
            data, self._partial = joined, None
        state = self.state
        if state is CONNECTED:
            if len(data) == self._size and data.startswith(self._prefix):
                event = (
                    self._run_like_the_last(data)
                    if self._kind >= 0
                    else self._arrival_like_the_last(data)
                )
                if event is not None:
                    return [event]
            elif len(data) == 4 and data[1] == 2 and data[0] in _ACKNOWLEDGEMENTS:
                # What a subscriber sends that takes one message at a time (benchmarks/pairs.py).
                packet_id = data[2] << 8 | data[3]
                if packet_id:
                    return [Acknowledged(_ACKNOWLEDGEMENTS[data[0]], [packet_id])]
            elif data == b"\xc0\0":
                return [_PINGREQ]
            elif data == b"\xe0\0":
                self.state = State.CLOSED  # [MQTT-3.14.4-2]
                return [_DISCONNECT]
            return self._pass(data, now_s)
        return [] if state is State.CLOSED else self._receive_handshake(data)

    def next_deadline_s(self) -> float | None:
        """Return when `handle_timeout` must be called if nothing is received; None for never."""
        if self.state in (State.NEW, State.CONNECTING):
            return self.waiting_since_s + self.limits.connect_timeout_s
        if self.state is State.CONNECTED and self.keep_alive_s:  # [MQTT-3.1.2-22]
            return self.last_received_s + 1.5 * self.keep_alive_s
        return None

    def handle_timeout(self, now_s: float) -> ProtocolError | None:
        """Return the fault when a deadline has passed, and close."""
        deadline_s = self.next_deadline_s()
        if deadline_s is None or now_s < deadline_s:
            return None
        if self.state is State.CONNECTED:
            fault = ProtocolError(
                ReasonCode.KEEP_ALIVE_TIMEOUT,
                f"nothing received for 1.5 x {self.keep_alive_s:g} s",
                "MQTT-3.1.2-22",
            )
        else:
            fault = ProtocolError(ReasonCode.MAXIMUM_CONNECT_TIME, "no CONNECT in time")
        return fault

    def _receive_handshake(self, data: bytes) -> list[Event]:
        """NEW, CONNECTING: take what comes before CONNACK."""
        handshake = self._handshake
        assert handshake is not None
        packet: Connect | Auth | Disconnect | None
        try:
            if self.state is State.CONNECTING:
                packet = handshake.receive_data(data)
            else:
                packet = connect = handshake.receive_connect(data)
                if connect is not None:
                    self.state = State.CONNECTING
                    self.version = handshake.version
                    self.waiting_since_s = self.last_received_s
                    # A refusal is to keep to it, too.
                    self.obey(connect, self.limits.topic_aliases_sent_max)
        except MqttError as fault:
            self.version = handshake.version
            return [fault]
        return [] if packet is None else [packet]

    def _keep(self, data: bytes, need: int) -> None:
        """Keep the start of a packet until `need` bytes of it, or more than now, are there."""
        self._partial = PartialPacket(data, max(need, len(data) + 1))

    def _run_like_the_last(self, data: bytes) -> PublishRun | None:
        """Return a read that is one publish with the header and topic of the last one as a run.

        None when it is not, or something is wrong with it: `_pass` says what. A device that waits
        for each acknowledgement sends nothing else (benchmarks/fan_in.py).
        """
        id_at = self._id_at
        block = self._block
        if block and not data.startswith(block, self._block_at):
            return None
        ids: list[bytes] = []
        if id_at:
            packet_id = data[id_at : id_at + 2]
            if packet_id == ZERO or self.unacknowledged >= self.limits.receive_maximum:
                return None
            ids = [packet_id]
            self.unacknowledged += 1
        client = self.client
        assert client is not None
        kind = self._kind
        token = (self, kind & 7, ids, self._routes)
        return PublishRun(client, kind >> 3, data, 1, 0, self._settled, token)

    def lone_run(self, data: bytes, generation: int, now_s: float) -> PublishRun | None:
        """Return a read that is one captured publish of QoS 1 like the last as a run.

        None when it is not, may have subscribers, or the client does not take its answers.

        Args:
            data: The read; it counts as received only as a run.
            generation: Of the routes whose receivers are current.
            now_s: Monotonic time.
        """
        if (
            self._kind < 0
            or self._kind & 7 != 1
            or len(data) != self._size
            or self._partial is not None
            or not self.writable
            or self.state is not CONNECTED
            or not data.startswith(self._prefix)
        ):
            return None
        run = self._run_like_the_last(data) if are_unheard(self._routes, generation) else None
        if run is not None:
            self.last_received_s = now_s
        return run

    def _arrival_like_the_last(self, data: bytes) -> Arrivals | None:
        """Return a read that is one publish with the header and topic of the last one, which no
        capture wants, nor retained nor with properties; None as above (benchmarks/pairs.py).
        """
        id_at = self._id_at
        block = self._block
        at = self._block_at
        if block and not data.startswith(block, at):
            return None
        packet_id = 0
        if id_at:
            packet_id = data[id_at] << 8 | data[id_at + 1]
            if not packet_id or self.unacknowledged >= self.limits.receive_maximum:
                return None
            self.unacknowledged += 1
        client = self.client
        assert client is not None
        route = self._routes[0]
        payload = data[at + len(block) :]
        qos = 1 if id_at else 0
        message = Message(route.topic, payload, qos, False, b"", 0.0, client.client_id)
        if id_at:
            message.came_as(0x32, self.version, self._prefix, data[at:] if block else payload)
        else:
            message.came_as(0x30, self.version, data, b"")
        arrivals = Arrivals()
        arrivals.messages.append(message)
        arrivals.packet_ids.append(packet_id)
        arrivals.routes.append(route)
        return arrivals

    def _pass(self, data: bytes, now_s: float) -> list[Event]:
        """CONNECTED: one pass over a read.

        The captured run in the making is `parts` and then `data[start:pos]`: `count` publishes of
        one `kind` (lane, RETAIN, QoS; -1 for none) with the packet identifiers `ids`. One long
        function with everything in locals: benchmarks/fan_in.py pays for it.
        """
        if len(data) > 4 and data[0] == 0x40:
            acknowledged = lone_pubacks(data)
            if acknowledged is not None:
                return [acknowledged]
        events: list[Event] = []
        maximum_size = self.limits.maximum_packet_size
        startswith = data.startswith
        end = len(data)
        pos = start = count = 0
        kind = -1
        ids: list[bytes] = []
        routes: list[Route] = []
        parts: list[bytes] = []
        fault: MqttError | None = None
        pending: VerdictPending | None = None
        try:
            while pos < end:
                prefix = self._prefix
                if startswith(prefix, pos) and self._kind >= 0:
                    # -- as the last captured publish: the same header, topic and route
                    size = self._size
                    after = pos + size
                    if after > end:
                        self._keep(data[pos:], size)
                        break
                    if self._kind != kind:
                        if kind >= 0:
                            parts.append(data[start:pos])
                            self._end_run(events, kind, parts, count, ids, routes)
                            ids, routes, parts = [], [], []
                        kind, start, count = self._kind, pos, 0
                    id_at, block, block_at = self._id_at, self._block, self._block_at
                    first = pos
                    while not block or startswith(block, pos + block_at):
                        if id_at:
                            packet_id = data[pos + id_at : pos + id_at + 2]
                            if packet_id == ZERO:
                                raise zero_packet_id()
                            ids.append(packet_id)
                        count += 1
                        pos = after
                        after += size
                        if after > end or not startswith(prefix, pos):
                            break
                    if pos != first:
                        routes += self._routes
                        continue
                # -- any packet: its fixed header
                if pos + 2 > end:
                    self._keep(data[pos:], 2)
                    break
                first_byte = data[pos]
                body = pos + 2
                after = body + data[pos + 1]
                if after - body >= 0x80 and pos + 2 < end and 0 < data[body] < 0x80:
                    body += 1
                    after = body + (data[pos + 1] & 0x7F | data[pos + 2] << 7)
                    if after - pos > maximum_size:
                        raise packet_too_large(after - pos, maximum_size)
                elif after - body >= 0x80:
                    frame = split(data, pos)
                    if frame is None:
                        self._keep(data[pos:], 0)
                        break
                    _, body, after = frame
                    self._check_header(pos, body, after)
                if after > end:
                    self._keep(data[pos:], after - pos)
                    break
                if first_byte >> 4 != 3:
                    if kind >= 0:
                        parts.append(data[start:pos])
                        self._end_run(events, kind, parts, count, ids, routes)
                        kind, ids, routes, parts = -1, [], [], []
                    if not self._receive_control(events, first_byte, data, body, after):
                        break
                    pos = after
                    continue
                # -- a PUBLISH that does not look like the last one
                fields = publish_fields(first_byte, data, body, after, self.version, self.blocks)
                topic, id_at, block_at, payload_at, known = fields
                if known is not None:
                    if known.alias:
                        topic = self._named(known.alias, topic)
                    if known.utf8 and self.limits.check_payload_format:
                        check_utf8(data[payload_at:after])
                route = self.routes.for_retained(topic) if first_byte & 1 else self.routes[topic]
                qos = first_byte >> 1 & 3
                if (
                    qos
                    and self.unacknowledged + len(ids) >= self.limits.receive_maximum
                    and (fault := self._receive_maximum_fault())
                ):
                    break
                again = NEW
                if qos == 2:
                    assert self.session is not None
                    number = data[id_at] << 8 | data[id_at + 1]
                    again = note_qos_2(self.session, number, 4 * self.limits.receive_maximum)
                    if again < 0:
                        # Whoever sends it again says so [MQTT-3.3.1-1]; any other one is new.
                        check = publish_check(topic, data[payload_at:after])
                        again = CAPTURED if first_byte & 8 and ~again == check else NEW
                if route.lane < 0 or again:
                    if kind >= 0:
                        parts.append(data[start:pos])
                        self._end_run(events, kind, parts, count, ids, routes)
                        kind, ids, routes, parts = -1, [], [], []
                    if again == AGAIN:
                        self.unacknowledged += 1
                        events.append(Acknowledged(PUBLISH, [number]))
                        pos = after
                    else:
                        pos = self._arrive(events, data, pos, body, after, fields, route, now_s)
                    continue
                this = route.lane << 3 | (first_byte & 1) << 2 | qos
                if this != kind:
                    if kind >= 0:
                        parts.append(data[start:pos])
                        self._end_run(events, kind, parts, count, ids, routes)
                        ids, routes, parts = [], [], []
                    kind, start, count = this, pos, 0
                if qos:
                    ids.append(data[id_at : id_at + 2])
                count += 1
                if not route.exclusive:
                    routes.append(route)
                if known is not None and known.alias:
                    parts.append(data[start:pos])
                    number = data[id_at] << 8 | data[id_at + 1] if qos else 0
                    payload = data[payload_at:after]
                    parts.append(
                        encode_publish(first_byte, topic, number, known.received, payload, 5)
                    )
                    start = after
                elif qos < 2 and not (
                    # each payload that says it is UTF-8 is to be looked at
                    known is not None and known.utf8 and self.limits.check_payload_format
                ):
                    shared = () if route.exclusive else (route,)
                    self._remember(data, pos, id_at, block_at, payload_at, after, kind, shared)
                pos = after
        except MqttError as error:
            fault = error
        except VerdictPending as waiting:  # this PUBLISH and all behind it wait here
            pending = waiting
            self._partial = PartialPacket(data[pos:], end - pos)
        if kind >= 0:
            parts.append(data[start:pos])
            self._end_run(events, kind, parts, count, ids, routes)
        if fault is None and self.unacknowledged > self.limits.receive_maximum:
            fault = self._receive_maximum_fault()
        if fault is not None:
            events.append(fault)
        elif pending is not None:
            events.append(pending)
        return events

    def _remember(
        self,
        data: bytes,
        pos: int,
        id_at: int,
        block_at: int,
        payload_at: int,
        after: int,
        kind: int,
        routes: tuple[Route, ...],
    ) -> None:
        """Know the next PUBLISH by the one at `pos`."""
        self._prefix = data[pos:id_at]
        self._id_at = id_at - pos if block_at > id_at else 0
        self._block = data[block_at:payload_at]
        self._block_at = block_at - pos
        self._size = after - pos
        self._kind = kind
        self._routes = routes

    def _check_header(self, pos: int, body: int, after: int) -> None:
        """Check a remaining length of several bytes before anything is kept for it."""
        maximum_size = self.limits.maximum_packet_size
        if after - pos > maximum_size:  # [MQTT-3.2.2-15]
            raise packet_too_large(after - pos, maximum_size)
        if self.version >= 5 and after - body < 1 << 7 * (body - pos - 2):
            raise MalformedPacket("remaining length is over-long", "MQTT-1.5.5-1")

    def _named(self, alias: int, topic: bytes) -> bytes:
        """Return the topic of a PUBLISH with an alias; a topic beside it sets the alias."""
        aliases = self._aliases_in
        if aliases is None:
            aliases = self._aliases_in = {}
        return resolve_alias(aliases, alias, topic, self.limits.topic_alias_maximum, "MQTT-3.3.2-9")

    def _arrive(
        self,
        events: list[Event],
        data: bytes,
        pos: int,
        body: int,
        after: int,
        fields: PublishFields,
        route: Route,
        now_s: float,
    ) -> int:
        """Add a publish that is not captured to the events, and plain ones right behind it.

        Returns where the first packet begins that is none of them.
        """
        _, id_at, block_at, payload_at, known = fields
        first_byte = data[pos]
        qos = first_byte >> 1 & 3
        end = len(data)
        message = Message(route.topic, data[payload_at:after], qos, first_byte & 1 == 1)
        if self.client is not None:
            message.publisher = self.client.client_id
        if known is not None:
            message.properties = known.forward
            if known.expiry_s is not None:
                message.expires_s = now_s + known.expiry_s
        arrivals = events[-1] if events else None
        if not isinstance(arrivals, Arrivals):
            arrivals = Arrivals()
            events.append(arrivals)
        arrivals.messages.append(message)
        arrivals.packet_ids.append(data[id_at] << 8 | data[id_at + 1] if qos else 0)
        arrivals.routes.append(route)
        self.unacknowledged += qos > 0
        if first_byte in _PLAIN and not pos and after == end:
            block = data[block_at:payload_at]
            # Only as we would encode it ourselves: it may leave as it came.
            if block in _NO_PROPERTIES and after - body >= 1 << 7 * (body - 2):
                self._remember(data, 0, id_at, block_at, payload_at, end, -1, (route,))
        if after < end and data[after] & 0xFC == 0x30:
            template = Message(b"", b"", publisher=message.publisher)
            room = end  # 3.1.1 has no maximum, and there are fewer than bytes
            if self.version >= 5:
                room = self.limits.receive_maximum - self.unacknowledged
            maximum_size = self.limits.maximum_packet_size
            after, awaited = arrive_together(
                arrivals, template, data, after, self.version, maximum_size, self.routes, room
            )
            self.unacknowledged += awaited
        return after

    def _end_run(
        self,
        events: list[Event],
        kind: int,
        parts: list[bytes],
        count: int,
        ids: list[bytes],
        routes: list[Route],
    ) -> None:
        """Add a captured run to the events; one that was begun in vain is forgotten."""
        if not count:
            return
        self.unacknowledged += len(ids)
        frames = parts[0] if len(parts) == 1 else b"".join(parts)
        assert self.client is not None
        token = (self, kind & 7, ids, routes)
        run = PublishRun(self.client, kind >> 3, frames, count, 0, self._settled, token)
        events.append(run)

    def _receive_control(
        self, events: list[Event], first_byte: int, data: bytes, body: int, after: int
    ) -> bool:
        """Take a packet that is no PUBLISH; False when nothing after it counts."""
        packet_type = _ACKNOWLEDGEMENTS.get(first_byte)
        if packet_type is not None and after - body == 2:
            packet_id = data[body] << 8 | data[body + 1]
            if not packet_id:
                raise zero_packet_id()
            last = events[-1] if events else None
            if (
                isinstance(last, Acknowledged)
                and last.packet_type == packet_type
                and not last.reason_code
            ):
                last.packet_ids.append(packet_id)
            else:
                events.append(Acknowledged(packet_type, [packet_id]))
            return True
        if first_byte >> 4 not in _RECEIVES:  # [MQTT-3.1.0-2]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                f"{PACKET_NAMES[first_byte >> 4]} is not allowed here",
                "MQTT-3.1.0-2",
            )
        packet = decode(first_byte, data[body:after], self.version, "server", self.limits.codec)
        if isinstance(packet, Puback | Pubrec | Pubrel | Pubcomp):
            events.append(Acknowledged(packet.packet_type, [packet.packet_id], packet.reason_code))
        elif isinstance(packet, Disconnect):
            self.state = State.CLOSED  # [MQTT-3.14.4-2]
            events.append(packet)
            return False
        elif isinstance(packet, Subscribe | Unsubscribe | Pingreq | Auth):
            events.append(packet)
        return True

    def _receive_maximum_fault(self) -> ProtocolError | None:
        """Return the fault of a v5 client that sent more than it may at once; 3.1.1 has none."""
        if self.version < 5:
            return None
        return ProtocolError(
            ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
            f"more than {self.limits.receive_maximum} publishes without acknowledgement",
            "MQTT-3.3.4-7",
        )

    def forget_routes(self, routes: RouteTable | ClientRoutes) -> None:
        """Ask again where this client's publishes may go: permissions have changed."""
        self.routes = routes
        self._prefix = _NO_PREFIX
        self._size = 0
        self._kind = -1

    # -- answering CONNECT --------------------------------------------------------------------

    def accept(
        self, client: ClientInfo, session: Session, connect: Connect, connack: Connack
    ) -> bool:
        """Send CONNACK and take packets; call `receive_data(b"", now_s)` for those that wait.

        Returns False, closed, when even CONNACK is larger than what the client takes: it is
        never sent then [MQTT-3.1.2-24], and nothing else may be without it [MQTT-3.2.0-1].

        Args:
            client: Goes into each run.
            session: Knows the QoS 2 publishes that came on earlier connections.
            connect: The CONNECT that is being answered.
            connack: The answer, a success; the keep-alive that holds is read from it
                [MQTT-3.1.2-21].
        """
        self.client = client
        self.session = session
        self.state = State.CONNECTED
        self.keep_alive_s = float(connack.properties.get(SERVER_KEEP_ALIVE, connect.keep_alive))
        if self.version < 5:
            self.bytes_sent += 4
            self.send_now(_ACCEPTED[connack.session_present])
        elif not self.send_packet(connack):
            self.state = State.CLOSED
            return False
        handshake, self._handshake = self._handshake, None
        if handshake is not None and handshake.rest:
            self._partial = PartialPacket(handshake.rest, 1)
        return True

    @property
    def keeps_data(self) -> bool:
        """Return True while the start of a packet, or what came behind CONNECT, is kept."""
        return self._partial is not None
