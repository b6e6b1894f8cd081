"""Who wants what in a cluster: the filters of other nodes, lasting sessions, shared groups.

Nodes tell one another their filters (cloud/cluster/mqtt_peers.py); lasting sessions are known from
their records, whether or not a node has them. All of it is looked up when a route is made.

Invariant: `changed` is called with every filter whose receivers may be others than before, so that
no route keeps a stale `Reach`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cloud.cluster.mqtt_wire import SHARDS, shard_of
from mqtt.topic_tables import FilterTable
from mqtt.topics import split_shared

__all__ = ["Group", "Interest", "Reach"]

_LASTING: Final = ""  # the key of a filter's lasting sessions; no instance is called so


class Group:
    """One shared subscription in the whole cluster."""

    __slots__ = ("_turn", "lasting", "members", "topic_filter")

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter  # with `$share/{name}/`
        self.members: dict[str, int] = {}  # connected members by instance
        self.lasting: dict[str, None] = {}  # client ids, connected or not
        self._turn = 0

    @property
    def is_empty(self) -> bool:
        """True when nobody is in it."""
        return not self.members and not self.lasting

    def choose(self) -> str | None:
        """Return the instance whose member is next; None when nobody is connected."""
        total = sum(self.members.values())
        if not total:
            return None
        turn = self._turn = (self._turn + 1) % total
        for instance, count in self.members.items():
            if turn < count:
                return instance
            turn -= count
        return None

    def choose_waiting(self) -> str | None:
        """Return a lasting member's client id; None when there is none."""
        if not self.lasting:
            return None
        names = list(self.lasting)
        self._turn += 1
        return names[self._turn % len(names)]


class Reach:
    """Where one topic's messages go besides the sessions here."""

    __slots__ = ("groups", "logged", "nodes", "shards")

    def __init__(
        self,
        nodes: tuple[str, ...],
        logged: tuple[str, ...],
        shards: tuple[int, ...],
        groups: tuple[Group, ...],
    ) -> None:
        self.nodes = nodes  # that want it
        self.logged = logged  # those of them that want QoS 1 or 2
        self.shards = shards  # of lasting sessions that want QoS 1 or 2
        self.groups = groups


class Interest:
    """What is wanted where.

    Args:
        changed: Called with each filter that has got other receivers.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self.unknown: set[str] = set()  # instances that have not told yet: they may want anything
        self.changed = changed
        # plain filter -> instance -> QoS; _LASTING -> count by shard
        self._wanted: FilterTable[str, int | list[int]] = FilterTable()
        # plain filter -> whole filter -> group
        self._groups: FilterTable[str, Group] = FilterTable()
        self._by_filter: dict[str, Group] = {}
        self._of_node: dict[str, dict[str, int]] = {}
        self._lasting: dict[str, tuple[str, ...]] = {}  # client id -> filters with QoS 1 or 2

    def reach(self, topic_name: str) -> Reach | None:
        """Return where a topic's messages go; None for nowhere."""
        nodes: dict[str, int] = dict.fromkeys(self.unknown, 1)
        shards: set[int] = set()
        for instance, wanted in self._wanted.match(topic_name):
            if isinstance(wanted, int):
                nodes[instance] = max(wanted, nodes.get(instance, 0))
            else:
                shards.update(shard for shard, count in enumerate(wanted) if count)
        groups = [group for _, group in self._groups.match(topic_name)]
        if not nodes and not shards and not groups:
            return None
        logged = tuple(instance for instance, qos in nodes.items() if qos)
        return Reach(tuple(nodes), logged, tuple(sorted(shards)), tuple(groups))

    def group(self, topic_filter: str) -> Group | None:
        """Return a shared subscription by its whole filter."""
        return self._by_filter.get(topic_filter)

    # -- nodes --------------------------------------------------------------------------------

    def node_wants(self, instance: str, topic_filter: str, qos: int) -> None:
        """Note the highest QoS a node wants of a filter; -1: it does not want it any more."""
        filters = self._of_node.setdefault(instance, {})
        if qos < 0:
            if filters.pop(topic_filter, None) is None:
                return
            self._wanted.remove(topic_filter, instance)
        else:
            if filters.get(topic_filter) == qos:
                return
            filters[topic_filter] = qos
            self._wanted.add(topic_filter, instance, qos)
        self.changed(topic_filter)

    def node_members(self, instance: str, topic_filter: str, count: int) -> None:
        """Note how many connected members of a shared subscription a node has."""
        group = self._group(topic_filter)
        if count:
            group.members[instance] = count
        else:
            group.members.pop(instance, None)
        self._tidy(group)

    def node_tells_all(
        self, instance: str, wants: Mapping[str, int], members: Mapping[str, int]
    ) -> None:
        """Take everything a node wants, in place of what was known."""
        self.unknown.discard(instance)
        for topic_filter in set(self._of_node.get(instance, ())) - set(wants):
            self.node_wants(instance, topic_filter, -1)
        for topic_filter, qos in wants.items():
            self.node_wants(instance, topic_filter, qos)
        for group in list(self._by_filter.values()):
            if instance in group.members and group.topic_filter not in members:
                self.node_members(instance, group.topic_filter, 0)
        for topic_filter, count in members.items():
            self.node_members(instance, topic_filter, count)
        self.changed("#")  # it may have been unknown

    def node_gone(self, instance: str) -> None:
        """Forget a node."""
        self.node_tells_all(instance, {}, {})
        self._of_node.pop(instance, None)

    # -- lasting sessions ---------------------------------------------------------------------

    def lasting(self, client_id: str, filters: Iterable[str]) -> None:
        """Take the filters, of QoS 1 or 2, of a lasting session; none when it has ended."""
        before = self._lasting.get(client_id, ())
        after = tuple(filters)
        if before == after:
            return
        shard = shard_of(client_id)
        for topic_filter in set(before) - set(after):
            self._lasting_changed(client_id, topic_filter, shard, -1)
        for topic_filter in set(after) - set(before):
            self._lasting_changed(client_id, topic_filter, shard, 1)
        if after:
            self._lasting[client_id] = after
        else:
            self._lasting.pop(client_id, None)

    def _lasting_changed(self, client_id: str, topic_filter: str, shard: int, by: int) -> None:
        share_name, plain = split_shared(topic_filter)
        if share_name is not None:
            group = self._group(topic_filter)
            if by > 0:
                group.lasting[client_id] = None
            else:
                group.lasting.pop(client_id, None)
            self._tidy(group)
            return
        counts = self._lasting_counts(plain)
        counts[shard] += by
        if counts[shard] == (by > 0):  # the first came, or the last went
            self.changed(plain)
        if not any(counts):
            self._wanted.remove(plain, _LASTING)

    def _lasting_counts(self, plain: str) -> list[int]:
        fresh = [0] * SHARDS
        known = self._wanted.add(plain, _LASTING, fresh)
        if isinstance(known, list):
            self._wanted.add(plain, _LASTING, known)
            return known
        return fresh

    # -- groups -------------------------------------------------------------------------------

    def _group(self, topic_filter: str) -> Group:
        group = self._by_filter.get(topic_filter)
        if group is None:
            group = self._by_filter[topic_filter] = Group(topic_filter)
            plain = split_shared(topic_filter)[1]
            self._groups.add(plain, topic_filter, group)
            self.changed(plain)
        return group

    def _tidy(self, group: Group) -> None:
        if group.is_empty:
            plain = split_shared(group.topic_filter)[1]
            self._by_filter.pop(group.topic_filter, None)
            self._groups.remove(plain, group.topic_filter)
            self.changed(plain)
