"""Nodes of two versions on one cluster: nothing is written that one of them cannot read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.cluster.applying import apply, plan, stream_epoch
from cloud.cluster.bucket import Bucket
from cloud.cluster.checks import check_cluster
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import Layout
from cloud.cluster.leases import Leases
from cloud.cluster.versions import VERSION
from cloud.config import CloudConfig, StreamConfig
from cloud.stream import opening
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import SystemClock
from tests.cloud.stream_contract import part
from tests.kit.cluster_nodes import shares
from tests.kit.nats import NatsServers, connected, layout_of, nats_single
from tests.kit.nodes import node_config, running_node
from tests.kit.sites import until

OLDER = VERSION - 1


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("versions"), disk_bytes_max=8 << 30) as running:
        yield running


@pytest.fixture
def layout(servers: NatsServers, request: pytest.FixtureRequest) -> Layout:
    """A layout of the test's own."""
    return layout_of(servers, "v" + format(abs(hash(request.node.nodeid)), "x"))


@asynccontextmanager
async def stream_of(connection: Connection, layout: Layout) -> AsyncIterator[JetStreamStream]:
    """Open a stream as a node does that knows the layout's version."""
    epoch = await stream_epoch(connection, layout)
    stream = await JetStreamStream.open(
        connection, layout, epoch, SystemClock(), durability="relaxed", tail_bytes_max=0,
        arrivals_max=0,
    )  # fmt: skip
    try:
        yield stream
    finally:
        await stream.close(keep_connection=True)


async def test_a_cluster_is_raised_once_no_older_node_is_there(
    servers: NatsServers, layout: Layout
) -> None:
    older = replace(layout, version=OLDER)
    async with connected(servers) as connection, connected(servers) as other:
        await apply(connection, older)
        leases = Leases(Bucket(other, layout.bucket("leases")), "old", SystemClock(), version=OLDER)
        await leases.start()
        async with stream_of(connection, layout) as stream:
            assert not stream.keeps_runs  # the older node would not mind them
            (step,) = await plan(connection, layout)
            assert step.line() == (
                f"update {layout.ledger_stream}: layout is {OLDER}, has to be {VERSION}"
                " once no older node runs"
            )
            with pytest.raises(ClusterError, match=f"^old would not know layout {VERSION}: "):
                await apply(connection, layout)
            assert await plan(connection, older) == []  # nothing was changed
            await leases.stop()
            await apply(connection, layout)
            assert await plan(connection, layout) == []
            async with asyncio.timeout(60):
                while not stream.keeps_runs:  # without a start
                    await stream.append([])


async def test_a_node_that_does_not_say_what_it_knows_is_of_the_first_version(
    servers: NatsServers, layout: Layout
) -> None:
    async with connected(servers) as connection:
        await apply(connection, replace(layout, version=1))
        bucket = Bucket(connection, layout.bucket("leases"))
        await bucket.put("node.quiet", b'{"node": "quiet", "sinks": []}', ttl_s=60)
        with pytest.raises(ClusterError, match=r"^quiet would not know"):
            await apply(connection, layout)


async def test_a_ledger_that_says_no_version_any_more_is_not_raised_past_older_nodes(
    servers: NatsServers, layout: Layout
) -> None:
    async with connected(servers) as connection:
        await apply(connection, replace(layout, version=1))
        config = (await connection.api(f"STREAM.INFO.{layout.ledger_stream}"))["config"]
        del config["metadata"]["tidegate.layout"]
        await connection.api(f"STREAM.UPDATE.{layout.ledger_stream}", config)
        (step,) = await plan(connection, layout)
        assert "layout is not said" in step.line()
        bucket = Bucket(connection, layout.bucket("leases"))
        await bucket.put("node.quiet", b'{"node": "quiet", "sinks": []}', ttl_s=60)
        with pytest.raises(ClusterError, match=r"^quiet would not know"):
            await apply(connection, layout)
        await bucket.delete("node.quiet")
        await apply(connection, layout)
        assert await plan(connection, layout) == []


