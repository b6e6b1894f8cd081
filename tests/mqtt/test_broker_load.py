"""The load generator tells the truth: what it counts as acknowledged is what the broker took."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.load import LoadSpec, run_load
from tests.kit.brokers import ManualCapture, serving


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_the_generator_counts_was_taken(qos: int, version: int) -> None:
    capture = ManualCapture(automatic=True)
    async with serving(capture=capture) as broker:
        spec = LoadSpec(
            port=broker.port,
            connections=5,
            window=7,
            qos=qos,
            payload_bytes=33,
            warmup_s=0.0,
            count=700,
            protocol_version=version,
        )
        report = await asyncio.to_thread(run_load, spec)
        taken = sum(run.count for run in capture.taken)
        assert 700 <= report.messages <= taken <= report.messages + 5 * 7
        assert report.messages_per_s > 0
        assert {run.client.client_id for run in capture.taken} == {f"load-{i}" for i in range(5)}


async def test_a_broker_that_refuses_is_an_error_not_a_rate() -> None:
    async with serving() as broker:
        broker.broker._core.stopping = True
        spec = LoadSpec(port=broker.port, connections=1, duration_s=0.1)
        with pytest.raises(ConnectionError, match="refused"):
            await asyncio.to_thread(run_load, spec)
