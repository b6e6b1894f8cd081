"""The server's state of one session: subscriptions, messages on their way, QoS 2 identifiers.

A session outlives its connection (MQTT 5.0 section 4.1). Outbound messages with QoS 1 and 2 wait
in one map by packet identifier, in the order in which they are to be sent; `unsent` names those
that this connection has not been given. Inbound and outbound packet identifiers are two maps;
`inbound_qos_2` says what is kept in the one, `delivery` what in the other.

Invariants:
- every packet id in `unsent` that is in `outbound` has not been sent on this connection;
- `window_used` counts the outbound PUBLISH packets of this connection without their last
  acknowledgement, and never passes the client's receive maximum [MQTT-3.3.4-9];
- a delivery that is `held` is not sent: the store has not made it durable yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from mqtt.delivery import Delivery
from mqtt.server_messages import Message, publish_pieces
from mqtt.session_policy import SessionPolicy
from mqtt.session_subscriptions import ShareGroup, Subscribed

__all__ = [
    "NEVER_EXPIRES",
    "Link",
    "Recorder",
    "Session",
]

NEVER_EXPIRES: Final = 0xFFFF_FFFF  # as a session's expiry in seconds
_PACKET_IDS: Final = 0xFFFF
_DUP: Final = 0x08


class Link(Protocol):
    """The connection that a session is on, as the session sees it."""

    version: int
    receive_maximum: int  # the client's
    writable: bool
    plain: bool  # frames for it depend on nothing but the version
    bytes_sent: int

    def send(self, data: bytes, /) -> object:
        """Send bytes to the client."""
        ...

    def publish_frame(
        self, message: Message, first_byte: int, packet_id: int, identifiers: bytes, now_s: float
    ) -> bytes | None:
        """Return the PUBLISH for this client; None when it is over its maximum packet size."""
        ...


class Recorder(Protocol):
    """Where a session that outlives the process puts its changes."""

    def delivery_saved(self, session: Session, packet_id: int, delivery: Delivery) -> None:
        """A message was queued."""
        ...

    def delivery_released(self, session: Session, packet_id: int) -> None:
        """A PUBREC came: only PUBREL is to be sent from now on."""
        ...

    def delivery_ended(
        self, session: Session, packet_id: int, delivery: Delivery, *, taken: bool = False
    ) -> None:
        """The last acknowledgement came (`taken`), or the message was dropped."""
        ...


class Session:
    """One client's session; without `recorder` it ends with the process at the latest."""

    __slots__ = (
        "__weakref__",
        "client_id",
        "expiry_s",
        "inbound",
        "link",
        "next_packet_id",
        "outbound",
        "owner",
        "policy",
        "queued_bytes",
        "recorder",
        "subscriptions",
        "timer",
        "unsent",
        "version",
        "will",
        "will_delay_s",
        "window_used",
    )

    def __init__(self, client_id: str, policy: SessionPolicy, expiry_s: int = 0) -> None:
        self.client_id = client_id
        self.policy = policy
        self.expiry_s = expiry_s  # seconds after the connection; NEVER_EXPIRES
        self.version = 4
        self.link: Link | None = None  # None while the client is away
        self.recorder: Recorder | None = None  # None when nothing of it is stored
        self.subscriptions: dict[str, Subscribed] | None = None  # by filter as subscribed
        self.inbound: dict[int, int] | None = None  # QoS 2 packet id -> as `inbound_qos_2` has it
        self.outbound: dict[int, Delivery] | None = None  # by packet id, in sending order
        self.unsent: deque[int] | None = None
        self.next_packet_id = 1
        self.queued_bytes = 0
        self.window_used = 0
        self.will: Message | None = None
        self.will_delay_s = 0
        self.owner: Any = None  # the driver's connection, set before `link` is
        self.timer: Any = None  # the driver's, while the client is away

    # -- the connection -----------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """Take a connection; `send_waiting` then sends again what was not acknowledged."""
        self.link = link
        self.version = link.version
        self.window_used = 0
        if self.outbound:
            self.unsent = deque(self.outbound)  # [MQTT-4.4.0-1] [MQTT-4.6.0-1] in their order

    def detach(self) -> None:
        """Note that the connection is gone; what it was given counts as not sent."""
        self.link = None
        self.window_used = 0
        self.unsent = None
        for delivery in self.outbound.values() if self.outbound else ():
            delivery.counted = False

    def has_room(self) -> bool:
        """Return True when a message could be sent now."""
        link = self.link
        return link is not None and link.writable and not self.unsent and self._window_open(link)

    # -- outbound -----------------------------------------------------------------------------

    def offer(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: bytes,
        now_s: float,
        share: ShareGroup | None = None,
    ) -> bool:
        """Send a message or queue it; False when it was dropped, and counted by reason."""
        if qos == 0:
            return self._offer_qos0(message, retain, identifiers, now_s)
        delivery = Delivery(message, qos, retain, identifiers, share)
        size = delivery.size
        outbound = self.outbound
        policy = self.policy
        if outbound is None:
            outbound = self.outbound = {}
        elif (
            len(outbound) >= policy.messages_half
            or self.queued_bytes + size > policy.bytes_half
            or policy.queued_bytes + size > policy.total_half
        ) and not self._make_room(size):
            policy.dropped("queue_full")
            return False
        packet_id = self.next_packet_id
        while packet_id in outbound:  # [MQTT-2.2.1-4]
            packet_id = packet_id % _PACKET_IDS + 1
        self.next_packet_id = packet_id % _PACKET_IDS + 1
        outbound[packet_id] = delivery
        self.queued_bytes += size
        policy.queued_bytes += size
        if self.recorder is not None and message.is_stored:
            # A QoS 2 message could come twice if it went out under an id the store never knew.
            delivery.held = qos == 2 or bool(message.token)
            self.recorder.delivery_saved(self, packet_id, delivery)
        link = self.link
        used = self.window_used
        if (
            link is None
            or self.unsent
            or delivery.held
            or not link.writable
            or used >= link.receive_maximum
            or used >= policy.inflight_max
        ):
            if self.unsent is None:
                self.unsent = deque()
            self.unsent.append(packet_id)
            return True
        return self._send(link, packet_id, delivery, now_s)

    def offer_together(
        self, messages: Sequence[Message], qos: int, identifiers: bytes, bytes_max: int
    ) -> int:
        """Send retained messages in one go; return how many of them, from the first on.

        That is where the window, `bytes_max` or a queue's half is reached, or before a message
        that expires. 0 may also say that this session is none for it: `offer` takes any message.
        """
        link, policy = self.link, self.policy
        if link is None or not link.plain or not link.writable or self.unsent or self.recorder:
            return 0
        outbound = self.outbound
        if outbound is None:
            outbound = self.outbound = {}
        window = min(link.receive_maximum, policy.inflight_max) - self.window_used
        window = min(window, policy.messages_half - len(outbound))
        room = min(policy.bytes_half - self.queued_bytes, policy.total_half - policy.queued_bytes)
        version, sent, packet_id = link.version, policy.sent, self.next_packet_id
        parts: list[bytes] = []
        taken = size = queued = counted = 0
        for message in messages:
            lower = min(message.qos, qos)
            if message.expires_s or size >= bytes_max:
                break
            if lower:
                if counted >= window or queued + message.size > room:
                    break
                while packet_id in outbound:  # [MQTT-2.2.1-4]
                    packet_id = packet_id % _PACKET_IDS + 1
                delivery = outbound[packet_id] = Delivery(message, lower, True, identifiers, None)
                delivery.dup = delivery.counted = True
                counted += 1
                queued += delivery.size
            pieces = publish_pieces(0x31 | lower << 1, version, message, packet_id, identifiers)
            parts += pieces
            size += sum(map(len, pieces))
            sent[lower] += 1
            taken += 1
        self.next_packet_id = packet_id
        self.window_used += counted
        self.queued_bytes += queued
        policy.queued_bytes += queued
        if parts:
            link.bytes_sent += size
            link.send(b"".join(parts))
        return taken

    def send_waiting(self, now_s: float) -> None:
        """Send what waits, in order, as far as the window and the connection allow."""
        unsent, link, outbound = self.unsent, self.link, self.outbound
        if not unsent or link is None or outbound is None:
            return
        while unsent and link.writable:
            delivery = outbound.get(unsent[0])
            if delivery is None or delivery.moving:  # acknowledged after all, or dropped
                unsent.popleft()
            elif delivery.held:
                return
            elif delivery.released:  # [MQTT-4.3.3-4..7] never the PUBLISH again
                link.send(b"\x62\x02" + unsent.popleft().to_bytes(2, "big"))
            elif not self._window_open(link):
                return
            else:
                self._send(link, unsent.popleft(), delivery, now_s)

    def unhold(self, packet_ids: list[int], now_s: float) -> None:
        """The store has these deliveries: they may go."""
        for packet_id in packet_ids:
            delivery = self.outbound.get(packet_id) if self.outbound else None
            if delivery is not None:
                delivery.held = False
        self.send_waiting(now_s)

    def acknowledged(self, packet_id: int, qos: int = 0) -> bool:
        """A PUBACK or PUBCOMP came, or a PUBREC that refuses; False when the id is not known.

        Args:
            packet_id: Of a delivery.
            qos: What kind of delivery the acknowledgement is for; 0 for any.
        """
        outbound = self.outbound
        delivery = outbound.get(packet_id) if outbound else None
        if delivery is None or outbound is None:
            return False
        if qos and (delivery.qos != qos or not delivery.dup):  # never sent: some other exchange's
            return False
        del outbound[packet_id]
        self._ended(packet_id, delivery, taken=True)
        return True

    def acknowledged_together(self, packet_ids: list[int]) -> int:
        """PUBACKs came; return an id that awaits some other packet, 0 when there is none.

        Those before it are taken; ids that are not known are passed over.
        """
        outbound = self.outbound
        if not outbound:
            return 0
        policy, recorder = self.policy, self.recorder
        for packet_id in packet_ids:
            delivery = outbound.get(packet_id)
            if delivery is None:
                continue
            if delivery.qos != 1 or not delivery.dup:
                if delivery.counted:
                    return packet_id
                continue
            del outbound[packet_id]
            if recorder is not None or policy.full or delivery.message.tracker is not None:
                self._ended(packet_id, delivery, taken=True)
                continue
            size = delivery.size
            self.queued_bytes -= size
            policy.queued_bytes -= size
            if delivery.counted:
                self.window_used -= 1
        return 0

    def completed(self, packet_id: int) -> bool:
        """A PUBCOMP came: True when it ends a delivery whose PUBREC had come [MQTT-4.3.3-5]."""
        delivery = self.outbound.get(packet_id) if self.outbound else None
        return delivery is not None and delivery.released and self.acknowledged(packet_id, 2)

    def awaits_another(self, packet_id: int) -> bool:
        """Return True when a PUBLISH sent on this connection awaits some other packet."""
        delivery = self.outbound.get(packet_id) if self.outbound else None
        return delivery is not None and delivery.counted

    def restore(self, packet_id: int, delivery: Delivery, *, unsent: bool = False) -> None:
        """Put back a delivery that the store held.

        Args:
            packet_id: Of the delivery.
            delivery: What the store knew of it.
            unsent: The store is sure that it was never sent; else it may have been.
        """
        if self.outbound is None:
            self.outbound = {}
        delivery.dup = not unsent  # [MQTT-3.3.1-1] [MQTT-3.3.1-3]
        self.outbound[packet_id] = delivery
        self.queued_bytes += delivery.size
        self.policy.queued_bytes += delivery.size
        self.policy.crowded.add(self)  # until somebody has looked

    def takes(self, size: int, count: int = 1) -> bool:
        """Return True when the queue has room for messages of `size` bytes in all.

        An empty queue takes one message however large it is.
        """
        outbound = self.outbound
        policy = self.policy
        count += policy.reserved_messages
        if not outbound and count == 1:
            return True
        return (
            len(outbound or ()) + count <= policy.queue_messages_max
            and self.queued_bytes + policy.reserved_bytes + size <= policy.queue_bytes_max
        )

    def is_crowded(self) -> bool:
        """Return True when the queue is more than half full, or all queues together are."""
        policy = self.policy
        return bool(self.outbound) and (
            len(self.outbound or ()) > policy.messages_half
            or self.queued_bytes > policy.bytes_half
            or policy.queued_bytes > policy.total_half
        )

    def received(self, packet_id: int) -> bool:
        """A PUBREC came: True when PUBREL is the answer, False when the id is not known."""
        delivery = self.outbound.get(packet_id) if self.outbound else None
        if delivery is None or delivery.qos != 2 or not delivery.dup:
            return False
        if not delivery.released:
            delivery.released = True
            if self.recorder is not None and delivery.message.is_stored:
                self.recorder.delivery_released(self, packet_id)
        return True

    def undelivered_shared(self) -> Iterator[tuple[int, Delivery]]:
        """Yield what came by shared subscriptions and may go to another member."""
        for packet_id, delivery in list(self.outbound.items() if self.outbound else ()):
            if delivery.movable:
                yield packet_id, delivery

    def drop(self, packet_id: int, delivery: Delivery, reason: str) -> None:
        """Forget a delivery, and count it by the reason."""
        if self.outbound is not None and self.outbound.pop(packet_id, None) is not None:
            self._ended(packet_id, delivery)
        self.policy.dropped(reason)

    def discard_queue(self) -> None:
        """Forget everything outbound: the session ends."""
        if self.outbound:
            for packet_id, delivery in list(self.outbound.items()):
                del self.outbound[packet_id]
                self._ended(packet_id, delivery)
        self.outbound = self.unsent = None
        self.policy.crowded.discard(self)

    # -- inside -------------------------------------------------------------------------------

    def _offer_qos0(self, message: Message, retain: bool, identifiers: bytes, now_s: float) -> bool:
        link = self.link
        if link is None:
            self.policy.dropped("offline_qos0")
            return False
        if not link.writable:
            self.policy.dropped("slow_qos0")
            return False
        frame = link.publish_frame(message, 0x31 if retain else 0x30, 0, identifiers, now_s)
        if frame is None:  # [MQTT-3.1.2-25]
            self.policy.dropped("too_large")
            return False
        self.policy.sent[0] += 1
        link.bytes_sent += len(frame)
        link.send(frame)
        return True

    def _send(self, link: Link, packet_id: int, delivery: Delivery, now_s: float) -> bool:
        message = delivery.message
        if message.expires_s and message.expires_s <= now_s and not delivery.dup:
            self.drop(packet_id, delivery, "expired")  # [MQTT-3.3.2-5]
            return False
        first_byte = 0x30 | delivery.qos << 1 | delivery.retain
        if delivery.dup:  # [MQTT-3.3.1-1]
            first_byte |= _DUP
        frame = link.publish_frame(message, first_byte, packet_id, delivery.identifiers, now_s)
        if frame is None:  # [MQTT-3.1.2-24] [MQTT-3.1.2-25] as if it had been delivered
            self.drop(packet_id, delivery, "too_large")
            return False
        delivery.dup = delivery.counted = True
        self.window_used += 1
        self.policy.sent[delivery.qos] += 1
        link.bytes_sent += len(frame)
        link.send(frame)
        return True

    def _make_room(self, size: int) -> bool:
        """The queue is crowded: return True when it takes `size` bytes more, as policy has it."""
        policy = self.policy
        policy.crowded.add(self)
        if policy.queue_full == "drop_oldest":
            for packet_id, delivery in list(self.outbound.items() if self.outbound else ()):
                if self.takes(size) and policy.takes(size):
                    break
                if not delivery.dup:  # what was sent is finished [MQTT-4.3.2-1] [MQTT-4.3.3-1]
                    self.drop(packet_id, delivery, "queue_full_oldest")
        return self.takes(size) and policy.takes(size)

    def _window_open(self, link: Link) -> bool:
        used = self.window_used
        return used < link.receive_maximum and used < self.policy.inflight_max

    def _ended(self, packet_id: int, delivery: Delivery, *, taken: bool = False) -> None:
        self.queued_bytes -= delivery.size
        self.policy.queued_bytes -= delivery.size
        if delivery.counted:
            self.window_used -= 1
        message = delivery.message
        if self.recorder is not None and message.is_stored:
            self.recorder.delivery_ended(self, packet_id, delivery, taken=taken)
        if message.tracker is not None:
            message.tracker(taken)
        if self.policy.full:
            self.policy.look_at(self)
