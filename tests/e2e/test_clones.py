"""A gateway's card copied, and both copies run: every reading that was acknowledged is stored once.

Each copy captures while no cloud is there, and with it; they connect one after the other, at once,
and again. What they captured before the copy was made is one reading, whoever sends it.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from cloud.node import Node
from mqtt.errors import MqttError
from tests.kit.clones import (
    NOBODY,
    all_stored_once,
    capture,
    copy,
    rows,
    until_sent,
    until_stored,
)
from tests.kit.nodes import node_config, run_command, running_node
from tests.kit.processes import Process
from tests.kit.site import Site
from tests.kit.sites import client_at, gateway_config, running_gateway, until

KILLS = 3


async def check(node: Node, payloads: Sequence[str]) -> None:
    """All is stored, once, in order, and the ledger says so of every account."""
    await until_stored(payloads, node)
    all_stored_once(rows(node), payloads)
    report = await run_command("audit", "--data", node.config.data)
    assert report.code == 0, report.out
    assert "missing" not in report.out


@pytest.mark.parametrize("clones", [2, 3])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("waiting", [0, 3])
async def test_copies_of_a_card_that_was_stopped(
    tmp_path: Path, clones: int, at_once: bool, waiting: int
) -> None:
    card = tmp_path / "card"
    cards = [tmp_path / f"copy-{number}" for number in range(clones)]
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(card, node) as gateway:
            said = await capture(gateway, "before")
            await until_stored(said, node)
        async with running_gateway(card, NOBODY) as gateway:
            said += await capture(gateway, "waits", waiting)
        copy(card, *cards)
        async with AsyncExitStack() as stack:
            gateways = [
                await stack.enter_async_context(running_gateway(one, NOBODY)) for one in cards
            ]
            for number, gateway in enumerate(gateways):
                said += await capture(gateway, f"offline {number}", 2 + number)
            for number, gateway in enumerate(gateways):
                await gateway.reload(gateway_config(cards[number], node.port))
                if not at_once:
                    said += await capture(gateway, f"alone {number}")
                    await until_sent(gateway)
            for _ in range(3):
                for number, gateway in enumerate(gateways):
                    said += await capture(gateway, f"with {number}")
            await until_stored(said, node)
        for number, one in enumerate(cards):  # and each alone once more
            async with running_gateway(one, node) as gateway:
                said += await capture(gateway, f"again {number}")
                await until_stored(said, node)
        await check(node, said)


async def test_a_copy_made_while_it_ran_comes_and_the_original_notices_nothing(
    tmp_path: Path,
) -> None:
    card, image = tmp_path / "card", tmp_path / "image"
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(card, node) as original:
            said = await capture(original, "before")
            await until_stored(said, node)
            epoch = original.status()["journal"]["epoch"]
            copy(card, image)
            said += await capture(original, "since")
            await until_stored(said, node)
            async with running_gateway(image, NOBODY) as clone:
                said += await capture(clone, "offline")
                await clone.reload(gateway_config(image, node.port))
                for _ in range(3):
                    said += await capture(original, "original")
                    said += await capture(clone, "clone")
                await until_stored(said, node)
                assert original.status()["journal"]["epoch"] == epoch
                parted = clone.status()["journal"]
                assert parted["epoch"] != epoch
                assert parted["parted_from"] == epoch
                assert parted["parted_after_seq"] == 3
        await check(node, said)
        detail = await run_command("audit", "--data", node.config.data)
        assert "parted from" in detail.out


async def test_the_copy_comes_first_and_the_original_parts_while_it_runs(tmp_path: Path) -> None:
    """What both have, captured before the copy and not sent, comes once, whoever sends it."""
    card, image = tmp_path / "card", tmp_path / "image"
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(card, node) as original:
            said = await capture(original, "before")
            await until_stored(said, node)
            await original.reload(gateway_config(card, NOBODY))
            said += await capture(original, "both have it")
            copy(card, image)
            said += await capture(original, "original's, offline", 5)
            async with running_gateway(image, node) as clone:
                said += await capture(clone, "clone's")
                await until_sent(clone)
                await original.reload(gateway_config(card, node.port))
                for _ in range(3):
                    said += await capture(original, "original")
                    said += await capture(clone, "clone")
                await until_stored(said, node)
            said += await capture(original, "alone")
            await until_stored(said, node)
            assert original.status()["journal"]["parted_from"]
        async with running_gateway(card, node) as original:  # its new epoch is its own for good
            said += await capture(original, "again")
            await until_stored(said, node)
        await check(node, said)


async def test_a_clone_that_has_no_link_for_what_both_have_keeps_its_own_for_later(
    tmp_path: Path,
) -> None:
    """It stops while it parts, again and again: nothing is kept of it, and it begins anew."""
    card = tmp_path / "card"
    cards = [tmp_path / "one", tmp_path / "two"]
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(card, NOBODY) as gateway:
            said = await capture(gateway, "both have it", 20)
        copy(card, *cards)
        for turn in range(3):
            for number, one in enumerate(cards):
                async with running_gateway(one, node) as gateway:
                    said += await capture(gateway, f"{number} in turn {turn}", 2)
        for one in cards:
            async with running_gateway(one, node) as gateway:
                await until_sent(gateway)
        await check(node, said)


# ---- real processes, killed ----------------------------------------------------------------------


class Publisher:
    """A device that publishes to one gateway until told, and notes what was acknowledged."""

    def __init__(self, name: str, port: int | None) -> None:
        assert port is not None
        self.name, self.port = name, port
        self.acked: list[str] = []
        self.tried: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(MqttError, OSError, TimeoutError):
                async with asyncio.timeout(20), client_at(self.port, "d1") as (client, _):
                    while not stop.is_set():
                        payload = f"{len(self.tried):05} {self.name}"
                        self.tried.add(payload)
                        published = await client.publish("devices/d1/value", payload.encode(), 1)
                        if published is not None:
                            self.acked.append(payload)
            await asyncio.sleep(0.02)


async def killing(victim: Process, rng: random.Random) -> None:
    """Kill and start again, from the first packets on."""
    for _ in range(KILLS):
        await asyncio.sleep(rng.uniform(0.05, 1.0))
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)


async def test_copies_that_are_killed_at_seeded_points(tmp_path: Path) -> None:
    """The card is copied as a power cut leaves it, with readings that were not sent."""
    rng = random.Random("clones")
    with Site(tmp_path) as site:
        await asyncio.to_thread(site.up)
        before = Publisher("before", site.edge_port)
        stop = asyncio.Event()
        publishing = asyncio.create_task(before.run(stop))
        await until("some are there", lambda: len(before.acked) > 20)
        await asyncio.to_thread(site.cloud.kill)
        many = len(before.acked)
        await until("some wait", lambda: len(before.acked) > many + 20)
        await asyncio.to_thread(site.edge.kill)
        stop.set()
        await publishing
        gateways = [site.edge, site.clone("second"), site.clone("third")]
        try:
            for one in (site.cloud, *gateways):
                await asyncio.to_thread(one.start)
            publishers = [
                Publisher(f"at {number}", one.port) for number, one in enumerate(gateways)
            ]
            stop = asyncio.Event()
            devices = [asyncio.create_task(one.run(stop)) for one in publishers]
            await asyncio.gather(*(killing(one, rng) for one in (site.cloud, *gateways)))
            stop.set()
            await asyncio.gather(*devices)
            acked = {payload for one in (before, *publishers) for payload in one.acked}
            tried = {payload for one in (before, *publishers) for payload in one.tried}

            def stored() -> Counter[str]:
                with suppress(sqlite3.OperationalError):
                    return Counter(str(payload) for (payload,) in site.rows("payload"))
                return Counter()

            await until("all is stored", lambda: acked <= stored().keys(), timeout_s=120)
            assert set(stored().values()) == {1}
            assert stored().keys() <= tried
            order: dict[object, list[object]] = {}
            for epoch, _, payload in site.rows("epoch, seq, payload"):
                order.setdefault((epoch, str(payload)[6:]), []).append(payload)
            assert all(found == sorted(found, key=str) for found in order.values())
            for one in gateways:
                one.stop()
            audit = site.audit()
            assert audit.returncode == 0, audit.stdout + audit.stderr
        finally:
            for one in gateways[1:]:
                one.__exit__()
