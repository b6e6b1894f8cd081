"""Who gets a message: subscriptions, shared subscriptions, retained messages, fan-out.

MQTT 5.0 sections 3.3.1.3, 3.3.4, 3.8.4, 4.7 and 4.8. The router knows sessions, not connections:
a session sends or queues by itself. Invariant: `filters` and each session's `subscriptions` tell
the same story, as do `_groups` and the groups in `filters`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mqtt.broker.recorder import StoreRecorder
from mqtt.broker.seams import Capture
from mqtt.delivery import Delivery
from mqtt.packets import Subscription
from mqtt.server_messages import Message
from mqtt.server_routes import Route, RouteTable, SubscriptionKey
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.session_subscriptions import ShareGroup, Subscribed, identifier_property, subscribed
from mqtt.topic_tables import FilterTable, NameTree
from mqtt.topics import split_shared

__all__ = ["Router"]


class Router:
    """Subscriptions and retained messages of one broker.

    Args:
        policy: Counts what is dropped.
        recorder: Where retained messages are kept, None without a store.
        capture: Asked for lanes when a route is made.
        levels_max: Levels of a topic name.
        retained_messages_max: Retained messages that are kept.
        retained_bytes_max: Their bytes.
    """

    def __init__(
        self,
        policy: SessionPolicy,
        recorder: StoreRecorder | None = None,
        capture: Capture | None = None,
        levels_max: int = 128,
        retained_messages_max: int = 100_000,
        retained_bytes_max: int = 64 << 20,
    ) -> None:
        self.policy = policy
        self.filters: FilterTable[SubscriptionKey, Subscribed | ShareGroup] = FilterTable()
        self.routes = RouteTable(
            self.filters,
            capture.lane if capture is not None else None,
            capture.exclusive if capture is not None else None,
            levels_max=levels_max,
        )
        self.retained: NameTree[Message] = NameTree()
        self.routes.is_retained = self.retained.__contains__
        self.retained_bytes = 0
        self._recorder = recorder
        self.retained_messages_max = retained_messages_max
        self.retained_bytes_max = retained_bytes_max
        self._own_retained = 0  # of the server itself, under `$SYS/`
        self._groups: dict[str, ShareGroup] = {}  # by filter with `$share/{name}/`

    # -- subscriptions ------------------------------------------------------------------------

    def subscribe(self, session: Session, subscription: Subscription, identifier: int = 0) -> bool:
        """Add or replace a subscription [MQTT-3.8.4-3]; return whether it existed."""
        return self.subscribe_all(session, (subscription,), identifier)[0]

    def subscribe_all(
        self, session: Session, subscriptions: Sequence[Subscription], identifier: int = 0
    ) -> list[bool]:
        """Add or replace subscriptions, in their order; return of each whether it existed."""
        if not subscriptions:
            return []
        held = session.subscriptions
        if held is None:
            held = session.subscriptions = {}
        topic_filters = [each.topic_filter for each in subscriptions]
        entries = subscribed(session, subscriptions, identifier_property(identifier))
        if "$share/" in "".join(topic_filters):
            plain = [each for each in entries if not self._join_group(each)]
            self.filters.add_all(session, [each.topic_filter for each in plain], plain)
        else:
            self.filters.add_all(session, topic_filters, entries)
        count = len(held)
        existed = [each in held for each in topic_filters] if held else [False] * len(entries)
        held.update(zip(topic_filters, entries, strict=True))
        if len(held) - count != existed.count(False):  # some of them are there twice
            before: set[str] = set()
            for index, topic_filter in enumerate(topic_filters):
                existed[index] = existed[index] or topic_filter in before
                before.add(topic_filter)
        self.routes.subscriptions_changed(topic_filters)
        return existed

    def _join_group(self, entry: Subscribed) -> bool:
        """Let a session take its turns in a shared subscription; False when it is none."""
        topic_filter = entry.topic_filter
        if not topic_filter.startswith("$share/"):
            return False
        group = self._groups.get(topic_filter)
        if group is None:
            share_name, plain = split_shared(topic_filter)
            group = self._groups[topic_filter] = ShareGroup(topic_filter)
            self.filters.add(plain, (share_name,), group)
        group.add(entry)
        return True

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Remove a subscription [MQTT-3.10.4-1]; return whether there was one."""
        entry = session.subscriptions.pop(topic_filter, None) if session.subscriptions else None
        if entry is None:
            return False
        share_name, plain = split_shared(topic_filter)
        if entry.share is None:
            self.filters.remove(plain, session)
        else:
            entry.share.remove(session)
            if not entry.share.members:
                self.filters.remove(plain, (share_name,))
                self._groups.pop(topic_filter, None)
        self.routes.subscriptions_changed((topic_filter,))
        return True

    def forget(self, session: Session) -> None:
        """Remove all subscriptions of a session that ends."""
        for topic_filter in list(session.subscriptions or ()):
            self.unsubscribe(session, topic_filter)

    def group(self, topic_filter: str) -> ShareGroup | None:
        """Return the shared subscription with this filter, if it has members."""
        return self._groups.get(topic_filter)

    # -- routing ------------------------------------------------------------------------------

    def receivers(self, route: Route) -> bool:
        """Return True when somebody is subscribed to a route's topic."""
        if route.generation != self.routes.generation:
            self.routes.refresh(route)
        return bool(route.targets or route.shares)

    def deliver(self, message: Message, route: Route, now_s: float) -> bool:
        """Give a message to every matching session; False when there is none."""
        if route.generation != self.routes.generation:
            self.routes.refresh(route)
        targets = route.targets
        shares = route.shares
        if not targets and not shares:
            return False
        qos = message.qos
        retain = message.retain
        publisher = message.publisher
        shareable = not message.expires_s
        for target in targets:
            session = target.session
            if target.no_local and publisher == session.client_id:  # [MQTT-3.8.3-3]
                if target.own is None:
                    continue
                target = target.own  # noqa: PLW2901 - its other subscriptions, without no-local
            lower = min(qos, target.qos) if qos else 0  # [MQTT-3.8.4-8]
            keep = retain and target.retain_as_published  # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
            link = session.link
            if (
                lower == 0
                and shareable
                and link is not None
                and link.plain
                and link.writable
                and not target.identifiers
            ):
                # The same bytes for all: fan-out of QoS 0 is this and a write for each.
                frame, _ = message.frame_parts(0x31 if keep else 0x30, link.version)
                link.bytes_sent += len(frame)
                self.policy.sent[0] += 1
                link.send(frame)
            else:
                session.offer(message, lower, keep, target.identifiers, now_s)
        for group in shares:
            self.deliver_shared(message, group, now_s)
        if retain:
            message.forget_frames()  # it stays
        return True

    def deliver_shared(
        self, message: Message, group: ShareGroup, now_s: float, besides: Session | None = None
    ) -> bool:
        """Give a message to one member of a shared subscription; False when there is none."""
        entry = group.choose(message.size, besides=besides)
        if entry is None:
            return False
        return entry.session.offer(
            message,
            min(message.qos, entry.qos),
            message.retain and entry.retain_as_published,
            entry.identifiers,
            now_s,
            group,
        )

    def reassign(self, session: Session, now_s: float) -> None:
        """Give what a member of shared subscriptions has not acknowledged to other members.

        Only to a connected one: else it waits here for whoever comes back first.
        """
        for packet_id, delivery in session.undelivered_shared():
            self.hand_over(session, packet_id, delivery, now_s)

    def hand_over(
        self,
        session: Session,
        packet_id: int,
        delivery: Delivery,
        now_s: float,
        *,
        to_absent: bool = False,
    ) -> bool:
        """Give a delivery to another member of its shared subscription; False when none takes it.

        The other one has it, in the store too, before this one has not.

        Args:
            session: Whose delivery it is.
            packet_id: Of the delivery.
            delivery: One that is `movable`.
            now_s: Monotonic time.
            to_absent: Whether a member that is not connected may get it.
        """
        group = delivery.share
        entry = group.choose(delivery.size, besides=session) if group is not None else None
        if (
            entry is None
            or (entry.session.link is None and not to_absent)
            or not entry.session.takes(delivery.size)
            or not entry.session.offer(
                delivery.message,
                min(delivery.qos, entry.qos),
                delivery.message.retain and entry.retain_as_published,
                entry.identifiers,
                now_s,
                group,
            )
        ):
            return False
        session.acknowledged(packet_id)
        return True

    # -- retained -----------------------------------------------------------------------------

    def retain(self, message: Message, name: str) -> bool:
        """Keep, replace or (empty payload) forget a retained message; False when over a limit."""
        retained = self.retained
        if not message.payload:  # [MQTT-3.3.1-6] [MQTT-3.3.1-7]
            previous = retained.get(name)
            if previous is not None:
                self._forget_retained(name, previous)
            return True
        size = message.size
        is_own = name.startswith("$SYS/")  # a few, that take nobody's place
        is_full = retained.count - self._own_retained >= self.retained_messages_max
        if is_full or self.retained_bytes + size > self.retained_bytes_max:
            previous = retained.get(name)
            previous_size = previous.size if previous is not None else 0
            if (
                previous is None and not is_own and is_full
            ) or self.retained_bytes - previous_size + size > self.retained_bytes_max:
                self.policy.dropped("retained_full")
                return False
        previous = retained.set(name, message)  # [MQTT-3.3.1-5]
        self.retained_bytes += size - (previous.size if previous is not None else 0)
        if is_own:
            self._own_retained += previous is None
        elif self._recorder is not None:
            self._recorder.retained_saved(message)
        return True

    def restore_retained(self, message: Message) -> None:
        """Put back what the store held."""
        self.retained.set(message.topic.decode(), message)
        self.retained_bytes += message.size

    def still_retained(self, name: str, message: Message, now_s: float) -> bool:
        """Return True when a message is what is retained under a name; one that has expired goes.
        [MQTT-3.3.2-5]"""
        if self.retained.get(name) is not message:
            return False
        if message.expires_s and message.expires_s <= now_s:
            self._forget_retained(name, message)
            return False
        return True

    def expire_retained(self, now_s: float) -> None:
        """Forget retained messages whose expiry has passed [MQTT-3.3.2-5]."""
        expired = [
            (name, message)
            for name in self.retained
            if (message := self.retained.get(name)) is not None
            and message.expires_s
            and message.expires_s <= now_s
        ]
        for name, message in expired:
            self._forget_retained(name, message)

    def _forget_retained(self, name: str, message: Message) -> None:
        self.retained.pop(name)
        self.retained_bytes -= message.size
        self._own_retained -= name.startswith("$SYS/")
        if self._recorder is not None:
            self._recorder.retained_ended(message.topic)
