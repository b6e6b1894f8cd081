"""Who leads which stream, and where a replica is behind: seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.cluster.connection import Unanswered
from cloud.cluster.replicas import Kept, Replicas, kept_of
from cloud.telemetry import register_replicas
from runtime.metrics import Metrics
from tests.kit.nats import connected, make_layout, nats_cluster, nats_single

CONFIG = {"num_replicas": 3}
FRESH = {"name": "b", "current": True}
BEHIND = {"name": "c", "current": False}
AWAY = {"name": "c", "current": True, "offline": True}


@pytest.mark.parametrize(
    ("leader", "others", "kept", "quorum"),
    [
        ("a", [FRESH, FRESH], Kept("a", 3, 3), True),
        ("a", [FRESH, BEHIND], Kept("a", 2, 3), True),
        ("a", [BEHIND, AWAY], Kept("a", 1, 3), False),
        ("", [FRESH, FRESH], Kept("", 2, 3), False),
    ],
)
def test_a_stream_has_a_quorum_of_replicas_that_have_everything(
    leader: str, others: list[dict[str, object]], kept: Kept, quorum: bool
) -> None:
    info = {"config": CONFIG, "cluster": {"leader": leader, "replicas": others}}
    assert kept_of(info, "asked") == kept
    assert kept.quorum is quorum


async def until(replicas: Replicas, check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not check():
            await replicas.look()


async def test_leaders_and_quorum_follow_the_servers(tmp_path: Path) -> None:
    with nats_cluster(tmp_path) as servers:
        layout = await make_layout(servers)
        streams = [spec.name for spec in layout.specs()]
        async with connected(servers) as connection:
            replicas = Replicas(connection, layout)
            await until(replicas, lambda: not replicas.figures()["replicas_behind"] and
                        sum(replicas.leaders().values()) == len(streams))  # fmt: skip
            metrics = Metrics(process=False)
            register_replicas(metrics, replicas)
            text = metrics.render()[0].decode()
            assert sum(count for count in replicas.leaders().values()) == len(streams)
            for name in streams:
                assert f'tidegate_cluster_stream_quorum{{stream="{name}"}} 1.0' in text
            servers[2].kill()
            await until(replicas, lambda: replicas.figures()["replicas_behind"] == sorted(streams))
            servers[1].kill()
            await until(replicas, lambda: replicas.figures()["without_quorum"] == sorted(streams))


async def test_one_server_alone_leads_everything(tmp_path: Path) -> None:
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        async with connected(servers) as connection:
            replicas = Replicas(connection, layout)
            replicas.start()
            try:
                async with asyncio.timeout(60):
                    while not replicas.streams:
                        await asyncio.sleep(0.01)
            finally:
                await replicas.stop()
            said = replicas.figures()
            assert said["slow"] == []
            # a disk that has become slow: two appends that took long, one that nobody answered
            connection.times.note(layout.ledger_stream, 0.1)
            connection.times.note(layout.ledger_stream, 0.7)
            connection.times.note(layout.dead_stream, 0.1)
            servers[0].pause()
            with pytest.raises(Unanswered):
                await connection.publish(layout.raw_subject(6), b"", timeout_s=0.3)
            servers[0].resume()
            await replicas.look()
            name = servers[0].name
            ledger, raw = replicas.figures()["slow"]
            assert ledger == f"{layout.ledger_stream} led by {name}: 0.4 s an append"
            assert raw.startswith(f"{layout.raw_stream(6)} led by {name}: ")
            metrics = Metrics(process=False)
            register_replicas(metrics, replicas)
            assert f'_append_s{{server="{name}",stream="{layout.dead_stream}"}} 0.1' in (
                metrics.render()[0].decode()
            )
            await replicas.look()
            assert replicas.figures()["slow"] == []  # nothing was appended since
    assert list(said["streams_led"].values()) == [len(list(layout.specs()))]
    assert said["without_quorum"] == said["replicas_behind"] == []
