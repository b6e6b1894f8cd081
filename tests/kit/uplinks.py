"""An uplink of one's own: quick, seeded, from a journal in memory to a scripted cloud."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from bridge.batch import Batch
from bridge.devices import DeviceIds
from edge.uplink import Uplink
from edge.uplink_config import BudgetConfig, UplinkConfig
from runtime.clock import Clock, SystemClock
from tests.kit.cloud_peer import Answer, CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.proxy import Proxy

__all__ = ["FAST", "FAST_LINK", "linked", "numbered", "once", "online", "uplink_to"]

# what goes wrong is noticed at once: no timer mends it while a test waits, but one it has set
FAST = UplinkConfig(
    linger_ms=5, backoff_min_s=0.01, backoff_max_s=0.05, connect_timeout_s=5,
    ack_timeout_s=3600, keep_alive_s=3600,
)  # fmt: skip
# batches are as configured from the first on, however slow the dial was
FAST_LINK = replace(FAST, budget=BudgetConfig(rate_bytes_s=1e8))


@asynccontextmanager
async def uplink_to(
    journal: MemoryJournal, *urls: str, config: UplinkConfig = FAST, clock: Clock | None = None
) -> AsyncIterator[Uplink]:
    """Run an uplink to these endpoints."""
    uplink = Uplink(
        replace(config, endpoints=urls), "gw-1", journal, DeviceIds(), clock or SystemClock(),
        rng=random.Random(1),
    )  # fmt: skip
    await uplink.start()
    try:
        yield uplink
    finally:
        await uplink.stop()


@asynccontextmanager
async def linked(
    journal: MemoryJournal, config: UplinkConfig = FAST
) -> AsyncIterator[tuple[CloudPeer, Proxy, Uplink]]:
    """Run an uplink that reaches the cloud through a proxy."""
    async with (
        CloudPeer() as cloud,
        Proxy("127.0.0.1", cloud.port) as proxy,
        uplink_to(journal, proxy.url, config=config) as uplink,
    ):
        yield cloud, proxy, uplink


async def online(uplink: Uplink) -> None:
    """Wait until the uplink has a connection."""
    while uplink.status().link != "online":
        await asyncio.sleep(0.005)


def numbered(first: int, count: int) -> list[bytes]:
    """Return so many payloads, each different from every other."""
    return [b'{"n":%d}' % n for n in range(first, first + count)]


def once(answers: dict[int, Answer]) -> Callable[[Batch, int], Answer]:
    """Return a script that answers the n-th batch so, and all others with success."""
    return lambda _batch, n: answers.get(n, (0, ""))
