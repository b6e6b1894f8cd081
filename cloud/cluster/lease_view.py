"""What a node knows of the leases' bucket: who is there, who works on what."""

from __future__ import annotations

from collections.abc import Sequence

from cloud.cluster.bucket import Value, key_token
from cloud.cluster.lease_keys import (
    DRAIN,
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

    Attributes:
        nodes: Those that are there, by id.
        holders: Who has what, by sink and partition.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, NodeSeen] = {}
        self.holders: dict[str, dict[int, str]] = {}
        self._tokens: dict[str, dict[int, int]] = {}

    def take(self, key: str, value: Value | None) -> NodeSeen | None:
        """Take what the bucket says of a key; return the node that it announces."""
        if key.startswith(NODE):
            return self._there_now(key, value)
        if not key.startswith(DRAIN) and (lease := lease_of(key)) is not None:
            self._held_now(*lease, value)
        return None

    def _there_now(self, key: str, value: Value | None) -> NodeSeen | None:
        """Take what the bucket says of a node."""
        token = key.removeprefix(NODE)
        for node in [one for one in self.nodes if key_token(one) == token]:
            del self.nodes[node]
        seen = None if value is None else node_of(value)
        if seen is not None:
            self.nodes[seen.node] = seen
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
