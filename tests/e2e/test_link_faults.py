"""The link at its worst: cuts at random bytes, acknowledgements twice and late, disks that fill up.

Each time: nothing acknowledged lost, nothing doubled, order kept, the ledger balanced. A short run
by default; `TIDEGATE_CUTS=1000` makes it the whole proof, which draws its seed anew and says it
first, and `TIDEGATE_CUTS_SEED` repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_drain import waits
from tests.e2e.test_kills import check, load
from tests.kit.processes import get_json
from tests.kit.proxy import Proxy
from tests.kit.site import Site
from tests.kit.small_disk import small_disk, take_all_space

CUTS = int(os.environ.get("TIDEGATE_CUTS", "60"))
FILLS = max(3, CUTS // 50)
PUBACK = 4
RATE_S = 400.0  # so that what gathers among the faults is gone soon after them
STUCK_S = 60.0


def seeded(name: str) -> random.Random:
    """Return the generator of one test."""
    drawn = random.SystemRandom().randrange(1 << 32) if "TIDEGATE_CUTS" in os.environ else 1
    seed = int(os.environ.get("TIDEGATE_CUTS_SEED", drawn))
    print(f"TIDEGATE_CUTS_SEED={seed}")
    return random.Random(f"{name} {seed}")


async def hurt(proxy: Proxy, cuts: int, rng: random.Random) -> None:
    """Cut the line so many more times at random bytes, with delays now and then."""
    wanted = proxy.cuts + cuts
    last, cut_s = proxy.cuts, time.monotonic()
    while proxy.cuts < wanted:  # how long it takes is the machine's affair
        if proxy.cuts != last:
            last, cut_s = proxy.cuts, time.monotonic()
        assert time.monotonic() < cut_s + STUCK_S, "nothing dials any more"
        if rng.random() < 0.5:
            proxy.cut_after(up=rng.randrange(1, 12_000))
        else:
            proxy.cut_after(down=rng.randrange(1, 60))
        for way in (proxy.up, proxy.down):
            way.delay_s = rng.choice((0.0, 0.0, 0.02, 0.1))
        await asyncio.sleep(rng.uniform(0.02, 0.2))


async def caught_up(site: Site) -> None:
    """Wait until hardly anything waits, however long that takes while more is acknowledged.

    A machine too busy to take what is published drains once that has ended.
    """
    least = acked = float("inf")
    fewer_s = acked_s = time.monotonic()
    while least > RATE_S and time.monotonic() < fewer_s + 2 * STUCK_S:
        status = await asyncio.to_thread(get_json, f"http://127.0.0.1:{site.edge_http}/status")
        now_s = time.monotonic()
        if status and status["uplink"]["backlog_readings"] < least:
            least, fewer_s = status["uplink"]["backlog_readings"], now_s
        if status and status["uplink"]["readings_sent"] != acked:
            acked, acked_s = status["uplink"]["readings_sent"], now_s
        assert now_s < acked_s + STUCK_S, f"{least} readings wait, and none is acknowledged"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("mode", ["columnar", "structured"])
async def test_cut_at_random_bytes(tmp_path: Path, mode: str) -> None:
    rng = seeded(f"cuts {mode}")
    with Site(tmp_path, uplink=f'mode = "{mode}"\nhistorical_s = 2\nbatch_readings = 50') as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            await asyncio.to_thread(site.up)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=31, rate_per_s=RATE_S))
            await hurt(proxy, CUTS // 2, rng)
            proxy.heal()
            await caught_up(site)
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)


def doubled_and_late(rng: random.Random) -> Callable[[], Callable[[bytes], bytes]]:
    """Return what makes acknowledgements come twice, late, again after others, or never."""

    def line() -> Callable[[bytes], bytes]:
        kept: deque[bytes] = deque(maxlen=20)

        def change(packet: bytes) -> bytes:
            if packet[0] >> 4 != PUBACK:
                return packet
            chance = rng.random()
            if chance < 0.2:
                return packet + packet
            if chance < 0.3:  # withheld: it comes behind some later one, or never
                kept.append(packet)
                return b""
            if chance < 0.4 and kept:
                return packet + kept.popleft()
            if chance < 0.5:  # now, and once more later, when its id may be another batch's
                kept.append(packet)
            return packet

        return change

    return line


async def test_acknowledgements_that_come_twice_late_or_never(tmp_path: Path) -> None:
    rng = seeded("acknowledgements")
    with Site(tmp_path, uplink="batch_readings = 50") as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            await asyncio.to_thread(site.up)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=32, rate_per_s=RATE_S))
            for _ in range(max(4, CUTS // 15)):
                proxy.down.packets = doubled_and_late(rng)
                await hurt(proxy, 3, rng)  # changes come with the next connection
                proxy.cut_after()
                await asyncio.sleep(rng.uniform(0.5, 1.5))
            proxy.heal()
            proxy.cut()
            await caught_up(site)
            stop.set()
            report = await loading
            await asyncio.to_thread(site.wait_drained)
            check(site, report)


async def test_the_disk_fills_up_in_the_drain_again_and_again(tmp_path: Path) -> None:
    """Gateway and cloud on one disk, which others fill to the last byte while a backlog drains."""
    rng = seeded("disk")
    with small_disk(tmp_path / "disk", "160m") as disk, Site(disk, uplink=DRAIN) as site:
        site.storage.parent.mkdir()
        await asyncio.to_thread(site.edge.start)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=33, rate_per_s=RATE_S))
        await waits(site, 3000)
        await asyncio.to_thread(site.cloud.start)
        for _ in range(FILLS):
            await asyncio.to_thread(take_all_space, disk / "filler")
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            if rng.random() < 0.5:
                await asyncio.to_thread(site.edge.kill)
                (disk / "filler").unlink()
                await asyncio.to_thread(site.edge.start)
            else:
                (disk / "filler").unlink()
            await asyncio.sleep(rng.uniform(0.2, 1.0))
        await caught_up(site)
        stop.set()
        report = await loading
        await asyncio.to_thread(site.wait_drained)
        check(site, report)


DRAIN = "historical_s = 1\nbatch_readings = 100"
