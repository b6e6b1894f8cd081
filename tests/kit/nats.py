"""NATS servers of a test's own, and what tests do to them and to the cluster on them.

with nats_cluster(tmp_path) as servers:            three servers, `sync_interval: always`
    layout = await make_layout(servers)            streams and buckets, R3
    async with connected(servers) as connection:
        ...

with nats_single(tmp_path) as servers: ...         one server, R1: quick, proves no durability
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from cloud.cluster.applying import apply
from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from tidegate.nats_servers import NatsServer, NatsServers

__all__ = [
    "NatsServer",
    "NatsServers",
    "connected",
    "layout_of",
    "make_layout",
    "nats_cluster",
    "nats_single",
]


@contextmanager
def nats_cluster(folder: Path, **options: Any) -> Iterator[NatsServers]:
    """Run three servers while entered; `options` as of `NatsServers`."""
    with NatsServers(folder / "nats", 3, **options) as servers:
        yield servers


@contextmanager
def nats_single(folder: Path, **options: Any) -> Iterator[NatsServers]:
    """Run one server while entered."""
    with NatsServers(folder / "nats", 1, **options) as servers:
        yield servers


def layout_of(servers: NatsServers, cluster: str = "tidegate", **options: Any) -> Layout:
    """Return a small layout that fits the servers: R3 on three of them, R1 on one."""
    sizes = {
        "raw_bytes_max": 64 << 20,
        "ledger_bytes_max": 16 << 20,
        "bucket_bytes_max": 16 << 20,
        "mqtt_bytes_max": 64 << 20,
    }
    return Layout(cluster, 3 if len(servers) >= 3 else 1, **{**sizes, **options})


@asynccontextmanager
async def connected(servers: NatsServers, name: str = "test") -> AsyncIterator[Connection]:
    """Give a connection for as long as the block lasts."""
    connection = await Connection.open(servers.url, name=name)
    try:
        yield connection
    finally:
        await connection.close()


async def make_layout(servers: NatsServers, cluster: str = "tidegate", **options: Any) -> Layout:
    """Make every stream and bucket of a cluster; return its layout."""
    layout = layout_of(servers, cluster, **options)
    async with connected(servers) as connection:
        await apply(connection, layout)
    return layout
