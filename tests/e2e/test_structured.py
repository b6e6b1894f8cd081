"""The structured mode among faults: cuts, its processes killed, the cloud restarted or refusing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path
from typing import Any

from tests.e2e.test_kills import check, load
from tests.kit.processes import Process, get_json, wait_for
from tests.kit.proxy import Proxy
from tests.kit.site import Site

_ENDED = contextlib.suppress(FileNotFoundError, ProcessLookupError)  # meanwhile
STRUCTURED = 'mode = "structured"\nbatch_readings = 50'


def uplink_of(site: Site) -> dict[str, Any]:
    """Return the gateway's uplink figures; empty while it is away."""
    status = get_json(f"http://127.0.0.1:{site.edge_http}/status")
    return dict(status["uplink"]) if status else {}


def structured_batches(site: Site) -> int:
    return int(uplink_of(site).get("structured_batches", 0))


def children_of(process: Process, module: str) -> list[int]:
    """Return the ids of a process's children that run `module`."""
    found = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with _ENDED:
            for pid in (task / "children").read_text().split():
                with _ENDED:
                    if module in Path(f"/proc/{pid}/cmdline").read_text():
                        found.append(int(pid))
    return found


async def kill_children(process: Process, module: str) -> None:
    """Kill the children that run `module`, once there is one: a redial may have started another."""
    pids = await asyncio.to_thread(wait_for, module, lambda: children_of(process, module))
    for pid in pids:
        with _ENDED:
            os.kill(pid, signal.SIGKILL)
    # else one that takes its time to end is killed for the next one
    await asyncio.to_thread(
        wait_for, "their end", lambda: not {*pids} & {*children_of(process, module)}
    )


async def more_batches(site: Site, count: int) -> None:
    """Wait for so many more structured batches."""
    before = structured_batches(site)
    await asyncio.to_thread(
        wait_for,
        "structured batches",
        lambda: structured_batches(site) >= before + count,
        progress=lambda: structured_batches(site),
    )


async def finished(site: Site, stop: asyncio.Event, loading: asyncio.Task[Any]) -> dict[str, Any]:
    """End the load, check that all of it is stored once, and return the uplink's figures."""
    stop.set()
    report = await loading
    await asyncio.to_thread(site.wait_drained)
    check(site, report)
    return uplink_of(site)


async def test_cut_at_random_bytes(tmp_path: Path) -> None:
    rng = random.Random("structured cuts")
    with Site(tmp_path, uplink=STRUCTURED) as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            site.route_uplink(proxy.port)
            await asyncio.to_thread(site.up)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(site, stop, seed=21))
            await more_batches(site, 1)
            for _ in range(20):
                if rng.random() < 0.5:
                    proxy.cut_after(up=rng.randrange(1, 2_000))
                else:
                    proxy.cut_after(down=rng.randrange(1, 60))
                await proxy.until_cuts(proxy.cuts + 1)
            proxy.heal()
            await more_batches(site, 5)
            uplink = await finished(site, stop, loading)
            assert uplink["dead_letters"] == 0


async def test_the_encoder_is_killed_again_and_again_under_load(tmp_path: Path) -> None:
    with Site(tmp_path, uplink=STRUCTURED) as site:
        await asyncio.to_thread(site.up)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=22, rate_per_s=500))
        for _ in range(4):
            await more_batches(site, 3)
            await kill_children(site.edge, "edge.encoder_process")
        await more_batches(site, 3)
        uplink = await finished(site, stop, loading)
        assert uplink["encoder_restarts"] >= 3
        assert uplink["refusals"] == 0, "the cloud never noticed"


async def test_the_decoder_is_killed_again_and_again_under_load(tmp_path: Path) -> None:
    with Site(tmp_path, uplink=STRUCTURED) as site:
        await asyncio.to_thread(site.up)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=23, rate_per_s=500))
        for _ in range(4):
            await more_batches(site, 3)
            await kill_children(site.cloud, "cloud.decoder_process")
        await more_batches(site, 3)
        uplink = await finished(site, stop, loading)
        assert uplink["refusals"] >= 3
        assert uplink["dead_letters"] == 0


async def test_the_cloud_loses_its_contexts_by_restarts_under_load(tmp_path: Path) -> None:
    with Site(tmp_path, uplink=STRUCTURED) as site:
        await asyncio.to_thread(site.up)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=24, rate_per_s=500))
        for _ in range(3):
            await more_batches(site, 3)
            await asyncio.to_thread(site.cloud.kill)
            await asyncio.to_thread(site.cloud.start)
        await more_batches(site, 3)
        uplink = await finished(site, stop, loading)
        assert uplink["dead_letters"] == 0


async def test_a_cloud_that_refuses_the_mode_gets_columnar_batches(tmp_path: Path) -> None:
    with Site(tmp_path, uplink=STRUCTURED, cloud="[ingest]\ncontexts_max = 0") as site:
        await asyncio.to_thread(site.up)
        stop = asyncio.Event()
        loading = asyncio.create_task(load(site, stop, seed=25))
        await asyncio.to_thread(site.wait_stored, 2000)
        uplink = await finished(site, stop, loading)
        assert uplink["structured_batches"] == 0
        assert uplink["dead_letters"] == 0
        assert 1 <= uplink["refusals"] <= 4
