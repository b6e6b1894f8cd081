"""Whole cloud nodes of one cluster in the test's own loop, on NATS servers of the test's.

async with cluster_nodes(servers, tmp_path, 2, "commands") as (one, two):
    ...

A node that comes gets its whole share at once. That others hand it over a few partitions at a time
is proved with the leases alone (tests/cluster/test_leases.py) and with real processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cloud.cluster.leases import Leases, LeaseTimes
from cloud.config import StreamConfig
from cloud.node import Node
from tests.kit.nats import NatsServers, make_layout
from tests.kit.nodes import node_config, running_node
from tests.kit.sites import until

__all__ = ["cluster_nodes", "shares"]

_NUMBERS = count()
_AT_ONCE = LeaseTimes(moves_max=64)


@asynccontextmanager
async def cluster_nodes(
    servers: NatsServers,
    folder: Path,
    number: int,
    sink: str,
    *,
    keys: Callable[[int], Mapping[str, Any]] = lambda _number: {},
) -> AsyncIterator[list[Node]]:
    """Run nodes of a new cluster, ready when each has its share of a sink's partitions.

    Args:
        servers: One or three.
        folder: Of all nodes.
        number: How many.
        sink: Whose partitions have to be spread.
        keys: Sections of the configuration of a node, by its number.
    """
    name = f"nodes{next(_NUMBERS)}"
    layout = await make_layout(servers, name)
    async with AsyncExitStack() as stack:
        stack.enter_context(patch("cloud.service.Leases", partial(Leases, times=_AT_ONCE)))
        found = []
        for one in range(number):
            node_id = f"node-{one}"
            stream = StreamConfig(
                url=servers.url, cluster=name, durability="relaxed", replicas=layout.replicas,
                monitors=tuple(servers.monitors), file_bytes_max=layout.raw_bytes_max,
            )  # fmt: skip
            config = node_config(folder / node_id, node_id=node_id, stream=stream, **keys(one))
            found.append(await stack.enter_async_context(running_node(folder, config=config)))
        share = 64 // number
        await until(
            "all hold their share",
            lambda: all(shares(node, sink) in (share, share + 1) for node in found),
            timeout_s=180,
        )
        yield found


def shares(node: Node, sink: str) -> int:
    """Return how many partitions a node works on for a sink."""
    return len(node.sinks.runners[sink].tokens)
