"""Gateways whose clock is wrong: their readings get the right time, wherever they are by then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloud.node import Node
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
        assert gateway.status()["clock"] == {"steps": 3, "corrected": 2}


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
