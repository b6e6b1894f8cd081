"""What the nodes of a cluster tell one another about their subscriptions, over core messages.

A node sends what has changed, numbered; whoever misses a number asks for everything. A beat a
second shows the number to those who missed the last message, and who is there. SUBACK waits until
each node that is there has said that it knows, and that what it had retained before it knew is
durable: so what is published anywhere comes, live or as retained.

Invariants:
- what is known of a node is what it had told up to its number `version`, no more and no less;
- a node that has told nothing yet is taken to want everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from cloud.cluster.mqtt_fabric import Fabric
from cloud.cluster.mqtt_interest import Interest
from cloud.cluster.mqtt_wire import WireError, decode, encode
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Peers"]

log = structlog.get_logger(component="mqtt-cluster")

_BEAT_S: Final = 1.0
_SILENT_S: Final = 3.0  # no beat for so long: its answers are not waited for
_SPREAD_S: Final = 2.0  # SUBACK waits no longer
_PART: Final = 5_000  # filters of one message
_LOG_EVERY_S: Final = 10.0


class _Peer:
    """What is known of one other node."""

    __slots__ = ("beat_s", "parts", "position", "version")

    def __init__(self, now_s: float) -> None:
        self.version = -1  # nothing was told
        self.position = 0  # up to which it has read the log, as its last beat said
        self.beat_s = now_s
        self.parts: dict[int, tuple[dict[str, int], dict[str, int]]] = {}


class _Barrier:
    """Callbacks that wait for the other nodes to know what was told up to a version."""

    __slots__ = ("callbacks", "due_s", "waiting_for")

    def __init__(self, waiting_for: set[str], due_s: float) -> None:
        self.waiting_for = waiting_for
        self.due_s = due_s
        self.callbacks: list[Callable[[], None]] = []


class Peers:
    """The subscriptions of this node, told to others, and theirs.

    Args:
        fabric: The engine.
        clock: Time.
        interest: Where the others' are kept.
        revisions: Gives the revision of this node's newest record of a session, and the one up
            to which it has seen the records of all.
        position: Gives the number of the log up to which this node has read.
        when_written: Calls back when what this node has retained until now is durable.
        other: Called with every other message: its kind, who sent it, its fields.
    """

    def __init__(
        self,
        fabric: Fabric,
        clock: Clock,
        interest: Interest,
        revisions: Callable[[], tuple[int, int]],
        position: Callable[[], int],
        when_written: Callable[[Callable[[], object]], None],
        other: Callable[[str, str, list[Any]], None],
    ) -> None:
        self.instance = ""
        self.former: set[str] = set()  # instances that this node was before
        self.known: dict[str, _Peer] = {}
        self._fabric = fabric
        self._clock = clock
        self._interest = interest
        self._revisions = revisions
        self._position = position
        self._when_written = when_written
        self._other = other
        self._wants: dict[str, int] = {}  # of this node
        self._members: dict[str, int] = {}
        self._changes: dict[str, int] = {}
        self._group_changes: dict[str, int] = {}
        self._version = 0
        self._scheduled = False
        self._barriers: dict[int, _Barrier] = {}
        self._barrier_number = 0
        self._next: list[Callable[[], None]] = []  # for the barrier of this turn of the loop
        self._asked: list[tuple[str, int, int, int]] = []  # barriers of others, not reached yet

    # -- this node's own ----------------------------------------------------------------------

    def want(self, topic_filter: str, qos: int) -> None:
        """Tell the highest QoS wanted of a filter; -1: nothing any more."""
        if self._wants.get(topic_filter, -1) == qos:
            return
        if qos < 0:
            del self._wants[topic_filter]
        else:
            self._wants[topic_filter] = qos
        self._changes[topic_filter] = qos
        self._schedule()

    def wanted(self, topic_filter: str) -> int:
        """Return what was told of a filter; -1: nothing."""
        return self._wants.get(topic_filter, -1)

    def members(self, topic_filter: str, count: int) -> None:
        """Tell how many connected members of a shared subscription are here."""
        if self._members.get(topic_filter, 0) == count:
            return
        if count:
            self._members[topic_filter] = count
        else:
            del self._members[topic_filter]
        self._interest.node_members(self.instance, topic_filter, count)
        self._group_changes[topic_filter] = count
        self._schedule()

    def when_spread(self, callback: Callable[[], None]) -> None:
        """Call back when all nodes that are there know what was told until now."""
        if not self.known:
            asyncio.get_running_loop().call_soon(callback)
            return
        self._next.append(callback)
        self._schedule()

    def tell(self, kind: str, *fields: object, to: str = "") -> None:
        """Send a message of another kind to one node, or to all."""
        self._fabric.send(f"ctl.{to}" if to else "all", encode([kind, self.instance, *fields]))

    def is_there(self, instance: str) -> bool:
        """Return True when a node has been heard of lately."""
        peer = self.known.get(instance)
        return peer is not None and self._clock.monotonic_s() - peer.beat_s < _SILENT_S

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._changes or self._group_changes:
            self._version += 1
            self.tell("delta", self._version, self._changes, self._group_changes)
            self._changes, self._group_changes = {}, {}
        if self._next:
            self._begin_barrier()

    def _begin_barrier(self) -> None:
        callbacks, self._next = self._next, []
        there = {instance for instance in self.known if self.is_there(instance)}
        barrier = _Barrier(there, self._clock.monotonic_s() + _SPREAD_S)
        barrier.callbacks = callbacks
        self._barrier_number += 1
        self._barriers[self._barrier_number] = barrier
        self.tell("reach?", self._barrier_number, self._version, self._revisions()[0])
        self._end_barriers()

    def _end_barriers(self) -> None:
        """Go on behind every barrier that all have reached, in order, or that takes too long."""
        now_s = self._clock.monotonic_s()
        for number, barrier in list(self._barriers.items()):
            if barrier.waiting_for and now_s < barrier.due_s:
                return
            if barrier.waiting_for:
                limited(log, "spread", _LOG_EVERY_S).warning(
                    "mqtt_nodes_do_not_answer", nodes=sorted(barrier.waiting_for)
                )
            del self._barriers[number]
            for callback in barrier.callbacks:
                callback()

    # -- the others ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and ask everybody for everything."""
        await self._fabric.listen("all", self._received)
        await self._fabric.listen(f"ctl.{self.instance}", self._received)
        self.tell("ask")

    def came(self, instance: str) -> None:
        """A node has come into the cluster: until it has told, it may want anything."""
        if instance not in (self.instance, *self.former, *self.known):
            self.known[instance] = _Peer(self._clock.monotonic_s())
            self._interest.unknown.add(instance)
            self._interest.changed("#")
            self.tell("ask", to=instance)

    def gone(self, instance: str) -> None:
        """A node's lease is over."""
        if self.known.pop(instance, None) is None:
            return
        self._interest.node_gone(instance)
        for barrier in self._barriers.values():
            barrier.waiting_for.discard(instance)
        self._end_barriers()

    def beat(self) -> None:
        """Show that this node is there, and ask again those that have not told."""
        self.tell("beat", self._version, self._position())
        for instance, peer in self.known.items():
            if peer.version < 0:
                self.tell("ask", to=instance)
        self._end_barriers()

    def seen(self) -> None:
        """More of the records was seen: barriers of others may be reached."""
        if self._asked:
            asked, self._asked = self._asked, []
            for one in asked:
                self._answer_barrier(*one)

    @property
    def read_by_all(self) -> int:
        """The number of the log up to which every node has read."""
        return min((peer.position for peer in self.known.values()), default=self._position())

    @property
    def all_told(self) -> bool:
        """True when every node that is there has told what it wants."""
        return all(p.version >= 0 or not self.is_there(name) for name, p in self.known.items())

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(_BEAT_S)

    def _received(self, data: bytes) -> None:
        try:
            kind, instance, *fields = decode(data)
        except (WireError, ValueError, TypeError) as error:
            limited(log, "wire", _LOG_EVERY_S).warning("mqtt_peer_not_read", error=str(error))
            return
        if instance == self.instance or instance in self.former:
            return
        peer = self.known.get(instance)
        if peer is not None:
            peer.beat_s = self._clock.monotonic_s()
        handler = self._HANDLERS.get(kind)
        if handler is not None:
            handler(self, instance, fields)
        else:
            self._other(kind, instance, fields)

    def _on_delta(self, instance: str, fields: list[Any]) -> None:
        version, wants, members = fields
        peer = self.known.get(instance)
        if peer is None:
            self.came(instance)
            return
        if version != peer.version + 1:
            if version > peer.version:
                self.tell("ask", to=instance)
            return
        peer.version = version
        for topic_filter, qos in wants.items():
            self._interest.node_wants(instance, topic_filter, qos)
        for topic_filter, count in members.items():
            self._interest.node_members(instance, topic_filter, count)
        self.seen()

    def _on_beat(self, instance: str, fields: list[Any]) -> None:
        peer = self.known.get(instance)
        if peer is None:
            self.came(instance)
            return
        peer.position = fields[1]
        if fields[0] > peer.version:
            self.tell("ask", to=instance)

    def _on_ask(self, instance: str, _fields: list[Any]) -> None:
        self.came(instance)
        filters, groups = list(self._wants.items()), list(self._members.items())
        count = max(1, -(-len(filters) // _PART), -(-len(groups) // _PART))
        for part in range(count):
            at = slice(part * _PART, (part + 1) * _PART)
            wants, members = dict(filters[at]), dict(groups[at])
            self.tell("all", self._version, part, count, wants, members, to=instance)

    def _on_all(self, instance: str, fields: list[Any]) -> None:
        version, part, count, wants, members = fields
        peer = self.known.get(instance)
        if peer is None or version < peer.version:
            return
        if part == 0:
            peer.parts = {}
        peer.parts[part] = (wants, members)
        if len(peer.parts) < count:
            return
        parts, peer.parts = peer.parts, {}
        all_wants = {name: qos for one, _ in parts.values() for name, qos in one.items()}
        all_members = {name: n for _, one in parts.values() for name, n in one.items()}
        peer.version = version
        self._interest.node_tells_all(instance, all_wants, all_members)
        self.seen()

    def _on_reach(self, instance: str, fields: list[Any]) -> None:
        number, version, revision = fields
        self._answer_barrier(instance, number, version, revision)

    def _answer_barrier(self, instance: str, number: int, version: int, revision: int) -> None:
        peer = self.known.get(instance)
        if peer is not None and peer.version >= version and self._revisions()[1] >= revision:
            self._when_written(partial(self.tell, "reached", number, to=instance))
        else:
            self._asked.append((instance, number, version, revision))

    def _on_reached(self, instance: str, fields: list[Any]) -> None:
        barrier = self._barriers.get(fields[0])
        if barrier is not None:
            barrier.waiting_for.discard(instance)
            self._end_barriers()

    _HANDLERS: Final[dict[str, Callable[[Peers, str, list[Any]], None]]] = {
        "delta": _on_delta,
        "beat": _on_beat,
        "ask": _on_ask,
        "all": _on_all,
        "reach?": _on_reach,
        "reached": _on_reached,
    }
