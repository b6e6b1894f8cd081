"""Gateways whose journal is replaced, put back or lost: nothing is taken for what it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloud.node import Node
from edge.service import EdgeService
from tests.kit.cloud import query
from tests.kit.nodes import Outcome, node_config, run_command, running_node
from tests.kit.sites import client_at, gateway_config, running_gateway, until


async def publish(gateway: EdgeService, *payloads: bytes) -> None:
    """Publish as device d1; every one is acknowledged when this returns."""
    async with client_at(gateway.port, "d1") as (client, _):
        for payload in payloads:
            await client.publish("devices/d1/value", payload, 1)


def stored(node: Node) -> list[str]:
    path = node.config.data / "cloud" / "storage.db"
    return sorted(str(row[0]) for row in query(path, "SELECT payload FROM readings"))


async def until_stored(node: Node, *payloads: str) -> None:
    await until("stored", lambda: stored(node) == sorted(payloads))


async def audit(node: Node) -> Outcome:
    return await run_command("audit", "--data", node.config.data)


async def test_a_journal_put_back_from_a_backup_gives_no_seq_twice(tmp_path: Path) -> None:
    gw = tmp_path / "gw-1"
    journal, backup = gw / "edge" / "journal.db", tmp_path / "backup.db"
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(gw, node) as gateway:
            await publish(gateway, b"1", b"2")
            await until_stored(node, "1", "2")
        shutil.copyfile(journal, backup)
        async with running_gateway(gw, node) as gateway:
            await publish(gateway, b"3", b"4")
            await until_stored(node, "1", "2", "3", "4")
        shutil.copyfile(backup, journal)  # in place: the very inode stays
        async with running_gateway(gw, node) as gateway:
            await publish(gateway, b"5", b"6")
            await until_stored(node, "1", "2", "3", "4", "5", "6")
        said = await audit(node)
        assert said.code == 0, said.out
        assert ": restored" in said.out
        assert "6 stored" in said.out


async def test_what_a_backup_has_waiting_comes_once(tmp_path: Path) -> None:
    """The copy holds readings that went up after it was made: they keep their identity."""
    gw = tmp_path / "gw-1"
    journal, backup = gw / "edge" / "journal.db", tmp_path / "backup.db"
    async with running_gateway(gw, 9) as gateway:  # nobody listens there
        await publish(gateway, b"1", b"2")
    shutil.copyfile(journal, backup)
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(gw, node):
            await until_stored(node, "1", "2")
        shutil.copyfile(backup, journal)
        async with running_gateway(gw, node) as gateway:
            await publish(gateway, b"3")
            await until_stored(node, "1", "2", "3")
            await until("drained", lambda: not gateway.status()["uplink"]["backlog_readings"])
        said = await audit(node)
        assert said.code == 0, said.out


@pytest.mark.parametrize("waiting", [0, 2])
async def test_a_card_put_back_from_an_image_loses_and_doubles_nothing(
    tmp_path: Path, waiting: int
) -> None:
    """A copy of the whole folder, made while it ran: it looks like a crash to the gateway.

    What is captured before the cloud is met, more than was given out since the copy, gets seqs that
    the cloud holds for others already.
    """
    card, image = tmp_path / "gw-1", tmp_path / "image"
    old = [b"old %d" % n for n in range(waiting)]
    new = [b"%d" % n for n in range(7)]
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(card, node) as gateway:
            await publish(gateway, b"first")
            await until_stored(node, "first")
        async with running_gateway(card, 9) as gateway:  # nobody listens there
            await publish(gateway, *old)
            shutil.copytree(card, image, ignore=shutil.ignore_patterns("*.lock", "process.json"))
        async with running_gateway(card, node) as gateway:
            await publish(gateway, b"since 1", b"since 2", b"since 3")
            before = ["first", "since 1", "since 2", "since 3", *(one.decode() for one in old)]
            await until_stored(node, *before)
        async with running_gateway(image, 9) as gateway:
            await publish(gateway, *new)
            await gateway.reload(gateway_config(image, node.port))
            await publish(gateway, b"after")
            await until_stored(node, *before, *(one.decode() for one in new), "after")
        said = await audit(node)
        assert said.code == 0, said.out


async def test_a_gateway_on_a_new_card_is_a_second_account(tmp_path: Path) -> None:
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(tmp_path / "card-1", node) as gateway:
            await publish(gateway, b"1")
            await until_stored(node, "1")
        async with running_gateway(tmp_path / "card-2", node) as gateway:
            await publish(gateway, b"2")
            await until_stored(node, "1", "2")
        said = await audit(node)
        assert said.code == 0, said.out
        assert "gw-1: 2 journals, each with an epoch and an account of its own" in said.out


async def test_readings_that_a_lost_card_had_not_sent_are_the_exact_gap(tmp_path: Path) -> None:
    async with running_node(tmp_path, config=node_config(tmp_path / "node")) as node:
        async with running_gateway(tmp_path / "card-1", node) as gateway:
            await publish(gateway, b"1")
            await until_stored(node, "1")
            (epoch,) = {row.epoch for row in await node.stream.ledger()}
            await node.stream.append((), (), {("gw-1", epoch): 4})  # it said so, then it died
        shutil.rmtree(tmp_path / "card-1")
        said = await audit(node)
        assert said.code == 0, "they may yet come"
        assert "3 waiting (3 at the edge" in said.out
        async with running_gateway(tmp_path / "card-2", node) as gateway:
            await publish(gateway, b"2")
            await until_stored(node, "1", "2")
        said = await audit(node)  # that gateway has another journal now: they never will
        assert said.code == 1
        (absent,) = [line for line in said.out.splitlines() if "absent: assigned" in line]
        assert absent.endswith("at the edge: seq 2-4")
