"""The other nodes of a cluster, as one broker sees them, and the router that reaches them.

A broker without a bus has a plain `Router` and pays nothing. With one, sessions fall in two kinds:

- a *lasting* session (it outlives its connection) gets messages of QoS 1 and 2 by the cluster's
  log alone, wherever they were published, in the order of the log;
- all others, and QoS 0, get them right away: here from the publish, elsewhere as the bus brings it.

Invariants:
- of one message a session gets one copy: `deliver_here` leaves out exactly what `deliver_logged`
  gives, a lasting session's share of QoS 1 and above;
- every member of a shared subscription is chosen once in the cluster, by the node of the publish;
- what a publisher is told waits until the bus has made durable what it was handed
  (`StoreRecorder.position` rises, and the store's `when_durable` tells).

docs/adr/0009-mqtt-across-nodes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mqtt.broker.recorder import StoreRecorder
from mqtt.broker.router import Router
from mqtt.delivery import Delivery
from mqtt.packets import Connect, Subscription
from mqtt.server_messages import Message
from mqtt.server_routes import Route
from mqtt.session import Session
from mqtt.session_subscriptions import ShareGroup

if TYPE_CHECKING:
    from mqtt.broker.core import Core

__all__ = ["Bus", "BusRouter"]


class Bus(Protocol):
    """Carries messages between nodes and says whose session is where; never blocks."""

    message_bytes_max: int  # of what can leave the node; larger publishes are refused

    def attach(self, core: Core) -> None:
        """Take the broker whose bus this is, before anything else is called."""
        ...

    def reach(self, topic_name: str) -> object | None:
        """Return where else a topic's messages go; None for nowhere.

        Asked when a route's receivers are found; `RouteTable.generation` rises when it changes.
        """
        ...

    def arriving(self, message: Message, session: Session, packet_id: int) -> None:
        """Take note of a QoS 2 publish of a session that lasts, which is published next."""
        ...

    def publish(self, message: Message, reach: object) -> bool:
        """Send a message published here to where `reach` says; True when its answer has to wait."""
        ...

    def reroute(
        self, message: Message, group: ShareGroup, done: Callable[[], object], *, waiting: bool
    ) -> bool:
        """Find another member for a shared message that one could not take; False: there is none.

        Args:
            message: It goes through the log again.
            group: Whose.
            done: Called when the log has it.
            waiting: Members that are not connected will do.
        """
        ...

    def subscribed(self, session: Session, topic_filter: str) -> None:
        """A subscription was made, changed or ended."""
        ...

    def when_spread(self, callback: Callable[[], None]) -> None:
        """Call back when the other nodes know the subscriptions made so far, and when what was
        retained at any of them before is here."""
        ...

    def claim(self, connect: Connect, proceed: Callable[[], None]) -> bool:
        """Make the client's session this node's: True if it is, else `proceed` is called later.

        False too when it never will be: the client is then not answered.
        """
        ...

    def session_moved(self, session: Session, *, here: bool) -> None:
        """A session got a connection of this node, or lost it, or ended."""
        ...


class BusRouter(Router):
    """A router some of whose receivers are on other nodes."""

    bus: Bus
    recorder: StoreRecorder

    def use(self, bus: Bus, recorder: StoreRecorder) -> None:
        """Set the bus, and the recorder whose position tells that an answer has to wait."""
        self.bus = bus
        self.recorder = recorder
        self.routes.reach = bus.reach

    # -- subscriptions ------------------------------------------------------------------------

    def subscribe_all(
        self, session: Session, subscriptions: Sequence[Subscription], identifier: int = 0
    ) -> list[bool]:
        """Add or replace subscriptions; the other nodes hear of them."""
        existed = super().subscribe_all(session, subscriptions, identifier)
        for subscription in subscriptions:
            self.bus.subscribed(session, subscription.topic_filter)
        return existed

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Remove a subscription; the other nodes hear of it."""
        existed = super().unsubscribe(session, topic_filter)
        if existed:
            self.bus.subscribed(session, topic_filter)
        return existed

    # -- routing ------------------------------------------------------------------------------

    def receivers(self, route: Route) -> bool:
        """Return True when somebody, here or elsewhere, is subscribed to a route's topic."""
        return super().receivers(route) or route.reach is not None

    def deliver(self, message: Message, route: Route, now_s: float) -> bool:
        """Give a message published here to every matching session of the cluster."""
        delivered = self.deliver_here(message, route, now_s)
        reach = route.reach
        if reach is None:
            return delivered
        if self.bus.publish(message, reach):
            self.recorder.position += 1
        return True

    def deliver_here(self, message: Message, route: Route, now_s: float) -> bool:
        """Give a message to the sessions of this node that do not get it by the log."""
        if route.generation != self.routes.generation:
            self.routes.refresh(route)
        for target in route.targets:
            session = target.session
            if target.no_local and message.publisher == session.client_id:  # [MQTT-3.8.3-3]
                if target.own is None:
                    continue
                target = target.own  # noqa: PLW2901 - its other subscriptions, without no-local
            qos = min(message.qos, target.qos)  # [MQTT-3.8.4-8]
            if qos and session.recorder is not None:
                continue  # by the log
            session.offer(
                message,
                qos,
                message.retain and target.retain_as_published,
                target.identifiers,
                now_s,
            )
        if message.retain:
            message.forget_frames()  # it stays
        return bool(route.targets)

    def deliver_logged(
        self,
        message: Message,
        route: Route,
        shard: int,
        shard_of: Callable[[str], int],
        now_s: float,
        takes: Callable[[Session, int], bool],
    ) -> None:
        """Give a message of the log to the lasting sessions here that belong to `shard`.

        `takes` says whether one has room for so many bytes; if not it gets the message later.
        """
        if route.generation != self.routes.generation:
            self.routes.refresh(route)
        for target in route.targets:
            session = target.session
            if session.recorder is None or shard_of(session.client_id) != shard:
                continue
            if target.no_local and message.publisher == session.client_id:
                if target.own is None:
                    continue
                target = target.own  # noqa: PLW2901 - as above
            qos = min(message.qos, target.qos)
            if qos and takes(session, message.size):
                keep = message.retain and target.retain_as_published
                session.offer(message, qos, keep, target.identifiers, now_s)

    # -- shared subscriptions -----------------------------------------------------------------

    def reassign(self, session: Session, now_s: float) -> None:
        """Give what a member that has gone has not acknowledged to other members."""
        shares = {each.share for _, each in session.undelivered_shared() if each.share is not None}
        for group in shares:
            self.bus.subscribed(session, group.topic_filter)  # it counts as connected no more
        super().reassign(session, now_s)

    def hand_over(
        self,
        session: Session,
        packet_id: int,
        delivery: Delivery,
        now_s: float,  # noqa: ARG002 - as `Router`
        *,
        to_absent: bool = False,
    ) -> bool:
        """Give a delivery to another member, here or elsewhere; False when there is none.

        It goes by the log once more, and is this session's in the store until the log has it. The
        client does not get it meanwhile, should it come back: it would have it beside the other.
        """
        group, message = delivery.share, delivery.message
        assert group is not None
        tracker = message.tracker
        done: Callable[[], object]
        if tracker is not None:
            done = partial(tracker, True)
        else:
            done = partial(_moved, session, packet_id, delivery)
        if not self.bus.reroute(message, group, done, waiting=to_absent or tracker is not None):
            return False
        if tracker is not None:
            message.tracker = _ignore
            session.acknowledged(packet_id)
        else:
            delivery.moving = True
        return True

    # -- retained -----------------------------------------------------------------------------

    def apply_retained(self, name: str, message: Message | None) -> None:
        """Take what the cluster has retained under a name, None for nothing any more."""
        previous = self.retained.get(name)
        if previous is not None:
            self.retained.pop(name)
            self.retained_bytes -= previous.size
        if message is not None:
            self.retained.set(name, message)
            self.retained_bytes += message.size


def _moved(session: Session, packet_id: int, delivery: Delivery) -> None:
    """Forget a delivery that the log has for another member, unless it has ended already."""
    if session.outbound and session.outbound.get(packet_id) is delivery:
        session.acknowledged(packet_id)


def _ignore(taken: bool) -> None:
    """Hear nothing of a delivery that goes to somebody else."""
