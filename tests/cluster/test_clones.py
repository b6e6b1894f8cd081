"""Copies of a gateway's card at the nodes of a cluster: one line of runs, whoever hears it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.clones import NOBODY, all_stored_once, capture, copy, rows, until_sent, until_stored
from tests.kit.cluster_nodes import cluster_nodes
from tests.kit.nats import NatsServers, nats_single
from tests.kit.sites import gateway_config, running_gateway


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("clones"), disk_bytes_max=8 << 30) as running:
        yield running


async def test_copies_at_two_nodes_never_share_seqs(servers: NatsServers, tmp_path: Path) -> None:
    card, image = tmp_path / "card", tmp_path / "image"
    async with cluster_nodes(servers, tmp_path, 2, "alerts") as (one, two):
        async with running_gateway(card, one) as original:
            said = await capture(original, "before")
            await until_stored(said, one)
            await original.reload(gateway_config(card, NOBODY))
            said += await capture(original, "both have it")
            copy(card, image)
            said += await capture(original, "original's, offline", 5)
            async with running_gateway(image, two) as clone:
                said += await capture(clone, "clone's")
                await until_sent(clone)
                await original.reload(gateway_config(card, one.port))
                for turn in range(3):  # at once, and each at the other node from then on
                    for each in await asyncio.gather(
                        capture(original, f"original {turn}"), capture(clone, f"clone {turn}")
                    ):
                        said += each
                    await original.reload(gateway_config(card, (two, one)[turn % 2].port))
                    await clone.reload(gateway_config(image, (one, two)[turn % 2].port))
                await until_stored(said, one)
                epochs = [gw.status()["journal"]["epoch"] for gw in (original, clone)]
                assert original.status()["journal"]["parted_from"] == epochs[1]
        all_stored_once(rows(one), said)  # each node stores everything


async def test_copies_that_come_at_once_to_two_nodes(servers: NatsServers, tmp_path: Path) -> None:
    card, cards = tmp_path / "card", [tmp_path / "first", tmp_path / "second"]
    async with cluster_nodes(servers, tmp_path, 2, "alerts") as nodes:
        async with running_gateway(card, NOBODY) as gateway:
            said = await capture(gateway, "both have it")
        copy(card, *cards)
        async with (
            running_gateway(cards[0], NOBODY) as first,
            running_gateway(cards[1], NOBODY) as second,
        ):
            for number, gateway in enumerate((first, second)):
                said += await capture(gateway, f"{number}, offline")
            await asyncio.gather(
                first.reload(gateway_config(cards[0], nodes[0].port)),
                second.reload(gateway_config(cards[1], nodes[1].port)),
            )
            for number, gateway in enumerate((first, second)):
                said += await capture(gateway, f"{number}, with the cloud")
            await until_stored(said, nodes[0])
        all_stored_once(rows(nodes[0]), said)
