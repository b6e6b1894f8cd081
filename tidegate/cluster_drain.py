"""`tidegate cluster drain`: has a node hand its work over, and waits until it has.

The request is a key of the cluster's leases, so it needs NATS and not the node's address. It holds
until the node is started anew; the others take its partitions as it lets go of them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping

from cloud.cluster.bucket import Bucket, Value
from cloud.cluster.connection import Connection
from cloud.cluster.lease_keys import drain_key, holder_of, node_of
from cloud.config import CloudConfig
from cloud.stream.opening import access_of, layout_of
from runtime.config import ConfigError

__all__ = ["add_drain_arguments", "drain"]

_ASKED_S = 3600.0  # how long the request stands; a node that has seen it does not need it any more


def add_drain_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that are the command's own."""
    parser.add_argument("node", metavar="NODE", help="its node_id")
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="how long to wait for the hand-over; 1 when it is not done then [60]",
    )


def drain(options: argparse.Namespace, config: CloudConfig) -> int:
    """Ask for it and wait; 0 when the node works on nothing any more.

    Raises:
        ConfigError: there is no such node.
        ClusterError: the cluster cannot be asked.
    """
    return asyncio.run(_drain(config, options.node, options.wait))


async def _drain(config: CloudConfig, node: str, wait_s: float) -> int:
    connection = await Connection.open(
        config.stream.url, name="tidegate cluster drain", access=access_of(config.stream)
    )
    try:
        bucket = Bucket(connection, layout_of(config.stream).bucket("leases"))
        changed = asyncio.Event()

        def noted(_key: str, _value: Value | None) -> None:
            changed.set()

        watch = await bucket.watch(noted)
        try:
            known = sorted(one.node for one in filter(None, map(node_of, watch.values.values())))
            if node not in known:
                raise ConfigError(
                    f"cluster drain: no node '{node}'; there is: {', '.join(known) or 'none'}"
                )
            # an old key would keep what was purged before it from being noticed
            await bucket.put(drain_key(node), b"{}", ttl_s=_ASKED_S)
            done = await _wait(watch.values, changed, node, wait_s)
            if not any(_takes_work(value, node) for value in watch.values.values()):
                print(f"{node}: no other node is there to take its work: what comes waits in the"
                      " stream until one is started", file=sys.stderr)  # fmt: skip
            return done
        finally:
            await watch.stop()
    finally:
        await connection.close()


def _takes_work(value: Value, node: str) -> bool:
    """Return True when a value announces another node that does not drain."""
    seen = node_of(value)
    return seen is not None and seen.node != node and not seen.draining


async def _wait(
    values: Mapping[str, Value], changed: asyncio.Event, node: str, wait_s: float
) -> int:
    left = -1
    try:
        async with asyncio.timeout(wait_s):
            while left:
                count = sum(holder_of(value) == node for value in values.values())
                if count != left:
                    print(f"{node}: works on {count} partitions of its sinks", flush=True)
                left = count
                if left:
                    changed.clear()
                    await changed.wait()
    except TimeoutError:
        print(f"{node}: still works on {left}; it goes on handing over", file=sys.stderr)
        return 1
    print(f"{node}: drained; stop it when you like")
    return 0
