"""Topic bytes to route: everything that is decided by a topic alone, decided once.

A `Route` is the outcome of validating a topic name, asking the capture for its lane and asking
for leave to publish; its receivers are found again only when subscriptions have changed. MQTT 5.0
sections 3.3.2.1 and 4.7.
Invariants: `route.generation == table.generation` only for a route in the table whose receivers
are current; it is `_NOT_KEPT` only for one that no table has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, TypeAlias

from mqtt.broker.seams import PENDING
from mqtt.errors import MalformedPacket, ProtocolError
from mqtt.reason_codes import ReasonCode
from mqtt.session_subscriptions import ShareGroup, Subscribed
from mqtt.topic_tables import FilterTable
from mqtt.topics import TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, split_shared, topic_name_fault

__all__ = [
    "NOT_CAPTURED",
    "ClientRoutes",
    "Route",
    "RouteTable",
    "SubscriptionKey",
    "Target",
    "Verdict",
    "VerdictPending",
    "are_unheard",
]

NOT_CAPTURED: Final = -1

# the server's own names, in which no client speaks [MQTT-4.7.2-1]: docs/link-format.md, commands.md
_SERVERS: Final = ("$SYS/", "$share/", "tidegate/v1/down", "tidegate/v1/outcome/")
# each for one client alone: as a wildcard does not match `$`, it does not match these
_PRIVATE: Final = "tidegate/v1/down/"

_NOT_KEPT: Final = -2  # the generation of a route for one publish alone
_ROUTES_BYTES_MAX: Final = 16 << 20  # of topics, however few and long
_CLIENT_ROUTES_BYTES_MAX: Final = 256 << 10


class VerdictPending(Exception):  # noqa: N818 - nobody's fault: the answer comes later
    """Whether a client may publish to a topic has to be asked for first."""

    def __init__(self, topic_name: str) -> None:
        super().__init__(topic_name)
        self.topic_name = topic_name


Verdict: TypeAlias = Callable[[str], int]  # topic name -> 0, or why it may not be published to
SubscriptionKey: TypeAlias = object  # a Session, or (share name,) of a shared subscription


class Target:
    """One session that gets a topic's messages: its matching subscriptions taken together.

    A subscription that is the only one of its session is its own target.
    """

    __slots__ = ("identifiers", "no_local", "own", "qos", "retain_as_published", "session")

    def __init__(self, entry: Subscribed) -> None:
        self.session = entry.session
        # Some are no-local: what the client published itself comes by the others only.
        self.own: Target | None = None
        self.qos = entry.qos
        self.no_local = entry.no_local
        self.retain_as_published = entry.retain_as_published
        self.identifiers = entry.identifiers  # encoded properties, b"" for none

    def add(self, entry: Subscribed) -> None:
        """Overlap: one copy with the highest QoS and every identifier [MQTT-3.3.4-2..5]."""
        if self.no_local or entry.no_local:
            self._add_own(entry)
        self.qos = max(self.qos, entry.qos)
        self.no_local = self.no_local or entry.no_local
        self.retain_as_published = self.retain_as_published or entry.retain_as_published
        self.identifiers += entry.identifiers

    def _add_own(self, entry: Subscribed) -> None:
        """Keep apart what is not no-local [MQTT-3.8.3-3]."""
        if not self.no_local:  # the first no-local one: all before it are for the client's own
            own = self.own = copy(self)
            own.own = None
        elif not entry.no_local:
            if self.own is None:
                self.own = Target(entry)
            else:
                self.own.add(entry)


class Route:
    """Where the messages of one topic go."""

    __slots__ = (
        "exclusive",
        "generation",
        "lane",
        "name",
        "reach",
        "shares",
        "targets",
        "topic",
        "verdict",
    )

    def __init__(self, topic: bytes, name: str, lane: int, exclusive: bool, verdict: int) -> None:
        self.topic = topic
        self.name = name
        self.lane = lane  # NOT_CAPTURED, or the capture's lane
        self.exclusive = exclusive  # captured and not for local subscribers
        self.verdict = verdict  # 0, or the reason code that refuses a publish
        self.generation = -1
        self.targets: tuple[Target | Subscribed, ...] = ()
        self.shares: tuple[ShareGroup, ...] = ()
        self.reach: object | None = None  # where else in a cluster; None for nowhere


def _is_never_retained(_topic_name: str) -> bool:
    return False


def are_unheard(routes: Sequence[Route], generation: int) -> bool:
    """Return True when no route has receivers, here or elsewhere, as far as is known."""
    for route in routes:  # nearly always one
        if (
            route.generation != generation
            or route.targets
            or route.shares
            or route.reach is not None
        ):
            return False
    return True


class RouteTable(dict[bytes, Route]):
    """Topic bytes -> Route, made when first asked for; those that are not used go for new ones.

    The table itself is what was used last; `_older` is what was in it before it was half full. A
    route found there comes back; what is there when the table is half full again is let go.
    Whoever still holds such a route finds it not current, and `refresh` takes it back.

    Args:
        filters: The subscriptions of all sessions.
        lane: Asked once a route: the capture's lane of a topic, or None.
        exclusive: Whether a lane's publishes are consumed.
        size_max: Routes kept; many topics used once must not fill the memory.
        levels_max: Levels that a topic name may have.
    """

    def __init__(
        self,
        filters: FilterTable[SubscriptionKey, Subscribed | ShareGroup],
        lane: Callable[[str], int | None] | None = None,
        exclusive: Callable[[int], bool] | None = None,
        size_max: int = 50_000,
        levels_max: int = TOPIC_LEVELS_MAX,
    ) -> None:
        super().__init__()
        self.filters = filters
        self.generation = 0  # rises when the receivers of many routes may have changed
        self.reach: Callable[[str], object | None] | None = None  # the bus of a cluster
        self.is_retained: Callable[[str], bool] = _is_never_retained
        self._lane = lane
        self._exclusive = exclusive
        self._older: dict[bytes, Route] = {}
        self._size_max = size_max
        self.levels_max = levels_max
        self.topic_bytes_max = TOPIC_BYTES_MAX
        self._bytes = 0  # of the topics in the table itself

    def for_retained(self, topic: bytes) -> Route:
        """Return the route of a publish that is to be retained.

        Many topics get one such message and no other: while nothing is retained under its name, a
        topic's route is not kept, unless it is captured. Raises as `__missing__` does.
        """
        if topic in self or topic in self._older:
            return self[topic]
        route = self._make(topic)
        if route.lane == NOT_CAPTURED and not self.is_retained(route.name):
            route.generation = _NOT_KEPT
        else:
            self._add(route)
        return route

    def __missing__(self, topic: bytes) -> Route:
        """Make the route of a topic, or take it back from the older ones.

        Raises:
            ProtocolError: 0x90, the topic name is not valid [MQTT-3.3.2-2] [MQTT-4.7.3-1].
            MalformedPacket: 0x81, the topic is not UTF-8 [MQTT-1.5.4-1] or has U+0000.
        """
        route = (self._older.pop(topic, None) if self._older else None) or self._make(topic)
        self._add(route)
        return route

    def _add(self, route: Route) -> None:
        self._bytes += len(route.topic)
        if len(self) >= self._size_max // 2 or self._bytes > _ROUTES_BYTES_MAX // 2:
            for old in self._older.values():
                old.generation = -1
            self._older = dict(self)
            self.clear()
            self._bytes = len(route.topic)
        self[route.topic] = route

    def _make(self, topic: bytes) -> Route:
        try:
            name = topic.decode()
        except UnicodeDecodeError:  # [MQTT-1.5.4-1] [MQTT-3.3.2-1]
            raise MalformedPacket("topic name is not well-formed UTF-8", "MQTT-1.5.4-1") from None
        fault = topic_name_fault(name, levels_max=self.levels_max, bytes_max=self.topic_bytes_max)
        if fault is not None:
            if "\0" in name:
                raise MalformedPacket(fault.detail, "MQTT-1.5.4-2")
            raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, fault.detail, fault.clause)
        verdict = 0
        # Clients do not talk to one another through the server's own names [MQTT-4.7.2-1].
        if name.startswith(_SERVERS):
            verdict = int(ReasonCode.NOT_AUTHORIZED)
        lane = self._lane(name) if self._lane is not None and not verdict else None
        if lane is None:
            return Route(topic, name, NOT_CAPTURED, False, verdict)
        consumed = self._exclusive is not None and self._exclusive(lane)
        return Route(topic, name, lane, consumed, verdict)

    def refresh(self, route: Route) -> None:
        """Find the receivers of a route anew.

        A route that is not in the table, nor any other of its topic, is taken back, unless it is
        for one publish alone.
        """
        if self.filters.count:
            self._find_receivers(route)
        else:
            route.targets = route.shares = ()
        if self.reach is not None:
            route.reach = self.reach(route.name)
        if route.generation == _NOT_KEPT:
            return
        known = self.get(route.topic) or self._older.get(route.topic)
        if known is None and not route.verdict:
            known = route
            self._add(route)
        # Of a route that is not in the table nobody could say that its receivers have changed.
        route.generation = self.generation if known is route else -1

    def _find_receivers(self, route: Route) -> None:
        targets: dict[object, Target | Subscribed] = {}
        shares: list[ShareGroup] = []
        private = route.name.startswith(_PRIVATE)
        match = self.filters.at if private else self.filters.match
        found = match(route.name)
        if len(found) == 1 and isinstance(found[0][1], Subscribed):  # as most are
            route.targets, route.shares = (found[0][1],), ()
            return
        for _, entry in found:
            if isinstance(entry, ShareGroup):
                shares.append(entry)
                continue
            target = targets.setdefault(entry.session, entry)
            if target is not entry:
                if isinstance(target, Subscribed):
                    target = targets[entry.session] = Target(target)
                target.add(entry)
        route.targets = tuple(targets.values())
        route.shares = tuple(shares)

    def subscriptions_changed(self, topic_filters: Sequence[str]) -> None:
        """Note that subscriptions to filters came or went: their routes are found anew."""
        for topic_filter in topic_filters:
            if "+" in topic_filter or "#" in topic_filter:  # a share name has no wildcard
                self.generation += 1  # that of every route
                return
        if not self and not self._older:
            return
        for topic_filter in topic_filters:
            topic = split_shared(topic_filter)[1].encode()
            route = self.get(topic) or self._older.get(topic)
            if route is not None:
                route.generation = -1


class ClientRoutes(dict[bytes, Route]):
    """The routes of one client whose publishes need leave: the shared ones, or a refusal.

    Args:
        shared: The table of all clients.
        verdict: 0, or the reason code that refuses this client's publish to a topic.
        size_max: Routes kept for this client.
    """

    __slots__ = ("_bytes", "_shared", "_size_max", "_verdict")

    def __init__(self, shared: RouteTable, verdict: Verdict, size_max: int = 1_000) -> None:
        super().__init__()
        self._shared = shared
        self._verdict = verdict
        self._size_max = size_max
        self._bytes = 0  # of the topics kept

    def __missing__(self, topic: bytes) -> Route:
        """Return the shared route, or one that refuses.

        Raises:
            VerdictPending: the verdict is not known yet.
            MqttError: as `RouteTable` does.
        """
        route = self._decided(self._shared[topic])
        self._bytes += len(topic)
        if len(self) >= self._size_max or self._bytes > _CLIENT_ROUTES_BYTES_MAX:
            self.clear()
            self._bytes = len(topic)
        self[topic] = route
        return route

    def for_retained(self, topic: bytes) -> Route:
        """Return the route of a publish that is to be retained, as `RouteTable` does."""
        if topic in self:
            return self[topic]
        route = self._shared.for_retained(topic)
        return self._decided(route) if route.generation == _NOT_KEPT else self[topic]

    def _decided(self, route: Route) -> Route:
        """Return a shared route, or one that refuses."""
        if route.verdict:
            return route
        refusal = self._verdict(route.name)
        if refusal == PENDING:
            raise VerdictPending(route.name)
        return Route(route.topic, route.name, NOT_CAPTURED, False, refusal) if refusal else route
