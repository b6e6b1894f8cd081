"""Everything is killed, at seeded moments, under load; every PUBACKed stamp is stored exactly once.

SIGKILL keeps the page cache: what a power cut does to unsynced writes is the matter of
tests/edge and tests/cloud. Here the processes, the sockets and the files are the real ones.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest

from device_sim.config import SimConfig
from device_sim.report import SimReport
from device_sim.run import run_sim
from tests.kit.processes import Process
from tests.kit.proxy import Proxy
from tests.kit.site import Site

KILLS = 20


async def killing(victim: Process, *, kills: int, rng: random.Random) -> None:
    """Kill and restart `victim` at `kills` moments, from its first packets to full load."""
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.02, 0.5))
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)


async def load(
    site: Site, stop: asyncio.Event, *, seed: int, rate_per_s: float = 1500
) -> SimReport:
    """Publish through the gateway until `stop`, then wait until all that was acked is stored."""
    config = SimConfig(
        broker=f"mqtt://127.0.0.1:{site.edge_port}",
        devices=20,
        rate_per_s=rate_per_s,
        duration_s=0,
        seed=seed,
        drain_timeout_s=60,
        verify=str(site.storage),
        verify_timeout_s=60,
    )
    return await run_sim(config, stop=stop)


def check_independently(site: Site) -> None:
    """Look at the rows without our own judge: no identity twice, seq and stamps in order."""
    rows = site.rows("gateway, epoch, seq, device, topic")
    identities = {row[:3] for row in rows}
    assert len(identities) == len(rows)
    seqs: dict[tuple[object, object], list[int]] = defaultdict(list)
    for gateway, epoch, seq, _, _ in rows:
        seqs[gateway, epoch].append(int(str(seq)))
    for per_epoch in seqs.values():
        assert per_epoch == sorted(per_epoch)


def check(site: Site, report: SimReport) -> None:
    """Assert that nothing acknowledged was lost, doubled or put out of order."""
    assert report.verdict is not None
    assert report.verdict.ok, report.verdict.summary()
    assert report.verdict.acked == report.acked > 0
    check_independently(site)
    audit = site.audit()
    assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.mark.parametrize("victims", ["edge", "cloud", "both"])
async def test_killed_at_seeded_points(tmp_path: Path, victims: str) -> None:
    rng = random.Random(f"kills {victims}")
    with Site(tmp_path) as site:
        await asyncio.to_thread(site.up)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=7))
        attacks = []
        if victims in {"edge", "both"}:
            kills = KILLS if victims == "edge" else KILLS // 2
            attacks.append(killing(site.edge, kills=kills, rng=rng))
        if victims in {"cloud", "both"}:
            kills = KILLS if victims == "cloud" else KILLS // 2
            attacks.append(killing(site.cloud, kills=kills, rng=rng))
        await asyncio.gather(*attacks)
        stop.set()
        report = await loading
        await asyncio.to_thread(site.wait_drained)
        check(site, report)


async def test_link_cut_in_the_middle_of_batches(tmp_path: Path) -> None:
    rng = random.Random("cuts")
    with Site(tmp_path) as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            await asyncio.to_thread(site.up)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=11))
            for _ in range(20):
                if rng.random() < 0.5:
                    proxy.cut_after(up=rng.randrange(1, 20_000))
                else:
                    proxy.cut_after(down=rng.randrange(1, 60))
                await proxy.until_cuts(proxy.cuts + 1)
            proxy.heal()
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)