async def test_without_a_ledger_it_is_not_raised_past_older_nodes_nor_lowered(
    servers: NatsServers, layout: Layout
) -> None:
    """The checkpoints say which version the lost one was of."""
    name = layout.ledger_stream
    async with connected(servers) as connection:
        await apply(connection, replace(layout, version=OLDER))
        bucket = Bucket(connection, layout.bucket("leases"))
        await bucket.put("node.quiet", b'{"node": "quiet", "sinks": []}', ttl_s=60)
        await connection.api(f"STREAM.DELETE.{name}")
        with pytest.raises(ClusterError, match=r"^quiet would not know"):
            await apply(connection, layout, recreate=[name])
        await bucket.delete("node.quiet")
        await apply(connection, layout, recreate=[name])
        await connection.api(f"STREAM.DELETE.{name}")
        with pytest.raises(ClusterError, match=f"this program knows {OLDER}"):
            await apply(connection, replace(layout, version=OLDER), recreate=[name])


async def test_a_raised_cluster_is_refused_by_an_older_program(
    servers: NatsServers, layout: Layout
) -> None:
    older = replace(layout, version=OLDER)
    async with connected(servers) as connection:
        await apply(connection, layout)
        line = f"has layout {VERSION}, this program knows {OLDER}"
        for refuses in (plan, apply, stream_epoch):
            with pytest.raises(ClusterError, match=line) as caught:
                await refuses(connection, older)
            assert "\n" not in str(caught.value)
        assert await plan(connection, layout) == []


async def test_an_older_cluster_is_durable_and_the_node_says_what_differs(
    servers: NatsServers, layout: Layout
) -> None:
    async with connected(servers) as connection:
        await apply(connection, replace(layout, version=OLDER))
        checked = await check_cluster(
            connection, layout, monitors=servers.monitors, servers_fsync=False
        )
    assert any("layout is" in note for note in checked.notes)
    assert not any("layout is" in line for line in checked.weak)


async def test_who_was_out_of_sight_while_it_was_raised_takes_nothing_more(
    servers: NatsServers, layout: Layout
) -> None:
    older = replace(layout, version=OLDER)
    async with connected(servers) as connection, connected(servers) as other:
        await apply(connection, older)
        async with stream_of(other, older) as stream:
            await stream.append([part(1, [1])])
            await apply(connection, layout)  # it has no lease: it stalls, or has just begun
            await until("it has seen that", lambda: stream.broken)
            with pytest.raises(StreamError, match=f"this program knows {OLDER}"):
                await stream.append([part(1, [2])])


async def test_a_node_that_is_too_old_leaves_its_partitions_to_the_others(
    servers: NatsServers, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = replace(layout, version=OLDER)
    async with connected(servers) as connection:
        await apply(connection, older)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "layout_of", lambda _config: older)
        old_config = config_of(servers, layout, tmp_path, "old")
        async with running_node(tmp_path, config=old_config) as old:
            patch.undo()
            new_config = config_of(servers, layout, tmp_path, "new")
            async with running_node(tmp_path, config=new_config) as new:
                await until("both work", lambda: shares(old, "alerts") == shares(new, "alerts"),
                            timeout_s=60)  # fmt: skip
                async with connected(servers) as connection:
                    info = await connection.api(f"STREAM.INFO.{layout.ledger_stream}")
                    config = info["config"]
                    config["metadata"]["tidegate.layout"] = str(VERSION)
                    await connection.api(f"STREAM.UPDATE.{layout.ledger_stream}", config)
                await until("handed over", lambda: shares(new, "alerts") == 64, timeout_s=60)
                assert any("use the version of tidegate" in line for line in old.health())
                assert old.ready()
                assert new.health() == new.ready() == []


def config_of(servers: NatsServers, layout: Layout, folder: Path, node_id: str) -> CloudConfig:
    """Return the configuration of a node of the cluster."""
    stream = StreamConfig(
        url=servers.url, cluster=layout.cluster, durability="relaxed", replicas=layout.replicas,
        monitors=tuple(servers.monitors), file_bytes_max=layout.raw_bytes_max,
    )  # fmt: skip
    return node_config(folder / node_id, node_id=node_id, stream=stream)
