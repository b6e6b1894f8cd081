"""A node that starts while servers start or elect a leader waits for them; it does not end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud.cluster import checks
from cloud.cluster.connection import Ack, Connection, NoResponders, Unreachable
from cloud.config import StreamConfig
from cloud.node import Node
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.engine import JetStreamStream
from cloud.stream.opening import open_cluster_stream
from runtime.clock import SystemClock
from runtime.service import StartError
from tests.kit.nats import NatsServers, connected, make_layout, nats_single
from tests.kit.nodes import node_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("one"), disk_bytes_max=8 << 30) as servers:
        yield servers


async def node_on(server: NatsServers, cluster: str, data: Path, *, wait_s: float) -> Node:
    layout = await make_layout(server, cluster)
    stream = StreamConfig(
        url=server.url, cluster=cluster, replicas=1, durability="relaxed", start_wait_s=wait_s,
        file_bytes_max=layout.raw_bytes_max, monitors=tuple(server.monitors),
    )  # fmt: skip
    return Node(node_config(data, stream=stream), SystemClock())


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> list[int]:
    """Have a method of the stream fail at first; return where its calls are counted."""
    real = getattr(JetStreamStream, name)
    calls = [0]

    async def method(self: JetStreamStream, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] <= times:
            raise StreamError("nobody serves it now")
        return await real(self, *arguments, **options)

    monkeypatch.setattr(JetStreamStream, name, method)
    return calls


async def test_between_two_leaders_it_waits_until_an_append_is_taken(
    server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await node_on(server, "waits", tmp_path, wait_s=60)
    appends = failing(monkeypatch, "append", 3)
    stats = failing(monkeypatch, "stats", 3)  # what the sinks ask first
    await node.start()
    try:
        assert appends[0] > 3
        assert stats[0] > 3
        assert node.ready() == []
        async with asyncio.timeout(60):
            await node.sinks.drained()
    finally:
        await node.stop()


async def test_it_ends_when_that_takes_longer_than_it_is_to_wait(
    server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await node_on(server, "ends", tmp_path, wait_s=0)
    failing(monkeypatch, "append", 1000)
    with pytest.raises(StartError, match="stream: nobody serves it now"):
        await node.start()
    await node.stop()


async def test_how_a_server_syncs_is_known_though_its_first_page_leaves_it_out(
    server: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of one that was asked for /varz before JetStream had begun: it keeps that page."""
    real = checks._page

    async def page(address: str, name: str) -> dict[str, Any] | None:
        found = await real(address, name)
        return {**found, "jetstream": {}} if found is not None and name == "varz" else found

    monkeypatch.setattr(checks, "_page", page)
    said = await checks._varz(server.monitors[0])
    assert said is not None
    assert said["jetstream"]["config"]["sync_always"] is True


async def test_a_server_that_does_not_say_yet_how_it_syncs_is_not_taken_for_a_weak_one(
    server: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = await make_layout(server, "starting")
    real = await checks._varz(server.monitors[0])
    assert real is not None
    pages = {"http://old": real, "http://new": {**real, "jetstream": {}}, "http://none": None}

    async def page(address: str) -> dict[str, Any] | None:
        return pages[address]

    monkeypatch.setattr(checks, "_varz", page)

    async def weak(connection: Connection, *monitors: str) -> list[str]:
        found = await checks.check_cluster(
            connection, layout, monitors=monitors, servers_fsync=False
        )
        return [line for line in found.weak if "syncs" in line]

    async with connected(server) as connection:
        assert await weak(connection, "http://old", "http://new") == []
        with pytest.raises(Unreachable, match="says yet how it runs JetStream"):
            await weak(connection, "http://new", "http://none")


# ---- how long it waits ---------------------------------------------------------------------------


@asynccontextmanager
async def mute() -> AsyncIterator[str]:
    """Give the address of somebody who takes connections and says nothing."""
    keeping: set[asyncio.Task[None] | None] = set()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keeping.add(asyncio.current_task())
        await reader.read(-1)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(keep, "127.0.0.1", 0) as server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*filter(None, keeping))


async def test_a_monitoring_page_that_never_comes_holds_no_thread(server: NatsServers) -> None:
    """It is asked for every ten seconds, beside others who need threads."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    async with mute() as address:
        silent = address.replace("nats:", "http:")
        asking = asyncio.create_task(checks._varz(silent))
        assert (await checks._varz(server.monitors[0])) is not None
        assert await asyncio.to_thread(asking.done) is False
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_servers_that_say_nothing_are_waited_for_no_longer_than_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Less than one connection may take, or the pause between two."""
    monkeypatch.setattr("cloud.cluster.connection._CONNECT_S", 1e6)
    monkeypatch.setattr("cloud.stream.opening._PAUSE_S", 1e6)
    async with mute() as url, asyncio.timeout(60):
        config = StreamConfig(url=url, start_wait_s=0.5)
        with pytest.raises(StreamError, match="no server answered in 2 s"):
            await open_cluster_stream(config, SystemClock(), node_id="n")


async def test_nor_are_those_without_a_leader(
    server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = await make_layout(server, "mute")
    real = Connection.api

    async def api(self: Connection, path: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        if path == f"STREAM.INFO.{layout.ledger_stream}":
            raise NoResponders("nobody serves it now")
        return await real(self, path, *arguments, **options)

    monkeypatch.setattr(Connection, "api", api)
    monkeypatch.setattr("cloud.cluster.applying._READY_S", 1e6)
    config = StreamConfig(url=server.url, cluster="mute", start_wait_s=0.5)
    async with asyncio.timeout(60):
        with pytest.raises(StreamError, match="nobody serves it now"):
            await open_cluster_stream(config, SystemClock(), node_id="n")


async def test_nor_do_the_parts_of_a_node_wait_longer(
    server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream was opened; who leads the leases has died since."""
    node = await node_on(server, "parts", tmp_path, wait_s=0.5)
    real = Connection.publish

    async def publish(self: Connection, subject: str, *arguments: Any, **options: Any) -> Ack:
        if ".parts-leases." in subject:
            raise NoResponders("nobody serves it now")
        return await real(self, subject, *arguments, **options)

    monkeypatch.setattr(Connection, "publish", publish)
    async with asyncio.timeout(60):
        with pytest.raises(StartError, match="no answer in 2 s"):
            await node.start()
    await node.stop()
