"""Gateways whose clock is wrong: their readings get the right time, wherever they are by then."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from bridge.commands import Correction, seal_message
from cloud.commands.config import CommandsConfig as CloudCommands
from cloud.node import Node
from edge.config import CommandsConfig as EdgeCommands
from edge.service import EdgeService
from tests.kit.cloud import query
from tests.kit.nodes import node_config, run_command, running_node
from tests.kit.sites import SkewedClock, client_at, running_gateway, until

YEARS_US = 365 * 86_400 * 1_000_000
TO_1970_US = -(time.time_ns() // 1000) + 60_000_000  # a board that came up a minute ago
TOLERANCE_US = 5_000_000


async def publish(gateway: EdgeService, *payloads: bytes) -> None:
    async with client_at(gateway.port, "d1") as (client, _):
        for payload in payloads:
            await client.publish("devices/d1/value", payload, 1)


def errors_us(node: Node) -> dict[str, int]:
    """Return by payload how far the stored time is from now."""
    path = node.config.data / "cloud" / "storage.db"
    now_us = time.time_ns() // 1000
    rows = query(path, "SELECT payload, time_us FROM readings")
    return {str(payload): abs(int(str(time_us)) - now_us) for payload, time_us in rows}


async def until_right(node: Node, count: int) -> None:
    def right() -> bool:
        errors = errors_us(node)
        return len(errors) == count and all(one < 60_000_000 for one in errors.values())

    await until("all times are right", right)


@pytest.mark.parametrize("skew_us", [0, 10 * YEARS_US, -10 * YEARS_US])
async def test_readings_from_before_the_cloud_was_reached(tmp_path: Path, skew_us: int) -> None:
    """0 stands for a board without a clock: it came up a minute ago, in 1970."""
    clock = SkewedClock(skew_us or TO_1970_US)
    async with running_gateway(tmp_path / "gw", 9, clock=clock) as gateway:
        await publish(gateway, b"1", b"2")
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node, clock=clock) as gateway,
    ):
        await until_right(node, 2)
        clock.set_right()
        await publish(gateway, b"3")
        await until_right(node, 3)
        audit = await run_command("audit", "--data", node.config.data)
        assert audit.code == 0


async def test_readings_that_have_left_long_ago_and_a_clock_that_jumps(tmp_path: Path) -> None:
    clock = SkewedClock()
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node, clock=clock) as gateway,
    ):
        await publish(gateway, b"right")
        await until_right(node, 1)
        clock.skew_us = 10 * YEARS_US
        await publish(gateway, b"ten years on")
        await until("stored", lambda: len(errors_us(node)) == 2)
        clock.skew_us = -10 * YEARS_US
        await publish(gateway, b"ten years back")
        await until("stored", lambda: len(errors_us(node)) == 3)
        clock.set_right()
        await publish(gateway, b"right again")
        await until_right(node, 4)
        told = {"steps": 3, "corrected": 2}
        await until("it knows too", lambda: gateway.status()["clock"] == told)


async def test_a_correction_is_applied_once_over_restarts(tmp_path: Path) -> None:
    clock = SkewedClock(10 * YEARS_US)
    config = node_config(tmp_path / "node")
    for count in (1, 2):
        async with (
            running_node(tmp_path, config=config) as node,
            running_gateway(tmp_path / "gw", node, clock=clock) as gateway,
        ):
            await publish(gateway, b"%d" % count)
            await until_right(node, count)
    async with running_node(tmp_path, config=config) as node:
        await until_right(node, 2)


async def test_a_storage_put_back_from_a_backup_gets_its_corrections_again(tmp_path: Path) -> None:
    """The gateway has forgotten them by then: it is not even there."""
    clock = SkewedClock(10 * YEARS_US)
    config = node_config(tmp_path / "node")
    storage, backup = tmp_path / "node" / "cloud" / "storage.db", tmp_path / "backup.db"
    async with running_node(tmp_path, config=config):
        pass
    shutil.copyfile(storage, backup)
    async with (
        running_node(tmp_path, config=config) as node,
        running_gateway(tmp_path / "gw", node, clock=clock) as gateway,
    ):
        await publish(gateway, b"1", b"2")
        await until_right(node, 2)
    shutil.copyfile(backup, storage)
    async with running_node(tmp_path, config=config) as node:
        await until_right(node, 2)


async def test_clocks_are_repaired_without_commands_on_either_side(tmp_path: Path) -> None:
    clock = SkewedClock(-10 * YEARS_US)
    config = node_config(tmp_path / "node", commands=CloudCommands(enabled=False))
    off = EdgeCommands(enabled=False)
    async with (
        running_node(tmp_path, config=config) as node,
        running_gateway(tmp_path / "gw", node, clock=clock, commands=off) as gateway,
        client_at(node.port, "operator") as (operator, _),
    ):
        await publish(gateway, b"1")
        await until_right(node, 1)
        answer = await operator.publish("devices/d1/cmd/x", b"1", 1)  # a reading as any other
        assert answer is not None
        assert answer.reason_code < 0x80


async def test_latest_values_are_corrected_too(tmp_path: Path) -> None:
    clock = SkewedClock()
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node, clock=clock) as gateway,
    ):
        await publish(gateway, b"right")
        await until_right(node, 1)
        clock.skew_us = -10 * YEARS_US  # by its time it is older than the one before
        await publish(gateway, b"newer")
        latest = node._api.latest
        await until(
            "the newest is shown",
            lambda: [one.payload for one in latest.device("d1")] == [b"newer"],
        )
        (shown,) = latest.device("d1")
        assert abs(shown.time_us - time.time_ns() // 1000) < 60_000_000


async def test_a_correction_for_readings_nobody_has_seen_is_kept_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = node_config(tmp_path / "node")
    async with (
        running_node(tmp_path, config=config) as node,
        client_at(node.port, "tidegate-gw-1") as (gateway, _),
    ):
        message = seal_message(Correction(77, 1, 9, 5_000_000, 10))
        answer = await gateway.publish("tidegate/v1/ctl/gw-1", message, 1)
        assert answer is not None
        assert answer.reason_code == 0
    said = capfd.readouterr().out
    assert said.count("correction_of_unknown_epoch") == 1
    kept = query(tmp_path / "node" / "cloud" / "corrections.db", "SELECT gateway FROM corrections")
    assert kept == [("gw-1",)]
