"""Turns what happens to sessions and retained messages into changes for the session store.

Only sessions that outlive their connection are stored. A message that waits for several of them
is stored once. Invariant: `position` rises with every change, so that a caller who compares it
before and after knows whether an answer has to wait for the disk (STYLE 13).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from mqtt.broker.changes import (
    MAYBE_SENT,
    UNSENT,
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundRecovered,
    InboundSaved,
    Marked,
    MessageEnded,
    MessageSaved,
    OfferEnded,
    OfferSaved,
    OfferTaken,
    RetainedEnded,
    RetainedSaved,
    SessionEnded,
    SessionSaved,
    StoredState,
    SubscriptionEnded,
    SubscriptionSaved,
)
from mqtt.broker.seams import Exchanges, SessionStore
from mqtt.delivery import Delivery
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_subscriptions import Subscribed
from runtime.clock import Clock

__all__ = ["StoreRecorder"]


class StoreRecorder:
    """The `mqtt.session.Recorder` of a broker with a session store."""

    def __init__(
        self, store: SessionStore, clock: Clock, exchanges: Exchanges | None = None
    ) -> None:
        self._store = store
        self._exchanges = exchanges
        self._marking: tuple[int, int] | None = None  # the mark that is on its way to the disk
        self._marked: tuple[int, int] = (0, 0)  # the one that is there
        self._clock = clock
        self._held: dict[Session, list[int]] = {}
        self.position = 0
        self.next_message_id = 1

    def put(self, change: Change) -> None:
        """Hand a change to the store."""
        self.position += 1
        self._store.put(change)

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call `callback` when everything put so far is on disk."""
        self._store.when_durable(callback)

    # -- sessions -----------------------------------------------------------------------------

    def session_saved(self, session: Session, *, away: bool, for_s: float = 0.0) -> None:
        """Keep the session's own row: at CONNECT, when its connection ends, and after its will.

        Args:
            session: The session.
            away: Whether its client is.
            for_s: For how long it has been.
        """
        will = session.will
        expiry_s = -1
        if will is not None and will.expires_s:
            expiry_s = round(will.expires_s)  # a will's expiry is counted from its publication
        self.put(
            SessionSaved(
                session.client_id,
                session.version,
                session.expiry_s,
                self._clock.wall_us() - round(for_s * 1e6) if away else 0,
                None if will is None else will.topic,
                b"" if will is None else will.payload,
                b"" if will is None else will.properties,
                0 if will is None else will.qos | will.retain << 2,
                session.will_delay_s,
                expiry_s,
            )
        )

    def session_ended(self, session: Session) -> None:
        """Forget a session; its deliveries have ended before."""
        self.put(SessionEnded(session.client_id))

    def subscription_saved(self, entry: Subscribed) -> None:
        """Keep a subscription."""
        self.put(
            SubscriptionSaved(
                entry.session.client_id, entry.topic_filter, entry.options, entry.identifier
            )
        )

    def subscription_ended(self, session: Session, topic_filter: str) -> None:
        """Forget a subscription."""
        self.put(SubscriptionEnded(session.client_id, topic_filter))

    def inbound_saved(self, session: Session, packet_id: int) -> None:
        """Keep the identifier of a QoS 2 publish."""
        self.put(InboundSaved(session.client_id, packet_id))

    def inbound_ended(self, session: Session, packet_id: int) -> None:
        """Forget the identifier of a QoS 2 publish."""
        self.put(InboundEnded(session.client_id, packet_id))

    # -- QoS 2 publishes that the capture holds -----------------------------------------------

    async def recover(self, state: StoredState) -> None:
        """Learn of the QoS 2 publishes that the capture held and the store did not, at a crash.

        `state.recovered` has them then, and the store as well.
        """
        exchanges = self._exchanges
        if exchanges is None:
            return
        mark = state.mark
        if mark is not None and mark.epoch == exchanges.position[0]:
            known = {session.client_id for session in state.sessions}
            for client_id, packet_id, check in await exchanges.since((mark.epoch, mark.seq)):
                if client_id in known:
                    state.recovered.append(InboundRecovered(client_id, packet_id, check))
                    self.put(state.recovered[-1])
        self.mark()
        durable = asyncio.Event()
        self.when_durable(durable.set)
        await durable.wait()

    def mark(self) -> None:
        """Note that the store knows every identifier that the capture has settled until now."""
        exchanges = self._exchanges
        if exchanges is None:
            return
        position = exchanges.position
        self.put(Marked(*position))
        if self._marking is None:
            exchanges.hold(self._marked)
        if position != self._marking:
            self._marking = position
            self._store.when_durable(partial(self._mark_durable, position))

    def _mark_durable(self, position: tuple[int, int]) -> None:
        assert self._exchanges is not None
        self._marked = position
        if self._marking == position:
            self._marking = None
            self._exchanges.hold(None)
        else:
            self._exchanges.hold(position)

    # -- deliveries: the Recorder of `mqtt.session` -------------------------------------------

    def delivery_saved(self, session: Session, packet_id: int, delivery: Delivery) -> None:
        """Keep a queued message; what is held until then is let go by itself."""
        message = delivery.message
        if not message.store_id:
            message.store_id = self.next_message_id
            self.next_message_id += 1
        if not message.store_refs:
            self.put(
                MessageSaved(
                    message.store_id,
                    message.topic,
                    message.payload,
                    message.properties,
                    message.qos,
                    int(message.retain),
                    self.wall_expiry_us(message.expires_s),
                    message.publisher,
                )
            )
        message.store_refs += 1
        if message.token:
            self.put(OfferSaved(message.token, session.client_id, packet_id))
        share = delivery.share.topic_filter if delivery.share else ""
        unsent = session.owner is None and not delivery.dup
        self.put(
            DeliverySaved(
                session.client_id,
                packet_id,
                message.store_id,
                delivery.qos,
                int(delivery.retain),
                delivery.identifiers,
                share,
                UNSENT if unsent else MAYBE_SENT,
            )
        )
        if delivery.held:
            if not self._held:
                self._store.when_durable(self._unhold)
            self._held.setdefault(session, []).append(packet_id)

    def delivery_released(self, session: Session, packet_id: int) -> None:
        """Keep that PUBREC came."""
        self.put(DeliveryReleased(session.client_id, packet_id))

    def delivery_ended(
        self, session: Session, packet_id: int, delivery: Delivery, *, taken: bool = False
    ) -> None:
        """Forget a delivery, and its message with the last one; an offer that was taken stays."""
        message = delivery.message
        if message.token:
            self.put((OfferTaken if taken else OfferEnded)(message.token))
        self.put(DeliveryEnded(session.client_id, packet_id))
        message.store_refs -= 1
        if not message.store_refs:
            self.put(MessageEnded(message.store_id))

    def offer_forgotten(self, token: str) -> None:
        """Forget an offer: its sender has noted what became of it."""
        self.put(OfferEnded(token))

    # -- retained -----------------------------------------------------------------------------

    def retained_saved(self, message: Message) -> None:
        """Keep a topic's retained message."""
        expires_us = self.wall_expiry_us(message.expires_s) if message.expires_s else 0
        self.put(
            RetainedSaved(
                message.topic,
                message.payload,
                message.properties,
                message.qos,
                expires_us,
                message.publisher,
            )
        )

    def retained_ended(self, topic: bytes) -> None:
        """Forget a topic's retained message."""
        self.put(RetainedEnded(topic))

    # -- times --------------------------------------------------------------------------------

    def wall_expiry_us(self, expires_s: float) -> int:
        """Return a monotonic deadline as wall time, 0 for none."""
        if not expires_s:
            return 0
        left_s = expires_s - self._clock.monotonic_s()
        return self._clock.wall_us() + round(left_s * 1e6)

    def monotonic_expiry_s(self, expires_us: int) -> float:
        """Return a wall clock deadline as monotonic time, 0.0 for none."""
        if not expires_us:
            return 0.0
        left_s = (expires_us - self._clock.wall_us()) / 1e6
        return self._clock.monotonic_s() + left_s

    def _unhold(self) -> None:
        held, self._held = self._held, {}
        now_s = self._clock.monotonic_s()
        for session, packet_ids in held.items():
            session.unhold(packet_ids, now_s)
