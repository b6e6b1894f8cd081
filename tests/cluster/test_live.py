"""Live readings over nodes: whoever has the partition publishes, subscribers of any node hear."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import NatsServers, nats_single
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
        await until("all have come", lambda: len(box.messages) == len(DEVICES), timeout_s=30)
        await until("fresh too", lambda: len(fresh.messages) == len(DEVICES), timeout_s=30)
        # the work moves to one node, and each time the subscriber goes on hearing
        leases = nodes[gateway_at].sinks.leases
        assert leases is not None
        await leases.drain()
        await until("moved", lambda: shares(nodes[subscriber_at], "live") == 64, timeout_s=30)
        await publish(b"2")
        await until("again", lambda: len(box.messages) == 2 * len(DEVICES), timeout_s=30)
        await until("fresh again", lambda: len(fresh.messages) == 2 * len(DEVICES), timeout_s=30)
        topics = {f"devices/{name}/value" for name in DEVICES}
        for payload in (b"1", b"2"):  # each once, at both
            found = [one.topic_name for one in box.messages if one.payload == payload]
            assert sorted(found) == sorted(topics)
