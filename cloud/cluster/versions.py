"""The version of what nodes of a cluster write for each other, and how it rises while they run.

It stands in the metadata of the ledger (cloud/cluster/layout.py). `tidegate cluster apply` raises
it once every node that is there knows the new one: each says in its announcement
(cloud/cluster/leases.py) what it knows. Until then new nodes write what the old ones read, so
nodes are brought to a new program one after the other, and back as long as nothing was raised.

What each version brought:

    1  the first
    2  bodies that entries of several sources share (bridge/shared_entry.py)
    3  runs of gateways, which outdate what a node believes of a source (cloud/ingest_runs.py)

Invariant: nothing newer than the cluster's version is written. A node that meets one it does not
know does not start; one that was out of sight while it was raised takes and gives nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import ClusterError
from cloud.cluster.lease_keys import node_of

__all__ = [
    "RUNS",
    "SHARED_BODIES",
    "VERSION",
    "VERSION_KEY",
    "check_version",
    "older_nodes",
    "version_of",
]

VERSION = 3  # what this program knows
SHARED_BODIES = 2  # the version that brought them
RUNS = 3
VERSION_KEY = "tidegate.layout"


def version_of(metadata: Mapping[str, str]) -> int | None:
    """Return the version that a ledger's metadata says; None when it says none."""
    said = metadata.get(VERSION_KEY, "")
    return int(said) if said.isdecimal() else None


def check_version(cluster: str, metadata: Mapping[str, str], known: int) -> int | None:
    """Return the version of a cluster, which is not newer than `known`; None when it says none.

    Raises:
        ClusterError: it is newer; one line.
    """
    version = version_of(metadata)
    if version is not None and version > known:
        raise ClusterError(
            f"cluster '{cluster}' has layout {version}, this program knows {known}: use the"
            " version of tidegate that its other nodes run"
        )
    return version


async def older_nodes(bucket: Bucket, version: int) -> list[str]:
    """Return the nodes that are there and do not know a version, by id.

    Args:
        bucket: That of the leases.
        version: Of the layout.

    Raises:
        ClusterError: the bucket cannot be read.
    """
    watch = await bucket.watch(lambda _key, _value: None)
    try:
        nodes = filter(None, map(node_of, watch.values.values()))
        return sorted(one.node for one in nodes if one.version < version)
    finally:
        await watch.stop()
