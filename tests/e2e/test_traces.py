"""The whole way on real input: each trace replayed from device to row, bit by bit the same."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest

from device_sim.config import SimConfig
from device_sim.run import run_sim
from tests.kit.processes import get_json
from tests.kit.site import Site
from tests.kit.traces import TRACES, read_records, trace_path


@pytest.mark.parametrize("mode", ["columnar", "structured"])
@pytest.mark.parametrize("name", TRACES)
async def test_a_trace_arrives_as_it_was_published(name: str, mode: str, tmp_path: Path) -> None:
    path = trace_path(name)
    published: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for record in read_records(name):
        published[record.topic].append((record.payload, record.qos))
    total = sum(map(len, published.values()))
    with Site(tmp_path, uplink=f'mode = "{mode}"') as site:
        await asyncio.to_thread(site.up)
        report = await run_sim(
            SimConfig(
                broker=f"mqtt://127.0.0.1:{site.edge_port}",
                replay=path,
                topic_prefix="",
                stamp=False,
                speed=0,
                duration_s=0,
                qos=1,
                window=50,
                drain_timeout_s=60,
                verify=str(site.storage),
                verify_timeout_s=120,
            )
        )
        assert report.verdict is not None
        assert report.verdict.ok, report.verdict.summary()
        assert report.readings == total
        await asyncio.to_thread(site.wait_drained)
        stored: dict[str, list[bytes]] = defaultdict(list)
        for topic, payload in site.rows("topic, CAST(payload AS BLOB)"):
            assert isinstance(payload, bytes)
            stored[str(topic)].append(payload)
        assert stored == {
            topic: [payload for payload, _ in sent] for topic, sent in published.items()
        }
        uplink = get_json(f"http://127.0.0.1:{site.edge_http}/status")["uplink"]
        assert (uplink["structured_batches"] > 0) == (mode == "structured")
        audit = site.audit()
        assert audit.returncode == 0, audit.stdout + audit.stderr
