"""`tidegate up`: what it shows of the gateway, and the figures of its end."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from pathlib import Path

import aiomqtt
import pytest

from edge.config import EdgeConfig, JournalConfig
from runtime.clock import SystemClock
from tidegate.main import main
from tidegate.up import Site, UpConfig


def config(folder: Path) -> UpConfig:
    edge = EdgeConfig(journal=JournalConfig(disk_reserve_bytes=0))
    return UpConfig(data=folder, edge_port=0, cloud_port=0, http_port=0, edge=edge)


async def publish(site: Site, count: int) -> None:
    async with aiomqtt.Client("127.0.0.1", site.edge_port, timeout=60) as device:
        device.pending_calls_threshold = count
        await asyncio.gather(
            *(device.publish(f"devices/d{n % 7}/v", b"%d" % n, qos=1) for n in range(count))
        )


@pytest.mark.parametrize("seed", range(3))
async def test_the_figures_of_the_end_are_those_after_the_last_answer(
    tmp_path: Path, seed: int
) -> None:
    site = Site(config(tmp_path), SystemClock())
    await site.start()
    await publish(site, 200)
    await asyncio.sleep(random.Random(seed).uniform(0, 0.1))
    await site.stop()
    figures = site.figures()
    assert figures.taken == 200
    assert figures.stored + figures.backlog == 200, "nowhere else any more"
    assert figures.link == "off"
    assert figures.link_bytes > 0 or figures.backlog == 200


async def test_metrics_have_the_gateways_figures_too(tmp_path: Path) -> None:
    site = Site(config(tmp_path), SystemClock())
    await site.start()
    try:
        await publish(site, 20)
        figures = await asyncio.to_thread(scrape, f"http://127.0.0.1:{site.http_port}/metrics")
    finally:
        await site.stop()
    assert figures["tidegate_forecast_room_bytes"] > 0
    assert figures["tidegate_capture_readings_total"] == 20
    assert figures["tidegate_journal_last_seq"] == 20
    assert {"tidegate_uplink_online", "tidegate_ingest_readings_total"} <= figures.keys()


def scrape(url: str) -> dict[str, float]:
    """Return the figures without labels."""
    with urllib.request.urlopen(url) as answer:
        lines = [line.split() for line in answer.read().decode().splitlines()]
    return {one[0]: float(one[1]) for one in lines if "{" not in one[0] and one[0] != "#"}


async def test_whatif_asks_the_gateway_of_a_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(config(tmp_path), SystemClock())
    await site.start()
    try:
        await publish(site, 50)
        url = f"http://127.0.0.1:{site.http_port}"
        command = ["whatif", "--outage", "8h", "--link", "64kbps", "--url", url, "--json"]
        capsys.readouterr()  # the services' logs
        code = await asyncio.to_thread(main, command)
        found = json.loads(capsys.readouterr().out)
    finally:
        await site.stop()
    assert code == 0
    assert found["full_s"] is None
    assert found["drain_s"] is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cloud-http-port", "9"], "give 'http_port'"),
        (["--edge-uplink-endpoints", "mqtt://h:1"], "the cloud node is this one"),
    ],
)
def test_a_key_of_a_part_that_would_do_nothing_is_refused(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--data", str(tmp_path / "data"), *flags]) == 2
    assert said in capsys.readouterr().err
