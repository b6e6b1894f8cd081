"""Gateways of a cluster: any node shows how each one's link is, whichever node has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from cloud.cluster import gateway_peers
from cloud.cluster.gateway_peers import GatewayPeers
from cloud.cluster.layout import Layout
from cloud.gateways import GatewaysSeen
from cloud.node import Node
from mqtt.broker.seams import ClientInfo
from runtime.clock import ManualClock
from tests.kit.cluster_nodes import cluster_nodes
from tests.kit.nats import NatsServers, nats_single
from tests.kit.sites import client_at, running_gateway, until


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


async def shown(node: Node, path: str) -> Any:
    async with httpx.AsyncClient(timeout=20) as web:
        return (await web.get(f"http://127.0.0.1:{node.http_port}/{path}")).json()


async def test_a_gateway_is_connected_at_every_node(
    servers: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_peers, "_ANSWER_GATEWAYS", 1)  # an answer has many pages
    async with cluster_nodes(servers, tmp_path, 2, "alerts") as (one, two):
        async with (
            running_gateway(tmp_path / "a", one.port, gateway="gw-a") as first,
            running_gateway(tmp_path / "b", one.port, gateway="gw-b") as second,
        ):
            for gateway in (first, second):
                async with client_at(gateway.port, "d1") as (client, _):
                    await client.publish("devices/d1/value", b"1", 1)
            await until("both came", lambda: len(one.gateways_seen.all()) == 2)
            for node, at in ((one, ""), (two, "node-0")):
                found = (await shown(node, "api/v1/gateways"))["gateways"]
                assert [(g["gateway"], g["connected"], g["node"]) for g in found] == [
                    ("gw-a", True, at),
                    ("gw-b", True, at),
                ]
                assert all(g["last_batch_us"] and g["lag_s"] is not None for g in found)
            status = (await shown(two, "status"))["gateways"]
            assert [status[name]["connected"] for name in ("gw-a", "gw-b")] == [True, True]
        await until("both left", lambda: not any(g.client for g in one.gateways_seen.all()))
        monkeypatch.setattr(gateway_peers, "_GOOD_FOR_S", 0.0)
        assert not any(view.connected for view in await two.gateways())
        assert one.gateway_peers is not None
        await one.gateway_peers.stop()  # it is there, and does not answer
        assert two.gateway_peers is not None
        assert (await two.gateway_peers.links()).silent == ["node-0"]
        assert [view.gateway for view in await two.gateways()] == ["gw-a", "gw-b"]
        assert (await shown(two, "status"))["silent_nodes"] == ["node-0"]


async def test_gateways_that_come_and_go_between_two_pages_leave_none_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_peers, "_ANSWER_GATEWAYS", 3)
    clock = ManualClock()
    seen, nobody = GatewaysSeen(clock), cast("Any", None)
    layout = Layout("x", 1)
    peers = GatewayPeers(seen, nobody, layout, cast("Any", SimpleNamespace(instance="i")), clock)
    clients = [ClientInfo(f"tidegate-gw-{n}", 5) for n in range(9)]
    for client in clients:
        seen.client_connected(client)

    async def ask(_instance: str, question: list[Any]) -> list[dict[str, Any]]:
        said = await peers._answer(question)
        for client in clients[:2]:  # the first of the list becomes its last, or leaves
            seen.client_disconnected(client, 0)
        seen.client_connected(clients[1])
        return said

    monkeypatch.setattr(peers._peers, "ask", ask)
    found = await peers._links_of("i")
    assert found is not None
    assert [one.gateway for one in found] == [f"gw-{n}" for n in range(9)]
    assert len(await peers._answer([6])) == 2  # as an older node asks
