"""A backlog drains over a slow line while all is killed and cut: nothing lost, nothing twice.

The gateway fills its journal without a cloud; then the cloud appears behind a throttled proxy, and
live readings go on. SIGKILL and cuts come at seeded moments of the drain.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.e2e.test_kills import check, load
from tests.kit.processes import get_json, wait_for
from tests.kit.proxy import Proxy
from tests.kit.site import Site

KILLS = 10


def backlog(site: Site) -> int:
    """Return how many readings wait at the gateway; -1 while it is away."""
    status = get_json(f"http://127.0.0.1:{site.edge_http}/status")
    return int(status["uplink"]["backlog_readings"]) if status else -1


async def test_killed_and_cut_in_the_drain(tmp_path: Path) -> None:
    rng = random.Random("drain")
    with Site(tmp_path, uplink="historical_s = 1\nbatch_readings = 100") as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            site.storage.parent.mkdir()  # the judge looks there before the cloud has ever run
            await asyncio.to_thread(site.edge.start)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=3))
            await asyncio.to_thread(
                wait_for, "a backlog", lambda: backlog(site) >= 6000, timeout_s=30
            )
            proxy.up.bytes_s = 60_000
            await asyncio.to_thread(site.cloud.start)
            for turn in range(KILLS):
                await asyncio.sleep(rng.uniform(0.1, 0.8))
                victim = (site.edge, site.cloud)[turn % 2]
                await asyncio.to_thread(victim.kill)
                await asyncio.to_thread(victim.start)
                await asyncio.sleep(rng.uniform(0.1, 0.5))
                if rng.random() < 0.5:
                    proxy.cut_after(up=rng.randrange(1, 20_000))
                else:
                    proxy.cut_after(down=rng.randrange(1, 60))
                await asyncio.sleep(rng.uniform(0.1, 0.5))
                proxy.up.cut_at = proxy.down.cut_at = None
            assert backlog(site) > 0, "the drain was over before the last kill"
            proxy.heal()
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)
