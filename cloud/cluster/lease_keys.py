"""The keys of the leases' bucket, and what their values say; see cloud/cluster/leases.py.

{sink}.{partition}    who works on it, and the token
node.{id}             a node that is there
drain.{id}            it is asked to have a share of none
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bridge.partition import PARTITIONS
from cloud.cluster.bucket import Value, key_token

__all__ = [
    "DRAIN",
    "NODE",
    "LeaseHolder",
    "NodeSeen",
    "drain_key",
    "holder_of",
    "lease_key",
    "lease_of",
    "node_of",
    "token_of",
]

NODE = "node."
DRAIN = "drain."


@dataclass(slots=True, frozen=True)
class LeaseHolder:
    """Who has a partition for a sink, as the bucket says."""

    sink: str
    partition: int
    node: str
    token: int


@dataclass(slots=True, frozen=True)
class NodeSeen:
    """A node of the cluster."""

    node: str
    draining: bool
    sinks: frozenset[str]  # that it works for
    instance: str  # another after each start
    version: int  # of the layout, that it knows (cloud/cluster/versions.py)
    time_us: int | None  # what its wall clock showed


def drain_key(node: str) -> str:
    """Return the key that asks a node to hand everything over, until it starts anew."""
    return DRAIN + key_token(node)


def node_of(value: Value) -> NodeSeen | None:
    """Return the node that a value of the bucket announces; None when it is something else."""
    said = _decoded(value.value)
    if not value.key.startswith(NODE) or "node" not in said:
        return None
    sinks, version, time_us = said.get("sinks"), said.get("layout"), said.get("time_us")
    return NodeSeen(
        str(said["node"]),
        bool(said.get("draining")),
        frozenset(sinks) if isinstance(sinks, list) else frozenset(),
        str(said.get("instance")),
        version if isinstance(version, int) else 1,  # the first did not say
        time_us if isinstance(time_us, int) else None,
    )


def holder_of(value: Value) -> str | None:
    """Return who holds the lease that a value of the bucket is; None when it is something else."""
    if value.key.startswith((NODE, DRAIN)) or lease_of(value.key) is None:
        return None
    said = _decoded(value.value)
    return str(said["node"]) if "node" in said else None


def token_of(value: Value) -> int:
    """Return the fencing token of the lease that a value is: the revision at which it was taken."""
    token = _decoded(value.value).get("token")
    return token if token and isinstance(token, int) else value.revision


def lease_key(sink: str, partition: int) -> str:
    """Return the key of a partition's lease."""
    return f"{sink}.{partition}"


def lease_of(key: str) -> tuple[str, int] | None:
    """Return the sink and partition that a key is the lease of; None when it is no lease."""
    sink, _, number = key.rpartition(".")
    if not sink or not (number.isascii() and number.isdecimal()):
        return None
    partition = int(number)
    return (sink, partition) if partition < PARTITIONS else None


def _decoded(value: bytes) -> dict[str, Any]:
    """Return what a value says; nothing when no node wrote it."""
    try:
        said = json.loads(value)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
