"""A full or old log of MQTT messages: what goes is counted, for each session that is owed it."""

from __future__ import annotations

import pytest

from mqtt.packets import Publish
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from tests.kit.fabric import MemoryEngine
from tests.kit.mqtt_nodes import Node, mqtt_nodes, publish, received, until

LASTING = {SESSION_EXPIRY_INTERVAL: 3600}


async def away(node: Node, client_id: str, topic_filter: str) -> None:
    """Make a lasting session and leave."""
    client = await node.connect(client_id, properties=LASTING)
    await client.subscribe(topic_filter, qos=1)
    await node.gone(client)


async def look(nodes: list[Node]) -> Node:
    """Let the node that keeps house look once, when all have read everything; return it."""
    await until(lambda: len({node.cluster.position for node in nodes}) == 1)
    position = nodes[0].cluster.position
    for node in nodes:
        node.cluster.peers.beat()
    await until(lambda: all(node.cluster.peers.read_by_all >= position for node in nodes))
    keeper = min(nodes, key=lambda node: node.instance)
    await keeper.cluster.shedding.look()
    return keeper


@pytest.mark.parametrize("cause", ["full", "old"])
async def test_what_goes_is_counted_for_each_session_that_is_owed_it(cause: str) -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as nodes:
        one, two = nodes
        await away(one, "all", "a/#")
        await away(two, "some", "a/x")
        await away(two, "none", "b/#")
        publisher = await one.connect("p")
        for number in range(60):
            topic = "a/x" if number % 3 == 0 else "a/y"
            await publish(publisher, topic, b"%03d" % number + bytes(1_000), 1)
        keeper = await look(nodes)
        assert keeper.cluster.stats().lost_messages == 0  # there is room
        if cause == "full":
            engine.log_bytes_max = sum(len(entry.data) for entry in engine.log)
        else:
            engine.oldest_us, engine.age_max_us = 1, 1_000_000_000_000
            engine.old_seq = engine.log[len(engine.log) // 3].seq
        younger = [entry for entry in engine.log if entry.seq > engine.old_seq]
        await look(nodes)
        lost = keeper.cluster.shedding.lost_by_session
        if cause == "old":  # what is younger stays, however little that leaves to go
            await look(nodes)
            assert engine.log == younger
        assert 0 < lost["some"] < lost["all"] < 60
        assert "none" not in lost
        stats = keeper.cluster.stats()
        assert stats.lost_messages == lost["all"] + lost["some"]
        assert stats.log_fill <= 0.9
        for client_id, step in (("all", 1), ("some", 3)):  # what was not counted comes
            back = await two.connect(
                client_id, clean_start=False, properties=LASTING, session_present=True
            )
            expected = list(range(0, 60, step))[lost[client_id] :]
            got = [int((await received(back)).payload[:3]) for _ in expected]
            assert got == expected
            assert not [one for one in await back.settled() if isinstance(one, Publish)]


async def test_what_nobody_waits_for_makes_room_without_a_loss() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as nodes:
        one, two = nodes
        await away(one, "one", "a/#")
        publisher = await one.connect("p")
        for number in range(20):
            await publish(publisher, "a/x", b"%d" % number, 1)
        back = await two.connect("one", clean_start=False, properties=LASTING, session_present=True)
        for _ in range(20):
            await received(back)
        await two.gone(back)
        position = two.cluster.position
        await until(
            lambda: all(k.cursor_seq >= position for k in two.cluster.claims.known.values())
        )
        engine.log_bytes_max = 1
        keeper = await look(nodes)
        assert keeper.cluster.stats().lost_messages == 0
        assert len(engine.log) < 20


async def test_a_log_that_fills_faster_than_it_is_looked_at_loses_nothing_uncounted() -> None:
    """It takes nothing when it is full: publishers wait for room, which is made counted."""
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as nodes:
        one, two = nodes
        await away(one, "away", "a/#")
        engine.log_bytes_max = 20_000
        publishers = [await node.connect(f"p{number}") for number, node in enumerate(nodes)]
        for number in range(60):
            publisher = publishers[number % 2]
            assert await publish(publisher, "a/x", b"%03d" % number + bytes(1_000), 1) == 0
        lost = sum(node.cluster.shedding.lost_by_session.get("away", 0) for node in nodes)
        assert 30 < lost < 60
        back = await two.connect(
            "away", clean_start=False, properties=LASTING, session_present=True
        )
        got = [int((await received(back)).payload[:3]) for _ in range(60 - lost)]
        assert got == list(range(lost, 60))
        assert not [packet for packet in await back.settled() if isinstance(packet, Publish)]


async def test_shared_messages_that_go_unacknowledged_are_counted_and_come_all_the_same() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as nodes:
        one, two = nodes
        member = await two.connect("m")
        await member.subscribe("$share/g/a/#", qos=1)
        publisher = await one.connect("p")
        for number in range(20):
            await publish(publisher, "a/x", b"%d" % number, 1)
        engine.log_bytes_max = 1
        keeper = await look(nodes)
        stats = keeper.cluster.stats()
        assert (stats.lost_messages, stats.unguarded_messages) == (0, 20 - len(engine.log))
        assert stats.unguarded_messages > 0
        assert [(await received(member)).payload for _ in range(20)] == [
            b"%d" % number for number in range(20)
        ]


async def test_a_record_that_was_altered_does_not_end_the_shedding() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(1, engine) as nodes:
        (one,) = nodes
        await away(one, "one", "a/#")
        publisher = await one.connect("p")
        await publish(publisher, "a/x", b"1", 1)
        (key,) = (key for key in engine.states if key.startswith("s."))
        engine.states[key] = engine.states[key]._replace(value=b"nothing of ours")
        engine.log_bytes_max = 1
        await look(nodes)
        assert engine.log == []
