"""Live readings over nodes: whoever has the partition publishes, subscribers of any node hear."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge.partition import partition_of
from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import NatsServers, nats_single
from tests.kit.nodes import run_command
from tests.kit.sites import client_at, running_gateway, until

DEVICES = [f"d{number}" for number in range(8)]  # of the partitions of both nodes


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


@pytest.mark.parametrize(("gateway_at", "subscriber_at"), [(0, 1), (1, 0)])
async def test_a_subscriber_at_another_node_than_the_gateway(
    servers: NatsServers, tmp_path: Path, gateway_at: int, subscriber_at: int
) -> None:
    async with (
        cluster_nodes(servers, tmp_path, 2, "live") as nodes,
        running_gateway(tmp_path / "gw", nodes[gateway_at]) as gateway,
        client_at(nodes[subscriber_at].port, "all", "devices/#") as (_, box),
        client_at(nodes[subscriber_at].port, "fresh", "$live/devices/#", qos=0) as (_, fresh),
        AsyncExitStack() as stack,
    ):
        clients = [
            (await stack.enter_async_context(client_at(gateway.port, name)))[0] for name in DEVICES
        ]

        async def publish(payload: bytes) -> None:
            for name, client in zip(DEVICES, clients, strict=True):
                await client.publish(f"devices/{name}/value", payload, 1)

        await publish(b"1")
        await until("all have come", lambda: len(box.messages) == len(DEVICES))
        await until("fresh too", lambda: len(fresh.messages) == len(DEVICES))
        # the work moves to one node, and each time the subscriber goes on hearing
        leases = nodes[gateway_at].sinks.leases
        assert leases is not None
        await leases.drain()
        await until("moved", lambda: shares(nodes[subscriber_at], "live") == 64)
        await publish(b"2")
        await until("again", lambda: len(box.messages) == 2 * len(DEVICES))
        await until("fresh again", lambda: len(fresh.messages) == 2 * len(DEVICES))
        topics = {f"devices/{name}/value" for name in DEVICES}
        for payload in (b"1", b"2"):  # each once, at both
            found = [one.topic_name for one in box.messages if one.payload == payload]
            assert sorted(found) == sorted(topics)


async def test_status_shows_who_works_on_what(servers: NatsServers, tmp_path: Path) -> None:
    async with (
        cluster_nodes(servers, tmp_path, 2, "live") as (one, two),
        running_gateway(tmp_path / "gw", one) as gateway,
    ):
        async with client_at(gateway.port, "d1") as (client, _):
            await client.publish("devices/d1/value", b"1", 1)
        url = f"http://127.0.0.1:{two.http_port}"
        partition = partition_of("d1")
        async with asyncio.timeout(60):
            while True:
                said = await run_command("status", "--partitions", "--url", url)
                lines = said.out.splitlines()
                written = [line for line in lines if line.startswith(f"{partition:>2}  end ")]
                if written and all(" live 32" in line for line in lines[:2]):
                    break
                await asyncio.sleep(0.1)
        assert said.code == 0
        assert [line.split(":")[0] for line in lines[:2]] == ["node-0", "node-1"]
        holder = next(node for node in (one, two) if partition in node.sinks.runners["live"].tokens)
        token = holder.sinks.runners["live"].tokens[partition]
        assert f"live: {holder.config.node_id} lag " in written[0]
        assert written[0].split("live: ")[1].split("  ")[0].endswith(f" token {token}")
