"""The sessions of one broker by client id: resumed, taken over, kept while away, ended.

MQTT 5.0 sections 3.1.2.4, 3.1.2.5, 3.1.2.11.2 and 4.1.
Invariants: a session is in `sessions` from its CONNECT to its end; it has an `Away` in the wheel
exactly while it has no connection and something is to happen in that time; only a session that
outlives its connection has a recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from mqtt.broker.bus import Bus
from mqtt.broker.changes import RELEASED, UNSENT, SessionSaved, StoredState
from mqtt.broker.recorder import StoreRecorder
from mqtt.broker.router import Router
from mqtt.broker.seams import ClientInfo
from mqtt.broker.timers import TimerWheel
from mqtt.delivery import Delivery
from mqtt.inbound_qos_2 import SETTLED
from mqtt.packets import Connect, Subscription, Will
from mqtt.properties import (
    MESSAGE_EXPIRY_INTERVAL,
    SESSION_EXPIRY_INTERVAL,
    WILL_DELAY_INTERVAL,
    encode_property_block,
)
from mqtt.server_messages import Message
from mqtt.session import NEVER_EXPIRES, Session
from mqtt.session_policy import SessionPolicy

__all__ = ["SessionRegistry"]

_PUBLISH = 3
_PublishWill = Callable[[Session, Message, ClientInfo | None], None]


class Away:
    """What happens to a session whose client is away, and when."""

    __slots__ = ("client", "expires_s", "registry", "session", "timer_tick", "will_due_s")

    def __init__(
        self,
        registry: SessionRegistry,
        session: Session,
        client: ClientInfo | None,
        will_due_s: float,
        expires_s: float,
    ) -> None:
        self.registry = registry
        self.session = session
        self.client = client
        self.will_due_s = will_due_s  # inf for never
        self.expires_s = expires_s
        self.timer_tick = 0

    def on_timer(self, now_s: float) -> None:
        """The will is due, or the session has expired."""
        self.registry.away_timeout(self, now_s)


class SessionRegistry:
    """Makes, keeps and ends sessions.

    Args:
        policy: Limits of each session.
        router: Forgets the subscriptions of a session that ends.
        recorder: Where sessions that outlive their connection are kept; None without a store.
        wheel: Will delays and session expiries.
        publish_will: Publishes the will of a session.
        expiry_max_s: The longest session expiry granted.
    """

    def __init__(
        self,
        policy: SessionPolicy,
        router: Router,
        recorder: StoreRecorder | None,
        wheel: TimerWheel,
        publish_will: _PublishWill,
        expiry_max_s: int,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self._policy = policy
        self._router = router
        self._recorder = recorder
        self._wheel = wheel
        self._publish_will = publish_will
        self.expiry_max_s = expiry_max_s
        self.bus: Bus | None = None  # the other nodes of a cluster
        self.offers_taken: set[str] = set()  # as the store had it: acknowledged, not yet forgotten

    def expiry_s(self, connect: Connect) -> int:
        """Return the session expiry granted to a CONNECT; 3.1.1 asks by clean session."""
        if connect.protocol_version < 5:
            asked = 0 if connect.clean_start else NEVER_EXPIRES
        else:
            asked = connect.properties.get(SESSION_EXPIRY_INTERVAL, 0)
        return min(asked, self.expiry_max_s)

    def open(self, connect: Connect, now_s: float) -> tuple[Session, bool]:
        """Return the session for a CONNECT and whether it was there before.

        The caller has ended the connection that the session may have been on.
        """
        client_id = connect.client_id
        session = self._current(client_id, now_s)
        if session is not None and connect.clean_start:  # [MQTT-3.1.2-4]
            self.end(session, now_s)
            session = None
        present = session is not None  # [MQTT-3.1.2-5] [MQTT-3.1.2-6]
        if session is None:
            session = self.sessions[client_id] = Session(client_id, self._policy)
        else:
            self._come_back(session)
        session.version = connect.protocol_version
        session.expiry_s = self.expiry_s(connect)
        self._set_will(session, connect.will)
        self._store(session)
        return session, present

    def leave(
        self, session: Session, now_s: float, client: ClientInfo | None, *, send_will: bool
    ) -> None:
        """Note that a session's connection is gone.

        Args:
            session: Detached by the caller.
            now_s: Monotonic time.
            client: Who it was.
            send_will: False after a DISCONNECT that deletes the will [MQTT-3.1.2-10].
        """
        if not send_will:
            session.will = None
        if session.expiry_s == 0:
            if session.will is not None:
                self._send_will(session, client)  # whichever is first: delay or end of session
            self.end(session, now_s)
            return
        will_due_s = inf
        if session.will is not None:  # [MQTT-3.1.2-8] [MQTT-3.1.3-9]
            will_due_s = now_s + session.will_delay_s
            if not session.will_delay_s:
                self._send_will(session, client)
                will_due_s = inf
        if session.recorder is not None and self._recorder is not None:
            self._recorder.session_saved(session, away=True)
        self._router.reassign(session, now_s)
        if self.bus is not None:
            self.bus.session_moved(session, here=False)
        expires_s = inf if session.expiry_s == NEVER_EXPIRES else now_s + session.expiry_s
        self._wait(session, client, will_due_s, expires_s)

    def end(self, session: Session, now_s: float) -> None:
        """End a session: its will, if it still has one to send, goes out now [MQTT-3.1.2-8]."""
        away = session.timer
        if away is not None:
            self._wheel.cancel(away)
            session.timer = None
            if away.will_due_s != inf:
                self._send_will(session, away.client)
        if session.outbound:
            self._router.reassign(session, now_s)
        if session.subscriptions:
            self._router.forget(session)
        session.discard_queue()
        session.inbound = None
        if session.recorder is not None and self._recorder is not None:
            self._recorder.session_ended(session)
            session.recorder = None
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        if self.bus is not None:
            self.bus.session_moved(session, here=False)

    def change_expiry(self, session: Session, expiry_s: int) -> None:
        """Take the session expiry of a DISCONNECT (section 3.14.2.2.2)."""
        session.expiry_s = min(expiry_s, self.expiry_max_s)
        self._store(session)

    def forget_will(self, session: Session, now_s: float) -> None:
        """Forget a will that is not to be sent."""
        session.will = None
        self._save(session, now_s)

    def away_timeout(self, away: Away, now_s: float) -> None:
        """Send the will that is due, end the session that has expired, or wait on."""
        session = away.session
        if session.timer is not away:
            return
        if away.will_due_s <= now_s:
            away.will_due_s = inf
            self._send_will(session, away.client)
            self._save(session, now_s)
        if away.expires_s <= now_s:
            self.end(session, now_s)
        else:
            self._wait(session, away.client, away.will_due_s, away.expires_s)

    def release(self, session: Session) -> None:
        """Forget a session that another node has now; it stays in the store as it is."""
        if session.timer is not None:
            self._wheel.cancel(session.timer)
            session.timer = None
        session.will = None
        session.recorder = None
        self._router.forget(session)
        session.discard_queue()
        session.inbound = None
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]

    # -- from the store -----------------------------------------------------------------------

    def restore(self, state: StoredState, now_s: float) -> None:
        """Make the sessions that a store held; a client that was connected left just now."""
        recorder = self._recorder
        assert recorder is not None
        messages: dict[int, Message] = {}
        for row in state.messages:
            message = messages[row.message_id] = Message(
                row.topic,
                row.payload,
                row.qos,
                bool(row.retain),
                row.properties,
                recorder.monotonic_expiry_s(row.expires_us),
                row.publisher,
            )
            message.store_id = row.message_id
            recorder.next_message_id = max(recorder.next_message_id, row.message_id + 1)
        tokens = {
            (one.client_id, one.packet_id): one.token for one in state.offers if not one.taken
        }
        self.offers_taken = {one.token for one in state.offers if one.taken}
        for saved in state.sessions:
            self._restore_session(saved)
        for subscribed in state.subscriptions:
            session = self.sessions.get(subscribed.client_id)
            if session is not None:
                options = subscribed.options
                subscription = Subscription(
                    subscribed.topic_filter,
                    options & 3,
                    bool(options & 4),
                    bool(options & 8),
                    options >> 4,
                )
                self._router.subscribe(session, subscription, subscribed.identifier)
        for queued in state.deliveries:
            session = self.sessions.get(queued.client_id)
            if session is not None and queued.message_id in messages:
                message = messages[queued.message_id]
                message.store_refs += 1
                message.token = tokens.get((queued.client_id, queued.packet_id), "")
                share = self._router.group(queued.share) if queued.share else None
                delivery = Delivery(
                    message, queued.qos, bool(queued.retain), queued.identifiers, share
                )
                delivery.released = queued.progress == RELEASED
                unsent = queued.progress == UNSENT
                session.restore(queued.packet_id, delivery, unsent=unsent)
        for captured in state.recovered:
            session = self.sessions.get(captured.client_id)
            if session is not None:
                if session.inbound is None:
                    session.inbound = {}
                session.inbound[captured.packet_id] = ~captured.check
        for received in state.inbound:
            session = self.sessions.get(received.client_id)
            if session is not None:
                if session.inbound is None:
                    session.inbound = {}
                session.inbound[received.packet_id] = SETTLED
        for saved in state.sessions:
            self._restore_timer(saved, now_s)

    def _restore_session(self, saved: SessionSaved) -> None:
        session = Session(saved.client_id, self._policy, saved.expiry_s)
        session.version = saved.version
        session.recorder = self._recorder
        if saved.will_topic is not None:
            session.will = Message(
                saved.will_topic,
                saved.will_payload,
                saved.will_flags & 3,
                bool(saved.will_flags & 4),
                saved.will_properties,
                float(saved.will_expiry_s) if saved.will_expiry_s >= 0 else 0.0,
                saved.client_id,
            )
            session.will_delay_s = saved.will_delay_s
        self.sessions[saved.client_id] = session

    def _restore_timer(self, saved: SessionSaved, now_s: float) -> None:
        session = self.sessions[saved.client_id]
        recorder = self._recorder
        assert recorder is not None
        since_s = now_s
        if saved.away_since_us:
            since_s = min(now_s, recorder.monotonic_expiry_s(saved.away_since_us))
        will_due_s = since_s + session.will_delay_s if session.will is not None else inf
        expires_s = inf if session.expiry_s == NEVER_EXPIRES else since_s + session.expiry_s
        self._wait(session, None, will_due_s, expires_s)

    # -- inside -------------------------------------------------------------------------------

    def _current(self, client_id: str, now_s: float) -> Session | None:
        """Return a client's session; what was due while it was away is done before its time."""
        session = self.sessions.get(client_id)
        away: Away | None = session.timer if session is not None else None
        if away is not None and min(away.will_due_s, away.expires_s) <= now_s:
            self._wheel.cancel(away)  # the wheel is up to one tick late
            self.away_timeout(away, now_s)
            session = self.sessions.get(client_id)
        return session

    def _wait(
        self, session: Session, client: ClientInfo | None, will_due_s: float, expires_s: float
    ) -> None:
        due_s = min(will_due_s, expires_s)
        if due_s == inf:
            session.timer = None
            return
        away = session.timer = Away(self, session, client, will_due_s, expires_s)
        self._wheel.set(away, due_s)

    def _come_back(self, session: Session) -> None:
        """Cancel what was to happen while the client was away [MQTT-3.1.3-9]."""
        if session.timer is not None:
            self._wheel.cancel(session.timer)
            session.timer = None
        session.will = None

    def _set_will(self, session: Session, will: Will | None) -> None:
        session.will = None  # [MQTT-3.1.2-7]
        session.will_delay_s = 0
        if will is not None:
            properties = dict(will.properties)
            session.will_delay_s = properties.pop(WILL_DELAY_INTERVAL, 0)
            expiry_s = properties.pop(MESSAGE_EXPIRY_INTERVAL, 0)
            session.will = Message(
                will.topic_name.encode(),
                will.payload,
                will.qos,
                will.retain,
                encode_property_block(properties, _PUBLISH),
                float(expiry_s),  # counted from the publication
                session.client_id,
            )

    def _send_will(self, session: Session, client: ClientInfo | None) -> None:
        will, session.will = session.will, None
        if will is not None:
            self._publish_will(session, will, client)

    def _save(self, session: Session, now_s: float) -> None:
        """Keep a session whose will is gone: it expires when it was to expire."""
        if session.recorder is None or self._recorder is None:
            return
        away: Away | None = session.timer
        for_s = 0.0
        if away is not None and away.expires_s != inf:
            for_s = session.expiry_s - (away.expires_s - now_s)
        self._recorder.session_saved(session, away=session.owner is None, for_s=for_s)

    def _store(self, session: Session) -> None:
        """Keep a session that outlives its connection, forget one that does not any more."""
        recorder = self._recorder
        if recorder is None:
            return
        if session.expiry_s:
            fresh = session.recorder is None
            session.recorder = recorder
            recorder.session_saved(session, away=False)
            if fresh:
                self._store_contents(session, recorder)
                recorder.mark()  # what is captured under this client id belongs to another session
        elif session.recorder is not None:
            for packet_id, delivery in (session.outbound or {}).items():
                delivery.held = False
                if delivery.message.is_stored:
                    recorder.delivery_ended(session, packet_id, delivery)
            recorder.session_ended(session)
            session.recorder = None

    def _store_contents(self, session: Session, recorder: StoreRecorder) -> None:
        """A session becomes one that lasts: what it holds already is kept from now on."""
        for packet_id, delivery in (session.outbound or {}).items():
            if not delivery.message.is_stored:
                continue
            recorder.delivery_saved(session, packet_id, delivery)
            if delivery.released:
                recorder.delivery_released(session, packet_id)
        for entry in (session.subscriptions or {}).values():
            recorder.subscription_saved(entry)
        for packet_id, state in (session.inbound or {}).items():
            if state == SETTLED:  # the others are kept once they are (settling.py)
                recorder.inbound_saved(session, packet_id)
