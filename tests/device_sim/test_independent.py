"""Against software that is not ours: mosquitto as broker, paho as subscriber, SQLite as store.

What they say arrived is what the verification has to find, profile by profile and trace by trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from device_sim.config import PROFILES, SimConfig
from device_sim.report import SimReport
from device_sim.run import run_sim
from tests.kit.mosquitto import mosquitto
from tests.kit.stored_rows import add_rows, make_storage
from tests.kit.traces import TRACES, trace_path


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as port:
        yield port


@asynccontextmanager
async def storing(port: int, topic_filter: str, path: Path) -> AsyncIterator[Path]:
    """Store every message under `topic_filter` in the order mosquitto gives it."""
    make_storage(path)
    settings: dict[str, Any] = {"max_queued_incoming_messages": 100_000}
    async with aiomqtt.Client("127.0.0.1", port, **settings) as client:
        await client.subscribe(topic_filter, qos=2)

        async def store() -> None:
            seq = 1
            async for message in client.messages:
                rows = [(str(message.topic), bytes(message.payload))]  # type: ignore[arg-type]
                while len(client.messages):
                    more = await anext(aiter(client.messages))
                    rows.append((str(more.topic), bytes(more.payload)))  # type: ignore[arg-type]
                add_rows(path, rows, first_seq=seq)
                seq += len(rows)

        task = asyncio.create_task(store())
        try:
            yield path
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def checked(port: int, path: Path, prefix: str, **settings: Any) -> SimReport:
    async with storing(port, f"{prefix}/#", path):
        config = SimConfig(
            broker=f"mqtt://127.0.0.1:{port}",
            speed=0,
            topic_prefix=f"{prefix}/{{client}}/",
            client_prefix=prefix,
            verify=str(path),
            verify_timeout_s=15,
            **settings,
        )
        report = await run_sim(config)
    assert report.verdict is not None
    assert report.verdict.ok, report.verdict.summary()
    assert report.unacked == 0
    return report


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("profile", PROFILES)
async def test_every_profile_arrives_once_and_in_order(
    port: int, tmp_path: Path, profile: str, version: int
) -> None:
    prefix = f"{profile}{version}"
    report = await checked(
        port,
        tmp_path / "storage.db",
        prefix,
        profile=profile,
        devices=25,
        count=500,
        protocol_version=version,
    )
    assert report.verdict is not None
    assert report.verdict.stored == report.acked == 500


@pytest.mark.parametrize("qos", [0, 2])
async def test_other_qualities_of_service(port: int, tmp_path: Path, qos: int) -> None:
    report = await checked(
        port, tmp_path / "storage.db", f"qos{qos}", devices=10, count=300, qos=qos
    )
    assert report.verdict is not None
    assert report.verdict.acked == (300 if qos else 0)


@pytest.mark.parametrize("stamp", [True, False])
@pytest.mark.parametrize("name", TRACES)
async def test_each_shared_trace_arrives_to_the_bit(
    port: int, tmp_path: Path, name: str, stamp: bool
) -> None:
    path = trace_path(name)
    report = await checked(
        port,
        tmp_path / "storage.db",
        f"{name}{stamp}",
        replay=path,
        count=3000,
        window=20,
        stamp=stamp,
    )
    assert report.verdict is not None
    assert report.verdict.stored == report.acked == 3000


@pytest.mark.parametrize("clean_start", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
async def test_cut_connections_lose_and_double_nothing(
    port: int, tmp_path: Path, qos: int, clean_start: bool
) -> None:
    path, prefix = tmp_path / "storage.db", f"churn{qos}{clean_start}"
    async with storing(port, f"{prefix}/#", path):
        config = SimConfig(
            broker=f"mqtt://127.0.0.1:{port}",
            devices=40,
            rate_per_s=1500,
            duration_s=1.2,
            churn_per_s=120,
            qos=qos,
            clean_start=clean_start,
            topic_prefix=f"{prefix}/{{client}}/",
            client_prefix=prefix,
            verify=str(path),
            verify_timeout_s=15,
        )
        report = await run_sim(config)
    assert report.connections_lost > 0
    assert report.unacked == 0
    assert report.verdict is not None
    assert report.verdict.ok, report.verdict.summary()
