"""A backlog drains over a slow line while all is killed and cut: nothing lost, nothing twice.

The gateway fills its journal without a cloud; then the cloud appears behind a throttled proxy, and
live readings go on. SIGKILL and cuts come at seeded moments of the drain; once with batches of both
modes, in any order, and what the contexts of structured ones start from gone now and then.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

from tests.e2e.test_kills import check, load
from tests.kit.processes import Process, get_json, wait_for
from tests.kit.proxy import Proxy
from tests.kit.site import Site

KILLS = 10


def backlog(site: Site) -> int:
    """Return how many readings wait at the gateway; -1 while it is away."""
    status = get_json(f"http://127.0.0.1:{site.edge_http}/status")
    return int(status["uplink"]["backlog_readings"]) if status else -1


async def waits(site: Site, count: int) -> None:
    """Return once so many readings wait at the gateway, or more."""
    await asyncio.to_thread(
        wait_for,
        f"{count} readings wait",
        lambda: backlog(site) >= count,
        progress=lambda: backlog(site),
    )


async def test_killed_and_cut_in_the_drain(tmp_path: Path) -> None:
    rng = random.Random("drain")
    with Site(tmp_path, uplink="historical_s = 1\nbatch_readings = 100") as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            site.storage.parent.mkdir()  # the judge looks there before the cloud has ever run
            await asyncio.to_thread(site.edge.start)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=3))
            await waits(site, 6000)
            proxy.up.bytes_s = 60_000
            await asyncio.to_thread(site.cloud.start)
            for turn in range(KILLS):
                await asyncio.sleep(rng.uniform(0.1, 0.8))
                await waits(site, 1)  # else the drain is over
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
            proxy.heal()
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)


def modes(site: Site) -> tuple[int, int]:
    """Return how many batches the gateway has sent since its start, structured and columnar."""
    status = get_json(f"http://127.0.0.1:{site.edge_http}/status")
    if not status:
        return 0, 0
    structured = status["uplink"]["structured_batches"]
    return structured, status["uplink"]["batches_sent"] - structured


async def both_modes(site: Site) -> None:
    """Wait until more batches of either mode were acknowledged."""
    before = modes(site)

    def more() -> bool:
        return all(now > then for now, then in zip(modes(site), before, strict=True))

    await asyncio.to_thread(wait_for, "both modes", more, progress=lambda: modes(site))


def lose_a_snapshot(site: Site, owner: Process) -> None:
    """Remove what a gateway or a cloud node that is down would start a context from."""
    if owner is site.edge:
        (site.folder / "edge" / "context.snapshot").unlink(missing_ok=True)
    else:
        shutil.rmtree(site.folder / "cloud" / "snapshots", ignore_errors=True)


async def test_killed_and_cut_in_a_drain_of_both_modes(tmp_path: Path) -> None:
    rng = random.Random("mixed drain")
    with Site(tmp_path, uplink="historical_s = 1\nbatch_readings = 50") as site:
        site.edge.module = "tests.kit.mixed_modes"
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            site.storage.parent.mkdir()  # the judge looks there before the cloud has ever run
            await asyncio.to_thread(site.edge.start)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=4, rate_per_s=600))
            await waits(site, 3000)
            proxy.up.bytes_s = 20_000
            await asyncio.to_thread(site.cloud.start)
            for turn in range(9):  # the gateway, the cloud, the line, and again
                await both_modes(site)
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                if turn % 3 == 2:
                    way = {"up": rng.randrange(1, 20_000)} if turn % 2 else {"down": 30}
                    proxy.cut_after(**way)
                    await proxy.until_cuts(proxy.cuts + 1)
                    proxy.up.cut_at = proxy.down.cut_at = None
                    continue
                victim = (site.edge, site.cloud)[turn % 3]
                await asyncio.to_thread(victim.kill)
                if turn % 2:
                    lose_a_snapshot(site, victim)
                await asyncio.to_thread(victim.start)
            proxy.heal()
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)
