"""What a node knows of the leases' bucket: who is there, who works on what.

A key that was not renewed goes, and the bucket says so for an hour; a node that was cut off for
longer never hears of it. So what is not renewed while this node's own key is, again and again,
counts as gone here: at worst it tries in vain to take what another has.

Time is told by this node's own announcements as the bucket repeats them, not by a clock: a bucket
that takes nothing, or a node that lags behind it, makes nobody silent.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud.cluster.bucket import Value, key_token
from cloud.cluster.lease_keys import (
    NODE,
    LeaseHolder,
    NodeSeen,
    holder_of,
    lease_of,
    node_of,
    token_of,
)

__all__ = ["LeaseView"]


class LeaseView:
    """The bucket in one node's memory.

    Args:
        node: This node.
        silent_max: How often it is announced while a key is not, before that counts as gone.

    Attributes:
        nodes: Those that are there, by id.
        holders: Who has what, by sink and partition.
    """

    def __init__(self, node: str, silent_max: int) -> None:
        self.nodes: dict[str, NodeSeen] = {}
        self.holders: dict[str, dict[int, str]] = {}
        self._tokens: dict[str, dict[int, int]] = {}
        self._own_key = NODE + key_token(node)
        self._silent_max = silent_max
        self._announced = 0  # own announcements seen
        self._heard: dict[str, int] = {}  # how many had been when a key was heard of last

    def take(self, key: str, value: Value | None) -> NodeSeen | None:
        """Take what the bucket says of a key; return the node that it announces."""
        self._heard.pop(key, None)
        if value is not None:
            self._heard[key] = self._announced
        if (lease := lease_of(key)) is not None:
            self._held_now(*lease, value)
            return None
        if not key.startswith(NODE):
            self._heard.pop(key, None)  # nobody renews it
            return None
        token = key.removeprefix(NODE)
        for node in [one for one in self.nodes if key_token(one) == token]:
            del self.nodes[node]
        seen = None if value is None else node_of(value)
        if seen is not None:
            self.nodes[seen.node] = seen
            if key == self._own_key:
                self._announced += 1
        return seen

    def _held_now(self, sink: str, partition: int, value: Value | None) -> None:
        """Take what the bucket says of a lease."""
        holders = self.holders.setdefault(sink, {})
        tokens = self._tokens.setdefault(sink, {})
        holders.pop(partition, None)
        tokens.pop(partition, None)
        node = None if value is None else holder_of(value)
        if value is not None and node is not None:
            holders[partition] = node
            tokens[partition] = token_of(value)

    def forget_silent(self) -> list[str]:
        """Forget keys that nobody renews any more; return them."""
        silent = [
            key
            for key, announced in self._heard.items()
            if self._announced - announced > self._silent_max
        ]
        for key in silent:
            self.take(key, None)
        return silent

    def all_nodes(self) -> Sequence[NodeSeen]:
        """Return the nodes there are, by id."""
        return [seen for _, seen in sorted(self.nodes.items())]

    def all_holders(self) -> Sequence[LeaseHolder]:
        """Return who has what, by sink and partition."""
        return [
            LeaseHolder(sink, partition, node, self._tokens[sink].get(partition, 0))
            for sink, of_sink in sorted(self.holders.items())
            for partition, node in sorted(of_sink.items())
        ]
