"""Any history of moves, cuts and deaths of nodes: nothing acknowledged is lost, QoS 2 comes once.

A subscriber with a session that lasts, one for QoS 1 and one for QoS 2, is thrown from node to
node while a publisher that stays publishes; nodes die without a word and others start. The seed is
in the test's name.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from mqtt.packets import (
    Connack,
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from tests.kit.brokers import TIMEOUT_S, WireClient
from tests.kit.fabric import MemoryEngine
from tests.kit.mqtt_nodes import Node, mqtt_nodes, publish, start_node, stop_node, until

STEPS = 20


class Mover:
    """A client whose half of the session outlives its connections, as a real one's does."""

    def __init__(self, name: str, qos: int) -> None:
        self.name = name
        self.qos = qos
        self.got: Counter[bytes] = Counter()
        self.half: set[int] = set()  # QoS 2 identifiers received and not released
        self.client: WireClient | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, node: Node, *, fresh: bool = False) -> None:
        """Connect to a node, the old connection gone or not."""
        client = await node.open()
        client.send(
            Connect(self.name, clean_start=False, properties={SESSION_EXPIRY_INTERVAL: 3600})
        )
        connack = await client.receive(Connack)
        assert connack.session_present is not fresh
        if fresh:
            client.send(Subscribe(1, [Subscription(f"{self.name}/#", self.qos)]))
            await client.receive(Suback)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self.client = client
        self._reading = asyncio.create_task(self._read(client))

    async def _read(self, client: WireClient) -> None:
        while (packet := await client.next()) is not None:
            if isinstance(packet, Publish):
                if packet.qos == 1:
                    self.got[packet.payload] += 1
                    client.send(Puback(packet.packet_id))
                else:
                    if packet.packet_id not in self.half:
                        self.got[packet.payload] += 1
                        self.half.add(packet.packet_id)
                    client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                self.half.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))

    async def stop(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_acknowledged_is_lost_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    engine = MemoryEngine()
    movers = [Mover("one", 1), Mover("two", 2)]
    acknowledged: dict[str, list[bytes]] = {"one": [], "two": []}
    async with mqtt_nodes(3, engine) as nodes:
        started: list[Node] = []
        publisher = await nodes[0].connect("p")  # its node stays
        living = list(nodes)
        for mover in movers:
            await mover.connect(rng.choice(living[1:]), fresh=True)
        for step in range(STEPS):
            for number in range(rng.randrange(1, 8)):
                mover = rng.choice(movers)
                payload = b"%d-%d" % (step, number)
                async with asyncio.timeout(TIMEOUT_S):
                    assert await publish(publisher, f"{mover.name}/x", payload, mover.qos) == 0
                acknowledged[mover.name].append(payload)
            action = rng.choice(("move", "move", "abort", "die", "wait"))
            if action == "move":
                await rng.choice(movers).connect(rng.choice(living))
            elif action == "abort":
                mover = rng.choice(movers)
                assert mover.client is not None
                mover.client.abort()
                await mover.connect(rng.choice(living))
            elif action == "die" and len(living) > 1:
                dead = living.pop(rng.randrange(1, len(living)))
                known_dead = rng.random() < 0.8  # or the clients are elsewhere before anybody knows
                await dead.die(engine, lease=known_dead)
                for mover in movers:
                    await mover.connect(rng.choice(living))
                if not known_dead:
                    engine.expire_lease(dead.instance)
                fresh = await start_node(engine, f"x{step}")
                started.append(fresh)
                living.append(fresh)
        for mover in movers:
            wanted = acknowledged[mover.name]
            await until(lambda mover=mover, wanted=wanted: all(mover.got[p] for p in wanted))  # type: ignore[misc]
        assert set(movers[1].got.values()) <= {1}
        assert all(not mover.got.keys() - acknowledged[mover.name] for mover in movers)
        for mover in movers:
            await mover.stop()
        for node in started:
            await stop_node(node)
