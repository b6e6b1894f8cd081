"""Wills of clients of one cluster: published once, whichever node dies, or not at all."""

from __future__ import annotations

import pytest

from mqtt.packets import Disconnect, Will
from mqtt.properties import SESSION_EXPIRY_INTERVAL, WILL_DELAY_INTERVAL
from runtime.clock import ManualClock
from tests.kit.fabric import MemoryEngine
from tests.kit.mqtt_nodes import mqtt_nodes, received, until

LASTING = {SESSION_EXPIRY_INTERVAL: 3600}


def will(delay_s: int = 0, **fields: object) -> Will:
    """Return a will to `wills/c`."""
    properties = {WILL_DELAY_INTERVAL: delay_s} if delay_s else {}
    return Will("wills/c", b"gone", 1, properties=properties, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("lasting", [False, True])
async def test_a_dead_node_s_wills_are_published_once(lasting: bool) -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        watchers = []
        for number, node in enumerate((two, three)):
            client = await node.connect(f"w{number}", properties=LASTING if number else None)
            await client.subscribe("wills/#", qos=1)
            watchers.append(client)
        await one.connect("c", will=will(), properties=LASTING if lasting else None)
        await one.die(engine)
        for watcher in watchers:
            assert (await received(watcher)).payload == b"gone"
        await until(lambda: f"e.{one.instance}" not in engine.states)
        for watcher in watchers:
            assert await watcher.settled() == []


async def test_a_will_is_published_once_though_its_heir_dies_having_published_it() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        watchers = {}
        for node in (two, three):
            watchers[node] = await node.connect()
            await watchers[node].subscribe("wills/#", qos=1)
            node.fabric.dies_after_append = True
        await one.connect("c", will=will())
        await one.die(engine)
        await until(lambda: two.fabric.is_dead or three.fabric.is_dead)
        heir, other = (two, three) if two.fabric.is_dead else (three, two)
        other.fabric.dies_after_append = False
        await heir.die(engine)
        assert (await received(watchers[other])).payload == b"gone"
        await until(
            lambda: [key for key in engine.states if key[0] == "e"] == [f"e.{other.instance}"]
        )
        assert await watchers[other].settled() == []
        assert len([entry for entry in engine.log if entry.subject.startswith("a.")]) == 1


async def test_a_delayed_will_waits_and_is_cancelled_by_a_return() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        watcher = await three.connect("w")
        await watcher.subscribe("wills/#", qos=1)
        await one.connect("c", will=will(60), properties=LASTING)
        await one.die(engine)
        await until(lambda: f"e.{one.instance}" not in engine.states)
        assert await watcher.settled() == []
        await two.connect("c", clean_start=False, properties=LASTING, session_present=True)
        assert await watcher.settled() == []
        records = [state for key, state in engine.states.items() if key.startswith("s.")]
        assert len(records) == 1


async def test_a_delayed_will_of_a_dead_node_s_client_comes_in_its_time() -> None:
    engine, clock = MemoryEngine(), ManualClock()
    async with mqtt_nodes(2, engine, clock=clock) as (one, two):
        watcher = await two.connect("w")
        await watcher.subscribe("wills/#", qos=1)
        await one.connect("c", will=will(1), properties=LASTING)
        await one.die(engine)
        await until(lambda: f"e.{one.instance}" not in engine.states)
        assert await watcher.settled() == []
        clock.advance(1.1)
        assert (await received(watcher)).payload == b"gone"


async def test_a_client_that_says_good_bye_has_no_will_left() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        watcher = await two.connect("w")
        await watcher.subscribe("wills/#", qos=1)
        client = await one.connect("c", will=will())
        assert [key for key in engine.states if key.startswith("s.")]
        client.send(Disconnect())
        await until(lambda: not [key for key in engine.states if key.startswith("s.")])
        await one.die(engine)
        await until(lambda: f"e.{one.instance}" not in engine.states)
        assert await watcher.settled() == []
